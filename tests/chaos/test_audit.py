"""The auditor itself: it says nothing where all is well, and sees every kind of broken promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from broker.protocol.messages import AskStatus, Failure, ResultStatus, StatusEntry, StatusReport
from coordinator.fleet import Fleet
from tests.chaos.audit import Audit, audit
from tests.chaos.journal import (
    AcceptedEntry,
    Argument,
    CancelEntry,
    EndedEntry,
    Entry,
    Journal,
    OpenedEntry,
    SentEntry,
    read_journal,
)
from tests.chaos.monkey import Kill, Toll
from tests.chaos.observer import End, Observer
from tests.chaos.plans import digest

FIRST, SECOND = ("ab" * 8 + f"{k:016x}" for k in (1, 2))
VALUES = list(range(8))


class Broker:
    """Stands in for a fleet: what the broker has on record, and what devices have."""

    def __init__(self, **records: ResultStatus | Failure) -> None:
        self.records = {FIRST: records.get("first"), SECOND: records.get("second")}
        self.values = {FIRST: np.array(VALUES) * 3 + 1, SECOND: (np.array(VALUES) * 3 + 1) * 3 + 1}

    def ask(self, _kind: object, make: Callable[[int], AskStatus]) -> StatusReport:
        return StatusReport(r=1, entries=[self._entry(id) for id in make(1).ids])

    def _entry(self, id: bytes) -> StatusEntry:
        record = self.records[id.hex()]
        if isinstance(record, Failure):
            return StatusEntry(id=id, status=ResultStatus.FAILED, failure=record)
        return StatusEntry(id=id, status=record or ResultStatus.UNKNOWN)

    def pointer(self, id: str) -> str:
        return id

    def get(self, nest: list[list[str]], **_options: Any) -> list[list[Any]]:
        return [[self.values[id] for id in ids] for ids in nest]


def two_steps() -> list[Entry]:
    """A coordinator has sent two commands, the second with the first one's result, and both were accepted."""
    return [
        OpenedEntry(incarnation=FIRST[:16]),
        SentEntry(id=FIRST, op="step", devices=["a"], outputs=1, arguments=[Argument(values=VALUES)]),
        SentEntry(id=SECOND, op="step", devices=["b"], outputs=1, arguments=[Argument(id=FIRST)]),
        AcceptedEntry(ids=[FIRST, SECOND]),
    ]


def audited(
    folder: Path, broker: Broker, entries: list[Entry], *, toll: Toll | None = None, **ends: list[End]
) -> Audit:
    """What the auditor finds; ``ends``: what was published."""
    path = folder / "coordinator.journal"
    Journal(path).write(*entries)
    observer = Observer("inproc://nowhere")
    for name, published in ends.items():
        observer.ends[{"first": FIRST, "second": SECOND}[name]] = dict.fromkeys(published, time.monotonic())
    return audit(cast(Fleet, broker), [path], observer, toll or Toll())


DONE = ResultStatus.DONE


def test_nothing_is_said_where_all_is_well(tmp_path: Path) -> None:
    """Two accepted commands that are done, with the right values, seen and published once, are nothing to mention."""
    first = EndedEntry(id=FIRST, values=[digest(np.array(VALUES) * 3 + 1)])
    broker = Broker(first=DONE, second=DONE)
    found = audited(tmp_path, broker, [*two_steps(), first], first=[End("", "f")], second=[End("", "s")])
    assert found.complaints == []
    assert (found.sent, found.accepted, found.accepted_terminal, found.values_checked) == (2, 2, 2, 3)


@pytest.mark.parametrize("status", [ResultStatus.UNKNOWN, ResultStatus.QUEUED, ResultStatus.RUNNING])
def test_an_accepted_command_without_an_end_is_lost(tmp_path: Path, status: ResultStatus) -> None:
    """Accepted and not terminal is a broken promise."""
    found = audited(tmp_path, Broker(first=DONE, second=status), two_steps())
    assert [SECOND in sentence for sentence in found.lost] == [True]


def test_another_end_than_was_seen_is_doubled(tmp_path: Path) -> None:
    """An end that a coordinator saw must be the one on record, and no two may have been published."""
    seen = EndedEntry(id=FIRST, code="InvocationCancelled")
    cancel = CancelEntry(id=FIRST)
    broker = Broker(first=DONE, second=DONE)
    found = audited(tmp_path, broker, [*two_steps(), cancel, seen], second=[End("", "x"), End("", "y")])
    assert len(found.doubled) == 2


def test_a_wrong_value_is_seen(tmp_path: Path) -> None:
    """Every value is computed again, through the commands that it came from."""
    broker = Broker(first=DONE, second=DONE)
    broker.values[SECOND] = broker.values[SECOND] + 1
    found = audited(tmp_path, broker, two_steps())
    assert [SECOND in sentence for sentence in found.wrong] == [True]


@pytest.mark.parametrize(
    ("code", "kills", "explained"),
    [
        ("WorkerDied", 1, False),
        ("WorkerDied", 2, True),
        ("ExecutionFailed", 9, False),
        ("InvocationCancelled", 9, False),
    ],
)
def test_an_end_without_a_value_needs_a_reason(tmp_path: Path, code: str, kills: int, explained: bool) -> None:
    """A failure is explained by what chaos did to its device since it was sent, or it is a complaint."""
    entries = two_steps()
    toll = Toll(kills=[Kill("worker", "b", time.monotonic()) for _ in range(kills)])
    broker = Broker(first=DONE, second=Failure(code=code, message="it broke"))
    found = audited(tmp_path, broker, entries, toll=toll)
    assert (found.unexplained == []) is explained


def test_a_line_that_was_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    """A journal goes on after its last whole line."""
    path = tmp_path / "cut.journal"
    Journal(path).write(*two_steps())
    with path.open("ab") as file:
        file.write(b'{"type":"EndedEntry","id":"ab')
    again = Journal(path)
    assert len(again.past) == 4
    again.write(CancelEntry(id=FIRST))
    assert len(list(read_journal(path))) == 5
