"""A device's store, from its owner's side: what is put is found, also by other processes, and stays until it is
deleted.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from broker.protocol.errors import TensorRefused
from broker.protocol.messages import INLINE_TENSORS_BYTES
from broker.protocol.tensors import DTYPES
from edge_agent import Store
from edge_agent.catalog import Held
from edge_agent.store import NoSuchTensor, NotTheOwner, StoreClosed, StoreDamaged, StoreTooNew
from edge_agent.store_shelf import StoreShelf
from tests.edge_agent.device import tensor_frame

ROOT = Path(__file__).parents[2]
LARGE = INLINE_TENSORS_BYTES // 4 + 1  # elements of float32


def python(code: str, *arguments: object) -> str:
    """Run code in a process of its own; what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [3, LARGE])
def test_what_is_put_is_had_again(tmp_path: Path, size: int) -> None:
    """Small in the index, large in a file: value, tags, description, and a copy that nobody else sees change."""
    with Store.open(tmp_path) as store:
        value = np.arange(size, dtype=np.float32)
        id = store.put(value, tags=["a", "b", "a"], description="numbers")
        value[0] = 99
        entry = store.entry(id)
        assert (entry.dtype, entry.shape, entry.tags, entry.description) == ("float32", (size,), ("a", "b"), "numbers")
        assert entry.own
        copy = store.get(id)
        copy[1] = 99
        assert np.array_equal(store.get(id), np.arange(size, dtype=np.float32))
    assert len(list((tmp_path / "tensors").iterdir())) == (1 if size == LARGE else 0)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (LARGE,)])
def test_every_dtype_of_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    """Equal to the bit: 0-d, empty, small and large."""
    with Store.temporary() as store:
        value = (np.random.default_rng(1).standard_normal(shape) * 100).astype(dtype)
        back = store.get(store.put(value))
        assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize("count", [4, LARGE])
def test_torch_tensors(count: int) -> None:
    """Also of bfloat16, with strides, with a gradient, conjugated: what torch sees is what is kept."""
    with Store.temporary() as store:
        half = torch.arange(count).to(torch.bfloat16)
        id = store.put(half)
        assert store.entry(id).dtype == "bfloat16"
        assert torch.equal(torch.from_numpy(store.get(id)).view(torch.bfloat16), half)
        strided = torch.arange(2 * count).reshape(2, count).T
        assert np.array_equal(store.get(store.put(strided)), strided.numpy())
        assert np.array_equal(store.get(store.put(torch.ones(count, requires_grad=True))), np.ones(count, np.float32))
        assert np.array_equal(store.get(store.put(torch.full((count,), 1j).conj())), np.full(count, -1j, np.complex64))


def test_anything_that_numpy_makes_an_array_of() -> None:
    """Numbers, lists, arrays of another byte order or layout."""
    with Store.temporary() as store:
        assert store.get(store.put(3.5)).item() == 3.5
        assert store.get(store.put([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
        assert store.get(store.put(np.arange(3, dtype=">i4"))).tolist() == [0, 1, 2]
        assert store.get(store.put(np.asfortranarray(np.eye(3)))).tolist() == np.eye(3).tolist()
        assert np.isnan(store.get(store.put([np.nan, np.inf]))[0])


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["2024-01-01"], dtype="datetime64[D]"),
        torch.eye(2).to_sparse(),
        torch.ones(2, dtype=torch.float8_e5m2),
    ],
    ids=["object", "text", "structured", "datetime", "sparse", "float8"],
)
def test_what_cannot_travel_is_refused(value: object) -> None:
    """When it is put, and not when somebody wants it."""
    with Store.temporary() as store:
        with pytest.raises(TensorRefused):
            store.put(value)
        assert store.entries() == []


@pytest.mark.parametrize("tags", [[""], ["x" * 257], "text", [3]])
def test_tags_that_are_none(tags: list[str]) -> None:
    """Empty, too long, a text in place of a list, numbers."""
    with Store.temporary() as store, pytest.raises(ValueError, match="tags"):
        store.put([1.0], tags=tags)


@pytest.mark.parametrize("said", [5, None, "\ud800"])
def test_a_description_that_is_no_text(said: object) -> None:
    """The broker would refuse a device that announces it. What UTF-8 can't write is no text, and no tag either."""
    with Store.temporary() as store:
        with pytest.raises(ValueError, match="expected a description in words"):
            store.put(np.ones(2), description=said)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected tags of 1 to 256 characters"):
            store.put(np.ones(2), tags=[said])  # type: ignore[list-item]
        assert store.entries() == []


def test_search_by_tags() -> None:
    """All tags must be there; without any, all that is tagged; oldest first."""
    with Store.temporary() as store:
        first = store.put([1], tags=["a", "b"])
        second = store.put([2], tags=["a"])
        store.put([3])
        assert [entry.id for entry in store.search("a")] == [first, second]
        assert [entry.id for entry in store.search("b", "a")] == [first]
        assert store.search("c") == []
        assert [entry.id for entry in store.search()] == [first, second]
        assert len(store.entries()) == 3


def test_what_a_person_sees_of_a_store(tmp_path: Path) -> None:
    """Which it is, and where."""
    store = Store.open(tmp_path / "store")
    assert repr(store) == f"<Store {store.id.hex()} in {tmp_path / 'store'}>"
    store.close()


def test_ids_begin_with_the_stores_own(tmp_path: Path) -> None:
    """16 bytes: the store's random id and a counter that goes on after a restart."""
    with Store.open(tmp_path) as store:
        first, store_id = store.put([1]), store.id
    with Store.open(tmp_path) as store:
        second = store.put([2])
        assert store.id == store_id
    assert first == store_id.hex() + f"{1:016x}"
    assert second == store_id.hex() + f"{2:016x}"
    with Store.temporary() as other:
        assert other.id != store_id


@pytest.mark.parametrize("size", [3, LARGE])
def test_deleting(tmp_path: Path, size: int) -> None:
    """Row, tags and file are gone; what is not there can't be deleted."""
    with Store.open(tmp_path) as store:
        id = store.put(np.zeros(size, dtype=np.float32), tags=["a"])
        store.delete(id)
        assert store.search("a") == []
        assert list((tmp_path / "tensors").iterdir()) == []
        for missing in (id, "no id"):
            with pytest.raises(NoSuchTensor, match=f"no tensor in this store has the id {missing}"):
                store.delete(missing)
            with pytest.raises(NoSuchTensor):
                store.get(missing)


def test_a_coordinators_value_is_not_the_owners_to_delete(tmp_path: Path) -> None:
    """It is listed, and it is the coordinator's to release."""
    shelf = StoreShelf(tmp_path)
    value = Held(id=b"coordinator's id", dtype="float32", shape=(1,), nbytes=4, source=tensor_frame(1))
    shelf.keep(None, [value], durable=False)
    shelf.close()
    with Store.open(tmp_path) as store:
        id = value.id.hex()
        with pytest.raises(NotTheOwner, match="the coordinator it belongs to releases it"):
            store.delete(id)
        assert not store.entry(id).own


def test_several_processes_put_at_once(tmp_path: Path) -> None:
    """None waits for ever, none takes another's id, and all is there in the end."""
    code = """
import sys
from edge_agent import Store
with Store.open(sys.argv[1]) as store:
    for k in range(20):
        store.put([float(k)], tags=[sys.argv[2]])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, f"writer {k}"], cwd=ROOT) for k in range(3)]
    try:
        assert [process.wait(100) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    with Store.open(tmp_path) as store:
        assert len({entry.id for entry in store.entries()}) == 60
        assert [len(store.search(f"writer {k}")) for k in range(3)] == [20, 20, 20]


def test_what_a_killed_process_has_put_is_there(tmp_path: Path) -> None:
    """`put` returns when it is on the disk: killed right after it, nothing is lost."""
    code = """
import os, signal, sys
import numpy
from edge_agent import Store
store = Store.open(sys.argv[1])
print(store.put([1.5], tags=["small"]), store.put(numpy.ones(100_000), tags=["large"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    small, large = done.stdout.split()
    with Store.open(tmp_path) as store:
        assert store.get(small).tolist() == [1.5]
        assert store.get(large).sum() == 100_000


def test_importing_and_searching_needs_no_numpy(tmp_path: Path) -> None:
    """Nor torch: only put and get load numpy."""
    with Store.open(tmp_path) as store:
        store.put([1.0], tags=["a"])
    code = """
import json, sys
from edge_agent import Store
store = Store.open(sys.argv[1])
assert store.search("a") and store.entries()
print(json.dumps([name for name in ("numpy", "torch", "zmq") if name in sys.modules]))
"""
    assert json.loads(python(code, tmp_path)) == []


def test_numpy_alone_puts_and_gets(tmp_path: Path) -> None:
    """Torch is not needed, and not loaded."""
    code = """
import sys
import numpy
from edge_agent import Store
store = Store.open(sys.argv[1])
assert store.get(store.put(numpy.arange(3), tags=["a"])).tolist() == [0, 1, 2]
print("torch" in sys.modules)
"""
    assert python(code, tmp_path).strip() == "False"


def test_a_temporary_store_leaves_nothing() -> None:
    """Its folder is gone with it."""
    with Store.temporary() as store:
        store.put(np.zeros(LARGE, dtype=np.float32))
        folder = store.folder
        assert folder.exists()
    assert not folder.exists()


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.put([1.0]),
        lambda store: store.put(np.zeros(100_000)),
        lambda store: store.append("train", [[1.0]]),
        lambda store: store.search("t"),
        lambda store: store.entries(),
        lambda store: store.get("00" * 16),
        lambda store: store.delete("00" * 16),
        lambda store: store.clear("train"),
    ],
)
@pytest.mark.parametrize("temporary", [False, True])
def test_a_closed_store(tmp_path: Path, use: Callable[[Store], object], *, temporary: bool) -> None:
    """Whatever is asked of it says so; closing it once more is nothing."""
    store = Store.temporary() if temporary else Store.open(tmp_path)
    store.close()
    with pytest.raises(StoreClosed, match="is closed"):
        use(store)
    store.close()


def test_what_is_no_store_is_not_taken_for_one(tmp_path: Path) -> None:
    """Another file in its place is named, and left as it is."""
    (tmp_path / "store.sqlite3").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreDamaged, match="expected a store in"):
        Store.open(tmp_path)
    assert (tmp_path / "store.sqlite3").read_bytes().startswith(b"something else")


def test_a_store_of_a_later_version_is_not_opened(tmp_path: Path) -> None:
    """A downgrade must not write into what it does not understand."""
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreTooNew, match="got version 99"):
        Store.open(tmp_path)


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    """A device's data is nobody else's to read."""
    Store.open(tmp_path / "store").close()
    for name in ("", "tensors", "blobs", "incoming"):
        assert (tmp_path / "store" / name).stat().st_mode & 0o077 == 0
