"""Both ledgers: what they give back is the sum of what was committed, also after they were opened again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from broker.ledger.interface import (
    ChangeTags,
    DropDevice,
    DropErrand,
    DropPlan,
    DropRelease,
    DropResults,
    DropSession,
    Ledger,
    MarkDelivered,
    MarkLost,
    MarkReleased,
    MarkReleasing,
    MarkSeen,
    RecordCommand,
    RecordDevice,
    RecordErrand,
    RecordPlan,
    RecordRelease,
    RecordSession,
    RecordTerminal,
    Snapshot,
    Write,
)
from broker.ledger.memory import MemoryLedger
from broker.ledger.sqlite import SqliteLedger
from broker.protocol.messages import Put, Release, ResultInfo, ResultReady, ResultStatus, TagEntry
from tests.broker.ledger.ledger_story import Story

INFO = ResultInfo(dtype="int8", shape=[], nbytes=1)


def command(seq: int) -> RecordCommand:
    """A command with a tensor."""
    result = bytes([seq]) * 16
    return RecordCommand(
        seq=seq,
        id=result,
        outputs=1,
        device="pi",
        incarnation=b"12345678",
        n=seq,
        digest=b"d" * 16,
        command=Put(id=result),
        frames=(b"tensor",),
        deadline_ms=1000,
    )


def terminal(seq: int) -> RecordTerminal:
    """Its end."""
    result = bytes([seq]) * 16
    event = ResultReady(id=result, digest=b"d" * 16, inline=True)
    return RecordTerminal(id=result, status=ResultStatus.DONE, event=event, frames=(b"value",))


Make = Callable[..., Ledger]
After = Callable[..., Snapshot]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a ledger of each kind."""
    made: list[Ledger] = []

    def build(**options: int) -> Ledger:
        if request.param == "memory":
            made.append(MemoryLedger(**options))  # type: ignore[arg-type]
        else:
            made.append(SqliteLedger(tmp_path / f"{len(made)}" / "ledger.sqlite", **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for ledger in made:
        ledger.close()


@pytest.fixture
def after(make: Make) -> After:
    """Tells what is kept after some writes, committed one by one, and opened again."""

    def build(*writes: Write) -> Snapshot:
        ledger = make()
        ledger.open()
        for write in writes:
            ledger.commit([write])
        ledger.close()
        return ledger.open()

    return build


def test_epochs_count_up(make: Make) -> None:
    """Every broker that starts has an epoch of its own, over the same ledger; another ledger has another id."""
    ledger = make()
    assert [ledger.open().epoch for _ in range(3)] == [1, 2, 3]
    ledger.close()
    again = ledger.open()
    ledger.close()
    assert ledger.open().ledger == again.ledger != make().open().ledger


def test_commands_and_their_ends(after: After) -> None:
    """A command keeps its payload until its end, and then its value; ends are in the order in which they came."""
    snapshot = after(
        command(1),
        command(2),
        command(3),
        MarkDelivered(ids=[b"\1" * 16, b"\2" * 16, b"?" * 16]),
        MarkDelivered(ids=[b"\2" * 16]),
        terminal(2),
        terminal(1),
        MarkSeen(ids=[b"\2" * 16, b"?" * 16]),
    )
    one, two, three = snapshot.results
    assert snapshot.ended == [b"\2" * 16, b"\1" * 16]
    assert (one.deliveries, two.deliveries, three.deliveries) == (1, 2, 0)
    assert (one.seen, two.seen, three.seen) == (False, True, False)
    assert (one.command.frames, three.command.frames) == ((), (b"tensor",))
    assert one.terminal == terminal(1)
    assert (one.status, three.status) == (ResultStatus.DONE, ResultStatus.QUEUED)


def test_what_becomes_of_ended_results(after: After) -> None:
    """They are released, whole or in part, lost, or dropped; marks of what is gone do nothing."""
    ids = [bytes([seq]) * 16 for seq in range(1, 5)]
    snapshot = after(
        *(command(seq) for seq in range(1, 5)),
        *(terminal(seq) for seq in range(1, 5)),
        MarkReleasing(id=ids[0], outputs=1),
        MarkReleased(id=ids[0], outputs=1, whole=True),
        MarkReleased(id=ids[1], outputs=2, whole=False),
        MarkLost(ids=[ids[2], b"?" * 16]),
        DropResults(ids=[ids[3], b"?" * 16]),
        MarkReleased(id=ids[3], outputs=1, whole=True),
        MarkReleasing(id=ids[3], outputs=1),
    )
    assert [stored.status for stored in snapshot.results] == [
        ResultStatus.RELEASED,
        ResultStatus.DONE,
        ResultStatus.LOST,
    ]
    assert [(stored.releasing, stored.released) for stored in snapshot.results] == [(1, 1), (0, 2), (0, 0)]
    assert snapshot.ended == ids[:3]


def test_what_comes_and_goes(after: After) -> None:
    """Releases, errands, sessions, devices, tags and plans are kept until they are dropped."""
    releases = [RecordRelease(seq=seq, incarnation=b"12345678", n=seq, ids=[]) for seq in (1, 2)]
    errands = [RecordErrand(seq=seq, device="pi", digest=b"d" * 16, command=Release(ids=[])) for seq in (3, 4)]
    sessions = [
        RecordSession(incarnation=incarnation, name="", taken=1, seen=2, highest=3) for incarnation in (b"a", b"b")
    ]
    devices = [
        RecordDevice(
            device=name,
            store=b"s",
            boot=b"b",
            confirmed=b"",
            issued=b"",
            version=(1, 0),
            runtimes=[],
            labels={},
            last_seen=0,
        )
        for name in ("one", "two")
    ]
    entries = [TagEntry(id=bytes([k]) * 16, tags=["x"], description="", info=INFO) for k in range(3)]
    plans = [RecordPlan(plan=bytes([k]) * 32, parts=[], beside={}) for k in range(2)]
    tags: list[Write] = [
        ChangeTags(device="one", entries=entries[:1], gone=[], whole=False),
        ChangeTags(device="one", entries=entries[1:], gone=[entries[0].id, b"?" * 16], whole=False),
        ChangeTags(device="two", entries=entries, gone=[], whole=False),
    ]
    snapshot = after(
        *releases,
        *errands,
        *sessions,
        *devices,
        *tags,
        *plans,
        DropRelease(seq=1),
        DropErrand(seq=3),
        DropSession(incarnation=b"a", highest=9),
        DropDevice(device="two"),
        DropPlan(plan=plans[0].plan),
    )
    assert snapshot.releases == releases[1:]
    assert snapshot.errands == errands[1:]
    assert snapshot.sessions == sessions[1:]
    assert snapshot.past_sessions == {b"a": 9}
    assert snapshot.devices == devices[:1]
    assert snapshot.tags == {"one": entries[1:]}
    assert snapshot.plans == plans[1:]


def test_past_sessions_are_bounded(make: Make) -> None:
    """Only the last of the sessions that are gone are remembered."""
    ledger = make(max_past_sessions=2)
    ledger.open()
    ledger.commit([DropSession(incarnation=bytes([k]), highest=k) for k in range(5)])
    assert ledger.open().past_sessions == {b"\3": 3, b"\4": 4}


def test_every_kind_of_write_is_known_to_both() -> None:
    """A kind that a ledger did not know would end the broker; and the stories that tests tell have them all."""
    kinds = set(get_args(Write))
    assert set(MemoryLedger()._apply) == set(SqliteLedger("unused")._apply) == kinds
    story = Story()
    assert {type(write) for writes in story.commits(100) for write in writes} == kinds
