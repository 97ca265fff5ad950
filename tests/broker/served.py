"""A broker on loopback, and peers that have introduced themselves to it."""

from __future__ import annotations

import hashlib
import os
from typing import TypeAlias

import zmq

from broker.config import BrokerConfig
from broker.protocol.framing import command_digest
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Announce,
    Deliver,
    Invoke,
    Notify,
    OpenSession,
    Recorded,
    Register,
    Registered,
    ResultReady,
    SessionOpened,
    StorePlan,
    Submit,
    Taken,
)
from broker.server import BrokerServer
from tests.broker.raw_peer import WITHIN_MS, RawPeer

__all__ = ["CONFIG", "MANIFEST", "PLAN", "Served", "run_one"]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"
CONFIG = BrokerConfig(heartbeat_ms=60_000, max_message=1 << 20)
"""Peers of these tests send no heartbeats, and are not lost for that where the machine is busy."""
MANIFEST = b"a manifest"
PLAN = hashlib.sha256(MANIFEST).digest()


class Served:
    """A broker, and whoever connects to it."""

    def __init__(self, context: Context, server: BrokerServer) -> None:
        self.context = context
        self.server = server
        self.peers: list[RawPeer] = []
        self.count = 0

    def peer(self) -> RawPeer:
        """A connection."""
        peer = RawPeer(self.context, self.server.endpoints.listen)
        self.peers.append(peer)
        return peer

    def device(self, name: str = "device_1", boot: bytes = b"boot" * 4) -> RawPeer:
        """A device that has registered."""
        device = self.peer()
        device.say(Register(version=PROTOCOL_VERSION, device=name, store=b"store" * 3, boot=boot))
        device.hear(Registered)
        return device

    def session(self) -> tuple[RawPeer, bytes]:
        """A session with a plan, and its incarnation."""
        incarnation = os.urandom(8)
        session = self.peer()
        session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=incarnation))
        session.hear(SessionOpened)
        session.say(Submit(n=1, devices=[], command=StorePlan(plan=PLAN, parts=[], attached=[PLAN])), MANIFEST)
        session.hear(Accepted)
        return session, incarnation

    def check(self) -> None:
        """The broker works: one invocation goes its way."""
        self.count += 1
        name = f"check_{self.count}"
        device = self.device(name)
        session, incarnation = self.session()
        run_one(session, incarnation, device, name, n=2)

    def follow(self, topic: bytes) -> Socket:
        """Somebody who follows the stream."""
        follower: Socket = self.context.socket(zmq.SUB)
        follower.setsockopt(zmq.LINGER, 0)
        follower.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        follower.setsockopt(zmq.SUBSCRIBE, topic)
        follower.connect(self.server.endpoints.logs)
        return follower


def run_one(session: RawPeer, incarnation: bytes, device: RawPeer, name: str, n: int, value: bytes = b"v") -> bytes:
    """One invocation from start to end; its id."""
    command = Invoke(id=incarnation + n.to_bytes(8, "big"), plan=PLAN, args=[None])
    session.say(Submit(n=n, devices=[name], command=command), b"tensor")
    deliver = device.hear(Deliver)
    assert deliver.digest == command_digest(command, [b"tensor"])
    assert device.frames == [b"tensor"]
    device.say(Taken(n=deliver.n))
    device.say(Announce(n=n - 1, event=ResultReady(id=command.id, digest=deliver.digest, inline=True)), value)
    notify = session.hear(Notify)
    assert session.frames == [value]
    assert notify.event.id == command.id  # type: ignore[union-attr]
    device.hear(Recorded)
    return command.id
