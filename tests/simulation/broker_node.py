"""A simulated broker: the real broker core over a ledger in memory, which outlives it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from broker import effects as b
from broker.config import BrokerConfig
from broker.core import BrokerCore
from broker.ledger.interface import RecordTerminal, Write
from broker.ledger.memory import MemoryLedger
from broker.protocol.effects import Received, Send
from broker.protocol.messages import Blobs, Frame
from tests.simulation.network import Connection
from tests.simulation.nodes import Node
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["BrokerNode"]

CONFIG = BrokerConfig(log_level=10, heartbeat_ms=3000, restart_grace=20.0, commit_within=0.01)


class BrokerNode(Node):
    """The broker. `restart` kills it and starts another over the same ledger and the same blobs."""

    def __init__(self, world: World, promises: Promises) -> None:
        super().__init__(world, "broker")
        self._promises = promises
        self._ledger = MemoryLedger(world.random_bytes(16))
        self._blobs: dict[bytes, bytes] = {}
        self._connections: dict[bytes, Connection] = {}
        self._commits: list[b.Persist] = []
        self.reachable = False
        self.broker: BrokerCore
        nothing = (b.PinBlobs, b.UnpinBlobs, b.PublishNotification, b.PublishLogs, b.DropBlobs)
        self._execute |= dict.fromkeys(nothing, lambda _: None)
        self._execute |= {
            Send: self._send,
            b.Persist: self._persist,
            b.StoreBlobs: self._store_blobs,
            b.SendBlobs: self._send_blobs,
        }

    def begin(self) -> None:
        """The broker starts, over what the ledger has."""
        self._commits.clear()
        self.broker = BrokerCore(
            CONFIG,
            self._ledger.open(),
            blobs=self,
            random_bytes=self.world.random_bytes,
            wall_offset=1.7e9,
            now=self.world.now,
        )
        self.start(self.broker)
        self.reachable = True

    def restart(self) -> None:
        """The broker is killed, and another one starts."""
        self.world.tell(self.name, "   killed")
        self.reachable = False
        self.crash()
        for connection in self._connections.values():
            connection.cut()
        self._connections.clear()
        self.world.after(0.2 + self.world.random.random(), self.begin)

    # ------------------------------------------------------------------------------------------- network

    def accept(self, connection: Connection) -> None:
        """A client has connected."""
        self._connections[connection.peer] = connection

    def receive(self, received: Received) -> None:
        """A message has come."""
        if received.peer in self._connections:
            self.feed(received)

    def _send(self, send: Send) -> None:
        connection = self._connections.get(send.peer)
        if connection is not None and connection.alive:
            connection.send(send.message, send.frames, up=False)
            return
        # A dead connection is noticed when something is sent over it; a half-open one is not noticed at all.
        if connection is None or self.world.random.random() < 0.7:
            self._connections.pop(send.peer, None)
            self.later(0, lambda: self.feed(b.PeerUnreachable(peer=send.peer)))

    # ------------------------------------------------------------------------------------------- ledger and blobs

    def _persist(self, persist: b.Persist) -> None:
        self._commits.append(persist)
        if len(self._commits) == 1:
            self.later(0.01 * self.world.random.random(), self._commit)

    def _commit(self) -> None:
        """A group commit: all that has been asked for by now."""
        commits, self._commits = self._commits, []
        writes: Sequence[Write] = [write for persist in commits for write in persist.writes]
        for write in writes:
            if isinstance(write, RecordTerminal):
                self._promises.record(write.id, write.status.value)
        self._ledger.commit(writes)
        for persist in commits:
            self.feed(b.Persisted(ticket=persist.ticket))

    def size(self, digest: bytes) -> int | None:
        """As `broker.context.Blobs.size`."""
        content = self._blobs.get(digest)
        return None if content is None else len(content)

    def keep_blob(self, digest: bytes, content: bytes) -> None:
        """A blob has come by the blob channel, which is not simulated here."""
        assert hashlib.sha256(content).digest() == digest
        self._blobs[digest] = content
        self.feed(b.BlobStored(digest=digest))

    def _store_blobs(self, store: b.StoreBlobs) -> None:
        for digest, frame in zip(store.digests, store.frames, strict=True):
            self._blobs[digest] = bytes(frame)

    def _send_blobs(self, send: b.SendBlobs) -> None:
        frames: tuple[Frame, ...] = tuple(self._blobs[digest] for digest in send.attached)
        message = Blobs(attached=send.attached, pull=send.pull, none=send.none)
        self._send(Send(message=message, frames=frames, peer=send.peer))
