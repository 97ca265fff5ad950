"""The twin of edge_agent/plan/ops/comparison.py: comparisons against torch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edge_agent.plan.ops import comparison
from tests.edge_agent.plan.agreement import (
    ALL_DTYPES,
    SOME_DTYPES,
    T,
    assert_agrees_where_torch_runs,
    call,
    f32,
    i64,
    refusal,
)

BINARY = [spec for spec in comparison.OPS if not spec.name.startswith(("aten.isclose", "aten.isin"))]


@pytest.mark.parametrize("spec", BINARY, ids=lambda spec: spec.name)
def test_comparisons_give_bools_as_in_torch(spec: Any) -> None:
    """Two operands of any dtypes that torch compares give bools of the broadcast shape."""
    name = spec.name.removeprefix("aten.")
    ran = 0
    for a, b in itertools.product(SOME_DTYPES, SOME_DTYPES):
        if spec.parameters[1].kind == "Tensor":
            for left, right in (((2, 3), (3,)), ((3,), ())):
                ran += assert_agrees_where_torch_runs(call(name, T(a, left), T(b, right)))
    for dtype, number in itertools.product(ALL_DTYPES, (1, 2.5, True, 1j)):
        if spec.parameters[1].kind == "Scalar":
            ran += assert_agrees_where_torch_runs(call(name, T(dtype, (2,)), number))
    assert ran


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_closeness_and_membership_are_as_in_torch(dtype: str) -> None:
    """isclose and isin give bools, the latter of the first operand's shape."""
    x = T(dtype, (2, 3))
    assert assert_agrees_where_torch_runs(call("isclose", x, T(dtype, (3,)), 1e-3, equal_nan=True)) or dtype.startswith(
        "uint"
    )
    for case in (
        call("isin.Tensor_Tensor", x, T(dtype, (4,)), invert=True),
        call("isin.Tensor_Scalar", x, 1),
        call("isin.Tensor_Scalar", x, 1, assume_unique=True),
    ):
        if dtype not in ("bool", "complex64", "complex128"):
            assert_agrees_where_torch_runs(case)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("lt.Tensor", T("complex64", (2,)), f32(2)), "expected real numbers to compare, got complex64"),
        (call("eq.Tensor", f32(2), f32(3)), "expected dims that broadcast, got 2 and 3"),
        (call("isclose", f32(2), i64(2)), "expected two tensors of one dtype, got float32 and int64"),
        (call("isin.Tensor_Scalar", T("complex64", (2,)), 1), "expected real numbers, got complex64"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(case: Any, sentence: str) -> None:
    """Operands without an order, or that do not go together, are refused before the op runs."""
    assert sentence in str(refusal(case))
