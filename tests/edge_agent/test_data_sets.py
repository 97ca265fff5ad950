"""Data sets: columns that a device's programs append to, and that plans take by a name."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.protocol.errors import TensorRefused
from broker.protocol.tensors import decode_array
from edge_agent import Store
from edge_agent.catalog import Held
from edge_agent.store import NoSuchTensor, ValueDamaged
from edge_agent.store_salvage import salvage
from edge_agent.store_shelf import StoreShelf
from edge_agent.tensor_files import map_tensor
from tests.processes import started


def some(start: int, count: int, width: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows that say which they are, and what they are called."""
    y = np.arange(start, start + count, dtype=np.int64)
    return np.repeat(y[:, None], width, axis=1).astype(np.float32), y


def value(held: Held) -> np.ndarray[Any, Any]:
    """What an agent would give to its worker."""
    if isinstance(held.source, bytes):
        return decode_array(held.source)
    header = map_tensor(held.source, held.check)
    return np.frombuffer(header.data, dtype=np.dtype(header.dtype)).reshape(header.shape)


def column(shelf: StoreShelf, tag: str) -> np.ndarray[Any, Any]:
    """The one tensor of that tag."""
    [held] = shelf.with_tags([tag])
    assert held.own
    assert list(held.shape) == list(value(held).shape)
    return value(held)


@pytest.mark.parametrize("width", [3, 20_000])
def test_what_was_appended_is_there_in_order(tmp_path: Path, width: int) -> None:
    """Small appends and large ones, by another program than the agent's, and after both were started again."""
    with Store.open(tmp_path) as store:
        assert store.append("train", *some(0, 2, width)) == 2
        shelf = StoreShelf(tmp_path)
        assert store.append("train", *some(2, 3, width)) == 5
        x, y = some(0, 5, width)
        assert np.array_equal(column(shelf, "train#0"), x)
        assert np.array_equal(column(shelf, "train#1"), y)
        assert len(shelf.with_tags(["train"])) == 2
        assert [entry.tags for entry in shelf.tagged()] == [["train", "train#0"], ["train", "train#1"]]
        shelf.close()
    with Store.open(tmp_path) as store:
        first, second = store.search("train")
        assert np.array_equal(store.get(first.id), x)
        assert np.array_equal(store.get(second.id), y)
    shelf = StoreShelf(tmp_path)
    assert np.array_equal(column(shelf, "train#1"), y)
    shelf.close()


def test_an_id_is_one_value_for_ever(tmp_path: Path) -> None:
    """What was found before an append is still what it was, until its first rows are dropped."""
    with Store.open(tmp_path) as store:
        shelf = StoreShelf(tmp_path)
        store.append("train", *some(0, 2))
        [before] = shelf.with_tags(["train#1"])
        store.append("train", *some(2, 2))
        [after] = shelf.with_tags(["train#1"])
        again = StoreShelf.find(shelf, before.id)
        assert again is not None
        assert (value(again).tolist(), value(after).tolist()) == ([0, 1], [0, 1, 2, 3])
        assert before.id != after.id
        assert store.get(before.id.hex()).tolist() == [0, 1]
        store.append("train", *some(4, 1), max_rows=2)
        with pytest.raises(NoSuchTensor):
            store.get(before.id.hex())
        shelf.close()


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
def test_the_newest_rows_stay(tmp_path: Path, most: int) -> None:
    """By a number of rows, or by as many bytes, whatever the appends were; files of dropped rows go."""
    width = 20_000
    row_bytes = 4 * width + 8
    with Store.open(tmp_path / "rows") as by_rows, Store.open(tmp_path / "bytes") as by_bytes:
        expected: list[int] = []
        for start, count in ((0, 2), (2, 1), (3, 4), (7, 1), (8, 1), (9, 3)):
            expected = (expected + list(range(start, start + count)))[-most:]
            assert by_rows.append("train", *some(start, count, width), max_rows=most) == len(expected)
            assert by_bytes.append("train", *some(start, count, width), max_bytes=most * row_bytes + 1) == len(expected)
            for store in (by_rows, by_bytes):
                x, y = (store.get(entry.id) for entry in store.search("train"))
                assert y.tolist() == expected
                assert x[:, 7].tolist() == expected
        assert len(list((tmp_path / "rows" / "chunks").iterdir())) <= most


def test_rows_grow_too_old(tmp_path: Path) -> None:
    """They are gone when somebody asks, and the space is free: one append, then the other with all."""
    with Store.open(tmp_path) as store:
        shelf = StoreShelf(tmp_path)
        store.append("train", *some(0, 2, 20_000), max_age=100)
        store.append("train", *some(2, 2, 20_000), max_age=300)
        sets, now = shelf._sets, time.time()
        assert not sets.expire(now=now)
        assert sets.expire(now=now + 200)
        assert column(shelf, "train#1").tolist() == [2, 3]
        assert len(list((tmp_path / "chunks").iterdir())) == 1
        assert store.append("train", *some(4, 1, 20_000)) == 3
        assert sets.expire(now=now + 400)
        assert column(shelf, "train#1").tolist() == [4]
        store.append("other", *some(4, 1), max_age=1)
        assert sets.expire(now=now + 400)
        assert shelf.with_tags(["other"]) == []
        assert column(shelf, "train#1").tolist() == [4]
        shelf.close()


def test_what_does_not_fit_is_refused_and_nothing_is_added(tmp_path: Path) -> None:
    """Other columns than before, columns of different lengths, no rows, a name that is no tag, a limit of nothing."""
    with Store.open(tmp_path) as store:
        x, y = some(0, 2)
        store.append("train", x, y)
        for columns, said in (
            ((x,), r"expected columns of float32\[3\], int64\[\], as train has, got float32\[3\]"),
            ((x, y.astype(np.int32)), "got float32.3., int32"),
            ((x[:, :2], y), "got float32.2., int64"),
            ((x, y[:1]), "the same number of rows, one at least, got 2 and 1"),
            ((x[:0], y[:0]), "one at least, got 0 and 0"),
            ((np.float32(1), np.int64(2)), "expected rows for train, got float32"),
            ((), "expected 1 to 256 columns for train, got 0"),
        ):
            with pytest.raises(TensorRefused, match=said):
                store.append("train", *columns)
        for name in ("", "n" * 253):
            with pytest.raises(ValueError, match="expected tags"):
                store.append(name, x)
        for limit, said in (
            ({"max_rows": 0}, "expected max_rows to be an int above 0, got 0"),
            ({"max_bytes": 2.5}, "expected max_bytes to be an int above 0, got 2.5"),
            ({"max_age": "a week"}, "expected max_age to be a number above 0, got 'a week'"),
        ):
            with pytest.raises(ValueError, match=said):
                store.append("train", x, y, **limit)
        assert [entry.shape for entry in store.search("train")] == [(2, 3), (2,)]
        assert store.clear("train")
        assert not store.clear("train")
        assert store.search("train") == []
        assert store.append("train", x) == 2


def test_a_program_that_is_killed_leaves_whole_appends(tmp_path: Path) -> None:
    """SIGKILL in the middle of appends, large and small: columns are of one length, and what was promised is there."""
    program = (
        "import sys, numpy\n"
        "from edge_agent import Store\n"
        f"store = Store.open({str(tmp_path)!r})\n"
        "for n in range(100_000):\n"
        "    x, y = numpy.full((2, 4), n, numpy.float32), numpy.full((2,), n)\n"
        "    large = numpy.full((1, 30_000), n, numpy.float32)\n"
        "    print(store.append('small', x, y), store.append('large', large, y[:1]), flush=True)\n"
    )
    with started(sys.executable, "-c", program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        process.kill()
        said += process.stdout.readlines()
    small, large = (int(count) for count in [line for line in said if line.endswith("\n")][-1].split())
    with Store.open(tmp_path) as store:
        for name, least, step in (("small", small, 2), ("large", large, 1)):
            x, y = (store.get(entry.id) for entry in store.search(name))
            assert len(x) == len(y) >= least
            assert y.tolist() == [n // step for n in range(len(y))]
            assert x[:, 0].tolist() == y.tolist()


def test_a_damaged_append_is_never_served_as_if_it_were_whole(tmp_path: Path) -> None:
    """The agent's worker is told that the value was altered, and so is the owner; other data sets are as before."""
    with Store.open(tmp_path) as store:
        store.append("train", *some(0, 2, 20_000))
        store.append("other", *some(0, 2))
        [path] = (tmp_path / "chunks").iterdir()
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        shelf = StoreShelf(tmp_path)
        [held] = shelf.with_tags(["train#1"])
        with pytest.raises(Exception, match="altered"):
            value(held)
        with pytest.raises(ValueDamaged, match="was altered"):
            store.get(store.search("train")[0].id)
        assert column(shelf, "other#1").tolist() == [0, 1]
        shelf.close()


def test_data_sets_are_salvaged_but_for_what_is_damaged(tmp_path: Path) -> None:
    """Out of a store with a damaged file: all other appends, in order."""
    with Store.open(tmp_path / "old") as store:
        for start in range(0, 6, 2):
            store.append("train", *some(start, 2, 20_000))
        store.append("other", *some(0, 3))
    first = min((tmp_path / "old" / "chunks").iterdir())
    first.write_bytes(b"?" + first.read_bytes()[1:])
    found = salvage(tmp_path / "old", tmp_path / "new")
    assert found.lost == [f"the file {first.name} of an append was altered"]
    with Store.open(tmp_path / "new") as store:
        assert store.get(store.search("train#1")[0].id).tolist() == [2, 3, 4, 5]
        assert store.get(store.search("train#0")[0].id)[:, 9].tolist() == [2, 3, 4, 5]
        assert store.get(store.search("other#1")[0].id).tolist() == [0, 1, 2]
