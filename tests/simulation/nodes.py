"""Coordinators, devices and a broker in a simulated world: the real cores, and drivers that execute their instructions
under the virtual clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from broker.protocol.effects import BatchEnded, LinkDown, LinkUp, Log, Received, Send, Tick
from tests.simulation.network import Connection, Network
from tests.simulation.world import World

__all__ = ["Client", "Core", "Node", "seeded"]

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

    Each machine has a clock of its own, which says what it likes when the machine boots and goes at the same pace as
    all others.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
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
        if core is None:
            return
        life = self._life
        execute = self._execute
        for instruction in core.handle(event, self.clock()):
            execute[type(instruction)](instruction)
            if self._life != life:
                return
        if not self._batch and type(event) is not BatchEnded:
            self._batch = True
            self.later(self.world.random.choice((0.0, 0.0, 0.0005)), self._end_batch)
        timer = core.next_timer()
        if timer is not None and timer < self._tick_at:
            self._tick_at = timer
            self.later(timer + self._clock_zero - self.world.now, lambda: self._tick(timer))

    def _end_batch(self) -> None:
        self._batch = False
        self.feed(BatchEnded())

    def _tick(self, timer: float) -> None:
        if timer == self._tick_at:
            self._clock_last = max(self._clock_last, timer)  # the two clocks' difference is rounded
            self._batch = (
                True  # a tick is a batch of its own: what falls due must be flushed before the next one is set
            )
            life = self._life
            self.feed(Tick())
            if self._life == life:
                self._tick_at = float("inf")
                self._end_batch()

    def _log(self, log: Log) -> None:
        self.world.tell(self.name, "   ", log)


class Client(Node):
    """A node with one connection to the broker, which it makes again whenever it is gone."""

    def __init__(self, world: World, name: str, network: Network, broker: BrokerEnd) -> None:
        super().__init__(world, name)
        self.network = network
        self._broker = broker
        self.connection: Connection | None = None
        self._execute[Send] = self._send

    def connect(self) -> None:
        """Make a connection, after a while."""
        self.later(self.world.random.random() * 0.2, self._connected)

    def _connected(self) -> None:
        if not self._broker.reachable:
            self.later(0.5 + self.world.random.random(), self._connected)
            return
        life = self._life

        def to_client(received: Received) -> None:
            if self._life == life and self.connection is connection:
                self.feed(received)

        connection = Connection(self.network, self.name, to_client=to_client, to_broker=self._broker.receive)
        self._present(connection)
        self.connection = connection
        self._broker.accept(connection)
        self.feed(LinkUp())

    def _present(self, connection: Connection) -> None:
        """Write upon a new connection what the checker needs to know of it."""

    def disconnect(self) -> None:
        """The connection breaks, and this end sees it."""
        if self.connection is not None:
            self.connection.cut()
            self.connection = None
            self.world.tell(self.name, "   connection lost")
            self.feed(LinkDown())
            self.connect()

    def half_open(self) -> None:
        """The connection breaks, and this end does not see it."""
        if self.connection is not None:
            self.connection.cut()
            self.world.tell(self.name, "   connection half-open")

    def crash(self) -> None:
        """As `Node.crash`; the connection breaks, too."""
        super().crash()
        if self.connection is not None:
            self.connection.cut()
            self.connection = None

    def _send(self, send: Send) -> None:
        if self.connection is not None:
            self.connection.send(send.message, send.frames, up=True)


class BrokerEnd(Protocol):
    """What a client sees of the broker's node."""

    reachable: bool

    def accept(self, connection: Connection) -> None:
        """A client has connected."""

    def receive(self, received: Received) -> None:
        """A message has come from a client."""


def seeded(world: World) -> random.Random:
    """A source of randomness of its own, drawn from the world's."""
    return random.Random(world.random.getrandbits(64))
