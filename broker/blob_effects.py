"""What comes out of the broker's blob channel (events, instructions, counts), and the limits that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.ledger.blob_store import Partial
from broker.protocol import messages as m
from broker.protocol.effects import Send
from broker.protocol.transfer import CHUNK_BYTES, MAX_WINDOW, Piece

__all__ = [
    "BlobArrived",
    "BlobCounts",
    "BlobDelivered",
    "BlobEvent",
    "BlobLimits",
    "BlobPeerRefused",
    "Commit",
    "Instruction",
    "OutgoingChunk",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobArrived:
    """A blob is in the store, verified and durable. ``role`` and ``name`` are those of the peer it came from."""

    digest: bytes
    size: int
    role: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobDelivered:
    """A peer says that it has the whole blob, verified, which it pulled from here."""

    digest: bytes
    role: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPeerRefused:
    """Something was refused: an offer, a chunk, a peer. Empty where not known. At most
    one a second is reported; ``unreported`` is how many came before it.
    """

    reason: str
    role: str = ""
    name: str = ""
    digest: bytes = b""
    unreported: int = 0


BlobEvent: TypeAlias = BlobArrived | BlobDelivered | BlobPeerRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Make this blob durable (`Partial.commit`), on another thread, and report it by `BlobExchange.committed`."""

    partial: Partial


@dataclass(frozen=True, slots=True)
class OutgoingChunk:
    """A chunk to send to ``peer``. If the link is full, give it back by `BlobExchange.give_back`."""

    peer: bytes
    piece: Piece
    data: bytes

    @property
    def message(self) -> m.Chunk:
        """The message that goes before the data."""
        return m.Chunk(digest=self.piece.digest, offset=self.piece.offset, size=self.piece.size)


Instruction: TypeAlias = Send | Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLimits:
    """What one peer, and all of them, may ask of the broker. Sizes in bytes, times in seconds.

    ``blob``: the largest blob. ``transfers``: blobs that one peer may have coming in at once, ``incoming``: all peers.
    ``peers``: how many are remembered; one that is not must introduce itself again. ``keep``: how long a transfer whose
    peer is gone stays ready for its return; after that the store still has what came. ``idle``: after how long a silent
    peer is forgotten.
    """

    blob: int = 16 << 30
    chunk: int = CHUNK_BYTES
    window: int = MAX_WINDOW
    transfers: int = 8
    incoming: int = 64
    peers: int = 20_000
    patience: float = 10.0
    keep: float = 60.0
    idle: float = 900.0


@dataclass(frozen=True, slots=True)
class BlobCounts:
    """What moved: whole blobs and their bytes, those sent twice included; to the broker (in) and from it (out)."""

    blobs_in: int = 0
    blobs_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
