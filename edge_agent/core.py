"""The agent as a pure state machine: commands in, announcements out, and a worker in between.

``handle(event, now)`` returns what the driver must do, in order; ``next_timer()`` says when to call again with a
`Tick` if nothing else happens before. After each batch of events the driver hands in `BatchEnded`: only then are jobs
given to the worker, announcements sent and deliveries acknowledged, all of a batch at once.

This module knows who handles what. `core_link` registers and keeps the two numbered streams; `core_runs` takes
commands and brings them to their end, with `core_arguments` (values by id), `core_plans` and `core_blobs` (what must
be fetched first) and `core_worker`; `core_fetch` answers the broker's questions for values; `core_tags` keeps its
index of tags right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from broker.protocol import messages as m
from broker.protocol.effects import BatchEnded, LinkDown, LinkUp, Received, Tick
from edge_agent import effects as e
from edge_agent.catalog import Catalog, announcement
from edge_agent.core_blobs import BlobWants
from edge_agent.core_desk import INFO, WARNING, AgentConfig, Desk
from edge_agent.core_fetch import Fetches
from edge_agent.core_link import Link
from edge_agent.core_quota import Quota
from edge_agent.core_runs import Runs
from edge_agent.core_tags import TagIndex
from edge_agent.jobs import JobFailed, JobFinished, JobProgress, PlanLoaded, PlanRefused, WorkerReady, WorkerUnfit

if TYPE_CHECKING:
    import random

__all__ = ["AgentConfig", "AgentCore"]

_TAKEN_COMMANDS = (m.Invoke, m.Put)
"""What makes a `Command` of the device. A tuple: a union would be made anew for each message."""


class AgentCore:
    """One device. ``store_id`` is the store's random id, ``boot`` random per start; ``token`` and ``ledger`` are what
    `SaveRegistration` last kept; ``rng`` is for jitter. ``log_level``: what is logged locally, from which level on; the
    broker may ask for more.
    """

    def __init__(
        self,
        config: AgentConfig,
        catalog: Catalog,
        rng: random.Random,
        *,
        device: str,
        store_id: bytes,
        boot: bytes,
        token: bytes = b"",
        ledger: bytes = b"",
        log_level: int = INFO,
        now: float = 0.0,
    ) -> None:
        desk = self._desk = Desk(now, log_level)
        self._catalog = catalog
        self._local_level = log_level
        self.stream_level = 0
        """From which level on log events go to the broker, for those who follow the stream; 0: nobody does."""
        self._reannounce = False
        self._link = Link(desk, config, rng, device=device, store_id=store_id, boot=boot, token=token, ledger=ledger)
        self._tags = TagIndex(desk, catalog)
        quota = Quota(desk, catalog, config.store_quota)
        self._blobs = BlobWants(desk, catalog, quota, config)
        self._runs = runs = Runs(
            desk, catalog, self._blobs, self._link, self._tags, quota, config, device=device, store_id=store_id
        )
        self._fetches = Fetches(desk, catalog, runs.producing)
        self._events: dict[type, Callable[[Any], None]] = {
            Received: self._received,
            BatchEnded: self._batch_ended,
            Tick: self._tick,
            LinkUp: lambda _: self._link.up(),
            LinkDown: self._link_down,
            WorkerReady: runs.worker.ready,
            WorkerUnfit: runs.worker.unfit,
            PlanLoaded: runs.plan_loaded,
            PlanRefused: runs.plan_refused,
            JobFinished: runs.job_finished,
            JobFailed: runs.job_failed,
            JobProgress: runs.job_progress,
            e.WorkerDied: runs.worker_died,
            e.Kept: runs.ends.kept,
            e.KeepFailed: runs.ends.keep_failed,
            e.RegistrationUnsaved: lambda _: self._link.unsaved(),
            e.TensorAdopted: runs.tensor_adopted,
            e.TensorUnfit: runs.tensor_unfit,
            e.BlobArrived: self._blobs.arrived,
            e.BlobFailed: self._blob_failed,
            e.BlobOffered: self._fetches.offered,
            e.BlobUnkept: runs.blob_unkept,
            e.FileHashed: self._fetches.hashed,
            e.StoreChanged: self._store_changed,
            e.Stopping: self._stopping,
        }
        self._messages: dict[type, Callable[[Any, tuple[m.Frame, ...]], None]] = {
            m.Deliver: self._deliver,
            m.Recorded: self._recorded,
            m.Registered: self._registered,
            m.Refused: lambda message, _: self._link.refused(message),
            m.Stranger: lambda _message, _: self._link.stranger(),
            m.HeartbeatSeen: lambda message, _: self._link.heartbeat_seen(message),
            m.SetLogLevel: lambda message, _: self._hear_log_level(message.level),
            m.Fetch: self._fetch,
            m.Supply: runs.arguments.supplied,
            m.Blobs: self._blobs.answered,
        }

    @property
    def registered(self) -> bool:
        """Whether the broker knows this device on the present connection."""
        return self._link.registered

    @property
    def log_level(self) -> int:
        """From which level on anybody wants log events."""
        return self._desk.log_level

    def handle(self, event: e.AgentEvent, now: float) -> list[e.AgentInstruction]:
        """Take in what has happened; what the driver must do about it, in order."""
        desk = self._desk
        desk.now = now
        instructions: list[e.AgentInstruction] = []
        desk.instructions = instructions
        self._events[type(event)](event)
        return instructions

    def next_timer(self) -> float | None:
        """When to hand in a `Tick` and a `BatchEnded`, if nothing else happens before; None: never."""
        timers = [self._link.next_timer(), self._runs.next_timer()]
        if self._link.registered:
            timers += self._blobs.next_timer(), self._runs.arguments.next_timer()
        return min((timer for timer in timers if timer is not None), default=None)

    # ------------------------------------------------------------------------------------------- messages

    def _received(self, event: Received) -> None:
        self._link.heard = self._desk.now
        handler = self._messages.get(type(event.message))
        if handler is None:
            self._desk.log(WARNING, "message_unexpected", message=type(event.message).__name__)
            return
        handler(event.message, event.frames)

    def _deliver(self, message: m.Deliver, frames: tuple[m.Frame, ...]) -> None:
        if not self._link.offer(message.n):
            return
        body = message.command
        if isinstance(body, _TAKEN_COMMANDS):
            self._runs.take(body, message.digest, frames)
        elif isinstance(body, m.Release):
            self._runs.ends.release(body.ids)
        elif isinstance(body, m.Cancel):
            self._runs.cancel(body)
        else:
            self._desk.log(WARNING, "message_unexpected", message=type(body).__name__)

    def _fetch(self, message: m.Fetch, _frames: tuple[m.Frame, ...]) -> None:
        # Any word after `Registered` confirms its token. If that was lost, an answer would confirm what is not here.
        if self._link.registered:
            self._fetches.asked(message)

    def _registered(self, message: m.Registered, _frames: tuple[m.Frame, ...]) -> None:
        if not self._link.welcome(message):
            return
        self._fetches.max_message = message.max_message
        self._hear_log_level(message.log_level)
        self._reannounce = True
        self._runs.arguments.registered()
        self._blobs.registered()

    def _recorded(self, message: m.Recorded, _frames: tuple[m.Frame, ...]) -> None:
        ids = self._link.recorded(message.n)
        if ids:
            self._runs.recorded(ids)
            self._desk.do(e.MarkRecorded(ids=ids))

    def _hear_log_level(self, stream: int) -> None:
        self.stream_level = stream
        self._desk.log_level = min(self._local_level, stream) if stream else self._local_level

    # ------------------------------------------------------------------------------------------- other events

    def _link_down(self, _event: LinkDown) -> None:
        self._link.down()
        self._fetches.down()
        self._reannounce = False
        self._hear_log_level(0)

    def _blob_failed(self, event: e.BlobFailed) -> None:
        if not self._blobs.failed(event):
            self._fetches.failed(event)

    def _store_changed(self, _event: e.StoreChanged) -> None:
        for changed in self._tags.refresh():
            self._link.announce(changed)

    def _stopping(self, _event: e.Stopping) -> None:
        self._link.leave()
        self._runs.worker.stop()

    def _tick(self, _event: Tick) -> None:
        self._link.tick(self._runs.running)
        self._runs.tick()

    def _batch_ended(self, _event: BatchEnded) -> None:
        registered, reannounce = self._link.registered, self._reannounce
        if reannounce:
            # What the broker has not on record. Those being stored are announced when they are on the disk. Before
            # anything else ends in this batch: what is being kept by an instruction of this call is not listed yet.
            self._reannounce = False
            unrecorded = self._catalog.unrecorded()
            for ended in unrecorded:
                if not self._runs.live(ended.id):
                    self._link.announce(*announcement(self._catalog, ended))
            self._runs.tell_unwritten({ended.id for ended in unrecorded})
        self._runs.flush()
        if reannounce:
            for changed in self._tags.whole():  # last: it says that no ends come any more
                self._link.announce(changed)
        self._link.flush()
        self._runs.arguments.flush(registered=registered)
        self._blobs.flush(registered=registered)
        self._fetches.ended()
