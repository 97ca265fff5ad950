"""Views, splits and conversions: ops that move elements, or give them another dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.translation.table import translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.shapes import wrap_dim

__all__: list[str] = []

_INT64_MIN = -(1 << 63)


@translates(
    "alias",
    "conj",
    "detach",
    "lift_fresh_copy",
    "resolve_conj",
    "resolve_neg",
    "_conj",
    "real",
    "clone",
    "contiguous",
    "_to_copy",
    "to.dtype",
    "type_as",
)
def _same(w: Writer, x: Value, *_rest: Any) -> Value:
    return w.cast(x, w.out[0].dtype)


@translates("_neg_view")
def _neg_view(w: Writer, x: Value) -> Value:
    return w.op("Neg", x)


@translates(
    "reshape",
    "view",
    "_unsafe_view",
    "flatten.using_ints",
    "unflatten.int",
    "unsqueeze",
    "squeeze",
    "squeeze.dims",
    "squeeze.dim",
    "atleast_1d",
    "atleast_2d",
)
def _reshape(w: Writer, x: Value, *_rest: Any) -> Value:
    return w.reshape(x, w.out[0].shape)


@translates("broadcast_to", "expand", "expand_as")
def _expand(w: Writer, x: Value, *_rest: Any) -> Value:
    return w.expand(x, w.out[0].shape)


@translates("permute")
def _permute(w: Writer, x: Value, dims: Sequence[int]) -> Value:
    return w.transpose(x, [wrap_dim(dim, x.rank) for dim in dims])


@translates("swapaxes", "transpose.int")
def _transpose(w: Writer, x: Value, a: int, b: int) -> Value:
    order = list(range(x.rank))
    if x.rank:
        a, b = wrap_dim(a, x.rank), wrap_dim(b, x.rank)
        order[a], order[b] = b, a
    return w.transpose(x, order)


@translates("t", "numpy_T")
def _t(w: Writer, x: Value) -> Value:
    return w.transpose(x, list(range(x.rank))[::-1])


@translates("mT", "adjoint")
def _mt(w: Writer, x: Value) -> Value:
    return _transpose(w, x, -2, -1)


@translates("movedim.int", "movedim.intlist")
def _movedim(w: Writer, x: Value, source: Any, destination: Any) -> Value:
    sources = [wrap_dim(one, x.rank) for one in (source if isinstance(source, list) else [source])]
    targets = [wrap_dim(one, x.rank) for one in (destination if isinstance(destination, list) else [destination])]
    left = iter([dim for dim in range(x.rank) if dim not in sources])
    moved = dict(zip(targets, sources, strict=True))
    return w.transpose(x, [moved[place] if place in moved else next(left) for place in range(x.rank)])


@translates("select.int")
def _select(w: Writer, x: Value, dim: int, index: Any) -> Value:
    place = w.scalar(index) if isinstance(index, Symbolic) else w.operand(index, "int64")
    return w.op("Gather", x, place, axis=dim)


@translates("slice.Tensor")
def _slice(w: Writer, x: Value, dim: int, start: Any, end: Any, step: Any) -> Value:
    if isinstance(step, Symbolic):
        raise unsupported("a step of a slice that is known only when the plan runs is not translated")
    if (start is None or start == 0) and (end is None or end == (1 << 63) - 1) and step == 1:
        return x
    return w.slice(x, dim, start or 0, (1 << 63) - 1 if end is None else end, step)


@translates("narrow", "narrow_copy")
def _narrow(w: Writer, x: Value, dim: int, start: Any, length: Any) -> Value:
    plain = start.expression if isinstance(start, Symbolic) else start
    wide = length.expression if isinstance(length, Symbolic) else length
    if isinstance(plain, int) and plain < 0:
        plain = w.sizes.normal(["add", x.dims[wrap_dim(dim, x.rank)], plain])
    end = plain + wide if isinstance(plain, int) and isinstance(wide, int) else w.sizes.normal(["add", plain, wide])
    return w.slice(x, dim, plain, end)


def diagonal_places(w: Writer, rows: Any, columns: Any, offset: int, length: Any) -> Value:
    """Where the diagonal's elements are among the elements of a matrix."""
    start = offset if offset >= 0 else ["mul", -offset, columns]
    places = w.range(length)
    step = w.size(w.sizes.normal(["add", columns, 1]))
    begin = w.size(start if isinstance(start, int) else w.sizes.normal(start))
    del rows
    return w.op("Add", w.op("Mul", places, step), begin)


@translates("diagonal")
def _diagonal(w: Writer, x: Value, offset: int, dim1: int, dim2: int) -> Value:
    a, b = wrap_dim(dim1, x.rank), wrap_dim(dim2, x.rank)
    rest = [dim for dim in range(x.rank) if dim not in (a, b)]
    moved = w.transpose(x, [*rest, a, b])
    *others, rows, columns = moved.dims
    flat = w.reshape(moved, [*others, w.count([rows, columns])])
    places = diagonal_places(w, rows, columns, offset, w.out[0].shape[-1])
    return w.op("Gather", flat, places, axis=len(others))


def windows(w: Writer, count: Any, size: int, step: int, dilation: int = 1) -> Value:
    """The places of ``count`` windows: int64[count, size]."""
    starts = w.reshape(w.op("Mul", w.range(count), w.ints([step]), shape=[count]), [count, 1])
    return w.op("Add", starts, w.ints([k * dilation for k in range(size)]), shape=[count, size])


@translates("unfold")
def _unfold(w: Writer, x: Value, dim: int, size: Any, step: Any) -> Value:
    if not (isinstance(size, int) and isinstance(step, int)):
        raise unsupported("windows of a size that is known only when the plan runs are not translated")
    if not x.rank:
        return w.reshape(x, w.out[0].shape)
    axis = wrap_dim(dim, x.rank)
    gathered = w.op("Gather", x, windows(w, w.out[0].shape[axis], size, step), axis=axis)
    order = [*range(axis + 1), *range(axis + 2, x.rank + 1), axis + 1]
    return w.op("Transpose", gathered, perm=order)


# ------------------------------------------------------------------------------------------------ splits


@translates("split.Tensor", "split.sizes", "split_with_sizes", "chunk", "tensor_split.sections")
def _split(w: Writer, x: Value, _sizes: Any, dim: int) -> list[Value]:
    axis = wrap_dim(dim, x.rank)
    sizes = w.shape([kind.shape[axis] for kind in w.out])
    return w.ops("Split", x, sizes, dtypes=[x.dtype] * len(w.out), axis=axis)


@translates("unbind.int")
def _unbind(w: Writer, x: Value, dim: int) -> list[Value]:
    return [_select(w, x, dim, place) for place in range(len(w.out))]


@translates("broadcast_tensors")
def _broadcast_tensors(w: Writer, tensors: Sequence[Value]) -> list[Value]:
    return [w.expand(one, kind.shape) for one, kind in zip(tensors, w.out, strict=True)]
