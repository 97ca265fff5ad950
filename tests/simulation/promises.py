"""What is promised, as far as it is built: who submitted what, what came of it, and whether that is as promised.

The checker knows the right value of every id, and for which ids an end without a value can be explained. It is told of
everything by the nodes while the simulation runs (`Promises.broken` raises at once), and judges the rest when all is
calm again (`Promises.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from broker.protocol.ids import counter_of, incarnation_of, nth
from broker.protocol.messages import Failure, Frame, ResultStatus, StatusEntry
from tests.simulation.world import World

__all__ = ["BrokenPromise", "Promises", "Submitted"]


class BrokenPromise(AssertionError):
    """A promise was broken; the message has the seed, the promise, and the story."""


@dataclass(slots=True, kw_only=True)
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
    arguments: Sequence[Submitted] = ()
    excuses: set[str] = field(default_factory=set)
    ended: str = ""
    failure: Failure | None = None
    released_at: int = 0
    starts: int = 0

    def argument_may_fail(self) -> bool:
        """Whether an argument ended without a value, or was released in a way that this command need not precede."""
        mine = incarnation_of(self.id)
        return any(
            argument.ended != "value"
            or (argument.released_at and (incarnation_of(argument.id) != mine or argument.released_at < self.number))
            or (incarnation_of(argument.id) != mine and self._not_known_yet(argument))
            for argument in self.arguments
        )

    def _not_known_yet(self, argument: Submitted) -> bool:
        """Whether it failed because another session's command came to the broker later: nothing orders sessions."""
        if self.failure is None:
            return False
        details = self.failure.details
        unknown = details.get("code") == "UnknownResult"
        return unknown and any(details.get("argument") == nth(argument.id, k).hex() for k in range(argument.outputs))

    def __str__(self) -> str:
        return f"{self.id.hex()} on {self.device}"


_STATUS = {
    "value": ResultStatus.DONE,
    "InvocationCancelled": ResultStatus.CANCELLED,
    "DeadlineExpired": ResultStatus.EXPIRED,
}


class Promises:
    """The checker of one simulation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.submitted: dict[bytes, Submitted] = {}
        self.records: dict[bytes, str] = {}
        self._started: dict[tuple[bytes, str, int], int] = {}

    def broken(self, promise: str, about: str) -> None:
        """Raise `BrokenPromise`, with the story."""
        lines = "\n".join(self.world.story)
        raise BrokenPromise(f"seed {self.world.seed}: {promise}: {about}\n{lines}")

    # ------------------------------------------------------------------------------------------- as it happens

    def submit(self, command: Submitted) -> None:
        """A user submitted a command."""
        self.submitted[command.id] = command

    def record(self, id: bytes, what: str) -> None:
        """The ledger commits a terminal record."""
        if id in self.records:
            self.broken("at most one recorded result", f"{id.hex()} was {self.records[id]} and became {what}")
        self.records[id] = what

    def start(self, id: bytes, device: str, boot: int) -> None:
        """A device's worker starts a job."""
        command = self.submitted.get(id)
        if command is None:
            self.broken("a device runs what was submitted", f"{id.hex()} started on {device}")
            return
        command.starts += 1
        if command.arguments:
            return  # it may have waited for them, and been overtaken
        key = (incarnation_of(id), device, boot)
        before = self._started.get(key, 0)
        if command.starts == 1:
            if counter_of(id) < before:
                self.broken("in order", f"{id.hex()} started on {device} after counter {before}")
            self._started[key] = counter_of(id)

    def end(self, id: bytes, *, frames: Sequence[Frame | None] = (), failure: Failure | None = None) -> None:
        """A session learned how a command ended; no frames and no failure: the value is on the device."""
        command = self.submitted[id]
        if command.ended:
            self.broken("one end", f"{id.hex()} ended as {command.ended} and again")
        command.ended = "value" if failure is None else failure.code
        command.failure = failure
        if failure is None and frames:
            self.value(id, frames)

    def value(self, id: bytes, frames: Sequence[Frame | None]) -> None:
        """The values of a command came to a session."""
        command = self.submitted[id]
        for right, frame in zip(command.frames, frames, strict=True):
            if frame is not None and bytes(frame) != right:
                self.broken("the value is that of the plan on its arguments", f"{command} gave {bytes(frame).hex()}")

    # ------------------------------------------------------------------------------------------- when all is calm

    def judge(self) -> None:
        """Everything that was submitted has ended, and the ledger says the same as the sessions."""
        for command in self.submitted.values():
            if not command.ended:
                self.broken("every pointer ends", f"{command} has not ended")
            excused = command.excuses | ({"ArgumentFailed"} if command.argument_may_fail() else set())
            if command.ended != "value" and command.ended not in excused:
                self.broken("an error says why", f"{command} ended with {command.failure}")
            if command.id not in self.records and command.ended not in {"IdConflict", "UnknownDevice"}:
                self.broken("an end is recorded", f"{command} ended as {command.ended} without a record")

    def status(self, entries: Sequence[StatusEntry]) -> None:
        """The broker's word on ids whose ends the sessions know."""
        for entry in entries:
            command = self.submitted[entry.id]
            right = _STATUS.get(command.ended, ResultStatus.FAILED)
            if command.released_at and right is ResultStatus.DONE:
                right = ResultStatus.RELEASED
            if entry.status is not right:
                self.broken("ask at any time", f"{command} is {entry.status}, not {right}")

    def output(self, id: bytes, frame: Frame) -> None:
        """A session fetched the value of one output."""
        if bytes(frame) != self._right(id):
            self.broken("the value is that of the plan on its arguments", f"{id.hex()} gave {bytes(frame).hex()}")

    def no_output(self, id: bytes, failure: Failure | None) -> None:
        """A session fetched an output that has ended with a value, and got none."""
        if not self._command_of(id).released_at:
            self.broken("a value is kept until it is released", f"{id.hex()} gave {failure}")

    def _command_of(self, id: bytes) -> Submitted:
        for k in range(8):
            command = self.submitted.get(nth(id, -k))
            if command is not None:
                return command
        raise KeyError(id.hex())

    def _right(self, id: bytes) -> bytes:
        command = self._command_of(id)
        return command.frames[counter_of(id) - counter_of(command.id)]
