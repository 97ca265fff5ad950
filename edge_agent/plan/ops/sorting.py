"""Ops that sort, and those that need an order: the largest k, the k-th, quantiles."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import COMPLEX, FLOATING, INTEGRAL
from edge_agent.plan.format import TensorType
from edge_agent.plan.ops.reduction import reduced
from edge_agent.plan.shapes import describe, expect_dtype, expect_rank, misfit, tensor, wrap_dim
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "sorting"


def _expect_order(operand: TensorType, dim: Any) -> int:
    if operand.dtype in COMPLEX:
        raise misfit("real numbers to sort", operand.dtype)
    return wrap_dim(dim, len(operand.shape))


def _sorted(_: Scope, self: TensorType, dim: Any, *__: Any) -> list[TensorType]:
    _expect_order(self, dim)
    return [self, tensor("int64", self.shape)]


def _sorted_stably(scope: Scope, self: TensorType, _: Any, dim: Any, *__: Any) -> list[TensorType]:
    return _sorted(scope, self, dim)


def _order(_: Scope, self: TensorType, dim: Any, *__: Any) -> TensorType:
    _expect_order(self, dim)
    return tensor("int64", self.shape)


def _stable_order(scope: Scope, self: TensorType, _: Any, dim: Any, *__: Any) -> TensorType:
    return _order(scope, self, dim)


def _rows_sorted(_: Scope, self: TensorType) -> TensorType:
    _expect_order(self, 0)
    return self


def _largest(_: Scope, self: TensorType, k: Any, dim: Any, *__: Any) -> list[TensorType]:
    axis = _expect_order(self, dim)
    expect_dtype(self, INTEGRAL | FLOATING, "numbers")
    size = self.shape[axis] if self.shape else 1
    if type(k) is int and (k < 0 or (type(size) is int and k > size)):
        raise misfit(f"a k from 0 to {size}", str(k))
    if not self.shape:
        return [self, tensor("int64", [])]
    shape = [*self.shape[:axis], k, *self.shape[axis + 1 :]]
    return [tensor(self.dtype, shape), tensor("int64", shape)]


def _kth(_: Scope, self: TensorType, k: Any, dim: Any, keepdim: bool) -> list[TensorType]:
    axis = _expect_order(self, dim)
    expect_dtype(self, INTEGRAL | FLOATING, "numbers")
    size = self.shape[axis] if self.shape else 1
    if type(k) is int and (k <= 0 or (type(size) is int and k > size)):
        raise misfit(f"a k from 1 to {size}", str(k))
    shape = reduced(self, [axis], keepdim=keepdim)
    return [tensor(self.dtype, shape), tensor("int64", shape)]


def _quantiles(_: Scope, self: TensorType, q: TensorType, dim: Any, keepdim: bool, interpolation: str) -> TensorType:
    if self.dtype not in ("float32", "float64") or q.dtype != self.dtype:
        raise misfit("an input and q both of float32, or of float64", f"{self.dtype} and {q.dtype}")
    expect_rank(q, (0, 1), "q")
    return tensor(self.dtype, [*q.shape, *_quantile_shape(self, dim, interpolation, keepdim=keepdim)])


def _quantile(_: Scope, self: TensorType, __: Any, dim: Any, keepdim: bool, interpolation: str) -> TensorType:
    if self.dtype not in ("float32", "float64"):
        raise misfit("an input of float32 or float64", self.dtype)
    return tensor(self.dtype, _quantile_shape(self, dim, interpolation, keepdim=keepdim))


def _quantile_shape(operand: TensorType, dim: Any, interpolation: str, *, keepdim: bool) -> list[Any]:
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise misfit("an interpolation of linear, lower, higher, midpoint or nearest", repr(interpolation))
    rank = len(operand.shape)
    if dim is None:
        return [1] * rank if keepdim else []
    if not rank:
        wrap_dim(dim, 0)
        return []
    if 0 in operand.shape:
        raise misfit("at least one element", describe(operand))
    return reduced(operand, [wrap_dim(dim, rank)], keepdim=keepdim)


OPS = [
    *define(
        FAMILY,
        _sorted,
        "sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)",
    ),
    *define(
        FAMILY,
        _sorted_stably,
        "sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor "
        "indices)",
    ),
    *define(FAMILY, _order, "argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor"),
    *define(
        FAMILY,
        _stable_order,
        "argsort.stable(Tensor self, *, bool stable, int dim=-1, bool descending=False) -> Tensor",
    ),
    *define(FAMILY, _rows_sorted, "msort(Tensor self) -> Tensor"),
    *define(
        FAMILY,
        _largest,
        "topk(Tensor self, int k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)",
    ),
    *define(
        FAMILY,
        _kth,
        "kthvalue(Tensor self, int k, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)",
    ),
    *define(
        FAMILY,
        _quantiles,
        'quantile(Tensor self, Tensor q, int? dim=None, bool keepdim=False, *, str interpolation="linear") -> Tensor',
    ),
    *define(
        FAMILY,
        _quantile,
        'quantile.scalar(Tensor self, float q, int? dim=None, bool keepdim=False, *, str interpolation="linear") '
        "-> Tensor",
    ),
]
