"""What goes into the session's core and what comes out, beyond the parts that all cores share
(`broker.protocol.effects`).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from broker.protocol.messages import Cancel as CancelCommand
from broker.protocol.messages import Failure, Frame, Invoke, Message, Put, Release, SessionOpened
from coordinator.core_results import Result

__all__ = [
    "AllAccepted",
    "Answered",
    "Ask",
    "AwaitAccepted",
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


class PlanParts(Struct, frozen=True, kw_only=True, eq=False):
    """All blobs of a plan by digest: the manifest (named ``plan``), the graph, the state; and what is kept beside it,
    by name. ``variant`` is the one of these that devices without torch run; empty: none.
    """

    plan: bytes
    blobs: Mapping[bytes, Frame]
    beside: Mapping[str, bytes] = {}
    variant: bytes = b""


# ------------------------------------------------------------------------------------------------- events, from the fac


class SubmitCommand(Struct, frozen=True, kw_only=True):
    """Send ``command`` to ``devices``. Its id was taken by `SessionCore.take_ids`, in the same step.

    ``plan`` is what an `Invoke` runs: it is sent first, if this ledger does not have it. ``upload`` names what the
    driver must upload before a `Put` can go; the blob's digest comes with `Uploaded`, and ``upload_size`` is about its
    size in bytes. ``released`` names the outputs whose values a `Release` gives up. ``then`` is sent when the result of
    this command, which has one device, has ended with a value; never, if it ends without.
    """

    devices: tuple[str, ...]
    command: Invoke | Put | Release | CancelCommand
    frames: tuple[Frame, ...] = ()
    plan: PlanParts | None = None
    upload: bytes | None = None
    upload_size: int = 0
    released: tuple[tuple[Result, int], ...] = ()
    then: SubmitCommand | None = None


class SendPlan(Struct, frozen=True, kw_only=True):
    """Send a plan to the broker, unless this ledger has it."""

    plan: PlanParts


class Ask(Struct, frozen=True, kw_only=True):
    """Send a request (made with a number of `SessionCore.take_request`) until its answer comes."""

    request: Message


class GiveUp(Struct, frozen=True):
    """Nobody waits for the answer to request ``r`` any more."""

    r: int


class AwaitAccepted(Struct, frozen=True):
    """Say `AllAccepted` with this key when the broker has accepted all commands that were submitted so far."""

    key: int
    give_up: bool = False
    """Don't, after all."""


class Watch(Struct, frozen=True):
    """Learn how an id of another session, or of an earlier one, ends: `SessionCore.result` follows it.

    ``device`` has it, and ``command`` is the first id of its invocation, as far as is known.
    """

    id: bytes
    device: str = ""
    command: bytes | None = None


class Uploaded(Struct, frozen=True, kw_only=True):
    """What ``key`` names is with the broker of ``ledger``, as the blob ``digest``."""

    key: bytes
    digest: bytes
    ledger: bytes


class UploadFailed(Struct, frozen=True, kw_only=True):
    """What ``key`` names can't be uploaded."""

    key: bytes
    failure: Failure
    ledger: bytes


class Close(Struct, frozen=True):
    """The session ends, and with it everything that waits. What was not accepted is lost."""


# ------------------------------------------------------------------------------------------------- instructions


class Submitted(Struct, frozen=True, gc=False):
    """A command was taken; its results, one a device. Always the first instruction that a `SubmitCommand` makes."""

    results: list[Result]


class ResultEnded(Struct, frozen=True, gc=False):
    """The invocation (or `Put`, or watched id) whose first id is ``id`` has ended: its `Result` has the value or says
    why.
    """

    id: bytes


class Answered(Struct, frozen=True, kw_only=True):
    """Request ``r`` has its answer: ``message`` with ``frames``; or ``failure``, when none will come."""

    r: int
    message: Message | None = None
    frames: tuple[Frame, ...] = ()
    failure: Failure | None = None


class AllAccepted(Struct, frozen=True):
    """What `AwaitAccepted` asked for: the commands are in the broker's ledger, or have ended without."""

    key: int


class Upload(Struct, frozen=True, kw_only=True):
    """Upload what ``key`` names: ``content``, or what the driver was given under that key. Answer with `Uploaded` or
    `UploadFailed`.
    """

    key: bytes
    ledger: bytes
    content: Frame | None = None


class UploadEnded(Struct, frozen=True):
    """What ``key`` names won't be asked for any more."""

    key: bytes


class Reconnect(Struct, frozen=True):
    """The connection is silent, though it looks alive: make a new one."""


class SessionReady(Struct, frozen=True):
    """The broker knows the session; ``opened`` has the endpoints and limits. Comes after every (re)connection."""

    opened: SessionOpened


class SessionEnded(Struct, frozen=True):
    """The session is over, and everything that waited has ended with ``failure``."""

    failure: Failure


class StreamLevel(Struct, frozen=True):
    """Somebody follows the log from ``level`` on; 0: nobody."""

    level: int
