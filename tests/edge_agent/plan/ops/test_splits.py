"""The twin of edge_agent/plan/ops/splits.py: parts of tensors against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.ops import splits
from tests.edge_agent.plan.agreement import Call, assert_agrees, call, f32, refusal

CASES = [
    call("split.Tensor", f32(5, 6), 2),
    call("split.Tensor", f32(5, 6), 3, -1),
    call("split.Tensor", f32(5, 6), 9),
    call("split.sizes", f32(5, 6), [2, 3]),
    call("split_with_sizes", f32(5, 6), [1, 2, 3], 1),
    call("chunk", f32(5, 6), 2),
    call("chunk", f32(5, 6), 4, 1),
    call("chunk", f32(0, 6), 3),
    call("tensor_split.sections", f32(5, 6), 3),
    call("tensor_split.sections", f32(2, 6), 4),
    call("unbind.int", f32(3, 2)),
    call("unbind.int", f32(3, 2), -1),
    call("broadcast_tensors", [f32(2, 1), f32(3), f32()]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parts_are_those_of_torch(case: Call) -> None:
    """How many parts there are, and how large each is, is known before they are made."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in splits.OPS}


@given(size=st.integers(1, 7), parts=st.integers(1, 5))
def test_splits_have_the_parts_that_torch_gives_them(size: int, parts: int) -> None:
    """Chunks, splits and sections cover the dim, the last ones smaller; outputs tell a size that is not known yet."""
    for name in ("chunk", "split.Tensor", "tensor_split.sections"):
        assert_agrees(call(name, f32(size), parts))


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("split.Tensor", f32(4), 2), "expected 2 outputs, got 1"),
        (call("split.Tensor", f32(4), 0), "expected parts of 1 or more, got 0"),
        (
            call("split_with_sizes", f32(4), [3]),
            "expected the sum of the parts and the size of dim 0 to be equal, got 3 and 4",
        ),
        (call("chunk", f32(4), 0), "expected 1 chunk or more, got 0"),
        (call("unbind.int", f32(4)), "expected the size of the dim and the number of outputs to be equal, got 4 and 1"),
    ],
    ids=str,
)
def test_parts_that_do_not_add_up_are_refused(case: Any, sentence: str) -> None:
    """Sizes that do not cover the dim, and another number of outputs, are refused before the op runs."""
    assert sentence in str(refusal(case))
