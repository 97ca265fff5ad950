"""The twin of edge_agent/plan/ops/indexing.py: reading and writing by index against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.ops import indexing
from tests.edge_agent.plan.agreement import (
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

SORTED = T("float32", (5,), "sorted")
SORTED_ROWS = T("float32", (2, 5), "sorted")

CASES = [
    call("nonzero_static", boolean(4, 3), size=5),
    call("nonzero_static", f32(4), size=6, fill_value=0),
    call("gather", f32(3, 4), 1, i64(3, 2)),
    call("gather", f32(3, 4), 0, i64(2, 4)),
    call("gather", f32(3), 0, i64(), sparse_grad=False),
    call("gather", f32(), 0, T("int64", (1,), "zeros")),
    call("index_select", f32(3, 4), 1, i64(5)),
    call("index_select", f32(3, 4), -2, T("int32", (), "index")),
    call("index_select", f32(3), 0, i64(2)),
    call("take", f32(3, 4), i64(2, 2)),
    call("take_along_dim", f32(3, 4), i64(3, 2), 1),
    call("take_along_dim", f32(3, 4), i64(1, 2), 1),
    call("take_along_dim", f32(3, 4), i64(5)),
    call("index.Tensor", f32(3, 4), [i64(5)]),
    call("index.Tensor", f32(3, 4), [None, i64(5, 2)]),
    call("index.Tensor", f32(3, 4, 5), [i64(2), None, i64(2)]),
    call("index.Tensor", f32(3, 4, 5), [None, i64(6, 1), i64(2)]),
    call("index.Tensor", f32(3, 4), [T("int32", (2,), "index"), i64()]),
    call("index_put", f32(3, 4), [i64(2)], f32(4)),
    call("index_put", f32(3, 4), [i64(2), i64(2)], f32(), True),
    call("index_put", f32(3, 4), [None, i64(2)], f32(3, 1)),
    call("index_put", f32(3, 4), [boolean(3, 4)], f32()),
    call("index_put", f32(3, 4), [None, boolean(4)], f32(1)),
    call("index_put", f32(3, 4), [boolean(3), i64(1)], f32(1)),
    call("scatter.src", f32(3, 4), 1, i64(3, 2), f32(3, 2)),
    call("scatter.value", f32(3, 4), 0, i64(2, 4), 1.5),
    call("scatter.value", f32(3), 0, i64(2), 1),
    call("scatter_add", f32(3, 4), 1, i64(3, 2), f32(3, 4)),
    call("scatter.reduce", f32(3, 4), 1, i64(3, 2), f32(3, 2), reduce="multiply"),
    call("scatter.value_reduce", f32(3, 4), 1, i64(3, 2), 2, reduce="add"),
    call("scatter_reduce.two", f32(3, 4), 1, i64(3, 2), f32(3, 2), "amax"),
    call("scatter_reduce.two", f32(3, 4), 1, i64(3, 2), f32(3, 2), "mean", include_self=False),
    call("index_add", f32(3, 4), 0, i64(2), f32(2, 4)),
    call("index_add", f32(3, 4), 1, i64(2), f32(3, 2), alpha=2),
    call("index_copy", f32(3, 4), 0, i64(1), f32(1, 4)),
    call("index_reduce", f32(3, 4), 0, i64(2), f32(2, 4), "amin", include_self=False),
    call("index_fill.int_Scalar", f32(3, 4), 1, i64(2), 3),
    call("index_fill.int_Tensor", f32(3, 4), -1, i64(2), f32()),
    call("masked_scatter", f32(3, 4), boolean(3, 4), f32(20)),
    call("masked_scatter", f32(4), boolean(3, 1), f32(20)),
    call("select_scatter", f32(3, 4), f32(3), 1, 2),
    call("slice_scatter", f32(3, 4), f32(3, 2), 1, 1, 3),
    call("slice_scatter", f32(3, 4), f32(3, 2), 1, 0, 9223372036854775807, 2),
    call("diagonal_scatter", f32(3, 4), f32(3)),
    call("diagonal_scatter", f32(3, 4), f32(2), 2),
    call("put", f32(3, 4), i64(2), f32(2)),
    call("one_hot", i64(3, 2), 4),
    call("histc", f32(7), 5, 0, 1),
    call("histc", f32(7)),
    call("searchsorted.Tensor", SORTED, f32(2, 3)),
    call("searchsorted.Tensor", SORTED_ROWS, f32(2, 3), out_int32=True, right=True),
    call("searchsorted.Tensor", SORTED, f32(3), side="right"),
    call("searchsorted.Scalar", SORTED, 0.5),
    call("bucketize.Tensor", f32(2, 3), SORTED, out_int32=True),
    call("bucketize.Scalar", 0.5, SORTED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """What is read has the indices' shape, what is written the tensor's own."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in indexing.OPS}


@given(
    rank=st.integers(1, 4),
    indices=st.lists(st.one_of(st.none(), st.lists(st.sampled_from([1, 2]), max_size=2)), min_size=1, max_size=4),
)
def test_dims_of_indices_stand_where_torch_puts_them(rank: int, indices: list[list[int] | None]) -> None:
    """Indices side by side put their dims in their place; indices apart put them in front."""
    given_indices = [None if one is None else i64(*one) for one in indices]
    case = call("index.Tensor", f32(*(3 + place for place in range(rank))), given_indices)
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("gather", f32(3, 4), 1, f32(3, 4)), "expected an index of int32, int64, got float32"),
        (call("gather", f32(3, 4), 1, i64(3)), "expected an index with 2 dims, got int64[3]"),
        (call("gather", f32(3, 4), 1, i64(5, 2)), "expected an index of at most 3 in dim 0, got 5"),
        (call("index_select", f32(3), 0, i64(2, 2)), "expected an index with 0 or 1 dims, got int64[2, 2]"),
        (call("take", f32(3), T("int32", (2,), "index")), "expected an index of int64, got int32"),
        (
            call("index.Tensor", f32(3), [boolean(3)]),
            "expected indices of int64 or int32, got a mask (bool), whose result has a size that depends on the data",
        ),
        (call("index.Tensor", f32(3), [i64(2), i64(2)]), "expected at most 1 indices, got 2"),
        (call("index.Tensor", f32(3), [None]), "expected at least one index, got none"),
        (call("index.Tensor", f32(3, 3), [i64(2), i64(3)]), "expected dims that broadcast, got 2 and 3"),
        (call("index_put", f32(3), [i64(2)], i64(2)), "expected values of float32, got int64"),
        (call("index_put", f32(3), [i64(2)], f32(2, 2)), "expected values that broadcast to 1 dims, got float32[2, 2]"),
        (call("index_put", f32(3), [boolean(4)], f32()), "expected the sizes of the mask and the tensor to be equal"),
        (call("index_put", f32(3), [boolean(3, 3)], f32()), "expected masks of at most 1 dims in all, got bool[3, 3]"),
        (call("scatter.src", f32(3), 0, i64(2), i64(2)), "expected a source of float32, got int64"),
        (
            call("scatter_reduce.two", f32(3), 0, i64(2), f32(2), "max"),
            "expected a reduce of sum, prod, mean, amax, amin",
        ),
        (call("scatter.reduce", f32(3), 0, i64(2), f32(2), reduce="sum"), "expected a reduce of 'add' or 'multiply'"),
        (
            call("index_add", f32(3, 4), 0, i64(2), f32(3, 4)),
            "expected the sizes of the index and the source to be equal",
        ),
        (
            call("index_reduce", f32(3), 0, i64(2), f32(2), "sum"),
            "expected a reduce of prod, mean, amax, amin, got 'sum'",
        ),
        (call("masked_scatter", f32(3), i64(3), f32(3)), "expected a mask of bool, got int64"),
        (call("select_scatter", f32(3, 4), f32(4), 1, 0), "expected the sizes of the part and the source to be equal"),
        (
            call("one_hot", i64(3)),
            "expected num_classes of 1 or more, as the largest class depends on the data, got -1",
        ),
        (call("histc", f32(3), 0), "expected 1 bin or more, got 0"),
        (call("searchsorted.Tensor", SORTED, T("float64", (2,))), "expected values of float32, got float64"),
        (
            call("searchsorted.Tensor", SORTED, f32(2), side="middle"),
            "expected a side of 'left' or 'right', got 'middle'",
        ),
        (call("bucketize.Tensor", f32(2), SORTED_ROWS), "expected boundaries with 1 dims, got float32[2, 5]"),
    ],
    ids=str,
)
def test_what_does_not_index_is_refused(case: Any, sentence: str) -> None:
    """Indices of other dtypes, masks that read, and sources that do not fit are refused before the op runs."""
    assert sentence in str(refusal(case))
