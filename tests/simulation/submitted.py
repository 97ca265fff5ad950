"""What befalls a fleet, and what its users have submitted to it, as the checker sees it."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.protocol.ids import incarnation_of, nth
from broker.protocol.messages import Failure

__all__ = ["Kind", "Submitted"]


class Kind(enum.StrEnum):
    """What befalls a fleet beyond crashes, which every fleet must bear. What design.md leaves of the promises then is
    what is checked.
    """

    USUAL = "usual"
    LOST_LEDGER = "lost ledger"
    LOST_STORE = "lost store"
    CLONED_STORE = "cloned store"
    RESTORED_BACKUP = "restored backup"


@dataclass(slots=True, kw_only=True, eq=False)
class Submitted:
    """A command on one device. ``frames``: the right values.

    ``excuses``: failure codes that it may end with instead, for reasons of its own. ``arguments``: the commands whose
    results it takes. ``number`` and ``released_at`` are places in the order in which all users did things; 0: never.
    """

    id: bytes
    device: str
    outputs: int
    frames: Sequence[bytes]
    number: int
    at: float
    arguments: Sequence[Submitted] = ()
    excuses: set[str] = field(default_factory=set)
    worthless: bool = False
    """It can't have a value."""
    ended: str = ""
    """How it ended, as its owner was told: ``value``, or a failure code."""
    word: str = ""
    """The first that anybody was told of its end."""
    failure: Failure | None = None
    accepted_at: float = math.inf
    """When the broker first said that it has it."""
    sent: bool = False
    """Whether its session has sent it."""
    released_at: int = 0
    released_by: bytes = b""
    release_accepted: bool = False
    starts: int = 0
    used_again: int = 0
    """How many other commands were submitted under its id."""
    broker_forgot: bool = False
    device_forgot: bool = False
    ends_unwritten: int = 0
    """How often its device could not write how it ended."""
    failed_and_forgotten: bool = False
    """Its device had not written how it ended, or could not, and was started again since."""
    announced_at: float = math.inf
    """When the broker that runs was told of its end."""
    taken_back: bool = False
    """Its end was provisional, and is another one now."""

    @property
    def accepted(self) -> bool:
        """Whether the broker has said that it has it."""
        return self.accepted_at < math.inf

    @property
    def forgotten_by_both(self) -> bool:
        """Whether broker and device lost power before either had written how it ended: then nothing is promised, see
        "What remains possible" in docs/operations.md.
        """
        return self.broker_forgot and self.device_forgot

    @property
    def incarnation(self) -> bytes:
        """Of the session that submitted it."""
        return incarnation_of(self.id)

    @property
    def ids(self) -> list[bytes]:
        """Of all outputs."""
        return [nth(self.id, k) for k in range(self.outputs)]

    def argument_may_fail(self) -> bool:
        """Whether an argument ended without a value, or was released in a way that this command need not precede."""
        mine = self.incarnation
        return any(
            argument.ended != "value"
            or argument.taken_back
            or (argument.released_at and (argument.released_by != mine or argument.released_at < self.number))
            or (argument.incarnation != mine and self._not_known_yet(argument))
            for argument in self.arguments
        )

    def _not_known_yet(self, argument: Submitted) -> bool:
        """Whether it failed because another session's command came to the broker later: nothing orders sessions."""
        if self.failure is None:
            return False
        details = self.failure.details
        unknown = details.get("code") == "UnknownResult"
        return unknown and any(details.get("argument") == id.hex() for id in argument.ids)

    def __str__(self) -> str:
        return f"{self.id.hex()} on {self.device}"
