"""The twin of edge_agent/plan/ops/joining.py: what is put together, repeated or padded, against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.ops import joining
from tests.edge_agent.plan.agreement import (
    ALL_DTYPES,
    Call,
    T,
    assert_agrees,
    assert_agrees_where_torch_runs,
    call,
    f32,
    i64,
    refusal,
)

CASES = [
    call("cat", [f32(2, 3), f32(4, 3)]),
    call("cat", [f32(2, 3), f32(0), f32(2, 4)], -1),
    call("cat", [f32(0), f32(0)]),
    call("concat", [f32(2), i64(3)], 0),
    call("stack", [f32(2, 3), f32(2, 3)]),
    call("stack", [f32(), i64()], -1),
    call("stack", [f32(2, 3), f32(2, 3)], -2),
    call("hstack", [f32(2), f32(3)]),
    call("hstack", [f32(2, 3), f32(2, 4)]),
    call("hstack", [f32(), f32()]),
    call("vstack", [f32(3), f32(2, 3)]),
    call("atleast_1d", f32()),
    call("atleast_2d", f32(3)),
    call("atleast_2d", f32()),
    call("flip", f32(2, 3), [0, -1]),
    call("roll", f32(2, 3), [1]),
    call("roll", f32(2, 3), [1, 2], [0, 1]),
    call("rot90", f32(2, 3)),
    call("rot90", f32(2, 3, 4), 2, [1, 2]),
    call("repeat", f32(2, 3), [2, 1, 3]),
    call("repeat", f32(), [2]),
    call("repeat", f32(2), [0]),
    call("tile", f32(2, 3), [2]),
    call("tile", f32(2), [2, 3]),
    call("repeat_interleave.self_int", f32(2, 3), 2),
    call("repeat_interleave.self_int", f32(2, 3), 2, 1, output_size=6),
    call("tril", f32(3, 4), 1),
    call("triu", f32(2, 3, 4), -1),
    call("diag", f32(3)),
    call("diag", f32(3), -2),
    call("diag", f32(3, 4), 1),
    call("diag_embed", f32(2, 3)),
    call("diag_embed", f32(2, 3), 1, 0, 2),
    call("meshgrid.indexing", [f32(2), f32(3), f32()], indexing="ij"),
    call("meshgrid.indexing", [f32(2), f32(3), f32(4)], indexing="xy"),
    call("constant_pad_nd", f32(2, 3), [1, 2]),
    call("constant_pad_nd", f32(2, 3), [1, -2, 0, 3], 7),
    call("pad", f32(2, 3), [1, 1]),
    call("pad", f32(2, 3, 4), [1, 1], "reflect"),
    call("pad", f32(2, 3, 4), [1, 1], "circular"),
    call("reflection_pad1d", f32(2, 3), [1, 2]),
    call("replication_pad1d", f32(2, 3, 4), [1, 2]),
    call("reflection_pad2d", f32(2, 3, 4), [1, 2, 1, 0]),
    call("replication_pad2d", f32(2, 2, 3, 4), [1, 2, 1, 0]),
    call("reflection_pad3d", f32(2, 3, 4, 5), [1, 2, 1, 0, 1, 1]),
    call("replication_pad3d", f32(2, 3, 4, 5), [1, 2, 1, 0, 1, 1]),
    call("pixel_shuffle", f32(2, 8, 3, 5), 2),
    call("channel_shuffle", f32(2, 6, 3), 3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """The shape of what is put together follows from the parts."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in joining.OPS}


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_parts_of_two_dtypes_promote_as_in_torch(dtype: str) -> None:
    """A whole has the dtype that both parts promote to, dims or not."""
    for other in ALL_DTYPES:
        assert_agrees_where_torch_runs(call("cat", [T(dtype, (2,)), T(other, (3,))]))
        assert_agrees_where_torch_runs(call("stack", [T(dtype, ()), T(other, ())]))


@given(
    shapes=st.lists(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2), min_size=1, max_size=3),
    dim=st.integers(-2, 1),
)
def test_parts_fit_where_torch_says_so(shapes: list[list[int]], dim: int) -> None:
    """All sizes but that of the joined dim are equal."""
    case = call("cat", [f32(*shape) for shape in shapes], dim)
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("cat", []), "expected at least one tensor, got none"),
        (call("cat", [f32()]), "expected tensors with dims, got one without"),
        (call("cat", [f32(2, 3), f32(2, 4)]), "expected the sizes of dim 1 to be equal, got 3 and 4"),
        (call("cat", [f32(2, 3), f32(2)]), "expected tensors with 2 dims each, got float32[2]"),
        (call("cat", [f32(2), 3]), "expected a tensor for tensors, got 3"),
        (call("stack", [f32(2), f32(3)]), "expected the sizes of dim 0 to be equal, got 2 and 3"),
        (call("roll", f32(2, 3), [1, 2]), "expected 1 shifts, got 2"),
        (call("rot90", f32(2)), "expected dims from -1 to 0, got 1"),
        (call("repeat", f32(2, 3), [2]), "expected at least 2 repeats, got 1"),
        (call("repeat", f32(2), [-1]), "expected repeats of 0 or more, got [-1]"),
        (
            call("repeat_interleave.self_int", f32(2), 2, output_size=5),
            "expected output_size and the repeated size to be equal",
        ),
        (call("tril", f32(3)), "expected a tensor with at least 2 dims, got float32[3]"),
        (call("diag", f32(2, 2, 2)), "expected a vector or a matrix with 1 or 2 dims, got float32[2, 2, 2]"),
        (call("meshgrid.indexing", [f32(2)], indexing="yx"), "expected an indexing of 'ij' or 'xy', got 'yx'"),
        (call("constant_pad_nd", f32(2), [1]), "expected two sizes a dim for at most 1 dims, got 1 sizes"),
        (call("constant_pad_nd", f32(2), [-2, -1]), "expected sizes of 0 or more after padding, got -1"),
        (
            call("pad", f32(2), [1, 1], "wrap"),
            "expected a mode of 'constant', 'reflect', 'replicate' or 'circular', got 'wrap'",
        ),
        (call("reflection_pad1d", f32(2, 3), [1, 1, 1, 1]), "expected 2 sizes of padding, got 4"),
        (call("pixel_shuffle", f32(3, 2, 2), 2), "expected a multiple of 4 channels, got 3"),
        (call("pixel_shuffle", f32(2, 2), 2), "expected a tensor with at least 3 dims, got float32[2, 2]"),
        (call("channel_shuffle", f32(2, 6, 3), 4), "expected groups that divide 6 channels, got 4"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(case: Any, sentence: str) -> None:
    """Parts that do not fit together are refused before the op runs."""
    assert sentence in str(refusal(case))
