"""A simulated broker: the real broker core over a disk that outlives it, and may lose what was not synced."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence

import msgspec
import zmq

from broker import effects as b
from broker.config import BrokerConfig
from broker.core import BrokerCore
from broker.hearing import events_of
from broker.protocol.bundles import Unpacked
from broker.protocol.effects import BatchEnded, Log, Received, Send
from broker.protocol.framing import encode
from broker.protocol.messages import Accepted, Announce, Blobs, Frame, Registered, SessionOpened
from broker.sending import Sending
from tests.simulation.disks import LedgerDisk
from tests.simulation.fakes import LARGE_BYTES, is_large
from tests.simulation.network import Connection
from tests.simulation.nodes import NEWS, READS_NO_BUNDLES, SAYS_NEWS, Node
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["BrokerNode"]

MOST_OUTPUTS = 16
CONFIG = BrokerConfig(
    log_level=10, heartbeat_ms=3000, restart_grace=20.0, commit_within=0.01, outputs=MOST_OUTPUTS, blob_linger=20.0
)
TIGHT = BrokerConfig(
    log_level=10,
    heartbeat_ms=3000,
    restart_grace=20.0,
    commit_within=0.0,
    outputs=MOST_OUTPUTS,
    mailbox_commands=4,
    device_commands=2,
    window=3,
)
"""A broker that is soon full."""

WALL = 1.7e9
"""The true time at which every simulation begins, in seconds since the Unix epoch."""

_ANSWERS = (Registered, SessionOpened)


class BrokerNode(Node):
    """The broker. ``crash_points``: how many times it dies between two steps of a commit of its own accord."""

    def __init__(self, world: World, promises: Promises, *, crash_points: int = 0, tight: bool = False) -> None:
        super().__init__(world, "broker", promises)
        self._config = TIGHT if tight else CONFIG
        self.disk = LedgerDisk(world, promises)
        self.crash_points = crash_points
        self._connections: dict[bytes, Connection] = {}
        self._asked: list[b.Persist] = []
        self._committing = False
        self.reachable = False
        self._told_news: set[bytes] = set()  # since all that was gathered went
        self.broker: BrokerCore
        self._sending: Sending
        self._pinned: dict[str, set[bytes]] = {}
        self._execute |= dict.fromkeys((b.PublishNotification, b.PublishLogs), lambda _: None)
        self._execute |= {
            Send: self._send,
            b.PinBlobs: lambda pin: self._pinned.setdefault(pin.name, set()).update(pin.digests),
            b.UnpinBlobs: lambda pin: self._pinned[pin.name].difference_update(pin.digests),
            b.Persist: self._persist,
            b.StoreBlobs: self._store_blobs,
            b.SendBlobs: self._send_blobs,
            b.DropBlobs: self._drop_blobs,
        }

    def begin(self) -> None:
        """The broker starts, over what the disk has."""
        self._asked.clear()
        self._pinned.clear()
        self._committing = False
        self.broker = BrokerCore(
            self._config,
            self.disk.open(),
            blobs=self,
            random_bytes=self.world.random_bytes,
            wall_offset=WALL + self._clock_zero,
            now=self.clock(),
        )
        self._sending = Sending(self._transmit, self.broker, self._unsent)
        self._told_news.clear()
        self.start(self.broker)
        self.reachable = True
        self._promises.grace_over = self.world.now + self._config.restart_grace

    # ------------------------------------------------------------------------------------------- its end

    def kill(self) -> None:
        """The broker is killed, and another one starts."""
        if self.core is not None:
            self.world.tell(self.name, "   killed")
            self._end(0.2)

    def lose_power(self) -> None:
        """The broker's machine loses power, and comes back."""
        if self.core is not None:
            self.world.tell(self.name, "   power lost")
            self.disk.lose_power()
            self._end(1.0)
            self.boot()

    def lose_ledger(self) -> None:
        """The broker's machine dies with its disk, and another one takes its place."""
        if self.core is not None:
            self.world.tell(self.name, "   ledger lost")
            self._promises.ledger_lost()
            self.disk.erase()
            self._end(1.0)
            self.boot()

    def _end(self, at_least: float) -> None:
        self._promises.broker_ended(self.disk.sessions)
        self.reachable = False
        self.crash()
        for connection in self._connections.values():
            connection.cut()
        self._connections.clear()
        random = self.world.random
        self.world.after(at_least + random.choice((1.0, 1.0, 20.0)) * random.random(), self.begin)

    def _dies_here(self) -> bool:
        """Whether this is where the broker dies, between two steps of a commit."""
        random = self.world.random
        if not self.crash_points or random.random() > 0.04:
            return False
        self.crash_points -= 1
        random.choice((self.kill, self.lose_power))()
        return True

    # ------------------------------------------------------------------------------------------- network

    def accept(self, connection: Connection) -> None:
        """A client has connected."""
        self._connections[connection.peer] = connection

    def receive(self, connection: Connection, parts: Sequence[Unpacked]) -> None:
        """A message, or a bundle of them, has come: hand them to the core as `broker.server` does."""
        peer = connection.peer
        if peer not in self._connections:
            return
        self._check_bundle(parts)
        handle, now = self.broker.handle, self.clock()
        for event, more in events_of(peer, parts):
            if isinstance(event, Received) and isinstance(event.message, Announce):
                self._promises.arrived(event.message.event)
            if not self._do(handle(event, now, more=more)):
                return
        self._begin_batch()

    def _send(self, send: Send) -> None:
        peer, message = send.peer, send.message
        connection = self._connections.get(peer)
        if connection is None:
            self._unsent(b.PeerUnreachable(peer=peer))
            return
        if isinstance(message, _ANSWERS):
            message = msgspec.structs.replace(message, version=self.version)
        if isinstance(message, SessionOpened):
            self._promises.opened(connection.incarnation, message.accepted, self.disk)
        elif isinstance(message, Accepted):
            self._promises.accepted(connection.incarnation, message.n, self.disk)
        sending, gathers = self._sending, self.version != READS_NO_BUNDLES
        waits = gathers and self.world.random.random() < connection.network.gather
        if waits and self.version == SAYS_NEWS and peer not in self._told_news and self.broker.reads_bundles(peer):
            self._told_news.add(peer)
            sending.send(peer, NEWS)
        sending.send(peer, encode(message), send.frames)
        if not waits:
            self._flush()

    def _flush(self) -> None:
        self._told_news.clear()
        self._sending.flush()

    def _transmit(self, peer: bytes, frames: Sequence[Frame]) -> None:
        connection = self._connections.get(peer)
        if connection is not None and connection.alive:
            connection.send(frames, up=False)
        # A dead connection is noticed when something is sent over it; a half-open one is not noticed at all.
        elif connection is None or self.world.random.random() < 0.7:
            self._connections.pop(peer, None)
            raise zmq.ZMQError(errno.EHOSTUNREACH)

    def _unsent(self, event: b.PeerBusy | b.PeerUnreachable) -> None:
        self.later(0, lambda: self.feed(event))

    def _log(self, log: Log) -> None:
        super()._log(log)
        if log.event == "command_rejected":
            self._promises.rejected(bytes.fromhex(str(log.fields["session"])), int(str(log.fields["n"])))

    # ------------------------------------------------------------------------------------------- ledger and blobs

    def _persist(self, persist: b.Persist) -> None:
        if self._dies_here():
            return
        self._asked.append(persist)
        if not self._committing:
            self._committing = True
            self.later(0.01 * self.world.random.random(), self._write)

    def _write(self) -> None:
        """A group commit: all that has been asked for by now. First the blobs that it may name, then the ledger."""
        asked, self._asked = self._asked, []
        self.disk.sync_blobs()
        for persist in asked:
            if self._dies_here():
                return
            self.disk.write(persist.writes)
        self.later(0.005 * self.world.random.random(), lambda: self._sync(asked))

    def _sync(self, asked: list[b.Persist]) -> None:
        if self._dies_here():
            return
        self.disk.sync()
        if self._dies_here():
            return
        self._committing = False
        life = self._life
        for persist in asked:
            self.feed(b.Persisted(ticket=persist.ticket))
            if self._life != life:
                return
        if self._asked and not self._committing:
            self._committing = True
            self._write()

    def size(self, digest: bytes) -> int | None:
        """As `broker.context.Blobs.size`."""
        content = self.disk.blobs.get(digest)
        if content is None:
            return None
        return LARGE_BYTES if is_large(content) else len(content)

    def keep_blob(self, digest: bytes, content: bytes) -> bool:
        """A blob has come by the blob channel, which is not simulated here; of one that is here, the core does not
        hear. False: nobody was there to take it.
        """
        if not self.reachable:
            return False
        assert hashlib.sha256(content).digest() == digest
        if digest in self.disk.blobs:
            return True
        self.disk.write_blob(digest, content)
        self.disk.sync_blobs()
        self.feed(b.BlobStored(digest=digest))
        return True

    def evict_blobs(self) -> None:
        """The store is full: what nobody has pinned makes room, as in `broker.ledger.blob_store`."""
        self.feed(BatchEnded())  # a core that has just taken up its ledger has yet to pin what that names
        if self.core is not None:
            kept = set[bytes]().union(*self._pinned.values())
            gone = [digest for digest in self.disk.blobs if digest not in kept]
            self.world.tell(self.name, f"   evicts {len(gone)} blobs")
            for digest in gone:
                self.disk.drop_blob(digest)

    def _store_blobs(self, store: b.StoreBlobs) -> None:
        for digest, frame in zip(store.digests, store.frames, strict=True):
            self.disk.write_blob(digest, bytes(frame))

    def _drop_blobs(self, drop: b.DropBlobs) -> None:
        for digest in drop.digests:
            self.disk.drop_blob(digest)

    def _send_blobs(self, send: b.SendBlobs) -> None:
        frames: tuple[Frame, ...] = tuple(self.disk.blobs[digest] for digest in send.attached)
        message = Blobs(attached=send.attached, pull=send.pull, none=send.none)
        self._send(Send(message=message, frames=frames, peer=send.peer))
