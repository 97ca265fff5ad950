"""Leases and retention in the store: on a clock of its own, wherever the device's wall clock is; what may go when; and
what is counted.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.protocol import messages as m
from edge_agent import Store
from edge_agent.catalog import Ended, Held, size_of
from edge_agent.store_shelf import RETENTION_SECONDS, StoreShelf
from tests.edge_agent.device import result_id, tensor_frame

DAY = 24 * 3600.0


class Boottime:
    """The device's clock that runs through sleep; it begins at 0 when the device is switched on."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Boottime:
    """The clock of the test."""
    return Boottime()


@pytest.fixture
def shelf(tmp_path: Path, clock: Boottime) -> Iterator[StoreShelf]:
    """A shelf on a new store, written on the test's own thread."""
    made = StoreShelf(tmp_path, boottime=clock, direct=True)
    yield made
    made.close()


def keep(shelf: StoreShelf, counter: int, *tags: str, inline: bool = False, left: float = DAY) -> None:
    """A command ends with a small value."""
    event = m.ResultReady(id=result_id(counter), digest=b"d" * 16, inline=inline)
    held = Held(
        id=result_id(counter), dtype="float32", shape=(2,), nbytes=8, source=tensor_frame(counter, 0), tags=tags
    )
    shelf.keep(Ended(id=result_id(counter), event=event), [held], durable=True, left=left)


def evictable(shelf: StoreShelf) -> list[int]:
    """The counters of the values that may go."""
    return [int.from_bytes(id[8:], "big") for id, _ in shelf.evictable(100)]


def test_a_value_is_leased_until_a_week_after_its_deadline(shelf: StoreShelf, clock: Boottime) -> None:
    """And may go then, oldest first, but is there until room is needed."""
    for counter, left in ((1, 2 * DAY), (2, DAY), (3, DAY)):
        keep(shelf, counter, left=left)
    shelf.mark_recorded([result_id(counter) for counter in (1, 2, 3)])
    shelf.commit()
    clock.now += DAY + RETENTION_SECONDS - 1
    assert evictable(shelf) == []
    clock.now += 2
    assert evictable(shelf) == [2, 3]
    clock.now += DAY
    assert evictable(shelf) == [1, 2, 3]
    shelf.drop([result_id(1)])
    assert evictable(shelf) == [2, 3]
    assert shelf.find(result_id(3)) is not None


def test_what_the_broker_has_in_its_record_needs_no_lease_here(shelf: StoreShelf) -> None:
    """An untagged inline value may go as soon as it is on record, and not before; a tagged one is found here."""
    keep(shelf, 1, inline=True)
    keep(shelf, 2, "tagged", inline=True)
    shelf.commit()
    assert evictable(shelf) == []
    shelf.mark_recorded([result_id(1), result_id(2)])
    shelf.commit()
    assert evictable(shelf) == [1]


def test_the_owners_tensors_may_never_go(shelf: StoreShelf, clock: Boottime) -> None:
    """Nor do they count."""
    before = shelf.used
    with Store.open(shelf.folder) as store:
        store.put([1.0])
    clock.now += 1000 * DAY
    assert evictable(shelf) == []
    assert shelf.used == before


def test_the_stores_clock_outlives_the_agent_and_the_device(tmp_path: Path) -> None:
    """Time in which nobody had the store open is not counted, so a lease lasts longer rather than shorter."""
    for round_ in range(3):
        clock = Boottime()  # switched off and on: it begins anew
        shelf = StoreShelf(tmp_path, boottime=clock, direct=True)
        if not round_:
            keep(shelf, 1, left=0)
            shelf.mark_recorded([result_id(1)])
        clock.now += RETENTION_SECONDS / 2
        assert evictable(shelf) == ([1] if round_ == 2 else [])
        if round_ < 2:
            clock.now -= 60
        shelf.close()


@pytest.mark.parametrize("wall", [0.0, 4e9])
def test_a_wall_clock_that_is_wrong_by_years_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wall: float
) -> None:
    """In 1970 or in 2096, and jumping: leases, records and files stay for as long as they should."""
    clock = Boottime()
    shelf = StoreShelf(tmp_path, boottime=clock, direct=True)
    keep(shelf, 1)
    shelf.commit()
    with Store.open(tmp_path) as store:
        own = store.put([[0.0] * 1000] * 100)
    monkeypatch.setattr(time, "time", lambda: wall)
    keep(shelf, 2)
    shelf.mark_recorded([result_id(1), result_id(2)])
    shelf.prune()
    shelf.commit()
    assert evictable(shelf) == []
    shelf.close()
    again = StoreShelf(tmp_path, boottime=clock, direct=True)
    again.commit()
    assert again.ended(result_id(1)) is not None
    assert again.ended(result_id(2)) is not None
    clock.now += DAY + RETENTION_SECONDS + 1
    assert evictable(again) == [1, 2]
    again.close()
    with Store.open(tmp_path) as store:
        assert store.get(own).shape == (100, 1000)


def test_records_are_forgotten_when_their_retention_is_over(shelf: StoreShelf, clock: Boottime) -> None:
    """And on record; what the broker does not have yet is kept until it does."""
    for counter in (1, 2):
        keep(shelf, counter)
    shelf.mark_recorded([result_id(1)])
    shelf.commit()
    clock.now += DAY + RETENTION_SECONDS + 1
    shelf.prune()
    shelf.commit()
    assert shelf.ended(result_id(1)) is None
    assert [one.id for one in shelf.unrecorded()] == [result_id(2)]


def test_too_many_records_are_forgotten_oldest_first(shelf: StoreShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that the broker has on record: they do not come again."""
    monkeypatch.setattr("edge_agent.store_shelf.RECORDS", 3)
    for counter in range(1, 9):
        keep(shelf, counter)
    shelf.commit()
    shelf.mark_recorded([result_id(counter) for counter in range(2, 9)])
    shelf.commit()
    shelf.prune()
    shelf.commit()
    left = [counter for counter in range(1, 9) if shelf.ended(result_id(counter)) is not None]
    assert left == [1, 6, 7, 8]


def test_what_is_used_is_counted_alike_before_and_after_a_restart(tmp_path: Path) -> None:
    """Values, also those dropped, and parts of plans."""
    shelf = StoreShelf(tmp_path, direct=True)
    for counter in (1, 2, 3):
        keep(shelf, counter)
    shelf.commit()
    shelf.drop([result_id(2)])
    shelf.keep_blob(b"m" * 32, b"x" * 100, manifest=False)
    shelf.keep_blob(b"m" * 32, b"x" * 100, manifest=False)
    shelf.keep_blob(b"n" * 32, b"y" * 50, manifest=False)
    shelf.commit()
    shelf.drop_blobs([b"n" * 32])
    assert shelf.used == 2 * size_of(8) + 100
    shelf.close()
    again = StoreShelf(tmp_path, direct=True)
    assert again.used == 2 * size_of(8) + 100
    again.close()


def test_deaths_outlive_the_agent_and_end_with_the_command(tmp_path: Path) -> None:
    """On the disk when `mark_death` returns."""
    StoreShelf(tmp_path, direct=True).close()
    shelf = StoreShelf(tmp_path, direct=True)
    shelf.mark_death(result_id(1), 1)
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        assert connection.execute("SELECT id, deaths FROM deaths").fetchall() == [(result_id(1), 1)]
    connection.close()
    shelf.close()
    again = StoreShelf(tmp_path, direct=True)
    assert (again.deaths(result_id(1)), again.deaths(result_id(2))) == (1, 0)
    keep(again, 1)
    again.commit()
    again.close()
    last = StoreShelf(tmp_path, direct=True)
    assert last.deaths(result_id(1)) == 0
    last.close()


_FIRST_VERSION = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tensors (id BLOB PRIMARY KEY, own INTEGER NOT NULL, dtype TEXT NOT NULL, shape BLOB NOT NULL,
    nbytes INTEGER NOT NULL, frame BLOB, file INTEGER NOT NULL, tags BLOB NOT NULL, description TEXT NOT NULL,
    blob BLOB, created REAL NOT NULL, lease_until REAL);
CREATE TABLE tags (tag TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (tag, id)) WITHOUT ROWID;
CREATE TABLE commands (n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, event BLOB NOT NULL, outputs INTEGER NOT NULL,
    recorded INTEGER NOT NULL, ended REAL NOT NULL);
CREATE INDEX unrecorded ON commands (n) WHERE recorded = 0;
CREATE TABLE blobs (n INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB, size INTEGER NOT NULL,
    manifest INTEGER NOT NULL);
INSERT INTO meta VALUES ('store_id', X'0102030405060708'), ('last_own', 1), ('changes', 1), ('token', X'AA');
INSERT INTO tags VALUES ('a', X'01020304050607080000000000000001');
"""


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """With its id, its data and its results, which get sums and a lease."""
    encode = msgspec.msgpack.encode
    own = bytes.fromhex("01020304050607080000000000000001")
    event = m.ResultReady(id=result_id(1), digest=b"d" * 16)
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        connection.executescript(_FIRST_VERSION)
        for id, owned, tags in ((own, 1, ("a",)), (result_id(1), 0, ())):
            connection.execute(
                "INSERT INTO tensors VALUES (?, ?, 'float32', ?, 8, ?, 0, ?, '', NULL, 1.5, NULL)",
                (id, owned, encode((2,)), tensor_frame(1, 2), encode(tags)),
            )
        connection.execute("INSERT INTO commands VALUES (1, ?, ?, 1, 1, 2.5)", (result_id(1), encode(event)))
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    shelf = StoreShelf(tmp_path, direct=True)
    assert (shelf.store_id, shelf.registration()) == (own[:8], (b"\xaa", b""))
    assert [entry.tags for entry in shelf.tagged()] == [["a"]]
    assert shelf.ended(result_id(1)) == Ended(id=result_id(1), event=event, recorded=True)
    assert evictable(shelf) == []
    keep(shelf, 2)
    shelf.commit()
    shelf.close()
    with Store.open(tmp_path) as store:
        assert store.get(own.hex()).tolist() == [1.0, 2.0]
        assert [entry.own for entry in store.entries()] == [True, False, False]
