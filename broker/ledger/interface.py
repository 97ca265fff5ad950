"""What must survive a broker, as typed writes, and the interface of whatever keeps them.

A core describes what changed as a list of writes; a ledger commits a list in order, all or nothing, and gives back
the sum of all commits as a `Snapshot` when a broker starts. `broker.ledger.memory` keeps it in memory.

``seq`` numbers commands, releases and errands in the order in which the broker took them, across sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from msgspec import Struct

from broker.protocol.messages import (
    Cancel,
    Cancelled,
    Digest,
    Expired,
    Failure,
    Frame,
    Invoke,
    Put,
    Release,
    ResultFailed,
    ResultReady,
    ResultStatus,
    TagEntry,
)

__all__ = [
    "ChangeTags",
    "DropDevice",
    "DropErrand",
    "DropPlan",
    "DropRelease",
    "DropResults",
    "DropSession",
    "Ending",
    "LEDGER_ID_BYTES",
    "Ledger",
    "MarkDelivered",
    "MarkLost",
    "MarkReleased",
    "MarkReleasing",
    "MarkSeen",
    "RecordCommand",
    "RecordDevice",
    "RecordErrand",
    "RecordPlan",
    "RecordRelease",
    "RecordSession",
    "RecordTerminal",
    "Snapshot",
    "StoredResult",
    "Write",
]

LEDGER_ID_BYTES = 16
"""A ledger has a random id: peers tell by it that what they said to another one is not known to this one."""

Ending: TypeAlias = ResultReady | ResultFailed | Cancelled | Expired
"""The event that ended an invocation, as it is notified."""


if TYPE_CHECKING:
    KeptFrame: TypeAlias = Frame
else:
    KeptFrame = bytes  # what is read back; a decoder for either of bytes and memoryview cannot be made


class _Write(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One change of the ledger. Kept as an array: a new field goes to the end, with a default."""


class RecordCommand(_Write, frozen=True, kw_only=True):
    """A command for one device, in its mailbox until it ends.

    ``command`` is None where the ledger knows a result only from its device's announcement. ``n`` is the number of
    the session's `Submit`; ``deadline_ms`` a point in time (ms since the Unix epoch).
    """

    seq: int
    id: bytes
    outputs: int
    device: str
    incarnation: bytes
    n: int
    digest: bytes
    command: Invoke | Put | None
    frames: tuple[KeptFrame, ...]
    deadline_ms: int


class MarkDelivered(_Write, frozen=True, kw_only=True):
    """These commands have been taken by the device's agent: one delivery more for each."""

    ids: list[bytes]


class RecordTerminal(_Write, frozen=True, kw_only=True):
    """A command has ended, for good. Its payload is needed no more; ``frames`` are the inline values."""

    id: bytes
    status: ResultStatus
    event: Ending
    frames: tuple[KeptFrame, ...] = ()


class MarkSeen(_Write, frozen=True, kw_only=True):
    """These have been seen by their session, or nobody will come for them: no notification is due. ``seen`` False: it
    is due again, since somebody has come.
    """

    ids: list[bytes]
    seen: bool = True


class MarkReleasing(_Write, frozen=True, kw_only=True):
    """The outputs of ``id`` in the bit mask ``outputs`` are to be released as soon as nothing needs them."""

    id: bytes
    outputs: int


class MarkReleased(_Write, frozen=True, kw_only=True):
    """The outputs of ``id`` in the bit mask ``outputs`` are released; with ``whole``, all are."""

    id: bytes
    outputs: int
    whole: bool


class MarkLost(_Write, frozen=True, kw_only=True):
    """The values of these are gone with their device's store; those that are released stay so."""

    ids: list[bytes]


class DropResults(_Write, frozen=True, kw_only=True):
    """The retention of these is over."""

    ids: list[bytes]


class RecordRelease(_Write, frozen=True, kw_only=True):
    """A `Release` that waits for earlier commands."""

    seq: int
    incarnation: bytes
    n: int
    ids: list[bytes]


class DropRelease(_Write, frozen=True, kw_only=True):
    """All commands before that release have ended: `MarkReleased` or `MarkReleasing` says what became of its ids."""

    seq: int


class RecordErrand(_Write, frozen=True, kw_only=True):
    """A command without a result of its own that the device has yet to take."""

    seq: int
    device: str
    digest: bytes
    command: Release | Cancel


class DropErrand(_Write, frozen=True, kw_only=True):
    """The device has taken it."""

    seq: int


class RecordSession(_Write, frozen=True, kw_only=True):
    """A session: its name (empty: none), the last command taken, the last notification seen.

    ``highest`` is the largest counter of its ids; ``forgotten`` the intervals of counters whose records are gone.
    ``rejected``: commands that were taken and do nothing, by number, and why: the session may not have heard of it.
    """

    incarnation: bytes
    name: str
    taken: int
    seen: int
    highest: int
    forgotten: list[tuple[int, int]] = []
    rejected: list[tuple[int, Failure]] = []


class DropSession(_Write, frozen=True, kw_only=True):
    """A session is over; ``highest`` is the largest counter of its ids.

    ``fenced_by``: the name of the session that a newer incarnation has taken over; empty: nobody has.
    """

    incarnation: bytes
    highest: int
    fenced_by: str = ""


class RecordDevice(_Write, frozen=True, kw_only=True):
    """A device, as it registered. ``confirmed`` and ``issued`` are the registration tokens that it may present."""

    device: str
    store: bytes
    boot: bytes
    confirmed: bytes
    issued: bytes
    version: tuple[int, int]
    runtimes: list[str]
    labels: dict[str, str]
    last_seen: int
    ops: int = 0


class DropDevice(_Write, frozen=True, kw_only=True):
    """A device has not come back for so long that it is forgotten."""

    device: str


class ChangeTags(_Write, frozen=True, kw_only=True):
    """The tag index of a device, as in `TagsChanged`."""

    device: str
    entries: list[TagEntry]
    gone: list[bytes]
    whole: bool


class RecordPlan(_Write, frozen=True, kw_only=True):
    """A plan that is whole at the broker."""

    plan: Digest
    parts: list[Digest]
    beside: dict[str, Digest]


class DropPlan(_Write, frozen=True, kw_only=True):
    """A plan was not used for longest, and there are too many."""

    plan: Digest


Write: TypeAlias = (
    RecordCommand
    | MarkDelivered
    | RecordTerminal
    | MarkSeen
    | MarkReleasing
    | MarkReleased
    | MarkLost
    | DropResults
    | RecordRelease
    | DropRelease
    | RecordErrand
    | DropErrand
    | RecordSession
    | DropSession
    | RecordDevice
    | DropDevice
    | ChangeTags
    | RecordPlan
    | DropPlan
)


class StoredResult(Struct, kw_only=True, gc=False):
    """All that the ledger knows of one command for one device."""

    command: RecordCommand
    terminal: RecordTerminal | None = None
    deliveries: int = 0
    seen: bool = False
    releasing: int = 0
    released: int = 0
    status: ResultStatus = ResultStatus.QUEUED


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a broker starts from. ``epoch`` is that of the broker that is starting: one more than ever before.

    Each list is in the order in which things were written; ``results`` in the order of ``seq``. ``past_sessions`` are
    the incarnations that are over, with the largest counter of their ids; those of them that were taken over are in
    ``fenced``, with the name of the session.
    """

    ledger: bytes
    epoch: int
    results: list[StoredResult] = []
    ended: list[bytes] = []
    releases: list[RecordRelease] = []
    errands: list[RecordErrand] = []
    sessions: list[RecordSession] = []
    past_sessions: dict[bytes, int] = {}
    fenced: dict[bytes, str] = {}
    devices: list[RecordDevice] = []
    tags: dict[str, list[TagEntry]] = {}
    plans: list[RecordPlan] = []


class Ledger(Protocol):
    """What keeps a broker's promises over its death. One thread at a time uses it."""

    @property
    def waits(self) -> bool:
        """Whether a commit waits for a disk: then a broker that relays lets a thread of its own do it."""
        ...

    def open(self) -> Snapshot:
        """What is kept, for a broker that starts now: its epoch counts up, durably, with each call."""
        ...

    def commit(self, writes: Sequence[Write]) -> None:
        """Keep these, in order, all or nothing; durable on return.

        Raises `broker.ledger.errors.LedgerUnwritable` when the disk is full, say. What was given is remembered, and
        goes along with the next commit, which may be one of nothing.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...
