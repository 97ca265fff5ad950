"""A network that delays, drops, repeats and reorders messages, and cuts connections.

A `Connection` joins one client (a device or a session) and the broker. A message is encoded when it is sent and decoded
when it arrives, so what no frame can carry does not arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.protocol.effects import Received
from broker.protocol.framing import decode, encode
from broker.protocol.messages import Frame, Heartbeat, HeartbeatSeen, Message
from tests.simulation.world import World

__all__ = ["Connection", "Faults", "Network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a network does to messages. Probabilities are per message, times in seconds."""

    drop: float = 0.0
    repeat: float = 0.0
    delay: float = 0.002
    jitter: float = 0.0
    reorder: bool = False


CALM = Faults()
"""A network without faults, in which the promises come true."""


class Network:
    """All connections, and what befalls them."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.sent = 0
        self.lost = 0

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.faults = CALM


class Connection:
    """One connection; ``peer`` is the routing id by which the broker knows it."""

    def __init__(
        self,
        network: Network,
        name: str,
        *,
        to_client: Callable[[Received], None],
        to_broker: Callable[[Received], None],
    ) -> None:
        self.network = network
        self.name = name
        self.peer = network.world.random_bytes(5)
        self.incarnation = b""  # of the session whose connection it is
        self.alive = True
        self.deaf = {True: False, False: False}  # by direction (upwards or not): nothing arrives
        self._deliver = {True: to_broker, False: to_client}
        self._last = {True: 0.0, False: 0.0}

    def cut(self) -> None:
        """The connection is gone, with all that is on its way."""
        self.alive = False

    def send(self, message: Message, frames: tuple[Frame, ...], *, up: bool) -> None:
        """Put a message on its way, to the broker or from it."""
        world, faults = self.network.world, self.network.faults
        self.network.sent += 1
        header = encode(message)
        arrow = "->" if up else "<-"
        if not self.alive or self.deaf[up] or world.random.random() < faults.drop:
            self.network.lost += 1
            world.tell(self.name, f"{arrow} lost ", message)
            return
        for _ in range(2 if world.random.random() < faults.repeat else 1):
            time = world.now + faults.delay * (0.5 + world.random.random()) + world.random.random() * faults.jitter
            if not faults.reorder:
                time = self._last[up] = max(time, self._last[up])
            world.at(time, lambda: self._arrive(header, frames, up, arrow))

    def _arrive(self, header: bytes, frames: tuple[Frame, ...], up: bool, arrow: str) -> None:
        if not self.alive or self.deaf[up]:
            self.network.lost += 1
            return
        message = decode(header)
        if not isinstance(message, Heartbeat | HeartbeatSeen):
            self.network.world.tell(self.name, f"{arrow} ", message)
        size = len(header) + sum(map(len, frames))
        self._deliver[up](Received(message=message, frames=frames, peer=self.peer if up else b"", size=size))
