"""``python -m tests.chaos``: one run, its table, and what it has found."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.monkey import Pace
from tests.chaos.run import print_outcome, run_chaos


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=40.0, help="how long it may take to kill so many")
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--coordinators", type=int, default=2)
    parser.add_argument("--early", type=float, default=Pace().early, help="how likely the weak are hit, too")
    parser.add_argument("--folder", type=Path, help="keep journals and logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeplan-chaos-") as scratch:
        outcome = run_chaos(
            options.folder or Path(scratch),
            seed=options.seed,
            kills=options.kills,
            within=options.minutes * 60,
            devices=options.devices,
            coordinators=options.coordinators,
            pace=Pace(early=options.early),
        )
    print_outcome(outcome)
    for complaint in outcome.audit.complaints:
        print(complaint)
    return 1 if outcome.audit.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
