"""The agent's driver: sockets, the worker's pipe, the store and the clock around `edge_agent.core`.

::

    agent = Agent("tcp://127.0.0.1:5750", "pi-kitchen", Store.open(DIR))
    agent.run()                                # in the foreground, until `request_stop`; or:
    agent.start()
    agent.wait_until_registered(timeout=10)
    agent.stop()

One thread does everything but blobs and the hashing of large files: it waits for whatever comes first, hands a batch of
events to the core, and executes what the core returns, in order. Neither torch nor numpy is loaded in this process
unless its worker is a thread.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import zmq

from broker.logs import Record, StreamSink, emit, get_logger
from broker.protocol import messages as m
from broker.protocol.bundles import reads_bundles
from broker.protocol.effects import BatchEnded, Log, Received, Send, Tick
from broker.protocol.errors import ConnectionRefused, ProtocolError, VersionRefused
from broker.protocol.ids import check_device_id
from broker.sockets import AT_ONCE_SECONDS, poll
from edge_agent import effects as e
from edge_agent.agent_blobs import BlobDesk
from edge_agent.agent_chores import Chores
from edge_agent.agent_socket import BATCH, BrokerSocket
from edge_agent.core import AgentCore
from edge_agent.core_desk import AgentConfig
from edge_agent.limits import Limits
from edge_agent.store import Store
from edge_agent.store_shelf import StoreShelf
from edge_agent.worker_hosts import ProcessWorker, ThreadWorker, WorkerHost

__all__ = ["Agent", "AgentConfig"]

_COMMIT_SECONDS = 0.1
_COMMIT_WRITES = 2048
"""What need not reach the disk before it is announced is written after so long, or when it is so much."""

_CHORES_SECONDS = 0.004
"""For how long what nobody waits for may be put off while something keeps coming. What follows a message that was sent
stands in its way: ZeroMQ's own thread, and the worker, often wait for the same core.
"""

_LOOK_SECONDS = 5.0
"""How often to look whether another program has changed the store without saying so."""

_PRUNE_SECONDS = 600.0
"""How often to forget ended commands whose retention is over."""

_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)  # as ints: an operation on pyzmq's enums takes a microsecond
_LINGER_MS = 500


_clock: Callable[[], float] = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds, also those that the device slept."""


class Agent:
    """A device. ``worker``: plans run in a process (the default) or on a thread of this one (virtual devices).

    ``runtime`` None: nothing that runs plans is installed, and commands fail. Raises ValueError for a device id that
    is none.
    """

    def __init__(
        self,
        endpoint: str,
        device: str,
        store: Store | str | os.PathLike[str],
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        worker: Literal["process", "thread"] = "process",
        runtime: str = "torch",
        threads: int = 0,
        config: AgentConfig | None = None,
    ) -> None:
        self.device = check_device_id(device)
        self._endpoint = endpoint
        self._folder = store.folder if isinstance(store, Store) else Path(store).absolute()
        self._durable = store.durable if isinstance(store, Store) else True
        self._given_context = context
        self._worker_kind = worker
        self._runtime = runtime
        self._threads = threads
        self._config = config or AgentConfig(runtimes=(runtime,))
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._said: deque[e.AgentEvent] = deque()  # events from other threads, and from ourselves
        self._state = threading.Condition()
        self._registered = False
        self._failure: BaseException | None = None
        self._refusal: ConnectionRefused | None = None  # by which the device is in quarantine
        self._ended = False
        self._records: list[Record] = []
        self._sink = StreamSink(self._records.append)
        self._log = get_logger("agent", sink=self._sink, device=device)
        # Made by `_open`; of the driver's thread alone, but for the end by which others wake it up:
        self._context: zmq.Context[zmq.Socket[bytes]]
        self._wake: socket.socket
        self._waker: socket.socket | None = None
        self._shelf: StoreShelf
        self._core: AgentCore
        self._host: WorkerHost
        self._blobs: BlobDesk
        self._chores: Chores
        self._broker: BrokerSocket
        self._poller = zmq.Poller()
        self._polled: dict[int, int] = {}
        self._worker = -1  # the descriptor of its pipe, while that is polled
        self._commit_at = math.inf
        self._look_at = 0.0
        self._prune_at = _clock() + _PRUNE_SECONDS
        self._tick_at = 0.0  # the core's next timer
        self._chores_at = 0.0  # when chores can't be put off any more
        self._put_off_until = math.inf  # the same, where they were put off
        self._do: dict[type, Callable[[Any], object]] = {}

    # ------------------------------------------------------------------------------------------- for its owner

    def start(self) -> None:
        """Run on a thread. Raises `StoreInUse` and what else a store can have."""
        self._open()
        self._thread = threading.Thread(target=self._run_quietly, name=f"agent-{self.device}", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Run on this thread, until `request_stop`. Raises `ConnectionRefused` if the broker refuses this device for
        good.
        """
        self._open()
        self._run()
        if self._failure is not None:
            raise self._failure

    def request_stop(self) -> None:
        """Let it end; any thread, and a signal handler, may call this."""
        self._stopping = True
        self._wake_up()

    def stop(self, timeout: float = 10.0) -> None:
        """End what `start` has begun, and wait for it. Idempotent."""
        self.request_stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def wait_until_registered(self, timeout: float | None = None) -> None:
        """Wait until the broker knows this device. Raises TimeoutError, or what has ended the agent, or
        `ConnectionRefused` while the broker has it in quarantine, which may end.
        """
        with self._state:
            self._state.wait_for(lambda: self._registered or self._ended or self._refusal, timeout)
            if self._registered:
                return
            if (failure := self._failure or self._refusal) is not None:
                raise failure
            if self._ended:
                raise RuntimeError(f"the agent of {self.device} has ended")
        raise TimeoutError(f"{self.device} was not registered at {self._endpoint} within {timeout} s")

    @property
    def registered(self) -> bool:
        """Whether the broker knows this device just now."""
        return self._registered

    @property
    def worker_pid(self) -> int | None:
        """The process that runs plans; None: there is none just now."""
        host = getattr(self, "_host", None)
        return host.pid if isinstance(host, ProcessWorker) else None

    # ------------------------------------------------------------------------------------------- life

    def _open(self) -> None:
        shelf = self._shelf = StoreShelf(self._folder, durable=self._durable, wake=self._wake_up)
        self._context = self._given_context or zmq.Context()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        token, ledger = shelf.registration()
        boot = os.urandom(8)
        self._broker = BrokerSocket(self._context, self._endpoint, self._poller)
        self._core = AgentCore(
            self._config,
            shelf,
            random.Random(boot),
            device=self.device,
            store_id=shelf.store_id,
            boot=boot,
            token=token,
            ledger=ledger,
            log_level=self._log.level,
            now=_clock(),
        )
        config = self._config
        every = config.checkpoint_seconds
        limits = Limits(memory_bytes=config.max_memory, ops=config.max_ops, seconds=config.max_seconds)
        if self._worker_kind == "process":
            self._host = ProcessWorker(
                self._runtime, self._folder, threads=self._threads, limits=limits, checkpoint_seconds=every
            )
        else:
            self._host = ThreadWorker(self._load_runtime, self._folder, limits=limits, checkpoint_seconds=every)
        self._blobs = BlobDesk(self._context, self.device, self._folder, self._endpoint, self._say)
        self._chores = Chores(shelf, self._say)
        self._do = {
            Send: self._send,
            Log: lambda log: emit(self._log, log),
            e.Assign: lambda one: self._host.assign(one.orders),
            e.KeepResult: lambda one: shelf.keep(one.ended, one.values, durable=one.durable, left=one.left),
            e.MarkRecorded: lambda one: shelf.mark_recorded(one.ids),
            e.StartWorker: self._start_worker,
            e.MarkDeath: lambda one: self._write(lambda: shelf.mark_death(one.id, one.deaths)),
            e.KillWorker: lambda _: self._host.kill(),
            e.StopWorker: lambda _: self._host.stop(),
            e.DropValues: lambda one: shelf.drop(one.ids),
            e.DropFiles: self._chores.drop_files,
            e.AdoptTensor: self._chores.adopt,
            e.HashFile: self._chores.hash,
            e.KeepBlob: self._keep_blob,
            e.DropBlobs: lambda one: shelf.drop_blobs(one.digests),
            e.OpenBlobs: lambda one: self._blobs.open(one.endpoint),
            e.FetchBlob: lambda one: self._blobs.fetch(one.digest, one.size),
            e.OfferBlob: lambda one: self._blobs.offer(one.digest, one.source),
            e.SaveRegistration: self._save_registration,
            e.Reconnect: lambda _: self._said.append(self._broker.drop(registered=self._core.registered, now=_clock())),
            e.Quarantined: self._quarantined,
            e.GiveUp: self._give_up,
        }

    def _load_runtime(self) -> Any:
        from edge_agent.worker import load_runtime  # on the worker's thread: it imports torch

        return load_runtime(self._runtime, self._threads or 1)

    def _run_quietly(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._log.exception("agent_crashed", reason=str(error))
            self._failure = error
            raise
        finally:
            self._tell_state(ended=True)

    def _run(self) -> None:
        self._log.info("agent_starting", endpoint=self._endpoint, store=str(self._folder), runtime=self._runtime)
        try:
            self._poll_for(self._wake.fileno(), _POLLIN)
            self._poll_for(self._shelf.changed, _POLLIN)
            self._said.extend(self._broker.open())
            while not self._stopping:
                self._round()
        finally:
            self._close()
            self._tell_state(ended=True)

    def _close(self) -> None:
        """Say goodbye, and end all that was begun; each also when another fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._log.info, "agent_ended")
            for end in (self._wake, self._waker):
                if end is not None:
                    stack.callback(end.close)
            if self._given_context is None:
                stack.callback(self._context.term)
            stack.callback(self._broker.close, linger=_LINGER_MS)
            stack.callback(self._shelf.close)
            stack.callback(self._blobs.close)
            stack.callback(self._chores.close)
            stack.callback(self._end_worker)
            self._handle(e.Stopping())
            if self._records:
                self._flush_records()
            self._flush_broker()

    def _end_worker(self) -> None:
        if self._host.fileno() >= 0:
            self._poll_out_worker()
            self._host.stop()
            self._host.bury()

    # ------------------------------------------------------------------------------------------- the loop

    def _round(self) -> None:
        """Wait for whatever comes first, and bring the core up to date with it."""
        store_changed = False
        slept_at = _clock()
        happened = poll(self._poller, self._timeout_ms(slept_at))
        for source, events in happened:
            if source is self._broker.dealer:
                self._receive(BATCH if _clock() - slept_at < AT_ONCE_SECONDS else 1)
            elif source == self._worker:
                self._hear_worker(events)
            elif source == self._broker.monitored:
                self._said.extend(self._broker.watch(registered=self._core.registered, now=_clock()))
            elif source == self._wake.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            elif source == self._shelf.changed:
                store_changed = True
        while self._said:
            self._handle(self._said.popleft())
        now = _clock()
        if store_changed or now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            if self._shelf.look():
                self._handle(e.StoreChanged())
            if now >= self._prune_at:
                self._prune_at = now + _PRUNE_SECONDS
                self._shelf.prune()
        if now >= self._tick_at:
            self._handle(Tick())
        self._handle(BatchEnded())
        if self._broker.out:
            self._flush_broker()
        if happened and now < self._chores_at and not self._shelf.must_commit:
            self._put_off_until = self._chores_at
        else:
            self._chores_at, self._put_off_until = now + _CHORES_SECONDS, math.inf
            self._do_chores(now)
            self._flush_broker()
            if self._core.registered != self._registered:
                self._tell_state()  # its tags have been announced: whoever waited for this may search

    def _do_chores(self, now: float) -> None:
        """What nobody waits for."""
        self._commit(now)
        if now >= self._broker.open_at:
            self._said.extend(self._broker.open())
        core = self._core
        if core.stream_level != self._sink.level:
            self._sink.level = core.stream_level
        if self._records:
            self._flush_records()
        if self._host.clogged:
            self._poll_worker()
        timer = core.next_timer()
        self._tick_at = math.inf if timer is None else timer

    def _timeout_ms(self, now: float) -> int:
        if self._said:
            return 0
        due = min(self._look_at, self._commit_at, self._tick_at, self._broker.open_at, self._put_off_until)
        left = due - now
        return 0 if left <= 0 else math.ceil(left * 1000)

    def _handle(self, *events: e.AgentEvent) -> None:
        do, handle, now = self._do, self._core.handle, _clock()
        for event in events:
            for instruction in handle(event, now):
                do[type(instruction)](instruction)

    def _commit(self, now: float) -> None:
        """Write what must be on the disk now; the rest when it is time: a large batch costs less than its parts."""
        shelf = self._shelf
        due = False
        if waiting := shelf.waiting:
            if self._commit_at == math.inf:
                self._commit_at = now + _COMMIT_SECONDS
            due = now >= self._commit_at or waiting >= _COMMIT_WRITES
        if not due and not shelf.must_commit:
            return
        ends = shelf.commit(due=due)
        if due or not shelf.waiting:
            self._commit_at = math.inf
        kept: list[bytes] = []
        for end in ends:
            if end.failure is None:
                kept += end.batch.durable
            else:
                self._log.error("store_write_failed", reason=end.failure.message, commands=len(end.batch.ended))
                self._handle(e.KeepFailed(ids=tuple(end.batch.durable), failure=end.failure))
                for digest in end.batch.blobs:
                    self._handle(e.BlobUnkept(digest=digest, failure=end.failure))
                self._handle(BatchEnded())
        if kept:
            self._handle(e.Kept(ids=tuple(kept)))
            self._handle(BatchEnded())

    def _write(self, do: Callable[[], None]) -> str:
        """Write something at once; why that failed, or nothing. A full disk must not end the agent."""
        try:
            do()
        except (sqlite3.Error, OSError) as error:
            self._log.error("store_write_failed", reason=str(error))
            return str(error)
        return ""

    def _keep_blob(self, one: e.KeepBlob) -> None:
        try:
            self._shelf.keep_blob(one.digest, one.source, manifest=one.manifest)
        except OSError as error:  # its file could not be moved; what fails later, `_commit` tells
            self._log.error("store_write_failed", reason=str(error))
            failure = m.Failure(code="StoreFull", message=f"the store could not be written: {error}")
            self._said.append(e.BlobUnkept(digest=one.digest, failure=failure))

    def _save_registration(self, one: e.SaveRegistration) -> None:
        if self._write(lambda: self._shelf.save_registration(one.token, one.ledger, other=one.other)):
            self._said += e.RegistrationUnsaved(), self._broker.drop(registered=False, now=_clock())

    def _say(self, event: e.AgentEvent) -> None:
        """Hand in an event; any thread may call."""
        self._said.append(event)
        self._wake_up()

    def _wake_up(self) -> None:
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):  # it is awake, or has ended
                waker.send(b"!")

    def _tell_state(self, *, ended: bool = False) -> None:
        with self._state:
            self._registered = self._core.registered and not ended
            if self._registered:
                self._refusal = None
            self._ended = self._ended or ended
            self._state.notify_all()

    # ------------------------------------------------------------------------------------------- the broker

    def _receive(self, most: int) -> None:
        do, handle, now = self._do, self._core.handle, _clock()
        for message, frames, size in self._broker.receive(most):
            if isinstance(message, ProtocolError):
                self._log.warning("message_malformed", reason=str(message), bytes=size)
                continue
            if type(message) is m.Registered:
                self._broker.out.bundling = reads_bundles(message.version)
            for instruction in handle(Received(message=message, frames=frames, size=size), now):
                do[type(instruction)](instruction)

    def _send(self, instruction: Send) -> None:
        try:
            self._broker.send(instruction.message, instruction.frames)
        except zmq.Again:
            self._log.debug("send_dropped", message=type(instruction.message).__name__)

    def _flush_broker(self) -> None:
        try:
            self._broker.out.flush()
        except zmq.Again:
            self._log.debug("send_dropped", message="Bundle")

    def _flush_records(self) -> None:
        if self._records:
            records = self._records[:]
            self._records.clear()
            self._send(Send(message=m.LogRecords(records=records)))

    def _quarantined(self, instruction: e.Quarantined) -> None:
        with self._state:
            self._refusal = ConnectionRefused(m.RefusalCode.STALE_TOKEN, instruction.reason)
            self._state.notify_all()

    def _give_up(self, instruction: e.GiveUp) -> None:
        kind = VersionRefused if instruction.code == m.RefusalCode.VERSION else ConnectionRefused
        self._failure = kind(instruction.code, instruction.reason)
        self._stopping = True

    # ------------------------------------------------------------------------------------------- the worker

    def _start_worker(self, _instruction: e.StartWorker) -> None:
        try:
            self._host.start()
        except OSError as error:
            self._said.append(e.WorkerDied(reason=str(error)))
            return
        self._poll_worker()

    def _hear_worker(self, events: int) -> None:
        if events & _POLLOUT:
            self._host.flush()
            self._poll_worker()
        if not events & ~_POLLOUT:
            return
        answers = self._host.hear()
        if answers is None:
            self._poll_out_worker()
            doing, reason = self._host.bury()
            self._handle(e.WorkerDied(doing=doing, reason=reason))
            return
        self._handle(*answers)

    def _poll_worker(self) -> None:
        """Poll the worker's pipe: for writing only while orders wait for it."""
        self._worker = self._host.fileno()
        if self._worker >= 0:
            self._poll_for(self._worker, _POLLIN | _POLLOUT if self._host.clogged else _POLLIN)

    def _poll_for(self, descriptor: int, events: int) -> None:
        if self._polled.get(descriptor) != events:
            self._polled[descriptor] = events
            self._poller.register(descriptor, events)

    def _poll_out_worker(self) -> None:
        if self._polled.pop(self._worker, None) is not None:
            self._poller.unregister(self._worker)
        self._worker = -1
