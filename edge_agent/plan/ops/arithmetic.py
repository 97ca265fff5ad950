"""Ops on the elements of two or three tensors, or of a tensor and a number, brought to one shape and one dtype."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import BOOLEAN, COMPLEX, FLOATING, INTEGRAL, to_floating
from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import broadcast, describe, expect_dtype, expect_rank, misfit, result_type, tensor
from edge_agent.plan.spec import Number, Operand, Scope, define

__all__ = ["OPS"]

FAMILY = "arithmetic"


def _arithmetic(scope: Scope, a: Operand, b: Operand, *_: Any) -> TensorType:
    return tensor(result_type((a, b)), broadcast(scope, a, b))


def _difference(scope: Scope, a: Operand, b: Operand, *_: Any) -> TensorType:
    if _is_bool(a) or _is_bool(b):
        raise misfit("numbers to subtract", "bools")
    return _arithmetic(scope, a, b)


def _is_bool(operand: Operand) -> bool:
    return operand.kind == "bool" if isinstance(operand, Number) else operand.dtype == "bool"


def _real(scope: Scope, a: Operand, b: Operand, *_: Any) -> TensorType:
    dtype = result_type((a, b))
    if dtype in COMPLEX:
        raise misfit("real numbers", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _quotient(scope: Scope, a: Operand, b: Operand) -> TensorType:
    return tensor(to_floating(result_type((a, b))), broadcast(scope, a, b))


def _quotient_in_mode(scope: Scope, a: Operand, b: Operand, mode: str | None) -> TensorType:
    if mode is None:
        return _quotient(scope, a, b)
    if mode not in ("trunc", "floor"):
        raise misfit("a rounding_mode of None, 'trunc' or 'floor'", repr(mode))
    return _real(scope, a, b)


def _floating(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = to_floating(result_type((a, b)))
    if dtype in COMPLEX:
        raise misfit("real numbers", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _floats_only(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = result_type((a, b))
    if dtype not in FLOATING:
        raise misfit("floats", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _floats_or_complex(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = result_type((a, b))
    if dtype not in FLOATING and dtype not in COMPLEX:
        raise misfit("floats or complex numbers", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _bits(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = result_type((a, b))
    if dtype not in BOOLEAN and dtype not in INTEGRAL:
        raise misfit("bools or integers", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _integers(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = result_type((a, b))
    if dtype not in INTEGRAL:
        raise misfit("integers", dtype)
    return tensor(dtype, broadcast(scope, a, b))


def _one_dtype(scope: Scope, a: TensorType, b: TensorType) -> TensorType:
    if a.dtype != b.dtype or a.dtype in COMPLEX:
        raise misfit("two tensors of one dtype of real numbers", f"{a.dtype} and {b.dtype}")
    return tensor(a.dtype, broadcast(scope, a, b))


def _clamped(scope: Scope, self: TensorType, low: Operand | None = None, high: Operand | None = None) -> TensorType:
    if low is None and high is None:
        raise misfit("a least or a greatest value", "neither")
    dtype = result_type((self, low, high))
    if dtype in COMPLEX:
        raise misfit("real numbers", dtype)
    return tensor(dtype, broadcast(scope, self, low, high))


def _lerp(scope: Scope, start: TensorType, end: TensorType, weight: Operand) -> TensorType:
    if start.dtype != end.dtype or (isinstance(weight, TensorType) and weight.dtype != start.dtype):
        raise misfit("a start, an end and a weight of one dtype", f"{start.dtype}, {end.dtype} and {describe(weight)}")
    expect_dtype(start, FLOATING | COMPLEX, "a tensor")
    return tensor(start.dtype, broadcast(scope, start, end, weight))


def _add_product(scope: Scope, self: TensorType, first: TensorType, second: TensorType, _: Number) -> TensorType:
    return tensor(result_type((self, first, second)), broadcast(scope, self, first, second))


def _add_quotient(scope: Scope, self: TensorType, first: TensorType, second: TensorType, _: Number) -> TensorType:
    if to_floating(first.dtype) != first.dtype and to_floating(second.dtype) != second.dtype:
        raise misfit("a dividend or a divisor of floats", f"{first.dtype} and {second.dtype}")
    return tensor(result_type((self, first, second)), broadcast(scope, self, first, second))


def _where(scope: Scope, condition: TensorType, a: Operand, b: Operand) -> TensorType:
    expect_dtype(condition, BOOLEAN | {"uint8"}, "a condition")
    return tensor(result_type((a, b)), broadcast(scope, condition, a, b))


def _masked_fill(scope: Scope, self: TensorType, mask: TensorType, value: Operand) -> TensorType:
    expect_dtype(mask, BOOLEAN, "a mask")
    if isinstance(value, TensorType):
        expect_rank(value, 0, "a value")
    return tensor(self.dtype, broadcast(scope, self, mask))


def _filled(_: Scope, self: TensorType, value: Operand) -> TensorType:
    if isinstance(value, TensorType):
        expect_rank(value, 0, "a value")
    return self


def _copied(scope: Scope, self: TensorType, source: TensorType, *_: Any) -> TensorType:
    if broadcast(scope, self, source) != self.shape:
        raise misfit(f"a source that broadcasts to {describe(self)}", describe(source))
    return self


def _prelu(_: Scope, self: TensorType, weight: TensorType) -> TensorType:
    if self.dtype != weight.dtype:
        raise misfit("an input and a weight of one dtype", f"{self.dtype} and {weight.dtype}")
    expect_rank(weight, (0, 1), "a weight")
    return self


def _prelu_kernel(scope: Scope, self: TensorType, weight: TensorType) -> TensorType:
    return tensor(result_type((self, weight)), broadcast(scope, self, weight))


def _complex(scope: Scope, real: TensorType, imag: TensorType) -> TensorType:
    if real.dtype != imag.dtype or real.dtype not in ("float32", "float64"):
        raise misfit("two parts of float32, or of float64", f"{real.dtype} and {imag.dtype}")
    return tensor("complex64" if real.dtype == "float32" else "complex128", broadcast(scope, real, imag))


OPS = [
    *define(
        FAMILY,
        _arithmetic,
        """
        add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
        add.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
        mul.Tensor(Tensor self, Tensor other) -> Tensor
        mul.Scalar(Tensor self, Scalar other) -> Tensor
        pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor
        pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor
        pow.Scalar(Scalar self, Tensor exponent) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _difference,
        """
        sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
        sub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
        rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
        rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _quotient,
        """
        div.Tensor(Tensor self, Tensor other) -> Tensor
        div.Scalar(Tensor self, Scalar other) -> Tensor
        true_divide.Tensor(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _quotient_in_mode,
        """
        div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor
        div.Scalar_mode(Tensor self, Scalar other, *, str? rounding_mode) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _real,
        """
        floor_divide(Tensor self, Tensor other) -> Tensor
        floor_divide.Scalar(Tensor self, Scalar other) -> Tensor
        remainder.Tensor(Tensor self, Tensor other) -> Tensor
        remainder.Scalar(Tensor self, Scalar other) -> Tensor
        remainder.Scalar_Tensor(Scalar self, Tensor other) -> Tensor
        fmod.Tensor(Tensor self, Tensor other) -> Tensor
        fmod.Scalar(Tensor self, Scalar other) -> Tensor
        maximum(Tensor self, Tensor other) -> Tensor
        minimum(Tensor self, Tensor other) -> Tensor
        fmax(Tensor self, Tensor other) -> Tensor
        fmin(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _floating,
        """
        atan2(Tensor self, Tensor other) -> Tensor
        copysign.Tensor(Tensor self, Tensor other) -> Tensor
        copysign.Scalar(Tensor self, Scalar other) -> Tensor
        xlogy.Tensor(Tensor self, Tensor other) -> Tensor
        xlogy.Scalar_Other(Tensor self, Scalar other) -> Tensor
        special_xlogy(Tensor self, Tensor other) -> Tensor
        special_xlogy.other_scalar(Tensor self, Scalar other) -> Tensor
        special_zeta(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _floats_only,
        """
        hypot(Tensor self, Tensor other) -> Tensor
        logaddexp2(Tensor self, Tensor other) -> Tensor
        nextafter(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(FAMILY, _floats_or_complex, "logaddexp(Tensor self, Tensor other) -> Tensor"),
    *define(
        FAMILY,
        _bits,
        """
        bitwise_and.Tensor(Tensor self, Tensor other) -> Tensor
        bitwise_and.Scalar(Tensor self, Scalar other) -> Tensor
        bitwise_or.Tensor(Tensor self, Tensor other) -> Tensor
        bitwise_or.Scalar(Tensor self, Scalar other) -> Tensor
        bitwise_xor.Tensor(Tensor self, Tensor other) -> Tensor
        bitwise_xor.Scalar(Tensor self, Scalar other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _integers,
        """
        bitwise_left_shift.Tensor(Tensor self, Tensor other) -> Tensor
        bitwise_left_shift.Tensor_Scalar(Tensor self, Scalar other) -> Tensor
        bitwise_right_shift.Tensor(Tensor self, Tensor other) -> Tensor
        bitwise_right_shift.Tensor_Scalar(Tensor self, Scalar other) -> Tensor
        __lshift__.Scalar(Tensor self, Scalar other) -> Tensor
        __rshift__.Scalar(Tensor self, Scalar other) -> Tensor
        gcd(Tensor self, Tensor other) -> Tensor
        lcm(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(FAMILY, _one_dtype, "heaviside(Tensor self, Tensor values) -> Tensor"),
    *define(
        FAMILY,
        _clamped,
        """
        clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor
        clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor
        clamp_min(Tensor self, Scalar min) -> Tensor
        clamp_min.Tensor(Tensor self, Tensor min) -> Tensor
        clamp_max(Tensor self, Scalar max) -> Tensor
        clamp_max.Tensor(Tensor self, Tensor max) -> Tensor
        clip(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor
        clip.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _lerp,
        """
        lerp.Scalar(Tensor self, Tensor end, Scalar weight) -> Tensor
        lerp.Tensor(Tensor self, Tensor end, Tensor weight) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _add_product,
        "addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _add_quotient,
        "addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _where,
        """
        where.self(Tensor condition, Tensor self, Tensor other) -> Tensor
        where.ScalarOther(Tensor condition, Tensor self, Scalar other) -> Tensor
        where.ScalarSelf(Tensor condition, Scalar self, Tensor other) -> Tensor
        where.Scalar(Tensor condition, Scalar self, Scalar other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _masked_fill,
        """
        masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor
        masked_fill.Tensor(Tensor self, Tensor mask, Tensor value) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _filled,
        """
        fill.Scalar(Tensor self, Scalar value) -> Tensor
        fill.Tensor(Tensor self, Tensor value) -> Tensor
        """,
    ),
    *define(FAMILY, _copied, "copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"),
    *define(FAMILY, _prelu, "prelu(Tensor self, Tensor weight) -> Tensor"),
    *define(FAMILY, _prelu_kernel, "_prelu_kernel(Tensor self, Tensor weight) -> Tensor"),
    *define(FAMILY, _complex, "complex(Tensor real, Tensor imag) -> Tensor"),
]
