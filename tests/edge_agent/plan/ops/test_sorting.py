"""The twin of edge_agent/plan/ops/sorting.py: order against torch."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.plan.ops import sorting
from tests.edge_agent.plan.agreement import (
    ALL_DTYPES,
    Call,
    T,
    assert_agrees,
    assert_agrees_where_torch_runs,
    boolean,
    call,
    f32,
    i64,
    refusal,
)

CASES = [
    call("sort", f32(4, 3)),
    call("sort", f32(4, 3), 0, True),
    call("sort", f32()),
    call("sort.stable", f32(4, 3), stable=True, dim=0),
    call("sort.stable", f32(4, 3), stable=None),
    call("argsort", f32(4, 3), 0),
    call("argsort.stable", f32(4, 3), stable=True, descending=True),
    call("msort", f32(4, 3)),
    call("topk", f32(4, 3), 2),
    call("topk", f32(4, 3), 3, 0, False, False),
    call("topk", f32(), 1),
    call("kthvalue", f32(4, 3), 2),
    call("kthvalue", f32(4, 3), 1, 0, True),
    call("kthvalue", f32(), 1),
    call("quantile", f32(4, 3), T("float32", (2,))),
    call("quantile", f32(4, 3), T("float32", ()), 1, True),
    call("quantile", f32(4, 3), T("float32", (2,)), 0, interpolation="nearest"),
    call("quantile.scalar", f32(4, 3), 0.5),
    call("quantile.scalar", f32(4, 3), 0.5, 1, True),
    call("quantile.scalar", f32(4, 3), 0.5, None, True),
    call("quantile.scalar", T("float64", (4,)), 0.5, 0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """Values keep their dtype, indices are int64."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in sorting.OPS}


@pytest.mark.parametrize("name", ["sort", "argsort", "msort", "topk", "kthvalue"])
def test_every_dtype_is_sorted_as_in_torch(name: str) -> None:
    """Whatever dtype torch sorts, the checker types."""
    args = (2,) if name in ("topk", "kthvalue") else ()
    ran = [assert_agrees_where_torch_runs(call(name, T(dtype, (4, 3)), *args)) for dtype in ALL_DTYPES]
    assert any(ran)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("sort", T("complex64", (3,))), "expected real numbers to sort, got complex64"),
        (call("sort", f32(3), 1), "expected dim from -1 to 0, got 1"),
        (call("topk", f32(3), 4), "expected a k from 0 to 3, got 4"),
        (call("topk", boolean(3), 1), "expected numbers of"),
        (call("kthvalue", f32(3), 0), "expected a k from 1 to 3, got 0"),
        (call("quantile.scalar", i64(3), 0.5), "expected an input of float32 or float64, got int64"),
        (call("quantile.scalar", f32(3), 0.5, interpolation="cubic"), "expected an interpolation of linear, lower"),
        (call("quantile", f32(3), T("float64", ())), "expected an input and q both of float32, or of float64"),
        (call("quantile", f32(3), f32(2, 2)), "expected q with 0 or 1 dims, got float32[2, 2]"),
    ],
    ids=str,
)
def test_what_has_no_order_is_refused(case: Any, sentence: str) -> None:
    """Complex numbers, dims that are not there and a k beyond the size are refused before the op runs."""
    assert sentence in str(refusal(case))
