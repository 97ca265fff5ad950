"""The twin of edge_agent/plan/ops/pointwise.py: its type rules against torch, over all dtypes."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.plan.ops import pointwise
from tests.edge_agent.plan.agreement import (
    ALL_DTYPES,
    T,
    assert_agrees,
    assert_agrees_where_torch_runs,
    boolean,
    call,
    f32,
    refusal,
)

EXTRA: dict[str, tuple[Any, ...]] = {"aten.threshold.default": (0.5, 0.0)}
KEYWORDS: dict[str, dict[str, Any]] = {"aten.round.decimals": {"decimals": 1}}


@pytest.mark.parametrize("name", [spec.name for spec in pointwise.OPS])
def test_types_are_those_of_torch_for_every_dtype(name: str) -> None:
    """Whatever dtype torch computes an op in, the checker says so, and with which result."""
    ran = [
        assert_agrees_where_torch_runs(
            call(name.removeprefix("aten."), T(dtype, shape), *EXTRA.get(name, ()), **KEYWORDS.get(name, {}))
        )
        for dtype in ALL_DTYPES
        for shape in ((4, 6), (2,), (0, 2), ())
    ]
    assert any(ran)


@pytest.mark.parametrize(
    "case",
    [
        call("gelu", f32(3), approximate="tanh"),
        call("elu", f32(3), 2, 3.0, 1),
        call("hardtanh", f32(3), -2, 0.5),
        call("leaky_relu", f32(3), 1),
        call("logit", f32(3), 1e-3),
        call("nan_to_num", f32(3), 0.0, posinf=1.0),
        call("softplus", f32(3), 2, 10),
        call("glu", f32(4, 6), 0),
        call("glu", f32(4, 6), -1),
    ],
    ids=str,
)
def test_arguments_beside_the_tensor_are_bound(case: Any) -> None:
    """Numbers, strings and dims are passed on to the op, by position and by name."""
    assert_agrees(case)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("neg", boolean(3)), "expected numbers of"),
        (call("bitwise_not", f32(3)), "expected bits of"),
        (call("sign", T("complex64", (3,))), "expected real numbers, got complex64"),
        (call("signbit", T("complex64", (3,))), "expected real numbers, got complex64"),
        (call("erf", T("complex64", (3,))), "expected real numbers, got complex64"),
        (call("glu", f32(3)), "expected an even size of dim 0, got 3"),
        (call("glu", f32()), "expected a tensor with dims, got one without"),
        (call("glu", f32(2), 1), "expected dim from -1 to 0, got 1"),
        (call("gelu", f32(3), approximate="erf"), "expected an approximate of 'none' or 'tanh', got 'erf'"),
        (call("gelu", T("int64", (3,))), "expected a tensor of bfloat16, float16, float32, float64, got int64"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(case: Any, sentence: str) -> None:
    """An op on a dtype or a shape that it does not take is refused before it runs, with what was expected."""
    assert sentence in str(refusal(case))
