"""The twin of edge_agent/plan/ops/arithmetic.py: type promotion and broadcasting against torch."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.ops import arithmetic
from tests.edge_agent.plan.agreement import (
    ALL_DTYPES,
    SOME_DTYPES,
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

TERNARY = {"addcmul", "addcdiv", "lerp", "where", "clamp", "clip", "masked_fill"}
NUMBERS = (2, -1, 2.5, True, 1j)


def two_operands(spec_name: str, a: Any, b: Any) -> Call:
    """A call of an op of two operands, with the keyword that some of them need."""
    keywords = {"rounding_mode": "floor"} if spec_name.endswith("_mode") else {}
    return call(spec_name.removeprefix("aten."), a, b, **keywords)


BINARY = [spec for spec in arithmetic.OPS if spec.name.split(".")[1] not in TERNARY]


@pytest.mark.parametrize("spec", BINARY, ids=lambda spec: spec.name)
def test_types_are_those_of_torch_for_every_pair(spec: Any) -> None:
    """Two operands of any dtypes, as tensors with dims, tensors without, or numbers, promote as in torch."""
    first, second = spec.parameters[:2]
    ran = 0
    for a, b in itertools.product(SOME_DTYPES, SOME_DTYPES):
        if "Scalar" in (first.kind, second.kind):
            break
        for left, right in (((2, 3), (3,)), ((3,), ()), ((), (2, 1))):
            ran += assert_agrees_where_torch_runs(two_operands(spec.name, T(a, left), T(b, right)))
    for dtype, number, shape in itertools.product(ALL_DTYPES, NUMBERS, ((2, 3), ())):
        if second.kind == "Scalar" or (spec.numbers and first.kind == "Tensor"):
            ran += assert_agrees_where_torch_runs(two_operands(spec.name, T(dtype, shape), number))
        if first.kind == "Scalar":
            ran += assert_agrees_where_torch_runs(two_operands(spec.name, number, T(dtype, shape)))
    assert ran


SHAPES = st.lists(st.sampled_from([1, 2, 3]), max_size=4)


@given(
    name=st.sampled_from(["add.Tensor", "where.self", "addcmul", "lerp.Tensor", "clamp.Tensor"]),
    shapes=st.tuples(SHAPES, SHAPES, SHAPES),
)
def test_shapes_broadcast_as_in_torch(name: str, shapes: tuple[list[int], ...]) -> None:
    """Whatever shapes torch broadcasts, the checker broadcasts to the same, also when it does not know the sizes."""
    a, b, c = (tuple(shape) for shape in shapes)
    operands = (f32(*a), f32(*b)) if name == "add.Tensor" else (f32(*a), f32(*b), f32(*c))
    if name == "where.self":
        operands = (boolean(*a), f32(*b), f32(*c))
    assert_agrees_where_torch_runs(call(name, *operands))


@pytest.mark.parametrize("a", ALL_DTYPES)
def test_ops_of_three_operands_are_as_in_torch(a: str) -> None:
    """Conditions, clamps, fused products and fills have torch's dtype, whatever their parts have."""
    ran = 0
    for b in ALL_DTYPES:
        x, y, z = T(a, (2, 3)), T(b, (3,)), T(b, ())
        for case in (
            call("addcmul", x, y, z, value=2),
            call("addcdiv", x, y, z),
            call("lerp.Scalar", x, y, 0.3),
            call("lerp.Tensor", x, y, y),
            call("where.self", boolean(2, 1), x, y),
            call("clamp.Tensor", x, y, z),
            call("clamp.Tensor", x, None, z),
            call("clip.Tensor", x, max=y),
            call("clamp_min.Tensor", x, z),
            call("clamp_max.Tensor", x, y),
            call("masked_fill.Tensor", x, boolean(3), z),
            call("fill.Tensor", x, z),
            call("copy", x, y),
        ):
            ran += assert_agrees_where_torch_runs(case)
    for number in NUMBERS:
        x = T(a, (2, 3))
        for case in (
            call("clamp", x, number),
            call("clamp", x, 0, number),
            call("clip", x, max=number),
            call("clamp_min", x, number),
            call("clamp_max", x, number),
            call("where.ScalarOther", boolean(3), x, number),
            call("where.ScalarSelf", boolean(2, 3), number, x),
            call("where.Scalar", boolean(2), number, 1),
            call("masked_fill.Scalar", x, boolean(4, 1, 3), number),
            call("fill.Scalar", x, number),
        ):
            ran += assert_agrees_where_torch_runs(case)
    assert ran


@pytest.mark.parametrize(
    "case",
    [
        call("add.Tensor", f32(3), f32(3), alpha=2),
        call("rsub.Scalar", f32(3), 1, 2),
        call("div.Tensor_mode", f32(3), f32(3), rounding_mode=None),
        call("div.Scalar_mode", i64(3), 2, rounding_mode="trunc"),
        call("prelu", f32(2, 3), f32(3)),
        call("_prelu_kernel", f32(2, 3), f32(1, 3)),
        call("complex", f32(2, 1), f32(3)),
    ],
    ids=str,
)
def test_arguments_beside_the_operands_are_bound(case: Any) -> None:
    """Factors and modes are passed on to the op."""
    assert_agrees(case)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("add.Tensor", f32(2), f32(3)), "expected dims that broadcast, got 2 and 3"),
        (call("add.Tensor", T("uint16", (2,)), T("int32", (2,))), "expected dtypes that promote to a common one"),
        (call("maximum", f32(2), 2), "expected a tensor for other, got 2"),
        (call("add.Tensor", f32(2), "two"), "expected a number for other, got 'two'"),
        (call("sub.Tensor", boolean(2), boolean(2)), "expected numbers to subtract, got bools"),
        (
            call("mul.Scalar", T("float16", (2,)), 1j),
            "expected a dtype with a complex counterpart that may travel, got float16",
        ),
        (call("floor_divide", T("complex64", (2,)), 2), "expected real numbers, got complex64"),
        (call("atan2", T("complex64", (2,)), f32(2)), "expected real numbers, got complex64"),
        (call("hypot", i64(2), i64(2)), "expected floats, got int64"),
        (call("logaddexp", i64(2), i64(2)), "expected floats or complex numbers, got int64"),
        (call("bitwise_and.Tensor", f32(2), f32(2)), "expected bools or integers, got float32"),
        (call("gcd", f32(2), f32(2)), "expected integers, got float32"),
        (call("heaviside", f32(2), i64(2)), "expected two tensors of one dtype of real numbers, got float32 and int64"),
        (
            call("div.Tensor_mode", f32(2), f32(2), rounding_mode="up"),
            "expected a rounding_mode of None, 'trunc' or 'floor', got 'up'",
        ),
        (call("clamp", f32(2)), "expected a least or a greatest value, got neither"),
        (call("clamp.Tensor", T("complex64", (2,)), f32(2)), "expected real numbers, got complex64"),
        (call("lerp.Scalar", f32(2), T("float64", (2,)), 1), "expected a start, an end and a weight of one dtype"),
        (call("addcdiv", i64(2), i64(2), i64(2)), "expected a dividend or a divisor of floats"),
        (call("where.self", f32(2), f32(2), f32(2)), "expected a condition of bool, uint8, got float32"),
        (call("masked_fill.Tensor", f32(2), boolean(2), f32(2)), "expected a value with 0 dims, got float32[2]"),
        (call("copy", f32(2), f32(3, 2)), "expected a source that broadcasts to float32[2], got float32[3, 2]"),
        (call("prelu", f32(2), T("float64", (2,))), "expected an input and a weight of one dtype"),
        (call("complex", i64(2), i64(2)), "expected two parts of float32, or of float64"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(case: Any, sentence: str) -> None:
    """Operands that do not go together are refused before the op runs, with what was expected."""
    assert sentence in str(refusal(case))
