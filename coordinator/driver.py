"""Drives a session's core: one thread with the socket to the broker, and the user's threads, which never wait for it.

A call of the user feeds the core under a lock and leaves what is to be sent in a queue; the thread sends it. Whoever
waits for a result leaves a callback, which is called on the thread when the result ends.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from broker import logs
from broker.protocol.bundles import BUNDLE_MESSAGES, reads_bundles, unpack
from broker.protocol.effects import BatchEnded, LinkDown, Log, Received, Send, Tick
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import ANSWER_LIMIT
from broker.protocol.messages import Failure, Invoke, LogRecords, Message, Put, SessionOpened
from coordinator.core import SessionConfig, SessionCore
from coordinator.core_events import (
    AllAccepted,
    Answered,
    Ask,
    AwaitAccepted,
    Close,
    GiveUp,
    Reconnect,
    ResultEnded,
    SessionEnded,
    SessionReady,
    StreamLevel,
    SubmitCommand,
    Submitted,
    Upload,
    UploadEnded,
)
from coordinator.core_results import Result
from coordinator.core_tables import Link
from coordinator.guard import Guard
from coordinator.session_errors import FleetClosed, NotAccepted, OutboxFull, session_error
from coordinator.session_socket import Context, SessionSocket
from coordinator.waiting import Deadline, Signal
from coordinator.wakeup import Wakeup

__all__ = ["SessionDriver"]

MESSAGES_A_ROUND = 256
CHORES_MS = 4
"""For how long the thread puts off all but what it receives, while something comes."""
LOG_RECORDS_A_MESSAGE = 256
LOG_RECORDS_WAITING = 4096
"""Log records beyond this are dropped: the stream is at best effort, and its queue bounded."""
LINGER_MS = 500
LOOK_MS = 5_000
"""How long the thread waits at most: a call that sends by itself may have set an earlier timer than the thread knows
of."""

_drivers: weakref.WeakSet[SessionDriver] = weakref.WeakSet()


def _forked() -> None:
    # The child has the sockets' memory but none of the threads; a lock may be held for ever.
    for driver in _drivers:
        driver.orphaned = True


os.register_at_fork(after_in_child=_forked)


class SessionDriver:
    """A session with the broker at ``endpoint``. ``context`` is not ended with it.

    ``on_upload`` and ``on_upload_ended`` execute the core's instructions about uploads; all callbacks are called with
    `lock` held or on the driver's thread, and must return at once.
    """

    def __init__(self, endpoint: str, *, config: SessionConfig, context: Context) -> None:
        self.endpoint = endpoint
        self.context = context
        self.lock = Guard()
        """Held while `core` is used."""
        self.core = SessionCore(config, incarnation=os.urandom(8))
        self.opened: SessionOpened | None = None
        self.orphaned = False
        self.on_upload: Callable[[Upload], None] = lambda _: None
        self.on_upload_ended: Callable[[UploadEnded], None] = lambda _: None
        self.on_opened: Callable[[SessionOpened], None] = lambda _: None
        self._closed = False
        self._finishing = False
        self._settled = threading.Event()  # set once the broker has answered, or the session has ended
        self._idle = threading.Event()  # set when everything is accepted and sent; looked at while closing only
        self._outgoing: deque[Send] = deque()
        self._waiters: dict[bytes, list[Callable[[], None]]] = {}
        self._asked: dict[int, Callable[[Answered], None]] = {}
        self._barriers: dict[int, Signal] = {}
        self._barrier = 0
        self._records: deque[logs.Record] = deque(maxlen=LOG_RECORDS_WAITING)
        self._sink = logs.StreamSink(self._records.append)
        self._log = logs.get_logger("session", sink=self._sink, session=self.core.incarnation.hex())
        self._wakeup = Wakeup()
        self._socket = SessionSocket(endpoint, context, self._wakeup)
        self._io = threading.Lock()  # held while that is used
        self._soon = False  # whether the thread will be awake within `CHORES_MS`, and sends what was left until then
        self._chores_at = 0.0  # when the thread's chores can't be put off any more
        self._reopen = False
        self._execute: dict[type, Callable[[Any], None]] = {
            Send: self._outgoing.append,
            ResultEnded: self._on_result_ended,
            Answered: self._on_answered,
            Log: lambda log: logs.emit(self._log, log),
            Submitted: lambda _: None,
            AllAccepted: self._on_all_accepted,
            Upload: self._on_upload,
            UploadEnded: self._on_upload_ended,
            SessionReady: self._on_ready,
            SessionEnded: lambda _: self._settled.set(),
            StreamLevel: self._on_stream_level,
            Reconnect: self._on_reconnect,
        }
        self._thread = threading.Thread(target=self._run, name="edgeplan-session", daemon=True)
        _drivers.add(self)
        self._thread.start()

    # --------------------------------------------------------------------------------------------- for the face

    def check(self) -> None:
        """Raises `FleetClosed` when nothing can be sent any more: closed, or the child of a fork; `SessionTakenOver` or
        `ConnectionRefused` when the broker has ended the session.
        """
        if self._closed or self.orphaned:
            raise FleetClosed
        if self.core.failure is not None:
            raise session_error(self.core.failure)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or this is the child of a fork."""
        return self._closed or self.orphaned

    @property
    def on_own_thread(self) -> bool:
        """Whether this is the driver's thread, which may not wait for itself."""
        return threading.current_thread() is self._thread

    def submit(self, event: SubmitCommand) -> list[Result]:
        """Feed a command, with `lock` held; call `flush` before it is let go.

        Raises `MessageTooLarge`, or `OutboxFull` when too much waits for the broker; then nothing has happened.
        """
        if self.core.full and isinstance(event.command, Invoke | Put):
            raise self._outbox_full()
        instructions = self.core.handle(event, time.monotonic())
        submitted = instructions[0]
        for instruction in instructions:
            self._execute[type(instruction)](instruction)
        return submitted.results  # type: ignore[attr-defined,no-any-return]  # the core promises it

    def _outbox_full(self) -> OutboxFull:
        core = self.core
        return OutboxFull(
            unaccepted=core.unaccepted,
            size=core.unaccepted_bytes,
            limit=core.config.max_unaccepted,
            limit_bytes=core.config.max_unaccepted_bytes,
            reason=core.busy_reason,
        )

    def wait_accepted(self, timeout: float | None) -> None:
        """Wait until the broker has accepted what was submitted so far. Raises `NotAccepted` when time is up."""
        self.check()
        deadline, signal = Deadline(timeout), Signal()
        with self.lock:
            self._barrier += 1
            key = self._barrier
            self._barriers[key] = signal
            self._feed(AwaitAccepted(key))
        try:
            accepted = signal.wait(deadline.left)
        finally:
            with self.lock:
                if self._barriers.pop(key, None) is not None:
                    self._feed(AwaitAccepted(key, give_up=True))
                unaccepted, reason = self.core.unaccepted, self.core.busy_reason
        if not accepted and unaccepted:
            raise NotAccepted(unaccepted, timeout or 0.0, reason)
        self.check()

    def wake(self) -> None:
        """See that the thread sends what is waiting. Skipped when it knows already."""
        self._wakeup.wake()

    def flush(self) -> None:
        """Send what is waiting, or see that the thread does, with `lock` held, which keeps ctrl-C out. Never waits.

        While the broker has yet to accept what was sent before, the thread does, or `when_ended`, whichever comes
        first: whoever calls again and again meanwhile has all of it sent in one.
        """
        if self.core.unaccepted <= 1 or len(self._outgoing) >= BUNDLE_MESSAGES:
            self._send_or_wake()
        elif not self._soon:
            self.wake()

    def _send_or_wake(self) -> None:
        """Send what is waiting, or, while the thread is at it, see that it does. With `lock` held."""
        if not self._io.acquire(blocking=False):
            self.wake()
            return
        try:
            self._send_all()
            more = self._socket.more
        except BaseException:
            # The handler of another signal than ctrl-C's, perhaps between two frames of one message: nobody can say
            # what the broker will make of this connection.
            self._reopen = True
            self.wake()
            raise
        finally:
            self._io.release()
        if more:
            self.wake()

    def feed(self, event: object) -> None:
        """Feed an event from any thread, and send what it makes."""
        self.check()
        with self.lock:
            self._feed(event)
        self.wake()

    def ask(self, make: Callable[[int], Message], on_answer: Callable[[Answered], None]) -> int:
        """Send the request that ``make`` makes with its number; ``on_answer`` is called once, on the thread."""
        self.check()
        with self.lock:
            r = self.core.take_request()
            self._asked[r] = on_answer
            self._feed(Ask(request=make(r)))
        self.wake()
        return r

    def give_up(self, r: int) -> None:
        """Nobody waits for the answer to request ``r`` any more."""
        with self.lock:
            if self._asked.pop(r, None) is not None:
                self._feed(GiveUp(r))

    def when_ended(self, result: Result, notify: Callable[[], None]) -> bool:
        """Call ``notify`` once, on the thread, when ``result`` ends; False, if it has ended already."""
        with self.lock:
            if result.ended:
                return False
            if self._outgoing:
                self._send_or_wake()
            self._waiters.setdefault(result.id, []).append(notify)
            return True

    def forget(self, result: Result, notify: Callable[[], None]) -> None:
        """Take back `when_ended`."""
        with self.lock:
            waiting = self._waiters.get(result.id)
            if waiting is not None and notify in waiting:
                waiting.remove(notify)
                if not waiting:
                    del self._waiters[result.id]

    def wait_settled(self, timeout: float) -> bool:
        """Wait until the broker has answered or refused."""
        return self._settled.wait(Deadline(timeout).left)

    @property
    def failure(self) -> Failure | None:
        """Why the session is over, if it is."""
        return self.core.failure

    def close(self, timeout: float = 2.0) -> int:
        """Wait at most ``timeout`` seconds for the broker to accept what was sent, then end everything. Idempotent.

        Returns how many commands were not accepted, and are lost. Not to be called on the driver's own thread.
        """
        if self.closed:
            return 0
        with self.lock:
            self._finishing = True
        self.wake()
        if self._thread.is_alive():
            self._idle.wait(timeout)
        with self.lock:
            if self._closed:
                return 0
            lost = 0 if self.core.failure else self.core.unaccepted
            if lost:
                self._log.warning("commands_lost", count=lost)
            self._feed(Close())
            self._closed = True
        self.wake()
        self._thread.join(timeout + 5.0)
        return lost

    # --------------------------------------------------------------------------------------------- instructions

    def _feed(self, event: object) -> None:
        for instruction in self.core.handle(event, time.monotonic()):
            self._execute[type(instruction)](instruction)

    def _on_result_ended(self, ended: ResultEnded) -> None:
        for notify in self._waiters.pop(ended.id, ()):
            notify()

    def _on_answered(self, answered: Answered) -> None:
        on_answer = self._asked.pop(answered.r, None)
        if on_answer is not None:
            on_answer(answered)

    def _on_all_accepted(self, reached: AllAccepted) -> None:
        signal = self._barriers.pop(reached.key, None)
        if signal is not None:
            signal.set()

    def _on_ready(self, ready: SessionReady) -> None:
        self.opened = ready.opened
        self._socket.out.bundling = reads_bundles(ready.opened.version)
        self.on_opened(ready.opened)
        self._settled.set()

    def _on_upload(self, upload: Upload) -> None:
        self.on_upload(upload)

    def _on_upload_ended(self, ended: UploadEnded) -> None:
        self.on_upload_ended(ended)

    def _on_stream_level(self, instruction: StreamLevel) -> None:
        self._sink.level = instruction.level

    def _on_reconnect(self, _: Reconnect) -> None:
        self._reopen = True

    # --------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            with self._io:
                self._open()
            while not self._closed:
                wait = self._round()
                self._soon = wait <= CHORES_MS
                woken = self._socket.wait(wait)
                self._soon = False
                if woken:
                    self._wakeup.take()
            with self._io:
                self._send_all()
        except zmq.ContextTerminated:
            pass  # whoever waited for the fleet to close was interrupted, and ends the context as it is
        finally:
            with self._io:
                self._socket.close(linger=LINGER_MS)
            self._idle.set()
            with self.lock.raw:
                self._closed = True
                if self.core.link is not Link.CLOSED:  # a bug of ours ended the thread: nobody may wait for ever
                    self._feed(Close())
            self._wakeup.close()

    def _open(self) -> None:
        for event in self._socket.open():
            with self.lock.raw:
                self._feed(event)

    def _round(self) -> int:
        """Take in and send all that can be; how long to wait for more, in milliseconds."""
        with self._io:
            if self._reopen:
                self._replace_connection()
            received = self._receive()
            now = time.monotonic()
            if 0 < received < MESSAGES_A_ROUND and now < self._chores_at and not (self._finishing or self._reopen):
                # Whoever was woken needs the interpreter's lock, which this thread gives back only when it sleeps.
                return CHORES_MS
            self._chores_at = now + CHORES_MS / 1000
            # Also where nothing was heard of it: its descriptor tells of what comes after the last look that found
            # nothing, and what is sent to another broker than before differs.
            self._watch()
            with self.lock.raw:
                self._feed(BatchEnded())
                self.core.log_level = self._log.level
                timer = self.core.next_timer()
                if timer is not None and time.monotonic() >= timer:
                    self._feed(Tick())
                    timer = self.core.next_timer()
            sent = self._send_all()
            if self._finishing and not self.core.unaccepted and not self._outgoing:
                self._idle.set()
            if self._reopen or received == MESSAGES_A_ROUND or (sent and self._socket.more):
                return 0
        if timer is None:
            return LOOK_MS
        return min(LOOK_MS, max(0, int((timer - time.monotonic()) * 1000) + 1))

    def _replace_connection(self) -> None:
        self._reopen = False
        self._socket.close(linger=0)
        self._outgoing.clear()  # the core says again whatever matters
        with self.lock.raw:
            self._feed(LinkDown())
        self._open()

    def _receive(self) -> int:
        """Hand the core what the broker has sent, `MESSAGES_A_ROUND` at most; how many of ZeroMQ's messages it was."""
        handle, execute, lock = self.core.handle, self._execute, self.lock.raw
        now = time.monotonic()
        count = 0
        for parts in self._socket.receive(MESSAGES_A_ROUND):
            count += 1
            for message, frames, _ in unpack(parts, limit=ANSWER_LIMIT):
                if isinstance(message, ProtocolError):
                    # A broker of a newer minor version may say more than we know.
                    self._log.debug("message_malformed", reason=str(message))
                    continue
                with lock:  # message by message: a user's call waits for one of them at most
                    for instruction in handle(Received(message=message, frames=frames), now):
                        execute[type(instruction)](instruction)
        return count

    def _watch(self) -> None:
        for event in self._socket.watch():
            # All that waits came before that, on the connection that is gone: the next one brings nothing until the
            # core has introduced itself there.
            while self._receive() == MESSAGES_A_ROUND:
                pass
            self._socket.out.bundling = False  # until the broker, which may be another one, has answered there
            with self.lock.raw:
                self._feed(event)

    def _send_all(self) -> bool:
        """Send what is waiting; whether there was anything."""
        sent = self._socket.send_all(self._outgoing)
        if self._records and self.core.link is Link.OPEN and self._socket.is_open:
            records = [self._records.popleft() for _ in range(min(len(self._records), LOG_RECORDS_A_MESSAGE))]
            self._socket.send(LogRecords(records=records))
            sent = True
            if self._records:
                self.wake()
        return sent
