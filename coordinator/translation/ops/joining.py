"""Ops that join, repeat, turn and pad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.translation.ops.views import diagonal_places
from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.shapes import wrap_dim, wrap_dims

__all__: list[str] = []

_LEAST = -(1 << 63)


def _typed(w: Writer, tensors: Sequence[Value]) -> list[Value]:
    return [w.cast(one, w.out[0].dtype) for one in tensors]


@translates("cat", "concat")
def _cat(w: Writer, tensors: Sequence[Value], dim: int) -> Value:
    # torch still lets an empty vector stand for nothing at all
    rank = len(w.out[0].shape)
    parts = [one for one in tensors if one.rank == rank]
    return w.op("Concat", *_typed(w, parts), axis=dim) if parts else w.cast(tensors[0], w.out[0].dtype)


@translates("stack")
def _stack(w: Writer, tensors: Sequence[Value], dim: int) -> Value:
    axis = wrap_dim(dim, len(w.out[0].shape))
    return w.op("Concat", *(w.unsqueeze(one, axis) for one in _typed(w, tensors)), axis=axis)


@translates("hstack")
def _hstack(w: Writer, tensors: Sequence[Value]) -> Value:
    raised = [one if one.rank else w.reshape(one, [1]) for one in _typed(w, tensors)]
    return w.op("Concat", *raised, axis=0 if raised[0].rank == 1 else 1)


@translates("vstack")
def _vstack(w: Writer, tensors: Sequence[Value]) -> Value:
    raised = [one if one.rank > 1 else w.reshape(one, [1, *(one.dims or [1])]) for one in _typed(w, tensors)]
    return w.op("Concat", *raised, axis=0)


@translates("flip")
def _flip(w: Writer, x: Value, dims: Sequence[int]) -> Value:
    axes = wrap_dims(dims, x.rank, none_is_all=False) if x.rank else []
    if not axes:
        return x
    count = len(axes)
    ends, steps = w.ints([_LEAST] * count), w.ints([-1] * count)
    return w.op("Slice", x, w.ints([-1] * count), ends, w.ints(axes), steps, shape=x.dims)


@translates("roll")
def _roll(w: Writer, x: Value, shifts: Sequence[Any], dims: Sequence[int]) -> Value:
    if any(isinstance(shift, Symbolic) for shift in shifts):
        raise unsupported("a shift that is known only when the plan runs is not translated")
    if not dims:
        flat = w.reshape(x, [w.count(x.dims)])
        return w.reshape(_rolled(w, flat, shifts[0], 0), x.dims)
    for shift, dim in zip(shifts, dims, strict=True):
        x = _rolled(w, x, shift, wrap_dim(dim, x.rank))
    return x


def _rolled(w: Writer, x: Value, shift: int, axis: int) -> Value:
    size = x.dims[axis]
    if size == 0:
        return x
    wrapped = w.sizes.normal(["mod", -shift, size]) if not isinstance(size, int) else -shift % size
    last, first = w.slice(x, axis, wrapped, (1 << 63) - 1), w.slice(x, axis, 0, wrapped)
    return w.op("Concat", last, first, axis=axis, shape=x.dims)


@translates("rot90")
def _rot90(w: Writer, x: Value, k: int, dims: Sequence[int]) -> Value:
    a, b = (wrap_dim(dim, x.rank) for dim in dims)
    order = list(range(x.rank))
    order[a], order[b] = b, a
    turns = k % 4
    if turns == 1:
        return w.transpose(_flip(w, x, [b]), order)
    if turns == 2:
        return _flip(w, x, [a, b])
    return w.transpose(_flip(w, x, [a]), order) if turns == 3 else x


@translates("repeat", "tile")
def _repeat(w: Writer, x: Value, repeats: Sequence[Any]) -> Value:
    rank = len(w.out[0].shape)
    times = [*[1] * (rank - len(repeats)), *repeats]
    raised = w.reshape(x, [*[1] * (rank - x.rank), *x.dims])
    return w.op("Tile", raised, w.shape(times)) if rank else x


@translates("repeat_interleave.self_int")
def _repeat_interleave(w: Writer, x: Value, repeats: Any, dim: int | None, _output_size: Any) -> Value:
    if dim is None:
        x, dim = w.reshape(x, [w.count(x.dims)]), 0
    axis = wrap_dim(dim, x.rank)
    raised = w.unsqueeze(x, axis + 1)
    times = [1] * raised.rank
    times[axis + 1] = repeats.expression if isinstance(repeats, Symbolic) else repeats
    return w.reshape(w.op("Tile", raised, w.shape(times)), w.out[0].shape)


def _triangle(*, upper: bool) -> Translation:
    def write(w: Writer, x: Value, diagonal: Any) -> Value:
        k = w.scalar(diagonal) if isinstance(diagonal, Symbolic) else w.constant(np.int64(diagonal), "int64")
        return w.op("Trilu", x, k, upper=int(upper))

    return write


TRANSLATIONS["aten.tril.default"] = _triangle(upper=False)
TRANSLATIONS["aten.triu.default"] = _triangle(upper=True)


@translates("diag")
def _diag(w: Writer, x: Value, diagonal: int) -> Value:
    if x.rank == 1:
        return _diag_embed(w, x, diagonal, -2, -1)
    flat = w.reshape(x, [w.count(x.dims)])
    return w.op("Gather", flat, diagonal_places(w, x.dims[0], x.dims[1], diagonal, w.out[0].shape[0]), axis=0)


@translates("diag_embed")
def _diag_embed(w: Writer, x: Value, offset: int, dim1: int, dim2: int) -> Value:
    rank = x.rank + 1
    a, b = wrap_dim(dim1, rank), wrap_dim(dim2, rank)
    size = w.out[0].shape[a]
    gap = abs(offset)
    # an element stands in the column of its place, moved by the offset; below the diagonal, of its own place
    pads = [0] * (2 * x.rank)
    pads[x.rank - 1 if offset >= 0 else -1] = gap
    moved = w.op("Pad", x, w.ints(pads), w.operand(0, x.dtype), shape=[*x.dims[:-1], size])
    row = w.reshape(w.range(size), [size, 1])
    on = w.op("Equal", w.op("Add", row, w.ints([offset])), w.range(size), dtype="bool")
    along = w.unsqueeze(moved, x.rank - 1)
    made = w.op("Where", on, along, w.operand(0, x.dtype), shape=[*x.dims[:-1], size, size])
    places = [dim for dim in range(rank) if dim not in (a, b)]
    order = [0] * rank
    for k, place in enumerate([*places, a, b]):
        order[place] = k
    return w.transpose(made, order)


@translates("meshgrid.indexing")
def _meshgrid(w: Writer, tensors: Sequence[Value], indexing: str) -> list[Value]:
    results = []
    swapped = indexing == "xy" and len(tensors) > 1
    for k, (one, kind) in enumerate(zip(tensors, w.out, strict=True)):
        place = 1 - k if swapped and k < 2 else k
        shape: list[Any] = [1] * len(tensors)
        shape[place] = kind.shape[place]
        results.append(w.expand(w.reshape(one, shape), kind.shape))
    return results


def padded(w: Writer, x: Value, pad: Sequence[Any], mode: str, value: Any = 0) -> Value:
    """Padding as torch names it: the last dim first, two numbers a dim."""
    count = len(pad) // 2
    begins: list[Any] = [0] * x.rank
    ends: list[Any] = [0] * x.rank
    for k in range(count):
        begins[x.rank - 1 - k] = pad[2 * k]
        ends[x.rank - 1 - k] = pad[2 * k + 1]
    amounts = w.shape([*begins, *ends])
    if mode == "constant":
        return w.op("Pad", x, amounts, w.operand(value, x.dtype), mode="constant")
    return w.op("Pad", x, amounts, mode=mode)


@translates("constant_pad_nd")
def _constant_pad(w: Writer, x: Value, pad: Sequence[Any], value: Any) -> Value:
    return padded(w, x, pad, "constant", value)


@translates("pad")
def _pad(w: Writer, x: Value, pad: Sequence[Any], mode: str, value: Any) -> Value:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return padded(w, x, pad, modes[mode], 0 if value is None else value)


@translates("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflection_pad(w: Writer, x: Value, pad: Sequence[Any]) -> Value:
    return padded(w, x, pad, "reflect")


@translates("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replication_pad(w: Writer, x: Value, pad: Sequence[Any]) -> Value:
    return padded(w, x, pad, "edge")


@translates("pixel_shuffle")
def _pixel_shuffle(w: Writer, x: Value, factor: int) -> Value:
    *rest, channels, height, width = x.dims
    if not isinstance(channels, int):
        raise unsupported("a number of channels that is known only when the plan runs is not translated")
    parted = w.reshape(x, [*rest, channels // factor**2, factor, factor, height, width])
    k = len(rest)
    return w.reshape(w.transpose(parted, [*range(k + 1), k + 3, k + 1, k + 4, k + 2]), w.out[0].shape)


@translates("channel_shuffle")
def _channel_shuffle(w: Writer, x: Value, groups: int) -> Value:
    batch, channels, *rest = x.dims
    if not isinstance(channels, int):
        raise unsupported("a number of channels that is known only when the plan runs is not translated")
    parted = w.reshape(x, [batch, groups, channels // groups, *rest])
    return w.reshape(w.transpose(parted, [0, 2, 1, *range(3, parted.rank)]), x.dims)
