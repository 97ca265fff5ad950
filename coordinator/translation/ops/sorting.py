"""Sorting and what is chosen by rank. onnx's TopK keeps the order of equal values."""

from __future__ import annotations

from typing import Any

import numpy as np

from coordinator.translation.ops.pointwise import less, number
from coordinator.translation.table import translates
from coordinator.translation.writer import Value, Writer, unsupported
from edge_agent.plan.shapes import wrap_dim

__all__: list[str] = []


def ranked(w: Writer, x: Value, count: Any, axis: int, *, largest: bool) -> list[Value]:
    """The first of the values by size, and where they were."""
    shape = list(x.dims)
    shape[axis] = count
    return w.ops(
        "TopK",
        x,
        w.size(count),
        dtypes=(None, "int64"),
        shapes=(shape, shape),
        axis=axis,
        largest=int(largest),
        sorted=1,
    )


def _sorted(w: Writer, x: Value, dim: int, descending: bool) -> list[Value]:
    if not x.rank:
        return [x, w.constant(np.int64(0), "int64")]
    axis = wrap_dim(dim, x.rank)
    return ranked(w, x, x.dims[axis], axis, largest=descending)


@translates("sort")
def _sort(w: Writer, x: Value, dim: int, descending: bool) -> list[Value]:
    return _sorted(w, x, dim, descending)


@translates("sort.stable")
def _sort_stable(w: Writer, x: Value, _stable: bool | None, dim: int, descending: bool) -> list[Value]:
    return _sorted(w, x, dim, descending)


@translates("argsort")
def _argsort(w: Writer, x: Value, dim: int, descending: bool) -> Value:
    return _sorted(w, x, dim, descending)[1]


@translates("argsort.stable")
def _argsort_stable(w: Writer, x: Value, _stable: bool, dim: int, descending: bool) -> Value:
    return _sorted(w, x, dim, descending)[1]


@translates("msort")
def _msort(w: Writer, x: Value) -> Value:
    return _sorted(w, x, 0, False)[0]


@translates("topk")
def _topk(w: Writer, x: Value, _k: Any, dim: int, largest: bool, *_sorted_too: bool) -> list[Value]:
    if not x.rank:
        return [x, w.constant(np.int64(0), "int64")]
    axis = wrap_dim(dim, x.rank)
    return ranked(w, x, w.out[0].shape[axis], axis, largest=largest)


def _taken(w: Writer, x: Value, place: Any, dim: int, keep: bool) -> list[Value]:
    """The value of this rank along a dim, and where it was."""
    if not x.rank:
        return [x, w.constant(np.int64(0), "int64")]
    axis = wrap_dim(dim, x.rank)
    results = [w.op("Gather", one, w.size(place), axis=axis) for one in _sorted(w, x, dim, False)]
    return results if keep else [w.op("Squeeze", one, w.ints([axis])) for one in results]


@translates("kthvalue")
def _kthvalue(w: Writer, x: Value, k: Any, dim: int, keep: bool) -> list[Value]:
    if not isinstance(k, int):
        raise unsupported("a rank that is known only when the plan runs is not translated")
    return _taken(w, x, k - 1, dim, keep)


def _middle(w: Writer, size: Any) -> Any:
    return (size - 1) // 2 if isinstance(size, int) else w.sizes.normal(["floordiv", ["add", size, -1], 2])


@translates("median.dim")
def _median_dim(w: Writer, x: Value, dim: int, keep: bool) -> list[Value]:
    size = x.dims[wrap_dim(dim, x.rank)] if x.rank else 1
    return _taken(w, x, _middle(w, size), dim, keep)


@translates("median")
def _median(w: Writer, x: Value) -> Value:
    count = w.count(x.dims)
    return _taken(w, w.reshape(x, [count]), _middle(w, count), 0, False)[0]


@translates("quantile", "quantile.scalar")
def _quantile(w: Writer, x: Value, q: Any, dim: int | None, keep: bool, interpolation: str) -> Value:
    if interpolation != "linear":
        raise unsupported(f"quantiles with the interpolation {interpolation} are not translated")
    data, axis = (w.reshape(x, [w.count(x.dims)]), 0) if dim is None else (x, wrap_dim(dim, max(x.rank, 1)))
    data = data if data.rank else w.reshape(data, [1])
    values = ranked(w, data, data.dims[axis], axis, largest=False)[0]
    last = w.op("Sub", w.cast(w.size(data.dims[axis]), x.dtype), number(w, 1.0, x))
    many = isinstance(q, Value) and q.rank == 1
    wanted = w.operand(q, x.dtype)
    wanted = wanted if many else w.op("Reshape", wanted, w.ints([1]))
    place = w.op("Mul", wanted, last)
    low = w.op("Floor", place)
    share = w.op("Sub", place, low)
    a = w.op("Gather", values, w.cast(low, "int64"), axis=axis)
    b = w.op("Gather", values, w.cast(w.op("Ceil", place), "int64"), axis=axis)
    share = w.op("Reshape", share, w.ints([-1, *[1] * (data.rank - axis - 1)]))
    gap = w.op("Sub", b, a)
    near = w.op("Add", a, w.op("Mul", share, gap))
    far = w.op("Sub", b, w.op("Mul", w.op("Sub", number(w, 1.0, x), share), gap))
    result = w.op("Where", less(w, share, number(w, 0.5, x)), near, far, shape=data.dims)
    order = [axis, *(place_ for place_ in range(data.rank) if place_ != axis)]
    front = w.op("Transpose", result, perm=order)
    del keep
    return w.op("Reshape", front, w.shape(w.out[0].shape))
