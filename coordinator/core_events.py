"""What goes into the session's core and what comes out, beyond the parts that all cores share
(`broker.protocol.effects`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import Cancel as CancelCommand
from broker.protocol.messages import Failure, Frame, Invoke, Message, Put, Release, SessionOpened
from coordinator.core_results import Result

__all__ = [
    "Answered",
    "Ask",
    "Close",
    "GiveUp",
    "PlanParts",
    "Reconnect",
    "ResultEnded",
    "SendPlan",
    "SessionEnded",
    "SessionReady",
    "StreamLevel",
    "SubmitCommand",
    "Submitted",
    "Upload",
    "UploadEnded",
    "UploadFailed",
    "Uploaded",
    "Watch",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanParts:
    """All blobs of a plan by digest: the manifest (named ``plan``), the graph, the state; and what is kept beside it,
    by name.
    """

    plan: bytes
    blobs: Mapping[bytes, Frame]
    beside: Mapping[str, bytes] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- events, from the fac


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitCommand:
    """Send ``command`` to ``devices``. Its id was taken by `SessionCore.take_ids`, in the same step.

    ``plan`` is what an `Invoke` runs: it is sent first, if this ledger does not have it. ``upload`` names what the
    driver must upload before a `Put` can go; the blob's digest comes with `Uploaded`. ``released`` names the outputs
    whose values a `Release` gives up.
    """

    devices: tuple[str, ...]
    command: Invoke | Put | Release | CancelCommand
    frames: tuple[Frame, ...] = ()
    plan: PlanParts | None = None
    upload: bytes | None = None
    released: tuple[tuple[Result, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPlan:
    """Send a plan to the broker, unless this ledger has it."""

    plan: PlanParts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send a request (made with a number of `SessionCore.take_request`) until its answer comes."""

    request: Message


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nobody waits for the answer to request ``r`` any more."""

    r: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Learn how an id of another session, or of an earlier one, ends: `SessionCore.result` follows it.

    ``device`` has it, and ``command`` is the first id of its invocation, as far as is known.
    """

    id: bytes
    device: str = ""
    command: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What ``key`` names is with the broker of ``ledger``, as the blob ``digest``."""

    key: bytes
    digest: bytes
    ledger: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFailed:
    """What ``key`` names can't be uploaded."""

    key: bytes
    failure: Failure
    ledger: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The session ends, and with it everything that waits. What was not accepted is lost."""


# ------------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Submitted:
    """A command was taken; its results, one a device. Always the first instruction that a `SubmitCommand` makes."""

    results: list[Result]


@dataclass(frozen=True, slots=True)
class ResultEnded:
    """The invocation (or `Put`, or watched id) whose first id is ``id`` has ended: its `Result` has the value or says
    why.
    """

    id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Request ``r`` has its answer: ``message`` with ``frames``; or ``failure``, when none will come."""

    r: int
    message: Message | None = None
    frames: tuple[Frame, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Upload what ``key`` names: ``content``, or what the driver was given under that key. Answer with `Uploaded` or
    `UploadFailed`.
    """

    key: bytes
    ledger: bytes
    content: Frame | None = None


@dataclass(frozen=True, slots=True)
class UploadEnded:
    """What ``key`` names won't be asked for any more."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Reconnect:
    """The connection is silent, though it looks alive: make a new one."""


@dataclass(frozen=True, slots=True)
class SessionReady:
    """The broker knows the session; ``opened`` has the endpoints and limits. Comes after every (re)connection."""

    opened: SessionOpened


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The session is over, and everything that waited has ended with ``failure``."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StreamLevel:
    """Somebody follows the log from ``level`` on; 0: nobody."""

    level: int
