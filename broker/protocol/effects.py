"""What goes into a pure core, and what comes out: the part that all three cores share.

A core is ``handle(event, now) -> list[Instruction]`` and ``next_timer() -> float | None``. It has no socket, no clock,
no disk. A driver feeds it what happened and executes what it returns, in order; a simulation does the same under a
virtual clock. ``now`` is in seconds, on a clock of the driver's choice that never runs backwards.

Events and instructions that only one core knows stand in that core's own module.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from broker.protocol.messages import Frame, LogValue, Message

__all__ = ["BatchEnded", "LinkDown", "LinkUp", "Log", "Received", "Send", "Tick"]

# ------------------------------------------------------------------------------------------------- events


class Received(Struct, frozen=True, kw_only=True, gc=False):
    """A message has arrived, with its payload frames.

    ``peer`` is the routing id of the connection (empty where there is but one), ``size`` the bytes of all frames.
    """

    message: Message
    frames: tuple[Frame, ...] = ()
    peer: bytes = b""
    size: int = 0


class BatchEnded(Struct, frozen=True, gc=False):
    """No more messages are waiting right now: acknowledge what was taken, in one message."""


class Tick(Struct, frozen=True, gc=False):
    """Time has passed: at `next_timer`, or later."""


class LinkUp(Struct, frozen=True, gc=False):
    """The connection to the broker stands, for the first time or again: introduce yourself."""


class LinkDown(Struct, frozen=True, gc=False):
    """The connection to the broker is gone; the driver tries to make a new one."""


# ------------------------------------------------------------------------------------------------- instructions


class Send(Struct, frozen=True, kw_only=True, gc=False):
    """Send a message with its payload frames. ``peer`` is the routing id, for a broker."""

    message: Message
    frames: tuple[Frame, ...] = ()
    peer: bytes = b""


class Log(Struct, frozen=True, kw_only=True, gc=False):
    """Log an event: ``level`` is 10 debug, 20 info, 30 warning, 40 error; never tensor contents, never keys."""

    level: int
    event: str
    fields: Mapping[str, LogValue] = {}
