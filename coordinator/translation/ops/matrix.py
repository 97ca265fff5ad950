"""Products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.translation.ops.pointwise import number
from coordinator.translation.ops.reduction import norm, reduced
from coordinator.translation.table import translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.dtypes import FLOATING
from edge_agent.plan.shapes import wrap_dim

__all__ = ["plus"]


@translates("mm", "bmm", "mv", "dot", "vdot", "matmul")
def _matmul(w: Writer, a: Value, b: Value) -> Value:
    return w.op("MatMul", w.wide(a), w.wide(b))


@translates("ger", "outer")
def _outer(w: Writer, a: Value, b: Value) -> Value:
    return w.op("Mul", w.unsqueeze(w.wide(a), 1), w.wide(b))


def _is(number_: Any, value: float) -> bool:
    return not isinstance(number_, Symbolic) and number_ == value


def plus(w: Writer, c: Value, product: Value, beta: Any, alpha: Any) -> Value:
    """``beta * c + alpha * product``, of the op's result's shape."""
    if not _is(alpha, 1):
        product = w.op("Mul", product, w.operand(alpha, product.dtype))
    if _is(beta, 0):
        return w.expand(Value(product.name, product.dtype), w.out[0].shape)
    other = w.wide(c)
    return w.op("Add", other if _is(beta, 1) else w.op("Mul", other, w.operand(beta, product.dtype)), product)


@translates("addmm")
def _addmm(w: Writer, c: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    plain = isinstance(beta, int | float) and isinstance(alpha, int | float)
    if w.out[0].dtype in FLOATING and plain and beta != 0:
        return w.op("Gemm", w.wide(a), w.wide(b), w.wide(c), alpha=float(alpha), beta=float(beta))
    return plus(w, c, w.op("MatMul", w.wide(a), w.wide(b)), beta, alpha)


@translates("baddbmm", "addmv")
def _baddbmm(w: Writer, c: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    return plus(w, c, w.op("MatMul", w.wide(a), w.wide(b)), beta, alpha)


@translates("addbmm")
def _addbmm(w: Writer, c: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    product = w.op("ReduceSum", w.op("MatMul", w.wide(a), w.wide(b)), w.ints([0]), keepdims=0)
    return plus(w, c, product, beta, alpha)


@translates("addr")
def _addr(w: Writer, c: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    return plus(w, c, _outer(w, a, b), beta, alpha)


@translates("linear")
def _linear(w: Writer, x: Value, weight: Value, bias: Value | None) -> Value:
    a, b = w.wide(x), w.wide(weight)
    if x.rank == 2 and weight.rank == 2 and w.out[0].dtype in FLOATING:
        return w.op("Gemm", a, b, None if bias is None else w.wide(bias), transB=1)
    turned = w.transpose(b, [1, 0]) if weight.rank == 2 else b
    product = w.op("MatMul", a, turned)
    return product if bias is None else w.op("Add", product, w.wide(bias))


@translates("linalg_det")
def _det(w: Writer, x: Value) -> Value:
    return w.op("Det", w.wide(x))


@translates("linalg_cross")
def _linalg_cross(w: Writer, a: Value, b: Value, dim: int) -> Value:
    axis = wrap_dim(dim, len(w.out[0].shape))
    x, y = (w.expand(w.wide(one), w.out[0].shape) for one in (a, b))

    def turned(value: Value, places: Sequence[int]) -> Value:
        return w.op("Gather", value, w.ints(places), axis=axis)

    first = w.op("Mul", turned(x, [1, 2, 0]), turned(y, [2, 0, 1]))
    return w.op("Sub", first, w.op("Mul", turned(x, [2, 0, 1]), turned(y, [1, 2, 0])))


@translates("cross")
def _cross(w: Writer, a: Value, b: Value, dim: int | None) -> Value:
    if dim is not None:
        return _linalg_cross(w, a, b, dim)
    place = next((k for k, size in enumerate(a.dims) if size == 3), None)
    if place is None or any(not isinstance(size, int) for size in a.dims[:place]):
        raise unsupported("which dim has the size 3 is known only when the plan runs")
    return _linalg_cross(w, a, b, place)


@translates("cdist", "_cdist_forward")
def _cdist(w: Writer, a: Value, b: Value, p: float, _mode: Any) -> Value:
    x, y = w.unsqueeze(w.wide(a), a.rank - 1), w.unsqueeze(w.wide(b), b.rank - 2)
    gap = w.op("Sub", x, y, shape=[*w.out[0].shape, a.dims[-1]])
    return norm(w, gap, p, [-1], keep=False)


@translates("cosine_similarity")
def _cosine(w: Writer, a: Value, b: Value, dim: int, eps: float) -> Value:
    shape = list(w.out[0].shape)
    axis = wrap_dim(dim, max(a.rank, b.rank))
    size = a.dims[axis - max(a.rank, b.rank)] if a.rank else 1
    x, y = (w.expand(w.wide(one), [*shape[:axis], size, *shape[axis:]]) for one in (a, b))
    floor = number(w, eps, x)
    lengths = [w.op("Max", norm(w, one, 2, [axis], keep=False), floor) for one in (x, y)]
    product = reduced(w, "ReduceSum", w.op("Mul", x, y, shape=x.dims), [axis])
    return w.op("Div", product, w.op("Mul", *lengths))


@translates("tensordot")
def _tensordot(w: Writer, a: Value, b: Value, dims_a: Sequence[int], dims_b: Sequence[int]) -> Value:
    first, second = ([wrap_dim(dim, one.rank) for dim in dims] for one, dims in ((a, dims_a), (b, dims_b)))
    rest_a = [dim for dim in range(a.rank) if dim not in first]
    rest_b = [dim for dim in range(b.rank) if dim not in second]
    if any(a.dims[i] != b.dims[j] for i, j in zip(first, second, strict=True)):
        raise unsupported("a contraction of a dim of size 1 with a larger one is not translated")
    inner = w.count([a.dims[dim] for dim in first])
    x = w.reshape(w.transpose(w.wide(a), [*rest_a, *first]), [w.count([a.dims[dim] for dim in rest_a]), inner])
    y = w.reshape(w.transpose(w.wide(b), [*second, *rest_b]), [inner, w.count([b.dims[dim] for dim in rest_b])])
    return w.reshape(w.op("MatMul", x, y), w.out[0].shape)
