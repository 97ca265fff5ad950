"""``python -m tests.arm64 FOLDER [MIRROR]``: make the Debian for arm64 in which `make arm64` runs a device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.arm64.debian import CannotEmulate, make_root


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="tests.arm64", description=__doc__)
    parser.add_argument("folder", type=Path, help="where it is to be")
    parser.add_argument("mirror", nargs="?", default="", help="of Debian; else the one that apt has")
    options = parser.parse_args()
    try:
        make_root(options.folder, options.mirror)
    except CannotEmulate as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
