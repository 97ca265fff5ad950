"""The store as the agent uses it: what was kept is found at once, is on the disk when it says so, and survives a
kill.
"""

from __future__ import annotations

import hashlib
import os
import select
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.protocol import messages as m
from broker.protocol.errors import TensorRefused
from edge_agent import Store
from edge_agent.catalog import Ended, Held, announcement
from edge_agent.store import NotTheOwner
from edge_agent.store_database import Database, StoreInUse
from edge_agent.store_shelf import StoreShelf
from edge_agent.store_writes import Written
from edge_agent.tensor_files import tensor_path, write
from edge_agent.tensor_format import pack
from tests.edge_agent.device import result_id, tensor_frame
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
DIGEST = b"d" * 16
MANIFEST, STATE = hashlib.sha256(b"manifest").digest(), hashlib.sha256(b"state").digest()


def held(counter: int, *tags: str, source: bytes | str | None = None) -> Held:
    """A small result."""
    return Held(
        id=result_id(counter),
        dtype="float32",
        shape=(2,),
        nbytes=8,
        source=tensor_frame(counter, 0) if source is None else source,
        tags=tags,
        description="d",
    )


def ended(counter: int, *, inline: bool = True, outputs: int = 1, recorded: bool = False) -> Ended:
    """A command that ended with a value."""
    event = m.ResultReady(id=result_id(counter), digest=DIGEST, inline=inline)
    return Ended(id=result_id(counter), event=event, outputs=outputs, recorded=recorded)


class Waker:
    """Waits for a shelf's writer."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> None:
        self._event.set()

    def commit(self, shelf: StoreShelf) -> list[Written]:
        """Hand over, wait for the writer, and take what it has done."""
        self._event.clear()
        ends = shelf.commit()
        assert self._event.wait(PATIENCE)
        return ends + shelf.commit()


@pytest.fixture
def waker() -> Waker:
    """What the shelf of the test calls."""
    return Waker()


@pytest.fixture
def shelf(tmp_path: Path, waker: Waker) -> Iterator[StoreShelf]:
    """A shelf on a new store."""
    made = StoreShelf(tmp_path, wake=waker)
    yield made
    made.close()


def test_what_is_kept_is_found_before_it_is_written(shelf: StoreShelf) -> None:
    """And its command with it."""
    shelf.keep(ended(1), [held(1)], durable=False)
    assert shelf.find(result_id(1)) == held(1)
    assert shelf.ended(result_id(1)) == ended(1)
    assert shelf.find(result_id(2)) is None
    assert shelf.ended(result_id(2)) is None


def test_what_must_be_on_the_disk_is_told_when_it_is(shelf: StoreShelf, waker: Waker) -> None:
    """Another process sees it by then; what had no hurry goes along."""
    shelf.keep(ended(1), [held(1, "a")], durable=False)
    assert not shelf.must_commit
    shelf.keep(ended(2, inline=False), [held(2)], durable=True)
    assert shelf.must_commit
    [end] = waker.commit(shelf)
    assert (end.batch.durable, end.failure) == ([result_id(2)], None)
    assert not shelf.must_commit
    with Store.open(shelf.folder) as store:
        assert [entry.own for entry in store.entries()] == [False, False]
        assert store.search("a")[0].id == result_id(1).hex()


def test_all_of_it_survives_a_restart(tmp_path: Path) -> None:
    """Values, tags, commands with what was announced, what is recorded and what not, plans, the registration."""
    shelf = StoreShelf(tmp_path)
    store_id = shelf.store_id
    shelf.keep(ended(1), [held(1, "a", "b")], durable=False)
    failed = m.ResultFailed(id=result_id(2), digest=DIGEST, failure=m.Failure(code="C", message="m", details={"k": 1}))
    shelf.keep(Ended(id=result_id(2), event=failed), [], durable=False)
    shelf.mark_recorded([result_id(1)])
    shelf.keep_blob(MANIFEST, b"manifest", manifest=True)
    shelf.keep_blob(STATE, b"state", manifest=False)
    shelf.save_registration(b"token", b"ledger")
    shelf.close()
    again = StoreShelf(tmp_path)
    try:
        assert again.store_id == store_id
        assert again.find(result_id(1)) == held(1, "a", "b")
        assert again.ended(result_id(1)) == ended(1, recorded=True)
        assert again.unrecorded() == [Ended(id=result_id(2), event=failed)]
        assert again.plans() == [(MANIFEST, b"manifest")]
        assert (again.blob(STATE), again.blob_size(STATE)) == (b"state", 5)
        assert again.registration() == (b"token", b"ledger")
    finally:
        again.close()


def test_what_was_recorded_after_it_was_written_is_marked(shelf: StoreShelf, waker: Waker) -> None:
    """And unmarked again for another ledger."""
    for counter in (1, 2):
        shelf.keep(ended(counter), [held(counter)], durable=False)
    waker.commit(shelf)
    shelf.mark_recorded([result_id(1)])
    assert [one.id for one in shelf.unrecorded()] == [result_id(2)]
    shelf.save_registration(b"token", b"another", other=True)
    assert shelf.registration() == (b"token", b"another")
    assert [one.id for one in shelf.unrecorded()] == [result_id(1), result_id(2)]


def test_another_ledger_is_written_down_whole_or_not_at_all(
    shelf: StoreShelf, waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, after a crash in between, what the old one had on record would never be announced to the new one."""
    shelf.save_registration(b"token", b"ledger")
    shelf.keep(ended(1), [held(1)], durable=False)
    waker.commit(shelf)
    shelf.mark_recorded([result_id(1)])

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write_registration", full)
        with pytest.raises(sqlite3.OperationalError):
            shelf.save_registration(b"token", b"another", other=True)
    assert shelf.registration() == (b"token", b"ledger")
    assert shelf.unrecorded() == []
    shelf.save_registration(b"token", b"another", other=True)
    assert [one.id for one in shelf.unrecorded()] == [result_id(1)]


def test_an_inline_announcement_can_be_made_again(shelf: StoreShelf, waker: Waker) -> None:
    """With its values, from the disk; without them once one was released."""
    shelf.keep(ended(1, outputs=2), [held(1), held(2)], durable=False)
    waker.commit(shelf)
    kept = shelf.ended(result_id(1))
    assert kept is not None
    assert announcement(shelf, kept) == (kept.event, (tensor_frame(1, 0), tensor_frame(2, 0)))
    shelf.drop([result_id(2)])
    assert announcement(shelf, kept) == (m.ResultReady(id=result_id(1), digest=DIGEST), ())


@pytest.mark.parametrize("when", ["before it is written", "while it is written", "after it is written"])
def test_what_is_dropped_is_gone(shelf: StoreShelf, waker: Waker, when: str) -> None:
    """Wherever it is on its way to the disk: not found, no tags, no file."""
    path = tensor_path(shelf.folder, result_id(1))
    write(path, "float32", (2,), bytes(8))
    shelf.keep(ended(1), [held(1, "a", source=str(path))], durable=False)
    if when == "while it is written":
        shelf.commit()
    elif when == "after it is written":
        waker.commit(shelf)
    shelf.drop([result_id(1)])
    assert shelf.find(result_id(1)) is None
    assert shelf.with_tags(["a"]) == []
    assert shelf.tagged() == []
    shelf.unrecorded()
    assert shelf.find(result_id(1)) is None
    assert not path.exists()
    assert shelf.ended(result_id(1)) is not None


def test_the_owners_tensors_are_found_and_not_dropped(shelf: StoreShelf) -> None:
    """Nor overwritten by a value that comes under their id."""
    with Store.open(shelf.folder) as store:
        id = bytes.fromhex(store.put([1.0, 2.0], tags=["mine"]))
        own = shelf.find(id)
        assert own is not None
        assert (own.own, own.tags) == (True, ("mine",))
        shelf.drop([id])
        shelf.keep(None, [Held(id=id, dtype="float32", shape=(1,), nbytes=4, source=tensor_frame(9))], durable=True)
        shelf.unrecorded()
        assert store.get(id.hex()).tolist() == [1.0, 2.0]


def test_tags_are_looked_up_in_all_that_is_there(shelf: StoreShelf) -> None:
    """The owner's and results, written or not; two are enough to know that it is not one."""
    with Store.open(shelf.folder) as store:
        store.put([1.0], tags=["a", "b"])
    shelf.keep(ended(1), [held(1, "a", "c")], durable=False)
    assert len(shelf.with_tags(["a"])) == 2
    assert [one.own for one in shelf.with_tags(["b", "a"])] == [True]
    assert [one.id for one in shelf.with_tags(["c"])] == [result_id(1)]
    assert shelf.with_tags(["a", "x"]) == []
    assert [entry.tags for entry in shelf.tagged()] == [["a", "b"], ["a", "c"]]


def test_a_running_agent_hears_of_what_others_put(shelf: StoreShelf, waker: Waker) -> None:
    """At once, by the FIFO, from another process; its own writes are none of it."""
    assert not shelf.look()
    shelf.keep(ended(1), [held(1, "x")], durable=False)
    waker.commit(shelf)
    assert not shelf.look()
    code = "import sys; from edge_agent import Store; Store.open(sys.argv[1]).put([1.0], tags=['new'])"
    subprocess.run([sys.executable, "-c", code, str(shelf.folder)], cwd=ROOT, timeout=100, check=True)
    readable, _, _ = select.select([shelf.changed], [], [], 20)
    assert readable
    assert shelf.look()
    assert not shelf.look()
    assert [entry.tags for entry in shelf.tagged()] == [["x"], ["new"]]


def test_what_the_owner_deletes_is_gone_for_the_agent(shelf: StoreShelf) -> None:
    """Also when it was just used."""
    with Store.open(shelf.folder) as store:
        id = store.put([1.0])
        assert shelf.find(bytes.fromhex(id)) is not None
        store.delete(id)
        assert shelf.look()
        assert shelf.find(bytes.fromhex(id)) is None


def test_a_coordinators_value_cannot_be_deleted_by_the_owner(shelf: StoreShelf, waker: Waker) -> None:
    """It is leased to the coordinator until that one releases it."""
    shelf.keep(ended(1), [held(1)], durable=True)
    waker.commit(shelf)
    with Store.open(shelf.folder) as store, pytest.raises(NotTheOwner):
        store.delete(result_id(1).hex())


def test_a_store_has_one_agent(shelf: StoreShelf) -> None:
    """A second one is told so; after the first one's end, or death, there is room."""
    with pytest.raises(StoreInUse, match="another agent runs on the store"):
        StoreShelf(shelf.folder)


def test_a_write_that_fails_is_told_and_leaves_nothing(shelf: StoreShelf, waker: Waker) -> None:
    """The disk is full: what had to be kept has failed, its file is removed, and later writes work."""
    path = tensor_path(shelf.folder, result_id(1))
    write(path, "float32", (2,), bytes(8))
    with sqlite3.connect(shelf.folder / "store.sqlite3") as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tensors BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    shelf.keep(ended(1), [held(1, source=str(path))], durable=True)
    [end] = waker.commit(shelf)
    assert end.failure is not None
    assert (end.failure.code, end.batch.durable) == ("StoreFull", [result_id(1)])
    assert "disk is full" in end.failure.message
    assert shelf.find(result_id(1)) is None
    assert not path.exists()
    with sqlite3.connect(shelf.folder / "store.sqlite3") as connection:
        connection.execute("DROP TRIGGER full")
    connection.close()
    shelf.keep(ended(2), [held(2)], durable=True)
    assert waker.commit(shelf)[0].failure is None


def test_a_killed_agent_keeps_what_it_was_told_is_kept(tmp_path: Path) -> None:
    """SIGKILL right after the commit: value and command are there, and the store can be had."""
    code = """
import os, signal, sys, threading
from pathlib import Path
from edge_agent.store_shelf import StoreShelf
from tests.edge_agent.test_store_shelf import Waker, ended, held
waker = Waker()
shelf = StoreShelf(Path(sys.argv[1]), wake=waker)
shelf.keep(ended(1, inline=False), [held(1)], durable=True)
assert [end.failure for end in waker.commit(shelf)] == [None]
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=100, check=False)
    assert done.returncode == -9
    again = StoreShelf(tmp_path)
    assert again.find(result_id(1)) == held(1)
    assert again.unrecorded() == [ended(1, inline=False)]
    again.close()


def test_the_blobs_of_plans_small_and_large(shelf: StoreShelf, waker: Waker) -> None:
    """In the index, in a file of its own, that stays where it came in; there at once, and gone when dropped."""
    large = bytes(100_000)
    shelf.keep_blob(b"1" * 32, large, manifest=False)
    incoming = shelf.folder / "incoming" / "x"
    incoming.write_bytes(b"came in")
    for _ in range(2):  # two plans may have wanted it
        shelf.keep_blob(b"2" * 32, str(incoming), manifest=False)
    shelf.drop_files([str(incoming)])
    assert shelf.blob(b"1" * 32) == large
    [end] = waker.commit(shelf)
    assert list(end.batch.blobs) == [b"1" * 32, b"2" * 32]
    for digest, content in ((b"1" * 32, large), (b"2" * 32, b"came in")):
        path = shelf.blob(digest)
        assert isinstance(path, str)
        assert Path(path).read_bytes() == content
        assert shelf.blob_size(digest) == len(content)
    shelf.drop_blobs([b"1" * 32, b"2" * 32])
    assert shelf.blob(b"1" * 32) is None
    waker.commit(shelf)
    assert shelf.blob(b"1" * 32) is None
    assert list((shelf.folder / "blobs").iterdir()) == []


def test_a_blob_becomes_a_tensor(shelf: StoreShelf) -> None:
    """From bytes or from a file, under several ids at once; what is no tensor file is refused."""
    content = pack("int64", (2,)) + bytes(16)
    digest = hashlib.sha256(content).hexdigest()
    incoming = shelf.folder / "incoming" / digest
    incoming.write_bytes(content)
    for counter, source in ((1, content), (2, str(incoming)), (3, str(incoming))):
        found = shelf.adopt(result_id(counter), source)
        assert (found.dtype, found.shape, found.nbytes) == ("int64", (2,), 16)
        assert Path(str(found.source)).read_bytes() == content
    shelf.drop_files([str(incoming)])
    assert tensor_path(shelf.folder, result_id(3)).exists()
    for junk in (b"junk", content[:-1]):
        with pytest.raises(TensorRefused):
            shelf.adopt(result_id(4), junk)
    assert not tensor_path(shelf.folder, result_id(4)).exists()


def test_a_blob_becomes_a_part_of_a_plan_and_a_tensor(shelf: StoreShelf) -> None:
    """A weight that was sent by itself as well: whichever is first, the other finds it."""
    content = pack("int64", (2,)) + bytes(16)
    incoming = shelf.folder / "incoming" / "x"
    incoming.write_bytes(content)
    shelf.keep_blob(STATE, str(incoming), manifest=False)
    shelf.adopt(result_id(1), str(incoming))
    shelf.keep_blob(MANIFEST, str(incoming), manifest=False)
    shelf.drop_files([str(incoming)])
    for path in (shelf.blob(STATE), shelf.blob(MANIFEST), tensor_path(shelf.folder, result_id(1))):
        assert Path(str(path)).read_bytes() == content


def test_files_that_nothing_names_are_removed_at_the_start(tmp_path: Path) -> None:
    """Left by a crash, whatever their age on the device's wall clock; but not while somebody is just writing, and not
    what may be the owner's.
    """
    with Store.open(tmp_path) as store:
        named = tensor_path(tmp_path, bytes.fromhex(store.put([[0.0] * 1000] * 100)))
        lost = named.with_name(f"{store.id.hex()}{'f' * 16}.safetensors")
    for name in ("young", f"{named.name}.4711.part", lost.name):
        (named.parent / name).write_bytes(b"x")
    with Database(tmp_path).writing():
        StoreShelf(tmp_path).close()
    assert len(list(named.parent.iterdir())) == 4
    StoreShelf(tmp_path).close()
    assert {path.name for path in named.parent.iterdir()} == {named.name, lost.name}


def test_blobs_on_their_way_in_are_kept_for_a_week(tmp_path: Path) -> None:
    """The beginning of one, which the next fetch goes on from; not one that was whole and not used before the crash."""
    StoreShelf(tmp_path).close()
    incoming = tmp_path / "incoming"
    week = 7 * 86_400
    for name, age in (("young.part", week / 2), ("old.part", 2 * week), ("whole.0", 0.0)):
        (incoming / name).write_bytes(b"x")
        os.utime(incoming / name, (time.time() - age,) * 2)
    StoreShelf(tmp_path).close()
    assert [path.name for path in incoming.iterdir()] == ["young.part"]


def test_thousands_of_values_pass_through_a_small_cache(shelf: StoreShelf, waker: Waker) -> None:
    """What falls out of the cache is found on the disk."""
    count = 6000
    for counter in range(1, count + 1):
        shelf.keep(ended(counter), [held(counter)], durable=False)
    waker.commit(shelf)
    assert all(shelf.find(result_id(counter)) == held(counter) for counter in range(1, count + 1, 50))
    assert shelf.ended(result_id(count)) == ended(count)
    assert shelf.ended(result_id(count + 1)) is None
