"""What goes into the broker's core and what comes out, beyond what all cores share (`broker.protocol.effects`)."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from broker.ledger.interface import Write
from broker.protocol.effects import BatchEnded, Log, Received, Send, Tick
from broker.protocol.messages import Digest, Frame, LogValue, Notify

__all__ = [
    "BlobMoved",
    "BlobStored",
    "BlobUnavailable",
    "BlobsUnwritable",
    "BlobsWritable",
    "DropBlobs",
    "Event",
    "Instruction",
    "LedgerUnwritable",
    "LedgerWritable",
    "Malformed",
    "PeerBusy",
    "PeerUnreachable",
    "Persist",
    "Persisted",
    "PinBlobs",
    "PublishLogs",
    "PublishNotification",
    "SendBlobs",
    "StoreAgain",
    "StoreBlobs",
    "Subscriptions",
    "UnpinBlobs",
]


class _Effect(Struct, frozen=True, kw_only=True, gc=False):
    """An event or an instruction."""


# ------------------------------------------------------------------------------------------------- events


class Malformed(_Effect, frozen=True, kw_only=True):
    """A peer sent ``size`` bytes that are no message: ``reason``; or, with ``too_large``, too many of them."""

    peer: bytes
    reason: str
    size: int = 0
    too_large: bool = False


class PeerUnreachable(_Effect, frozen=True, kw_only=True):
    """A message could not be sent: the connection of that routing id is gone."""

    peer: bytes


class PeerBusy(_Effect, frozen=True, kw_only=True):
    """A message could not be sent, and was dropped: the peer reads too slowly."""

    peer: bytes


class Persisted(_Effect, frozen=True, kw_only=True):
    """The writes of `Persist` ``ticket`` are in the ledger, and those of all before it."""

    ticket: int


class LedgerUnwritable(_Effect, frozen=True, kw_only=True):
    """The ledger cannot be written now: the disk is full, say. What was handed to it waits, and `Persisted` with it."""

    reason: str


class LedgerWritable(_Effect, frozen=True, kw_only=True):
    """The ledger can be written again, and what waited is in it."""


class BlobStored(_Effect, frozen=True, kw_only=True):
    """A blob has come in by the blob channel, and is in the store, whole and verified."""

    digest: Digest


class BlobUnavailable(_Effect, frozen=True, kw_only=True):
    """A blob is not here: it could not be stored, or its bytes were altered. Whoever needs it asks again. May be said
    more than once.
    """

    digest: Digest
    reason: str = ""


class BlobsUnwritable(_Effect, frozen=True, kw_only=True):
    """The blobs of a `StoreBlobs` could not be stored: the disk is full, say. The driver has them still: see
    `StoreAgain`.
    """

    reason: str


class BlobsWritable(_Effect, frozen=True, kw_only=True):
    """They are stored now."""


class BlobMoved(_Effect, frozen=True, kw_only=True):
    """Bytes of blobs went over the blob channel, from (``bytes_in``) or to the device ``device``, or a session (empty).

    ``whole``: how many blobs have come, or gone, completely by them.
    """

    device: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    whole_in: int = 0
    whole_out: int = 0


class Subscriptions(_Effect, frozen=True, kw_only=True):
    """Who follows: the lowest log level (0: nobody), and whether anybody follows notifications."""

    log_level: int = 0
    notifications: bool = False


Event: TypeAlias = (
    Received
    | BatchEnded
    | Tick
    | Malformed
    | PeerUnreachable
    | PeerBusy
    | Persisted
    | LedgerUnwritable
    | LedgerWritable
    | BlobStored
    | BlobUnavailable
    | BlobsUnwritable
    | BlobsWritable
    | BlobMoved
    | Subscriptions
)
"""All that `broker.core.BrokerCore.handle` takes."""

# ------------------------------------------------------------------------------------------------- instructions


class Persist(_Effect, frozen=True, kw_only=True):
    """Commit these to the ledger, in order and all or nothing; `Persisted` follows, in the order of the tickets."""

    ticket: int
    writes: list[Write]


class PublishNotification(_Effect, frozen=True, kw_only=True):
    """Publish a notification, with its inline values, under the result id ``id``. At best effort."""

    id: bytes
    notify: Notify
    frames: tuple[Frame, ...] = ()


class PublishLogs(_Effect, frozen=True, kw_only=True):
    """Publish log records of a peer: a device by name, or a session (empty). At best effort."""

    device: str
    records: list[dict[str, LogValue]]


class StoreBlobs(_Effect, frozen=True, kw_only=True):
    """Store these small blobs, verified already; `BlobUnavailable` follows for each that cannot be stored, and then
    `BlobsUnwritable`.
    """

    digests: list[Digest]
    frames: tuple[Frame, ...]


class StoreAgain(_Effect, frozen=True, kw_only=True):
    """Try once more to store what could not be stored: `BlobsWritable` follows, if it can be now."""


class SendBlobs(_Effect, frozen=True, kw_only=True):
    """Send `Blobs` to ``peer``, with the content of those ``attached`` as frames."""

    peer: bytes
    attached: list[Digest]
    pull: dict[Digest, int]
    none: list[Digest]


class PinBlobs(_Effect, frozen=True, kw_only=True):
    """Keep these blobs from eviction, in the name of ``name``; `BlobUnavailable` follows for each that is not here."""

    name: str
    digests: list[Digest]


class UnpinBlobs(_Effect, frozen=True, kw_only=True):
    """Take back what `PinBlobs` did in the name of ``name``."""

    name: str
    digests: list[Digest]


class DropBlobs(_Effect, frozen=True, kw_only=True):
    """Drop these blobs: nobody needs them any more."""

    digests: list[Digest]


Instruction: TypeAlias = (
    Send
    | Log
    | Persist
    | PublishNotification
    | PublishLogs
    | StoreBlobs
    | StoreAgain
    | SendBlobs
    | PinBlobs
    | UnpinBlobs
    | DropBlobs
)
"""All that the core may tell its driver to do, to be executed in order."""
