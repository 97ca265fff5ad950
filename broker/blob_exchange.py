"""What the broker does on its blob channel: takes what is offered, serves what is pulled. No sockets here.

`BlobExchange` is told what arrived and returns what to send; `broker.blob_server` has the socket and the thread. Time
is an argument. It reads and writes its `BlobStore` itself, a chunk at a time; only making a blob durable, which may
take long, is an instruction (`Commit`), to be done beside and reported by `BlobExchange.committed`.

A blob comes from one peer at a time. Others that offer the same one wait, and take over when that peer is gone, stalls
or sent something else; all hear `Stored` when it is there. What came of a blob outlives the connection it came on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.blob_effects import (
    BlobArrived,
    BlobCounts,
    BlobDelivered,
    BlobEvent,
    BlobLimits,
    BlobPeerRefused,
    Commit,
    Instruction,
    OutgoingChunk,
)
from broker.blob_tallies import Tallies, Tally
from broker.disk_space import is_full
from broker.ledger.blob_store import BlobMissing, BlobStore, BlobStoreFull, Partial
from broker.protocol import messages as m
from broker.protocol.effects import Send
from broker.protocol.errors import ProtocolError
from broker.protocol.transfer import ChunkRefused, PullRefused, Receiver, Sender, TransferState

__all__ = ["BlobExchange"]

ABSORB_BYTES = 1 << 20
"""How much of an earlier part is hashed in one go, between other work."""

STALLS_TO_ROTATE = 2
"""After how many fruitless waits another peer that has the blob takes over."""

STALLS_TO_DROP = 6
"""After how many fruitless waits (about ten minutes in all) a source counts as gone."""


@dataclass(slots=True)
class _Peer:
    role: str
    name: str
    sender: Sender
    tally: Tally
    last: float
    served: OrderedDict[bytes, None] = field(default_factory=OrderedDict)  # what it pulled and has not stored yet
    incoming: int = 0  # transfers of which it is a source


@dataclass(slots=True)
class _Incoming:
    digest: bytes
    size: int
    partial: Partial
    receiver: Receiver
    sources: dict[bytes, None]  # the peers that have it; the first is the one that sends
    clean: bool  # every byte came from that one
    committing: bool = False
    giver: tuple[str, str] = ("", "")  # role and name of the peer that sent the last of it
    left_at: float = 0.0  # when the last source was gone

    @property
    def active(self) -> bytes | None:
        return next(iter(self.sources), None)


class BlobExchange:
    """Takes what is offered and serves what is pulled, for all peers of one blob channel."""

    def __init__(
        self, store: BlobStore, *, limits: BlobLimits | None = None, on_event: Callable[[BlobEvent], None]
    ) -> None:
        self.store = store
        self.limits = limits or BlobLimits()
        self._on_event = on_event
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()  # longest silent first
        self._incoming: dict[bytes, _Incoming] = {}
        self._reading_back: dict[bytes, None] = {}  # incoming blobs with an earlier part to hash
        self._turns: OrderedDict[bytes, None] = OrderedDict()  # peers that wait for chunks
        self._full: set[bytes] = set()  # those among them whose link takes no more just now
        self._tallies = Tallies(self.limits.peers)
        self._total = Tally()
        self._complain_at = float("-inf")
        self._unreported = 0

    # ------------------------------------------------------------------------------------------ what was counted

    def counts(self) -> dict[tuple[str, str], BlobCounts]:
        """What moved, by the peer's role and name; any thread may ask. Peers of long ago are left out."""
        return self._tallies.counts()

    def total(self) -> BlobCounts:
        """What moved in all; any thread may ask."""
        return self._total.counts()

    # ------------------------------------------------------------------------------------------ what arrives

    def received(self, peer: bytes, message: m.Message, frames: Sequence[m.Frame], now: float) -> list[Instruction]:
        """A message from ``peer``; what to do."""
        if isinstance(message, m.OpenBlobChannel):
            return self._open(peer, message, now)
        known = self._peers.get(peer)
        if known is None:
            return [Send(message=m.Stranger(), peer=peer)]
        known.last = now
        self._peers.move_to_end(peer)
        match message:
            case m.Chunk():
                return self._chunk(peer, known, message, frames, now)
            case m.Pull():
                return self._pull(peer, known, message)
            case m.Offer():
                return self._offer(peer, known, message, now)
            case m.Stored():
                if message.digest in known.served:
                    del known.served[message.digest]
                    known.tally.blobs_out += 1
                    self._total.blobs_out += 1
                    self._on_event(BlobDelivered(digest=message.digest, role=known.role, name=known.name))
                return []
            case m.NoBlob():
                known.sender.drop(message.digest)
                known.served.pop(message.digest, None)
                return self._drop_source(message.digest, peer, now)
            case m.Goodbye():
                return self.gone(peer, now)
            case _:
                return self.malformed(peer, ProtocolError("expected a message of the blob channel"), now)

    def malformed(self, peer: bytes, error: ProtocolError, now: float) -> list[Instruction]:
        """Bytes from ``peer`` that mean nothing here: it is told, and must introduce itself again."""
        known = self._peers.get(peer)
        self._complain(str(error), now, peer=known)
        if known is None:
            return []
        refused = m.Refused(version=m.PROTOCOL_VERSION, code=m.DropCode.MALFORMED, reason=str(error)[:200])
        return [*self.gone(peer, now), Send(message=refused, peer=peer)]

    def _open(self, peer: bytes, message: m.OpenBlobChannel, now: float) -> list[Instruction]:
        refusal: tuple[m.RefusalCode, str] | None = None
        if message.version[0] != m.PROTOCOL_VERSION[0]:
            mine, theirs = m.PROTOCOL_VERSION[0], message.version[0]
            refusal = m.RefusalCode.VERSION, f"expected protocol version {mine}, got {theirs}"
        elif message.role not in ("device", "session") or not 0 < len(message.name) <= 64:
            refusal = m.RefusalCode.NOT_ALLOWED, "expected the role device or session, and a name of 1 to 64 characters"
        if refusal is not None:
            self._complain(refusal[1], now)
            return [Send(message=m.Refused(version=m.PROTOCOL_VERSION, code=refusal[0], reason=refusal[1]), peer=peer)]
        out: list[Instruction] = self.gone(peer, now) if peer in self._peers else []
        while len(self._peers) >= self.limits.peers:
            out += self.gone(next(iter(self._peers)), now)
        sender = Sender(chunk=self.limits.chunk)
        self._peers[peer] = _Peer(message.role, message.name, sender, self._tallies.of(message.role, message.name), now)
        opened = m.BlobChannelOpened(version=m.PROTOCOL_VERSION, chunk=self.limits.chunk, limit=self.limits.blob)
        return [*out, Send(message=opened, peer=peer)]

    # ------------------------------------------------------------------------------------------ blobs that come in

    def _offer(self, peer: bytes, known: _Peer, offer: m.Offer, now: float) -> list[Instruction]:
        digest, size = offer.digest, offer.size
        incoming = self._incoming.get(digest)
        if self.store.has(digest):
            return [Send(message=m.Stored(digest=digest), peer=peer)]
        if size > self.limits.blob:
            return self._no(peer, known, digest, f"expected at most {self.limits.blob} bytes, got {size}", now)
        if incoming is None:
            if known.incoming >= self.limits.transfers:
                return [self._later(peer, digest, "expected fewer blobs from one peer at once")]
            if len(self._incoming) >= self.limits.incoming and not self._close_orphan():
                return [self._later(peer, digest, "expected fewer blobs at once")]
            try:
                partial = self.store.begin(digest, size)
            except (BlobStoreFull, OSError) as error:
                full = isinstance(error, BlobStoreFull) or is_full(error)
                return self._no(peer, known, digest, str(error), now, full=full)
            receiver = Receiver(
                digest,
                size,
                chunk=self.limits.chunk,
                window_bytes=self.limits.window,
                offset=partial.offset,
                patience=self.limits.patience,
            )
            incoming = _Incoming(digest, size, partial, receiver, {peer: None}, clean=partial.offset == 0)
            self._incoming[digest] = incoming
            known.incoming += 1
            if receiver.to_absorb:
                self._reading_back[digest] = None
            return self._go_on(incoming, now)
        if incoming.size != size:
            return [self._later(peer, digest, f"expected {incoming.size} bytes, got an offer of {size}")]
        if peer in incoming.sources:
            return []
        former = [each for each in incoming.sources if self._same(each, known)]
        took_over = incoming.active in former or not incoming.sources
        if took_over:
            incoming.sources = {peer: None, **incoming.sources}
            incoming.clean = incoming.receiver.position == 0 or (incoming.clean and bool(former))
        else:
            incoming.sources[peer] = None
        known.incoming += 1
        for each in former:
            self._forget_source(incoming, each)
        if not took_over or incoming.committing:
            return []
        incoming.receiver.resume()
        return self._go_on(incoming, now)

    def _chunk(
        self, peer: bytes, known: _Peer, chunk: m.Chunk, frames: Sequence[m.Frame], now: float
    ) -> list[Instruction]:
        if len(frames) != 1:
            return self.malformed(peer, ProtocolError(f"expected a chunk with 1 frame, got {len(frames)}"), now)
        known.tally.bytes_in += len(frames[0])
        self._total.bytes_in += len(frames[0])
        incoming = self._incoming.get(chunk.digest)
        if incoming is None or incoming.active != peer or incoming.committing:
            return []  # late, or from a peer that was not asked
        try:
            writes = incoming.receiver.take(chunk, frames[0], now)
        except ChunkRefused as error:
            return self._reject_source(incoming, peer, str(error), now)
        try:
            for write in writes:
                incoming.partial.write(write.data)
        except OSError as error:
            return self._fail(incoming, "write", error, now)
        return self._go_on(incoming, now)

    def _go_on(self, incoming: _Incoming, now: float) -> list[Instruction]:
        """Ask for what is due; or end the transfer, when all is there."""
        receiver, active = incoming.receiver, incoming.active
        if receiver.state is TransferState.WHOLE:
            incoming.committing = True
            if active is not None:
                incoming.giver = self._peers[active].role, self._peers[active].name
            return [Commit(partial=incoming.partial)]
        if active is None:
            return []
        if receiver.state is TransferState.ALTERED:
            try:
                incoming.partial.truncate()
            except OSError as error:
                return self._fail(incoming, "write", error, now)
            receiver.restart()
            was_clean, incoming.clean = incoming.clean, True
            if was_clean or receiver.size == 0:
                return self._reject_source(incoming, active, "expected bytes with the digest offered, got others", now)
        return [Send(message=pull, peer=active) for pull in receiver.pulls(now)]

    def committed(self, digest: bytes, error: OSError | None, now: float) -> list[Instruction]:
        """A `Commit` was done, or failed with ``error``."""
        incoming = self._incoming[digest]
        if error is not None:
            return self._fail(incoming, "keep it", error, now)
        del self._incoming[digest]
        out: list[Instruction] = []
        for peer in incoming.sources:
            self._peers[peer].incoming -= 1
            out.append(Send(message=m.Stored(digest=digest), peer=peer))
        role, name = incoming.giver
        self._total.blobs_in += 1
        if name:
            self._tallies.of(role, name).blobs_in += 1
        self._on_event(BlobArrived(digest=digest, size=incoming.size, role=role, name=name))
        return out

    def _reject_source(self, incoming: _Incoming, peer: bytes, reason: str, now: float) -> list[Instruction]:
        out = self._no(peer, self._peers[peer], incoming.digest, reason, now)
        out += self._drop_source(incoming.digest, peer, now)
        if not incoming.sources:  # what is left of it is not worth keeping
            self._close(incoming, keep=False)
        return out

    def _drop_source(self, digest: bytes, peer: bytes, now: float) -> list[Instruction]:
        incoming = self._incoming.get(digest)
        if incoming is None or peer not in incoming.sources:
            return []
        was_active = incoming.active == peer
        self._forget_source(incoming, peer)
        if not was_active or incoming.committing:
            return []
        incoming.receiver.resume()
        incoming.left_at = now
        incoming.clean = incoming.receiver.position == 0
        return self._go_on(incoming, now)

    def _forget_source(self, incoming: _Incoming, peer: bytes) -> None:
        if peer in incoming.sources:
            del incoming.sources[peer]
            self._peers[peer].incoming -= 1

    def _same(self, peer: bytes, known: _Peer) -> bool:
        other = self._peers[peer]
        return other is not known and (other.role, other.name) == (known.role, known.name)

    def _fail(self, incoming: _Incoming, what: str, error: OSError, now: float) -> list[Instruction]:
        """The broker could not do ``what`` with what comes in."""
        reason = f"the broker could not {what}: {error.strerror or error}"
        out: list[Instruction] = []
        for peer in list(incoming.sources):
            out += self._no(peer, self._peers[peer], incoming.digest, reason, now, full=is_full(error))
        self._close(incoming, keep=False)
        return out

    def _close(self, incoming: _Incoming, *, keep: bool) -> None:
        if self._incoming.get(incoming.digest) is not incoming:
            return
        for peer in list(incoming.sources):
            self._forget_source(incoming, peer)
        del self._incoming[incoming.digest]
        self._reading_back.pop(incoming.digest, None)
        if keep:
            incoming.partial.close()
        else:
            incoming.partial.abandon()

    def _close_orphan(self) -> bool:
        """Make room: close the transfer that has been without a source for longest."""
        orphans = [each for each in self._incoming.values() if not each.sources and not each.committing]
        if not orphans:
            return False
        self._close(min(orphans, key=lambda each: each.left_at), keep=True)
        return True

    # ------------------------------------------------------------------------------------------ blobs that go out

    def _pull(self, peer: bytes, known: _Peer, pull: m.Pull) -> list[Instruction]:
        size = self.store.size(pull.digest)
        if size is None:
            return [Send(message=m.NoBlob(digest=pull.digest, reason="the broker does not have it"), peer=peer)]
        try:
            if not known.sender.ask(pull, size):
                return []  # too much is waiting: the peer asks again when it has had some of it
        except PullRefused as error:
            return [Send(message=m.NoBlob(digest=pull.digest, reason=str(error)), peer=peer)]
        known.served[pull.digest] = None
        if len(known.served) > 1024:
            known.served.popitem(last=False)
        if peer not in self._full:
            self._turns[peer] = None
        return []

    @property
    def busy(self) -> bool:
        """Is there work that waits for nothing: chunks to send, or earlier parts to hash?"""
        return bool(self._turns or self._reading_back)

    @property
    def held_up(self) -> bool:
        """Do chunks wait for links that are full?"""
        return bool(self._full)

    def work(self, now: float) -> list[Instruction]:
        """Hash some of an earlier part, if there is one; what to do then."""
        digest = next(iter(self._reading_back), None)
        if digest is None:
            return []
        incoming = self._incoming[digest]
        receiver = incoming.receiver
        self._reading_back[digest] = self._reading_back.pop(digest)
        try:
            at = receiver.position - receiver.to_absorb
            data = incoming.partial.read(at, min(ABSORB_BYTES, receiver.to_absorb))
            if data:
                receiver.absorb(data)
            else:  # cut under us: nothing of it can be trusted
                incoming.partial.truncate()
                receiver.restart()
        except OSError as error:
            return self._fail(incoming, "read what it had", error, now)
        if receiver.to_absorb:
            return []
        del self._reading_back[digest]
        return self._go_on(incoming, now)

    def next_chunk(self) -> OutgoingChunk | Send | None:
        """The next chunk, peers and their blobs taking turns; or a `Send` that says there is none; None: no work."""
        while self._turns:
            peer, _ = self._turns.popitem(last=False)
            known = self._peers[peer]
            piece = known.sender.turn()
            if piece is None:
                continue
            try:
                data = self.store.read(piece.digest, piece.offset, piece.length)
            except (BlobMissing, OSError) as error:
                known.sender.drop(piece.digest)
                if known.sender:
                    self._turns[peer] = None
                return Send(message=m.NoBlob(digest=piece.digest, reason=str(error)), peer=peer)
            if known.sender:
                self._turns[peer] = None
            known.tally.bytes_out += len(data)
            self._total.bytes_out += len(data)
            return OutgoingChunk(peer, piece, data)
        return None

    def give_back(self, chunk: OutgoingChunk) -> None:
        """The peer's link is full: the chunk was not sent. Call `unblock` some milliseconds later."""
        known = self._peers[chunk.peer]
        known.sender.give_back(chunk.piece)
        known.tally.bytes_out -= len(chunk.data)
        self._total.bytes_out -= len(chunk.data)
        self._turns.pop(chunk.peer, None)
        self._full.add(chunk.peer)

    def unblock(self) -> None:
        """Try the full links again."""
        self._turns.update(dict.fromkeys(self._full))
        self._full.clear()

    # ------------------------------------------------------------------------------------------ time and endings

    def gone(self, peer: bytes, now: float) -> list[Instruction]:
        """The peer's connection is gone, or the peer says goodbye."""
        known = self._peers.get(peer)
        if known is None:
            return []
        out: list[Instruction] = []
        for digest in [digest for digest, each in self._incoming.items() if peer in each.sources]:
            out += self._drop_source(digest, peer, now)
        del self._peers[peer]
        self._turns.pop(peer, None)
        self._full.discard(peer)
        return out

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed: ask again where nothing came, and forget who is gone. Call it at `next_timer`."""
        out: list[Instruction] = []
        for incoming in list(self._incoming.values()):
            if incoming.committing or incoming.digest in self._reading_back:
                continue
            active = incoming.active
            if active is None:
                if now >= incoming.left_at + self.limits.keep:
                    self._close(incoming, keep=True)
                continue
            due = incoming.receiver.next_timer()
            if due is None or now < due:
                continue
            stalls = incoming.receiver.fruitless + 1
            if stalls >= STALLS_TO_DROP:
                out += self._drop_source(incoming.digest, active, now)
            elif stalls >= STALLS_TO_ROTATE and len(incoming.sources) > 1:
                del incoming.sources[active]
                incoming.sources[active] = None
                incoming.clean = False
                incoming.receiver.resume()
                out += self._go_on(incoming, now)
            else:
                out += self._go_on(incoming, now)
        while self._peers and now - next(iter(self._peers.values())).last > self.limits.idle:
            out += self.gone(next(iter(self._peers)), now)
        return out

    def next_timer(self) -> float | None:
        """When to call `tick`; None: never."""
        due = [self._peers[next(iter(self._peers))].last + self.limits.idle] if self._peers else []
        for incoming in self._incoming.values():
            if incoming.active is None:
                due.append(incoming.left_at + self.limits.keep)
            elif not incoming.committing and (timer := incoming.receiver.next_timer()) is not None:
                due.append(timer)
        return min(due, default=None)

    def close(self) -> None:
        """Keep what came of each blob for another time. No commit may be under way."""
        for incoming in list(self._incoming.values()):
            self._close(incoming, keep=True)

    # ------------------------------------------------------------------------------------------ refusing

    def _no(
        self, peer: bytes, known: _Peer, digest: bytes, reason: str, now: float, *, full: bool = False
    ) -> list[Instruction]:
        self._complain(reason, now, peer=known, digest=digest)
        return [Send(message=m.NoBlob(digest=digest, reason=reason, full=full), peer=peer)]

    def _later(self, peer: bytes, digest: bytes, reason: str) -> Send:
        return Send(message=m.NoBlob(digest=digest, reason=reason, retry_ms=1000), peer=peer)

    def _complain(self, reason: str, now: float, *, peer: _Peer | None = None, digest: bytes = b"") -> None:
        if now < self._complain_at:
            self._unreported += 1
            return
        self._complain_at = now + 1.0
        role, name = (peer.role, peer.name) if peer is not None else ("", "")
        unreported, self._unreported = self._unreported, 0
        self._on_event(BlobPeerRefused(reason=reason, role=role, name=name, digest=digest, unreported=unreported))
