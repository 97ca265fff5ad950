"""The vocabulary: every message that travels between coordinator, broker and agent, as one frozen type each.

A message is a msgpack array whose first element is its tag (an integer, listed in docs/protocol.md); it is the first
frame of a ZeroMQ multipart message. Tensors follow as frames of their own (see `broker.protocol.tensors`), so the
broker reads the first frame only and relays the others untouched. Commands are imperatives (`Invoke`, `Put`,
`Release`, `Cancel`); events are past or state (`ResultReady`, `Registered`).

Conversations, in the order in which they happen::

    device   -> broker   Register            session -> broker   OpenSession         (either) OpenBlobChannel
    broker   -> device   Registered          broker  -> session  SessionOpened       BlobChannelOpened
                         ... or Refused, to each of the three; Stranger to anybody who speaks before introducing itself

    session  -> broker   Submit(n, command)  numbered; the broker takes only the next number
    broker   -> session  Accepted(n)         all up to n are in the ledger; or Busy(n), Lacking(n), Rejected(n)
    broker   -> device   Deliver(n, command) numbered within the broker's epoch
    device   -> broker   Taken(n)            all up to n are in the device's queue
    device   -> broker   Announce(n, event)  numbered within the start of the agent
    broker   -> device   Recorded(n)         all up to n are in the ledger
    broker   -> session  Notify(n, event)    numbered within the session's incarnation
    session  -> broker   Seen(n)             all up to n are with the session: ends redelivery only

    requests, answered under the same number r, and asked again when no answer comes:
    session  -> broker   Search, AskStatus, ListDevices, AskStats, AskDeadLetters, Fetch
    broker   -> session  Found, StatusReport, DeviceList, Stats, DeadLetters, Values
    broker   -> device   Fetch               device  -> broker   Values
    device   -> broker   NeedValues          broker  -> device   Supply              (arguments that live elsewhere)
    device   -> broker   NeedBlobs           broker  -> device   Blobs               (plans; large ones: blob channel)

    several small messages to a peer that reads them (version 1.1) may come as one
    either               Bundle(messages)

    on a blob channel, either end may ask the other:
    Offer(digest, size) says what can be had; Pull(digest, offset, length) asks; Chunk(digest, offset) + frame answers;
    Stored(digest) says that it is whole and verified; NoBlob(digest) that there is none.

Durations are whole milliseconds, sizes are bytes, points in time are milliseconds since the Unix epoch on the
broker's clock.
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

__all__ = [
    "Accepted",
    "Announce",
    "Argument",
    "AskDeadLetters",
    "AskStats",
    "AskStatus",
    "BlobChannelOpened",
    "Blobs",
    "Bundle",
    "Busy",
    "Cancel",
    "Cancelled",
    "Chunk",
    "Command",
    "Counters",
    "DEFAULT_DEADLINE_MS",
    "DeadLetters",
    "Deliver",
    "DeviceInfo",
    "DeviceList",
    "DropCode",
    "Event",
    "Expired",
    "Failure",
    "Fetch",
    "Fold",
    "Found",
    "Frame",
    "Goodbye",
    "Heartbeat",
    "HeartbeatSeen",
    "INLINE_RESULT_BYTES",
    "INLINE_TENSORS_BYTES",
    "Invoke",
    "Lacking",
    "ListDevices",
    "LogRecords",
    "LogValue",
    "Message",
    "NeedBlobs",
    "NeedValues",
    "NoBlob",
    "Notify",
    "Offer",
    "OpenBlobChannel",
    "OpenSession",
    "Outcome",
    "PROTOCOL_VERSION",
    "Pull",
    "Put",
    "Recorded",
    "RefusalCode",
    "Refused",
    "Register",
    "Registered",
    "Rejected",
    "Release",
    "ResultFailed",
    "ResultInfo",
    "ResultReady",
    "ResultStatus",
    "Search",
    "Seen",
    "SessionOpened",
    "SetLogLevel",
    "Stats",
    "StatusEntry",
    "StatusReport",
    "StorePlan",
    "Stored",
    "Stranger",
    "Submit",
    "Supply",
    "TagEntry",
    "TagsChanged",
    "Taken",
    "Values",
]

PROTOCOL_VERSION = (1, 1)
"""(major, minor). Peers of another major version are refused; a larger minor version only adds fields and messages."""

DEFAULT_DEADLINE_MS = 7 * 24 * 3600 * 1000
"""How long an invocation may take where its coordinator sets nothing: 7 days, in milliseconds."""

INLINE_RESULT_BYTES = 1024
"""A result whose tensors have at most this many bytes in all rides in its own notification."""

INLINE_TENSORS_BYTES = 64 * 1024
"""Tensors and plan parts of at most this many bytes in all ride in the message; larger ones are blobs."""

# ---------------------------------------------------------------------------------------------- field types

Natural: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
ResultId: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
CommandDigest: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Token: TypeAlias = Annotated[bytes, Meta(min_length=8, max_length=16)]
DeviceId: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
Tag: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Version: TypeAlias = tuple[Natural, Natural]
Shape: TypeAlias = list[Natural]
LogValue: TypeAlias = str | int | float | bool | None

Argument: TypeAlias = ResultId | bool | int | float | None | list[Tag]
"""One leaf of a plan's input: the id of a tensor; a number; None, for the next tensor frame of this message; or tags,
for the one tensor on the device that carries them all."""


class RefusalCode(enum.StrEnum):
    """Why a connection was refused."""

    VERSION = "version"
    """The peer speaks another major version."""
    DUPLICATE_DEVICE = "duplicate_device"
    """Another agent of that device id is connected."""
    STALE_TOKEN = "stale_token"
    """The registration token is an old one: a cloned card or a restored backup."""
    FENCED = "fenced"
    """A newer incarnation of the session has connected."""
    NOT_ALLOWED = "not_allowed"
    """The broker's policy does not let this peer in."""
    FULL = "full"
    """The broker carries as many peers as it may."""


class DropCode(enum.StrEnum):
    """Why one message was dropped: `Refused` says this as well, and the connection goes on."""

    MALFORMED = "malformed"
    """It is none of this protocol, or none that its sender may send."""
    TOO_LARGE = "too_large"
    """It is larger than the broker takes."""


class ResultStatus(enum.StrEnum):
    """What can be said of a result id."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    DELIVERED = "delivered"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    RELEASED = "released"
    LOST = "lost"
    FORGOTTEN = "forgotten"


# ---------------------------------------------------------------------------------------------- parts of messages


class _Part(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A structure inside a message: a msgpack array. Elements at the end may be missing where they have defaults.

    No message refers back to itself, so the garbage collector need not look at any.
    """


class Failure(_Part, frozen=True, kw_only=True):
    """Why something ended without a value. ``code`` is the name of the error that the coordinator raises."""

    code: str
    message: str
    details: dict[str, str | int | float | bool | None] = {}


class ResultInfo(_Part, frozen=True, kw_only=True):
    """What is known of a tensor without its value: dtype name (``float32``), shape, and size in bytes."""

    dtype: str
    shape: Shape
    nbytes: Natural


class TagEntry(_Part, frozen=True, kw_only=True):
    """A tagged tensor in the broker's index."""

    id: ResultId
    tags: list[Tag]
    description: str
    info: ResultInfo


class StatusEntry(_Part, frozen=True, kw_only=True):
    """What became of one id. ``command`` is the first id of its invocation, ``outputs`` how many it has.

    ``until``: the point in time at which its lease and its record end; 0: there is none.
    """

    id: ResultId
    status: ResultStatus
    device: str = ""
    failure: Failure | None = None
    info: ResultInfo | None = None
    plan: Digest | None = None
    command: ResultId | None = None
    outputs: Natural = 1
    tags: list[Tag] = []
    description: str = ""
    until: Natural = 0


class DeviceInfo(_Part, frozen=True, kw_only=True):
    """A device in the broker's registry. ``last_seen`` in ms since the Unix epoch; ``ops`` as in `Register`."""

    device: DeviceId
    online: bool
    last_seen: Natural
    version: Version
    runtimes: list[str]
    labels: dict[str, str]
    queued: Natural
    running: Natural
    tensors: Natural
    ops: Natural = 0


class Counters(_Part, frozen=True, kw_only=True):
    """What the broker has counted since it started, in all or for one device.

    ``commands``: commands first relayed to devices. ``notifications``: result notifications first relayed to sessions.
    ``resent``: numbered messages sent again. ``control``: all other messages relayed or answered. ``bytes_in`` and
    ``bytes_out``: all frames of all messages but blob chunks, routing ids not counted. ``blob_bytes_in`` and
    ``blob_bytes_out``: contents of blobs and of plan parts. ``blobs_in``, ``blobs_out``: how many of them.
    """

    commands: Natural = 0
    notifications: Natural = 0
    resent: Natural = 0
    control: Natural = 0
    bytes_in: Natural = 0
    bytes_out: Natural = 0
    blobs_in: Natural = 0
    blobs_out: Natural = 0
    blob_bytes_in: Natural = 0
    blob_bytes_out: Natural = 0


class Outcome(_Part, frozen=True, kw_only=True):
    """What one fetched id gave: one of ``failure`` and ``blob``, or, with neither, the next frame of the message."""

    id: ResultId
    failure: Failure | None = None
    blob: Digest | None = None
    size: Natural = 0


class _Tagged(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A message or a part that is told from its siblings by the tag in front."""


# ---------------------------------------------------------------------------------------------- commands


class Fold(_Part, frozen=True, kw_only=True):
    """Run the invoked plan once for each batch of data, on the device: ``(carry, *batch) -> (carry, out)``.

    The first ``carry`` of the invocation's arguments and of its outputs are the carry, which goes from step to step;
    the other arguments are the data, tensors with one first dim, which is cut into batches of ``batch_size`` rows, the
    last of each epoch perhaps smaller. The other outputs are stacked: one entry a step.
    ``shuffle``: the seed of the order of the rows, another one in each epoch; None: as they are. ``order``: which
    output becomes which argument of the carry; empty: each the one at its own place.
    """

    carry: Natural
    batch_size: Natural
    epochs: Natural = 1
    shuffle: int | None = None
    order: list[Natural] = []


class Invoke(_Tagged, frozen=True, kw_only=True, tag=1):
    """Run plan ``plan`` and keep its outputs under the ids ``id``, ``id + 1``, ...

    ``args`` has one `Argument` for each leaf of the plan's input, in the plan's order. ``each`` maps the position of an
    argument to the ids that stand there device by device, concatenated, where they differ between the devices of one
    `Submit`; the broker puts them in place. ``deadline_ms`` is the time left; 0 means the broker's default.
    ``inline`` False keeps even a small result out of its notification. With ``fold`` the plan runs once a batch.
    ``variant`` names the blob that devices without torch run in place of the graph, or one that names it together with
    the state that it takes; see docs/runtimes.md.
    """

    id: ResultId
    plan: Digest
    args: list[Argument]
    outputs: Natural = 1
    deadline_ms: Natural = 0
    inline: bool = True
    seed: int | None = None
    tags: list[Tag] = []
    description: str = ""
    each: dict[int, bytes] = {}
    fold: Fold | None = None
    variant: Digest | None = None


class Put(_Tagged, frozen=True, kw_only=True, tag=2):
    """Keep a tensor under ``id``: the one frame of this message, or the blob that ``blob`` names."""

    id: ResultId
    tags: list[Tag] = []
    description: str = ""
    blob: Digest | None = None
    deadline_ms: Natural = 0


class Release(_Tagged, frozen=True, kw_only=True, tag=3):
    """The device may drop these ids; one that has not ended drops its value when it does. Idempotent."""

    ids: list[ResultId]


class Cancel(_Tagged, frozen=True, kw_only=True, tag=4):
    """End the invocation whose first id is ``id``, unless it has ended: as cancelled. Idempotent.

    A broker that has ended it otherwise tells its device so: as ``expired``, or with a ``failure``. Another ledger may
    hear of that end from the device alone.
    """

    id: ResultId
    expired: bool = False
    failure: Failure | None = None


class StorePlan(_Tagged, frozen=True, kw_only=True, tag=5):
    """Keep a plan at the broker: it is whole when ``plan`` (the manifest) and all ``parts`` are there.

    The frames are blobs of the plan, each told by its SHA-256; the others are known to the broker or come by blob
    channel. ``attached`` may name those of the frames, in their order. ``beside`` names blobs that belong to the plan
    without being part of its id.
    """

    plan: Digest
    parts: list[Digest]
    attached: list[Digest] = []
    beside: dict[str, Digest] = {}


Command: TypeAlias = Invoke | Put | Release | Cancel | StorePlan

# ---------------------------------------------------------------------------------------------- events


class ResultReady(_Tagged, frozen=True, kw_only=True, tag=16):
    """The invocation (or `Put`) whose first id is ``id`` has ended with a value.

    ``digest`` is the command's (see `broker.protocol.framing.command_digest`). With ``inline``, the values are the
    frames of this message, one an output; without, ``infos`` says what each output is.
    """

    id: ResultId
    digest: CommandDigest
    inline: bool = False
    infos: list[ResultInfo] = []


class ResultFailed(_Tagged, frozen=True, kw_only=True, tag=17):
    """The invocation whose first id is ``id`` has ended without a value."""

    id: ResultId
    digest: CommandDigest
    failure: Failure


class Cancelled(_Tagged, frozen=True, kw_only=True, tag=18):
    """The invocation was cancelled before it ended."""

    id: ResultId
    digest: CommandDigest


class Expired(_Tagged, frozen=True, kw_only=True, tag=19):
    """The invocation's deadline has passed before it ended."""

    id: ResultId
    digest: CommandDigest


class TagsChanged(_Tagged, frozen=True, kw_only=True, tag=20):
    """Tensors of the device were tagged, tagged anew, or are gone. With ``whole``, these are all that it has."""

    entries: list[TagEntry] = []
    gone: list[ResultId] = []
    whole: bool = False


Event: TypeAlias = ResultReady | ResultFailed | Cancelled | Expired | TagsChanged

# ---------------------------------------------------------------------------------------------- introductions


class Register(_Tagged, frozen=True, kw_only=True, tag=32):
    """A device introduces itself, on every connection.

    ``store`` is the store's random id; ``token`` what the broker gave at the last registration, empty at the first;
    ``boot`` is random per start of the agent; ``taken`` the last number taken in ``epoch`` by this boot. ``first`` is
    the number of the next `Announce`: one more than the last that this boot has given out, whoever it was for.
    ``ops`` is the version of the op registry that the device has; 0: the first. ``ledger`` is that of the last
    `Registered`, whose ``epoch`` is told: every ledger counts its epochs from 1. Empty: there was none.
    """

    version: Version
    device: DeviceId
    store: Token
    boot: Token
    token: bytes = b""
    epoch: Natural = 0
    taken: Natural = 0
    runtimes: list[str] = []
    labels: dict[str, str] = {}
    first: Natural = 1
    ops: Natural = 0
    ledger: bytes = b""


class Registered(_Tagged, frozen=True, kw_only=True, tag=33):
    """The broker knows the device now. ``first`` is the number of the next `Deliver`; limits in bytes.

    ``blobs`` is the endpoint of the blob channel; a host of ``*`` or ``0.0.0.0`` in it means this connection's host.
    """

    version: Version
    ledger: Token
    epoch: Natural
    token: bytes
    first: Natural
    heartbeat_ms: Natural
    max_message: Natural
    blobs: str = ""
    log_level: Natural = 0


class OpenSession(_Tagged, frozen=True, kw_only=True, tag=34):
    """A coordinator introduces itself, on every connection. ``session`` is its name; empty: an unnamed one.

    ``ledger`` is the one that it knew last; empty: none yet.
    """

    version: Version
    incarnation: Annotated[bytes, Meta(min_length=8, max_length=8)]
    session: str = ""
    seen: Natural = 0
    ledger: bytes = b""


class SessionOpened(_Tagged, frozen=True, kw_only=True, tag=35):
    """The broker knows the session now, and has taken its commands up to ``accepted``; limits in bytes.

    ``rejected``: as in `Accepted`.
    ``blobs`` is the endpoint of the blob channel, ``logs`` the one on which logs and notifications are published; a
    host of ``*`` or ``0.0.0.0`` in them means this connection's host; empty: there is none.
    """

    version: Version
    ledger: Token
    accepted: Natural
    heartbeat_ms: Natural
    max_message: Natural
    blobs: str = ""
    logs: str = ""
    log_level: Natural = 0
    rejected: dict[int, Failure] = {}


class OpenBlobChannel(_Tagged, frozen=True, kw_only=True, tag=36):
    """A peer opens a connection for blobs. ``role``: ``device`` or ``session``; ``name``: device id or incarnation."""

    version: Version
    role: str
    name: str


class BlobChannelOpened(_Tagged, frozen=True, kw_only=True, tag=37):
    """Blobs may move. ``chunk`` is the largest chunk, ``limit`` the largest blob, in bytes."""

    version: Version
    chunk: Natural
    limit: Natural


class Refused(_Tagged, frozen=True, kw_only=True, tag=38):
    """The broker does not take this peer, or this message. ``version`` is the broker's own."""

    version: Version
    code: str
    reason: str


class Stranger(_Tagged, frozen=True, kw_only=True, tag=39):
    """The broker does not know the sender: it must introduce itself (again)."""


class Goodbye(_Tagged, frozen=True, kw_only=True, tag=40):
    """The sender leaves in order: a device is offline at once."""


# ---------------------------------------------------------------------------------------------- numbered streams


class Submit(_Tagged, frozen=True, kw_only=True, tag=48):
    """A session's ``n``-th command, for the devices named, in that order.

    The results of the k-th device have the ids ``command.id + k * command.outputs`` and on. Whether a name is a device
    id is the broker's to judge: to match the pattern costs more than all else here, and most are known by then.
    """

    n: Natural
    devices: list[str]
    command: Command


class Accepted(_Tagged, frozen=True, kw_only=True, tag=49):
    """All commands up to ``n`` are in the ledger, and every blob that they name.

    ``rejected``: those of them that do nothing, and why; `Rejected` has said so before, and may have been lost.
    """

    n: Natural
    rejected: dict[int, Failure] = {}


class Busy(_Tagged, frozen=True, kw_only=True, tag=50):
    """Command ``n`` was not taken: come again with it after ``retry_ms``."""

    n: Natural
    retry_ms: Natural
    reason: str = ""


class Lacking(_Tagged, frozen=True, kw_only=True, tag=51):
    """Command ``n`` was not taken: it names these blobs, which the broker lacks. Send them, then it again."""

    n: Natural
    digests: list[Digest]


class Rejected(_Tagged, frozen=True, kw_only=True, tag=52):
    """Command ``n`` counts as taken, and does nothing: ``failure`` says why. Its ids end with that failure."""

    n: Natural
    failure: Failure


class Deliver(_Tagged, frozen=True, kw_only=True, tag=53):
    """The ``n``-th command of this epoch for the device. ``digest`` is the command's, of what its session sent."""

    n: Natural
    digest: CommandDigest
    command: Command


class Taken(_Tagged, frozen=True, kw_only=True, tag=54):
    """The device has taken all commands up to ``n``."""

    n: Natural


class Announce(_Tagged, frozen=True, kw_only=True, tag=55):
    """The device's ``n``-th announcement since its agent started: see `Register`."""

    n: Natural
    event: Event


class Recorded(_Tagged, frozen=True, kw_only=True, tag=56):
    """All announcements up to ``n`` are in the ledger, or were dropped because their ids had ended."""

    n: Natural


class Notify(_Tagged, frozen=True, kw_only=True, tag=57):
    """The ``n``-th notification for the session's incarnation, about ids of ``device``."""

    n: Natural
    device: str
    event: Event


class Seen(_Tagged, frozen=True, kw_only=True, tag=58):
    """The session has all notifications up to ``n``."""

    n: Natural


# ---------------------------------------------------------------------------------------------- presence and logs


class Heartbeat(_Tagged, frozen=True, kw_only=True, tag=64):
    """The sender lives. A device names the invocations that run, each with its progress (0 to 1; -1: not known)."""

    running: dict[ResultId, float] = {}


class HeartbeatSeen(_Tagged, frozen=True, kw_only=True, tag=65):
    """The broker lives, too; ``heartbeat_ms``: come again after about so long."""

    heartbeat_ms: Natural


class SetLogLevel(_Tagged, frozen=True, kw_only=True, tag=66):
    """Somebody follows the log from this level on (10 debug ... 50 critical); 0: nobody does, send none."""

    level: Natural


class LogRecords(_Tagged, frozen=True, kw_only=True, tag=67):
    """Log events for the stream, each with its ``event``, ``level`` and ``timestamp``. At best effort."""

    records: list[dict[str, LogValue]]


class Bundle(_Tagged, frozen=True, kw_only=True, tag=68):
    """Several messages in one, in their order: each as all its frames, the header first. Never one of its own kind.

    Sent only to a peer that named version 1.1 or later in its introduction, or in its answer to ours.
    """

    messages: Annotated[list[list[bytes]], Meta(max_length=256)]


# ---------------------------------------------------------------------------------------------- requests and answers


class Search(_Tagged, frozen=True, kw_only=True, tag=80):
    """Which tensors carry all of ``tags``, on ``devices`` (none named: on all)?"""

    r: Natural
    tags: list[Tag]
    devices: list[DeviceId] = []


class Found(_Tagged, frozen=True, kw_only=True, tag=81):
    """The index's answer, device by device, with the time of each device's last word, in ms since the Unix epoch."""

    r: Natural
    entries: dict[str, list[TagEntry]]
    as_of: dict[str, Natural]


class AskStatus(_Tagged, frozen=True, kw_only=True, tag=82):
    """What became of these ids? With ``mine``, of no ids but of the invocations of this session, of all its
    incarnations: the next of them that were not released, behind the one whose first id is ``after``.
    """

    r: Natural
    ids: list[ResultId]
    mine: bool = False
    after: ResultId | None = None


class StatusReport(_Tagged, frozen=True, kw_only=True, tag=83):
    """One entry for each id that was asked about, in that order."""

    r: Natural
    entries: list[StatusEntry]


class ListDevices(_Tagged, frozen=True, kw_only=True, tag=84):
    """Which devices are known?"""

    r: Natural


class DeviceList(_Tagged, frozen=True, kw_only=True, tag=85):
    """All devices that are known, by name."""

    r: Natural
    devices: list[DeviceInfo]


class AskStats(_Tagged, frozen=True, kw_only=True, tag=86):
    """What has been counted?"""

    r: Natural


class Stats(_Tagged, frozen=True, kw_only=True, tag=87):
    """The counters, in all and device by device; ``gauges`` are sizes of now (sessions, devices, queued, ...)."""

    r: Natural
    total: Counters
    devices: dict[str, Counters]
    gauges: dict[str, Natural] = {}


class Fetch(_Tagged, frozen=True, kw_only=True, tag=88):
    """Send the values of these ids: all of one device. From a session, or from the broker to the device."""

    r: Natural
    ids: list[ResultId]


class Values(_Tagged, frozen=True, kw_only=True, tag=89):
    """One outcome for each id that was fetched, in that order; the inline values are the frames, in that order."""

    r: Natural
    outcomes: list[Outcome]


class NeedValues(_Tagged, frozen=True, kw_only=True, tag=90):
    """The device waits for these ids, which it does not have: they are arguments of commands in its queue."""

    ids: list[ResultId]


class Supply(_Tagged, frozen=True, kw_only=True, tag=91):
    """What became of ids that the device needs; as in `Values`. An id that has not ended is supplied when it does."""

    outcomes: list[Outcome]


class NeedBlobs(_Tagged, frozen=True, kw_only=True, tag=92):
    """The device lacks these blobs."""

    digests: list[Digest]


class Blobs(_Tagged, frozen=True, kw_only=True, tag=93):
    """Blobs that the device lacks: the small ones as frames, in the order of ``attached``; ``pull`` maps the large ones
    to their sizes, to be had on the blob channel; ``none`` are not known.
    """

    attached: list[Digest] = []
    pull: dict[Digest, Natural] = {}
    none: list[Digest] = []


class AskDeadLetters(_Tagged, frozen=True, kw_only=True, tag=94):
    """Which commands were given up because their devices died of them, or never ended them? At most ``limit``."""

    r: Natural
    limit: Natural = 100


class DeadLetters(_Tagged, frozen=True, kw_only=True, tag=95):
    """The commands given up, the last first, each with its reason; ``total`` is how many there are."""

    r: Natural
    entries: list[StatusEntry]
    total: Natural


# ---------------------------------------------------------------------------------------------- blob channel


class Offer(_Tagged, frozen=True, kw_only=True, tag=96):
    """The sender has a blob of ``size`` bytes for the receiver to pull."""

    digest: Digest
    size: Natural


class Pull(_Tagged, frozen=True, kw_only=True, tag=97):
    """Send bytes ``offset`` to ``offset + length`` of the blob. Several may be under way: that is the window."""

    digest: Digest
    offset: Natural
    length: Natural


class Chunk(_Tagged, frozen=True, kw_only=True, tag=98):
    """Bytes of the blob from ``offset`` on: the frame of this message. ``size`` is that of the whole blob."""

    digest: Digest
    offset: Natural
    size: Natural


class Stored(_Tagged, frozen=True, kw_only=True, tag=99):
    """The receiver has the whole blob, and its digest is right."""

    digest: Digest


class NoBlob(_Tagged, frozen=True, kw_only=True, tag=100):
    """The blob cannot be had, or was refused: ``reason``. With ``retry_ms``, ask or offer again after so long.
    ``full``: there is no room for it.
    """

    digest: Digest
    reason: str = ""
    retry_ms: Natural = 0
    full: bool = False


Message: TypeAlias = (
    Register
    | Registered
    | OpenSession
    | SessionOpened
    | OpenBlobChannel
    | BlobChannelOpened
    | Refused
    | Stranger
    | Goodbye
    | Submit
    | Accepted
    | Busy
    | Lacking
    | Rejected
    | Deliver
    | Taken
    | Announce
    | Recorded
    | Notify
    | Seen
    | Heartbeat
    | HeartbeatSeen
    | SetLogLevel
    | LogRecords
    | Bundle
    | Search
    | Found
    | AskStatus
    | StatusReport
    | ListDevices
    | DeviceList
    | AskStats
    | Stats
    | Fetch
    | Values
    | NeedValues
    | Supply
    | NeedBlobs
    | Blobs
    | AskDeadLetters
    | DeadLetters
    | Offer
    | Pull
    | Chunk
    | Stored
    | NoBlob
)

Frame: TypeAlias = bytes | memoryview
"""A frame after the first: a tensor, a part of a plan, or a chunk of a blob."""
