"""Folding a plan over data: batches, orders, checkpoints."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.protocol.messages import Fold
from broker.protocol.tensors import TensorHeader
from edge_agent.checkpoints import Checkpoint
from edge_agent.folding import Opened, fold_plan, shuffled_rows, steps_of
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.worker_onnx import OnnxTensors
from edge_agent.worker_torch import TorchTensors
from tests.edge_agent.device import result_id

TENSORS = TorchTensors()
ONE = TensorHeader("float32", (1,), memoryview(bytes(4)))


def opened(tensor: torch.Tensor) -> Opened:
    """A tensor with what it is."""
    return (*TENSORS.describe(tensor), tensor)


class Counting:
    """A plan: the carry is a weighted sum, the output the batch's sum. ``fails_at``: the step that raises."""

    def __init__(self, fails_at: int = -1) -> None:
        self.batches: list[list[float]] = []
        self.fails_at = fails_at

    def __call__(self, arguments: Sequence[Opened], step: int) -> list[Any]:
        """One step."""
        if step == self.fails_at:
            raise KeyboardInterrupt
        carry, batch = arguments[0][2], arguments[1][2]
        assert arguments[1][1] == tuple(batch.shape)
        self.batches.append(batch.tolist())
        return [carry * 2 + batch.sum(), batch.sum()]


def fold(plan: Counting, data: torch.Tensor, spec: Fold, **options: Any) -> list[torch.Tensor]:
    """Fold from a carry of 0."""
    return fold_plan(spec, [opened(torch.zeros(())), opened(data)], plan, TENSORS, **options)


def test_the_rows_come_batch_by_batch_and_the_last_is_smaller() -> None:
    """In order, epoch after epoch; outputs are stacked, the carry goes on."""
    plan = Counting()
    carry, sums = fold(plan, torch.arange(5.0), Fold(carry=1, batch_size=2, epochs=2))
    assert plan.batches == [[0, 1], [2, 3], [4]] * 2
    assert sums.tolist() == [1, 5, 4, 1, 5, 4]
    assert carry.item() == ((((1 * 2 + 5) * 2 + 4) * 2 + 1) * 2 + 5) * 2 + 4
    assert steps_of(Fold(carry=1, batch_size=2, epochs=2), 5) == 6


def test_shuffling_visits_every_row_once_in_each_epoch_in_another_order() -> None:
    """And the order is the seed's alone."""
    plan, again = Counting(), Counting()
    for one in (plan, again):
        fold(one, torch.arange(7.0), Fold(carry=1, batch_size=3, epochs=2, shuffle=5))
    assert plan.batches == again.batches
    first, second = ([row for batch in plan.batches[at : at + 3] for row in batch] for at in (0, 3))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_the_order_of_rows_is_that_of_the_generator_that_the_docs_name() -> None:
    """Computed here with Python's integers, from the paper's round function: it must never change."""
    mask = (1 << 64) - 1

    def philox(counter: int, key: tuple[int, int]) -> list[int]:
        c, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(p1 >> 64) ^ c[1] ^ k0, p1 & mask, (p0 >> 64) ^ c[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        return c

    numbers = [number for counter in (1, 2, 3) for number in philox(counter, (7, 1))][:10]
    expected = sorted(range(10), key=lambda row: numbers[row])
    assert shuffled_rows(10, seed=7, epoch=1).tolist() == expected


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_fold_goes_on_from_its_checkpoint(tmp_path: Path, stop: int) -> None:
    """Killed before any step, it gives what it would have given, and does no step twice."""
    spec, data = Fold(carry=1, batch_size=2, epochs=2, shuffle=3), torch.arange(5.0)
    whole = Counting()
    expected = fold(whole, data, spec)
    killed, resumed = Counting(fails_at=stop), Counting()
    with pytest.raises(KeyboardInterrupt):
        fold(killed, data, spec, checkpoint=Checkpoint(tmp_path, result_id(1)), every=0)
    got = fold(resumed, data, spec, checkpoint=Checkpoint(tmp_path, result_id(1)), every=0)
    assert [one.tolist() for one in got] == [one.tolist() for one in expected]
    assert killed.batches + resumed.batches == whole.batches
    Checkpoint(tmp_path, result_id(1)).drop()
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("data", "spec", "expected"),
    [
        ([], Fold(carry=1, batch_size=1), "data"),
        ([torch.zeros(3)], Fold(carry=1, batch_size=0), "batch size"),
        ([torch.zeros(3)], Fold(carry=1, batch_size=1, epochs=0), "epochs"),
        ([torch.zeros(3), torch.zeros(4)], Fold(carry=1, batch_size=1), "same number of rows"),
        ([torch.zeros(())], Fold(carry=1, batch_size=1), "rows"),
        ([torch.zeros(0, 2)], Fold(carry=1, batch_size=1), "one at least"),
    ],
)
def test_data_that_cannot_be_cut_is_refused(data: list[torch.Tensor], spec: Fold, expected: str) -> None:
    """With what was expected and what came."""
    with pytest.raises(ArgumentMismatch, match=expected):
        fold_plan(spec, [opened(torch.zeros(())), *map(opened, data)], Counting(), TENSORS)


def test_an_output_whose_shape_depends_on_the_batch_cannot_be_stacked() -> None:
    """Named, with the step."""

    def plan(arguments: Sequence[Opened], _step: int) -> list[Any]:
        return [arguments[0][2], arguments[1][2] * 2]

    with pytest.raises(ArgumentMismatch, match=r"output 1: .*float32\[2\] at every step.*float32\[1\] at step 2"):
        fold_plan(Fold(carry=1, batch_size=2), [opened(torch.zeros(())), opened(torch.arange(5.0))], plan, TENSORS)


def test_a_checkpoint_of_other_data_is_none(tmp_path: Path) -> None:
    """Then the fold begins anew."""
    spec, checkpoint = Fold(carry=1, batch_size=1), Checkpoint(tmp_path, result_id(1))
    with pytest.raises(KeyboardInterrupt):
        fold(Counting(fails_at=2), torch.arange(4.0), spec, checkpoint=checkpoint, every=0)
    anew = Counting()
    fold(anew, torch.arange(3.0), spec, checkpoint=checkpoint, every=0)
    assert anew.batches == [[0], [1], [2]]


@pytest.mark.alone
@pytest.mark.parametrize("tensors", [TENSORS, OnnxTensors()], ids=["torch", "onnx"])
def test_a_step_leaves_no_object_behind(tmp_path: Path, tensors: Any) -> None:
    """Of what is stacked, only the elements are kept, also by checkpoints: the interpreter has as many blocks of memory
    after thousands of steps as after some.
    """
    steps, blocks = 8_000, dict[int, int]()
    scalar = tensors.number(1.0, "float32")

    def look(done: int, _total: int) -> None:
        if done in (steps // 4, steps - 1):
            gc.collect()
            blocks[done] = sys.getallocatedblocks()

    [_, stacked] = fold_plan(
        Fold(carry=1, batch_size=1, epochs=steps),
        [("float32", (), scalar), ("float32", (1,), tensors.tensor(ONE))],
        lambda _arguments, step: [scalar, tensors.number(step, "float32")],
        tensors,
        checkpoint=Checkpoint(tmp_path, result_id(1)),
        every=0.05,
        on_step=look,
    )
    first, last = blocks.values()
    assert last - first < 200
    assert stacked.tolist() == list(range(steps))


@pytest.mark.alone
def test_stacking_makes_no_second_copy() -> None:
    """What is allocated beside the stack itself is a few steps' outputs at a time."""
    large = 100_000
    tensors = OnnxTensors()
    tracemalloc.start()
    try:
        [_, stacked] = fold_plan(
            Fold(carry=1, batch_size=1),
            [("float32", (), tensors.number(0.0, "float32")), ("float32", (50,), np.zeros(50, np.float32))],
            lambda arguments, step: [arguments[0][2], np.full(large, step, np.float32)],
            tensors,
        )
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stacked.nbytes == 50 * 4 * large
    assert most < 4 * 4 * large
    assert (stacked == np.arange(50, dtype=np.float32)[:, None]).all()


def test_progress_is_told_before_every_step_and_at_the_end() -> None:
    """So that a heartbeat may say it."""
    told: list[tuple[int, int]] = []
    fold(
        Counting(),
        torch.arange(4.0),
        Fold(carry=1, batch_size=2),
        on_step=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_philox_is_numpys(tmp_path: Path) -> None:
    """The generator's stream is one that numpy promises to keep (NEP 19)."""
    assert np.array_equal(
        shuffled_rows(5, 1, 0), np.argsort(np.random.Philox(key=np.array([1, 0], np.uint64)).random_raw(5))
    )
