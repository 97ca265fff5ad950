"""Runs a plan over data, batch by batch: what a worker does with a `broker.protocol.messages.Fold`.

``carry`` goes from step to step, the other outputs are stacked, one entry a step (`edge_agent.stacks`): they take the
memory of their elements. In between the whole state is kept on the disk (`edge_agent.checkpoints`), every
`CHECKPOINT_SECONDS` unless the agent is told otherwise, so that a worker that dies, or a device that loses power, goes
on from there.

The order of shuffled rows is part of the format: rows sorted (stably) by 64-bit numbers of Philox4x64-10 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), key (seed, epoch), counted from 1 as numpy does, so that
every runtime sees the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from broker.protocol.messages import Fold
from broker.protocol.tensors import TensorHeader, inspect
from edge_agent.checkpoints import Checkpoint
from edge_agent.jobs import CHECKPOINT_SECONDS
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.stacks import Stack

__all__ = ["Opened", "Tensors", "fold_plan", "shuffled_rows", "steps_of"]

Opened: TypeAlias = tuple[str, tuple[int, ...], Any]
"""dtype name, shape, the runtime's tensor."""


class Tensors(Protocol):
    """What folding needs of a runtime."""

    def tensor(self, header: TensorHeader) -> Any:
        """The tensor of a frame."""

    def frame(self, tensor: Any) -> bytes:
        """A tensor as a frame."""

    def describe(self, tensor: Any) -> tuple[str, tuple[int, ...]]:
        """A tensor's dtype name and shape."""

    def rows(self, tensor: Any, where: Any) -> Any:
        """Rows of a tensor: ``where`` is a slice, or their numbers as a numpy array of int64."""

    def elements(self, tensor: Any) -> memoryview:
        """A tensor's elements, C order, little-endian."""


def shuffled_rows(rows: int, seed: int, epoch: int) -> Any:
    """The numbers of ``rows`` rows in the order of an epoch: a numpy array of int64."""
    import numpy as np

    key = np.array([seed & (1 << 64) - 1, epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(rows), kind="stable").astype(np.int64)


def steps_of(fold: Fold, rows: int) -> int:
    """How many steps there are for so many rows."""
    return fold.epochs * -(-rows // fold.batch_size)


def fold_plan(
    fold: Fold,
    arguments: Sequence[Opened],
    run: Callable[[Sequence[Opened], int], list[Any]],
    tensors: Tensors,
    *,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    on_resumed: Callable[[int, int], None] = lambda _done, _total: None,
    every: float = CHECKPOINT_SECONDS,
) -> list[Any]:
    """The outputs: the carry after the last step, and the others stacked.

    ``run`` runs one step with its arguments and its number, from 0; ``on_step`` is told how many steps of how many are
    done, and may raise to end it; ``on_resumed`` the same, once, where it goes on from a checkpoint. Raises
    `ArgumentMismatch`, MemoryError where the outputs of all steps could never be held, and what ``run`` raises.
    """
    carry, data = list(arguments[: fold.carry]), arguments[fold.carry :]
    rows = _rows_of(fold, data)
    order = fold.order or list(range(fold.carry))
    total = steps_of(fold, rows)
    outs: list[Stack] | None = None
    done = 0
    kept = checkpoint.load(rows, total) if checkpoint is not None else None
    if kept is not None:
        done, outs = kept.step, kept.outs
        carry = [_opened(tensors, frame) for frame in kept.carry]
        on_resumed(done, total)
    save_at = time.monotonic() + every
    for step, where in _batches(fold, rows, done):
        on_step(step, total)
        batch = [_cut(tensors, one, where) for one in data]
        results = run([*carry, *batch], step)
        carry = [(*tensors.describe(results[k]), results[k]) for k in order]
        rest = [(*tensors.describe(one), one) for one in results[fold.carry :]]
        if outs is None:
            outs = [Stack(dtype, shape, total) for dtype, shape, _ in rest]
        for k, (out, (dtype, shape, one)) in enumerate(zip(outs, rest, strict=True), fold.carry):
            if (dtype, shape) != (out.dtype, out.shape):
                before, got = f"{out.dtype}{list(out.shape)}", f"{dtype}{list(shape)}"
                raise ArgumentMismatch(f"output {k}", f"{before} at every step", f"{got} at step {step}")
            out.add(tensors.elements(one))
        if checkpoint is not None and time.monotonic() >= save_at:
            checkpoint.save(step + 1, rows, [tensors.frame(one) for _, _, one in carry], outs)
            save_at = time.monotonic() + every
    on_step(total, total)
    stacked = [tensors.tensor(out.whole()) for out in outs or ()]
    return [*(carry[order.index(k)][2] for k in range(fold.carry)), *stacked]


def _rows_of(fold: Fold, data: Sequence[Opened]) -> int:
    """The first dim of the data. Raises `ArgumentMismatch`."""
    if not data or fold.batch_size < 1 or fold.epochs < 1:
        said = "data, and a batch size and a number of epochs of at least 1"
        got = f"{len(data)} tensors of data, batches of {fold.batch_size} and {fold.epochs} epochs"
        raise ArgumentMismatch("the fold", said, got)
    if fold.order and sorted(fold.order) != list(range(fold.carry)):
        raise ArgumentMismatch("the fold", f"an order of {fold.carry} outputs", str(fold.order))
    shapes = [shape for _, shape, _ in data]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or not min(sizes):
        expected = "tensors with the same number of rows, one at least"
        raise ArgumentMismatch("the data", expected, " and ".join(str(list(shape)) for shape in shapes))
    return sizes.pop()


def _batches(fold: Fold, rows: int, done: int) -> Iterator[tuple[int, Any]]:
    """The steps that are left, each with its rows."""
    an_epoch = -(-rows // fold.batch_size)
    for epoch in range(done // an_epoch, fold.epochs):
        order = None if fold.shuffle is None else shuffled_rows(rows, fold.shuffle, epoch)
        for batch in range(an_epoch):
            step = epoch * an_epoch + batch
            if step >= done:
                where = slice(batch * fold.batch_size, min(rows, (batch + 1) * fold.batch_size))
                yield step, where if order is None else order[where]


def _cut(tensors: Tensors, one: Opened, where: Any) -> Opened:
    dtype, shape, tensor = one
    count = where.stop - where.start if isinstance(where, slice) else len(where)
    return dtype, (count, *shape[1:]), tensors.rows(tensor, where)


def _opened(tensors: Tensors, frame: bytes) -> Opened:
    header = inspect(frame)
    return header.dtype, header.shape, tensors.tensor(header)
