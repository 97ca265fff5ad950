"""A broker core on a workbench: peers are lists of messages, the clock is a number, the ledger is in memory."""

from __future__ import annotations

import hashlib
import random
from typing import TypeVar

from broker.config import BrokerConfig
from broker.core import BrokerCore
from broker.effects import (
    DropBlobs,
    Event,
    Malformed,
    PeerUnreachable,
    Persist,
    Persisted,
    PinBlobs,
    PublishLogs,
    PublishNotification,
    SendBlobs,
    StoreAgain,
    StoreBlobs,
    UnpinBlobs,
)
from broker.ledger.memory import MemoryLedger
from broker.protocol.effects import BatchEnded, Log, Received, Send, Tick
from broker.protocol.framing import decode, encode, size_of
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Announce,
    Argument,
    AskStats,
    AskStatus,
    Blobs,
    Command,
    Deliver,
    Failure,
    Frame,
    Invoke,
    Message,
    Notify,
    OpenSession,
    Put,
    Register,
    Registered,
    ResultFailed,
    ResultInfo,
    ResultReady,
    ResultStatus,
    Seen,
    SessionOpened,
    Stats,
    StatusReport,
    StorePlan,
    Submit,
    TagsChanged,
    Taken,
)

__all__ = ["Bench", "DevicePeer", "Peer", "SessionPeer", "VALUE", "WALL", "digest_of"]

M = TypeVar("M")

WALL = 1_700_000_000.0
"""Seconds since the Unix epoch when the bench's clock shows 0."""

VALUE = b"value"
INFO = ResultInfo(dtype="float32", shape=[2], nbytes=8)


def digest_of(content: bytes) -> bytes:
    """The name of a blob."""
    return hashlib.sha256(content).digest()


class Bench:
    """A core, its ledger and its blobs. `restart` puts another core over the same ledger and blobs, as after a kill.

    With ``holding``, what is to be persisted waits until `persist`.
    """

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self.config = config or BrokerConfig(log_level=10)
        self.random = random.Random(1)
        self.ledger = MemoryLedger(b"L" * 16)
        self.blobs: dict[bytes, bytes] = {}
        self.pins: dict[bytes, set[str]] = {}
        self.now = 0.0
        self.holding = False
        self.tries = 0
        self.refused_peers: set[bytes] = set()
        self.restart()

    def restart(self) -> None:
        """The broker is gone, with all that was not in the ledger, and another one starts."""
        self.held: list[Persist] = []
        self.logs: list[Log] = []
        self.published: list[object] = []
        self.heard: dict[bytes, list[tuple[Message, tuple[Frame, ...]]]] = {}
        self.pins.clear()
        self.core = BrokerCore(
            self.config,
            self.ledger.open(),
            blobs=self,
            random_bytes=self.random.randbytes,
            wall_offset=WALL,
            now=self.now,
        )
        self.feed(BatchEnded())

    def size(self, digest: bytes) -> int | None:
        """As a blob store."""
        content = self.blobs.get(digest)
        return None if content is None else len(content)

    # ------------------------------------------------------------------------------------------ driving

    def feed(self, event: Event, *, more: bool = False) -> None:
        """Hand over an event, and do what the core says."""
        unreachable: list[bytes] = []
        for instruction in self.core.handle(event, self.now, more=more):
            match instruction:
                case Send():
                    if instruction.peer in self.refused_peers:
                        unreachable.append(instruction.peer)
                        continue
                    header = encode(instruction.message)
                    message = decode(header)  # what travels can be read
                    self.core.sent(instruction.peer, len(header) + size_of(instruction.frames))
                    self.heard.setdefault(instruction.peer, []).append((message, instruction.frames))
                case Persist():
                    self.held.append(instruction)
                case Log():
                    self.logs.append(instruction)
                case StoreAgain():
                    self.tries += 1
                case StoreBlobs():
                    self.blobs.update(zip(instruction.digests, map(bytes, instruction.frames), strict=True))
                case SendBlobs():
                    message = Blobs(attached=instruction.attached, pull=instruction.pull, none=instruction.none)
                    frames = tuple(self.blobs[digest] for digest in instruction.attached)
                    self.heard.setdefault(instruction.peer, []).append((message, frames))
                case PinBlobs():
                    for digest in instruction.digests:
                        assert digest in self.blobs
                        self.pins.setdefault(digest, set()).add(instruction.name)
                case UnpinBlobs():
                    for digest in instruction.digests:
                        self.pins[digest].remove(instruction.name)
                case DropBlobs():
                    for digest in instruction.digests:
                        assert not self.pins.get(digest)
                        self.blobs.pop(digest, None)
                case PublishLogs() | PublishNotification():
                    self.published.append(instruction)
                case _:
                    raise AssertionError(instruction)
        for peer in unreachable:
            self.feed(PeerUnreachable(peer=peer))
        if not self.holding:
            self.persist()

    def persist(self) -> None:
        """All that waits for the ledger is in it."""
        held, self.held = self.held, []
        for persist in held:
            self.ledger.commit(persist.writes)
            self.feed(Persisted(ticket=persist.ticket))

    def batch(self) -> None:
        """Nothing more is waiting."""
        self.feed(BatchEnded())

    def pass_time(self, seconds: float) -> None:
        """The clock goes on, and every timer is served when it is due."""
        until = self.now + seconds
        for _ in range(100_000):
            timer = self.core.next_timer()
            if timer is None or timer > until:
                break
            self.now = max(self.now, timer)
            self.feed(Tick())
            self.batch()
        else:
            raise AssertionError("timers without end")
        self.now = until

    # ------------------------------------------------------------------------------------------ peers

    def peer(self) -> Peer:
        """Somebody who has connected and said nothing."""
        return Peer(self)

    def device(self, name: str = "device_1") -> DevicePeer:
        """A device that has registered."""
        device = DevicePeer(self, name)
        device.register()
        device.clear()
        return device

    def session(self, name: str = "") -> SessionPeer:
        """A session that is open, with a plan that the broker has."""
        session = SessionPeer(self, name)
        session.open()
        session.clear()
        return session

    def events(self, name: str) -> list[Log]:
        """What was logged under this name."""
        return [log for log in self.logs if log.event == name]


class Peer:
    """One connection at a time to the broker."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.id = b""
        self.frames: tuple[Frame, ...] = ()
        self.connect()

    def connect(self, *, half_open: bool = False) -> None:
        """A new connection. The broker finds out that the old one is gone when it sends something; ``half_open``:
        it doesn't.
        """
        if self.id and not half_open:
            self.bench.refused_peers.add(self.id)
        self.id = b"peer" + self.bench.random.randbytes(5)

    def say(self, message: Message, *frames: Frame) -> None:
        """Send one message; the batch goes on."""
        header = encode(message)
        size = len(header) + size_of(frames)
        self.bench.feed(Received(message=decode(header), frames=frames, peer=self.id, size=size))

    def tell(self, message: Message, *frames: Frame) -> None:
        """Send one message, which ends the batch."""
        self.say(message, *frames)
        self.bench.batch()

    def babble(self, reason: str = "nonsense") -> None:
        """Send bytes that are no message."""
        self.bench.feed(Malformed(peer=self.id, reason=reason, size=len(reason)))
        self.bench.batch()

    def clear(self) -> None:
        """Forget what was heard."""
        self.bench.heard.pop(self.id, None)

    @property
    def messages(self) -> list[Message]:
        """All that was heard and not taken, oldest first."""
        return [message for message, _ in self.bench.heard.get(self.id, [])]

    def all(self, kind: type[M]) -> list[M]:
        """What was heard of one kind."""
        return [message for message in self.messages if isinstance(message, kind)]

    def take(self, kind: type[M]) -> M:
        """The oldest message of a kind, removed; with its frames in `frames`."""
        heard = self.bench.heard.get(self.id, [])
        for place, (message, frames) in enumerate(heard):
            if isinstance(message, kind):
                del heard[place]
                self.frames = frames
                return message
        raise AssertionError(f"expected {kind.__name__}, heard {self.messages}")


class DevicePeer(Peer):
    """An agent."""

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__(bench)
        self.name = name
        self.store = bench.random.randbytes(16)
        self.token = b""
        self.ledger = b""
        self.epoch = 0
        self.taken = 0
        self.announced = 0
        self.delivered: list[Deliver] = []
        self.start()

    def start(self) -> None:
        """The agent starts anew."""
        self.boot = self.bench.random.randbytes(16)
        self.epoch = 0
        self.taken = 0
        self.announced = 0

    def register(self, **changed: object) -> None:
        """Introduce itself, and take in the answer if it is a welcome."""
        fields: dict[str, object] = {
            "version": PROTOCOL_VERSION,
            "device": self.name,
            "store": self.store,
            "boot": self.boot,
            "token": self.token,
            "epoch": self.epoch,
            "taken": self.taken,
            "runtimes": ["torch"],
            "first": self.announced + 1,
            "ledger": self.ledger,
        }
        self.tell(Register(**(fields | changed)))  # type: ignore[arg-type]
        self.welcomed()

    def welcomed(self) -> bool:
        """Take in the broker's answer, if it has come."""
        welcomes = self.all(Registered)
        if welcomes:
            self.token, self.ledger, self.epoch = welcomes[-1].token, welcomes[-1].ledger, welcomes[-1].epoch
            self.taken = welcomes[-1].first - 1
        return bool(welcomes)

    def catch_up(self) -> None:
        """Say that there is nothing more to be announced."""
        self.announce(TagsChanged(whole=True))

    def come_back(self, *, restarted: bool = False) -> None:
        """Connect anew, with or without a new start of the agent, and register."""
        self.connect()
        if restarted:
            self.start()
        self.register()

    def take_all(self, *, acknowledge: bool = True) -> list[Deliver]:
        """Take the commands that have come, in order."""
        taken = []
        for deliver in self.all(Deliver):
            self.take(Deliver)
            if deliver.n == self.taken + 1:
                self.taken = deliver.n
                taken.append(deliver)
        if acknowledge and taken:
            self.tell(Taken(n=self.taken))
        return taken

    def take_one(self) -> Deliver:
        """Take the only command that has come."""
        (deliver,) = self.take_all()
        return deliver

    def ready(self, deliver: Deliver, *values: Frame, inline: bool = True, outputs: int = 1) -> None:
        """Announce the values of a command."""
        command = deliver.command
        assert isinstance(command, Invoke | Put)
        infos = [] if inline else [INFO] * outputs
        event = ResultReady(id=command.id, digest=deliver.digest, inline=inline, infos=infos)
        self.announce(event, *(values or (VALUE,) * outputs if inline else ()))

    def failed(self, deliver: Deliver, code: str = "ExecutionFailed") -> None:
        """Announce that a command has failed."""
        assert isinstance(deliver.command, Invoke | Put)
        failure = Failure(code=code, message="it broke")
        self.announce(ResultFailed(id=deliver.command.id, digest=deliver.digest, failure=failure))

    def announce(self, event: object, *frames: Frame) -> None:
        """Announce an event."""
        self.announced += 1
        self.tell(Announce(n=self.announced, event=event), *frames)  # type: ignore[arg-type]


class SessionPeer(Peer):
    """A coordinator."""

    def __init__(self, bench: Bench, name: str = "") -> None:
        super().__init__(bench)
        self.name = name
        self.start()
        self.plan = digest_of(b"a manifest")
        self.seen = 0

    def start(self) -> None:
        """The coordinator starts anew."""
        self.incarnation = self.bench.random.randbytes(8)
        self.n = 0
        self.counter = 0
        self.seen = 0

    def open(self, **changed: object) -> None:
        """Introduce itself, and have the plan stored if it is new."""
        fields: dict[str, object] = {
            "version": PROTOCOL_VERSION,
            "incarnation": self.incarnation,
            "session": self.name,
            "seen": self.seen,
        }
        self.tell(OpenSession(**(fields | changed)))  # type: ignore[arg-type]
        if self.all(SessionOpened) and not self.n:
            self.submit(StorePlan(plan=self.plan, parts=[], attached=[self.plan]), b"a manifest", devices=())

    def id_of(self, outputs: int = 1) -> bytes:
        """A new result id."""
        first = self.incarnation + (self.counter + 1).to_bytes(8, "big")
        self.counter += outputs
        return first

    def submit(self, command: Command, *frames: Frame, devices: tuple[str, ...] = ("device_1",)) -> int:
        """Send a command, and end the batch; its number."""
        self.n += 1
        self.tell(Submit(n=self.n, devices=list(devices), command=command), *frames)
        return self.n

    def invoke(
        self,
        *args: Argument,
        device: str = "device_1",
        outputs: int = 1,
        deadline_ms: int = 0,
    ) -> bytes:
        """Invoke the plan on one device; the id of the result."""
        first = self.id_of(outputs)
        command = Invoke(id=first, plan=self.plan, args=list(args), outputs=outputs, deadline_ms=deadline_ms)
        self.submit(command, devices=(device,))
        return first

    def notified(self) -> list[Notify]:
        """Take the notifications that have come, in order, and say so."""
        taken = []
        for notify in self.all(Notify):
            self.take(Notify)
            if notify.n == self.seen + 1:
                self.seen = notify.n
                taken.append(notify)
        if taken:
            self.tell(Seen(n=self.seen))
        return taken

    def status(self, result: bytes) -> ResultStatus:
        """Ask what became of a result."""
        self.tell(AskStatus(r=1, ids=[result]))
        return self.take(StatusReport).entries[0].status

    def stats(self) -> Stats:
        """Ask for the counters."""
        self.tell(AskStats(r=1))
        return self.take(Stats)

    def accepted(self) -> int:
        """Up to which number the broker has accepted."""
        return max((accepted.n for accepted in self.all(Accepted)), default=0)
