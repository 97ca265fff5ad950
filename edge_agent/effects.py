"""What goes into the agent's core and what comes out, beyond what all cores share (`broker.protocol.effects`).

The worker's answers (`edge_agent.jobs`) are events as they are.
"""

from __future__ import annotations

from msgspec import Struct

from broker.protocol.effects import BatchEnded, LinkDown, LinkUp, Log, Received, Send, Tick
from broker.protocol.messages import DEFAULT_DEADLINE_MS, Failure
from edge_agent.catalog import Ended, Held
from edge_agent.jobs import (
    JobFailed,
    JobFinished,
    JobProgress,
    Order,
    PlanLoaded,
    PlanRefused,
    WorkerReady,
    WorkerUnfit,
)

__all__ = [
    "AdoptTensor",
    "AgentEvent",
    "AgentInstruction",
    "Assign",
    "BlobArrived",
    "BlobFailed",
    "BlobOffered",
    "BlobUnkept",
    "DropBlobs",
    "DropFiles",
    "DropValues",
    "FetchBlob",
    "FileHashed",
    "GiveUp",
    "HashFile",
    "Kept",
    "KeepBlob",
    "KeepFailed",
    "KeepResult",
    "KillWorker",
    "MarkDeath",
    "MarkRecorded",
    "OfferBlob",
    "OpenBlobs",
    "Quarantined",
    "Reconnect",
    "RegistrationUnsaved",
    "SaveRegistration",
    "StartWorker",
    "StopWorker",
    "Stopping",
    "StoreChanged",
    "TensorAdopted",
    "TensorUnfit",
    "WorkerDied",
]


class _Effect(Struct, frozen=True, kw_only=True):
    """An event or an instruction."""


# ------------------------------------------------------------------------------------------------- events


class WorkerDied(_Effect, frozen=True, kw_only=True):
    """The worker is gone, as told (`StopWorker`) or not. ``doing`` is the number of the order that it was at; 0:
    none.
    """

    doing: int = 0
    reason: str = ""


class Kept(_Effect, frozen=True, kw_only=True):
    """What these commands ended with (`KeepResult` with ``durable``) is on the disk."""

    ids: tuple[bytes, ...]


class KeepFailed(_Effect, frozen=True, kw_only=True):
    """What these commands ended with could not be kept, and is gone."""

    ids: tuple[bytes, ...]
    failure: Failure


class RegistrationUnsaved(_Effect, frozen=True, kw_only=True):
    """A `SaveRegistration` could not be written, and the connection is given up; `LinkDown` follows."""


class TensorAdopted(_Effect, frozen=True, kw_only=True):
    """The file of an `AdoptTensor` is a tensor, and now the store's: ``held``."""

    held: Held


class TensorUnfit(_Effect, frozen=True, kw_only=True):
    """The file of an `AdoptTensor` is not a tensor that can be kept. ``gone``: it was dropped before it could be, and
    can be had again.
    """

    id: bytes
    failure: Failure
    gone: bool = False


class BlobArrived(_Effect, frozen=True, kw_only=True):
    """A blob is here, whole and verified, in the file ``path``."""

    digest: bytes
    path: str


class BlobFailed(_Effect, frozen=True, kw_only=True):
    """A blob could not be fetched or offered, for now. ``full``: for want of room."""

    digest: bytes
    reason: str = ""
    full: bool = False


class BlobOffered(_Effect, frozen=True, kw_only=True):
    """The broker has the whole blob that was offered."""

    digest: bytes


class BlobUnkept(_Effect, frozen=True, kw_only=True):
    """A `KeepBlob` could not be done: the disk is full, say."""

    digest: bytes
    failure: Failure


class FileHashed(_Effect, frozen=True, kw_only=True):
    """The digest and size of the file of value ``id``, as a blob; an empty digest: it cannot be read, or was
    altered.
    """

    id: bytes
    digest: bytes
    size: int


class StoreChanged(_Effect, frozen=True, kw_only=True):
    """Another program has put something into the store, or deleted something of its own."""


class Stopping(_Effect, frozen=True, kw_only=True):
    """The agent is to end: say goodbye."""


AgentEvent = (
    Received
    | BatchEnded
    | Tick
    | LinkUp
    | LinkDown
    | WorkerReady
    | WorkerUnfit
    | PlanLoaded
    | PlanRefused
    | JobFinished
    | JobFailed
    | JobProgress
    | WorkerDied
    | Kept
    | KeepFailed
    | RegistrationUnsaved
    | TensorAdopted
    | TensorUnfit
    | BlobArrived
    | BlobFailed
    | BlobOffered
    | BlobUnkept
    | FileHashed
    | StoreChanged
    | Stopping
)
"""All that `edge_agent.core.AgentCore.handle` takes."""

# ------------------------------------------------------------------------------------------------- instructions


class StartWorker(_Effect, frozen=True, kw_only=True):
    """Start a worker; `WorkerReady` or `WorkerDied` follows."""


class StopWorker(_Effect, frozen=True, kw_only=True):
    """End the worker, so that its memory comes back; `WorkerDied` follows."""


class KillWorker(_Effect, frozen=True, kw_only=True):
    """End the worker at once: it does not stop what it is at. `WorkerDied` follows."""


class Assign(_Effect, frozen=True, kw_only=True):
    """Give the worker these orders."""

    orders: list[Order]


class KeepResult(_Effect, frozen=True, kw_only=True, gc=False):
    """Keep what a command has ended with. With ``durable``, `Kept` or `KeepFailed` follows, once a batch. ``left``: the
    seconds to its deadline, which its record and the lease of its values outlast.
    """

    ended: Ended
    values: tuple[Held, ...] = ()
    durable: bool = False
    left: float = DEFAULT_DEADLINE_MS / 1000


class MarkRecorded(_Effect, frozen=True, kw_only=True):
    """The broker has these commands on record."""

    ids: list[bytes]


class MarkDeath(_Effect, frozen=True, kw_only=True):
    """A worker has died of this command, the ``deaths``-th: write that down before the next one is started."""

    id: bytes
    deaths: int


class DropValues(_Effect, frozen=True, kw_only=True):
    """Forget these values."""

    ids: list[bytes]


class DropFiles(_Effect, frozen=True, kw_only=True):
    """Remove these files, which nothing names any more."""

    paths: list[str]


class AdoptTensor(_Effect, frozen=True, kw_only=True):
    """Make the content of a tensor file (bytes, or a path) the value ``id``; `TensorAdopted` or `TensorUnfit`
    follows.
    """

    id: bytes
    source: bytes | str
    tags: tuple[str, ...] = ()
    description: str = ""
    blob: bytes | None = None


class KeepBlob(_Effect, frozen=True, kw_only=True):
    """Keep a part of a plan: its bytes, or a file that `BlobArrived` has named. `BlobUnkept` follows if that fails."""

    digest: bytes
    source: bytes | str
    manifest: bool = False


class DropBlobs(_Effect, frozen=True, kw_only=True):
    """Forget these parts of plans."""

    digests: list[bytes]


class OpenBlobs(_Effect, frozen=True, kw_only=True):
    """Where blobs are to be had: the endpoint as the broker told it."""

    endpoint: str


class FetchBlob(_Effect, frozen=True, kw_only=True):
    """Fetch a blob; `BlobArrived` or `BlobFailed` follows."""

    digest: bytes
    size: int


class OfferBlob(_Effect, frozen=True, kw_only=True):
    """Let the broker pull a blob; `BlobOffered` or `BlobFailed` follows. ``source``: its bytes, or the path of its
    file.
    """

    digest: bytes
    source: bytes | str


class HashFile(_Effect, frozen=True, kw_only=True):
    """Learn a tensor file's digest and size; `FileHashed` follows. ``check``: the CRC-32 that it must have."""

    id: bytes
    path: str
    check: int | None = None


class SaveRegistration(_Effect, frozen=True, kw_only=True):
    """Keep what the broker gave at registration, for the next one; or tell `RegistrationUnsaved`. ``other``: the ledger
    is another than before, so nothing is on record any more; that is written with it, or neither is.
    """

    token: bytes
    ledger: bytes
    other: bool = False


class Reconnect(_Effect, frozen=True, kw_only=True):
    """Close the connection, which looks alive and is not, and make a new one; `LinkDown` follows, then `LinkUp`."""

    reason: str


class Quarantined(_Effect, frozen=True, kw_only=True):
    """The broker takes this store for a copy. The core asks again, seldom; nothing is to be done but to tell whoever
    waits.
    """

    reason: str


class GiveUp(_Effect, frozen=True, kw_only=True):
    """The broker has refused this device for good: end the agent."""

    code: str
    reason: str


AgentInstruction = (
    Send
    | Log
    | StartWorker
    | StopWorker
    | KillWorker
    | Assign
    | KeepResult
    | MarkRecorded
    | MarkDeath
    | DropValues
    | DropFiles
    | AdoptTensor
    | KeepBlob
    | DropBlobs
    | OpenBlobs
    | FetchBlob
    | OfferBlob
    | HashFile
    | SaveRegistration
    | Reconnect
    | Quarantined
    | GiveUp
)
"""All that the core may tell its driver to do."""
