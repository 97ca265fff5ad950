"""Indexing: gathering, scattering, and places in sorted values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.translation.ops.views import diagonal_places
from coordinator.translation.table import translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.dtypes import FLOATING
from edge_agent.plan.shapes import wrap_dim

__all__: list[str] = []

_REDUCTIONS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def _raised(w: Writer, x: Value) -> Value:
    return x if x.rank else w.reshape(x, [1])


@translates("gather")
def _gather(w: Writer, x: Value, dim: int, index: Value, _sparse: bool) -> Value:
    result = w.op("GatherElements", _raised(w, x), _raised(w, index), axis=dim)
    return result if index.rank else w.op("Reshape", result, w.ints([]))


@translates("index_select")
def _index_select(w: Writer, x: Value, dim: int, index: Value) -> Value:
    result = w.op("Gather", _raised(w, x), _raised(w, index), axis=dim)
    return result if x.rank else w.op("Reshape", result, w.ints([]))


@translates("take")
def _take(w: Writer, x: Value, index: Value) -> Value:
    return w.op("Gather", w.reshape(x, [w.count(x.dims)]), index, axis=0)


@translates("take_along_dim")
def _take_along_dim(w: Writer, x: Value, index: Value, dim: int | None) -> Value:
    if dim is None:
        return w.op("GatherElements", w.reshape(x, [w.count(x.dims)]), w.reshape(index, [w.count(index.dims)]), axis=0)
    axis = wrap_dim(dim, x.rank)
    out = list(w.out[0].shape)
    data = w.expand(x, [*out[:axis], x.dims[axis], *out[axis + 1 :]])
    return w.op("GatherElements", data, w.expand(index, out), axis=axis)


# ------------------------------------------------------------------------------------------------ index


def _placed(w: Writer, x: Value, indices: Sequence[Value | None]) -> tuple[list[int], list[Value]]:
    """Which dims are indexed, and by what: a mask as the places where it is true, in as many dims as it has."""
    axes: list[int] = []
    places: list[Value] = []
    axis = 0
    for index in indices:
        if index is None:
            axis += 1
            continue
        if index.dtype in ("bool", "uint8"):
            found = w.op("NonZero", w.cast(index, "bool"), dtype="int64")
            for k in range(index.rank):
                row = w.op("Gather", found, w.constant(np.int64(k), "int64"), axis=0, shape=["?"])
                axes.append(axis + k)
                places.append(row)
            axis += index.rank
            continue
        axes.append(axis)
        places.append(w.cast(index, "int64"))
        axis += 1
    if axis > x.rank:
        raise unsupported("more indices than dims")
    return axes, places


def _joint(w: Writer, places: Sequence[Value]) -> tuple[Value, int]:
    """The places as one tensor ``[..., dims]``, broadcast, and how many dims the places themselves have."""
    rank = max(one.rank for one in places)
    if len(places) == 1:
        return w.op("Unsqueeze", places[0], w.ints([rank])), rank
    zero = places[0]
    for other in places[1:]:
        zero = w.op("Add", zero, other)
    target = w.op("Shape", zero, dtype="int64")
    spread = [w.op("Unsqueeze", w.op("Expand", one, target), w.ints([rank])) for one in places]
    return w.op("Concat", *spread, axis=rank), rank


def _front(x: Value, axes: Sequence[int]) -> list[int]:
    return [*axes, *(axis for axis in range(x.rank) if axis not in axes)]


def _adjacent(indices: Sequence[Value | None]) -> bool:
    given = [place for place, one in enumerate(indices) if one is not None]
    return given == list(range(given[0], given[0] + len(given)))


@translates("index.Tensor")
def _index(w: Writer, x: Value, indices: Sequence[Value | None]) -> Value:
    axes, places = _placed(w, x, indices)
    if len(axes) == 1:
        return w.op("Gather", x, places[0], axis=axes[0])
    joint, rank = _joint(w, places)
    gathered = w.op("GatherND", w.transpose(x, _front(x, axes)), joint)
    if not _adjacent(indices) or axes[0] == 0:
        return gathered
    first = axes[0]  # what was indexed goes where the first of the indexed dims was
    total = rank + x.rank - len(axes)
    order = [*range(rank, rank + first), *range(rank), *range(rank + first, total)]
    return w.op("Transpose", gathered, perm=order)


def scattered(w: Writer, x: Value, axes: Sequence[int], joint: Value, updates: Value, reduction: str = "none") -> Value:
    """``x`` with ``updates`` (places first, then the dims that are not indexed) at the places of ``joint``."""
    order = _front(x, axes)
    back = [order.index(axis) for axis in range(x.rank)]
    moved = w.transpose(x, order)
    result = w.op("ScatterND", moved, joint, w.cast(updates, x.dtype), reduction=reduction, shape=moved.dims)
    return w.transpose(result, back)


@translates("index_put")
def _index_put(w: Writer, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool) -> Value:
    masks = [one for one in indices if one is not None and one.dtype in ("bool", "uint8")]
    one_value = all(dim == 1 for dim in values.dims)
    if len(masks) == 1 and len([one for one in indices if one is not None]) == 1 and one_value and not accumulate:
        first = next(place for place, one in enumerate(indices) if one is not None)
        behind = x.rank - first - masks[0].rank
        mask = w.op("Unsqueeze", w.cast(masks[0], "bool"), w.ints([*range(masks[0].rank, masks[0].rank + behind)]))
        mask = mask if behind else w.cast(masks[0], "bool")
        return w.op("Where", mask, w.op("Reshape", w.cast(values, x.dtype), w.ints([])), x)
    axes, places = _placed(w, x, indices)
    joint, rank = _joint(w, places)
    if _adjacent(indices) and axes[0] != 0 and values.rank > 0:
        values = _moved_values(w, x, axes, rank, values)
    rest = [dim for axis, dim in enumerate(x.dims) if axis not in axes]
    around = w.op("Slice", w.op("Shape", joint, dtype="int64"), w.ints([0]), w.ints([-1]))
    target = w.op("Concat", around, w.shape(rest), axis=0) if rest else around
    updates = w.op("Expand", w.cast(values, x.dtype), target)
    return scattered(w, x, axes, joint, updates, "add" if accumulate else "none")


def _moved_values(w: Writer, x: Value, axes: Sequence[int], rank: int, values: Value) -> Value:
    """Values as they lie in the result, with the dims of the places to the front."""
    total = rank + x.rank - len(axes)
    raised = w.reshape(values, [*[1] * (total - values.rank), *values.dims])
    first = axes[0]
    return w.transpose(raised, [*range(first, first + rank), *range(first), *range(first + rank, total)])


def _along(w: Writer, x: Value, dim: int, index: Value, source: Value, reduction: str) -> Value:
    axis = wrap_dim(dim, x.rank)
    joint = w.op("Unsqueeze", w.cast(_raised(w, index), "int64"), w.ints([1]))
    order = [axis, *(place for place in range(x.rank) if place != axis)]
    return scattered(w, x, [axis], joint, w.transpose(w.cast(source, x.dtype), order), reduction)


@translates("index_add")
def _index_add(w: Writer, x: Value, dim: int, index: Value, source: Value, alpha: Any) -> Value:
    if isinstance(alpha, Symbolic) or alpha != 1:
        source = w.op("Mul", w.cast(source, x.dtype), w.operand(alpha, x.dtype), shape=source.dims)
    if not x.rank:
        return w.op("Add", x, w.op("ReduceSum", source, keepdims=0))
    return _along(w, x, dim, index, source, "add")


@translates("index_copy")
def _index_copy(w: Writer, x: Value, dim: int, index: Value, source: Value) -> Value:
    if not x.rank:
        return w.reshape(source, [])
    return _along(w, x, dim, index, source, "none")


@translates("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(w: Writer, x: Value, dim: int, index: Value, value: Any) -> Value:
    if not x.rank:
        return w.operand(value, x.dtype)
    axis = wrap_dim(dim, x.rank)
    index = _raised(w, index)
    source = w.expand(w.operand(value, x.dtype), [*x.dims[:axis], index.dims[0], *x.dims[axis + 1 :]])
    return _along(w, x, dim, index, source, "none")


# ------------------------------------------------------------------------------------------------ scatter


def _scatter_elements(w: Writer, x: Value, dim: int, index: Value, source: Value, reduction: str) -> Value:
    data, places, updates = _raised(w, x), _raised(w, index), _raised(w, source)
    if list(updates.dims) != list(places.dims):  # what lies beyond the index is not used
        ends = w.op("Shape", places, dtype="int64")
        updates = w.op("Slice", updates, w.ints([0] * places.rank), ends, w.ints(list(range(places.rank))))
    result = w.op(
        "ScatterElements", data, w.cast(places, "int64"), w.cast(updates, x.dtype), axis=dim, reduction=reduction
    )
    return result if x.rank else w.op("Reshape", result, w.ints([]))


@translates("scatter.src")
def _scatter(w: Writer, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter_elements(w, x, dim, index, source, "none")


@translates("scatter.value")
def _scatter_value(w: Writer, x: Value, dim: int, index: Value, value: Any) -> Value:
    return _scatter_elements(w, x, dim, index, w.expand(w.operand(value, x.dtype), index.dims), "none")


@translates("scatter_add")
def _scatter_add(w: Writer, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scatter_elements(w, x, dim, index, source, "add")


@translates("scatter.reduce")
def _scatter_reduced(w: Writer, x: Value, dim: int, index: Value, source: Value, reduce: str) -> Value:
    return _scatter_elements(w, x, dim, index, source, _REDUCTIONS[reduce])


@translates("scatter.value_reduce")
def _scatter_value_reduced(w: Writer, x: Value, dim: int, index: Value, value: Any, reduce: str) -> Value:
    source = w.expand(w.operand(value, x.dtype), index.dims)
    return _scatter_elements(w, x, dim, index, source, _REDUCTIONS[reduce])


@translates("scatter_reduce.two")
def _scatter_reduce(
    w: Writer, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool
) -> Value:
    if reduce not in _REDUCTIONS:
        raise unsupported(f"a scatter that reduces by {reduce} is not translated")
    if not include_self:
        x = _scatter_value(w, x, dim, index, _neutral(x.dtype, reduce))
        x = Value(x.name, x.dtype, tuple(w.out[0].shape))
    return _scatter_elements(w, x, dim, index, source, _REDUCTIONS[reduce])


def _neutral(dtype: str, reduce: str) -> float | int:
    if reduce in ("sum", "prod"):
        return 0 if reduce == "sum" else 1
    if dtype in FLOATING:
        return -math.inf if reduce == "amax" else math.inf
    if dtype == "bool":
        return int(reduce == "amin")
    limits = np.iinfo(dtype)
    return int(limits.min if reduce == "amax" else limits.max)


@translates("masked_scatter")
def _masked_scatter(w: Writer, x: Value, mask: Value, source: Value) -> Value:
    shape = w.out[0].shape
    count = w.count(shape)
    truths = w.expand(w.cast(mask, "bool"), shape)
    order = w.op("CumSum", w.cast(w.reshape(truths, [count]), "int64"), w.constant(np.int64(0), "int64"))
    places = w.op("Max", w.op("Sub", order, w.ints([1])), w.ints([0]), shape=[count])
    taken = w.op("Gather", w.reshape(source, [w.count(source.dims)]), places, axis=0, shape=[count])
    return w.op("Where", truths, w.reshape(taken, shape), x)


@translates("select_scatter")
def _select_scatter(w: Writer, x: Value, source: Value, dim: int, index: Any) -> Value:
    axis = wrap_dim(dim, x.rank)
    place = w.op("Mod", w.size(index), w.size(x.dims[axis]), fmod=0)
    on = w.op("Equal", w.range(x.dims[axis]), place, dtype="bool", shape=[x.dims[axis]])
    on = w.reshape(on, [x.dims[axis], *[1] * (x.rank - axis - 1)])
    return w.op("Where", on, w.unsqueeze(w.cast(source, x.dtype), axis), x)


@translates("slice_scatter")
def _slice_scatter(w: Writer, x: Value, source: Value, dim: int, start: Any, end: Any, step: Any) -> Value:
    axis = wrap_dim(dim, x.rank)
    size = x.dims[axis]
    places = w.range(size)
    chosen = w.slice(places, 0, 0 if start is None else start, (1 << 63) - 1 if end is None else end, step)
    chosen = Value(chosen.name, chosen.dtype, (source.dims[axis],))
    return _along(w, x, axis, chosen, source, "none")


@translates("diagonal_scatter")
def _diagonal_scatter(w: Writer, x: Value, source: Value, offset: int, dim1: int, dim2: int) -> Value:
    a, b = wrap_dim(dim1, x.rank), wrap_dim(dim2, x.rank)
    order = [*(dim for dim in range(x.rank) if dim not in (a, b)), a, b]
    moved = w.transpose(x, order)
    *rest, rows, columns = moved.dims
    flat = w.reshape(moved, [*rest, w.count([rows, columns])])
    places = diagonal_places(w, rows, columns, offset, source.dims[-1])
    places = Value(places.name, "int64", (source.dims[-1],))
    made = w.reshape(_along(w, flat, len(rest), places, source, "none"), moved.dims)
    return w.transpose(made, [order.index(dim) for dim in range(x.rank)])


@translates("put")
def _put(w: Writer, x: Value, index: Value, source: Value, accumulate: bool) -> Value:
    count = w.count(index.dims)
    flat = w.reshape(x, [w.count(x.dims)])
    places = w.reshape(index, [count])
    return w.reshape(_along(w, flat, 0, places, w.reshape(source, [count]), "add" if accumulate else "none"), x.dims)


# ------------------------------------------------------------------------------------------------ places


@translates("one_hot")
def _one_hot(w: Writer, x: Value, _classes: Any) -> Value:
    return w.op("Equal", w.unsqueeze(x, x.rank), w.range(w.out[0].shape[-1]), dtype="bool")


def _counted(w: Writer, edges: Value, x: Value, *, right: bool) -> Value:
    """How many of the last dim's edges lie below x (``right``: or at it)."""
    below = w.op("LessOrEqual" if right else "Less", edges, x, dtype="bool")
    return w.op("ReduceSum", w.cast(below, "int64"), w.ints([-1]), keepdims=0)


@translates("bucketize.Tensor", "bucketize.Scalar")
def _bucketize(w: Writer, x: Any, edges: Value, _int32: bool, right: bool) -> Value:
    return _search(w, edges, x, right=right)


@translates("searchsorted.Tensor", "searchsorted.Scalar")
def _searchsorted(
    w: Writer, edges: Value, x: Any, _int32: bool, right: bool, side: str | None, sorter: Value | None
) -> Value:
    if sorter is not None:
        edges = w.op("GatherElements", edges, sorter, axis=-1, shape=edges.dims)
    return _search(w, edges, x, right=right or side == "right")


def _search(w: Writer, edges: Value, x: Any, *, right: bool) -> Value:
    dtype = w.common(edges, x)
    bounds = w.operand(edges, dtype)
    if not isinstance(x, Value) or not x.rank:
        return _counted(w, bounds, w.operand(x, dtype), right=right)
    wanted = w.unsqueeze(w.cast(x, dtype), x.rank)
    if edges.rank > 1:
        bounds = w.unsqueeze(bounds, edges.rank - 1)
    return _counted(w, bounds, wanted, right=right)


@translates("nonzero_static")
def _nonzero_static(w: Writer, x: Value, size: int, fill_value: int) -> Value:
    """The places of all, and so many that stand for none, cut to the size."""
    if not x.rank:
        raise unsupported("onnx has no places in a tensor without dims")
    found = w.op("NonZero", w.cast(x, "bool"), dtype="int64")
    places = w.op("Transpose", found, perm=[1, 0])
    none = w.constant(np.full((size, x.rank), fill_value), "int64")
    return w.slice(w.op("Concat", places, none, axis=0), 0, 0, size)
