"""Reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.translation.ops.pointwise import number
from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.dtypes import FLOATING
from edge_agent.plan.shapes import wrap_dims

__all__: list[str] = []


def reduced(w: Writer, kind: str, x: Value, dims: Sequence[int] | None, *, keep: bool = False) -> Value:
    """``x`` reduced over ``dims`` (None, or none: all)."""
    axes = wrap_dims(dims, x.rank) if x.rank else []
    shape = [1 if place in axes else dim for place, dim in enumerate(x.dims) if keep or place not in axes]
    if not axes:
        return x
    return w.op(kind, x, w.ints(axes), keepdims=int(keep), shape=shape)


def count_of(w: Writer, x: Value, dims: Sequence[int] | None) -> Any:
    """How many elements go into each result: a number or an expression."""
    axes = wrap_dims(dims, x.rank) if x.rank else []
    return w.count([x.dims[place] for place in axes])


def as_float(w: Writer, count: Any, like: Value) -> Value:
    """A size in the dtype of ``like``."""
    return number(w, float(count), like) if isinstance(count, int) else w.cast(w.scalar(count), like.dtype)


@translates("sum", "sum.dim_IntList")
def _sum(w: Writer, x: Value, *rest: Any) -> Value:
    dims, keep = rest[:2] if len(rest) == 3 else (None, False)
    return reduced(w, "ReduceSum", w.wide(x), dims, keep=keep)


@translates("prod", "prod.dim_int")
def _prod(w: Writer, x: Value, *rest: Any) -> Value:
    dim, keep = rest[:2] if len(rest) == 3 else (None, False)
    return reduced(w, "ReduceProd", w.wide(x), None if dim is None else [dim], keep=keep)


@translates("mean", "mean.dim")
def _mean(w: Writer, x: Value, *rest: Any) -> Value:
    dims, keep = rest[:2] if len(rest) == 3 else (None, False)
    return reduced(w, "ReduceMean", w.wide(x), dims, keep=keep)


def _without_nan(w: Writer, x: Value) -> tuple[Value, Value]:
    wide = w.wide(x)
    missing = w.op("IsNaN", wide, dtype="bool", shape=x.dims)
    return w.op("Where", missing, number(w, 0.0, wide), wide, shape=x.dims), missing


@translates("nansum")
def _nansum(w: Writer, x: Value, dims: Any, keep: bool, _dtype: Any) -> Value:
    if x.dtype not in FLOATING:
        return reduced(w, "ReduceSum", w.wide(x), dims, keep=keep)
    return reduced(w, "ReduceSum", _without_nan(w, x)[0], dims, keep=keep)


@translates("nanmean")
def _nanmean(w: Writer, x: Value, dims: Any, keep: bool, _dtype: Any) -> Value:
    values, missing = _without_nan(w, x)
    there = w.cast(w.op("Not", missing, shape=x.dims), values.dtype)
    total = reduced(w, "ReduceSum", values, dims, keep=keep)
    return w.op("Div", total, reduced(w, "ReduceSum", there, dims, keep=keep))


def _extreme(kind: str) -> Translation:
    def write(w: Writer, x: Value, dims: Any = None, keep: bool = False) -> Value:
        return reduced(w, kind, x, dims, keep=keep)

    return write


TRANSLATIONS["aten.max.default"] = TRANSLATIONS["aten.amax.default"] = _extreme("ReduceMax")
TRANSLATIONS["aten.min.default"] = TRANSLATIONS["aten.amin.default"] = _extreme("ReduceMin")


@translates("aminmax")
def _aminmax(w: Writer, x: Value, dim: int | None, keep: bool) -> list[Value]:
    dims = None if dim is None else [dim]
    return [reduced(w, kind, x, dims, keep=keep) for kind in ("ReduceMin", "ReduceMax")]


def place_of(w: Writer, kind: str, x: Value, dim: int, *, keep: bool) -> Value:
    """The index of the first largest or smallest (``ArgMax``, ``ArgMin``)."""
    if not x.rank:
        return w.constant(np.int64(0), "int64")
    return w.op(kind, x, axis=dim, keepdims=int(keep), dtype="int64")


def _extreme_dim(kind: str) -> Translation:
    def write(w: Writer, x: Value, dim: int, keep: bool) -> list[Value]:
        return [reduced(w, f"Reduce{kind}", x, [dim], keep=keep), place_of(w, f"Arg{kind}", x, dim, keep=keep)]

    return write


TRANSLATIONS["aten.max.dim"] = _extreme_dim("Max")
TRANSLATIONS["aten.min.dim"] = _extreme_dim("Min")


def _arg(kind: str) -> Translation:
    def write(w: Writer, x: Value, dim: int | None, keep: bool) -> Value:
        if dim is None:
            flat = w.reshape(x, [w.count(x.dims)])
            return w.reshape(place_of(w, kind, flat, 0, keep=False), w.out[0].shape)
        return place_of(w, kind, x, dim, keep=keep)

    return write


TRANSLATIONS["aten.argmax.default"] = _arg("ArgMax")
TRANSLATIONS["aten.argmin.default"] = _arg("ArgMin")


def _logic(kind: str) -> Translation:
    def write(w: Writer, x: Value, dims: Any = None, keep: bool = False) -> Value:
        if isinstance(dims, int):
            dims = [dims]
        truths = w.cast(w.cast(x, "bool"), "uint8")
        if dims == []:  # here, unlike elsewhere, no dim means none
            return truths
        return w.cast(reduced(w, kind, truths, dims, keep=keep), "bool")

    return write


for _overload in ("default", "dim", "dims"):
    TRANSLATIONS[f"aten.all.{_overload}"] = _logic("ReduceMin")
    TRANSLATIONS[f"aten.any.{_overload}"] = _logic("ReduceMax")


def moments(w: Writer, x: Value, dims: Sequence[int] | None, correction: Any, *, keep: bool) -> tuple[Value, Value]:
    """Variance and mean, in two passes."""
    mean = reduced(w, "ReduceMean", x, dims, keep=True)
    gap = w.op("Sub", x, mean, shape=x.dims)
    total = reduced(w, "ReduceSum", w.op("Mul", gap, gap, shape=x.dims), dims, keep=keep)
    count = count_of(w, x, dims)
    if isinstance(count, int) and not isinstance(correction, Symbolic):
        left = max(count - correction, 0)
        variance = w.op("Div", total, number(w, float(left), x))
    else:
        rest = w.op("Sub", as_float(w, count, x), w.operand(correction, x.dtype))
        variance = w.op("Div", total, w.op("Max", rest, number(w, 0.0, x)))
    return variance, mean if keep else reduced(w, "ReduceMean", x, dims, keep=False)


def _spread(*, root: bool, mean: bool, style: str) -> Translation:
    def write(w: Writer, x: Value, *rest: Any) -> Value | list[Value]:
        dims: Any = None
        keep = False
        if style == "default":
            correction: Any = int(rest[0])
        elif style == "dim":
            dims, keep = rest[0], rest[2]
            correction = int(rest[1])
        else:
            dims, keep = rest[0], rest[2]
            correction = 1 if rest[1] is None else rest[1]
        variance, center = moments(w, w.wide(x), dims, correction, keep=keep)
        result = w.op("Sqrt", variance) if root else variance
        return [result, center] if mean else result

    return write


for _style in ("default", "dim", "correction"):
    for _name, _root in (("std", True), ("var", False)):
        TRANSLATIONS[f"aten.{_name}.{_style}"] = _spread(root=_root, mean=False, style=_style)
        TRANSLATIONS[f"aten.{_name}_mean.{_style}"] = _spread(root=_root, mean=True, style=_style)


@translates("logsumexp")
def _logsumexp(w: Writer, x: Value, dims: Any, keep: bool) -> Value:
    x = w.wide(x)
    if not x.rank:
        return x
    top = reduced(w, "ReduceMax", x, dims, keep=True)
    top = w.op("Where", w.op("IsInf", top, dtype="bool"), number(w, 0.0, x), top, shape=top.dims)
    total = reduced(w, "ReduceSum", w.op("Exp", w.op("Sub", x, top), shape=x.dims), dims, keep=keep)
    shape = total.dims
    return w.op("Add", w.op("Log", total), top if keep else w.reshape(top, shape))


@translates("linalg_vector_norm")
def _vector_norm(w: Writer, x: Value, order: Any, dims: Any, keep: bool, _dtype: Any) -> Value:
    return norm(w, w.wide(x), order, dims, keep=keep)


@translates("norm.Scalar")
def _norm(w: Writer, x: Value, order: Any) -> Value:
    return norm(w, w.wide(x), order, None, keep=False)


@translates("norm.ScalarOpt_dim")
def _norm_dim(w: Writer, x: Value, order: Any, dims: Any, keep: bool) -> Value:
    return norm(w, w.wide(x), 2 if order is None else order, dims, keep=keep)


@translates("norm.ScalarOpt_dim_dtype")
def _norm_dtype(w: Writer, x: Value, order: Any, dims: Any, keep: bool, _dtype: str) -> Value:
    return norm(w, w.wide(x), 2 if order is None else order, dims, keep=keep)


def norm(w: Writer, x: Value, order: Any, dims: Any, *, keep: bool) -> Value:
    """The vector norm of any order."""
    if isinstance(order, Symbolic):
        raise unsupported("an order of a norm that is known only when the plan runs is not translated")
    size = w.op("Abs", x, shape=x.dims)
    if order == 2:
        total = reduced(w, "ReduceSum", w.op("Mul", x, x, shape=x.dims), dims, keep=keep)
        return w.op("Sqrt", total)
    if order == 1:
        return reduced(w, "ReduceSum", size, dims, keep=keep)
    if math.isinf(order):
        return reduced(w, "ReduceMax" if order > 0 else "ReduceMin", size, dims, keep=keep)
    if order == 0:
        zero = w.op("Equal", x, number(w, 0.0, x), dtype="bool", shape=x.dims)
        return reduced(w, "ReduceSum", w.cast(w.op("Not", zero, shape=x.dims), x.dtype), dims, keep=keep)
    total = reduced(w, "ReduceSum", w.op("Pow", size, number(w, order, x), shape=x.dims), dims, keep=keep)
    return w.op("Pow", total, number(w, 1 / order, x))


@translates("count_nonzero", "count_nonzero.dim_IntList")
def _count_nonzero(w: Writer, x: Value, dims: Any) -> Value:
    if isinstance(dims, int):
        dims = [dims]
    return reduced(w, "ReduceSum", w.cast(w.cast(x, "bool"), "int64"), dims)


@translates("cumsum")
def _cumsum(w: Writer, x: Value, dim: int, _dtype: Any) -> Value:
    wide = w.wide(x)
    return w.op("CumSum", wide, w.constant(np.int64(dim), "int64")) if x.rank else wide


@translates("trace")
def _trace(w: Writer, x: Value) -> Value:
    rows, columns = x.dims
    row = w.reshape(w.range(rows), [rows, 1])
    on = w.op("Equal", row, w.range(columns), dtype="bool")
    wide = w.wide(x)
    return reduced(w, "ReduceSum", w.op("Where", on, wide, w.operand(0, wide.dtype), shape=x.dims), None)
