"""The twin of edge_agent/plan/ops/creation.py: what is made of sizes and numbers, against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from edge_agent.plan.checker import check_graph
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import Graph, Input, Op, Special, Symbol
from edge_agent.plan.ops import creation
from tests.edge_agent.plan.agreement import (
    Call,
    assert_agrees,
    assert_agrees_where_torch_runs,
    call,
    f32,
    i64,
    loaded,
    refusal,
)

CASES = [
    call("full", [2, 3], 1.5),
    call("full", [2], 1),
    call("full", [], True),
    call("full", [2], 1j),
    call("full", [2], 1, dtype=torch.float64, pin_memory=False),
    call("ones", [2, 3]),
    call("zeros", [0], dtype=torch.int32),
    call("full_like", i64(2, 3), 2.5),
    call("full_like", f32(2, 3), 2, dtype=torch.bool, memory_format=torch.preserve_format),
    call("ones_like", i64(2, 3)),
    call("zeros_like", f32(2), dtype=torch.complex64),
    call("new_full", i64(2), [3, 1], 2),
    call("new_ones", i64(2), [3]),
    call("new_zeros", f32(2), [3], dtype=torch.int8),
    call("scalar_tensor", 2),
    call("scalar_tensor", 2.5, dtype=torch.float64),
    call("arange", 5),
    call("arange", 2.5),
    call("arange", 0),
    call("arange.start", 2, 5),
    call("arange.start", 0.5, 3, dtype=torch.float64),
    call("arange.start_step", 0, 10, 3),
    call("arange.start_step", 10, 0, -4),
    call("arange.start_step", 0, 1, 0.3),
    call("arange.start_step", 0, 2.5, dtype=torch.int64),
    call("arange.start_step", 0, 7, 2, dtype=torch.int32),
    call("linspace", 0, 1, 5),
    call("linspace", 0, 1, 0),
    call("linspace", 0, 1j, 3),
    call("linspace", 0, 9, 4, dtype=torch.int64),
    call("logspace", 0, 1, 3),
    call("logspace", 0, 1, 3, 2.0, dtype=torch.float64),
    call("eye", 3),
    call("eye.m", 2, 3, dtype=torch.bool),
    call("tril_indices", 3, 4),
    call("tril_indices", 3, 4, 1, dtype=torch.int32),
    call("triu_indices", 3, 4, -1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """The dtype follows from the number where none is given; the shape from the sizes."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in creation.OPS}


NUMBERS = st.one_of(st.integers(-6, 6), st.sampled_from([0.5, -1.5, 2.25, 3.0]))


@given(start=NUMBERS, end=NUMBERS, step=NUMBERS, dtype=st.sampled_from([None, torch.int64, torch.int32, torch.float64]))
def test_ranges_have_the_size_that_torch_gives_them(start: float, end: float, step: float, dtype: Any) -> None:
    """A range has torch's number of elements, in integers and in floats, forwards and backwards."""
    case = call("arange.start_step", start, end, step, dtype=dtype)
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@given(rows=st.integers(0, 5), columns=st.integers(0, 5), offset=st.integers(-6, 6))
def test_triangles_have_the_size_that_torch_gives_them(rows: int, columns: int, offset: int) -> None:
    """The indices of a triangle are as many as its elements."""
    assert_agrees(call("tril_indices", rows, columns, offset))
    assert_agrees(call("triu_indices", rows, columns, offset))


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("aten.arange.default", [Special(s="s0")], [5]),
        ("aten.arange.start", [Special(s="s0"), Special(s=["mul", 3, "s0"])], [10]),
        ("aten.arange.start_step", [0, Special(s="s0"), 2], [3]),
        ("aten.arange.start_step", [0, Special(s=["truediv", "s0", 2]), 0.5], [5]),
        ("aten.full.default", [Special(l=[Special(s="s0"), 2]), Special(s="s0")], [5, 2]),
        ("aten.eye.default", [Special(s=["add", "s0", 1])], [6, 6]),
        ("aten.linspace.default", [0, 1, Special(s="s0")], [5]),
    ],
)
def test_sizes_may_be_symbolic(name: str, args: list[Any], wanted: list[int]) -> None:
    """What is made of a size that is known only when the plan runs has a shape in that size."""
    graph = Graph(
        inputs=[Input(name="x", dtype="float32", shape=["s0"])],
        ops=[Op(name=name, args=args)],
        outputs=[1],
        signature=["t", ["t", 0], ["d"]],
        tree=0,
        symbols=[Symbol(name="s0", low=2)],
    )
    checked = check_graph(graph)
    assert [evaluate(dim, {"s0": 5}) for dim in checked.output_types[0].shape] == wanted
    (found,) = loaded(checked).run([torch.ones(5)], {"s0": 5})
    assert list(found.shape) == wanted


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("full", [-1], 1), "expected sizes of 0 or more, got [-1]"),
        (call("full", [2], "a"), "expected a number for fill_value, got 'a'"),
        (call("zeros", [2], pin_memory=True), "expected memory that is not pinned, got pin_memory of True"),
        (call("arange", 1j), "expected real numbers, got complex and int"),
        (call("arange.start_step", 0, 5, 0), "expected a step other than 0 that leads from start to end, got 0, 5, 0"),
        (call("arange", float("inf")), "expected finite numbers, got 0, inf, 1"),
        (call("arange", 1e300), "expected a range of fewer elements"),
        (call("arange", 5, dtype=torch.bool), "expected a dtype of real numbers, got bool"),
        (call("linspace", 0, 1j, 3, dtype=torch.float32), "expected a complex dtype, got float32"),
        (call("tril_indices", 1 << 40, 2), "expected sizes below 2147483648"),
        (call("tril_indices", 3, 2, dtype=torch.bool), "expected a dtype of real numbers, got bool"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(case: Any, sentence: str) -> None:
    """Sizes below 0, endless ranges and pinned memory are refused before the op runs."""
    assert sentence in str(refusal(case))
