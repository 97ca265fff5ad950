"""A device's mailbox: the commands that it has not ended, and the numbered stream that brings them.

A command waits in the mailbox, is handed to the stream when the device is there and has room, and leaves at its end.
What the device has not acknowledged goes again; what an earlier start of its agent took goes again, too, in the old
order. *Errands* (`Release`, `Cancel`) have no end to wait for: they are in the stream only.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from broker.context import DEBUG, Alarm, Context, Tally
from broker.ledger.interface import DropErrand, MarkDelivered, RecordErrand
from broker.protocol.effects import Log, Send
from broker.protocol.messages import Cancel, Deliver, Release, ResultStatus
from broker.protocol.streams import Outbox
from broker.records import Record, cancel_of
from broker.transitions import TRANSITIONS, UNENDED, Input

__all__ = ["Errand", "Mailbox"]

_TAKE = Input.TAKE
_GHOSTS = 1000
_MOST_TAKEN = 1 << 62  # no device has taken so many; from there on numbers still fit into a message


class Errand:
    """A command without a result of its own."""

    __slots__ = ("command", "digest", "relayed", "seq", "size")

    def __init__(self, seq: int, command: Release | Cancel, digest: bytes) -> None:
        self.seq = seq
        self.command = command
        self.digest = digest
        self.relayed = False
        self.size = 0


_Item: TypeAlias = Record | Errand


class Mailbox:
    """See the module. ``peer`` is the device's routing id, None while it is away; ``tally`` the device's counters."""

    __slots__ = (
        "_alarm",
        "_context",
        "_flying",
        "_ghosts",
        "_hastened",
        "_held",
        "_high",
        "_outbox",
        "_undecided",
        "_waiting",
        "commands",
        "device",
        "errands",
        "peer",
        "size",
        "tally",
    )

    def __init__(self, context: Context, device: str, tally: Tally) -> None:
        self._context = context
        self.device = device
        self.tally = tally
        self.peer: bytes | None = None
        self.commands = 0
        """Unended commands."""
        self.size = 0
        """... and the bytes of their payload."""
        self.errands = 0
        """Errands that the device has not taken."""
        self._waiting: deque[Record] = deque()  # not numbered yet; those that have ended meanwhile are skipped
        self._ghosts = 0  # how many of _waiting have ended
        self._undecided: set[int] = set()  # what waited here and has ended, which is not in the ledger yet: its seq
        self._hastened: set[Record] = set()  # those of _waiting that must not wait for room
        self._held: dict[bytes, Record] = {}  # numbered and unended, in order
        self._flying = 0  # bytes of payload that are numbered and not acknowledged
        self._outbox: Outbox[_Item] = self._new_outbox(1)
        self._high = 0  # the largest number ever sent
        self._alarm = Alarm(context, self)

    def _new_outbox(self, first: int) -> Outbox[_Item]:
        config = self._context.config
        return Outbox(window=config.window, patience=config.patience, first=first)

    @property
    def first(self) -> int:
        """The number of the next `Deliver`."""
        return self._outbox.acknowledged + 1

    @property
    def queued(self) -> int:
        """How many commands the device has not acknowledged."""
        held = sum(1 for record in self._held.values() if record.status is ResultStatus.QUEUED)
        return len(self._waiting) - self._ghosts + held

    # ------------------------------------------------------------------------------------------ in and out

    def put(self, record: Record) -> None:
        """Take in a command."""
        self.commands += 1
        self.size += record.size
        self._waiting.append(record)
        if self.peer is not None:
            self._context.due[self] = None

    def hasten(self, record: Record) -> None:
        """A command waits for the value of ``record``. If it is still in the mailbox, it goes to the device, with all
        that is before it, although the device has as many commands as it may: these may wait for that very value.
        """
        if record.unended and record.id not in self._held:
            self._hastened.add(record)
            if self.peer is not None:
                self._context.due[self] = None

    def run(self, command: Release | Cancel, digest: bytes, seq: int) -> None:
        """Send an errand, as soon as the device is there and the ledger has why: in the stream itself, not behind the
        mailbox.
        """
        self._context.writes.append(RecordErrand(seq=seq, device=self.device, digest=digest, command=command))
        self.errands += 1
        self._context.after_commit(self._send, Errand(seq, command, digest))

    def take_up(self, command: Release | Cancel, digest: bytes, seq: int) -> None:
        """As `run`, for an errand that is in the ledger."""
        self.errands += 1
        self._send(Errand(seq, command, digest))

    def _send(self, errand: Errand) -> None:
        self._outbox.push(errand)
        if self.peer is not None:
            self._context.due[self] = None

    def ended(self, record: Record, *, by_device: bool) -> bool:
        """A command has ended. Whether the device may be at it, or come to it."""
        self.commands -= 1
        self.size -= record.size
        if self._held.pop(record.id, None) is None:
            if not by_device:
                # Would this broker die now, the next one delivered it: what is behind it may not be on the device then.
                self._undecided.add(record.seq)
                self._context.after_commit(self._decided, record)
            self._ghosts += 1
            self._hastened.discard(record)
            if self._ghosts > _GHOSTS and 2 * self._ghosts > len(self._waiting):
                self._waiting = deque(waiting for waiting in self._waiting if waiting.unended)
                self._ghosts = 0
            return False
        if self._waiting and self.peer is not None:
            self._context.due[self] = None
        return record.relayed

    def _decided(self, record: Record) -> None:
        self._undecided.discard(record.seq)
        if self.peer is not None:
            self._context.due[self] = None

    # ------------------------------------------------------------------------------------------ the stream

    def pump(self, now: float) -> None:
        """Send what may be sent now: new commands within the windows, and, when patience has run out, old ones."""
        if self.peer is None:
            return
        config = self._context.config
        outbox, waiting = self._outbox, self._waiting
        held, hastened = self._held, self._hastened
        undecided = min(self._undecided) if self._undecided else None
        while (
            waiting
            and (undecided is None or waiting[0].seq < undecided)
            and (len(held) < config.device_commands or hastened)
            and (self._flying < config.window_bytes or not self._flying)
        ):
            record = waiting.popleft()
            if hastened:
                hastened.discard(record)
            if record.status not in UNENDED:
                self._ghosts -= 1
                continue
            held[record.id] = record
            self._flying += record.size
            outbox.push(record)
        for n, item in outbox.due(now):
            self._deliver(n, item, now)
        self._alarm.set(self._outbox.next_due(), now)

    def _deliver(self, n: int, item: _Item, now: float) -> None:
        context = self._context
        if n > self._high:
            self._high = n
        if item.relayed:
            context.total.resent += 1
            self.tally.resent += 1
        else:
            item.relayed = True
            context.total.commands += 1
            self.tally.commands += 1
        assert self.peer is not None
        if type(item) is Errand:
            message = Deliver(n=n, digest=item.digest, command=item.command)
            context.out.append(Send(message=message, peer=self.peer))
            return
        assert type(item) is Record
        if item.status not in UNENDED:
            # Its number must be filled; what would run for nothing is not sent again.
            ended = cancel_of(item.id, item.event)
            context.out.append(Send(message=Deliver(n=n, digest=item.digest, command=ended), peer=self.peer))
            return
        message = Deliver(n=n, digest=item.digest, command=item.with_time_left(now))
        context.out.append(Send(message=message, frames=item.frames, peer=self.peer))
        if context.level <= DEBUG:
            context.out.append(
                Log(
                    level=DEBUG,
                    event="invocation_relayed",
                    fields={"result": item.id.hex(), "device": self.device, "n": n},
                )
            )

    def taken(self, n: int, now: float, boot: bytes) -> None:
        """The device's agent of that ``boot`` has taken all up to ``n``."""
        context = self._context
        delivered: list[bytes] = []
        for item in self._outbox.acknowledge(n, now):
            if type(item) is Errand:
                self.errands -= 1
                context.writes.append(DropErrand(seq=item.seq))
                continue
            assert type(item) is Record
            self._flying -= item.size
            after = TRANSITIONS[item.status].get(_TAKE)
            if after is None:
                continue  # it has ended meanwhile
            item.status = after
            if item.delivered_to != boot:
                item.delivered_to = boot
                item.deliveries += 1
                delivered.append(item.id)
            if context.level <= DEBUG:
                fields = {"result": item.id.hex(), "device": self.device}
                context.out.append(Log(level=DEBUG, event="invocation_taken", fields=fields))
        if delivered:
            context.writes.append(MarkDelivered(ids=delivered))
        context.due[self] = None

    def pause(self, now: float) -> None:
        """The device reads too slowly."""
        self._outbox.hold(now + self._context.config.busy_peer_pause)
        self._alarm.set(self._outbox.next_due(), now)

    def connect(self, peer: bytes) -> None:
        """The same agent is there, on a new connection: what it has not acknowledged goes again."""
        self.peer = peer
        self._outbox.rewind()
        self._context.due[self] = None

    def disconnect(self) -> None:
        """The device is away."""
        self.peer = None

    def abandon(self) -> None:
        """The device is forgotten: its errands come to nothing."""
        for _, item in self._outbox.unacknowledged():
            if type(item) is Errand:
                self._context.writes.append(DropErrand(seq=item.seq))

    def restart(self, boot: bytes, *, beyond: int = 0) -> list[Record]:
        """Another start of the agent, or of the broker: what has not ended goes again, in its order, under numbers
        above ``beyond``. Those that were delivered too often to starts before that of ``boot``.
        """
        limit = self._context.config.max_deliveries
        kept = [item for _, item in self._outbox.unacknowledged() if type(item) is Errand]
        self._outbox = self._new_outbox(max(self._outbox.last, min(beyond, _MOST_TAKEN)) + 1)
        self._flying = 0
        for errand in kept:
            self._outbox.push(errand)
        worn_out: list[Record] = []
        again: list[Record] = []
        for record in self._held.values():
            record.status = TRANSITIONS[record.status][Input.REDELIVER]
            (again if record.deliveries < limit or record.delivered_to == boot else worn_out).append(record)
        waiting = self._waiting
        tired = [each for each in waiting if each.deliveries >= limit and each.delivered_to != boot and each.unended]
        if tired:  # known from the ledger
            worn_out += tired
            self._waiting = deque(each for each in waiting if each not in tired)
            self._hastened.difference_update(tired)
        self._held = {record.id: record for record in worn_out}  # which are not sent again, and end soon
        self._waiting.extendleft(reversed(again))
        return worn_out
