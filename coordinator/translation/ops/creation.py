"""Ops that make tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coordinator.translation.table import translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported

__all__: list[str] = []


def _filled(w: Writer, value: Any) -> Value:
    kind = w.out[0]
    return w.expand(w.operand(value, kind.dtype), kind.shape)


@translates("full", "full_like")
def _full(w: Writer, _size: Any, value: Any, *_rest: Any) -> Value:
    return _filled(w, value)


@translates("new_full")
def _new_full(w: Writer, _like: Value, _size: Any, value: Any, *_rest: Any) -> Value:
    return _filled(w, value)


@translates("ones", "ones_like", "new_ones")
def _ones(w: Writer, *_rest: Any) -> Value:
    return _filled(w, 1)


@translates("zeros", "zeros_like", "new_zeros")
def _zeros(w: Writer, *_rest: Any) -> Value:
    return _filled(w, 0)


@translates("scalar_tensor")
def _scalar_tensor(w: Writer, value: Any, *_rest: Any) -> Value:
    return w.operand(value, w.out[0].dtype)


@translates("arange")
def _arange(w: Writer, _end: Any, *_rest: Any) -> Value:
    return _stepped(w, 0, 1)


@translates("arange.start")
def _arange_start(w: Writer, start: Any, _end: Any, *_rest: Any) -> Value:
    return _stepped(w, start, 1)


@translates("arange.start_step")
def _arange_step(w: Writer, start: Any, _end: Any, step: Any, *_rest: Any) -> Value:
    return _stepped(w, start, step)


def _stepped(w: Writer, start: Any, step: Any) -> Value:
    kind = w.out[0]
    dtype = "float64" if any(_is_float(one) for one in (start, step)) else "int64"
    places = w.cast(w.range(kind.shape[0]), dtype)
    if isinstance(step, Symbolic) or step != 1:
        places = w.op("Mul", places, w.operand(step, dtype))
    if isinstance(start, Symbolic) or start != 0:
        places = w.op("Add", places, w.operand(start, dtype))
    return places


def _is_float(number: Any) -> bool:
    return number.kind == "float" if isinstance(number, Symbolic) else isinstance(number, float)


@translates("linspace")
def _linspace(w: Writer, start: Any, end: Any, steps: Any, *_rest: Any) -> Value:
    return _even(w, start, end, steps)


@translates("logspace")
def _logspace(w: Writer, start: Any, end: Any, steps: Any, base: float, *_rest: Any) -> Value:
    exponents = _even(w, start, end, steps)
    return w.op("Exp", w.op("Mul", exponents, w.operand(math.log(base), "float64")))


def _even(w: Writer, start: Any, end: Any, steps: Any) -> Value:
    if any(isinstance(one, Symbolic) for one in (start, end, steps)) or not isinstance(steps, int):
        raise unsupported("an even spacing that is known only when the plan runs is not translated")
    if isinstance(start, complex) or isinstance(end, complex):
        raise unsupported("onnx has no complex numbers")
    return w.constant(np.linspace(start, end, steps), "float64")


@translates("eye", "eye.m")
def _eye(w: Writer, *_rest: Any) -> Value:
    rows, columns = w.out[0].shape
    row = w.reshape(w.range(rows), [rows, 1])
    return w.op("Equal", row, w.range(columns), dtype="bool")


def _indices(w: Writer, places: Any) -> Value:
    return w.constant(np.stack(places), w.out[0].dtype)


@translates("tril_indices")
def _tril_indices(w: Writer, row: Any, column: Any, offset: int, *_rest: Any) -> Value:
    return _indices(w, np.tril_indices(_known(row), offset, _known(column)))


@translates("triu_indices")
def _triu_indices(w: Writer, row: Any, column: Any, offset: int, *_rest: Any) -> Value:
    return _indices(w, np.triu_indices(_known(row), offset, _known(column)))


def _known(size: Any) -> int:
    if isinstance(size, int):
        return size
    raise unsupported("the indices of a triangle whose size is known only when the plan runs are not translated")
