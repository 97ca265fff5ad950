"""Arithmetic of two tensors, or of a tensor and a number."""

from __future__ import annotations

import math
from typing import Any

from coordinator.translation.ops.pointwise import less, log1p, number, trunc
from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Symbolic, Value, Writer, unsupported
from edge_agent.plan.dtypes import FLOATING

__all__: list[str] = []


def _scaled(w: Writer, other: Any, alpha: Any) -> Value:
    wide = w.wide(other)
    return wide if _is_one(alpha) else w.op("Mul", wide, w.wide(alpha))


def _is_one(alpha: Any) -> bool:
    return not isinstance(alpha, Symbolic) and alpha == 1


@translates("add.Tensor", "add.Scalar")
def _add(w: Writer, a: Any, b: Any, alpha: Any) -> Value:
    if w.out[0].dtype == "bool":
        return w.op("Or", w.wide(a), w.wide(b))
    return w.op("Add", w.wide(a), _scaled(w, b, alpha))


@translates("sub.Tensor", "sub.Scalar")
def _sub(w: Writer, a: Any, b: Any, alpha: Any) -> Value:
    return w.op("Sub", w.wide(a), _scaled(w, b, alpha))


@translates("rsub.Tensor", "rsub.Scalar")
def _rsub(w: Writer, a: Any, b: Any, alpha: Any) -> Value:
    return w.op("Sub", w.wide(b), _scaled(w, a, alpha))


@translates("mul.Tensor", "mul.Scalar")
def _mul(w: Writer, a: Any, b: Any) -> Value:
    return w.op("And" if w.out[0].dtype == "bool" else "Mul", w.wide(a), w.wide(b))


@translates("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(w: Writer, a: Any, b: Any) -> Value:
    return w.op("Div", w.wide(a), w.wide(b))


def _divisor(w: Writer, b: Any) -> Value:
    """Onnxruntime dies of a division by an integer 0, where torch refuses it."""
    if w.out[0].dtype in FLOATING:
        return w.wide(b)
    if isinstance(b, Value | Symbolic) or b == 0:
        raise unsupported("a division of integers by a tensor can't be guarded against 0")
    return w.wide(b)


@translates("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(w: Writer, a: Any, b: Any, rounding_mode: str | None) -> Value:
    if rounding_mode is None:
        return _div(w, a, b)
    x, y = w.wide(a), _divisor(w, b)
    if rounding_mode == "floor":
        return w.floor_divide(x, y) if x.dtype not in FLOATING else _float_floor(w, x, y)
    return w.op("Div", x, y) if x.dtype not in FLOATING else trunc(w, w.op("Div", x, y))


def _float_floor(w: Writer, a: Value, b: Value) -> Value:
    divided = w.op("Div", a, b)
    zero = w.op("Equal", b, number(w, 0.0, b), dtype="bool")
    return w.op("Where", zero, divided, w.floor_divide(a, b))


@translates("floor_divide", "floor_divide.Scalar")
def _floor_divide(w: Writer, a: Any, b: Any) -> Value:
    return _div_mode(w, a, b, "floor")


@translates("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(w: Writer, a: Any, b: Any) -> Value:
    return w.remainder(w.wide(a), _divisor(w, b))


@translates("fmod.Tensor", "fmod.Scalar")
def _fmod(w: Writer, a: Any, b: Any) -> Value:
    return w.op("Mod", w.wide(a), _divisor(w, b), fmod=1)


def _either(kind: str) -> Translation:
    def write(w: Writer, a: Any, b: Any) -> Value:
        return w.op(kind, w.wide(a), w.wide(b))

    return write


TRANSLATIONS["aten.maximum.default"] = _either("Max")
TRANSLATIONS["aten.minimum.default"] = _either("Min")


def _ignoring_nan(kind: str) -> Translation:
    def write(w: Writer, a: Any, b: Any) -> Value:
        x, y = w.wide(a), w.wide(b)
        chosen = w.op(kind, x, y)
        if x.dtype not in FLOATING:
            return chosen
        chosen = w.op("Where", w.op("IsNaN", x, dtype="bool"), y, chosen)
        return w.op("Where", w.op("IsNaN", y, dtype="bool"), x, chosen)

    return write


TRANSLATIONS["aten.fmax.default"] = _ignoring_nan("Max")
TRANSLATIONS["aten.fmin.default"] = _ignoring_nan("Min")


@translates("pow.Tensor_Tensor", "pow.Scalar")
def _pow(w: Writer, a: Any, b: Any) -> Value:
    return w.op("Pow", w.wide(a), w.wide(b))


@translates("pow.Tensor_Scalar")
def _pow_scalar(w: Writer, a: Value, exponent: Any) -> Value:
    x = w.wide(a)
    if isinstance(exponent, Symbolic | complex):
        return w.op("Pow", x, w.wide(exponent))
    if exponent in (1, 2, 3) and x.dtype != "bool":
        result = x
        for _ in range(int(exponent) - 1):
            result = w.op("Mul", result, x)
        return result
    if exponent == 0.5:
        return w.op("Sqrt", x)
    if x.dtype in FLOATING and exponent == -1:
        return w.op("Reciprocal", x)
    return w.op("Pow", x, w.operand(exponent, x.dtype))


@translates("atan2")
def _atan2(w: Writer, a: Any, b: Any) -> Value:
    y, x = w.wide(a), w.wide(b)
    zero, pi = number(w, 0.0, x), number(w, math.pi, x)
    x_zero = w.op("Equal", x, zero, dtype="bool")
    one = number(w, 1.0, x)
    plain = w.op("Atan", w.op("Div", y, w.op("Where", x_zero, one, x)))
    half = w.op("Mul", w.op("Sign", y), number(w, math.pi / 2, x))
    turn = w.op("Where", less(w, y, zero), w.op("Neg", pi), pi)
    left = w.op("Where", less(w, x, zero), w.op("Add", plain, turn), plain)
    return w.op("Where", x_zero, half, left)


@translates("xlogy.Tensor", "xlogy.Scalar_Other", "special_xlogy", "special_xlogy.other_scalar")
def _xlogy(w: Writer, a: Any, b: Any) -> Value:
    x, y = w.wide(a), w.wide(b)
    zero = w.op("Equal", x, number(w, 0.0, x), dtype="bool")
    product = w.op("Mul", x, w.op("Log", y))
    result = w.op("Where", zero, number(w, 0.0, x), product)
    return w.op("Where", w.op("IsNaN", y, dtype="bool"), y, result)


@translates("hypot")
def _hypot(w: Writer, a: Any, b: Any) -> Value:
    x, y = w.op("Abs", w.wide(a)), w.op("Abs", w.wide(b))
    large, small = w.op("Max", x, y), w.op("Min", x, y)
    zero = w.op("Equal", large, number(w, 0.0, large), dtype="bool")
    ratio = w.op("Div", small, w.op("Where", zero, number(w, 1.0, large), large))
    return w.op("Mul", large, w.op("Sqrt", w.op("Add", w.op("Mul", ratio, ratio), number(w, 1.0, large))))


@translates("logaddexp")
def _logaddexp(w: Writer, a: Any, b: Any) -> Value:
    x, y = w.wide(a), w.wide(b)
    far = w.op("Neg", w.op("Abs", w.op("Sub", x, y)))
    same = w.op("Equal", x, y, dtype="bool")  # also where both are infinite
    far = w.op("Where", same, number(w, 0.0, x), far)
    return w.op("Add", w.op("Max", x, y), log1p(w, w.op("Exp", far)))


@translates("logaddexp2")
def _logaddexp2(w: Writer, a: Any, b: Any) -> Value:
    x, y = w.wide(a), w.wide(b)
    far = w.op("Where", w.op("Equal", x, y, dtype="bool"), number(w, 0.0, x), w.op("Abs", w.op("Sub", x, y)))
    tail = w.op("Exp", w.op("Mul", far, number(w, -math.log(2), x)))
    return w.op("Add", w.op("Max", x, y), w.op("Mul", log1p(w, tail), number(w, 1 / math.log(2), x)))


@translates("copysign.Tensor", "copysign.Scalar")
def _copysign(w: Writer, a: Any, b: Any) -> Value:
    x, y = w.op("Abs", w.wide(a)), w.wide(b)
    zero = w.op("Equal", y, number(w, 0.0, y), dtype="bool")
    negative = less(w, w.op("Where", zero, w.op("Reciprocal", y), y), number(w, 0.0, y))
    return w.op("Where", negative, w.op("Neg", x), x)


def _bits(whole: str, boolean: str) -> Translation:
    def write(w: Writer, a: Any, b: Any) -> Value:
        return w.op(boolean if w.out[0].dtype == "bool" else whole, w.wide(a), w.wide(b))

    return write


for _name, _boolean in (("and", "And"), ("or", "Or"), ("xor", "Xor")):
    for _overload in ("Tensor", "Scalar"):
        TRANSLATIONS[f"aten.bitwise_{_name}.{_overload}"] = _bits(f"Bitwise{_boolean}", _boolean)


@translates("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "__lshift__.Scalar")
def _left_shift(w: Writer, a: Any, b: Any) -> Value:
    if w.out[0].dtype in FLOATING:
        raise unsupported("shifts of floats are not translated")
    dtype = w.out[0].dtype
    x, y = w.cast(w.wide(a), "uint64"), w.cast(w.wide(b), "uint64")
    return w.cast(w.op("BitShift", x, y, direction="LEFT"), dtype)


@translates("bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "__rshift__.Scalar")
def _right_shift(w: Writer, a: Any, b: Any) -> Value:
    if w.out[0].dtype in FLOATING:
        raise unsupported("shifts of floats are not translated")
    # arithmetic: of a negative number, the bits of its complement are shifted
    x, y = w.cast(w.wide(a), "int64"), w.cast(w.wide(b), "uint64")
    negative = less(w, x, w.operand(0, "int64"))
    bits = w.cast(w.op("Where", negative, w.op("BitwiseNot", x), x), "uint64")
    shifted = w.cast(w.op("BitShift", bits, y, direction="RIGHT"), "int64")
    return w.op("Where", negative, w.op("BitwiseNot", shifted), shifted)


@translates("heaviside")
def _heaviside(w: Writer, x: Value, values: Value) -> Value:
    zero = w.operand(0, x.dtype)
    result = w.op("Where", less(w, zero, x), w.operand(1, x.dtype), zero)
    result = w.op("Where", w.op("Equal", x, zero, dtype="bool"), values, result)
    return result if x.dtype not in FLOATING else w.op("Where", w.op("IsNaN", x, dtype="bool"), zero, result)


@translates(
    "clamp",
    "clamp.Tensor",
    "clip",
    "clip.Tensor",
)
def _clamp(w: Writer, x: Value, low: Any, high: Any) -> Value:
    result = w.wide(x)
    if low is not None:
        result = w.op("Max", result, w.wide(low))
    return result if high is None else w.op("Min", result, w.wide(high))


@translates("clamp_min", "clamp_min.Tensor")
def _clamp_min(w: Writer, x: Value, low: Any) -> Value:
    return _clamp(w, x, low, None)


@translates("clamp_max", "clamp_max.Tensor")
def _clamp_max(w: Writer, x: Value, high: Any) -> Value:
    return _clamp(w, x, None, high)


@translates("lerp.Scalar", "lerp.Tensor")
def _lerp(w: Writer, a: Value, b: Value, weight: Any) -> Value:
    x, y, t = w.wide(a), w.wide(b), w.wide(weight)
    gap = w.op("Sub", y, x)
    near = w.op("Add", x, w.op("Mul", t, gap))
    far = w.op("Sub", y, w.op("Mul", w.op("Sub", number(w, 1.0, t), t), gap))
    return w.op("Where", less(w, w.op("Abs", t), number(w, 0.5, t)), near, far)


@translates("addcmul")
def _addcmul(w: Writer, x: Value, a: Value, b: Value, value: Any) -> Value:
    product = w.op("Mul", w.wide(a), w.wide(b))
    return w.op("Add", w.wide(x), product if _is_one(value) else w.op("Mul", product, w.wide(value)))


@translates("addcdiv")
def _addcdiv(w: Writer, x: Value, a: Value, b: Value, value: Any) -> Value:
    quotient = w.op("Div", w.wide(a), w.wide(b))
    return w.op("Add", w.wide(x), quotient if _is_one(value) else w.op("Mul", quotient, w.wide(value)))


@translates("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(w: Writer, condition: Value, a: Any, b: Any) -> Value:
    dtype = w.out[0].dtype
    return w.op("Where", w.cast(condition, "bool"), w.operand(a, dtype), w.operand(b, dtype))


@translates("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(w: Writer, x: Value, mask: Value, value: Any) -> Value:
    return w.op("Where", w.cast(mask, "bool"), w.operand(value, x.dtype), x)


@translates("fill.Scalar", "fill.Tensor")
def _fill(w: Writer, x: Value, value: Any) -> Value:
    return w.op("Expand", w.operand(value, x.dtype), w.shape(x.dims))


@translates("copy")
def _copy(w: Writer, x: Value, source: Value, _non_blocking: bool) -> Value:
    return w.op("Expand", w.cast(source, x.dtype), w.shape(x.dims))


@translates("prelu", "_prelu_kernel")
def _prelu(w: Writer, a: Value, weight: Value) -> Value:
    x, slope = w.wide(a), w.wide(weight)
    if weight.rank == 1 and a.rank > 2:
        slope = w.op("Reshape", slope, w.shape([*weight.dims, *[1] * (a.rank - 2)]))
    return w.op("Where", less(w, number(w, 0.0, x), x), x, w.op("Mul", x, slope))
