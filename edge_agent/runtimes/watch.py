"""Looks now and then, beside a run that nothing can look into, whether it is to go on.

onnxruntime runs a whole plan in one call, and a loop in it may take as long as it likes. While the call lasts, a thread
asks what is asked between ops elsewhere, and tells the call to end where that raises.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["SECONDS", "Watch", "Watched"]

SECONDS = 0.05
"""How often it looks."""


class Watched:
    """One run. ``options`` are what it was started with: their ``terminate`` ends it; ``error`` then says why."""

    def __init__(self, between: Callable[[int], None], options: Any) -> None:
        self.options = options
        self.error: BaseException | None = None
        self._between = between
        self._over = threading.Event()
        self._looking = threading.Lock()

    def end(self) -> None:
        """The run is over; after this, ``between`` is not called any more."""
        with self._looking:
            self._over.set()

    def look(self) -> None:
        """Until the run is over, or is to end. Called on the other thread."""
        while not self._over.wait(SECONDS):
            with self._looking:
                if self._over.is_set():
                    return
                try:
                    self._between(0)
                except BaseException as error:  # noqa: BLE001 -- it is raised where the run was started
                    self.error = error
                    self.options.terminate = True
                    return


class Watch:
    """A thread that watches runs, one after the other: started with the first, gone with this object."""

    def __init__(self) -> None:
        self._runs: queue.SimpleQueue[Watched | None] = queue.SimpleQueue()
        self._started = False

    def begin(self, run: Watched) -> None:
        """Watch a run."""
        if not self._started:
            self._started = True
            threading.Thread(target=_watch, args=(self._runs,), name="run-watch", daemon=True).start()
            weakref.finalize(self, self._runs.put, None)
        self._runs.put(run)


def _watch(runs: queue.SimpleQueue[Watched | None]) -> None:
    while (run := runs.get()) is not None:
        run.look()
