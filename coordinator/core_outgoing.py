"""One of the session's commands on its way to the broker: see `coordinator.core_commands`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from broker.protocol.messages import Cancel, Command, Frame, Invoke, Release, StorePlan
from coordinator.core_events import PlanParts
from coordinator.core_results import Result

__all__ = ["NOTHING", "NO_KEYS", "Outgoing"]

NO_KEYS: frozenset[bytes] = frozenset()
NOTHING = Release(ids=[])
"""A command without effect, for a number that must be used."""


class Outgoing:
    """A command on its way."""

    __slots__ = (
        "accepted",
        "attached",
        "command",
        "devices",
        "digest",
        "frames",
        "lacked",
        "missing",
        "n",
        "open",
        "plan",
        "results",
        "size",
        "upload",
    )

    def __init__(self, devices: tuple[str, ...], command: Command, frames: tuple[Frame, ...] = ()) -> None:
        self.devices = devices
        self.command = command
        self.frames = frames
        self.digest = b""
        self.plan: PlanParts | None = None  # what an Invoke runs, and a StorePlan stores
        self.attached: Sequence[bytes] = ()  # the digests of the frames of a StorePlan
        self.upload: bytes | None = None
        self.results: list[Result] = []
        self.open = 0  # how many of the results have not ended
        self.accepted = False
        self.n = 0  # its number, once accepted
        self.missing: AbstractSet[bytes] = NO_KEYS  # keys of uploads that must end first
        self.lacked = 0
        self.size = 0  # what it adds to `Commands.bytes`

    def names(self) -> Iterable[bytes]:
        """What others may refer to: the ids that it makes, the plan that it stores."""
        if isinstance(self.command, StorePlan):
            return (self.command.plan,)
        return [output for result in self.results for output in result.ids]

    def refers_to(self, names: set[bytes]) -> bool:
        """Whether it can't do its work before a command that makes one of ``names``."""
        command = self.command
        if isinstance(command, Invoke):
            return (
                command.plan in names
                or any(type(argument) is bytes and argument in names for argument in command.args)
                or any(ids[at : at + 16] in names for ids in command.each.values() for at in range(0, len(ids), 16))
            )
        # A release acts after all earlier commands, and a cancel finds its invocation only once that has arrived.
        return isinstance(command, Release | Cancel)

    def empty(self) -> None:
        """Do nothing any more, under the same number."""
        self.devices, self.command, self.frames, self.digest = (), NOTHING, (), b""
        self.plan = None
