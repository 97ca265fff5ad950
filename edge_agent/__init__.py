"""edgeplan's edge agent: what a plan is, and running it on the data of a device."""
