"""The session's requests: sent until they are answered; and ids of other sessions, asked after until they have
ended.
"""

from __future__ import annotations

import math
from itertools import islice

from broker.protocol.effects import Send
from broker.protocol.messages import AskStatus, Failure, Frame, Message, ResultStatus, StatusEntry
from coordinator.core_events import Answered
from coordinator.core_results import Result

__all__ = ["Requests", "failure_of"]

_SLOWEST = 32.0
"""The longest pause between two sendings of a request, in seconds."""
_WATCH_AT_ONCE = 10_000
"""After how many ids one question asks."""
_WATCH_FIRST, _WATCH_SLOWEST = 0.05, 2.0
"""The pauses between two questions after ids that have not ended, in seconds: doubled each time."""

_ENDED_WITHOUT_VALUE = {
    ResultStatus.UNKNOWN: ("UnknownResult", "nobody knows a result of this id"),
    ResultStatus.FORGOTTEN: ("UnknownResult", "the time for which the broker keeps this result's record is over"),
    ResultStatus.RELEASED: ("ResultReleased", "the result was released"),
    ResultStatus.LOST: ("ResultLost", "the device has lost the value"),
    ResultStatus.CANCELLED: ("InvocationCancelled", "the invocation was cancelled"),
    ResultStatus.EXPIRED: ("DeadlineExpired", "the invocation's deadline has passed"),
    ResultStatus.FAILED: ("ExecutionFailed", "the invocation failed"),
}


def failure_of(entry: StatusEntry) -> Failure | None:
    """Why an id has no value, and never will have; None if it has one, or may have one yet."""
    if entry.status not in _ENDED_WITHOUT_VALUE:
        return None
    if entry.failure is not None:
        return entry.failure
    code, message = _ENDED_WITHOUT_VALUE[entry.status]
    return Failure(code=code, message=message)


class _Waiting:
    __slots__ = ("at", "message", "pause")

    def __init__(self, message: Message, pause: float) -> None:
        self.message = message
        self.pause = pause
        self.at = math.inf  # when to send it again; not before it was sent once


class Requests:
    """What was asked and not answered. ``patience``: after how many seconds to ask again, doubled each time."""

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._next = 0
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: list[int] = []
        self._again_at = math.inf  # not after the first of those that have waited too long
        self._watched: dict[bytes, Result] = {}
        self._watching: int | None = None  # the request that asks after them
        self._watch_at = math.inf
        self._watch_pause = _WATCH_FIRST

    def take(self) -> int:
        """The number of a new request."""
        self._next += 1
        return self._next

    def ask(self, message: Message) -> None:
        """Send ``message`` (which has a number of `take`) when `due` is called next."""
        r: int = message.r  # type: ignore[union-attr]  # every request has one
        self._waiting[r] = _Waiting(message, self._patience)
        self._unsent.append(r)

    def give_up(self, r: int) -> None:
        """Nobody waits any more."""
        self._waiting.pop(r, None)

    def answer(
        self, r: int, message: Message, frames: tuple[Frame, ...], out: list[object]
    ) -> list[StatusEntry] | None:
        """Take an answer; the entries, if it is about watched ids. A second answer to the same request is dropped."""
        if self._waiting.pop(r, None) is None:
            return None
        if r == self._watching:
            self._watching = None
            return getattr(message, "entries", [])
        out.append(Answered(r=r, message=message, frames=frames))
        return None

    def rewind(self) -> None:
        """A new connection: ask everything again."""
        self._unsent = list(self._waiting)

    def due(self, now: float, out: list[object]) -> None:
        """Send what is new, and again what has waited too long."""
        if self._watched and self._watching is None and now >= self._watch_at:
            self._watching = self.take()
            asked = list(islice(self._watched, _WATCH_AT_ONCE))
            if len(asked) < len(self._watched):
                for id in asked:  # the others first, the next time
                    self._watched[id] = self._watched.pop(id)
            self.ask(AskStatus(r=self._watching, ids=asked))
        if self._unsent:
            for r in self._unsent:
                waiting = self._waiting.get(r)
                if waiting is not None:
                    self._send(waiting, now, out)
            self._unsent.clear()
        if now >= self._again_at:
            self._again_at = math.inf
            for waiting in self._waiting.values():
                if now >= waiting.at:
                    waiting.pause = min(2 * waiting.pause, _SLOWEST)
                    self._send(waiting, now, out)
                self._again_at = min(self._again_at, waiting.at)

    def _send(self, waiting: _Waiting, now: float, out: list[object]) -> None:
        waiting.at = now + waiting.pause
        self._again_at = min(self._again_at, waiting.at)
        out.append(Send(message=waiting.message))

    def next_due(self) -> float | None:
        """When `due` may next send something by the passing of time alone."""
        if not self._waiting:
            self._again_at = math.inf
        watch_at = self._watch_at if self._watched and self._watching is None else math.inf
        earliest = min(self._again_at, watch_at)
        return None if earliest == math.inf else earliest

    def watch(self, result: Result, now: float) -> None:
        """Ask after ``result`` until it has ended."""
        self._watched[result.id] = result
        self._watch_at = now
        self._watch_pause = _WATCH_FIRST

    def watched(self, id: bytes) -> Result | None:
        """The watched result of that id."""
        return self._watched.get(id)

    def watched_ids(self) -> list[bytes]:
        """All ids that are asked after."""
        return list(self._watched)

    def unwatch(self, id: bytes) -> None:
        """It has ended."""
        self._watched.pop(id, None)

    def ask_later(self, now: float) -> None:
        """Not all watched ids have ended: ask after them again, a little later than the last time."""
        self._watch_at = now + self._watch_pause
        self._watch_pause = min(2 * self._watch_pause, _WATCH_SLOWEST)

    def fail_everything(self, failure: Failure, out: list[object]) -> None:
        """No answer will come."""
        out += [Answered(r=r, failure=failure) for r in self._waiting if r != self._watching]
        self._waiting.clear()
        self._unsent.clear()
        self._watched.clear()
        self._watching = None
