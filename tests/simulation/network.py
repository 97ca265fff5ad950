"""A network that delays, drops, repeats and reorders messages, and cuts connections.

A `Connection` joins one client (a device or a session) and the broker. A message is encoded when it is sent and decoded
when it arrives, so what no frame can carry does not arrive. A bundle is one message here: what befalls it befalls all
of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.protocol.bundles import Unpacked, unpack
from broker.protocol.messages import Frame, Heartbeat, HeartbeatSeen
from tests.simulation.world import World

__all__ = ["Connection", "Faults", "Network"]

_HEARTBEATS = frozenset({Heartbeat, HeartbeatSeen})
"""What the story leaves out."""


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
    """All connections, and what befalls them. ``gather``: how likely a message waits for others to the same peer, until
    its sender has nothing else to do.
    """

    def __init__(self, world: World, faults: Faults, *, gather: float = 0.0) -> None:
        self.world = world
        self.faults = faults
        self.gather = gather
        self.sent = 0
        self.lost = 0
        self.bundles = 0

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.faults = CALM

    @property
    def is_calm(self) -> bool:
        """Whether nothing goes wrong any more."""
        return self.faults is CALM


class Connection:
    """One connection; ``peer`` is the routing id by which the broker knows it."""

    def __init__(
        self,
        network: Network,
        name: str,
        *,
        to_client: Callable[[Connection, Sequence[Unpacked]], None],
        to_broker: Callable[[Connection, Sequence[Unpacked]], None],
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

    def send(self, frames: Sequence[Frame], *, up: bool) -> None:
        """Put what is one message for the network on its way, to the broker or from it."""
        network = self.network
        world, faults = network.world, network.faults
        network.sent += 1
        if not self.alive or self.deaf[up] or world.random.random() < faults.drop:
            network.lost += 1
            self._tell("-> lost " if up else "<- lost ", unpack(frames))  # type: ignore[arg-type]  # bytes, all of them
            return
        for _ in range(2 if world.random.random() < faults.repeat else 1):
            time = world.now + faults.delay * (0.5 + world.random.random()) + world.random.random() * faults.jitter
            if not faults.reorder:
                time = self._last[up] = max(time, self._last[up])
            world.at(time, lambda: self._arrive(frames, up))

    def _arrive(self, frames: Sequence[Frame], up: bool) -> None:
        if not self.alive or self.deaf[up]:
            self.network.lost += 1
            return
        parts = unpack(frames)  # type: ignore[arg-type]  # bytes, all of them
        self.network.bundles += len(parts) > 1
        self._tell("-> " if up else "<- ", parts)
        self._deliver[up](self, parts)

    def _tell(self, what: str, parts: Sequence[Unpacked]) -> None:
        tell = self.network.world.tell
        for message, _, _ in parts:
            if type(message) not in _HEARTBEATS:
                tell(self.name, what, message)
            what = "   and "
