"""Stores that were cut, or in which bits have changed: told from whole ones, named, and never served as whole."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from broker.protocol import messages as m
from edge_agent import Store
from edge_agent.catalog import Ended, Held
from edge_agent.cli import cli
from edge_agent.store import StoreDamaged, StoreError, ValueDamaged
from edge_agent.store_rows import RowDamaged, command_rows, ended_of
from edge_agent.store_salvage import salvage
from edge_agent.store_shelf import StoreShelf
from tests.edge_agent.device import result_id, tensor_frame

LARGE = np.arange(40_000, dtype=np.float32)


def fill(folder: Path) -> tuple[str, str]:
    """A store with own tensors, small and large, results, and a plan's part; the ids of the first two."""
    with Store.open(folder) as store:
        small = store.put([1.0, 2.0], tags=["small"], description="two")
        large = store.put(LARGE, tags=["large"])
    shelf = StoreShelf(folder)
    for counter in range(1, 60):
        event = m.ResultReady(id=result_id(counter), digest=b"d" * 16, inline=True)
        held = Held(
            id=result_id(counter),
            dtype="float32",
            shape=(2,),
            nbytes=8,
            source=tensor_frame(counter, 0),
            tags=("result",) if counter % 20 == 0 else (),
        )
        shelf.keep(Ended(id=result_id(counter), event=event), [held], durable=True)
    shelf.mark_recorded([result_id(counter) for counter in range(1, 30)])
    shelf.save_registration(b"token-01", b"ledger-1")
    shelf.close()
    return small, large


def all_of(folder: Path) -> object:
    """All that a store says of itself."""
    shelf = StoreShelf(folder)
    try:
        values = [shelf.find(result_id(counter)) for counter in range(1, 61)]
        ends = [shelf.ended(result_id(counter)) for counter in range(1, 61)]
        said = shelf.store_id, shelf.registration(), values, ends, shelf.unrecorded(), shelf.tagged()
    finally:
        shelf.close()
    with Store.open(folder) as store:
        return said, store.entries(), [store.get(entry.id).tolist() for entry in store.entries()]


def test_a_bit_that_has_changed_in_the_index_is_noticed(tmp_path: Path) -> None:
    """Wherever it is: either it means nothing, and all is as before, or the store is damaged, and says so."""
    whole = tmp_path / "whole"
    fill(whole)
    before = all_of(whole)
    index = (whole / "store.sqlite3").read_bytes()
    rng = random.Random(7)
    damaged = 0
    for place in [*range(16, 100, 7), *(rng.randrange(len(index)) for _ in range(28))]:
        folder = tmp_path / "altered"
        shutil.copytree(whole, folder, ignore=lambda _folder, names: {"changed"} & set(names))
        content = bytearray(index)
        content[place] ^= 1 << rng.randrange(8)
        (folder / "store.sqlite3").write_bytes(content)
        try:
            found = all_of(folder)
        except StoreError as error:
            found, said = before, str(error)
            damaged += str(folder) in said
        assert found == before, f"byte {place} of the index was served altered"
        shutil.rmtree(folder)
    assert damaged > 10


@pytest.mark.parametrize("mark", [None, b"", "1", 2, -1, 1.5, 0])
def test_a_mark_that_is_none_any_more_is_noticed(mark: object) -> None:
    """A bit of the index can make a number anything, also nothing: that is damage, and no error of ours."""
    event = m.ResultReady(id=result_id(1), digest=b"d" * 16)
    ended = Ended(id=result_id(1), event=event, recorded=True)
    [(id, encoded, outputs, recorded, *rest)] = command_rows([ended], 1.0, {ended.id: 2.0})
    assert ended_of((id, encoded, outputs, recorded, *rest)).recorded
    with pytest.raises(RowDamaged, match="was altered"):
        ended_of((id, encoded, outputs, mark, *rest))


@pytest.mark.parametrize("left", [0, 1, 100, 4096, 9000, -4096, -1])
def test_an_index_that_was_cut_is_noticed(tmp_path: Path, left: int) -> None:
    """To nothing, too: then it would look like a new store, and the owner's data would be gone without a word."""
    fill(tmp_path)
    index = tmp_path / "store.sqlite3"
    index.write_bytes(index.read_bytes()[:left])
    for opening in (Store.open, StoreShelf):
        with pytest.raises(StoreDamaged, match="expected a store in"):
            opening(tmp_path)


def test_an_index_of_which_only_a_zero_was_cut_is_noticed(tmp_path: Path) -> None:
    """SQLite reads zeros behind the end of a file, so no row and no sum would tell."""
    fill(tmp_path)
    index = tmp_path / "store.sqlite3"
    with contextlib.closing(sqlite3.connect(index, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("CREATE TABLE more AS SELECT zeroblob(3000)")
        connection.execute("DROP TABLE more")
    whole = index.read_bytes()
    assert not whole[-1]
    Store.open(tmp_path).close()
    index.write_bytes(whole[:-1])
    for opening in (Store.open, StoreShelf):
        with pytest.raises(StoreDamaged, match="ends within a page"):
            opening(tmp_path)


def test_an_index_that_is_gone_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    """Its tensors are there still."""
    fill(tmp_path)
    (tmp_path / "store.sqlite3").unlink()
    with pytest.raises(StoreDamaged, match="its index is gone"):
        Store.open(tmp_path)


def crashed(folder: Path) -> Path:
    """What a crash leaves of a store: the index, and the log with what was not moved into it yet."""
    live = folder / "live"
    shelf = StoreShelf(live)
    for counter in range(1, 6):
        event = m.ResultReady(id=result_id(counter), digest=b"d" * 16)
        held = Held(id=result_id(counter), dtype="float32", shape=(2,), nbytes=8, source=tensor_frame(counter))
        shelf.keep(Ended(id=result_id(counter), event=event), [held], durable=True)
        shelf.unrecorded()  # waits until it is written
    copy = folder / "copy"
    shutil.copytree(live, copy, ignore=lambda _folder, names: {"changed", "store.sqlite3-shm"} & set(names))
    shelf.close()
    return copy


def test_a_torn_last_transaction_opens(tmp_path: Path) -> None:
    """One that nobody was told of: half of its pages are in the log, and no end."""
    copy = crashed(tmp_path)
    with (copy / "store.sqlite3-wal").open("ab") as log:
        log.write(b"x" * 3000)
    shelf = StoreShelf(copy)
    assert [ended.id for ended in shelf.unrecorded()] == [result_id(counter) for counter in range(1, 6)]
    shelf.close()


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_log_that_lost_what_was_promised_is_noticed(tmp_path: Path, harm: str) -> None:
    """SQLite takes a log up to the first frame that is not whole for all there was. What was synced is missing then."""
    copy = crashed(tmp_path)
    log = copy / "store.sqlite3-wal"
    content = bytearray(log.read_bytes())
    if harm == "cut":
        del content[-1:]
    else:
        content[len(content) * 3 // 4] ^= 4
    log.write_bytes(content)
    with pytest.raises(StoreDamaged, match="the last ones are missing"):
        StoreShelf(copy)


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_value_whose_file_has_changed_is_named_and_the_others_are_served(tmp_path: Path, harm: str) -> None:
    """Only that one is damaged."""
    small, large = fill(tmp_path)
    [file] = (tmp_path / "tensors").iterdir()
    content = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(content[:-1])
    elif harm == "flipped":
        content[-7] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with Store.open(tmp_path) as store:
        with pytest.raises(ValueDamaged, match=f"the file of {large}"):
            store.get(large)
        assert store.get(small).tolist() == [1.0, 2.0]


def test_what_is_whole_is_salvaged(tmp_path: Path) -> None:
    """The owner's tensors of a damaged store, with tags and descriptions, by the command; and what is lost is said."""
    small, large = fill(tmp_path / "old")
    with sqlite3.connect(tmp_path / "old" / "store.sqlite3") as connection:
        connection.execute("UPDATE tensors SET description = 'altered' WHERE id = ?", (result_id(7),))
        connection.execute("DELETE FROM tags WHERE tag = 'small'")
    connection.close()
    with pytest.raises(StoreDamaged):
        Store.open(tmp_path / "old")
    arguments = ["salvage", "--store", str(tmp_path / "old"), "--into", str(tmp_path / "new")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert f"lost: the row of value {result_id(7).hex()} was altered" in done.output
    with Store.open(tmp_path / "new") as store:
        found = {entry.tags: store.get(entry.id).tolist() for entry in store.entries()}
        assert found == {("small",): [1.0, 2.0], ("large",): LARGE.tolist()}
    assert set(salvage(tmp_path / "old", tmp_path / "newer").saved) == {small, large}
    with pytest.raises(ValueError, match="expected another folder"):
        salvage(tmp_path / "old", tmp_path / "old")


def test_a_lost_store_is_another_one(tmp_path: Path) -> None:
    """A new folder has a new id, by which the broker knows that all values are gone."""
    ids = set()
    for name in ("a", "b"):
        with Store.open(tmp_path / name) as store:
            ids.add(store.id)
    assert len(ids) == 2


def test_a_seal_that_cannot_be_written_stays_behind(tmp_path: Path) -> None:
    """What was put is on the disk, and is not said to have failed."""
    with Store.open(tmp_path) as store:
        seal = tmp_path / "seal"
        seal.unlink()
        seal.mkdir()
        kept = store.put([1.0, 2.0])
        seal.rmdir()
    with Store.open(tmp_path) as store:
        assert store.get(kept).tolist() == [1.0, 2.0]
