"""Waiting without sleep while one message follows closely on another.

A core that has gone to sleep takes tens of microseconds to come back, a virtual one more, and each invocation wakes the
broker twice. So it looks for some time before it sleeps, as a hypervisor does before it halts a guest's core: the
window in which it looks grows while waits turn out to be short, and one long wait closes it (Linux,
Documentation/virt/kvm/halt-polling.rst). Between two looks, whoever else wants the core has it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

__all__ = ["BusyPoll"]

_Ready: TypeAlias = list[tuple[Any, int]]

_STEPS: Final = 8
"""The window begins at the longest divided by this, and doubles: a few messages in a row are no traffic yet."""


class BusyPoll:
    """Waits as ``poll`` does, which is given a timeout in milliseconds (-1: none).

    ``longest``: seconds that the window has at most; 0: it sleeps at once, always. ``clock``: seconds.
    """

    def __init__(
        self, poll: Callable[[int], _Ready], longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._poll = poll
        self._longest = longest
        self._clock = clock
        self._window = 0.0

    def wait(self, timeout: int) -> _Ready:
        """What is there, after ``timeout`` milliseconds and the window at most."""
        if not self._longest or not timeout:
            return self._poll(timeout)
        began = self._clock()
        ready = self._look(began + self._window) if self._window else []
        if not ready:
            ready = self._poll(timeout)
        if self._clock() - began <= self._longest:
            self._window = min(self._longest, max(2 * self._window, self._longest / _STEPS))
        else:
            self._window = 0.0
        return ready

    def _look(self, until: float) -> _Ready:
        while not (ready := self._poll(0)) and self._clock() < until:
            os.sched_yield()
        return ready
