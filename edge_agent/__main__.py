"""``python -m edge_agent``: the same as ``edgeplan-agent``."""

from edge_agent.cli import main

if __name__ == "__main__":
    main()
