"""The broker as a pure state machine: `BrokerCore.handle` takes what happened and returns what to do about it.

It has no socket, no clock, no disk. `broker.server` executes its instructions; tests and the simulation do so under a
virtual clock. Each part of the state has a module of its own:

    `broker.devices`           who is there, tokens, presence
    `broker.mailboxes`         commands to devices, numbered
    `broker.sessions`          incarnations, and notifications, numbered
    `broker.submissions`       what sessions submit, judged and fanned out
    `broker.announcements`     what devices say about commands
    `broker.results`           every result and how it ended; `broker.deadlines`, `broker.releases`, `broker.retention`
    `broker.transitions`       how a result may end, as a table
    `broker.values`            values on their way
    `broker.plans`             which plans and blobs are here
    `broker.tags`              the tag index
    `broker.acknowledgements`  what is in the ledger, and who is told; `broker.restoration` takes up what was in it

What is taken is acknowledged once it is in the ledger; relaying does not wait for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.acknowledgements import Acknowledgements
from broker.announcements import Announcements
from broker.config import BrokerConfig
from broker.context import DEBUG, ERROR, INFO, WARNING, Blobs, Context
from broker.devices import Device, Devices
from broker.effects import (
    BlobMoved,
    BlobStored,
    BlobsUnwritable,
    BlobsWritable,
    BlobUnavailable,
    Event,
    LedgerUnwritable,
    LedgerWritable,
    Malformed,
    PeerBusy,
    PeerUnreachable,
    Persisted,
    PublishLogs,
    Subscriptions,
)
from broker.ledger.interface import Snapshot
from broker.plans import Plans
from broker.protocol.bundles import reads_bundles
from broker.protocol.effects import BatchEnded, Received, Tick
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Announce,
    AskDeadLetters,
    AskStats,
    AskStatus,
    DeadLetters,
    DeviceList,
    DropCode,
    Fetch,
    Found,
    Goodbye,
    Heartbeat,
    ListDevices,
    LogRecords,
    Message,
    NeedBlobs,
    NeedValues,
    OpenSession,
    Refused,
    Register,
    ResultStatus,
    Search,
    Seen,
    SetLogLevel,
    Stats,
    StatusEntry,
    StatusReport,
    Stranger,
    Submit,
    TagsChanged,
    Taken,
    Values,
)
from broker.protocol.streams import Verdict
from broker.restoration import restore
from broker.results import Results
from broker.sessions import Session, Sessions
from broker.submissions import Submissions
from broker.unstored import Unstored
from broker.values import Values as ValueDesk

__all__ = ["BrokerCore"]

_DEAD_LETTERS = 1000
"""The most of them in one answer."""

_NEXT = Verdict.NEXT


class BrokerCore:
    """See the module.

    ``snapshot``: what the ledger gave at its `open`, its id and this broker's epoch among it. ``blobs`` is asked
    which blobs are there. ``random_bytes``: os.urandom, or a seeded source. ``wall_offset``: what to add to ``now``
    to get seconds since the Unix epoch. ``now``: as in `handle`.
    """

    def __init__(
        self,
        config: BrokerConfig,
        snapshot: Snapshot,
        *,
        blobs: Blobs,
        random_bytes: Callable[[int], bytes],
        wall_offset: float = 0.0,
        now: float = 0.0,
    ) -> None:
        self.config = config
        self.ledger = snapshot.ledger
        self.epoch = snapshot.epoch
        context = self._context = Context(config, wall_offset=wall_offset)
        context.now = context.started = now
        if snapshot.epoch > 1:
            context.unsure_until = now + config.restart_grace
        self._local_level = config.log_level
        self.devices = Devices(context, random_bytes=random_bytes, epoch=snapshot.epoch, ledger=snapshot.ledger)
        self.sessions = Sessions(context, ledger=snapshot.ledger)
        self.plans = Plans(context, blobs)
        self.values = ValueDesk(context, self.devices, self.plans)
        self.results = Results(context, self.plans, self.sessions, self.values)
        self.unstored = Unstored(context)
        self.submissions = Submissions(context, self.devices, self.sessions, self.results, self.plans, self.unstored)
        self.announcements = Announcements(context, self.results, self.sessions, self.values)
        self.devices.changed_store = self.announcements.store_lost
        self.devices.worn_out = self.results.worn_out
        self.devices.appeared = self.results.awaited.appeared
        self.devices.arrived = self.values.arrived
        self.devices.caught_up = self._on_caught_up
        self.sessions.settled = self.results.retention.settled
        self.sessions.unsettled = self.results.retention.unsettled
        self.values.record_of = self.results.by_id.get
        self.values.may_come = self._may_come
        self._acknowledgements = Acknowledgements(context, self.sessions)
        self.submissions.acknowledge = self._acknowledgements.owe_session
        self._strangers: dict[bytes, None] = {}
        # What is asked for every message, named once.
        self._device_at, self._session_at = self.devices.by_peer.get, self.sessions.by_peer.get
        self._max_message = config.max_message
        self._events: dict[type, Callable[[Any], None]] = {
            Received: self._on_received,
            BatchEnded: self._on_batch_ended,
            Persisted: lambda event: self._acknowledgements.persisted(event.ticket),
            LedgerUnwritable: self._on_ledger_unwritable,
            LedgerWritable: self._on_ledger_writable,
            Tick: self._on_tick,
            Malformed: self._on_malformed,
            PeerUnreachable: self._on_peer_unreachable,
            PeerBusy: self._on_peer_busy,
            BlobStored: self._on_blob_stored,
            BlobUnavailable: self._on_blob_unavailable,
            BlobsUnwritable: self.unstored.unwritable,
            BlobsWritable: self.unstored.writable,
            BlobMoved: self._on_blob_moved,
            Subscriptions: self._on_subscriptions,
        }
        self._from_device: dict[type, Callable[[Device, Any, Received], None]] = {
            Announce: self._on_announce,
            Taken: self._on_taken,
            Heartbeat: self._on_device_heartbeat,
            NeedValues: lambda device, message, _: self.values.supply(device, message.ids),
            NeedBlobs: self._on_need_blobs,
            Values: self._on_values,
            LogRecords: lambda device, message, _: self._publish_logs(device.name, message),
            Goodbye: lambda device, _message, _: self.devices.leave(device, "goodbye"),
        }
        self._from_session: dict[type, Callable[[Session, Any, Received], None]] = {
            Submit: self.submissions.submit,
            Seen: self._on_seen,
            Heartbeat: lambda session, _message, _: self.sessions.heartbeat(session),
            Fetch: lambda session, message, _: self.values.fetch(session, message.r, message.ids),
            Search: self._on_search,
            AskStatus: self._on_ask_status,
            ListDevices: self._on_list_devices,
            AskStats: self._on_ask_stats,
            AskDeadLetters: self._on_ask_dead_letters,
            LogRecords: lambda _session, message, _: self._publish_logs("", message),
            Goodbye: lambda session, _message, _: self.sessions.leave(session, goodbye=True),
        }
        restore(snapshot, context, devices=self.devices, sessions=self.sessions, plans=self.plans, results=self.results)

    # ------------------------------------------------------------------------------------------ for the driver

    def handle(self, event: Event, now: float, *, more: bool = False) -> list[object]:
        """What to do about ``event``, in this order. ``now`` is in seconds, on a clock that never runs backwards.

        ``more``: another event follows at once. What the numbered streams have to say by then is said with that one:
        to look what a stream has to send costs as much for one message as for many.
        """
        context = self._context
        context.now = now
        self._events[type(event)](event)
        while context.due and not more:
            due, context.due = context.due, {}
            for stream in due:
                stream.pump(now)
        out, context.out = context.out, []
        return out

    def next_timer(self) -> float | None:
        """When to call `handle` with a `Tick`, if nothing else happens before."""
        return self._context.next_timer()

    def flush(self, now: float) -> list[object]:
        """Commit now what waits to be committed: what to do about it. For a broker that ends."""
        context = self._context
        context.now = now
        context.out = []
        self._acknowledgements.flush()
        return context.out

    def endpoints(self, *, blobs: str, logs: str) -> None:
        """What to tell peers: where blobs are to be had, and where logs and notifications are published."""
        self.devices.blobs_endpoint = self.sessions.blobs_endpoint = blobs
        self.sessions.logs_endpoint = logs

    @property
    def log_level(self) -> int:
        """From which level on `Log` instructions are wanted locally; the driver sets it."""
        return self._local_level

    @log_level.setter
    def log_level(self, level: int) -> None:
        self._local_level = level
        followed = self._context.followed
        self._context.level = min(level, followed) if followed else level

    def reads_bundles(self, peer: bytes) -> bool:
        """Whether ``peer`` may be sent a `Bundle`."""
        known = self._device_at(peer) or self._session_at(peer)
        return known is not None and reads_bundles(known.version)

    def sent(self, peer: bytes, size: int) -> None:
        """A message of ``size`` bytes, all frames, has left for ``peer``: for the counters."""
        self._context.total.bytes_out += size
        device = self.devices.by_peer.get(peer)
        if device is not None:
            device.tally.bytes_out += size

    # ------------------------------------------------------------------------------------------ messages

    def _on_received(self, event: Received) -> None:
        message, peer, size = event.message, event.peer, event.size
        context = self._context
        context.total.bytes_in += size
        device = self._device_at(peer)
        if device is not None:
            device.tally.bytes_in += size
            act = self._from_device.get(type(message))
            if act is not None and size <= self._max_message:
                self.devices.heard(device, context.now)
                act(device, message, event)
                return
        else:
            session = self._session_at(peer)
            if session is not None:
                take = self._from_session.get(type(message))
                if take is not None and (size <= self._max_message or type(message) is Submit):
                    session.heard = context.now
                    take(session, message, event)
                    return
        self._introduce(event)

    def _introduce(self, event: Received) -> None:
        """Whoever speaks for the first time, or says what it may not say."""
        message, peer = event.message, event.peer
        if event.size > self.config.max_message:
            self._on_malformed(Malformed(peer=peer, reason=self._too_large(event.size), size=0, too_large=True))
        elif type(message) is Register:
            session = self.sessions.by_peer.get(peer)
            if session is not None:
                self.sessions.leave(session, goodbye=False)
            self.devices.withdraw(peer, message.device)
            other = self.devices.by_peer.get(peer)
            if other is not None and other.name != message.device:
                self.devices.leave(other, "another device on its connection")
            self.devices.register(peer, message)
        elif type(message) is OpenSession:
            device = self.devices.by_peer.get(peer)
            if device is not None:
                self.devices.leave(device, "a session on its connection")
            self.devices.withdraw(peer)
            before = self.sessions.by_peer.get(peer)
            if before is not None and before.incarnation != message.incarnation:
                self.sessions.leave(before, goodbye=False)
            self.sessions.open(peer, message)
        elif peer in self.devices.by_peer or peer in self.sessions.by_peer:
            role = "device" if peer in self.devices.by_peer else "session"
            reason = f"expected a message of a {role}, got {type(message).__name__}"
            self._on_malformed(Malformed(peer=peer, reason=reason))
        elif type(message) is not Goodbye and peer not in self._strangers:
            self._strangers[peer] = None  # once a batch: many messages may be waiting
            self._context.send(peer, Stranger())

    def _too_large(self, size: int) -> str:
        return f"expected a message of at most {self.config.max_message} bytes, got {size} bytes"

    def _on_malformed(self, event: Malformed) -> None:
        context = self._context
        context.total.bytes_in += event.size
        code = DropCode.TOO_LARGE if event.too_large else DropCode.MALFORMED
        device = self.devices.by_peer.get(event.peer)
        context.log(
            WARNING, "message_refused", device="" if device is None else device.name, code=code, reason=event.reason
        )
        context.send(event.peer, Refused(version=PROTOCOL_VERSION, code=code, reason=event.reason))

    # ------------------------------------------------------------------------------------------ from devices

    def _on_announce(self, device: Device, message: Announce, event: Received) -> None:
        verdict = device.inbox.offer(message.n)
        self._acknowledgements.owe_device(device)
        if verdict is not _NEXT:
            return
        announced = message.event
        if isinstance(announced, TagsChanged):
            self.devices.change_tags(device, announced)
            return
        if self._context.level <= DEBUG:
            self._context.log(DEBUG, "result_announced", result=announced.id.hex(), device=device.name, n=message.n)
        self.announcements.ended(device, announced, event.frames)

    def _on_caught_up(self, device: Device) -> None:
        device.caught_up = True
        self.results.held.caught_up(device)

    def _may_come(self, id: bytes) -> bool:
        """Whether an id that is not known may be that of a command which its session has yet to send again, or of an
        end that a device has yet to announce: also where the session is gone, and later commands of it were known.
        """
        return self._context.unsure and not self.results.forgotten(id)

    def _on_taken(self, device: Device, message: Taken, _event: Received) -> None:
        device.mailbox.taken(message.n, self._context.now, device.boot)

    def _on_device_heartbeat(self, device: Device, message: Heartbeat, _event: Received) -> None:
        self.devices.heartbeat(device, len(message.running))
        self.announcements.running(device, message.running)

    def _on_need_blobs(self, device: Device, message: NeedBlobs, event: Received) -> None:
        self.plans.provide(event.peer, device.tally, message.digests)

    def _on_values(self, device: Device, message: Values, event: Received) -> None:
        if device.challenger is not None and message.r == device.challenge:
            self.devices.alive(device)
        self.values.answered(device, message, event.frames)

    # ------------------------------------------------------------------------------------------ from sessions

    def _on_seen(self, session: Session, message: Seen, _event: Received) -> None:
        self.sessions.seen(session, message.n)

    def _on_search(self, _session: Session, message: Search, event: Received) -> None:
        known = self.devices.by_name
        devices = [device for device in message.devices if device in known] if message.devices else None
        entries = self.devices.tags.search(message.tags, devices)
        as_of = {name: self.devices.last_seen(known[name]) for name in entries if name in known}
        self._context.send(event.peer, Found(r=message.r, entries=entries, as_of=as_of))

    def _on_ask_status(self, session: Session, message: AskStatus, event: Received) -> None:
        # What is told is not taken back, so it is told when it is in the ledger. Whoever is gone by then asks again.
        report = StatusReport(r=message.r, entries=self._entries(session, message))
        self._context.after_commit(self._answer, (event.peer, report))

    def _answer(self, answer: tuple[bytes, Message]) -> None:
        peer, message = answer
        if peer in self.sessions.by_peer:
            self._context.send(peer, message)

    def _on_ask_dead_letters(self, _session: Session, message: AskDeadLetters, event: Received) -> None:
        records = self.results.dead_letters.records()
        entries = [self.results.entry(record.id) for record in records[: min(message.limit, _DEAD_LETTERS)]]
        report = DeadLetters(r=message.r, entries=entries, total=len(records))
        self._context.after_commit(self._answer, (event.peer, report))

    def _entries(self, session: Session, message: AskStatus) -> list[StatusEntry]:
        if message.mine:
            return self.results.of_session(session, message.after)
        return [self._status(each) for each in message.ids]

    def _status(self, id: bytes) -> StatusEntry:
        entry = self.results.entry(id)
        if entry.status is not ResultStatus.UNKNOWN:
            return entry
        # A tensor of the device's own has no record: it is in the index.
        name = self.devices.tags.owner(id)
        tagged = None if name is None else self.devices.tags.entry(name, id)
        if name is None or tagged is None:
            return entry
        return StatusEntry(
            id=id,
            status=ResultStatus.DONE,
            device=name,
            info=tagged.info,
            tags=tagged.tags,
            description=tagged.description,
        )

    def _on_list_devices(self, _session: Session, message: ListDevices, event: Received) -> None:
        self._context.send(event.peer, DeviceList(r=message.r, devices=self.devices.infos()))

    def _on_ask_stats(self, _session: Session, message: AskStats, event: Received) -> None:
        devices = {device.name: device.tally.counters() for device in self.devices}
        total = self._context.total.counters()
        self._context.send(event.peer, Stats(r=message.r, total=total, devices=devices, gauges=self.gauges()))

    def gauges(self) -> dict[str, int]:
        """Sizes of now."""
        return {
            "sessions": len(self.sessions.by_incarnation),
            "sessions_online": len(self.sessions.by_peer),
            "devices": len(self.devices.by_name),
            "devices_online": self.devices.online,
            "devices_quarantined": len(self.devices.quarantined),
            "dead_letters": len(self.results.dead_letters),
            "unended": self.results.unended,
            "unended_bytes": self.results.bytes,
            "results": len(self.results.by_id),
            "value_bytes": self.results.retention.value_bytes,
            "plans": len(self.plans),
            "values_wanted": len(self.values),
        }

    # ------------------------------------------------------------------------------------------ time and peers

    def _on_batch_ended(self, _event: BatchEnded) -> None:
        self._strangers.clear()
        self._acknowledgements.batch_ended()

    def _on_tick(self, _event: Tick) -> None:
        self._context.run_timers()

    def _on_ledger_unwritable(self, event: LedgerUnwritable) -> None:
        self._context.unwritable = event.reason
        self._context.log(ERROR, "ledger_full", reason=event.reason)

    def _on_ledger_writable(self, _event: LedgerWritable) -> None:
        self._context.unwritable = ""
        self._context.log(INFO, "ledger_recovered")

    def _on_peer_unreachable(self, event: PeerUnreachable) -> None:
        device = self.devices.by_peer.get(event.peer)
        if device is not None:
            self.devices.leave(device, "unreachable")
            return
        session = self.sessions.by_peer.get(event.peer)
        if session is not None:
            self.sessions.leave(session, goodbye=False)

    def _on_peer_busy(self, event: PeerBusy) -> None:
        now = self._context.now
        device = self.devices.by_peer.get(event.peer)
        if device is not None:
            device.mailbox.pause(now)
            return
        session = self.sessions.by_peer.get(event.peer)
        if session is not None:
            session.pause(now)

    # ------------------------------------------------------------------------------------------ blobs and logs

    def _on_blob_stored(self, event: BlobStored) -> None:
        self.plans.came(event.digest)
        self.values.blob_came(event.digest)

    def _on_blob_unavailable(self, event: BlobUnavailable) -> None:
        self.plans.unavailable(event.digest)
        self.values.blob_unavailable(event.digest)

    def _on_blob_moved(self, event: BlobMoved) -> None:
        device = self.devices.by_name.get(event.device)
        for tally in (self._context.total,) if device is None else (self._context.total, device.tally):
            tally.blob_bytes_in += event.bytes_in
            tally.blob_bytes_out += event.bytes_out
            tally.blobs_in += event.whole_in
            tally.blobs_out += event.whole_out

    def _on_subscriptions(self, event: Subscriptions) -> None:
        context = self._context
        context.notifications_followed = event.notifications
        if event.log_level == context.followed:
            return
        context.followed = event.log_level
        self.log_level = self._local_level  # which of the two is lower may have changed
        message = SetLogLevel(level=event.log_level)
        for peer in (*self.devices.by_peer, *self.sessions.by_peer):
            context.send(peer, message)

    def _publish_logs(self, device: str, message: LogRecords) -> None:
        if self._context.followed:
            self._context.out.append(PublishLogs(device=device, records=message.records))
