"""Coordinators, devices and a broker in a simulated world: the real cores, and drivers that execute their instructions
under the virtual clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from broker.protocol.bundles import BUNDLED_BYTES, Bundler, Unpacked, bundled, reads_bundles
from broker.protocol.effects import BatchEnded, LinkDown, LinkUp, Log, Received, Send, Tick
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import encode
from broker.protocol.messages import Frame, Message, OpenSession, Register
from tests.simulation.network import Connection, Network
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["NEWS", "READS_BUNDLES", "READS_NO_BUNDLES", "SAYS_NEWS", "Client", "Core", "Node", "seeded"]

READS_NO_BUNDLES = (1, 0)
READS_BUNDLES = (1, 1)
SAYS_NEWS = (1, 2)
"""The versions of the protocol that programs speak here. The last one begins each bundle with `NEWS`."""

NEWS = msgspec.msgpack.encode([120, "what is new in 1.2"])
"""A message of a later minor version, which means nothing to anybody here."""

_BATCH_ENDED = BatchEnded()
_INTRODUCTIONS = (OpenSession, Register)

LONGEST_UPTIME = 1e8
"""No machine's monotonic clock says more than this when it comes into the world: some three years, in seconds."""


class Core(Protocol):
    """What all three cores are."""

    def handle(self, event: Any, now: float) -> list[Any]:
        """What to do about an event."""
        ...

    def next_timer(self) -> float | None:
        """When to hand in a `Tick`."""
        ...


class Node:
    """A core with its driver: batches what arrives together, ticks when it is time, executes instructions in order.

    What it sends at one moment may leave in bundles, at the end of the batch at the latest: see `_flush`.

    Each machine has a clock of its own, which says what it likes when the machine boots and goes at the same pace as
    all others.
    """

    versions: tuple[tuple[int, int], ...] = (*(READS_NO_BUNDLES,) * 2, *(READS_BUNDLES,) * 9, SAYS_NEWS)
    """One of these is the version of a program that starts."""

    def __init__(self, world: World, name: str, promises: Promises) -> None:
        self.world = world
        self.name = name
        self._promises = promises
        self.version = READS_BUNDLES
        """The version of the protocol that the program speaks, since its start: it may have been replaced by then."""
        self.core: Core | None = None
        self._life = 0  # counts up when the node ends: what was planned for an earlier life does not happen
        self._batch = False
        self._tick_at = float("inf")
        self._execute: dict[type, Callable[[Any], None]] = {Log: self._log}
        self._clock_zero = 0.0
        self._clock_last = float("-inf")
        self.boot()

    def boot(self) -> None:
        """The machine starts: its clock has forgotten what it said before."""
        self._clock_zero = self.world.now - self.world.random.choice((0.0, 100.0, LONGEST_UPTIME)) * (
            self.world.random.random()
        )
        self._clock_last = float("-inf")

    def clock(self) -> float:
        """What this machine's monotonic clock says."""
        now = self.world.now - self._clock_zero
        if now > self._clock_last:
            self._clock_last = now
        return self._clock_last

    def start(self, core: Core) -> None:
        """The program starts."""
        self._life += 1
        self._batch = False
        self._tick_at = float("inf")
        self.version = self.world.random.choice(self.versions)
        self.core = core

    def crash(self) -> None:
        """The program is gone, with all that it only remembered."""
        self._life += 1
        self.core = None

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen after ``delay`` seconds, unless the program has ended by then."""
        life = self._life
        self.world.after(delay, lambda: action() if self._life == life else None)

    def feed(self, event: object) -> None:
        """Hand an event to the core, and do what it says."""
        core = self.core
        if core is not None and self._do(core.handle(event, self.clock())):
            self._begin_batch()

    def _do(self, instructions: list[Any]) -> bool:
        """Do what the core says; whether the program still runs then."""
        life = self._life
        execute = self._execute
        for instruction in instructions:
            execute[type(instruction)](instruction)
            if self._life != life:
                return False
        return True

    def _begin_batch(self) -> None:
        """See to the end of the batch."""
        if not self._batch:
            self._batch = True
            self.later(0.0005 if self.world.random.random() < 0.3 else 0.0, self._end_batch)

    def _end_batch(self) -> None:
        core = self.core
        self._batch = False
        if core is None or not self._do(core.handle(_BATCH_ENDED, self.clock())):
            return
        self._flush()
        timer = core.next_timer()
        if timer is not None and timer < self._tick_at:
            self._tick_at = timer
            self.later(timer + self._clock_zero - self.world.now, lambda: self._tick(timer))

    def _tick(self, timer: float) -> None:
        if timer == self._tick_at:
            self._clock_last = max(self._clock_last, timer)  # the two clocks' difference is rounded
            self._batch = True  # of its own: what falls due must be flushed before the next one is set
            life = self._life
            self.feed(Tick())
            if self._life == life:
                self._tick_at = float("inf")
                self._end_batch()

    def _flush(self) -> None:
        """Let what was gathered for peers go."""

    def _check_bundle(self, parts: Sequence[Unpacked]) -> None:
        if len(parts) > 1 and not reads_bundles(self.version):
            self._promises.broken("who reads no bundles gets none", f"{self.name} got one of {len(parts)}")

    def _log(self, log: Log) -> None:
        self.world.tell(self.name, "   ", log)


class Client(Node):
    """A node with one connection to the broker, which it makes again whenever it is gone."""

    def __init__(self, world: World, name: str, network: Network, broker: BrokerEnd, promises: Promises) -> None:
        super().__init__(world, name, promises)
        self.network = network
        self._broker = broker
        self.connection: Connection | None = None
        self.out = Bundler(self._transmit)
        """What goes to the broker, on this connection."""
        self._execute[Send] = self._send

    def connect(self, within: float = 0.2) -> None:
        """Make a connection, after a while."""
        self.later(self.world.random.random() * within, self._connected)

    def _connected(self) -> None:
        if not self._broker.reachable:
            self.later(0.5 + self.world.random.random(), self._connected)
            return
        connection = Connection(self.network, self.name, to_client=self._receive, to_broker=self._broker.receive)
        self._present(connection)
        self.connection = connection
        self.out.bundling = False
        self._broker.accept(connection)
        self.feed(LinkUp())

    def _present(self, connection: Connection) -> None:
        """Write upon a new connection what the checker needs to know of it."""

    def _receive(self, connection: Connection, parts: Sequence[Unpacked]) -> None:
        core, now = self.core, self.clock()
        if core is None or self.connection is not connection:
            return
        self._check_bundle(parts)
        for message, frames, size in parts:
            if isinstance(message, ProtocolError):
                continue
            self._hear(message)
            alive = self._do(core.handle(Received(message=message, frames=frames, size=size), now))
            if not alive or self.connection is not connection:
                return
        self._begin_batch()

    def _hear(self, message: Message) -> None:
        """Note what the driver needs to know of a message."""

    def disconnect(self, within: float = 0.2) -> None:
        """The connection breaks, and this end sees it; another one is made ``within`` seconds."""
        if self.connection is not None:
            self._hang_up(self.connection)
            self.world.tell(self.name, "   connection lost")
            self.feed(LinkDown())
            self.connect(within)

    def half_open(self) -> None:
        """The connection breaks, and this end does not see it."""
        if self.connection is not None:
            self.connection.cut()
            self.world.tell(self.name, "   connection half-open")

    def crash(self) -> None:
        """As `Node.crash`; the connection breaks, too."""
        super().crash()
        if self.connection is not None:
            self._hang_up(self.connection)

    def _hang_up(self, connection: Connection) -> None:
        connection.cut()
        self.connection = None
        self.out.clear()

    def _send(self, send: Send) -> None:
        connection, message = self.connection, send.message
        if connection is None:
            return
        if isinstance(message, _INTRODUCTIONS):
            message = msgspec.structs.replace(message, version=self.version)
        out, header = self.out, encode(message)
        gathers = out.bundling and len(header) + sum(map(len, send.frames)) <= BUNDLED_BYTES
        waits = gathers and self.world.random.random() < self.network.gather
        if waits and not out and self.version == SAYS_NEWS:
            out.send(NEWS)
        out.send(header, send.frames)
        if not waits:
            out.flush()

    def _flush(self) -> None:
        self.out.flush()

    def _transmit(self, messages: Sequence[Sequence[Frame]]) -> None:
        assert self.connection is not None  # nothing is gathered for none
        self.connection.send(bundled(messages), up=True)


class BrokerEnd(Protocol):
    """What a client sees of the broker's node."""

    reachable: bool

    def accept(self, connection: Connection) -> None:
        """A client has connected."""

    def receive(self, connection: Connection, parts: Sequence[Unpacked]) -> None:
        """A message, or a bundle of them, has come from a client."""


def seeded(world: World) -> random.Random:
    """A source of randomness of its own, drawn from the world's."""
    return random.Random(world.random.getrandbits(64))
