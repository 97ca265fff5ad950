"""What goes into a pure core, and what comes out: the part that all three cores share.

A core is ``handle(event, now) -> list[Instruction]`` and ``next_timer() -> float | None``. It has no socket, no clock,
no disk. A driver feeds it what happened and executes what it returns, in order; a simulation does the same under a
virtual clock. ``now`` is in seconds, on a clock of the driver's choice that never runs backwards.

Events and instructions that only one core knows stand in that core's own module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import Frame, LogValue, Message

__all__ = ["BatchEnded", "LinkDown", "LinkUp", "Log", "Received", "Send", "Tick"]

# ------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message has arrived, with its payload frames.

    ``peer`` is the routing id of the connection (empty where there is but one), ``size`` the bytes of all frames.
    """

    message: Message
    frames: tuple[Frame, ...] = ()
    peer: bytes = b""
    size: int = 0


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """No more messages are waiting right now: acknowledge what was taken, in one message."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: at `next_timer`, or later."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The connection to the broker stands, for the first time or again: introduce yourself."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection to the broker is gone; the driver tries to make a new one."""


# ------------------------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a message with its payload frames. ``peer`` is the routing id, for a broker."""

    message: Message
    frames: tuple[Frame, ...] = ()
    peer: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Log an event: ``level`` is 10 debug, 20 info, 30 warning, 40 error; never tensor contents, never keys."""

    level: int
    event: str
    fields: Mapping[str, LogValue] = field(default_factory=dict)
