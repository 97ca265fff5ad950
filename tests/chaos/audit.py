"""Compares what coordinators wrote down with what the broker says in the end: every command, every end, every value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.config import BrokerConfig
from broker.protocol.ids import nth
from broker.protocol.messages import AskStatus, ResultStatus, StatusEntry, StatusReport
from tests.chaos.journal import (
    AcceptedEntry,
    Argument,
    CancelEntry,
    EndedEntry,
    FetchedEntry,
    OpenedEntry,
    ReleaseEntry,
    SentEntry,
    TroubleEntry,
    UnknownEntry,
    read_journal,
)
from tests.chaos.monkey import Toll
from tests.chaos.observer import End, Observer
from tests.chaos.plans import OPS, PUT, Array, digest, literal

if TYPE_CHECKING:
    from coordinator.fleet import Fleet

__all__ = ["Audit", "audit"]

ASKED_AT_ONCE = 200
GET_WITHIN = 60.0
CLOCK_SLACK = 0.3
"""Seconds by which a deadline may seem to be early: the journal is written before the command leaves."""
DELIVERIES = 5
"""A command that was delivered to so many starts of an agent, and did not end, is failed."""
DEATHS = 2
"""A command at which so many workers died is failed."""
GRACE = BrokerConfig().restart_grace + 15.0
"""Seconds from the kill of a broker to the end of the next one's grace period."""
COMMIT_WITHIN = 10.0
"""Seconds that a commit may take on a machine as busy as this one. Until then an end that was seen is provisional."""

_ENDED = frozenset(
    {
        ResultStatus.DONE,
        ResultStatus.FAILED,
        ResultStatus.EXPIRED,
        ResultStatus.CANCELLED,
        ResultStatus.RELEASED,
        ResultStatus.LOST,
    }
)
_CODES = {ResultStatus.EXPIRED: "DeadlineExpired", ResultStatus.CANCELLED: "InvocationCancelled"}


@dataclass(slots=True)
class Part:
    """One device's part of a command."""

    id: str
    sent: SentEntry
    k: int
    session: str
    accepted: bool = False
    ends: dict[str, float] = field(default_factory=dict)
    """The codes with which coordinators saw it end, empty for a value, and when."""
    values: list[list[str]] = field(default_factory=list)
    cancelled: bool = False
    released: bool = False
    unknown: float | None = None
    """When the session's next process was told that there is no such command."""
    fetch_errors: list[str] = field(default_factory=list)
    status: ResultStatus = ResultStatus.UNKNOWN
    code: str = ""
    argument: str = ""
    message: str = ""

    @property
    def device(self) -> str:
        return self.sent.devices[self.k]


@dataclass(slots=True)
class Audit:
    """What was found. All lists of sentences are empty, if every promise was kept."""

    sent: int = 0
    accepted: int = 0
    accepted_terminal: int = 0
    terminal: Counter[str] = field(default_factory=Counter)
    never_arrived: int = 0
    values_checked: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        """Everything that may not be."""
        return [*self.lost, *self.doubled, *self.wrong, *self.unexplained]


def audit(fleet: Fleet, journals: Iterable[Path], observer: Observer, toll: Toll) -> Audit:
    """Compare. Everything has been given the time to end, and everybody runs."""
    return _Auditor(fleet, journals, observer, toll).done


class _Auditor:
    def __init__(self, fleet: Fleet, journals: Iterable[Path], observer: Observer, toll: Toll) -> None:
        self.done = Audit()
        self._fleet = fleet
        self._observer = observer
        self._toll = toll
        self._parts: dict[str, Part] = {}
        self._expected: dict[str, list[Array]] = {}
        self._last_incarnation: set[str] = set()
        for path in journals:
            self._read(path)
        self._ask()
        for part in self._parts.values():
            self._judge(part)
        self._judge_published()
        self._check_values()
        self.done.unexplained += toll.deaths

    def _read(self, path: Path) -> None:
        latest = ""
        for entry in read_journal(path):
            if isinstance(entry, OpenedEntry):
                latest = entry.incarnation
            elif isinstance(entry, SentEntry):
                for k in range(len(entry.devices)):
                    id = _nth(entry.id, k * entry.outputs)
                    self._parts[id] = Part(id, entry, k, path.stem)
            elif isinstance(entry, AcceptedEntry):
                for first in entry.ids:
                    sent = self._parts[first].sent
                    for k in range(len(sent.devices)):
                        self._parts[_nth(first, k * sent.outputs)].accepted = True
            elif isinstance(entry, TroubleEntry):
                self.done.unexplained.append(f"{path.stem}: {entry.what}")
            else:
                self._note(self._parts[entry.id], entry)
        self._last_incarnation.add(latest)

    def _note(self, part: Part, entry: CancelEntry | ReleaseEntry | EndedEntry | FetchedEntry | UnknownEntry) -> None:
        if isinstance(entry, CancelEntry):
            part.cancelled = True
        elif isinstance(entry, ReleaseEntry):
            part.released = True
        elif isinstance(entry, UnknownEntry):
            part.unknown = entry.at
        elif isinstance(entry, EndedEntry):
            # Who asks for a result that its session has released meanwhile has not seen it end with that.
            if entry.code != "ResultReleased" or not part.released:
                part.ends.setdefault(entry.code, entry.at)
            part.argument = part.argument or entry.argument
            if entry.values:
                part.values.append(entry.values)
        elif entry.values:
            part.values.append(entry.values)
        elif not (entry.error.endswith("has not ended") and self._in_grace(entry.at)):
            # Else it had been told before its commit, and its broker was killed: until its device has announced it
            # again, that end is provisional.
            part.fetch_errors.append(entry.error)

    def _ask(self) -> None:
        """What the broker has on record of every id."""
        ids = list(self._parts)
        for start in range(0, len(ids), ASKED_AT_ONCE):
            some = [bytes.fromhex(id) for id in ids[start : start + ASKED_AT_ONCE]]
            for status in _statuses(self._fleet, some):
                part = self._parts[status.id.hex()]
                part.status = status.status
                part.code = _CODES.get(status.status, "")
                if status.failure is not None and status.status is not ResultStatus.RELEASED:
                    part.code, part.message = status.failure.code, status.failure.message
                    part.argument = str(status.failure.details.get("argument", "")) or part.argument

    # --------------------------------------------------------------------------------------------- one by one

    def _judge(self, part: Part) -> None:
        done = self.done
        done.sent += 1
        done.accepted += part.accepted
        what = f"{part.id} ({part.sent.op} on {part.device}, of {part.session})"
        if part.status not in _ENDED:
            self._judge_unended(part, what)
            return
        done.terminal[part.status.value if not part.code else f"{part.status.value}: {part.code}"] += 1
        done.accepted_terminal += part.accepted
        if part.unknown is not None and (part.accepted or not self._in_grace(part.unknown)):
            done.unexplained.append(f"{what} was unknown to its session's next process, and is {part.status} now")
        recorded = "" if part.status in {ResultStatus.DONE, ResultStatus.RELEASED} else part.code or part.status.value
        if set(part.ends) - {recorded}:
            done.doubled.append(
                f"{what} was seen to end as {_codes(part.ends)}, and is on record as {_codes([recorded])}"
            )
        reason = self._unexplained(part, recorded)
        if reason:
            done.unexplained.append(f"{what} {reason}")
        if part.status is ResultStatus.RELEASED and not part.released:
            done.unexplained.append(f"{what} is released, and nobody asked for that")
        done.unexplained += [
            f"{what} could not be fetched: {error}" for error in part.fetch_errors if not part.released
        ]

    def _judge_unended(self, part: Part, what: str) -> None:
        if part.accepted or not self._provisional(part):
            self.done.lost.append(f"{what} was {'accepted' if part.accepted else 'seen to end'}, and is {part.status}")
        elif part.status not in {ResultStatus.UNKNOWN, ResultStatus.FORGOTTEN}:
            # Of a process that is gone the broker knows the largest id: what is smaller and never came is forgotten.
            self.done.lost.append(f"{what} does not end: it is {part.status}")
        elif part.id[:16] in self._last_incarnation:
            self.done.lost.append(f"{what} was sent by a coordinator that was not killed since, and is unknown")
        else:
            self.done.never_arrived += 1

    def _in_grace(self, at: float) -> bool:
        """Whether a broker had been killed shortly before: until all devices have said what they know, it may not know
        of a command that it had passed on, and not accepted.
        """
        return any(kill.kind == "broker" and kill.at < at < kill.at + GRACE for kill in self._toll.kills)

    def _provisional(self, part: Part) -> bool:
        """Whether nobody saw it end, or the broker was killed before it can have written that down: then it was never
        accepted, and its coordinator, which would have sent it again, was killed as well.
        """
        kills = [kill.at for kill in self._toll.kills if kill.kind == "broker"]
        return all(any(at < killed < at + COMMIT_WITHIN for killed in kills) for at in part.ends.values())

    def _unexplained(self, part: Part, code: str) -> str:
        """Why a part should not have ended with that code; empty, if it may."""
        from_, until = part.sent.at, min(part.ends.values(), default=float("inf"))
        if code == "" or (code == "InvocationCancelled" and part.cancelled):
            return ""
        if code == "DeadlineExpired" and part.sent.deadline and until - from_ >= part.sent.deadline - CLOCK_SLACK:
            return ""
        if code == "WorkerDied":
            worn_out = part.message.startswith("delivered ")
            kinds, enough = ({"agent"}, DELIVERIES) if worn_out else ({"worker", "agent"}, DEATHS)
            if part.message.startswith("no worker starts"):
                from_ = 0.0  # of workers that were killed at their start, before it came
            kills = [kill for kill in self._toll.kills if kill.name == part.device and from_ <= kill.at <= until]
            deaths = sum(kill.kind in kinds for kill in kills)
            return "" if deaths >= enough else f"failed with WorkerDied after {deaths} deaths: {part.message}"
        if code == "ArgumentFailed":
            argument = self._parts.get(part.argument) or self._parts.get(_nth(part.argument, -1))
            if argument is None or not any(_refers(each, part.argument) for each in part.sent.arguments):
                return f"failed because of {part.argument}, which is no argument of it"
            if argument.code or argument.status not in _ENDED:
                return ""
            return f"failed because of its argument {part.argument}, which is {argument.status}: {part.message}"
        return f"ended with {code or part.status}, without a reason"

    # --------------------------------------------------------------------------------------------- ends and values

    def _judge_published(self) -> None:
        for id, ends in self._observer.ends.items():
            part = self._parts.get(id)
            if part is not None and len(ends) > 1:
                seen = ", ".join(f"{end.code or 'value ' + end.value} at {at:.3f}" for end, at in ends.items())
                self.done.doubled.append(f"{id} ({part.sent.op} on {part.device}) was published to end as {seen}")
            if part is not None and part.status in _ENDED:
                recorded = "" if part.status in {ResultStatus.DONE, ResultStatus.RELEASED} else part.code
                if any(end.code != recorded for end in ends) and len(ends) == 1:
                    self.done.doubled.append(
                        f"{id} ({part.sent.op} on {part.device}) was published to end as {_ends(ends)}, and is on "
                        f"record as {_codes([recorded])}"
                    )

    def _check_values(self) -> None:
        """Every value that was seen, and all that are still there."""
        there = [part for part in self._parts.values() if part.status is ResultStatus.DONE and not part.released]
        for start in range(0, len(there), ASKED_AT_ONCE):
            parts = there[start : start + ASKED_AT_ONCE]
            nest = [[self._fleet.pointer(_nth(part.id, k)) for k in range(part.sent.outputs)] for part in parts]
            values = self._fleet.get(nest, timeout=GET_WITHIN, errors="return")
            for part, found in zip(parts, values, strict=True):
                failed = [value for value in found if isinstance(value, Exception)]
                if failed:
                    self.done.lost.append(f"{part.id} is done, and its value can't be had: {failed[0]}")
                else:
                    part.values.append([digest(value) for value in found])
        for part in self._parts.values():
            for seen in part.values:
                self.done.values_checked += len(seen)
                expected = [digest(value) for value in self._values(part.id)]
                if seen != expected:
                    self.done.wrong.append(f"{part.id} ({part.sent.op} on {part.device}) gave {seen}, not {expected}")

    def _values(self, first: str) -> list[Array]:
        """What a part must give. Without recursion: chains may be long."""
        waiting = [first]
        while waiting:
            id = waiting[-1]
            if id in self._expected:
                waiting.pop()
                continue
            part = self._parts[id]
            needed = [self._owner(_id(each, part.k)) for each in part.sent.arguments if each.id or each.each]
            missing = [owner for owner, _ in needed if owner not in self._expected]
            if missing:
                waiting += missing
                continue
            arguments = [self._argument(each, part.k) for each in part.sent.arguments]
            with np.errstate(over="ignore"):
                self._expected[id] = arguments if part.sent.op == PUT else OPS[part.sent.op](*arguments)
        return self._expected[first]

    def _argument(self, argument: Argument, k: int) -> Array:
        if argument.id or argument.each:
            owner, output = self._owner(_id(argument, k))
            return self._expected[owner][output]
        return literal(argument.seed) if argument.seed >= 0 else np.array(argument.values, dtype=np.int64)

    def _owner(self, id: str) -> tuple[str, int]:
        return (id, 0) if id in self._parts else (_nth(id, -1), 1)


def _statuses(fleet: Fleet, ids: Sequence[bytes]) -> list[StatusEntry]:
    report: StatusReport = fleet.ask(StatusReport, lambda r: AskStatus(r=r, ids=list(ids)))
    return report.entries


def _nth(id: str, k: int) -> str:
    return nth(bytes.fromhex(id), k).hex() if id else ""


def _id(argument: Argument, k: int) -> str:
    return argument.id or argument.each[k]


def _refers(argument: Argument, id: str) -> bool:
    return argument.id == id or id in argument.each


def _codes(codes: Iterable[Any]) -> str:
    return " and ".join(code or "done" for code in codes)


def _ends(ends: Iterable[End]) -> str:
    return _codes(end.code for end in ends)
