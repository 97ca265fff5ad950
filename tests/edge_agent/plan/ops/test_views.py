"""The twin of edge_agent/plan/ops/views.py: shapes of views, slices and splits against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from edge_agent.plan.ops import views
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES
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

C64 = T("complex64", (4, 3))

CASES = [
    *(call(name, C64) for name in ("_conj", "_neg_view", "alias", "conj", "detach", "lift_fresh_copy", "real", "imag")),
    *(call(name, C64) for name in ("resolve_conj", "resolve_neg", "view_as_real")),
    call("real", f32(3)),
    call("view_as_complex", f32(3, 2)),
    call("view_as_complex", T("float64", (2,))),
    call("reshape", f32(4, 6), [3, -1]),
    call("reshape", f32(4, 6), [24]),
    call("reshape", f32(), [1, 1]),
    call("view", f32(4, 6), [-1]),
    call("view", f32(4, 6), [2, 2, 6]),
    call("view", f32(0, 6), [3, 0]),
    call("view", f32(0, 6), [-1, 6]),
    call("view", f32(1), []),
    call("_unsafe_view", f32(4, 6), [6, 4]),
    call("view.dtype", f32(4, 6), torch.int32),
    call("view.dtype", f32(4, 6), torch.float64),
    call("view.dtype", f32(4, 6), torch.uint8),
    call("flatten.using_ints", f32(2, 3, 4)),
    call("flatten.using_ints", f32(2, 3, 4), 1),
    call("flatten.using_ints", f32(2, 3, 4), 0, 1),
    call("flatten.using_ints", f32()),
    call("unflatten.int", f32(4, 6), 1, [2, -1]),
    call("unflatten.int", f32(4, 6), -2, [2, 2]),
    call("broadcast_to", f32(3), [2, 3]),
    call("expand", f32(1, 3), [4, -1]),
    call("expand", f32(1, 3), [2, 5, 3]),
    call("expand", f32(), [2]),
    call("expand", f32(3), [3], implicit=True),
    call("expand_as", f32(1, 3), f32(2, 3)),
    call("permute", f32(2, 3, 4), [2, 0, 1]),
    call("permute", f32(2, 3, 4), [-1, 0, 1]),
    call("permute", f32(), []),
    call("swapaxes", f32(2, 3, 4), 0, -1),
    call("transpose.int", f32(2, 3, 4), 1, 2),
    call("transpose.int", f32(), 0, -1),
    call("numpy_T", f32(2, 3)),
    call("t", f32(2, 3)),
    call("t", f32(3)),
    call("adjoint", C64),
    call("mT", f32(2, 3, 4)),
    call("movedim.int", f32(2, 3, 4), 0, -1),
    call("movedim.intlist", f32(2, 3, 4), [0, 2], [1, 0]),
    call("movedim.int", f32(), 0, 0),
    call("unsqueeze", f32(2, 3), 1),
    call("unsqueeze", f32(2, 3), -1),
    call("unsqueeze", f32(), 0),
    call("squeeze", f32(1, 3, 1)),
    call("squeeze.dims", f32(1, 3, 1), [0, 1]),
    call("squeeze.dim", f32(1, 3, 1), -1),
    call("squeeze.dim", f32(1, 3, 1), 1),
    call("squeeze.dim", f32(), 0),
    call("select.int", f32(4, 6), 1, 2),
    call("select.int", f32(4, 6), -2, -1),
    call("slice.Tensor", f32(4, 6)),
    call("slice.Tensor", f32(4, 6), 1, 1, 9223372036854775807),
    call("slice.Tensor", f32(4, 6), 1, -3, -1),
    call("slice.Tensor", f32(4, 6), -1, 0, 6, 4),
    call("slice.Tensor", f32(4, 6), 0, 3, 1),
    call("slice.Tensor", f32(4, 6), 0, -9, 9),
    call("narrow", f32(4, 6), 1, 2, 3),
    call("narrow_copy", f32(4, 6), 1, -2, 2),
    call("diagonal", f32(4, 6)),
    call("diagonal", f32(4, 6, 2), 1, 0, 1),
    call("diagonal", f32(4, 6), -2, 1, 0),
    call("diagonal", f32(4, 6), 9),
    call("unfold", f32(4, 6), 1, 3, 2),
    call("unfold", f32(4, 6), 0, 4, 1),
    call("unfold", f32(), 0, 1, 1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_are_those_of_torch(case: Call) -> None:
    """What a view, a slice or a split looks like is known before it is made."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in views.OPS}


SIZES = st.sampled_from([0, 1, 2, 3, 4, 6])
ENDS = st.one_of(st.none(), st.integers(-8, 8))


@given(size=SIZES, start=ENDS, end=ENDS, step=st.integers(1, 4))
def test_slices_have_the_size_that_torch_gives_them(size: int, start: int | None, end: int | None, step: int) -> None:
    """Wherever the ends of a slice lie, before, inside or behind the tensor, its size is right, also as a formula."""
    assert_agrees(call("slice.Tensor", f32(2, size), 1, start, end, step))


@given(
    shape=st.lists(SIZES, min_size=1, max_size=3),
    view=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 12]), max_size=3),
)
def test_reshaping_is_possible_where_torch_says_so(shape: list[int], view: list[int]) -> None:
    """A new shape has as many elements as the old one, and at most one size left to be worked out."""
    case = call("reshape", f32(*shape), view)
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@given(
    shape=st.lists(st.sampled_from([1, 2, 3]), max_size=3), size=st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=4)
)
def test_expanding_is_possible_where_torch_says_so(shape: list[int], size: list[int]) -> None:
    """Sizes of 1 expand, others stay."""
    case = call("expand", f32(*shape), size)
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@given(rows=SIZES, columns=SIZES, offset=st.integers(-7, 7))
def test_diagonals_have_the_size_that_torch_gives_them(rows: int, columns: int, offset: int) -> None:
    """A diagonal ends at the nearer edge."""
    assert_agrees(call("diagonal", f32(rows, columns), offset))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_viewing_as_another_dtype_is_as_in_torch(dtype: str) -> None:
    """The last dim grows or shrinks with the size of an element."""
    for other in set(ALL_DTYPES) - {"bool"}:  # a bool of other bits than 0 and 1 has no meaning
        assert_agrees(call("view.dtype", T(dtype, (2, 16)), TORCH_DTYPES[other]))


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            call("view", f32(4, 6), [5, 5]),
            "expected the numbers of elements before and after to be equal, got 24 and 25",
        ),
        (call("view", f32(4, 6), [5, -1]), "expected the numbers of elements before and after to be equal"),
        (call("view", f32(4), [-1, -1]), "expected sizes of 0 or more and at most one -1"),
        (call("view", f32(0), [0, -1]), "expected sizes that tell what -1 stands for"),
        (call("view", f32(4), "all"), "expected a list for size, got 'all'"),
        (call("view.dtype", f32(), torch.float64), "expected dtypes of one size to view a tensor without dims"),
        (call("view.dtype", f32(3), torch.float64), "expected a last dim that is a multiple of 2, got 3"),
        (call("flatten.using_ints", f32(2, 3), 1, 0), "expected a start_dim not after the end_dim, got 1 and 0"),
        (call("unflatten.int", f32(4), 0, [3, 2]), "expected the numbers of elements before and after to be equal"),
        (call("expand", f32(3), [4]), "expected the sizes of dim 0 before and after to be equal, got 3 and 4"),
        (call("expand", f32(3, 2), [2]), "expected at least 2 sizes, got 1"),
        (call("expand", f32(3), [-1, 3]), "expected a size for every new dim, got -1"),
        (call("permute", f32(2, 3), [0]), "expected 2 dims, got 1"),
        (call("permute", f32(2, 3), [0, 0]), "expected each dim once in dims, got [0, 0]"),
        (call("t", f32(2, 3, 4)), "expected a tensor with at most 2 dims, got float32[2, 3, 4]"),
        (call("mT", f32(2)), "expected a tensor with at least 2 dims, got float32[2]"),
        (call("movedim.intlist", f32(2, 3), [0], [0, 1]), "expected 1 destinations, got 2"),
        (call("unsqueeze", f32(2), 2), "expected dim from -2 to 1, got 2"),
        (call("select.int", f32(4), 0, 4), "expected an index from -4 to 3, got 4"),
        (call("select.int", f32(), 0, 0), "expected a tensor with dims, got one without"),
        (call("slice.Tensor", f32(4), 0, 0, 4, 0), "expected a step of 1 or more, got 0"),
        (call("narrow", f32(4), 0, 3, 2), "expected a part of 4 elements, got 2 from 3 on"),
        (call("diagonal", f32(4, 4), 0, 1, 1), "expected two different dims, got 1 and 1"),
        (call("unfold", f32(4), 0, 5, 1), "expected a size from 0 to 4, got 5"),
        (call("view_as_real", f32(4)), "expected a tensor of complex128, complex64, got float32"),
        (call("view_as_complex", f32(4)), "expected a last dim of 2, got float32[4]"),
        (call("_conj", f32(4)), "expected a tensor of complex128, complex64, got float32"),
        (call("_neg_view", i64(4)), "expected a tensor of bfloat16"),
        (call("imag", i64(4)), "expected a tensor of complex128, complex64, got int64"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused(case: Any, sentence: str) -> None:
    """A shape that does not fit, or a dim that is not there, is refused before the op runs."""
    assert sentence in str(refusal(case))
