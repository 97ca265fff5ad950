"""Runs a plan over data, batch by batch: what a worker does with a `broker.protocol.messages.Fold`.

``carry`` goes from step to step, the other outputs are stacked, one entry a step. In between the whole state is kept
in a file, every `CHECKPOINT_SECONDS` unless the agent is told otherwise, so that a worker that dies, or a device that
loses power, goes on from there.

The order of shuffled rows is part of the format: rows sorted (stably) by 64-bit numbers of Philox4x64-10 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), key (seed, epoch), counted from 1 as numpy does, so that
every runtime sees the same batches.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from broker.protocol.messages import Fold
from broker.protocol.tensors import TensorHeader, inspect
from edge_agent.jobs import CHECKPOINT_SECONDS
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.tensor_files import write_whole

__all__ = ["Checkpoint", "Opened", "Tensors", "fold_plan", "shuffled_rows", "steps_of"]

_KEPT_CHECKPOINTS = 32
"""Checkpoints of invocations that never came back are deleted beyond so many."""

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

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Tensors of one shape, along a new first dim."""


class _Kept(NamedTuple):
    step: int
    rows: int
    carry: list[bytes]
    outs: list[list[bytes]]


class Checkpoint:
    """The file from which the folding of ``id`` goes on. One that was cut or altered, or is of other data, is none."""

    def __init__(self, folder: Path, id: bytes) -> None:
        self._path = folder / "checkpoints" / id.hex()

    def load(self, rows: int) -> _Kept | None:
        """What was saved last, for data of so many rows."""
        try:
            content = self._path.read_bytes()
        except OSError:
            return None
        digest, kept = content[:32], content[32:]
        if hashlib.sha256(kept).digest() != digest:
            return None
        step, of_rows, carry, outs = msgspec.msgpack.decode(kept, type=tuple[int, int, list[bytes], list[list[bytes]]])
        return _Kept(step, of_rows, carry, outs) if of_rows == rows else None

    def save(self, kept: _Kept) -> None:
        """Keep this instead, on the disk when it returns."""
        self._path.parent.mkdir(exist_ok=True)
        content = msgspec.msgpack.encode(tuple(kept))
        write_whole(self._path, [hashlib.sha256(content).digest(), content])
        self._prune()

    def drop(self) -> None:
        """The folding has ended."""
        for path in self._path.parent.glob(f"{self._path.name}*"):  # also what a crash has cut off
            path.unlink(missing_ok=True)

    def _prune(self) -> None:
        files = sorted(self._path.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-_KEPT_CHECKPOINTS]:
            path.unlink(missing_ok=True)


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
    `ArgumentMismatch`, and what ``run`` raises.
    """
    carry, data = list(arguments[: fold.carry]), arguments[fold.carry :]
    rows = _rows_of(fold, data)
    order = fold.order or list(range(fold.carry))
    total = steps_of(fold, rows)
    outs: list[list[Any]] = []
    done = 0
    framed: list[list[bytes]] = []
    kept = checkpoint.load(rows) if checkpoint is not None else None
    if kept is not None and 0 < kept.step <= total:
        done, framed = kept.step, kept.outs
        carry = [_opened(tensors, frame) for frame in kept.carry]
        outs = [[_opened(tensors, frame)[2] for frame in one] for one in framed]
        on_resumed(done, total)
    save_at = time.monotonic() + every
    for step, where in _batches(fold, rows, done):
        on_step(step, total)
        batch = [_cut(tensors, one, where) for one in data]
        results = run([*carry, *batch], step)
        carry = [(*tensors.describe(results[k]), results[k]) for k in order]
        rest = results[fold.carry :]
        outs = outs or [[] for _ in rest]
        for k, one in enumerate(rest):
            if outs[k] and tensors.describe(outs[k][0]) != tensors.describe(one):
                dtype, shape = tensors.describe(one)
                first, before = tensors.describe(outs[k][0])
                got = f"{dtype}{list(shape)} at step {step}"
                raise ArgumentMismatch(f"output {fold.carry + k}", f"{first}{list(before)} at every step", got)
            outs[k].append(one)
        if checkpoint is not None and time.monotonic() >= save_at:
            framed = [
                [*old, *map(tensors.frame, new[len(old) :])]
                for old, new in zip(framed or [[] for _ in outs], outs, strict=True)
            ]
            checkpoint.save(_Kept(step + 1, rows, [tensors.frame(one[2]) for one in carry], framed))
            save_at = time.monotonic() + every
    on_step(total, total)
    return [*(carry[order.index(k)][2] for k in range(fold.carry)), *map(tensors.stack, outs)]


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
