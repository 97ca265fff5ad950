"""The device registry: who is known, who is there, and how a device comes and goes.

A registration is a connection and a start of the agent (``boot``). Each hands the device a token to present next time:
``issued``. Until the device has shown that it has it, by any word after `Registered`, the one before it
(``confirmed``) is good as well, since the answer may have been lost; from then on who presents an old one is a clone
or a restored backup. The same start of the agent needs no token: a process can't be a copy of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from broker.context import DEBUG, INFO, WARNING, Context, Tally
from broker.ledger.interface import ChangeTags, DropDevice, RecordDevice
from broker.mailboxes import Mailbox
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    DeviceInfo,
    Fetch,
    HeartbeatSeen,
    RefusalCode,
    Refused,
    Register,
    Registered,
    TagsChanged,
)
from broker.protocol.streams import Inbox
from broker.records import Record
from broker.tags import TagIndex

if TYPE_CHECKING:
    from broker.values import Want

__all__ = ["Device", "Devices", "refusal_of_version"]

TOKEN_BYTES = 16
_CHALLENGE_SECONDS = 1.0
_QUARANTINED = 1000


def refusal_of_version(version: tuple[int, int]) -> Refused | None:
    """What to answer a peer of protocol ``version``, unless it is welcome."""
    if version[0] == PROTOCOL_VERSION[0]:
        return None
    ours, theirs = ".".join(map(str, PROTOCOL_VERSION)), ".".join(map(str, version))
    return Refused(
        version=PROTOCOL_VERSION,
        code=RefusalCode.VERSION,
        reason=f"expected protocol {PROTOCOL_VERSION[0]}.x, got {theirs}; this broker speaks {ours}",
    )


class Device:
    """A device, there or not. Times in seconds on the core's clock."""

    __slots__ = (
        "boot",
        "caught_up",
        "challenge",
        "challenged_at",
        "challenger",
        "confirmed",
        "confirming",
        "first",
        "heard",
        "inbox",
        "interval",
        "issued",
        "kept",
        "labels",
        "last_seen",
        "mailbox",
        "name",
        "ops",
        "peer",
        "presented",
        "recorded",
        "registrations",
        "retiring",
        "running",
        "runtimes",
        "store",
        "tally",
        "version",
        "wants",
        "watched",
    )

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self.tally = Tally()
        self.mailbox = Mailbox(context, name, self.tally)
        self.peer: bytes | None = None
        self.heard = 0.0
        self.last_seen = 0  # ms since the Unix epoch; while it is there, `heard` is newer
        self.watched = False  # whether a timer looks after its presence
        self.store = b""
        self.boot = b""
        self.presented = b""
        self.confirmed = b""
        self.issued = b""
        self.confirming = False  # whether its next word confirms the token
        self.version: tuple[int, int] = PROTOCOL_VERSION
        self.runtimes: list[str] = []
        self.labels: dict[str, str] = {}
        self.ops = 0
        self.inbox = Inbox()
        self.first = 0  # the number of the first announcement of this registration
        self.recorded = 0  # announcements of this start of the agent that are in the ledger
        self.caught_up = False  # whether it has announced to this broker all that it had
        self.interval = 0.0  # between its heartbeats, as it was told last
        self.registrations = 0
        self.retiring = False  # whether a timer looks whether it is to be forgotten
        self.running = 0
        self.kept: dict[bytes, Record] = {}  # done, with the values on the device
        self.wants: dict[bytes, Want] = {}  # values that it was asked for, or will be when it is there
        self.challenger: tuple[bytes, Register] | None = None
        self.challenge = 0
        self.challenged_at = 0.0


class Devices:
    """All devices, by name, and the tag index.

    The core sets `changed_store` (its old values are gone), `worn_out` (a command was delivered too often), `appeared`
    (for the first time), `arrived` and `caught_up`.
    """

    def __init__(self, context: Context, *, random_bytes: Callable[[int], bytes], epoch: int, ledger: bytes) -> None:
        self._context = context
        self._random_bytes = random_bytes
        self._epoch = epoch
        self._ledger = ledger
        self.by_name: dict[str, Device] = {}
        self.by_peer: dict[bytes, Device] = {}
        self._challenged: dict[bytes, Device] = {}  # by the peer that would be this device, too
        self.quarantined: dict[tuple[str, bytes], None] = {}
        """Which starts of which agents presented a stale token: a copied card, or an old backup."""
        self.tags = TagIndex(context.config.tags_per_device)
        self.online = 0
        self.blobs_endpoint = ""
        self.changed_store: Callable[[Device], None]
        self.worn_out: Callable[[Record], None]
        self.appeared: Callable[[Device], None]
        self.arrived: Callable[[Device], None]
        self.caught_up: Callable[[Device], None]

    def __iter__(self) -> Iterator[Device]:
        return iter(self.by_name.values())

    # ------------------------------------------------------------------------------------------ coming

    def register(self, peer: bytes, message: Register) -> None:
        """A device introduces itself."""
        context = self._context
        refusal = refusal_of_version(message.version)
        if refusal is not None:
            self._refuse(peer, message, refusal.code, refusal.reason)
            return
        device = self.by_name.get(message.device)
        if device is None:
            if len(self.by_name) >= context.config.devices:
                reason = f"this broker knows {len(self.by_name)} devices, and may know no more"
                self._refuse(peer, message, RefusalCode.FULL, reason)
                return
            device = self.by_name[message.device] = Device(context, message.device)
        elif device.peer == peer and device.boot == message.boot and device.presented == message.token:
            # Asked again before our answer came: else it would present what we gave. What it may have announced
            # meanwhile goes on.
            if device.mailbox.peer is not None:  # else the answer waits for the ledger
                self._answer(device)
            return
        elif device.boot == message.boot and message.first < device.first:
            context.log(DEBUG, "registration_late", device=device.name, first=message.first, known=device.first)
            return
        elif device.peer not in (None, peer) and device.boot != message.boot:
            self._challenge(device, peer, message)
            return
        self._admit(device, peer, message)

    def _refuse(self, peer: bytes, message: Register, code: str, reason: str) -> None:
        if code == RefusalCode.STALE_TOKEN:
            self._quarantine(message, reason)
        else:
            self._context.log(WARNING, "device_refused", device=message.device, code=str(code), reason=reason)
        self._context.send(peer, Refused(version=PROTOCOL_VERSION, code=code, reason=reason))

    def _quarantine(self, message: Register, reason: str) -> None:
        """An operator hears of a copy once, however often it comes."""
        key = (message.device, message.boot)
        if key not in self.quarantined:
            self.quarantined[key] = None
            if len(self.quarantined) > _QUARANTINED:
                del self.quarantined[next(iter(self.quarantined))]
            store = message.store.hex()
            self._context.log(WARNING, "device_quarantined", device=message.device, store=store, reason=reason)

    def _challenge(self, device: Device, peer: bytes, message: Register) -> None:
        """Two agents of one id, or one that died and came back before we noticed? Ask the first for a sign of life."""
        context = self._context
        assert device.peer is not None
        if device.challenger is None or device.challenger[1].boot != message.boot:
            device.challenged_at = context.now
        if device.challenger is not None:
            del self._challenged[device.challenger[0]]
        device.challenger = (peer, message)
        self._challenged[peer] = device
        device.challenge += 1
        context.send(device.peer, Fetch(r=device.challenge, ids=[]))

    def alive(self, device: Device) -> None:
        """The device that was challenged has answered, or spoken late enough: whoever took its name is refused."""
        challenger = self._end_challenge(device)
        if challenger is not None:
            peer, message = challenger
            reason = f"another agent of device {device.name} is connected"
            self._refuse(peer, message, RefusalCode.DUPLICATE_DEVICE, reason)

    def _end_challenge(self, device: Device) -> tuple[bytes, Register] | None:
        challenger, device.challenger = device.challenger, None
        if challenger is not None:
            del self._challenged[challenger[0]]
        return challenger

    def withdraw(self, peer: bytes, name: str = "") -> None:
        """Whoever is on this connection introduces itself as ``name``: it challenges nobody else any more."""
        device = self._challenged.get(peer)
        if device is not None and device.name != name:
            self._end_challenge(device)

    def heard(self, device: Device, now: float) -> None:
        """The device has said something."""
        device.heard = now
        if device.confirming:
            device.confirming = False
            device.confirmed = device.issued
            self._record(device)
        if device.challenger is not None and now - device.challenged_at >= _CHALLENGE_SECONDS:
            self.alive(device)

    def _admit(self, device: Device, peer: bytes, message: Register) -> None:
        context = self._context
        known_token = message.token in (device.issued, device.confirmed)
        same_agent = device.boot == message.boot
        new_store = device.store != b"" and device.store != message.store
        first_time = device.store == b""
        if not (first_time or same_agent or known_token or (new_store and not message.token)):
            reason = f"device {device.name} presented an old registration token: a copy or a backup of its store?"
            self._refuse(peer, message, RefusalCode.STALE_TOKEN, reason)
            return
        if device.peer is not None:
            self._detach(device)
        if not device.issued or message.token == device.issued or new_store:
            device.confirmed = message.token
            device.issued = self._random_bytes(TOKEN_BYTES)
        device.confirming = False  # what it says before it has our answer confirms nothing
        device.presented = message.token
        device.store = message.store
        device.boot = message.boot
        device.version = message.version
        device.runtimes = message.runtimes
        device.labels = message.labels
        device.ops = message.ops
        device.first = max(message.first, 1)
        device.inbox = Inbox(device.first - 1)
        device.recorded = device.first - 1
        device.registrations += 1
        device.running = 0
        device.peer = peer
        device.heard = context.now
        device.last_seen = context.wall_ms()
        self.by_peer[peer] = device
        self.online += 1
        if new_store:
            self._context.log(WARNING, "store_changed", device=device.name)
            self.tags.forget(device.name)
            context.writes.append(ChangeTags(device=device.name, entries=[], gone=[], whole=True))
            self.changed_store(device)
        if first_time:
            if message.token:
                context.other_ledger()
            self.appeared(device)
        mailbox = device.mailbox
        ours = (message.ledger, message.epoch) == (self._ledger, self._epoch)
        if same_agent and ours:
            mailbox.taken(message.taken, context.now, device.boot)
        else:
            # What an agent that is new here has taken of us was of a mailbox that was forgotten with its device.
            for record in mailbox.restart(device.boot, beyond=message.taken if ours else 0):
                self.worn_out(record)
        self._record(device)
        device.interval = self._interval()
        self._watch(device)
        context.log(
            INFO, "device_joined", device=device.name, new=first_time, same_agent=same_agent, queued=mailbox.commands
        )
        # A token that the ledger does not have would be a stale one to the next broker.
        context.after_commit(self._welcome, (device, device.registrations))

    def _welcome(self, registration: tuple[Device, int]) -> None:
        device, number = registration
        if device.registrations != number or device.peer is None:
            return
        device.confirming = True
        self._answer(device)
        device.mailbox.connect(device.peer)
        self.arrived(device)

    def _answer(self, device: Device) -> None:
        context = self._context
        assert device.peer is not None
        device.interval = self._interval()
        context.send(
            device.peer,
            Registered(
                version=PROTOCOL_VERSION,
                ledger=self._ledger,
                epoch=self._epoch,
                token=device.issued,
                first=device.mailbox.first,
                heartbeat_ms=round(device.interval * 1000),
                max_message=context.config.max_message,
                blobs=self.blobs_endpoint,
                log_level=context.followed,
            ),
        )

    def _record(self, device: Device) -> None:
        self._context.writes.append(
            RecordDevice(
                device=device.name,
                store=device.store,
                boot=device.boot,
                confirmed=device.confirmed,
                issued=device.issued,
                version=device.version,
                runtimes=device.runtimes,
                labels=device.labels,
                last_seen=self.last_seen(device),
                ops=device.ops,
            )
        )

    # ------------------------------------------------------------------------------------------ staying

    def heartbeat(self, device: Device, running: int) -> None:
        """The device says that it lives, and how much it does."""
        device.running = running
        device.interval = self._interval()
        assert device.peer is not None
        self._context.send(device.peer, HeartbeatSeen(heartbeat_ms=round(device.interval * 1000)))

    def _interval(self) -> float:
        """How long between two heartbeats of one device, in seconds: the more devices, the longer."""
        config = self._context.config
        return max(config.heartbeat_ms / 1000, self.online / config.heartbeats_per_second)

    def change_tags(self, device: Device, event: TagsChanged) -> None:
        """The device says what it has."""
        dropped = self.tags.change(device.name, event.entries, event.gone, whole=event.whole)
        if event.whole:
            self.caught_up(device)
        self._context.writes.append(
            ChangeTags(device=device.name, entries=event.entries, gone=event.gone, whole=event.whole)
        )
        if dropped:
            limit = self._context.config.tags_per_device
            self._context.log(WARNING, "tags_dropped", device=device.name, dropped=dropped, limit=limit)

    def last_seen(self, device: Device) -> int:
        """When it last said something, in ms since the Unix epoch."""
        return device.last_seen if device.peer is None else self._context.wall_ms(device.heard)

    def infos(self) -> list[DeviceInfo]:
        """All devices, by name."""
        return [
            DeviceInfo(
                device=device.name,
                online=device.peer is not None,
                last_seen=self.last_seen(device),
                version=device.version,
                runtimes=device.runtimes,
                labels=device.labels,
                queued=device.mailbox.queued,
                running=device.running,
                tensors=self.tags.count(device.name),
                ops=device.ops,
            )
            for device in sorted(self, key=lambda device: device.name)
        ]

    # ------------------------------------------------------------------------------------------ going

    def _silent_at(self, device: Device) -> float:
        return device.heard + self._context.config.silent_heartbeats * device.interval

    def _watch(self, device: Device) -> None:
        if not device.watched:
            device.watched = True
            self._context.at(self._silent_at(device), lambda now: self._look(device, now))

    def _look(self, device: Device, now: float) -> None:
        device.watched = False
        if device.peer is None:
            return
        if now >= self._silent_at(device):  # the same sum as in `_watch`: a difference may round to less
            self.leave(device, "silent")
        else:
            self._watch(device)

    def leave(self, device: Device, reason: str) -> None:
        """The device is away: it said so, was silent too long, or its connection is gone."""
        context = self._context
        device.last_seen = self.last_seen(device)
        self._detach(device)
        if reason == "goodbye":
            context.log(INFO, "device_left", device=device.name)
        else:
            context.log(WARNING, "device_lost", device=device.name, reason=reason)
        self._record(device)
        challenger = self._end_challenge(device)
        if challenger is not None:
            self._admit(device, *challenger)
            return
        self._retire(device)

    def _detach(self, device: Device) -> None:
        assert device.peer is not None
        del self.by_peer[device.peer]
        device.peer = None
        device.running = 0
        device.confirming = False
        device.mailbox.disconnect()
        self.online -= 1

    def _retire(self, device: Device) -> None:
        if not device.retiring:
            device.retiring = True
            self._context.at(
                device.heard + self._context.config.device_retention, lambda now: self._forget(device, now)
            )

    def _forget(self, device: Device, now: float) -> None:
        """Long after it was heard last: unless something still waits for it, a device that is away is known no more."""
        device.retiring = False
        if device.peer is not None:
            return
        if now - device.heard < self._context.config.device_retention or device.mailbox.commands:
            device.heard = max(device.heard, now - self._context.config.device_retention + 24 * 3600)
            self._retire(device)
            return
        del self.by_name[device.name]
        self.tags.forget(device.name)
        self.changed_store(device)
        device.mailbox.abandon()
        self._context.writes.append(DropDevice(device=device.name))
        self._context.log(INFO, "device_forgotten", device=device.name)

    # ------------------------------------------------------------------------------------------ after a restart

    def restore(self, write: RecordDevice) -> Device:
        """Take up a device from the ledger: it is away."""
        device = self.by_name[write.device] = Device(self._context, write.device)
        device.store = write.store
        device.boot = write.boot
        device.confirmed = write.confirmed
        device.issued = write.issued
        device.version = write.version
        device.runtimes = write.runtimes
        device.labels = write.labels
        device.ops = write.ops
        device.last_seen = write.last_seen
        device.heard = self._context.now
        self._retire(device)
        return device
