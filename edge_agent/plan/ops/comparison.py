"""Ops that compare the elements of two tensors, or of a tensor and a number: all give bools."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import COMPLEX
from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import broadcast, misfit, result_type, tensor
from edge_agent.plan.spec import Number, Operand, Scope, define

__all__ = ["OPS"]

FAMILY = "comparison"


def _equality(scope: Scope, a: Operand, b: Operand) -> TensorType:
    if not any(_is_complex(operand) for operand in (a, b)):  # which torch compares in a dtype that may not even travel
        result_type((a, b))
    return tensor("bool", broadcast(scope, a, b))


def _is_complex(operand: Operand) -> bool:
    return operand.kind == "complex" if isinstance(operand, Number) else operand.dtype in COMPLEX


def _order(scope: Scope, a: Operand, b: Operand) -> TensorType:
    dtype = result_type((a, b))
    if dtype in COMPLEX:
        raise misfit("real numbers to compare", dtype)
    return tensor("bool", broadcast(scope, a, b))


def _logical(scope: Scope, a: Operand, b: Operand) -> TensorType:
    return tensor("bool", broadcast(scope, a, b))


def _close(scope: Scope, a: TensorType, b: TensorType, *_: Any) -> TensorType:
    if a.dtype != b.dtype:
        raise misfit("two tensors of one dtype", f"{a.dtype} and {b.dtype}")
    return tensor("bool", broadcast(scope, a, b))


def _is_in(_: Scope, elements: TensorType, *__: Any) -> TensorType:
    if elements.dtype in COMPLEX or elements.dtype == "bool":
        raise misfit("real numbers", elements.dtype)
    return tensor("bool", elements.shape)


OPS = [
    *define(
        FAMILY,
        _equality,
        """
        eq.Tensor(Tensor self, Tensor other) -> Tensor
        eq.Scalar(Tensor self, Scalar other) -> Tensor
        ne.Tensor(Tensor self, Tensor other) -> Tensor
        ne.Scalar(Tensor self, Scalar other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _order,
        """
        lt.Tensor(Tensor self, Tensor other) -> Tensor
        lt.Scalar(Tensor self, Scalar other) -> Tensor
        le.Tensor(Tensor self, Tensor other) -> Tensor
        le.Scalar(Tensor self, Scalar other) -> Tensor
        gt.Tensor(Tensor self, Tensor other) -> Tensor
        gt.Scalar(Tensor self, Scalar other) -> Tensor
        ge.Tensor(Tensor self, Tensor other) -> Tensor
        ge.Scalar(Tensor self, Scalar other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _logical,
        """
        logical_and(Tensor self, Tensor other) -> Tensor
        logical_or(Tensor self, Tensor other) -> Tensor
        logical_xor(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _close,
        "isclose(Tensor self, Tensor other, float rtol=1.0000000000000001e-05, float atol=1e-08, bool equal_nan=False) "
        "-> Tensor",
    ),
    *define(
        FAMILY,
        _is_in,
        """
        isin.Tensor_Tensor(Tensor elements, Tensor test_elements, *, bool assume_unique=False, bool invert=False) ->
            Tensor
        isin.Tensor_Scalar(Tensor elements, Scalar test_element, *, bool assume_unique=False, bool invert=False) ->
            Tensor
        """,
    ),
]
