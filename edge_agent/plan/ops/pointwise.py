"""Ops on each element of one tensor."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import BOOLEAN, COMPLEX, FLOATING, INTEGRAL, real_of, to_floating
from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import expect_dtype, misfit, same, tensor, wrap_dim
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "pointwise"


def _alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    return same(self)


def _number_alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    expect_dtype(self, INTEGRAL | FLOATING | COMPLEX, "numbers")
    return same(self)


def _real_alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    expect_dtype(self, INTEGRAL | FLOATING, "real numbers")
    return same(self)


def _floats_alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    expect_dtype(self, FLOATING, "a tensor")
    return same(self)


def _gelu(_: Scope, self: TensorType, approximate: str) -> TensorType:
    if approximate not in ("none", "tanh"):
        raise misfit("an approximate of 'none' or 'tanh'", repr(approximate))
    expect_dtype(self, FLOATING, "a tensor")
    return same(self)


def _inexact_alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    expect_dtype(self, FLOATING | COMPLEX, "a tensor")
    return same(self)


def _bits_alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    expect_dtype(self, BOOLEAN | INTEGRAL, "bits")
    return same(self)


def _floating(_: Scope, self: TensorType, *__: Any) -> TensorType:
    if self.dtype in FLOATING or self.dtype in COMPLEX:
        return same(self)
    return tensor(to_floating(self.dtype), self.shape)


def _real_floating(_: Scope, self: TensorType, *__: Any) -> TensorType:
    if self.dtype in COMPLEX:
        raise misfit("real numbers", self.dtype)
    return tensor(to_floating(self.dtype), self.shape)


def _square(_: Scope, self: TensorType) -> TensorType:
    return tensor("int64", self.shape) if self.dtype == "bool" else self


def _absolute(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, INTEGRAL | FLOATING | COMPLEX, "numbers")
    return tensor(real_of(self.dtype), self.shape)


def _angle(_: Scope, self: TensorType) -> TensorType:
    return tensor(real_of(to_floating(self.dtype)), self.shape)


def _sign(_: Scope, self: TensorType) -> TensorType:
    if self.dtype in COMPLEX:
        raise misfit("real numbers", self.dtype)
    return same(self)


def _boolean(_: Scope, self: TensorType) -> TensorType:
    return tensor("bool", self.shape)


def _real_boolean(_: Scope, self: TensorType) -> TensorType:
    if self.dtype in COMPLEX:
        raise misfit("real numbers", self.dtype)
    return tensor("bool", self.shape)


def _log_sigmoid(_: Scope, self: TensorType) -> list[TensorType]:
    expect_dtype(self, FLOATING, "a tensor")
    return [same(self), same(self)]


def _glu(scope: Scope, self: TensorType, dim: Any) -> TensorType:
    expect_dtype(self, FLOATING, "a tensor")
    if not self.shape:
        raise misfit("a tensor with dims", "one without")
    shape = list(self.shape)
    axis = wrap_dim(dim, len(shape))
    size = shape[axis]
    if type(size) is int and size % 2:
        raise misfit(f"an even size of dim {axis}", str(size))
    shape[axis] = scope.sizes.floordiv(size, 2)
    return tensor(self.dtype, shape)


OPS = [
    *define(
        FAMILY,
        _floating,
        """
        acos(Tensor self) -> Tensor
        acosh(Tensor self) -> Tensor
        asin(Tensor self) -> Tensor
        asinh(Tensor self) -> Tensor
        atan(Tensor self) -> Tensor
        atanh(Tensor self) -> Tensor
        cos(Tensor self) -> Tensor
        cosh(Tensor self) -> Tensor
        exp(Tensor self) -> Tensor
        exp2(Tensor self) -> Tensor
        expm1(Tensor self) -> Tensor
        log(Tensor self) -> Tensor
        log10(Tensor self) -> Tensor
        log1p(Tensor self) -> Tensor
        log2(Tensor self) -> Tensor
        reciprocal(Tensor self) -> Tensor
        rsqrt(Tensor self) -> Tensor
        sigmoid(Tensor self) -> Tensor
        sin(Tensor self) -> Tensor
        sinc(Tensor self) -> Tensor
        sinh(Tensor self) -> Tensor
        sqrt(Tensor self) -> Tensor
        tan(Tensor self) -> Tensor
        tanh(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _real_floating,
        """
        deg2rad(Tensor self) -> Tensor
        digamma(Tensor self) -> Tensor
        erf(Tensor self) -> Tensor
        erfc(Tensor self) -> Tensor
        erfinv(Tensor self) -> Tensor
        i0(Tensor self) -> Tensor
        lgamma(Tensor self) -> Tensor
        logit(Tensor self, float? eps=None) -> Tensor
        rad2deg(Tensor self) -> Tensor
        special_entr(Tensor self) -> Tensor
        special_erfinv(Tensor self) -> Tensor
        special_log_ndtr(Tensor self) -> Tensor
        special_ndtri(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _alike,
        """
        nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor
        sgn(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _number_alike,
        """
        neg(Tensor self) -> Tensor
        positive(Tensor(a) self) -> Tensor(a)
        """,
    ),
    *define(
        FAMILY,
        _real_alike,
        """
        ceil(Tensor self) -> Tensor
        floor(Tensor self) -> Tensor
        hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor
        relu(Tensor self) -> Tensor
        relu6(Tensor self) -> Tensor
        round(Tensor self) -> Tensor
        round.decimals(Tensor self, *, int decimals) -> Tensor
        threshold(Tensor self, Scalar threshold, Scalar value) -> Tensor
        trunc(Tensor self) -> Tensor
        """,
    ),
    *define(FAMILY, _sign, "sign(Tensor self) -> Tensor"),
    *define(
        FAMILY,
        _floats_alike,
        """
        celu(Tensor self, Scalar alpha=1.) -> Tensor
        elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor
        frac(Tensor self) -> Tensor
        hardshrink(Tensor self, Scalar lambd=0.5) -> Tensor
        hardsigmoid(Tensor self) -> Tensor
        hardswish(Tensor self) -> Tensor
        leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor
        log_sigmoid(Tensor self) -> Tensor
        mish(Tensor self) -> Tensor
        selu(Tensor self) -> Tensor
        softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor
        softshrink(Tensor self, Scalar lambd=0.5) -> Tensor
        """,
    ),
    *define(FAMILY, _gelu, 'gelu(Tensor self, *, str approximate="none") -> Tensor'),
    *define(FAMILY, _inexact_alike, "silu(Tensor self) -> Tensor"),
    *define(FAMILY, _bits_alike, "bitwise_not(Tensor self) -> Tensor"),
    *define(FAMILY, _alike, "conj_physical(Tensor self) -> Tensor", views=True),
    *define(FAMILY, _square, "square(Tensor self) -> Tensor"),
    *define(FAMILY, _absolute, "abs(Tensor self) -> Tensor"),
    *define(FAMILY, _angle, "angle(Tensor self) -> Tensor"),
    *define(
        FAMILY,
        _boolean,
        """
        isfinite(Tensor self) -> Tensor
        isinf(Tensor self) -> Tensor
        isnan(Tensor self) -> Tensor
        logical_not(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _real_boolean,
        """
        isneginf(Tensor self) -> Tensor
        isposinf(Tensor self) -> Tensor
        signbit(Tensor self) -> Tensor
        """,
    ),
    *define(FAMILY, _log_sigmoid, "log_sigmoid_forward(Tensor self) -> (Tensor output, Tensor buffer)"),
    *define(FAMILY, _glu, "glu(Tensor self, int dim=-1) -> Tensor"),
]
