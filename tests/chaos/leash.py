"""Runs a module as a program that does not outlive whoever started it, whatever becomes of the tests.

``python -m tests.chaos.leash PARENT MODULE ARGUMENT...``: the kernel kills the program when the process PARENT, or
rather its thread that has started this one, is gone; see prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the module."""
    parent, module, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(0)  # it was gone before we asked
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
