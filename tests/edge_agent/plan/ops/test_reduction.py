"""The twin of edge_agent/plan/ops/reduction.py: sums, extremes, statistics and running sums against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from edge_agent.plan.ops import reduction
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

CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "sum.default": [((), {}), ((), {"dtype": torch.float64})],
    "prod.default": [((), {}), ((), {"dtype": torch.int32})],
    "sum.dim_IntList": [
        (([0],), {}),
        (([0, -1], True), {}),
        ((None,), {}),
        (([],), {}),
        ((1,), {"dtype": torch.int64}),
    ],
    "prod.dim_int": [((1,), {}), ((-2, True), {"dtype": torch.float32})],
    "mean.default": [((), {}), ((), {"dtype": torch.float64})],
    "mean.dim": [(([1],), {}), (([0, 1], True), {}), ((None,), {"dtype": torch.float32})],
    "nansum.default": [((), {}), (([1], True), {}), ((), {"dtype": torch.float64})],
    "nanmean.default": [((), {}), (([1], True), {})],
    "max.default": [((), {})],
    "min.default": [((), {})],
    "amax.default": [((), {}), (([0],), {}), (([0, 1], True), {})],
    "amin.default": [((), {}), (([-1], True), {})],
    "aminmax.default": [((), {}), ((), {"dim": 1}), ((), {"dim": 0, "keepdim": True})],
    "max.dim": [((0,), {}), ((-1, True), {})],
    "min.dim": [((1,), {})],
    "median.dim": [((0,), {}), ((1, True), {})],
    "nanmedian.dim": [((0,), {})],
    "mode.default": [((), {}), ((0, True), {})],
    "argmax.default": [((), {}), ((1,), {}), ((0, True), {}), ((None, True), {})],
    "argmin.default": [((), {}), ((-1,), {})],
    "all.default": [((), {})],
    "any.default": [((), {})],
    "all.dim": [((0,), {}), ((1, True), {})],
    "any.dim": [((0,), {}), ((-1, True), {})],
    "all.dims": [((), {}), (([0, 1],), {}), (([],), {})],
    "any.dims": [((), {}), (([0], True), {}), ((None, True), {})],
    "std.default": [((), {}), ((False,), {})],
    "var.default": [((), {})],
    "std.correction": [((), {}), (([0],), {"correction": 0}), ((), {"keepdim": True})],
    "std.dim": [((None,), {}), (([1], False, True), {})],
    "var.correction": [(([0],), {"correction": 0.5}), (([0, 1],), {"keepdim": True})],
    "var.dim": [(([1],), {})],
    "std_mean.default": [((), {})],
    "var_mean.default": [((), {})],
    "std_mean.correction": [(([0],), {"correction": 0})],
    "std_mean.dim": [(([1], True, True), {})],
    "var_mean.correction": [(([0],), {"keepdim": True})],
    "var_mean.dim": [(([1],), {})],
    "median.default": [((), {})],
    "nanmedian.default": [((), {})],
    "logsumexp.default": [(([0],), {}), (([0, 1], True), {})],
    "linalg_vector_norm.default": [((), {}), ((1, [0], True), {}), ((2, None), {"dtype": torch.float64})],
    "norm.Scalar": [((), {}), ((1,), {})],
    "norm.ScalarOpt_dim": [((2, [1]), {}), ((None, [0], True), {})],
    "norm.ScalarOpt_dim_dtype": [((2, [1], False), {"dtype": torch.float64})],
    "count_nonzero.default": [((), {}), ((1,), {})],
    "count_nonzero.dim_IntList": [(([0, 1],), {})],
    "cumsum.default": [((0,), {}), ((1,), {"dtype": torch.float64})],
    "cumprod.default": [((-1,), {})],
    "cummax.default": [((0,), {})],
    "cummin.default": [((1,), {})],
    "logcumsumexp.default": [((1,), {})],
    "trace.default": [((), {})],
}


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {f"aten.{name}" for name in CASES} == {spec.name for spec in reduction.OPS}


@pytest.mark.parametrize("name", CASES)
def test_types_are_those_of_torch_for_every_dtype(name: str) -> None:
    """Whatever dtype torch reduces in, and whichever dims stay, the checker says so."""
    ran = [
        assert_agrees_where_torch_runs(call(name, T(dtype, shape), *args, **kwargs))
        for args, kwargs in CASES[name]
        for dtype in ALL_DTYPES
        for shape in ((4, 3), (2, 5))
    ]
    assert any(ran)


@given(
    name=st.sampled_from(["sum.dim_IntList", "amax", "any.dims", "var.correction", "logsumexp", "mean.dim"]),
    shape=st.lists(st.sampled_from([1, 2, 3]), max_size=4),
    dims=st.lists(st.integers(-4, 3), max_size=3),
    keepdim=st.booleans(),
)
def test_dims_are_counted_as_in_torch(name: str, shape: list[int], dims: list[int], keepdim: bool) -> None:
    """Negative, repeated and missing dims mean for the checker what they mean for torch."""
    keywords = {"keepdim": keepdim} if name == "var.correction" else {}
    args = (dims,) if keywords else (dims, keepdim)
    case = Call(
        f"aten.{name}" if "." in name else f"aten.{name}.default", (T("float32", tuple(shape)), *args), keywords
    )
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize("name", ["amax", "argmax", "max.default", "sum.default", "mean.default"])
def test_a_tensor_without_elements_is_as_in_torch(name: str) -> None:
    """What has no largest element is refused by both; a sum of nothing is none of that."""
    case = call(name, f32(0, 3))
    assert assert_agrees_where_torch_runs(case) == (refusal(case) is None)


def test_a_tensor_without_dims_is_as_in_torch() -> None:
    """A tensor without dims has dim 0 and -1 for a reduction."""
    for case in (call("sum.dim_IntList", f32(), [0]), call("max.dim", f32(), -1), call("cumsum", f32(), 0)):
        assert_agrees(case)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("mean.default", i64(3)), "expected floats to take the mean of, got int64"),
        (call("sum.dim_IntList", f32(3), [1]), "expected dim from -1 to 0, got 1"),
        (call("sum.dim_IntList", f32(3, 2), [0, -2]), "expected each dim once in dim, got [0, 0]"),
        (call("max.default", T("complex64", (3,))), "expected real numbers to compare, got complex64"),
        (call("amax", f32(0, 3), [0]), "expected at least one element to reduce, got none in dim 0"),
        (call("argmax", boolean(3)), "expected real numbers of"),
        (call("var.correction", i64(3)), "expected a tensor of bfloat16"),
        (call("nansum", T("complex64", (3,))), "expected real numbers, got complex64"),
        (call("trace", f32(3)), "expected a matrix with 2 dims, got float32[3]"),
        (call("sum.dim_IntList", f32(3), [0], "yes"), "expected True or False for keepdim, got 'yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_reduced_is_refused(case: Any, sentence: str) -> None:
    """A dim that is not there, or a dtype without what the op needs, is refused before the op runs."""
    assert sentence in str(refusal(case))
