"""Results as they end: those of this session (`AsCompleted`), and those of anybody (`Notifications`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode
from broker.protocol.messages import Cancelled, Expired, Failure, Notify, ResultFailed, ResultReady, ResultStatus
from coordinator.checks import checked_prefix
from coordinator.core_results import Result
from coordinator.errors import ResultTimeout
from coordinator.subscriptions import Subscription
from coordinator.waiting import AsyncSignal, Deadline, Signal

if TYPE_CHECKING:
    from coordinator.driver import SessionDriver
    from coordinator.pointers import PointerTensor
    from coordinator.session_socket import Context

__all__ = ["AsCompleted", "Notification", "Notifications"]


class AsCompleted:
    """Iterates over pointers in the order in which their results end. See `Fleet.as_completed`."""

    def __init__(self, driver: SessionDriver, pointers: Sequence[PointerTensor], timeout: float | None) -> None:
        self._driver = driver
        self._deadline = Deadline(timeout)
        self._ended: deque[PointerTensor] = deque()
        self._left: dict[bytes, list[PointerTensor]] = {}
        self._signal: Signal | AsyncSignal | None = None
        self._lock = threading.Lock()
        for pointer in pointers:
            self._left.setdefault(pointer.result.id, []).append(pointer)
        for group in list(self._left.values()):
            result = group[0].result

            def notify(result: Result = result) -> None:
                self._on_ended(result)

            if not driver.when_ended(result, notify):
                notify()

    def __repr__(self) -> str:
        with self._lock:
            ended, left = len(self._ended), sum(map(len, self._left.values()))
        return f"<AsCompleted, {ended} ended, {left} to come>"

    def _on_ended(self, result: Result) -> None:
        with self._lock:
            self._ended.extend(self._left.pop(result.id, ()))
            signal = self._signal
        if signal is not None:
            signal.set()

    def _next(self, signal: Signal | AsyncSignal) -> PointerTensor | None:
        """One that has ended, if there is one. Raises IndexError when all have been given out."""
        with self._lock:
            self._signal = signal
            if self._ended:
                return self._ended.popleft()
            if not self._left:
                raise IndexError
            return None

    def _timed_out(self) -> ResultTimeout:
        with self._lock:
            late = next(iter(self._left.values()))[0]
        return ResultTimeout(late.id, self._deadline.timeout or 0.0, late.result.device)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PointerTensor:
        signal = Signal()
        while True:
            try:
                pointer = self._next(signal)
            except IndexError:
                raise StopIteration from None
            if pointer is not None:
                return pointer
            self._driver.check()
            if not signal.wait(self._deadline.left) and not self._ended:
                raise self._timed_out()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PointerTensor:
        signal = AsyncSignal()
        while True:
            try:
                pointer = self._next(signal)
            except IndexError:
                raise StopAsyncIteration from None
            if pointer is not None:
                return pointer
            self._driver.check()
            if not await signal.wait(self._deadline.left) and not self._ended:
                raise self._timed_out()


class Notification(NamedTuple):
    """A result has ended: its id (32 hex digits), its device, how, and why if without a value."""

    id: str
    device: str
    status: ResultStatus
    failure: Failure | None = None


class Notifications(Subscription[Notification]):
    """Iterates over results of anybody as they end. See `Fleet.notifications`."""

    def __init__(self, context: Context, endpoint: str, prefix: str) -> None:
        super().__init__(context, endpoint, [b"n." + checked_prefix(prefix).encode()])

    def _parse(self, frames: Sequence[bytes]) -> Notification | None:
        return _parse(frames)


def _parse(frames: Sequence[bytes]) -> Notification | None:
    try:
        message = decode(frames[1])
    except (ProtocolError, IndexError):
        return None
    if not isinstance(message, Notify):
        return None
    event = message.event
    if isinstance(event, ResultReady):
        return Notification(event.id.hex(), message.device, ResultStatus.DONE)
    if isinstance(event, ResultFailed):
        return Notification(event.id.hex(), message.device, ResultStatus.FAILED, event.failure)
    if isinstance(event, Cancelled):
        return Notification(event.id.hex(), message.device, ResultStatus.CANCELLED)
    if isinstance(event, Expired):
        return Notification(event.id.hex(), message.device, ResultStatus.EXPIRED)
    return None
