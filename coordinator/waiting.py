"""Waiting for what the driver's thread does, from a thread or from a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coordinator.checks import not_a_timeout
from coordinator.core_results import Result

if TYPE_CHECKING:
    from coordinator.driver import SessionDriver

__all__ = ["AsyncSignal", "Deadline", "Signal", "wait_async", "wait_for"]


class Deadline:
    """A point in time ``timeout`` seconds from now; None, and what is longer than a thread can wait (292 years): never.
    Raises ValueError for what is no time.
    """

    __slots__ = ("_at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._at: float | None = None
        if timeout is None:
            return
        try:
            at = time.monotonic() + timeout
        except (TypeError, OverflowError):
            raise not_a_timeout(timeout) from None
        if at < threading.TIMEOUT_MAX:
            self._at = at
        elif math.isnan(at):
            raise not_a_timeout(timeout)

    @property
    def left(self) -> float | None:
        """The seconds left, 0 at least; None: no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())


class Signal:
    """Set once or more from any thread, waited for by one."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake whoever waits."""
        try:  # noqa: SIM105  (contextlib.suppress would double the time of this, and every invocation pays for it)
            self._lock.release()
        except RuntimeError:
            pass  # it is set already

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is set, and unset it; False: it was not within ``timeout`` seconds."""
        return self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))


class AsyncSignal:
    """A `Signal` for a coroutine of the running event loop."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake whoever waits, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout: float | None) -> bool:  # noqa: ASYNC109  (the callers' deadline)
        """Wait until it is set, and unset it; False: it was not within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


def wait_for(driver: SessionDriver, results: Sequence[Result], deadline: Deadline) -> Result | None:
    """Wait until all have ended; the first that has not, when time is up."""
    for result in results:
        if result.ended:
            continue
        signal = Signal()
        if not driver.when_ended(result, signal.set):
            continue
        ended = False
        try:
            ended = signal.wait(deadline.left)
        finally:
            if not ended:
                driver.forget(result, signal.set)
        if not ended and not result.ended:
            return result
    return None


async def wait_async(driver: SessionDriver, results: Sequence[Result], deadline: Deadline) -> Result | None:
    """As `wait_for`, for a coroutine."""
    for result in results:
        if result.ended:
            continue
        signal = AsyncSignal()
        if not driver.when_ended(result, signal.set):
            continue
        ended = False
        try:
            ended = await signal.wait(deadline.left)
        finally:
            if not ended:
                driver.forget(result, signal.set)
        if not ended and not result.ended:
            return result
    return None
