"""The twin of edge_agent/plan/ops/loss.py: losses against torch, under every reduction."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.plan.ops import loss
from tests.edge_agent.plan.agreement import Call, T, assert_agrees, boolean, call, f32, i64, refusal

X = f32(4, 3)


def cases(reduction: int) -> list[Call]:
    """A call of every loss with this reduction, and of the shapes that some of them also take."""
    return [
        call("mse_loss", X, f32(4, 3), reduction),
        call("mse_loss", X, T("float64", (1, 3)), reduction),
        call("huber_loss", X, f32(4, 3), reduction, 0.5),
        call("smooth_l1_loss", X, f32(4, 3), reduction, 0.5),
        call("soft_margin_loss", X, f32(4, 3), reduction),
        call("l1_loss", X, f32(4, 3), reduction),
        call("l1_loss", X, i64(4, 3), reduction),
        call("l1_loss", T("complex64", (4, 3)), f32(4, 3), reduction),
        *([call("l1_loss", T("uint8", (4, 3)), T("uint8", (4, 3)), reduction)] if reduction != 1 else []),
        call("kl_div", X, f32(4, 3), reduction),
        call("kl_div", X, f32(4, 3), reduction, log_target=True),
        call("binary_cross_entropy", X, f32(4, 3), f32(3), reduction),
        call("binary_cross_entropy", X, f32(4, 3), None, reduction),
        call("binary_cross_entropy_with_logits", X, f32(4, 3), None, None, reduction),
        call("binary_cross_entropy_with_logits", X, f32(4, 3), f32(3), f32(3), reduction),
        call("nll_loss_forward", X, i64(4), None, reduction, -100),
        call("nll_loss_forward", f32(3), i64(), f32(3), reduction, 1),
        call("nll_loss2d_forward", f32(4, 3, 5, 6), i64(4, 5, 6), None, reduction, -100),
        call("nll_loss", X, i64(4), f32(3), reduction),
        call("nll_loss_nd", f32(4, 3, 5, 6), i64(4, 5, 6), None, reduction),
        call("nll_loss_nd", X, i64(4), None, reduction),
        call("cross_entropy_loss", X, i64(4), None, reduction),
        call("cross_entropy_loss", X, f32(4, 3), f32(3), reduction, -100, 0.1),
        call("cross_entropy_loss", f32(4, 3, 5), i64(4, 5), None, reduction),
        call("cross_entropy_loss", f32(3), i64(), None, reduction),
        call("cross_entropy_loss", f32(3), f32(3), None, reduction),
    ]


@pytest.mark.parametrize("case", [case for reduction in (0, 1, 2) for case in cases(reduction)], ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """Not reduced, a loss has the shape of what it compares; reduced, none."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in cases(1)} == {spec.name for spec in loss.OPS}


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("mse_loss", X, f32(4, 2)), "expected dims that broadcast, got 3 and 2"),
        (call("mse_loss", i64(4), i64(4)), "expected floats, got int64"),
        (call("l1_loss", boolean(2), boolean(2)), "expected numbers, got bool"),
        (call("l1_loss", i64(2), i64(2)), "expected floats to take the mean of, got int64"),
        (call("mse_loss", X, X, 3), "expected a reduction of 0 (none), 1 (mean) or 2 (sum), got 3"),
        (call("binary_cross_entropy", X, f32(3)), "expected a target like float32[4, 3], got float32[3]"),
        (
            call("binary_cross_entropy", X, i64(4, 3)),
            "expected an input and a target of one dtype, got float32 and int64",
        ),
        (call("nll_loss", X, f32(4)), "expected a target of classes of int64, uint8, got float32"),
        (call("nll_loss", X, i64(5)), "expected the sizes of the target and the input to be equal, got 5 and 4"),
        (
            call("nll_loss", X, i64(4), f32(4)),
            "expected the sizes of the weight and the classes to be equal, got 4 and 3",
        ),
        (call("nll_loss", X, i64(4, 3)), "expected a target with 1 dims, got int64[4, 3]"),
        (
            call("cross_entropy_loss", X, f32(4, 2)),
            "expected the sizes of the input and the target to be equal, got 3 and 2",
        ),
        (call("cross_entropy_loss", boolean(4, 3), i64(4)), "expected an input of bfloat16"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(case: Any, sentence: str) -> None:
    """A target that does not fit its input is refused before the op runs."""
    assert sentence in str(refusal(case))
