"""Results of other sessions, or of earlier incarnations of this one, that somebody here has taken up by their ids.

The broker tells an incarnation how its own commands end. Of the others it is asked until they have ended; and of an
earlier incarnation of a named session it tells what that has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from broker.protocol.ids import counter_of
from broker.protocol.messages import (
    Cancelled,
    Expired,
    Failure,
    Frame,
    ResultFailed,
    ResultReady,
    ResultStatus,
    StatusEntry,
)
from coordinator.core_events import ResultEnded, Watch
from coordinator.core_requests import Requests, failure_of
from coordinator.core_results import Result
from coordinator.core_tables import ResultInput

__all__ = ["Watched", "failure_of_event"]

_LOST = Failure(code="LedgerLost", message="the broker lost its ledger, and no device has announced the result since")


class Watched:
    """See the module. ``grace``: for how many seconds after the broker came with a new ledger an id that was in
    another may be unknown: its device may yet announce it.
    """

    def __init__(self, requests: Requests, *, grace: float) -> None:
        self._requests = requests
        self._grace = grace
        self._ledger = b""
        self._since = -math.inf  # when that ledger was first seen
        self._in: dict[bytes, bytes] = {}  # which ledger knew an id

    def opened(self, ledger: bytes, now: float) -> None:
        """The broker has this ledger."""
        if ledger != self._ledger:
            self._ledger, self._since = ledger, now

    def watch(self, event: Watch, now: float) -> None:
        """Ask after an id until it has ended."""
        self._in[event.id] = self._ledger
        self._requests.watch(Result(event.id, device=event.device, first=event.command), now)

    def reported(self, entries: Iterable[StatusEntry], now: float, out: list[object]) -> None:
        """The broker has said what became of some of them."""
        for entry in entries:
            failure = failure_of(entry)
            if entry.status is ResultStatus.UNKNOWN and self._in.get(entry.id, self._ledger) != self._ledger:
                if now < self._since + self._grace:
                    continue
                failure = _LOST
            if failure is not None:
                self._end(entry.id, ResultInput.FAILED, out, failure=failure)
            elif entry.status is ResultStatus.DONE:
                infos = [] if entry.info is None else [entry.info]
                self._end(entry.id, ResultInput.READY_REMOTE, out, device=entry.device, infos=infos)
        self._requests.ask_later(now)

    def notified(
        self, event: ResultReady | ResultFailed | Cancelled | Expired, frames: tuple[Frame, ...], out: list[object]
    ) -> None:
        """An invocation has ended whose command nobody here knows, so its digest is the broker's word. Each of its
        outputs that was taken up ends.
        """
        for id in self._requests.watched_ids():
            result = self._requests.watched(id)
            if result is None or result.first != event.id:
                continue
            if not isinstance(event, ResultReady):
                self._end(id, ResultInput.FAILED, out, failure=failure_of_event(event))
                continue
            k = counter_of(id) - counter_of(event.id)
            if event.inline and k < len(frames):
                self._end(id, ResultInput.READY_INLINE, out, frames=frames[k : k + 1])
            elif not event.inline and k < len(event.infos):
                self._end(id, ResultInput.READY_REMOTE, out, infos=event.infos[k : k + 1])

    def fail_everything(self, failure: Failure, out: list[object]) -> None:
        """Nobody will say how they end."""
        for id in self._requests.watched_ids():
            self._end(id, ResultInput.FAILED, out, failure=failure)

    def _end(self, id: bytes, step: ResultInput, out: list[object], *, device: str = "", **how: Any) -> None:
        result = self._requests.watched(id)
        if result is not None:
            self._requests.unwatch(id)
            self._in.pop(id, None)
            result.device = device or result.device
            result.end(step, **how)
            out.append(ResultEnded(id))


def failure_of_event(event: ResultFailed | Cancelled | Expired) -> Failure:
    """Why a result that has ended so has no value."""
    if isinstance(event, ResultFailed):
        return event.failure
    if isinstance(event, Cancelled):
        return Failure(code="InvocationCancelled", message="the invocation was cancelled")
    return Failure(code="DeadlineExpired", message="the invocation's deadline has passed")
