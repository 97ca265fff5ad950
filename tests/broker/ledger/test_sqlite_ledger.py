"""The ledger on disk: any story told to it is there after any end, and whatever is cut or altered is found out."""

from __future__ import annotations

import contextlib
import copy
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from broker.ledger.errors import (
    LedgerDamaged,
    LedgerError,
    LedgerInUse,
    LedgerTooNew,
    LedgerUnusable,
    LedgerUnwritable,
)
from broker.ledger.interface import RecordPlan, Snapshot
from broker.ledger.memory import MemoryLedger
from broker.ledger.rows import APPLICATION_ID, SCHEMA_VERSION, Connection, Table, connect
from broker.ledger.sqlite import SqliteLedger
from tests.broker.ledger.ledger_story import Story, content

PAGE = 4096
FILES = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-witness")


def expected(story: Story) -> Snapshot:
    """What a ledger that was told this story has, and goes on having while the story goes on."""
    return copy.deepcopy(content(story.expected.open()))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    """A ledger that is open, in ``tmp_path / "data"``."""
    ledger = SqliteLedger(tmp_path / "data" / "ledger.sqlite")
    ledger.open()
    yield ledger
    ledger.close()


def crashed(ledger: SqliteLedger, to: Path) -> Path:
    """The files as they are now: what a broker leaves that is killed at this moment."""
    shutil.copytree(Path(ledger.path).parent, to)
    return to / "ledger.sqlite"


def opened(path: Path) -> Snapshot:
    """What a broker that starts now gets."""
    ledger = SqliteLedger(path)
    try:
        return content(ledger.open())
    finally:
        ledger.close()


# ------------------------------------------------------------------------------------------------ stories


@pytest.mark.parametrize("seed", range(3))
def test_a_story_is_there_after_a_kill_and_after_an_end(ledger: SqliteLedger, tmp_path: Path, seed: int) -> None:
    """After every commit of a long story, a kill loses nothing, and a clean end loses nothing."""
    story = Story(seed)
    for k, writes in enumerate(story.commit() for _ in range(60)):
        ledger.commit(writes)
        if k % 10 == 0:
            assert opened(crashed(ledger, tmp_path / str(k))) == expected(story)
    ledger.close()
    assert opened(Path(ledger.path)) == expected(story)


def test_both_ledgers_agree(tmp_path: Path) -> None:
    """Commits, ends and kills in any order: the ledger on disk has what the one in memory has."""
    folders = iter(range(10_000))

    class Ledgers(RuleBasedStateMachine):
        @initialize(seed=st.integers(0, 1 << 32))
        def begin(self, seed: int) -> None:
            self.story = Story(seed)
            self.ledger = SqliteLedger(tmp_path / str(next(folders)) / "ledger.sqlite")
            self.ledger.open()

        @rule(writes=st.integers(1, 40))
        def commit(self, writes: int) -> None:
            self.ledger.commit(self.story.commit(writes))

        @rule()
        def end(self) -> None:
            self.ledger.close()
            assert content(self.ledger.open()) == expected(self.story)

        @rule()
        def kill(self) -> None:
            path = crashed(self.ledger, tmp_path / str(next(folders)))
            self.ledger.close()
            self.ledger = SqliteLedger(path)
            assert content(self.ledger.open()) == expected(self.story)

        def teardown(self) -> None:
            self.ledger.close()

    run_state_machine_as_test(
        Ledgers,
        settings=settings(
            max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_commit_of_any_size(ledger: SqliteLedger, tmp_path: Path) -> None:
    """However many rows a commit has, each is written once, and one after the other."""
    story = Story(1)
    for writes in (1, 2, 5, 7, 63, 64, 65, 255, 256, 257, 1300):
        ledger.commit(story.commit(writes))
    assert opened(crashed(ledger, tmp_path / "crashed")) == expected(story)


def test_epoch_and_id_are_kept(tmp_path: Path) -> None:
    """The epoch counts up by one at each start, also if nothing was committed; the id stays."""
    path = tmp_path / "ledger.sqlite"
    snapshots = []
    for _ in range(3):
        ledger = SqliteLedger(path)
        snapshots.append(ledger.open())
        ledger.close()
    assert [snapshot.epoch for snapshot in snapshots] == [1, 2, 3]
    assert len({snapshot.ledger for snapshot in snapshots}) == 1
    assert len(snapshots[0].ledger) == 16


def test_it_can_be_opened_through_another_sqlite(tmp_path: Path) -> None:
    """A connection of apsw does as well, so a test may put a disk of its own below it."""

    def connect_apsw(path: str) -> Connection:
        return apsw.Connection(path)

    story = Story(2)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", connect=connect_apsw)
    ledger.open()
    for _ in range(10):
        ledger.commit(story.commit())
    ledger.close()
    assert opened(tmp_path / "ledger.sqlite") == expected(story)


# ------------------------------------------------------------------------------------------------ who may open it


def test_two_brokers_cannot_have_one_ledger(ledger: SqliteLedger) -> None:
    """The second one is told, and the first goes on."""
    with pytest.raises(LedgerInUse, match="is in use by another broker"):
        SqliteLedger(ledger.path).open()
    ledger.commit(Story().commit())
    ledger.close()
    opened(Path(ledger.path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A ledger below a file is the system's reason, in one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnusable, match="cannot be opened: "):
        SqliteLedger(tmp_path / "file" / "ledger.sqlite").open()


# ------------------------------------------------------------------------------------------------ versions


def set_version(path: Path, version: int) -> None:
    """Make a ledger say that it has another version."""
    connection = sqlite3.connect(path)
    ((data,),) = connection.execute("SELECT data FROM head")
    connection.execute("UPDATE head SET version = ?, checksum = ?", (version, Table("head").checksum(version, data)))
    connection.commit()
    connection.close()


def make_version_1(path: Path) -> None:
    """Turn a ledger into one of version 1: its head had no totals."""
    connection = sqlite3.connect(path)
    ((data,),) = connection.execute("SELECT data FROM head")
    head = msgspec.msgpack.encode(msgspec.msgpack.decode(data)[:3])
    checksum = Table("head").checksum(1, head)
    connection.execute("UPDATE head SET version = 1, data = ?, checksum = ?", (head, checksum))
    connection.commit()
    connection.close()


def test_a_newer_ledger_is_refused_by_name(ledger: SqliteLedger) -> None:
    """A version that this program does not know is named, and nothing is changed."""
    ledger.close()
    path = Path(ledger.path)
    set_version(path, SCHEMA_VERSION + 1)
    before = path.read_bytes()
    with pytest.raises(LedgerTooNew) as caught:
        opened(path)
    assert (caught.value.version, caught.value.known) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)
    assert str(caught.value) == (
        f"expected a ledger of version {SCHEMA_VERSION} or older, got version {SCHEMA_VERSION + 1} in {path}"
    )
    assert path.read_bytes() == before


def test_a_ledger_of_version_1_is_brought_up_to_date(ledger: SqliteLedger, tmp_path: Path) -> None:
    """It keeps all that it had, and from then on it is of the newest version, checks included."""
    story = Story(3)
    for writes in story.commits(20):
        ledger.commit(writes)
    ledger.close()
    path = Path(ledger.path)
    make_version_1(path)
    migrated = SqliteLedger(path)
    assert content(migrated.open()) == expected(story)
    migrated.commit(story.commit())
    migrated.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version FROM head").fetchall() == [(SCHEMA_VERSION,)]
    connection.execute("DELETE FROM commands WHERE n = (SELECT min(n) FROM commands)")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerDamaged, match=r"rows in table commands|not in commands"):
        opened(path)


# ------------------------------------------------------------------------------------------------ cut and altered


def told(ledger: SqliteLedger, commits: int = 30) -> tuple[Snapshot, Snapshot]:
    """Tell the ledger a story: what it should have before the last commit, and after it."""
    story = Story(4)
    for _ in range(commits):
        before = expected(story)
        ledger.commit(story.commit())
    return before, expected(story)


def alter_sql(path: Path, sql: str, values: tuple[bytes | int, ...] = ()) -> None:
    """Alter a ledger with SQLite's own tools."""
    connection = sqlite3.connect(path)
    assert connection.execute(sql, values).rowcount  # -1: not a statement that tells
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (
            "UPDATE commands SET data = data || x'00' WHERE n = (SELECT max(n) FROM commands)",
            "of table commands is wrong",
        ),
        ("UPDATE endings SET checksum = checksum + 1", "of table endings is wrong"),
        ("UPDATE sessions SET n = 99 WHERE n = (SELECT max(n) FROM sessions)", "row 99 of table sessions"),
        ("UPDATE devices SET data = 'text' WHERE n = (SELECT max(n) FROM devices)", "of table devices"),
        ("DELETE FROM errands WHERE n = (SELECT max(n) FROM errands)", "rows in table errands, got"),
        ("INSERT INTO tags SELECT n + 1000, data, checksum FROM tags LIMIT 1", "of table tags"),
        ("DROP TABLE plans", "table plans"),
        ("ALTER TABLE plans ADD COLUMN more", "table plans"),
        ("UPDATE head SET data = x'90'", "row 1 of table head"),
        ("DELETE FROM head", "expected one row in table head, got 0"),
        ("PRAGMA application_id = 7", f"expected application id {APPLICATION_ID:#x}, got 0x7"),
    ],
)
def test_what_was_altered_is_named(ledger: SqliteLedger, sql: str, words: str) -> None:
    """An altered row is named with its table, and so is a table of which rows are missing."""
    told(ledger)
    ledger.close()
    alter_sql(Path(ledger.path), sql)
    with pytest.raises(LedgerDamaged) as caught:
        opened(Path(ledger.path))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"the ledger {ledger.path} is damaged: ")


def test_an_old_row_that_came_back_is_found(ledger: SqliteLedger) -> None:
    """A write that a disk lost leaves the row before it, right in itself: the sum of the table tells."""
    plan = RecordPlan(plan=b"p" * 32, parts=[], beside={})
    ledger.commit([plan])
    ledger.close()
    connection = sqlite3.connect(ledger.path)
    old = connection.execute("SELECT data, checksum FROM plans").fetchone()
    connection.close()
    ledger.open()
    ledger.commit([msgspec.structs.replace(plan, parts=[b"q" * 32])])
    ledger.close()
    alter_sql(Path(ledger.path), "UPDATE plans SET data = ?, checksum = ?", old)
    with pytest.raises(LedgerDamaged, match="table plans has rows that are not the latest"):
        opened(Path(ledger.path))


@pytest.mark.parametrize("lost", [["ledger.sqlite"], ["ledger.sqlite-wal"], FILES[:2], ["ledger.sqlite-witness"]])
def test_a_file_that_is_missing_is_found(ledger: SqliteLedger, tmp_path: Path, lost: list[str]) -> None:
    """Without any of its files, a ledger is not taken for a new one, nor for a whole one."""
    told(ledger)
    path = crashed(ledger, tmp_path / "crashed")
    for name in lost:
        (path.parent / name).unlink()
    with pytest.raises(LedgerDamaged):
        opened(path)


def test_a_commit_that_was_under_way_is_no_damage(ledger: SqliteLedger, tmp_path: Path) -> None:
    """A log that ends in the middle of the last commit is what a crash leaves: the ledger is as before that commit."""
    story = Story(6)
    for writes in story.commits(10):
        ledger.commit(writes)
    before = expected(story)
    complete = crashed(ledger, tmp_path / "before")
    size = complete.with_name(FILES[1]).stat().st_size
    ledger.commit(story.commit())
    log = crashed(ledger, tmp_path / "after").with_name(FILES[1]).read_bytes()
    for cut in range(size, len(log), 1000):
        path = tmp_path / f"cut {cut}" / FILES[0]
        shutil.copytree(complete.parent, path.parent)
        path.with_name(FILES[1]).write_bytes(log[:cut])
        assert opened(path) == before


@pytest.mark.parametrize("witness", ["is missing", "is of later", "is of then"])
def test_a_backup_is_served_after_it_was_renewed(ledger: SqliteLedger, tmp_path: Path, witness: str) -> None:
    """A ledger of the past gets a new id; its sessions begin anew, and its devices as if it had never known them."""
    story = Story(8)
    for writes in story.commits(20):
        ledger.commit(writes)
    path = crashed(ledger, tmp_path / "backup")
    before = expected(story)
    for writes in story.commits(3):
        ledger.commit(writes)
    if witness == "is missing":
        path.with_name(FILES[2]).unlink()
    elif witness == "is of later":
        shutil.copy(Path(ledger.path).with_name(FILES[2]), path.with_name(FILES[2]))
    if witness != "is of then":
        with pytest.raises(LedgerDamaged, match="commits"):
            opened(path)
    backup = SqliteLedger(path)
    renewed = backup.renew()
    backup.close()
    snapshot = backup.open()
    backup.close()
    assert snapshot.ledger == renewed
    assert before.sessions
    devices = [msgspec.structs.replace(device, confirmed=b"", issued=b"") for device in before.devices]
    assert content(snapshot) == msgspec.structs.replace(before, sessions=[], devices=devices)


@pytest.mark.parametrize("kept", range(4))
def test_a_backup_whose_renewal_was_cut_off_is_not_served_as_it_was(
    ledger: SqliteLedger, tmp_path: Path, kept: int
) -> None:
    """Wherever a crash ends it, the ledger is still refused, or has its new id; and can be renewed again."""
    story = Story(8)
    for writes in story.commits(20):
        ledger.commit(writes)
    path = crashed(ledger, tmp_path / "backup")
    for writes in story.commits(3):
        ledger.commit(writes)
    shutil.copy(Path(ledger.path).with_name(FILES[2]), path.with_name(FILES[2]))
    left = [kept]

    class Crashing:
        """A connection to a disk that loses power at the commit after so many."""

        def __init__(self, path: str) -> None:
            self.real = connect(path)

        def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Iterable[tuple[Any, ...]]:
            if sql == "COMMIT":
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            return self.real.execute(sql, parameters)

        def close(self) -> None:
            self.real.close()

    backup = SqliteLedger(path, connect=Crashing)
    with contextlib.suppress(KeyboardInterrupt):
        backup.renew()
    backup.close()
    again = SqliteLedger(path)
    with contextlib.suppress(LedgerDamaged):
        assert again.open().ledger != ledger.open().ledger
    again.close()
    renewed = again.renew()
    assert again.open().ledger == renewed
    again.close()


Harm = Callable[[bytearray, random.Random], bytearray]


def flip(data: bytearray, source: random.Random) -> bytearray:
    """One bit is another."""
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


def smear(data: bytearray, source: random.Random) -> bytearray:
    """Some bytes are others."""
    begin = source.randrange(len(data))
    length = min(len(data) - begin, source.choice([2, 30, 512, PAGE]))
    data[begin : begin + length] = source.choice([bytes(length), source.randbytes(length)])
    return data


def swap(data: bytearray, source: random.Random) -> bytearray:
    """A page is where another one should be."""
    pages = max(1, len(data) // PAGE)
    one, other = source.randrange(pages) * PAGE, source.randrange(pages) * PAGE
    data[one : one + PAGE] = data[other : other + PAGE]
    return data


def cut(data: bytearray, source: random.Random) -> bytearray:
    """The end is missing."""
    return data[: source.choice([source.randrange(len(data)), source.randrange(len(data)) // PAGE * PAGE])]


def search(ledger: SqliteLedger, tmp_path: Path, count: int, seed: int) -> dict[str, int]:
    """Harm the files of a ledger in ``count`` ways: each is found, or harms nothing. How often which."""
    _, whole = told(ledger)
    merged = tmp_path / "merged"
    logged = crashed(ledger, tmp_path / "logged").parent
    ledger.close()
    shutil.copytree(Path(ledger.path).parent, merged)
    ledger.open()
    source = random.Random(seed)
    verdicts = {"found": 0, "harmless": 0}
    work = tmp_path / "work"
    for k in range(count):
        folder = source.choice([merged, logged])
        names = sorted(path.name for path in folder.iterdir())
        name = source.choice([*names, *FILES[:1]])
        harm: Harm = source.choice([flip, flip, flip, smear, swap, cut])
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        (work / name).write_bytes(harm(bytearray((folder / name).read_bytes()), source))
        try:
            found = opened(work / FILES[0])
        except (LedgerDamaged, LedgerTooNew):
            verdicts["found"] += 1
        else:
            assert found == whole, f"{harm.__name__} of {folder.name}/{name}, the {k}-th of seed {seed}"
            verdicts["harmless"] += 1
    return verdicts


def test_whatever_is_cut_or_altered_is_found(ledger: SqliteLedger, tmp_path: Path) -> None:
    """Bits, bytes and pages altered in any file, and files cut anywhere: found, or the whole ledger is there."""
    verdicts = search(ledger, tmp_path, 150, seed=1)
    assert verdicts["found"] > 30, verdicts


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 6))
def test_whatever_is_cut_or_altered_is_found_in_any_place(ledger: SqliteLedger, tmp_path: Path, seed: int) -> None:
    """The same, twenty thousand times."""
    verdicts = search(ledger, tmp_path, 5000, seed)
    print(verdicts)
    assert verdicts["found"] > 1000, verdicts


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_page_is_found(ledger: SqliteLedger, tmp_path: Path, name: str) -> None:
    """Cut at the end of a page: never taken for whole, and never for another state."""
    _, whole = told(ledger)
    logged = crashed(ledger, tmp_path / "logged")
    size = logged.with_name(name).stat().st_size
    for end in range(0, size, PAGE * max(1, size // PAGE // 20)):
        work = tmp_path / str(end) / FILES[0]
        shutil.copytree(logged.parent, work.parent)
        with work.with_name(name).open("r+b") as file:
            file.truncate(end)
        try:
            assert opened(work) == whole
        except LedgerDamaged:
            continue
        assert name != FILES[1]


# ------------------------------------------------------------------------------------------------ a full disk


def bounded(pages: int) -> Callable[[str], Connection]:
    """A connection to a ledger that may have so many pages."""

    def connect_bounded(path: str) -> Connection:
        connection = connect(path)
        list(connection.execute(f"PRAGMA max_page_count = {pages}"))
        return connection

    return connect_bounded


def test_a_full_ledger_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    """A commit that does not fit is an error that says so; it is in the ledger after the next one that fits."""
    story = Story(7)
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", connect=bounded(40))
    ledger.open()
    fitting = expected(story)

    def fill() -> None:
        nonlocal fitting
        for _ in range(1000):
            ledger.commit(story.commit(40))
            fitting = expected(story)

    with pytest.raises(LedgerUnwritable, match="full") as caught:
        fill()
    assert caught.value.path == ledger.path
    assert opened(crashed(ledger, tmp_path / "full")) == fitting
    with pytest.raises(LedgerUnwritable):
        ledger.commit(story.commit())
    assert ledger._rows._connection is not None
    list(ledger._rows._connection.execute("PRAGMA max_page_count = 100000"))
    ledger.commit([])
    assert opened(crashed(ledger, tmp_path / "recovered")) == expected(story)
    ledger.commit(story.commit())
    ledger.close()
    assert opened(tmp_path / "ledger.sqlite") == expected(story)


def test_all_errors_are_of_the_ledger(ledger: SqliteLedger) -> None:
    """Whoever starts a broker can catch them all by one name."""
    for error in (LedgerDamaged, LedgerInUse, LedgerTooNew, LedgerUnusable, LedgerUnwritable):
        assert issubclass(error, LedgerError)
    assert MemoryLedger.waits is not ledger.waits
