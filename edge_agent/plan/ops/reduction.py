"""Ops that make one element of many: sums, extremes, statistics, norms; and those that run along a dim."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import COMPLEX, FLOATING, INTEGRAL, real_of, to_floating
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import expect_dtype, expect_rank, misfit, tensor, wrap_dim, wrap_dims
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS", "reduced"]

FAMILY = "reduction"


def reduced(operand: TensorType, dims: list[int], *, keepdim: bool) -> list[Dim]:
    """The shape without these dims, or with 1 in their place."""
    return [1 if place in dims else size for place, size in enumerate(operand.shape) if keepdim or place not in dims]


def _accumulated(operand: TensorType, dtype: str | None) -> str:
    if dtype is not None:
        return dtype
    return "int64" if operand.dtype in INTEGRAL or operand.dtype == "bool" else operand.dtype


def _sum(_: Scope, self: TensorType, dtype: str | None) -> TensorType:
    return tensor(_accumulated(self, dtype), [])


def _sum_over(
    _: Scope,
    self: TensorType,
    dims: list[Any] | None,
    keepdim: bool,
    dtype: str | None,
) -> TensorType:
    return tensor(_accumulated(self, dtype), reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _product_over(scope: Scope, self: TensorType, dim: Any, keepdim: bool, dtype: str | None) -> TensorType:
    return _sum_over(scope, self, [dim], keepdim, dtype)


def _mean(scope: Scope, self: TensorType, dtype: str | None) -> TensorType:
    return _mean_over(scope, self, None, False, dtype)


def _mean_over(_: Scope, self: TensorType, dims: list[Any] | None, keepdim: bool, dtype: str | None) -> TensorType:
    result = dtype or self.dtype
    if result not in FLOATING and result not in COMPLEX:
        raise misfit("floats to take the mean of", result)
    return tensor(result, reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _extreme(scope: Scope, self: TensorType) -> TensorType:
    _expect_real(self)
    _expect_elements(scope, self, list(range(len(self.shape))))
    return tensor(self.dtype, [])


def _extreme_over(scope: Scope, self: TensorType, dims: list[Any], keepdim: bool) -> TensorType:
    _expect_real(self)
    found = wrap_dims(dims, len(self.shape))
    _expect_elements(scope, self, found)
    return tensor(self.dtype, reduced(self, found, keepdim=keepdim))


def _extremes(scope: Scope, self: TensorType, dim: Any, keepdim: bool) -> list[TensorType]:
    found = _extreme_over(scope, self, [] if dim is None else [dim], keepdim)
    return [found, found]


def _extreme_along(scope: Scope, self: TensorType, dim: Any, keepdim: bool) -> list[TensorType]:
    found = _extreme_over(scope, self, [dim], keepdim)
    return [found, tensor("int64", found.shape)]


def _median_along(scope: Scope, self: TensorType, dim: Any, keepdim: bool) -> list[TensorType]:
    expect_dtype(self, INTEGRAL | FLOATING, "real numbers")
    return _extreme_along(scope, self, dim, keepdim)


def _position(scope: Scope, self: TensorType, dim: Any, keepdim: bool) -> TensorType:
    expect_dtype(self, INTEGRAL | FLOATING, "real numbers")
    found = _extreme_over(scope, self, [] if dim is None else [dim], keepdim)
    return tensor("int64", found.shape)


def _expect_real(operand: TensorType) -> None:
    if operand.dtype in COMPLEX:
        raise misfit("real numbers to compare", operand.dtype)


def _expect_elements(scope: Scope, operand: TensorType, dims: list[int]) -> None:
    for dim in dims:
        if operand.shape and scope.sizes.equal(operand.shape[dim], 0):
            raise misfit("at least one element to reduce", f"none in dim {dim}")


def _truth(_: Scope, self: TensorType) -> TensorType:
    return tensor(_truth_dtype(self), [])


def _truth_over(_: Scope, self: TensorType, dim: Any, keepdim: bool) -> TensorType:
    return tensor(_truth_dtype(self), reduced(self, [wrap_dim(dim, len(self.shape))], keepdim=keepdim))


def _truth_over_dims(_: Scope, self: TensorType, dims: list[Any] | None, keepdim: bool) -> TensorType:
    found = wrap_dims(dims, len(self.shape), none_is_all=False)
    return tensor(_truth_dtype(self), reduced(self, found, keepdim=keepdim))


def _truth_dtype(operand: TensorType) -> str:
    return "uint8" if operand.dtype == "uint8" else "bool"


def _expect_inexact(operand: TensorType) -> None:
    expect_dtype(operand, FLOATING | COMPLEX, "a tensor")


def _spread(_: Scope, self: TensorType, dims: list[Any] | None, keepdim: bool) -> TensorType:
    _expect_inexact(self)
    return tensor(real_of(self.dtype), reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _spread_all(scope: Scope, self: TensorType, *_: Any) -> TensorType:
    return _spread(scope, self, None, False)


def _spread_corrected(scope: Scope, self: TensorType, dims: list[Any] | None, _: Any, keepdim: bool) -> TensorType:
    return _spread(scope, self, dims, keepdim)


def _spread_and_mean(scope: Scope, self: TensorType, dims: list[Any] | None, _: Any, keepdim: bool) -> list[TensorType]:
    found = _spread(scope, self, dims, keepdim)
    return [found, tensor(self.dtype, found.shape)]


def _spread_and_mean_all(scope: Scope, self: TensorType, *_: Any) -> list[TensorType]:
    return _spread_and_mean(scope, self, None, None, False)


def _sum_of_numbers(
    _: Scope,
    self: TensorType,
    dims: list[Any] | None,
    keepdim: bool,
    dtype: str | None,
) -> TensorType:
    if self.dtype in COMPLEX:
        raise misfit("real numbers", self.dtype)
    return tensor(_accumulated(self, dtype), reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _mean_of_numbers(
    _: Scope, self: TensorType, dims: list[Any] | None, keepdim: bool, dtype: str | None
) -> TensorType:
    _expect_inexact(self)
    return tensor(dtype or self.dtype, reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _median(_: Scope, self: TensorType) -> TensorType:
    expect_dtype(self, INTEGRAL | FLOATING, "real numbers")
    return tensor(self.dtype, [])


def _log_sum_exp(_: Scope, self: TensorType, dims: list[Any], keepdim: bool) -> TensorType:
    if self.shape and not dims and not keepdim:
        raise misfit("at least one dim", "none")
    return tensor(to_floating(self.dtype), reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _vector_norm(
    _: Scope,
    self: TensorType,
    __: Any,
    dims: list[Any] | None,
    keepdim: bool,
    dtype: str | None,
) -> TensorType:
    _expect_inexact(self)
    return tensor(real_of(dtype or self.dtype), reduced(self, wrap_dims(dims, len(self.shape)), keepdim=keepdim))


def _norm(scope: Scope, self: TensorType, p: Any, dims: list[Any] | None = None, keepdim: bool = False) -> TensorType:
    return _vector_norm(scope, self, p, dims, keepdim, None)


def _norm_as(scope: Scope, self: TensorType, p: Any, dims: list[Any], keepdim: bool, dtype: str) -> TensorType:
    return _vector_norm(scope, self, p, dims, keepdim, dtype)


def _count(_: Scope, self: TensorType, dim: Any) -> TensorType:
    return tensor("int64", reduced(self, wrap_dims(None if dim is None else [dim], len(self.shape)), keepdim=False))


def _count_over(_: Scope, self: TensorType, dims: list[Any]) -> TensorType:
    return tensor("int64", reduced(self, wrap_dims(dims, len(self.shape)), keepdim=False))


def _running(_: Scope, self: TensorType, dim: Any, dtype: str | None) -> TensorType:
    wrap_dim(dim, len(self.shape))
    return tensor(_accumulated(self, dtype), self.shape)


def _running_extreme(_: Scope, self: TensorType, dim: Any) -> list[TensorType]:
    _expect_real(self)
    wrap_dim(dim, len(self.shape))
    return [self, tensor("int64", self.shape)]


def _running_log_sum(_: Scope, self: TensorType, dim: Any) -> TensorType:
    _expect_inexact(self)
    wrap_dim(dim, len(self.shape))
    return self


def _trace(_: Scope, self: TensorType) -> TensorType:
    expect_rank(self, 2, "a matrix")
    expect_dtype(self, INTEGRAL | FLOATING | COMPLEX, "numbers")
    return tensor(_accumulated(self, None), [])


OPS = [
    *define(
        FAMILY,
        _sum,
        """
        sum(Tensor self, *, ScalarType? dtype=None) -> Tensor
        prod(Tensor self, *, ScalarType? dtype=None) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _sum_over,
        "sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _product_over,
        "prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor",
    ),
    *define(FAMILY, _mean, "mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"),
    *define(
        FAMILY,
        _mean_over,
        "mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _sum_of_numbers,
        "nansum(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _mean_of_numbers,
        "nanmean(Tensor self, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _extreme,
        """
        max(Tensor self) -> Tensor
        min(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _extreme_over,
        """
        amax(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor
        amin(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY, _extremes, "aminmax(Tensor self, *, int? dim=None, bool keepdim=False) -> (Tensor min, Tensor max)"
    ),
    *define(
        FAMILY,
        _extreme_along,
        """
        max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)
        min.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)
        mode(Tensor self, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)
        """,
    ),
    *define(
        FAMILY,
        _median_along,
        """
        median.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)
        nanmedian.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)
        """,
    ),
    *define(
        FAMILY,
        _position,
        """
        argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor
        argmin(Tensor self, int? dim=None, bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _truth,
        """
        all(Tensor self) -> Tensor
        any(Tensor self) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _truth_over,
        """
        all.dim(Tensor self, int dim, bool keepdim=False) -> Tensor
        any.dim(Tensor self, int dim, bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _truth_over_dims,
        """
        all.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor
        any.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _spread_all,
        """
        std(Tensor self, bool unbiased=True) -> Tensor
        var(Tensor self, bool unbiased=True) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _spread_corrected,
        """
        std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor
        std.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor
        var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor
        var.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _spread_and_mean_all,
        """
        std_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)
        var_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)
        """,
    ),
    *define(
        FAMILY,
        _spread_and_mean,
        """
        std_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) ->
            (Tensor, Tensor)
        std_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)
        var_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) ->
            (Tensor, Tensor)
        var_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)
        """,
    ),
    *define(
        FAMILY,
        _median,
        """
        median(Tensor self) -> Tensor
        nanmedian(Tensor self) -> Tensor
        """,
    ),
    *define(FAMILY, _log_sum_exp, "logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor"),
    *define(
        FAMILY,
        _vector_norm,
        "linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? "
        "dtype=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _norm,
        """
        norm.Scalar(Tensor self, Scalar p=2) -> Tensor
        norm.ScalarOpt_dim(Tensor self, Scalar? p, int[1] dim, bool keepdim=False) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _norm_as,
        "norm.ScalarOpt_dim_dtype(Tensor self, Scalar? p, int[1] dim, bool keepdim, *, ScalarType dtype) -> Tensor",
    ),
    *define(FAMILY, _count, "count_nonzero(Tensor self, int? dim=None) -> Tensor"),
    *define(FAMILY, _count_over, "count_nonzero.dim_IntList(Tensor self, int[] dim) -> Tensor"),
    *define(
        FAMILY,
        _running,
        """
        cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor
        cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _running_extreme,
        """
        cummax(Tensor self, int dim) -> (Tensor values, Tensor indices)
        cummin(Tensor self, int dim) -> (Tensor values, Tensor indices)
        """,
    ),
    *define(FAMILY, _running_log_sum, "logcumsumexp(Tensor self, int dim) -> Tensor"),
    *define(FAMILY, _trace, "trace(Tensor self) -> Tensor"),
]
