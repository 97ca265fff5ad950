"""Losses."""

from __future__ import annotations

from typing import Any

from coordinator.translation.ops.pointwise import less, number, softplus
from coordinator.translation.ops.reduction import as_float, reduced
from coordinator.translation.table import translates
from coordinator.translation.writer import Value, Writer, unsupported
from edge_agent.plan.dtypes import FLOATING

__all__: list[str] = []

_NONE, _MEAN, _SUM = 0, 1, 2


def _finished(w: Writer, losses: Value, shape: Any, reduction: int) -> Value:
    if reduction == _NONE:
        return losses
    known = Value(losses.name, losses.dtype, tuple(shape))
    return reduced(w, "ReduceMean" if reduction == _MEAN else "ReduceSum", known, None)


def _shape(w: Writer, a: Value, b: Value) -> Any:
    from edge_agent.plan.shapes import broadcast
    from edge_agent.plan.spec import Scope

    return broadcast(Scope(w.sizes), list(a.dims), list(b.dims))


def _gap(w: Writer, a: Value, b: Value) -> Value:
    return w.op("Sub", w.wide(a), w.wide(b))


@translates("mse_loss")
def _mse(w: Writer, a: Value, b: Value, reduction: int) -> Value:
    gap = _gap(w, a, b)
    return _finished(w, w.op("Mul", gap, gap), _shape(w, a, b), reduction)


@translates("l1_loss")
def _l1(w: Writer, a: Value, b: Value, reduction: int) -> Value:
    # the difference of integers is taken in their own dtype, and only then summed in a wider one
    dtype = w.common(a, b)
    gap = _gap(w, a, b) if dtype in FLOATING else w.op("Sub", w.cast(a, dtype), w.cast(b, dtype))
    return _finished(w, w.wide(w.op("Abs", gap)), _shape(w, a, b), reduction)


def _bent(w: Writer, size: Value, delta: float, *, huber: bool) -> Value:
    square = w.op("Mul", w.op("Mul", size, size), number(w, 0.5 if huber else 0.5 / delta, size))
    line = w.op("Sub", size, number(w, 0.5 * delta, size))
    line = w.op("Mul", line, number(w, delta, size)) if huber else line
    return w.op("Where", less(w, size, number(w, delta, size)), square, line)


@translates("huber_loss")
def _huber(w: Writer, a: Value, b: Value, reduction: int, delta: float) -> Value:
    size = w.op("Abs", _gap(w, a, b))
    return _finished(w, _bent(w, size, delta, huber=True), _shape(w, a, b), reduction)


@translates("smooth_l1_loss")
def _smooth_l1(w: Writer, a: Value, b: Value, reduction: int, beta: float) -> Value:
    size = w.op("Abs", _gap(w, a, b))
    losses = size if beta == 0 else _bent(w, size, beta, huber=False)
    return _finished(w, losses, _shape(w, a, b), reduction)


@translates("soft_margin_loss")
def _soft_margin(w: Writer, a: Value, b: Value, reduction: int) -> Value:
    losses = softplus(w, w.op("Neg", w.op("Mul", w.wide(a), w.wide(b))))
    return _finished(w, losses, _shape(w, a, b), reduction)


@translates("kl_div")
def _kl_div(w: Writer, a: Value, b: Value, reduction: int, log_target: bool) -> Value:
    x, y = w.wide(a), w.wide(b)
    if log_target:
        losses = w.op("Mul", w.op("Exp", y), w.op("Sub", y, x))
    else:
        zero = w.op("Equal", y, number(w, 0.0, y), dtype="bool")
        logs = w.op("Mul", y, w.op("Log", w.op("Where", zero, number(w, 1.0, y), y)))
        losses = w.op("Sub", logs, w.op("Mul", y, x))
    return _finished(w, losses, _shape(w, a, b), reduction)


@translates("binary_cross_entropy")
def _bce(w: Writer, a: Value, b: Value, weight: Value | None, reduction: int) -> Value:
    x, y = w.wide(a), w.wide(b)
    one, floor = number(w, 1.0, x), number(w, -100.0, x)
    hit = w.op("Mul", y, w.op("Max", w.op("Log", x), floor))
    miss = w.op("Mul", w.op("Sub", one, y), w.op("Max", w.op("Log", w.op("Sub", one, x)), floor))
    losses = w.op("Neg", w.op("Add", hit, miss))
    if weight is not None:
        losses = w.op("Mul", losses, w.wide(weight))
    return _finished(w, losses, _shape(w, a, b), reduction)


@translates("binary_cross_entropy_with_logits")
def _bce_logits(w: Writer, a: Value, b: Value, weight: Value | None, pos_weight: Value | None, reduction: int) -> Value:
    x, y = w.wide(a), w.wide(b)
    tail = softplus(w, w.op("Neg", x))
    rest = w.op("Mul", w.op("Sub", number(w, 1.0, x), y), x)
    if pos_weight is not None:
        more = w.op("Sub", w.wide(pos_weight), number(w, 1.0, x))
        tail = w.op("Mul", tail, w.op("Add", w.op("Mul", more, y), number(w, 1.0, x)))
    losses = w.op("Add", rest, tail)
    if weight is not None:
        losses = w.op("Mul", losses, w.wide(weight))
    return _finished(w, losses, _shape(w, a, b), reduction)


def _nll(w: Writer, x: Value, target: Value, weight: Value | None, reduction: int, ignore: int) -> list[Value]:
    """The loss of class numbers, and the weight of all that counted. ``x``: [classes] or [batch, classes, ...]."""
    axis = 1 if x.rank > 1 else 0
    kept = w.op("Not", w.op("Equal", target, w.operand(ignore, target.dtype), dtype="bool"), shape=target.dims)
    safe = w.cast(w.op("Where", kept, target, w.operand(0, target.dtype), shape=target.dims), "int64")
    wide = w.wide(x)
    picked = w.op("GatherElements", wide, w.unsqueeze(safe, axis), axis=axis)
    losses = w.op("Neg", w.op("Squeeze", picked, w.ints([axis])), shape=target.dims)
    weights = w.cast(kept, wide.dtype)
    if weight is not None:
        weights = w.op("Mul", weights, w.op("Gather", w.wide(weight), safe, axis=0), shape=target.dims)
    counted = w.op("Where", kept, w.op("Mul", losses, weights), number(w, 0.0, wide), shape=target.dims)
    total = reduced(w, "ReduceSum", weights, None)
    if reduction == _NONE:
        return [counted, number(w, 0.0, wide)]
    sum_ = reduced(w, "ReduceSum", counted, None)
    return [w.op("Div", sum_, total) if reduction == _MEAN else sum_, total]


@translates("nll_loss_forward", "nll_loss2d_forward")
def _nll_forward(w: Writer, x: Value, target: Value, weight: Value | None, reduction: int, ignore: int) -> list[Value]:
    return _nll(w, x, target, weight, reduction, ignore)


@translates("nll_loss", "nll_loss_nd")
def _nll_loss(w: Writer, x: Value, target: Value, weight: Value | None, reduction: int, ignore: int) -> Value:
    return _nll(w, x, target, weight, reduction, ignore)[0]


@translates("cross_entropy_loss")
def _cross_entropy(
    w: Writer, x: Value, target: Value, weight: Value | None, reduction: int, ignore: int, smoothing: float
) -> Value:
    axis = 1 if x.rank > 1 else 0
    logs = w.op("LogSoftmax", w.wide(x), axis=axis, shape=x.dims)
    if target.dtype not in FLOATING:
        if smoothing:
            raise unsupported("a cross entropy with label smoothing of class numbers is not translated")
        return _nll(w, logs, target, weight, reduction, ignore)[0]
    wanted = w.wide(target)
    if smoothing:
        classes = x.dims[axis]
        if not isinstance(classes, int):
            raise unsupported("label smoothing over a number of classes known only when the plan runs")
        wanted = w.op("Mul", wanted, number(w, 1 - smoothing, wanted))
        wanted = w.op("Add", wanted, number(w, smoothing / classes, wanted))
    products = w.op("Mul", logs, wanted, shape=x.dims)
    if weight is not None:
        scale = w.reshape(w.wide(weight), [x.dims[axis], *[1] * (x.rank - axis - 1)])
        products = w.op("Mul", products, scale, shape=x.dims)
    losses = w.op("Neg", w.op("ReduceSum", products, w.ints([axis]), keepdims=0))
    if reduction == _NONE:
        return losses
    total = w.op("ReduceSum", losses, keepdims=0)
    if reduction == _SUM or x.rank == 1:
        return total
    count = w.count([dim for place, dim in enumerate(x.dims) if place != axis])
    return w.op("Div", total, as_float(w, count, total))
