"""A lock under which ctrl-C does not strike: what happens under it happens whole, or not at all."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Guard"]

_get_ident = threading.get_ident
_main = threading.main_thread().ident
_SIGINT = int(signal.SIGINT)
# `signal` itself wraps these in conversions from and to enums, which take twenty times as long, for every call.
_quick: Any = importlib.import_module("_signal")
_get_handler = _quick.getsignal
_set_handler = _quick.signal


def _forked() -> None:
    global _main  # noqa: PLW0603  (the child's only thread is its main one)
    _main = _get_ident()


os.register_at_fork(after_in_child=_forked)


class Guard:
    """A lock for ``with`` statements. In the main thread, which alone runs signal handlers, SIGINT waits until the lock
    is free again: its handler raises KeyboardInterrupt between any two steps of Python, and a state machine that is
    left in the middle of one of its own can't be used any more.

    Held for microseconds: nothing under it may wait. `raw` is the lock itself, for threads that run no handlers.
    """

    __slots__ = ("_before", "_struck", "raw")

    def __init__(self) -> None:
        self.raw = threading.Lock()
        self._before: Any = None  # SIGINT's own handler, while another one stands in for it
        self._struck: FrameType | bool = False

    def _strike(self, _signal: int, frame: FrameType | None) -> None:
        self._struck = frame or True

    def enter(self, *, blocking: bool = True) -> bool:
        """Take the lock; False, if somebody else has it and ``blocking`` is False. Call `leave` then."""
        # A handler of C, or none at all, raises nothing.
        if _get_ident() != _main or not callable(before := _get_handler(_SIGINT)):
            return self.raw.acquire(blocking)
        try:
            _set_handler(_SIGINT, self._strike)
        except ValueError:  # in a thread that some other program takes for its main one, or in an interpreter of it
            return self.raw.acquire(blocking)
        taken = False
        try:
            taken = self.raw.acquire(blocking)
        finally:
            if taken:
                self._before = before
            else:
                self._restore(before)
        return taken

    def leave(self, *_error: object) -> None:
        """Give the lock back. Raises what SIGINT's handler raises, if it struck meanwhile.

        It is `__exit__`, too, and what an exception brings there does not matter.
        """
        before, self._before = self._before, None
        self.raw.release()
        if before is not None:
            self._restore(before)

    def _restore(self, before: Any) -> None:
        _set_handler(_SIGINT, before)
        struck, self._struck = self._struck, False
        if struck is not False:
            before(_SIGINT, None if struck is True else struck)

    # Not methods that call them: every call of the user comes by here.
    __enter__ = enter
    __exit__ = leave
