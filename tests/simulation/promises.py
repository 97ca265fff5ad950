"""What is promised, as far as it is built: who submitted what, what came of it, and whether that is as promised.

The checker knows the right value of every id, and for which ids an end without a value can be explained. The nodes
tell it everything while the simulation runs, and what is wrong at once raises at once (`Promises.broken`); the rest
is judged when all is calm again (`Promises.judge`).

Not everything is promised in every world: see `Kind`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from broker.ledger.interface import RecordCommand, RecordTerminal
from broker.protocol.ids import counter_of, nth
from broker.protocol.messages import (
    Cancelled,
    Event,
    Expired,
    Failure,
    Frame,
    Invoke,
    Put,
    Release,
    ResultFailed,
    ResultReady,
    ResultStatus,
    StatusEntry,
    Submit,
)
from edge_agent.catalog import Ended
from tests.simulation.submitted import Kind, Submitted
from tests.simulation.world import World

__all__ = ["BrokenPromise", "Promises"]

SHORT_DEADLINE_MS = 3_000
COMMIT_SECONDS = 0.1
"""Within this time what the broker has decided is on its disk."""
MOST_STARTS = 12
"""No command is started more often: after 5 deliveries, in each of which 2 workers may die of it, it has ended."""


class BrokenPromise(AssertionError):
    """A promise was broken; the message has the seed, the promise, and the story."""


_EXCUSES = {
    Kind.USUAL: frozenset[str](),
    # A device that has not come back to the new broker yet is not known there; a plan that a device has not fetched yet
    # may be gone.
    Kind.LOST_LEDGER: frozenset({"LedgerLost", "UnknownResult", "UnknownDevice", "PlanNotFound", "ArgumentFailed"}),
    Kind.LOST_STORE: frozenset({"ResultLost", "ArgumentFailed"}),
    Kind.CLONED_STORE: frozenset({"ResultLost", "UnknownResult", "ArgumentFailed"}),
    Kind.RESTORED_BACKUP: frozenset({"ResultLost", "UnknownResult", "ArgumentFailed"}),
}
"""What a command may end with for reasons of that kind."""


class DurableTables(Protocol):
    """What the checker asks of the broker's disk: what is on it for good."""

    commands: dict[bytes, RecordCommand]
    terminals: dict[bytes, RecordTerminal]


class SafeStore(Protocol):
    """What the checker asks of a device's disk."""

    def safe(self, id: bytes) -> bool:
        """Whether how this command ended would survive a loss of power."""


@dataclass(slots=True, eq=False)
class _Numbered:
    """What a numbered command of a session is about."""

    commands: Sequence[Submitted] = ()
    released: Sequence[Submitted] = ()


_NOTHING = _Numbered()

_STATUS = {
    ResultStatus.DONE: "value",
    ResultStatus.RELEASED: "value",
    ResultStatus.LOST: "value",
    ResultStatus.CANCELLED: "InvocationCancelled",
    ResultStatus.EXPIRED: "DeadlineExpired",
}


class Promises:
    """The checker of one simulation."""

    def __init__(self, world: World, kind: Kind = Kind.USUAL) -> None:
        self.world = world
        self.kind = kind
        self.submitted: dict[bytes, Submitted] = {}
        self.records: dict[bytes, RecordTerminal] = {}
        self.refused: dict[str, str] = {}
        self.accepted_commands = 0
        self.grace_over = 0.0
        """Until when the broker, which has started anew, leaves open what devices may have ended."""
        self._started: dict[tuple[bytes, str], int] = {}
        self._numbered: dict[bytes, dict[int, _Numbered]] = {}
        self._accepted: dict[bytes, int] = {}
        self._rejected: set[tuple[bytes, int]] = set()
        self._sessions: dict[bytes, str] = {}
        self._over: set[bytes] = set()
        self._open: dict[str, list[bytes]] = {}
        self._trouble: dict[str, int] = {}
        self._unwritten: dict[str, float] = {}
        self.unwritten_count = 0

    def broken(self, promise: str, about: str) -> None:
        """Raise `BrokenPromise`, with the story."""
        seed = self.world.seed
        story = "\n".join(self.world.story)
        raise BrokenPromise(f"seed {seed}: {promise}: {about}\nto replay: python -m tests.simulation {seed}\n{story}")

    # ------------------------------------------------------------------------------------------- sessions

    def submit(self, command: Submitted) -> None:
        """A user submitted a command."""
        self.submitted[command.id] = command

    def used_again(self, command: Submitted) -> None:
        """A user submits another command under an id that is taken."""
        command.used_again += 1

    def session(self, incarnation: bytes, name: str) -> None:
        """There is a session."""
        self._sessions[incarnation] = name
        self._numbered[incarnation] = {}

    def session_over(self, incarnation: bytes) -> None:
        """Nobody speaks for that session any more: what was not accepted may be lost with it."""
        self._over.add(incarnation)

    def numbered(self, incarnation: bytes, message: Submit) -> None:
        """A session sends its ``n``-th command."""
        numbered, command = self._numbered[incarnation], message.command
        what = numbered[message.n] = _Numbered()
        if isinstance(command, Invoke | Put):
            width = command.outputs if isinstance(command, Invoke) else 1
            what.commands = [self.submitted[nth(command.id, k * width)] for k in range(len(message.devices))]
            for sent in what.commands:
                sent.sent = True
        elif isinstance(command, Release):
            what.released = [one for id in command.ids if (one := self.submitted.get(id)) is not None]

    def rejected(self, incarnation: bytes, n: int) -> None:
        """The broker takes that command, and does nothing."""
        self._rejected.add((incarnation, n))

    def opened(self, incarnation: bytes, n: int, disk: DurableTables) -> None:
        """The broker tells a session that it knows it, and has its commands up to ``n``."""
        name = self._sessions[incarnation]
        if name:
            known = self._open.setdefault(name, [])
            if incarnation not in known:
                known.append(incarnation)
            elif known[-1] != incarnation:
                self.broken("the newest incarnation fences the older", f"{incarnation.hex()} was let in again")
        self.accepted(incarnation, n, disk)

    def accepted(self, incarnation: bytes, n: int, disk: DurableTables) -> None:
        """The broker tells a session that it has its commands up to ``n``: they must be on its disk."""
        name, numbered = self._sessions[incarnation], self._numbered[incarnation]
        first = self._accepted.get(incarnation, 0) + 1
        if name and n >= first and incarnation not in self._open[name][-1:]:
            self.broken("the newest incarnation fences the older", f"{incarnation.hex()} was accepted up to {n}")
        for number in range(first, n + 1):
            if (incarnation, number) in self._rejected:
                continue
            what = numbered.get(number, _NOTHING)
            for command in what.released:
                command.release_accepted = True
            for command in what.commands:
                command.accepted_at = min(command.accepted_at, self.world.now)
                self.accepted_commands += 1
                if command.id not in disk.commands:
                    self.broken("accepted means on disk", f"{command} was accepted, and is not in the ledger")
        self._accepted[incarnation] = max(n, first - 1)

    # ------------------------------------------------------------------------------------------- crashes

    def broker_ended(self, sessions: AbstractSet[bytes]) -> None:
        """What the broker told and did not get to its disk it may have forgotten. ``sessions``: which are on it."""
        for name, known in self._open.items():
            self._open[name] = [incarnation for incarnation in known if incarnation in sessions]
        for command in self.submitted.values():
            command.announced_at = math.inf
            if command.word and command.id not in self.records:
                command.broker_forgot = True

    def ledger_lost(self) -> None:
        """Another ledger takes the place of the one that was."""
        self.records.clear()
        self._accepted.clear()
        self._open.clear()
        self._rejected.clear()
        for numbered in self._numbered.values():
            numbered.clear()
        for command in self.submitted.values():
            command.accepted_at, command.release_accepted = math.inf, False

    def device_ended(self, device: str, lost: Iterable[bytes]) -> None:
        """The agent died, and has forgotten how these commands ended."""
        self._trouble[device] = self._trouble.get(device, 0) + 1
        for id in lost:
            self.submitted[id].device_forgot = self.submitted[id].failed_and_forgotten = True
        for command in self.submitted.values():
            if command.device == device and command.ends_unwritten:
                command.failed_and_forgotten = True

    def unwritten(self, device: str) -> None:
        """A device could not write something: its disk is full."""
        self._unwritten[device] = self.world.now
        self.unwritten_count += 1

    def ends_unwritten(self, ids: Iterable[bytes]) -> None:
        """A device that lives on has forgotten how these commands ended."""
        for id in ids:
            command = self.submitted[id]
            command.device_forgot = True
            command.ends_unwritten += 1

    def worker_ended(self, device: str) -> None:
        """The worker of a device died, or idled."""
        self._trouble[device] = self._trouble.get(device, 0) + 1

    def device_refused(self, device: str, code: str) -> None:
        """The broker does not take a device, for good."""
        if self.kind not in (Kind.CLONED_STORE, Kind.RESTORED_BACKUP):
            self.broken("a device is let in", f"{device} was refused: {code}")
        self.refused[device] = code

    # ------------------------------------------------------------------------------------------- ledger and devices

    def recorded(self, write: RecordTerminal) -> None:
        """The disk has a terminal record."""
        before = self.records.get(write.id)
        if before is not None:
            self.broken("at most one recorded result", f"{write.id.hex()} was {before} and became {write}")
        self.records[write.id] = write
        if write.id in self.submitted:
            self._said(self.submitted[write.id], _word_of(write))

    def dropped(self, ids: Iterable[bytes]) -> None:
        """The ledger forgets records, whose retention is over: not within the time that a simulation takes."""
        self.broken("a record is kept until its retention is over", ", ".join(id.hex() for id in ids))

    def told_recorded(self, ids: Iterable[bytes], disk: DurableTables) -> None:
        """The broker told a device that these ends are on its record."""
        for id in ids:
            if id not in disk.terminals:
                self.broken("recorded means on disk", f"{id.hex()} is recorded, and is not in the ledger")

    def announced(self, event: Event, store: SafeStore) -> None:
        """A device announces something: a value that does not ride in the announcement must be on its disk.

        One that did ride, and was released since, is announced again without, and described by no info: there is
        nothing left that could be lost (seed 117395).
        """
        if isinstance(event, ResultReady) and not event.inline and event.infos and not store.safe(event.id):
            self.broken("announced means on disk", f"{event.id.hex()} would not survive a loss of power")

    def arrived(self, event: Event) -> None:
        """An announcement has come to the broker."""
        command = self.submitted.get(event.id) if isinstance(event, ResultReady | ResultFailed) else None
        if command is not None:
            command.announced_at = min(command.announced_at, self.world.now)

    def start(self, id: bytes, device: str, before: Ended | None) -> None:
        """A device's worker starts a job. ``before``: how the device's store says that it ended."""
        command = self.submitted.get(id)
        if command is None:
            self.broken("a device runs what was submitted", f"{id.hex()} started on {device}")
            return
        if before is not None and isinstance(before.event, ResultReady):
            self.broken("what has a value is not run again", f"{command} started again")
        command.starts += 1
        if command.starts > MOST_STARTS:
            self.broken("a poison command ends", f"{command} started {command.starts} times")
        if self.kind is Kind.CLONED_STORE:
            return
        if command.starts > 1 + self._trouble.get(device, 0) + command.ends_unwritten:
            self.broken("execution repeats only after a crash", f"{command} started {command.starts} times")
        if command.arguments or command.starts > 1 or command.failed_and_forgotten or self.kind is not Kind.USUAL:
            return  # it may have waited for arguments, and been overtaken; or have ended before what came later began
        key = (command.incarnation, device)
        before_it = self._started.get(key, 0)
        if counter_of(id) < before_it:
            self.broken("in order", f"{id.hex()} started on {device} after counter {before_it}")
        self._started[key] = counter_of(id)

    # ------------------------------------------------------------------------------------------- what anybody is told

    def _said(self, command: Submitted, word: str) -> None:
        """Somebody was told how a command ended, or the disk says so: there is but one end."""
        if not command.word:
            command.word = word
        elif command.word != word:
            taken_back = command.forgotten_by_both or self._grace_has_passed(command, word)
            if not taken_back and self.kind is Kind.USUAL:
                self.broken("one end", f"{command} ended as {command.word}, and then as {word}")
            command.word = word
            command.taken_back = command.taken_back or taken_back
        if word == "DeadlineExpired" and self.world.now < command.at + SHORT_DEADLINE_MS / 1000:
            self.broken("a deadline is no shorter than it says", f"{command} has expired")
        if word == "value" and command.worthless:
            self.broken("the value is that of the plan on its arguments", f"{command} can't have one")

    def _grace_has_passed(self, command: Submitted, word: str) -> bool:
        """Whether it expired, or was cancelled, while its device was away, after an end that was told before its
        commit: that one was provisional, and is kept for a grace after a restart of the broker, or until its device has
        announced it again.
        """
        if word not in ("DeadlineExpired", "InvocationCancelled") or not command.broker_forgot:
            return False
        announced_again = command.announced_at < self.world.now - COMMIT_SECONDS
        return self.world.now >= self.grace_over and not announced_again

    def ended(self, id: bytes, *, frames: Sequence[Frame | None] = (), failure: Failure | None = None) -> None:
        """A session learned how a command ended; no frames and no failure: the value is on the device."""
        command = self._command_of(id)
        word = "value" if failure is None else failure.code
        if command.used_again and word == "IdConflict":
            return
        if command.used_again and command.ended:
            self.broken("the same id with another digest is refused", f"{command} was used again, and ended as {word}")
        if command.ended and command.incarnation not in self._over:
            self.broken("one end", f"{command} ended as {command.ended} and again")
        if word in ("UnknownResult", "LedgerLost"):
            if self.kind is Kind.USUAL and (command.accepted or command.incarnation not in self._over):
                self.broken("no accepted command is lost", f"{command} is not known")
        elif word not in ("ResultReleased", "NotAllowed"):
            self._said(command, word)
        command.ended = "value" if word == "ResultReleased" else word
        command.failure = failure
        if failure is None and frames:
            for right, frame in zip(command.frames, frames, strict=False):
                if frame is not None and bytes(frame) != right:
                    self.broken("the value is that of the plan on its arguments", f"{command} gave {bytes(frame)!r}")

    def status(self, entries: Sequence[StatusEntry], *, asked_at: float) -> None:
        """The broker's word on some ids, at any time."""
        for entry in entries:
            command = self._command_of(entry.id)
            word = _STATUS.get(entry.status, "")
            if entry.status is ResultStatus.FAILED and entry.failure is not None:
                word = entry.failure.code
            if word:
                self._said(command, word)
            if entry.status is ResultStatus.LOST and self.kind is Kind.USUAL:
                self.broken("no result is lost", f"{command} is {entry.status}")
            if entry.status is ResultStatus.RELEASED and not command.released_at:
                self.broken("a value is kept until it is released", f"{command} is {entry.status}")
            gone = entry.status in (ResultStatus.UNKNOWN, ResultStatus.FORGOTTEN)
            if gone and command.accepted_at < asked_at and self.kind is Kind.USUAL:
                self.broken("no accepted command is lost", f"{command} is {entry.status}")

    def output(self, id: bytes, frame: Frame) -> None:
        """A session fetched the value of one output."""
        command = self._command_of(id)
        if bytes(frame) != command.frames[counter_of(id) - counter_of(command.id)]:
            self.broken("the value is that of the plan on its arguments", f"{id.hex()} gave {bytes(frame)!r}")

    def no_output(self, id: bytes, failure: Failure | None) -> None:
        """A session fetched an output that has ended with a value, and got none."""
        command = self._command_of(id)
        provisional = failure is not None and failure.code == "NotReady" and command.broker_forgot
        lost = self.kind is Kind.LOST_STORE and failure is not None and failure.code == "ResultLost"
        told = self.kind in (Kind.USUAL, Kind.LOST_STORE)
        if told and not (command.released_at or provisional or lost or command.taken_back):
            self.broken("a value is kept until it is released", f"{id.hex()} gave {failure}")

    # ------------------------------------------------------------------------------------------- when all is calm

    def waiting(self) -> bool:
        """Whether anything that was submitted has not ended yet, and must."""
        return any(
            not command.ended and (command.id not in self.records or command.incarnation not in self._over)
            for command in self.submitted.values()
        )

    def judge(self) -> None:
        """Everything that was submitted has ended, and the ledger says the same as the sessions."""
        for command in self.submitted.values():
            self._adopt_record(command)
            if not command.ended:
                self.broken("every pointer ends", f"{command} has not ended")
        for command in self.submitted.values():
            self._judge(command)

    def _adopt_record(self, command: Submitted) -> None:
        """What nobody waits for any more has ended as the ledger says; it may be unknown if it was not accepted."""
        if command.ended or command.incarnation not in self._over:
            return
        record = self.records.get(command.id)
        if record is not None:
            command.ended = _word_of(record)
            command.failure = record.event.failure if isinstance(record.event, ResultFailed) else None
        elif not command.accepted or self.kind is Kind.LOST_LEDGER:
            command.ended = "UnknownResult"
        elif not self.refused:
            self.broken("no accepted command is lost", f"{command} has no record")
        else:
            command.ended = "refused"

    def _judge(self, command: Submitted) -> None:
        ended = command.ended
        excused = set(command.excuses) | _EXCUSES[self.kind]
        late = command.excuses & {"InvocationCancelled", "DeadlineExpired"}
        if self.kind is Kind.LOST_LEDGER and (command.released_at or late):
            excused.add("ExecutionFailed")  # the device has dropped the value, and can't say again what it was
        if command.argument_may_fail():
            excused.add("ArgumentFailed")
        if self._unwritten.get(command.device, -1.0) >= command.at:
            excused.add("StoreFull")
            if command.failure is not None and command.failure.details.get("code") == "StoreFull":
                excused.add("ArgumentFailed")  # a large argument from elsewhere has no room here
        if self._trouble.get(command.device, 0) >= 2:
            excused.add("WorkerDied")
        if command.incarnation in self._over and not command.accepted:
            # Neither was its plan, which its device may have had in part, nor its blob.
            excused |= {"UnknownResult", "LedgerLost", "PlanNotFound", "ResultLost"}
        if ended not in excused and ended not in ("value", "refused"):
            self.broken("an error says why", f"{command} ended with {command.failure or ended}")
        if self.kind is not Kind.USUAL:
            return
        record = self.records.get(command.id)
        if record is None:
            # What its session was told before it died itself, and no disk of broker or device got to have.
            nobodys = command.forgotten_by_both and command.incarnation in self._over and not command.accepted
            # Its session knew that the broker would never know an argument.
            kept_here = not command.sent and any(argument.id not in self.records for argument in command.arguments)
            rejected = ended in ("NotAllowed", "UnknownResult", "LedgerLost")
            if not rejected and not nobodys and not (ended == "ArgumentFailed" and kept_here):
                self.broken("an end is recorded", f"{command} ended as {ended} without a record")
        elif _word_of(record) != ended and not (command.taken_back or command.forgotten_by_both):
            # Whoever asks after what was never accepted hears that it is not known; its device may have it, and say so.
            asked_early = ended == "UnknownResult" and command.incarnation in self._over and not command.accepted
            if not asked_early:
                self.broken("one end", f"{command} ended as {ended}, and the ledger says {record}")

    def final_status(self, entries: Sequence[StatusEntry]) -> None:
        """The broker's word on everything, when all is calm."""
        if self.kind is not Kind.USUAL:
            return
        for entry in entries:
            command = self._command_of(entry.id)
            record = self.records.get(command.id)
            # What a session that is over never brought into the ledger may pass for forgotten.
            right = {ResultStatus.UNKNOWN, ResultStatus.FORGOTTEN} if record is None else {record.status}
            if right == {ResultStatus.DONE} and command.released_at:
                right = {ResultStatus.RELEASED}
                if not (command.release_accepted and command.accepted):
                    right.add(ResultStatus.DONE)
            if entry.status not in right:
                self.broken("ask at any time", f"{command} is {entry.status}, not {right}")

    def _command_of(self, id: bytes) -> Submitted:
        for k in range(8):
            command = self.submitted.get(nth(id, -k))
            if command is not None:
                return command
        raise KeyError(id.hex())


def _word_of(record: RecordTerminal) -> str:
    event = record.event
    if isinstance(event, ResultFailed):
        return event.failure.code
    if isinstance(event, Cancelled):
        return "InvocationCancelled"
    return "DeadlineExpired" if isinstance(event, Expired) else "value"
