"""Ops that copy, or give the same values in another dtype or layout."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import misfit, tensor
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS"]

FAMILY = "conversion"


def _alike(_: Scope, self: TensorType, *__: Any) -> TensorType:
    return self


def _copied_to(
    _: Scope, self: TensorType, dtype: str | None, __: Any, ___: Any, pin_memory: Any, *____: Any
) -> TensorType:
    if pin_memory:
        raise misfit("memory that is not pinned", "pin_memory of True")
    return tensor(dtype or self.dtype, self.shape)


def _converted(_: Scope, self: TensorType, dtype: str, *__: Any) -> TensorType:
    return tensor(dtype, self.shape)


def _like_other(_: Scope, self: TensorType, other: TensorType) -> TensorType:
    return tensor(other.dtype, self.shape)


OPS = [
    *define(
        FAMILY,
        _alike,
        """
        clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor
        contiguous(Tensor(a) self, *, MemoryFormat memory_format=0) -> Tensor(a)
        """,
    ),
    *define(
        FAMILY,
        _copied_to,
        "_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? "
        "pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor",
    ),
    *define(
        FAMILY,
        _converted,
        "to.dtype(Tensor(a) self, ScalarType dtype, bool non_blocking=False, bool copy=False, "
        "MemoryFormat? memory_format=None) -> Tensor(a)",
    ),
    *define(FAMILY, _like_other, "type_as(Tensor self, Tensor other) -> Tensor", views=True),
]
