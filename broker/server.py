"""The broker's driver: sockets, timers and threads around `broker.core.BrokerCore`.

One thread owns the ROUTER on which peers talk, and the XPUB on which logs and notifications are published. It reads
what is waiting, hands it to the core message by message, and executes what the core answers, in order. Blobs move on
a thread of their own (`broker.blob_server`), so commands never wait behind them. Only first frames are decoded; the
others are passed on as they came.

    server = BrokerServer("tcp://127.0.0.1:*")
    server.start()
    ... server.endpoints.listen ...
    server.stop()
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import zmq

from broker.blob_desk import BlobDesk
from broker.busy_poll import BusyPoll
from broker.config import GROUP_COMMIT, BrokerConfig
from broker.core import BrokerCore
from broker.effects import (
    Event,
    LedgerUnwritable,
    LedgerWritable,
    PeerBusy,
    PeerUnreachable,
    Persist,
    Persisted,
    PublishLogs,
    PublishNotification,
    SendBlobs,
)
from broker.hearing import events_of
from broker.ledger.blob_store import BlobStore
from broker.ledger.blobs import MemoryBlobs
from broker.ledger.interface import Ledger
from broker.ledger.memory import MemoryLedger
from broker.ledger.writer import LedgerWriter
from broker.logs import emit, get_logger
from broker.protocol.bundles import BUNDLE_MESSAGES, unpack
from broker.protocol.effects import BatchEnded, Log, Received, Send, Tick
from broker.protocol.errors import EdgePlanError
from broker.protocol.framing import encode
from broker.protocol.messages import AskStats
from broker.publishing import Publisher
from broker.sending import Sending
from broker.sockets import AT_ONCE_SECONDS, free, poll, send, waiting

__all__ = ["BrokerServer", "CannotListen", "Endpoints"]

MESSAGES_A_BATCH = 256
"""How many waiting messages are handled before acknowledgements go out."""

CHORES_SECONDS = 0.004
"""For how long timers, and what is told of a batch when it ends, may be put off while peers keep talking. What follows
a message that was sent stands in its way: ZeroMQ's own thread often waits for the same core.
"""

LONGEST_WAIT = 3600.0
"""Seconds until the loop looks at its timers again: some are due in months, and poll(2) takes 24 days at most."""

HIGH_WATER = 4096
"""Messages that wait for one peer: more than the windows of its streams, so only a peer that asks and never reads
gets there."""

WRITER_STOPS_WITHIN = 20.0
"""Seconds that a broker that ends gives its ledger to write what waits."""

_Socket: TypeAlias = "zmq.Socket[bytes]"
_BATCH_ENDED = BatchEnded()
_TICK = Tick()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a broker listens: for peers, for followers of logs and notifications, and for blobs."""

    listen: str
    logs: str
    blobs: str


class CannotListen(EdgePlanError):
    """An endpoint can't be bound: it is in use, or not of this machine. ``reason`` is the system's."""

    def __init__(self, endpoint: str, reason: str) -> None:
        self.endpoint = endpoint
        self.reason = reason
        super().__init__(endpoint)

    def __str__(self) -> str:
        return f"cannot listen on {self.endpoint}: {self.reason}"


def neighbours(listen: str) -> tuple[str, str]:
    """The default endpoints for logs and blobs beside ``listen``: the next two ports, or a wildcard where it is one."""
    scheme, _, address = listen.partition("://")
    host, colon, port = address.rpartition(":")
    if scheme != "tcp" or not colon:
        return f"{listen}-logs", f"{listen}-blobs"
    if port.isdecimal() and int(port):
        return f"tcp://{host}:{int(port) + 1}", f"tcp://{host}:{int(port) + 2}"
    return f"tcp://{host}:{port}", f"tcp://{host}:{port}"


class BrokerServer:
    """A broker, on a thread (`start`) or in the foreground (`run`).

    ``logs`` and ``blobs``: see `neighbours` for the defaults. ``context``: a shared one for ``inproc://``; it is left
    as it is. ``ledger`` and ``store``: in memory by default; both are closed at the end. ``busy_poll``: for how many
    seconds at most it looks for the next message before it sleeps (see `BusyPoll`): for a process of its own; in
    another's, its threads would wait for the interpreter meanwhile. `start` and `run` raise what the ledger's `open`
    raises.
    """

    def __init__(
        self,
        listen: str,
        logs: str | None = None,
        blobs: str | None = None,
        *,
        context: zmq.Context[_Socket] | None = None,
        ledger: Ledger | None = None,
        store: BlobStore | None = None,
        config: BrokerConfig | None = None,
        busy_poll: float = 0.0,
    ) -> None:
        beside = neighbours(listen)
        self.endpoints = Endpoints(listen=listen, logs=logs or beside[0], blobs=blobs or beside[1])
        self.config = config or BrokerConfig(commit_within=GROUP_COMMIT)
        self._busy_poll = busy_poll
        self._own_context = context is None
        self._context: zmq.Context[_Socket] = zmq.Context() if context is None else context
        self._ledger: Ledger = MemoryLedger() if ledger is None else ledger
        self._publisher = Publisher()
        self._local_log = get_logger("broker")
        self._log = get_logger("broker", sink=self._publisher.sink)
        self._posted: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._writer: LedgerWriter | None = None
        self._broken: BaseException | None = None
        self._follow_up: deque[Event] = deque()
        self._gone: deque[PeerUnreachable] = deque()
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._thread: threading.Thread | None = None
        self._blobs = BlobDesk(
            MemoryBlobs() if store is None else store,
            self._log,
            self._local_log,
            follow_up=self._follow_up.append,
            post=self._post,
        )
        self._execute: dict[type, Callable[[Any], object]] = {
            Log: lambda log: emit(self._log, log),
            Persist: self._persist,
            PublishNotification: self._publisher.notification,
            PublishLogs: self._publisher.logs,
            SendBlobs: self._send_blobs,
            **self._blobs.instructions,
        }

    # ------------------------------------------------------------------------------------------ for its owner

    def start(self) -> None:
        """Listen, and serve on a thread of its own. Raises `CannotListen`."""
        self._open()
        self._thread = threading.Thread(target=self._serve, name="broker", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Listen, and serve until `stop` is called, from a signal handler or another thread. Raises `CannotListen`."""
        self._open()
        self._serve()

    def stop(self, timeout: float = 10.0) -> None:
        """End in order. Idempotent."""
        self._stopping.set()
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            self._thread = None

    def wait_until_listening(self, timeout: float | None = None) -> bool:
        """Whether peers can connect, within ``timeout`` seconds."""
        return self._listening.wait(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------ beginning and end

    def _open(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._close_stores)
            snapshot = self._ledger.open()  # before anything listens: two brokers may be told to use one ledger
            if self._own_context:
                undo.callback(self._context.term)
            self._router = self._bind(zmq.ROUTER, self.endpoints.listen, undo)
            pub = self._publisher.socket = self._bind(zmq.XPUB, self.endpoints.logs, undo)
            self._wake_in, self._wake_out = socket.socketpair()
            undo.callback(self._wake_in.close)
            undo.callback(self._wake_out.close)
            self._wake_in.settimeout(0)
            self._wake_out.settimeout(0)
            now = time.monotonic()
            self._core = BrokerCore(
                self.config,
                snapshot,
                blobs=self._blobs,
                random_bytes=os.urandom,
                wall_offset=time.time() - now,
                now=now,
            )
            self._sending = Sending(functools.partial(send, self._router), self._core, self._on_unsent)
            if self._ledger.waits:
                self._writer = LedgerWriter(
                    self._ledger,
                    committed=lambda ticket: self._post(Persisted(ticket=ticket)),
                    unwritable=lambda reason: self._post(LedgerUnwritable(reason=reason)),
                    writable=lambda: self._post(LedgerWritable()),
                    broken=self._on_writer_broken,
                )
                self._writer.start()
                undo.callback(self._writer.stop, WRITER_STOPS_WITHIN)
            # What the core has to say about the ledger that it took up: it pins the blobs of unended commands, before
            # any that come in may evict them.
            self._do(_BATCH_ENDED, now)
            try:
                blobs = self._blobs.serve(self.endpoints.blobs, self._context)
            except zmq.ZMQError as error:
                raise CannotListen(self.endpoints.blobs, zmq.strerror(error.errno or 0)) from None
            undo.callback(self._blobs.stop)
            self.endpoints = Endpoints(listen=_bound(self._router), logs=_bound(pub), blobs=_for_peers(blobs))
            self._core.endpoints(blobs=self.endpoints.blobs, logs=self.endpoints.logs)
            self._undo = undo.pop_all()
        self._log.info(
            "broker_listening",
            listen=self.endpoints.listen,
            logs=self.endpoints.logs,
            blobs=self.endpoints.blobs,
            ledger=self._core.ledger.hex(),
            epoch=self._core.epoch,
        )
        self._listening.set()

    def _bind(self, kind: int, endpoint: str, undo: contextlib.ExitStack) -> _Socket:
        made: _Socket = self._context.socket(kind)
        undo.callback(made.close)
        made.setsockopt(zmq.LINGER, 500)
        # Where it is asked for, or for all addresses: an IPv4 endpoint would become an odd-looking IPv6 one.
        made.setsockopt(zmq.IPV6, int("[" in endpoint or "://*" in endpoint))
        made.setsockopt(zmq.BACKLOG, 1024)
        made.setsockopt(zmq.SNDHWM, HIGH_WATER)
        made.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        made.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if kind == zmq.ROUTER:
            made.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # Of one frame. Somewhat above the limit a peer is told; far above it, its connection is dropped unread.
            made.setsockopt(zmq.MAXMSGSIZE, 2 * self.config.max_message + (1 << 20))
        else:
            made.setsockopt(zmq.MAXMSGSIZE, 4096)  # subscriptions
        try:
            made.bind(endpoint)
        except zmq.ZMQError as error:
            raise CannotListen(endpoint, zmq.strerror(error.errno or 0)) from None
        undo.callback(free, made, endpoint)
        return made

    def _close_stores(self) -> None:
        self._ledger.close()
        self._blobs.store.close()

    def _serve(self) -> None:
        try:
            self._loop()
        except BaseException:
            self._log.exception("broker_failed")
            raise
        finally:
            self._listening.clear()
            self._undo.close()
            self._local_log.info("broker_stopped", listen=self.endpoints.listen)

    # ------------------------------------------------------------------------------------------ the loop

    def _wake(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # full of wakes; or not open yet, or no longer
            self._wake_in.send(b"!")

    def _loop(self) -> None:
        core, router, pub, wake = self._core, self._router, self._publisher.socket, self._wake_out
        assert pub is not None
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(pub, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        happening = BusyPoll(functools.partial(poll, poller), self._busy_poll)
        monotonic = time.monotonic
        now, chores_at = monotonic(), 0.0
        wait = self._timeout_ms(now)
        while not self._stopping.is_set():
            ready = happening.wait(wait)
            for source, _ in ready:
                if source is router:
                    self._drain(MESSAGES_A_BATCH if monotonic() - now < AT_ONCE_SECONDS else 1)
                elif source is pub:
                    demand = self._publisher.hear()
                    if demand is not None:
                        self._do(demand, monotonic())
                else:
                    wake.recv(4096)
                    self._handle_posted(monotonic())
            self._flush()
            if self._gone:
                self._let_go()
            now = monotonic()
            if ready and now < chores_at:
                wait = math.ceil(CHORES_SECONDS * 1000)
                continue
            chores_at = now + CHORES_SECONDS
            core.log_level = self._local_log.level
            timer = core.next_timer()
            if timer is not None and timer <= now:
                self._do(_TICK, now)
            self._do(_BATCH_ENDED, now)
            self._flush()
            wait = 0 if self._gone else self._timeout_ms(now)
        if self._broken is not None:
            raise self._broken
        self._run(core.flush(monotonic()))
        if self._writer is not None and not self._writer.stop(WRITER_STOPS_WITHIN):
            self._log.error("ledger_not_flushed", seconds=WRITER_STOPS_WITHIN)
        self._handle_posted(monotonic())  # `Persisted`: whoever is there is still told
        self._flush()

    def _handle_posted(self, now: float) -> None:
        """Hand the core what other threads have posted."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._do(self._posted.get_nowait(), now)

    def _post(self, event: Event) -> None:
        """On another thread: the core is to have this."""
        self._posted.put(event)
        self._wake()

    def _timeout_ms(self, now: float) -> int:
        timer = self._core.next_timer()
        return -1 if timer is None else max(0, math.ceil(min(timer - now, LONGEST_WAIT) * 1000))

    def _drain(self, most: int = MESSAGES_A_BATCH) -> None:
        """Handle what peers have sent, up to a batch of it, in ``most`` of ZeroMQ's messages."""
        taken = sent_at = 0
        do, monotonic = self._do, time.monotonic
        for peer, *parts in waiting(self._router, most, ready=True, routed=True):
            now = monotonic()
            unpacked = unpack(parts)
            for event, more in events_of(peer, unpacked):
                if type(event) is Received and type(event.message) is AskStats:
                    for moved in self._blobs.moved():
                        do(moved, now)
                do(event, now, more)
            taken += len(unpacked)
            if taken >= MESSAGES_A_BATCH:
                return
            if taken - sent_at >= BUNDLE_MESSAGES:
                sent_at = taken
                self._flush()

    def _do(self, event: Event, now: float, more: bool = False) -> None:
        """Hand an event to the core, execute what it answers, and hand it what comes of that. ``more``: see there."""
        instructions = self._core.handle(event, now, more=more)
        if instructions:
            self._run(instructions)
        follow_up = self._follow_up
        while follow_up:
            self._run(self._core.handle(follow_up.popleft(), now))

    def _run(self, instructions: list[object]) -> None:
        send = self._sending.send
        for instruction in instructions:
            if type(instruction) is Send:
                send(instruction.peer, encode(instruction.message), instruction.frames)
            else:
                self._execute[type(instruction)](instruction)
        self._blobs.decided()

    def _flush(self) -> None:
        """Let what was gathered for peers go, and hand the core what comes of that."""
        self._sending.flush()
        while self._follow_up:
            self._run(self._core.handle(self._follow_up.popleft(), time.monotonic()))
            self._sending.flush()

    def _on_unsent(self, event: PeerBusy | PeerUnreachable) -> None:
        if type(event) is PeerUnreachable:
            self._gone.append(event)
        else:
            self._follow_up.append(event)

    def _let_go(self) -> None:
        """Tell the core who has gone, once it has heard what they said last: that may have been goodbye."""
        self._drain()
        gone, self._gone = self._gone, deque()
        for event in gone:
            self._do(event, time.monotonic())
        self._flush()

    # ------------------------------------------------------------------------------------------ ledger and blobs

    def _persist(self, persist: Persist) -> None:
        if self._writer is not None:
            self._writer.add(persist.ticket, persist.writes)
            return
        self._ledger.commit(persist.writes)
        self._follow_up.append(Persisted(ticket=persist.ticket))

    def _on_writer_broken(self, error: BaseException) -> None:
        """On the writer's thread: nothing will be durable any more, so there is nothing left to promise."""
        self._broken = error
        self._stopping.set()
        self._wake()

    def _send_blobs(self, blobs: SendBlobs) -> None:
        answer, frames = self._blobs.answer(blobs)
        self._sending.send(blobs.peer, encode(answer), frames)


def _bound(made: _Socket) -> str:
    return _for_peers(made.getsockopt_string(zmq.LAST_ENDPOINT))


def _for_peers(endpoint: str) -> str:
    """An endpoint as it is told to peers: a host that means all addresses becomes ``*``, which they replace by ours."""
    for wildcard in ("tcp://0.0.0.0:", "tcp://[::]:"):
        if endpoint.startswith(wildcard):
            return "tcp://*:" + endpoint.removeprefix(wildcard)
    return endpoint
