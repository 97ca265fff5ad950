"""The twin of edge_agent/plan/ops/matrix.py: products, decompositions and distances against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.ops import matrix
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


def spd(*shape: int) -> T:
    """Positive definite matrices."""
    return T("float32", shape, "spd")


CASES = [
    call("mm", f32(2, 3), f32(3, 4)),
    call("bmm", f32(2, 3, 4), f32(2, 4, 5)),
    call("mv", f32(2, 3), f32(3)),
    call("dot", f32(3), f32(3)),
    call("vdot", T("complex64", (3,)), T("complex64", (3,))),
    call("ger", f32(2), f32(3)),
    call("outer", f32(2), i64(3)),
    call("addmm", f32(4), f32(2, 3), f32(3, 4)),
    call("addmm", f32(2, 1), f32(2, 3), f32(3, 4), beta=2, alpha=0.5),
    call("baddbmm", f32(3, 5), f32(2, 3, 4), f32(2, 4, 5)),
    call("addbmm", f32(3, 5), f32(2, 3, 4), f32(2, 4, 5)),
    call("addmv", f32(2), f32(2, 3), f32(3)),
    call("addr", f32(2, 3), f32(2), f32(3)),
    call("addr", f32(3), f32(2), f32(3)),
    call("matmul", f32(3), f32(3)),
    call("matmul", f32(2, 3), f32(3)),
    call("matmul", f32(3), f32(3, 4)),
    call("matmul", f32(5, 1, 2, 3), f32(4, 3, 6)),
    call("linear", f32(5, 2, 3), f32(4, 3), f32(4)),
    call("linear", f32(2, 3), f32(4, 3)),
    call("linear", f32(2, 3), f32(3)),
    call("linear", f32(3), f32(4, 3), f32()),
    call("linalg_det", spd(2, 3, 3)),
    call("_linalg_det", spd(3, 3)),
    call("linalg_cholesky", spd(2, 3, 3)),
    call("linalg_cholesky", spd(3, 3), upper=True),
    call("linalg_inv", spd(3, 3)),
    call("linalg_cholesky_ex", spd(2, 3, 3)),
    call("linalg_inv_ex", spd(2, 3, 3)),
    call("linalg_solve", spd(3, 3), f32(3, 2)),
    call("linalg_solve", spd(3, 3), f32(3)),
    call("linalg_solve", spd(2, 3, 3), f32(3, 4)),
    call("linalg_solve", spd(3, 3), f32(2, 3), left=False),
    call("_linalg_solve_ex", spd(2, 3, 3), f32(2, 3)),
    call("_linalg_solve_ex", spd(2, 3, 3), f32(2, 3, 5)),
    call("linalg_eigh", spd(2, 3, 3)),
    call("_linalg_eigh", spd(3, 3), "U"),
    call("_linalg_eigh", spd(3, 3), "L", False),
    call("linalg_qr", f32(2, 4, 3)),
    call("linalg_qr", f32(3, 4), "complete"),
    call("linalg_qr", f32(4, 3), "r"),
    call("linalg_svd", f32(2, 4, 3)),
    call("linalg_svd", f32(3, 4), False),
    call("_linalg_svd", f32(4, 3)),
    call("_linalg_svd", f32(4, 3), True),
    call("_linalg_svd", f32(4, 3), False, False),
    call("cross", f32(2, 3), f32(2, 3)),
    call("cross", f32(3, 2), f32(3, 2), 0),
    call("linalg_cross", f32(2, 3), f32(1, 3)),
    call("_cdist_forward", f32(2, 4, 3), f32(2, 5, 3), 2.0, None),
    call("cdist", f32(4, 3), f32(5, 3)),
    call("cdist", f32(2, 1, 4, 3), f32(6, 5, 3), 1.0),
    call("_pdist_forward", f32(4, 3)),
    call("_pdist_forward", f32(1, 3)),
    call("cosine_similarity", f32(2, 3), f32(2, 3)),
    call("cosine_similarity", f32(4, 2, 3), f32(2, 3), 0),
    call("tensordot", f32(2, 3, 4), f32(4, 3, 5), [1, 2], [1, 0]),
    call("tensordot", f32(2, 3), f32(4), [], []),
    call("kron", f32(2, 3), f32(4)),
    call("kron", f32(), i64(2)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """Rows of the first and columns of the second, with what stands in front of both broadcast."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in matrix.OPS}


SHAPES = st.lists(st.sampled_from([1, 2, 3]), max_size=4)


@given(a=SHAPES, b=SHAPES)
def test_products_are_possible_where_torch_says_so(a: list[int], b: list[int]) -> None:
    """Inner sizes are equal, leading ones broadcast."""
    case = call("matmul", f32(*a), f32(*b))
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@given(a=st.lists(st.sampled_from([1, 2, 3]), max_size=3))
def test_addends_broadcast_where_torch_says_so(a: list[int]) -> None:
    """An addend has at most the product's dims, and broadcasts to it, never the other way round."""
    for case in (call("addmm", f32(*a), f32(2, 4), f32(4, 3)), call("baddbmm", f32(*a), f32(1, 2, 4), f32(1, 4, 3))):
        assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize("name", ["mm", "matmul", "dot", "linalg_inv", "cdist", "outer", "kron"])
def test_every_dtype_is_as_in_torch(name: str) -> None:
    """Two matrices of any dtypes multiply where torch multiplies them."""
    shape = (3,) if name in ("dot", "outer") else (3, 3)
    ran = False
    for dtype in ALL_DTYPES:
        if name == "linalg_inv":
            ran |= assert_agrees_where_torch_runs(call(name, T(dtype, shape)))
            continue
        for other in ALL_DTYPES:
            ran |= assert_agrees_where_torch_runs(call(name, T(dtype, shape), T(other, shape)))
    assert ran


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("mm", f32(2, 3), f32(4, 5)), "expected the inner sizes of a product to be equal, got 3 and 4"),
        (call("mm", f32(2, 3), f32(3)), "expected a matrix with 2 dims, got float32[3]"),
        (call("mm", f32(2, 3), T("float64", (3, 2))), "expected matrices of one dtype, got float32 and float64"),
        (call("mm", boolean(2, 2), boolean(2, 2)), "expected numbers to multiply, got bools"),
        (call("bmm", f32(2, 3, 4), f32(3, 4, 5)), "expected the numbers of matrices to be equal, got 2 and 3"),
        (call("addmm", f32(5), f32(2, 3), f32(3, 4)), "expected dims that broadcast, got 5 and 4"),
        (call("addmm", f32(7, 2, 4), f32(2, 3), f32(3, 4)), "expected an addend that broadcasts to float32[2, 4]"),
        (call("matmul", f32(), f32(2)), "expected tensors with dims to multiply, got float32[] and float32[2]"),
        (call("linear", f32(2, 3), f32(4, 5)), "expected the inner sizes of a product to be equal, got 3 and 5"),
        (call("linear", f32(2, 3), f32(4, 3), f32(5)), "expected dims that broadcast, got 4 and 5"),
        (call("linear", f32(2, 3), f32(4, 3), f32(7, 2, 4)), "expected a bias that broadcasts to the output's [2, 4]"),
        (call("linalg_inv", f32(2, 3)), "expected the last two sizes of A to be equal, got 2 and 3"),
        (call("linalg_inv", i64(2, 2)), "expected A of complex128, complex64, float32, float64, got int64"),
        (call("linalg_solve", f32(3, 3), f32(4)), "expected the sizes of A and B to be equal, got 4 and 3"),
        (call("_linalg_eigh", f32(3, 3), "X"), "expected an UPLO of 'L' or 'U', got 'X'"),
        (call("linalg_qr", f32(3, 3), "full"), "expected a mode of 'reduced', 'complete' or 'r', got 'full'"),
        (call("linalg_svd", f32(3, 3), driver="gesvd"), "expected no driver, as on the CPU, got 'gesvd'"),
        (call("linalg_cross", f32(2, 4), f32(2, 4)), "expected a dim of size 3, got 4"),
        (call("cdist", f32(4, 3), f32(5, 2)), "expected the last sizes to be equal, got 3 and 2"),
        (call("cosine_similarity", i64(2, 2), i64(2, 2)), "expected floats, got int64"),
        (call("tensordot", f32(2, 3), f32(3), [0, 1], [0]), "expected as many different dims of each"),
    ],
    ids=str,
)
def test_what_cannot_be_multiplied_is_refused(case: Any, sentence: str) -> None:
    """Sizes and dtypes that do not go together are refused before the op runs."""
    assert sentence in str(refusal(case))
