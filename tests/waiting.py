"""How long tests of real processes wait, and waiting for what sends no event."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

__all__ = ["PATIENCE", "wait_until"]

PATIENCE = 60.0
"""Seconds that anything may take before its test fails: torch takes two to be imported, on an idle machine."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again, for at most `PATIENCE`: for shared memory, which wakes nobody."""
    end = time.monotonic() + PATIENCE
    poller = select.poll()
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        poller.poll(5)
