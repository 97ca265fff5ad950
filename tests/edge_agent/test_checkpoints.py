"""What a fold goes on from: whole or none, written little by little, and deleted in the end."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from edge_agent.checkpoints import Checkpoint, Kept, names_of
from edge_agent.stacks import Stack
from tests.edge_agent.device import result_id

ROWS, TOTAL = 7, 100


def stacks() -> list[Stack]:
    """Three outputs: a scalar, a pair, and one without elements."""
    return [Stack("float32", (), TOTAL), Stack("int64", (2,), TOTAL), Stack("float32", (0,), TOTAL)]


def step(outs: list[Stack], n: int) -> None:
    """The outputs of step ``n``."""
    for out in outs:
        out.add(memoryview(bytes([n]) * out.each))


def saved(folder: Path, *steps: int) -> list[Stack]:
    """Save after each of these numbers of steps; the outputs then."""
    checkpoint, outs = Checkpoint(folder, result_id(1)), stacks()
    for stop in steps:
        for n in range(outs[0].filled, stop):
            step(outs, n)
        checkpoint.save(stop, ROWS, [b"carry", bytes([stop])], outs)
    return outs


def load(folder: Path, rows: int = ROWS, total: int = TOTAL) -> Kept | None:
    """As a worker after a crash."""
    return Checkpoint(folder, result_id(1)).load(rows, total)


def elements(outs: list[Stack]) -> list[tuple[str, tuple[int, ...], bytes]]:
    """All that is in them."""
    return [(one.dtype, one.shape, bytes(one.whole().data)) for one in outs]


@pytest.mark.parametrize("steps", [(1,), (3, 4, 9), (50, 100)])
def test_what_was_saved_last_is_loaded(tmp_path: Path, steps: tuple[int, ...]) -> None:
    """The steps, the carry, and all outputs, in order, with room for the rest."""
    outs = saved(tmp_path, *steps)
    kept = load(tmp_path)
    assert kept is not None
    assert (kept.step, kept.carry) == (steps[-1], [b"carry", bytes([steps[-1]])])
    assert elements(kept.outs) == elements(outs)
    for n in range(kept.step, TOTAL):
        step(kept.outs, n)
    assert kept.outs[0].whole().data[-4:] == bytes([TOTAL - 1]) * 4


def test_a_fold_without_outputs_has_a_checkpoint_too(tmp_path: Path) -> None:
    """Of its carry."""
    Checkpoint(tmp_path, result_id(1)).save(5, ROWS, [b"carry"], [])
    assert load(tmp_path) == Kept(5, [b"carry"], [])


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    """The outputs of earlier steps are neither read nor written again: an SD card wears."""
    outs, checkpoint = stacks(), Checkpoint(tmp_path, result_id(1))
    path = tmp_path / "checkpoints" / f"{result_id(1).hex()}.outs"
    for n in range(3):
        step(outs, n)
        checkpoint.save(n + 1, ROWS, [], outs)
        assert path.stat().st_size == (n + 1) * (8 + 4 + 16)
        outs[0].between(0, n + 1)[:] = bytes(4 * (n + 1))  # what is altered here does not reach the disk
    kept = load(tmp_path)
    assert kept is not None
    assert bytes(kept.outs[0].whole().data) == bytes([0] * 4 + [1] * 4 + [2] * 4)


def test_a_worker_that_goes_on_writes_behind_what_is_there(tmp_path: Path) -> None:
    """Also when it dies again; what a crash had left beyond the last whole checkpoint is gone."""
    expected = elements(saved(tmp_path, 2, 4, 6))
    saved(tmp_path, 2)
    path = tmp_path / "checkpoints" / f"{result_id(1).hex()}.outs"
    for stop in (4, 6):
        path.write_bytes(path.read_bytes() + b"of a checkpoint that was cut off")
        checkpoint = Checkpoint(tmp_path, result_id(1))
        kept = checkpoint.load(ROWS, TOTAL)
        assert kept is not None
        for n in range(kept.step, stop):
            step(kept.outs, n)
        checkpoint.save(stop, ROWS, [], kept.outs)
    kept = load(tmp_path)
    assert kept is not None
    assert elements(kept.outs) == expected


def test_of_other_data_or_another_number_of_steps_it_is_none(tmp_path: Path) -> None:
    """Nor is one that was never saved."""
    assert load(tmp_path) is None
    saved(tmp_path, 10)
    assert load(tmp_path) is not None
    assert load(tmp_path, total=10) is not None
    assert load(tmp_path, rows=ROWS + 1) is None
    assert load(tmp_path, total=9) is None


def test_it_is_of_the_tensors_that_it_was_made_of(tmp_path: Path) -> None:
    """Of others with as many rows it is none; which they were is found without reading the rest."""
    names = [b"", b"a tensor", b"another"]
    assert names_of(tmp_path, result_id(1)) is None
    Checkpoint(tmp_path, result_id(1), names).save(3, ROWS, [b"carry"], [])
    assert Checkpoint(tmp_path, result_id(1), names).load(ROWS, TOTAL) == Kept(3, [b"carry"], [])
    assert Checkpoint(tmp_path, result_id(1), names[:2]).load(ROWS, TOTAL) is None
    assert Checkpoint(tmp_path, result_id(1), [*names[:2], b"a newer one"]).load(ROWS, TOTAL) is None
    assert names_of(tmp_path, result_id(1)) == names
    path = tmp_path / "checkpoints" / f"{result_id(1).hex()}.data"
    content = path.read_bytes()
    for altered in (b"", content[:-1], content[:-1] + b"?"):
        path.write_bytes(altered)
        assert names_of(tmp_path, result_id(1)) is None


@pytest.mark.parametrize("suffix", ["", ".outs"])
def test_one_that_was_cut_or_altered_is_none(tmp_path: Path, suffix: str) -> None:
    """Either file, anywhere; and what is saved then is whole."""
    saved(tmp_path, 3, 5)
    path = tmp_path / "checkpoints" / f"{result_id(1).hex()}{suffix}"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at])
        assert load(tmp_path) is None
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert load(tmp_path) is None
    path.unlink()
    assert load(tmp_path) is None
    checkpoint, outs = Checkpoint(tmp_path, result_id(1)), stacks()
    assert checkpoint.load(ROWS, TOTAL) is None
    step(outs, 0)
    checkpoint.save(1, ROWS, [], outs)
    kept = load(tmp_path)
    assert kept is not None
    assert elements(kept.outs) == elements(outs)


def test_one_of_the_first_format_is_none(tmp_path: Path) -> None:
    """All in one file, each output a frame: an agent that was brought up to date begins anew."""
    path = tmp_path / "checkpoints" / result_id(1).hex()
    path.parent.mkdir()
    content = msgspec.msgpack.encode((3, ROWS, [b"carry"], [[b"0", b"1", b"2"]]))
    path.write_bytes(hashlib.sha256(content).digest() + content)
    assert load(tmp_path) is None
    saved(tmp_path, 1)
    assert load(tmp_path) is not None


def test_a_fold_that_has_ended_leaves_nothing(tmp_path: Path) -> None:
    """Neither file, nor what a crash has left of one."""
    saved(tmp_path, 3)
    (tmp_path / "checkpoints" / f"{result_id(1).hex()}.99.part").touch()
    Checkpoint(tmp_path, result_id(2)).save(1, ROWS, [], [])
    Checkpoint(tmp_path, result_id(1)).drop()
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {result_id(2).hex(), f"{result_id(2).hex()}.data"}
    assert load(tmp_path) is None


def test_those_that_nobody_came_back_for_are_deleted_in_the_end(tmp_path: Path) -> None:
    """The oldest first, with all their files, and not the one just made."""
    for n in range(1, 41):
        outs = stacks()
        step(outs, 0)
        Checkpoint(tmp_path, result_id(n)).save(1, ROWS, [], outs)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {f"{result_id(n).hex()}{suffix}" for n in range(9, 41) for suffix in ("", ".outs", ".data")}
