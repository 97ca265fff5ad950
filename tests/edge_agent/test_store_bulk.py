"""Many writes in one batch: when it is handed over; and what goes to SQLite many rows at a time is what goes row by
row.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from broker.protocol import messages as m
from edge_agent import Store
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import Database
from edge_agent.store_shelf import StoreShelf
from edge_agent.store_statements import Statement
from edge_agent.store_writes import Batch, Written
from tests.edge_agent.device import result_id, tensor_frame

COUNTS = [1, 31, 32, 33, 100]
"""Fewer than a statement takes, as many, and more; with and without a rest."""


def _one(counter: int, *, width: int = 2, tags: tuple[str, ...] = ()) -> Held:
    frame = tensor_frame(*([counter] * width))
    return Held(id=result_id(counter), dtype="float32", shape=(width,), nbytes=4 * width, source=frame, tags=tags)


def _mixed(count: int) -> list[Held]:
    """Long runs of values of a kind, short ones, and single ones."""
    values = [_one(k, width=1 + k // 40) for k in range(1, count + 1)]
    values[count // 2 :: 7] = [_one(k, width=3, tags=(f"t{k}",)) for k in range(count // 2 + 1, count + 1, 7)]
    return values


def _keep(shelf: StoreShelf, values: Sequence[Held], *, left: float = 60.0) -> None:
    for held in values:
        event = m.ResultReady(id=held.id, digest=b"d" * 16, inline=True)
        shelf.keep(Ended(id=held.id, event=event), [held], durable=False, left=left)


@pytest.mark.parametrize("count", COUNTS)
def test_all_of_a_large_batch_is_written_in_its_order(tmp_path: Path, count: int) -> None:
    """Values and ends are found after a restart as they were kept, the oldest first, and every row's sum is right."""
    values = _mixed(count)
    shelf = StoreShelf(tmp_path, direct=True)
    _keep(shelf, values)
    shelf.close()
    with contextlib.closing(Database(tmp_path)) as database:
        database.check(limit=1 << 30)
    again = StoreShelf(tmp_path, direct=True)
    assert [again.find(held.id) for held in values] == values
    assert [one.id for one in again.unrecorded()] == [held.id for held in values]
    again.close()
    with Store.open(tmp_path) as store:
        assert [entry.id for entry in store.entries()] == [held.id.hex() for held in values]


@pytest.mark.parametrize("count", COUNTS)
def test_many_are_marked_and_dropped_and_no_others(tmp_path: Path, count: int) -> None:
    """What the broker has on record is, and what is released is gone; what was kept beside them stays as it was."""
    values = _mixed(2 * count)
    shelf = StoreShelf(tmp_path, direct=True)
    _keep(shelf, values)
    shelf.commit()
    some, others = values[::2], values[1::2]
    shelf.mark_recorded([held.id for held in some])
    shelf.drop([held.id for held in some])
    shelf.close()
    again = StoreShelf(tmp_path, direct=True)
    assert [one.id for one in again.unrecorded()] == [held.id for held in others]
    assert [again.find(held.id) for held in some] == [None] * count
    assert [again.find(held.id) for held in others] == others
    assert {entry.id for entry in again.tagged()} == {held.id for held in others if held.tags}
    again.close()
    with contextlib.closing(Database(tmp_path)) as database:
        database.check(limit=1 << 30)


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_kept_again_takes_the_place_of_what_was_there(tmp_path: Path, count: int) -> None:
    """As when a worker has died after its job was done: the later value counts, in the place of the first."""
    shelf = StoreShelf(tmp_path, direct=True)
    _keep(shelf, [_one(k) for k in range(1, count + 1)])
    shelf.commit()
    later = [_one(k, width=4) for k in range(count, 0, -1)]
    _keep(shelf, later)
    shelf.close()
    again = StoreShelf(tmp_path, direct=True)
    assert [again.find(held.id) for held in later] == later
    again.close()


def test_each_value_has_the_end_of_its_own_lease(tmp_path: Path) -> None:
    """Values that are alike in all else, with another time left each."""
    shelf = StoreShelf(tmp_path, direct=True, boottime=lambda: 0.0)
    values = [_one(k) for k in range(1, 41)]
    for k, held in enumerate(values):
        shelf.keep(None, [held], durable=False, left=float(k))
    shelf.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite3")) as connection:
        leases = [lease for (lease,) in connection.execute("SELECT lease_until FROM tensors ORDER BY rowid")]
    assert leases == [leases[0] + k for k in range(40)]


@pytest.mark.parametrize("count", [0, *COUNTS])
def test_a_statement_runs_for_all_rows(count: int) -> None:
    """In order, with what the rows share in each of them."""
    statement = Statement("INSERT INTO t (a, b, c) VALUES {}", own=1, shared=2)
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a, b, c)")
        statement.run(connection, [(k,) for k in range(count)], ("x", "y"))
        assert connection.execute("SELECT * FROM t ORDER BY rowid").fetchall() == [("x", "y", k) for k in range(count)]


class _SlowWriter:
    """Writes nothing until the test says so."""

    def __init__(self, shelf: StoreShelf) -> None:
        self._shelf = shelf
        self._last: Batch | None = None
        self.batches: list[list[bytes]] = []

    def write(self, batch: Batch) -> None:
        assert self._last is None, "one at a time"
        self._last = batch
        self.batches.append(list(batch.values))

    def finish(self) -> None:
        assert self._last is not None
        batch, self._last = self._last, None
        self._shelf._batch_written(Written(batch))

    def close(self) -> None:
        """Nothing is left."""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[StoreShelf, _SlowWriter]]:
    """A shelf whose writer takes as long as the test wants."""
    shelf = StoreShelf(tmp_path)
    shelf.commit()  # what is pruned at the start
    while not shelf.commit():
        time.sleep(0.001)
    shelf._writer.close()
    writer = _SlowWriter(shelf)
    shelf._writer = writer  # type: ignore[assignment]
    yield shelf, writer
    if shelf._writing is not None:
        writer.finish()
    shelf.close()


def test_what_may_wait_is_handed_over_when_it_is_due(slow: tuple[StoreShelf, _SlowWriter]) -> None:
    """And not because the batch before it is over: many small batches cost more than a large one."""
    shelf, writer = slow
    _keep(shelf, [_one(1)])
    shelf.commit(due=False)
    assert writer.batches == []
    shelf.commit()
    assert writer.batches == [[result_id(1)]]
    _keep(shelf, [_one(2)])
    writer.finish()
    assert shelf.must_commit
    assert [list(end.batch.values) for end in shelf.commit(due=False)] == [[result_id(1)]]
    assert len(writer.batches) == 1
    assert not shelf.must_commit


def test_what_is_due_while_the_writer_is_busy_goes_when_it_is_not(slow: tuple[StoreShelf, _SlowWriter]) -> None:
    """At the commit that tells of the batch before, though that one is not asked to."""
    shelf, writer = slow
    _keep(shelf, [_one(1)])
    shelf.commit()
    _keep(shelf, [_one(2)])
    shelf.commit()
    shelf.commit(due=False)
    assert writer.batches == [[result_id(1)]]
    writer.finish()
    shelf.commit(due=False)
    assert writer.batches == [[result_id(1)], [result_id(2)]]
    _keep(shelf, [_one(3)])
    writer.finish()
    shelf.commit(due=False)
    assert len(writer.batches) == 2


def test_what_must_be_on_the_disk_waits_for_nothing_but_the_writer(slow: tuple[StoreShelf, _SlowWriter]) -> None:
    """It takes along what was kept before it."""
    shelf, writer = slow
    _keep(shelf, [_one(1)])
    shelf.keep(Ended(id=result_id(2), event=m.ResultReady(id=result_id(2), digest=b"d" * 16)), [_one(2)], durable=True)
    assert shelf.must_commit
    shelf.commit(due=False)
    assert writer.batches == [[result_id(1), result_id(2)]]
    shelf.keep(Ended(id=result_id(3), event=m.ResultReady(id=result_id(3), digest=b"d" * 16)), [_one(3)], durable=True)
    shelf.commit(due=False)
    assert len(writer.batches) == 1
    writer.finish()
    shelf.commit(due=False)
    assert writer.batches[1] == [result_id(3)]
