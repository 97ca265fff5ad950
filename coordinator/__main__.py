"""``python -m coordinator``: the same as ``edgeplan``."""

from coordinator.cli import main

if __name__ == "__main__":
    main()
