"""Ends runs that cannot look up by themselves: onnxruntime computes a whole model in one call.

A thread looks for them, every `LOOK_SECONDS` while there is a run, and sets the flag that onnxruntime reads before each
node of a model (``RunOptions.terminate``). It ends itself when there was nothing to look after for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

__all__ = ["LOOK_SECONDS", "Lookout", "Stoppable", "Watched"]

LOOK_SECONDS = 0.05

_LINGER = 20
"""How often the thread finds nothing to look after before it ends."""


class Stoppable(Protocol):
    """What ends a run when it is set: ``onnxruntime.RunOptions``."""

    terminate: bool


class Watched:
    """A run that is looked after in the ``with`` block. ``reason``: what ``look`` has raised; then the run is ended, or
    was over before.
    """

    __slots__ = ("_look", "_lookout", "_options", "reason")

    def __init__(self, lookout: Lookout, options: Stoppable, look: Callable[[], object]) -> None:
        self.reason: BaseException | None = None
        self._lookout = lookout
        self._options = options
        self._look = look

    def __enter__(self) -> Self:
        self._lookout.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lookout.remove(self)

    def check(self) -> None:
        """Look whether the run shall end."""
        if self.reason is None:
            try:
                self._look()
            except BaseException as reason:  # noqa: BLE001 - the run's own thread raises it
                self.reason = reason
                self._options.terminate = True


class Lookout:
    """Looks after any number of runs."""

    def __init__(self, every: float = LOOK_SECONDS) -> None:
        self._every = every
        self._lock = threading.Lock()
        self._runs: set[Watched] = set()
        self._thread: threading.Thread | None = None

    def over(self, options: Stoppable, look: Callable[[], object]) -> Watched:
        """A run with these options, to be entered. ``look`` is called on another thread, now and then, and what it
        raises ends the run.
        """
        return Watched(self, options, look)

    def add(self, run: Watched) -> None:
        """It begins."""
        with self._lock:
            self._runs.add(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="plan-lookout", daemon=True)
                self._thread.start()

    def remove(self, run: Watched) -> None:
        """It is over."""
        with self._lock:
            self._runs.discard(run)

    def _work(self) -> None:
        idle = 0
        while True:
            time.sleep(self._every)
            with self._lock:
                runs = list(self._runs)
                idle = 0 if runs else idle + 1
                if idle > _LINGER:
                    self._thread = None
                    return
            for run in runs:
                run.check()
