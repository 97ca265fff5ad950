"""A coordinator's session with the broker, as a pure state machine.

`SessionCore.handle` takes what happened (a message, a lost connection, a call of the user) and returns what to do
about it; it has no socket, no clock, no thread. `coordinator.driver` executes its instructions; tests and the
simulation do so under a virtual clock.

What it promises: every command that `SubmitCommand` brought is sent until the broker has accepted it, and again if the
broker comes back with another ledger, until all its results have ended; every result ends once, with a value or a
failure; every request is answered, or fails when the session ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.protocol.effects import BatchEnded, LinkDown, LinkUp, Log, Received, Send, Tick
from broker.protocol.ids import ResultIds, counter_of
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Busy,
    DeadLetters,
    DeviceList,
    DropCode,
    Event,
    Failure,
    Found,
    Frame,
    Goodbye,
    Heartbeat,
    HeartbeatSeen,
    Lacking,
    LogValue,
    Notify,
    OpenSession,
    RefusalCode,
    Refused,
    Rejected,
    ResultReady,
    Seen,
    SessionOpened,
    SetLogLevel,
    Stats,
    StatusReport,
    Stranger,
    TagsChanged,
    Values,
)
from broker.protocol.streams import Inbox, Verdict
from coordinator.core_commands import Commands
from coordinator.core_events import (
    Ask,
    AwaitAccepted,
    Close,
    GiveUp,
    Reconnect,
    SendPlan,
    SessionEnded,
    SessionReady,
    StreamLevel,
    SubmitCommand,
    Uploaded,
    UploadFailed,
    Watch,
)
from coordinator.core_requests import Requests
from coordinator.core_results import Result
from coordinator.core_tables import Link, LinkInput, LinkMachine, ResultInput
from coordinator.core_watched import Watched, failure_of_event

__all__ = ["SEEN_EVERY", "SessionConfig", "SessionCore"]

SEEN_EVERY = 64
"""`SessionConfig.seen_every` of a fleet: nobody waits for an acknowledgement, and each wakes a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session behaves; times in seconds."""

    session: str = ""
    """The session's name; empty: it has none, and nobody takes it up again."""
    window: int = 1024
    """How many commands may be under way without an acknowledgement."""
    patience: float = 5.0
    """After how long without an acknowledgement commands are sent again."""
    open_patience: float = 2.0
    """After how long without an answer the session introduces itself again."""
    request_patience: float = 5.0
    """After how long without an answer a request is sent again."""
    silence: float = 4.0
    """After how many heartbeat intervals without a word the connection is taken for dead."""
    seen_every: int = 1
    """After how many notifications the broker is told that they were seen; the fleet sets `SEEN_EVERY` ..."""
    seen_within: float = 0.02
    """... and how long fewer of them may wait, so that one message acknowledges many."""
    ledger_grace: float = 60.0
    """How long after the broker came back with a new ledger a device may still announce what it has to it."""
    max_unaccepted: int = 100_000
    """How many commands may wait for the broker before `SessionCore.full` says so ..."""
    max_unaccepted_bytes: int = 256 << 20
    """... and how large their tensors may be in all, the first always allowed."""


_FOR_NOW = frozenset({RefusalCode.FULL.value})
_FOR_GOOD = frozenset(code.value for code in RefusalCode) - _FOR_NOW
_OF_A_MESSAGE = frozenset(code.value for code in DropCode)
_BEFORE_OPEN = (Link.OPENING, Link.WAITING)
_OPEN = Link.OPEN
_NEXT = Verdict.NEXT
_READY_INLINE = ResultInput.READY_INLINE


class SessionCore:
    """The session. ``incarnation``: 8 random bytes, new at every start of a process."""

    def __init__(self, config: SessionConfig, *, incarnation: bytes) -> None:
        self.config = config
        self.incarnation = incarnation
        self.failure: Failure | None = None
        self._log_level = 100
        self._link = LinkMachine()
        self._results: dict[bytes, Result] = {}
        self._commands = Commands(self._results, window=config.window, patience=config.patience)
        self._requests = Requests(patience=config.request_patience)
        self._watched = Watched(self._requests, grace=config.ledger_grace)
        self._ids = ResultIds(lambda _: incarnation)
        self._inbox = Inbox()
        self._seen = 0  # the last notification that we have acknowledged on this connection
        self._seen_at = math.inf
        self._opened_once = False
        self._heartbeat = 0.0
        self._silence = config.silence * config.open_patience  # after how many seconds without a word it is dead
        self._heartbeat_at = math.inf
        self._silent_at = math.inf
        self._retry_at = math.inf
        self._messages: dict[type, Callable[[Any, Received, float, list[object]], None]] = {
            Notify: self._on_notify,
            Accepted: self._on_accepted,
            SessionOpened: self._on_opened,
            Busy: self._on_busy,
            Lacking: self._on_lacking,
            Rejected: self._on_rejected,
            Refused: self._on_refused,
            Stranger: self._on_stranger,
            HeartbeatSeen: self._on_heartbeat_seen,
            SetLogLevel: self._on_log_level,
            Found: self._on_answer,
            StatusReport: self._on_answer,
            DeviceList: self._on_answer,
            Stats: self._on_answer,
            DeadLetters: self._on_answer,
            Values: self._on_answer,
        }
        self._events: dict[type, Callable[[Any, float, list[object]], None]] = {
            SubmitCommand: self._on_submit,
            Received: self._on_received,
            BatchEnded: self._on_batch_ended,
            Tick: self._on_tick,
            LinkUp: self._on_link_up,
            LinkDown: self._on_link_down,
            SendPlan: lambda event, _now, out: self._commands.send_plan(event.plan, out),
            Ask: self._on_ask,
            GiveUp: lambda event, _now, _out: self._requests.give_up(event.r),
            AwaitAccepted: lambda event, _now, out: self._commands.await_accepted(event, out),
            Watch: self._on_watch,
            Uploaded: self._on_uploaded,
            UploadFailed: self._on_upload_failed,
            Close: self._on_close,
        }

    # --------------------------------------------------------------------------------------------- for driver and face

    @property
    def link(self) -> Link:
        """How the session stands with the broker."""
        return self._link.state

    @property
    def unaccepted(self) -> int:
        """How many commands the broker has not accepted."""
        return len(self._commands)

    @property
    def full(self) -> bool:
        """Whether as many commands wait for the broker as may."""
        config, commands = self.config, self._commands
        return commands.bytes >= config.max_unaccepted_bytes or len(commands) >= config.max_unaccepted

    @property
    def unaccepted_bytes(self) -> int:
        """How large the tensors are of commands that the broker has not accepted."""
        return self._commands.bytes

    @property
    def busy_reason(self) -> str:
        """Why the broker takes nothing; empty: it does, or it can't be reached."""
        return self._commands.busy_reason if self._link.state is Link.OPEN else ""

    @property
    def pending(self) -> int:
        """How many results have not ended."""
        return len(self._results)

    @property
    def log_level(self) -> int:
        """From which level on somebody wants `Log` instructions; the driver sets it."""
        return self._log_level

    @log_level.setter
    def log_level(self, level: int) -> None:
        self._log_level = level
        self._commands.log_level = level

    def take_ids(self, count: int) -> bytes:
        """The first of ``count`` new result ids."""
        return self._ids.take(count)

    def take_request(self) -> int:
        """The number of a new request."""
        return self._requests.take()

    def result(self, id: bytes) -> Result | None:
        """The result whose first id is ``id``, if it has not ended."""
        return self._results.get(id) or self._requests.watched(id)

    def output(self, id: bytes) -> tuple[Result, int] | None:
        """The result that has ``id`` as its k-th output, and k, if it is of a command of ours that has not ended."""
        if not id.startswith(self.incarnation):
            return None
        n = counter_of(id)
        for result in self._results.values():
            k = n - counter_of(result.id)
            if 0 <= k < result.outputs:
                return result, k
        return None

    def handle(self, event: object, now: float) -> list[object]:
        """What to do about ``event``, in this order. ``now`` is in seconds, on a clock that never runs backwards.

        Raises `MessageTooLarge` for a `SubmitCommand` that no broker would take; then nothing has happened.
        """
        out: list[object] = []
        self._events[type(event)](event, now, out)
        if self._link.state is _OPEN:
            self._commands.due(now, out)
            self._requests.due(now, out)
        return out

    def next_timer(self) -> float | None:
        """When to call `handle` with a `Tick`, if nothing else happens before."""
        earliest = min(self._retry_at, self._silent_at)
        if self._link.state is _OPEN:
            for due in (self._heartbeat_at, self._seen_at, self._commands.next_due(), self._requests.next_due()):
                if due is not None and due < earliest:
                    earliest = due
        return None if earliest == math.inf else earliest

    # --------------------------------------------------------------------------------------------- from the face

    def _on_submit(self, event: SubmitCommand, _now: float, out: list[object]) -> None:
        for result, k in event.released:
            result.release(k)
        results = self._commands.submit(event, out)
        if self.failure is not None:
            for result in results:
                self._commands.end(result, ResultInput.FAILED, out, failure=self.failure)

    def _on_ask(self, event: Ask, _now: float, out: list[object]) -> None:
        self._requests.ask(event.request)
        if self.failure is not None:
            self._requests.fail_everything(self.failure, out)

    def _on_watch(self, event: Watch, now: float, _out: list[object]) -> None:
        if self.result(event.id) is None:
            self._watched.watch(event, now)

    def _on_uploaded(self, event: Uploaded, _now: float, _out: list[object]) -> None:
        if event.ledger == self._commands.ledger:  # else it went to a ledger that is gone, and was asked for again
            self._commands.uploaded(event.key, event.digest)

    def _on_upload_failed(self, event: UploadFailed, _now: float, out: list[object]) -> None:
        if event.ledger == self._commands.ledger:
            fields = {"code": event.failure.code, "reason": event.failure.message}
            out.append(Log(level=30, event="upload_failed", fields=fields))
            self._commands.upload_failed(event.key, event.failure, out)

    def _on_close(self, _event: Close, _now: float, out: list[object]) -> None:
        if self._link.go(LinkInput.CLOSE) is Link.OPEN:
            out.append(Send(message=Goodbye()))
        if self.failure is None:
            self._end_session(Failure(code="FleetClosed", message="the fleet was closed"), out)

    # --------------------------------------------------------------------------------------------- from the driver

    def _on_link_up(self, _event: LinkUp, now: float, out: list[object]) -> None:
        self._link.go(LinkInput.UP)
        self._link_lost()  # if another connection stood before, nobody has told us that it is gone
        if self._link.state is Link.OPENING:
            self._introduce(now, out)

    def _on_link_down(self, _event: LinkDown, _now: float, _out: list[object]) -> None:
        self._link.go(LinkInput.LOST)
        self._link_lost()

    def _on_tick(self, _event: Tick, now: float, out: list[object]) -> None:
        if now >= self._silent_at and self._link.takes(LinkInput.SILENT):
            self._link.go(LinkInput.SILENT)
            self._link_lost()
            out += [Log(level=30, event="broker_silent"), Reconnect()]
        if now >= self._retry_at and self._link.takes(LinkInput.RETRY):
            self._link.go(LinkInput.RETRY)
            self._introduce(now, out)
        if now >= self._heartbeat_at and self._link.state is Link.OPEN:
            self._heartbeat_at = now + self._heartbeat
            out.append(Send(message=Heartbeat()))
        if now >= self._seen_at and self._link.state is Link.OPEN:
            self._see(out)

    def _introduce(self, now: float, out: list[object]) -> None:
        self._retry_at = now + self.config.open_patience
        if self._silent_at == math.inf:
            self._silent_at = now + self._silence
        hello = OpenSession(
            version=PROTOCOL_VERSION,
            incarnation=self.incarnation,
            session=self.config.session,
            seen=self._inbox.taken,
            ledger=self._commands.ledger,
        )
        out.append(Send(message=hello))

    def _link_lost(self) -> None:
        self._retry_at = self._silent_at = math.inf
        self._commands.link_lost()
        self._requests.rewind()

    def _on_batch_ended(self, _event: BatchEnded, now: float, out: list[object]) -> None:
        if self._inbox.taken == self._seen or self._link.state is not Link.OPEN:
            return
        if self._seen_at == math.inf:
            self._seen_at = now + self.config.seen_within
        if now >= self._seen_at or self._seen < 0 or self._inbox.taken - self._seen >= self.config.seen_every:
            self._see(out)

    def _see(self, out: list[object]) -> None:
        self._seen, self._seen_at = self._inbox.taken, math.inf
        out.append(Send(message=Seen(n=self._seen)))

    # --------------------------------------------------------------------------------------------- from the broker

    def _on_received(self, event: Received, now: float, out: list[object]) -> None:
        if self._silent_at != math.inf:
            self._silent_at = now + self._silence
        message = event.message
        take = self._messages.get(type(message))
        if take is None:
            out.append(Log(level=10, event="message_unexpected", fields={"type": type(message).__name__}))
            return
        take(message, event, now, out)

    def _on_opened(self, message: SessionOpened, _event: Received, now: float, out: list[object]) -> None:
        if not self._link.takes(LinkInput.OPENED):
            return
        if self._link.state is Link.OPEN and self._commands.knows_more(message):
            return  # it was asked twice, and has answered the other way round
        again = self._link.go(LinkInput.OPENED) is Link.OPEN
        self._retry_at = math.inf
        self._beat(message.heartbeat_ms, now)
        self._seen = -1  # say again what we have seen: the last time may have been lost
        if not again:
            fields: dict[str, LogValue] = {"ledger": message.ledger.hex(), "first": not self._opened_once}
            out.append(Log(level=20, event="session_opened", fields=fields))
        self._opened_once = True
        self._watched.opened(message.ledger, now)
        self._commands.opened(message, now, out)
        self._requests.rewind()
        out += [SessionReady(message), StreamLevel(message.log_level)]

    def _beat(self, heartbeat_ms: int, now: float) -> None:
        self._heartbeat = max(heartbeat_ms, 100) / 1000
        self._silence = self.config.silence * self._heartbeat
        self._heartbeat_at = now + self._heartbeat
        self._silent_at = now + self._silence

    def _on_heartbeat_seen(self, message: HeartbeatSeen, _event: Received, now: float, _out: list[object]) -> None:
        if self._link.state is Link.OPEN:
            self._beat(message.heartbeat_ms, now)

    def _on_stranger(self, _message: Stranger, _event: Received, now: float, out: list[object]) -> None:
        if self._link.takes(LinkInput.STRANGER):
            self._link.go(LinkInput.STRANGER)
            self._link_lost()
            self._introduce(now, out)

    def _on_refused(self, message: Refused, _event: Received, now: float, out: list[object]) -> None:
        out.append(Log(level=30, event="refused", fields={"code": message.code, "reason": message.reason}))
        if message.code in _FOR_NOW and self._opened_once:
            if self._link.takes(LinkInput.REFUSED_FOR_NOW):
                self._link.go(LinkInput.REFUSED_FOR_NOW)
                self._link_lost()
                self._retry_at = now + self.config.open_patience
        elif self._link.takes(LinkInput.REFUSED) and (message.code in _FOR_GOOD or self._is_about_us(message.code)):
            self._link.go(LinkInput.REFUSED)
            self._link_lost()
            details: dict[str, LogValue] = {"refusal": message.code, "session": self.config.session}
            self._end_session(Failure(code="ConnectionRefused", message=message.reason, details=details), out)

    def _is_about_us(self, code: str) -> bool:
        """Whether a refusal that is not `_FOR_GOOD` means this session. Once open, it is about one message, whose
        sender hears of it by no acknowledgement; and so it may be, late, while it introduces itself again.
        """
        return self._link.state in _BEFORE_OPEN and not (self._opened_once and code in _OF_A_MESSAGE)

    def _end_session(self, failure: Failure, out: list[object]) -> None:
        self.failure = failure
        self._retry_at = self._silent_at = math.inf
        self._watched.fail_everything(failure, out)
        self._commands.fail_everything(failure, out)
        self._requests.fail_everything(failure, out)
        out.append(SessionEnded(failure))

    def _on_accepted(self, message: Accepted, _event: Received, now: float, out: list[object]) -> None:
        for n, failure in message.rejected.items():
            self._commands.rejected(Rejected(n=n, failure=failure), out)
        self._commands.accepted(message.n, now, out)

    def _on_busy(self, message: Busy, _event: Received, now: float, out: list[object]) -> None:
        out.append(Log(level=20, event="broker_busy", fields={"retry_ms": message.retry_ms, "reason": message.reason}))
        self._commands.busy(message, now)

    def _on_lacking(self, message: Lacking, _event: Received, _now: float, out: list[object]) -> None:
        out.append(Log(level=20, event="broker_lacks_blobs", fields={"count": len(message.digests)}))
        self._commands.lacking(message, out)

    def _on_rejected(self, message: Rejected, _event: Received, _now: float, out: list[object]) -> None:
        self._commands.rejected(message, out)

    def _on_notify(self, message: Notify, event: Received, _now: float, out: list[object]) -> None:
        if self._link.state is not _OPEN:
            # It is of an earlier connection. The broker has been told, or will be, what was seen until then, and may
            # have given that number to another one.
            return
        verdict = self._inbox.offer(message.n)
        if verdict is _NEXT:
            self._on_event(message.event, event.frames, out)
        elif verdict is Verdict.DUPLICATE:
            self._seen = -1  # our last Seen was lost: say it again

    def _on_event(self, event: Event, frames: tuple[Frame, ...], out: list[object]) -> None:
        if isinstance(event, TagsChanged):
            return
        result = self._results.get(event.id)
        if result is None:  # it has ended here already; or it is of an earlier incarnation of this session
            if not event.id.startswith(self.incarnation):
                self._watched.notified(event, frames, out)
            return
        if event.digest != result.digest:
            failure = Failure(code="IdConflict", message="the id names another command already")
            self._commands.end(result, ResultInput.FAILED, out, failure=failure)
        elif isinstance(event, ResultReady):
            if event.inline and len(frames) == result.outputs:  # the common case
                self._commands.end(result, _READY_INLINE, out, frames)
            else:
                self._on_ready(event, result, frames, out)
        else:
            self._commands.end(result, ResultInput.FAILED, out, failure=failure_of_event(event))
        if self._log_level <= 10:
            fields = {"result": event.id.hex(), "device": result.device}
            out.append(Log(level=10, event="result_received", fields=fields))

    def _on_ready(self, event: ResultReady, result: Result, frames: tuple[Frame, ...], out: list[object]) -> None:
        """Values that stay on the device, or not as many as the command has outputs."""
        count = len(frames) if event.inline else len(event.infos)
        if count != result.outputs:
            message = f"expected {result.outputs} results, and the device announced {count}"
            failure = Failure(code="ExecutionFailed", message=message)
            self._commands.end(result, ResultInput.FAILED, out, failure=failure)
        else:
            self._commands.end(result, ResultInput.READY_REMOTE, out, infos=event.infos)

    def _on_log_level(self, message: SetLogLevel, _event: Received, _now: float, out: list[object]) -> None:
        out.append(StreamLevel(message.level))

    def _on_answer(self, message: Any, event: Received, now: float, out: list[object]) -> None:
        entries = self._requests.answer(message.r, message, event.frames, out)
        if entries is not None:
            self._watched.reported(entries, now, out)
