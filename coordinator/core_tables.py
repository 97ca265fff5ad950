"""The session's state machines as data: which input leads from which state to which.

A pair that a table does not have means nothing in that state. From a peer it is dropped (and logged at debug level);
from ourselves it is `InvalidTransition`, a bug.

The members are strings: the hash of those is C's. To reach one costs a call each time, so what is looked at for every
command has a name of its own where it is used.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from broker.protocol.errors import InvalidTransition

__all__ = ["LINK", "RESULT", "Link", "LinkInput", "LinkMachine", "ResultInput", "ResultState"]


class Link(enum.StrEnum):
    """How the session stands with the broker."""

    DOWN = "down"
    """No connection; the driver is making one."""
    OPENING = "opening"
    """Connected and introduced; no answer yet."""
    OPEN = "open"
    """The broker knows the session: everything flows."""
    WAITING = "waiting"
    """Refused for now: it introduces itself again after a while."""
    REFUSED = "refused"
    """Refused for good. Everything that waited has ended."""
    CLOSED = "closed"
    """Closed by its owner."""


class LinkInput(enum.StrEnum):
    """What may happen to the link. The first five come from the driver or the face, the others from the broker."""

    UP = "up"
    LOST = "lost"
    SILENT = "silent"
    RETRY = "retry"
    CLOSE = "close"
    OPENED = "opened"
    STRANGER = "stranger"
    REFUSED = "refused"
    REFUSED_FOR_NOW = "refused_for_now"


LINK: Final[dict[tuple[Link, LinkInput], Link]] = {
    (Link.DOWN, LinkInput.UP): Link.OPENING,
    (Link.DOWN, LinkInput.LOST): Link.DOWN,
    (Link.DOWN, LinkInput.CLOSE): Link.CLOSED,
    (Link.OPENING, LinkInput.UP): Link.OPENING,  # a connection was lost and made again between two looks of the driver
    (Link.OPENING, LinkInput.LOST): Link.DOWN,
    (Link.OPENING, LinkInput.SILENT): Link.DOWN,  # a half-open connection looks alive
    (Link.OPENING, LinkInput.RETRY): Link.OPENING,
    (Link.OPENING, LinkInput.CLOSE): Link.CLOSED,
    (Link.OPENING, LinkInput.OPENED): Link.OPEN,
    (Link.OPENING, LinkInput.REFUSED): Link.REFUSED,
    (Link.OPENING, LinkInput.REFUSED_FOR_NOW): Link.WAITING,
    # A Stranger while opening answers what was sent before the introduction, which is under way: nothing to do.
    (Link.OPEN, LinkInput.UP): Link.OPENING,
    (Link.OPEN, LinkInput.LOST): Link.DOWN,
    (Link.OPEN, LinkInput.SILENT): Link.DOWN,
    (Link.OPEN, LinkInput.CLOSE): Link.CLOSED,
    (Link.OPEN, LinkInput.OPENED): Link.OPEN,  # the introduction was sent twice, and answered twice
    (Link.OPEN, LinkInput.STRANGER): Link.OPENING,
    (Link.OPEN, LinkInput.REFUSED): Link.REFUSED,
    (Link.OPEN, LinkInput.REFUSED_FOR_NOW): Link.WAITING,
    (Link.WAITING, LinkInput.UP): Link.OPENING,
    (Link.WAITING, LinkInput.LOST): Link.DOWN,
    (Link.WAITING, LinkInput.RETRY): Link.OPENING,
    (Link.WAITING, LinkInput.CLOSE): Link.CLOSED,
    (Link.WAITING, LinkInput.REFUSED): Link.REFUSED,
    (Link.REFUSED, LinkInput.UP): Link.REFUSED,
    (Link.REFUSED, LinkInput.LOST): Link.REFUSED,
    (Link.REFUSED, LinkInput.CLOSE): Link.CLOSED,
    (Link.CLOSED, LinkInput.UP): Link.CLOSED,
    (Link.CLOSED, LinkInput.LOST): Link.CLOSED,
    (Link.CLOSED, LinkInput.CLOSE): Link.CLOSED,
}
"""The link's machine."""


class LinkMachine:
    """The link's state, and the last steps that led to it."""

    def __init__(self) -> None:
        self.state = Link.DOWN
        self._story: deque[str] = deque(maxlen=12)

    def takes(self, step: LinkInput) -> bool:
        """Whether ``step`` means something now."""
        return (self.state, step) in LINK

    def go(self, step: LinkInput) -> Link:
        """Take ``step``; the state that it left. Raises `InvalidTransition` where the table has no such pair."""
        before = self.state
        after = LINK.get((before, step))
        if after is None:
            raise InvalidTransition("the session's link", before.value, step.value, tuple(self._story))
        self._story.append(f"{before.value} -{step.value}-> {after.value}")
        self.state = after
        return before


class ResultState(enum.StrEnum):
    """What is known here of an invocation's results. All but `PENDING` are final."""

    PENDING = "pending"
    INLINE = "inline"
    """Done; the values are here."""
    REMOTE = "remote"
    """Done; the values are on the device."""
    FAILED = "failed"
    """Ended without a value: `Result.failure` says why."""


class ResultInput(enum.StrEnum):
    """How an invocation may end."""

    READY_INLINE = "ready_inline"
    READY_REMOTE = "ready_remote"
    FAILED = "failed"


RESULT: Final[dict[tuple[ResultState, ResultInput], ResultState]] = {
    (ResultState.PENDING, ResultInput.READY_INLINE): ResultState.INLINE,
    (ResultState.PENDING, ResultInput.READY_REMOTE): ResultState.REMOTE,
    (ResultState.PENDING, ResultInput.FAILED): ResultState.FAILED,
}
"""An invocation's machine. What ended has left the core's table, so a second end finds nobody and is dropped."""
