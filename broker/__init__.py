"""edgeplan's broker: the language that everyone speaks, and the router that speaks it."""
