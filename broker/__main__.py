"""``python -m broker`` is the program ``edgeplan-broker``."""

from broker.cli import main

main()
