"""Plans as people read them."""

from __future__ import annotations

import pytest

from edge_agent.plan.errors import UnknownOp
from edge_agent.plan.format import Input, Special, Symbol
from edge_agent.plan.readable import readable, render_type, step_text, value_names
from tests.edge_agent.plan.control_graphs import halving, nested
from tests.edge_agent.plan.graphs import double_abs, graph_of, listed, net, op, value


def test_the_tutorials_plan() -> None:
    """One op a line, under the names of inputs and ops, with a typed signature."""
    assert readable(double_abs()) == (
        "plan_double_abs(x: float32[2]) -> float32[2]:\n"
        "    add = aten.add.Tensor(x, x)\n"
        "    abs = aten.abs.default(add)\n"
        "    return abs"
    )


def test_a_network_with_state_and_a_symbol() -> None:
    """A long signature has a line for each input; state is told from what the user gives; ranges are named."""
    assert readable(net()[0], plan_name="digits") == (
        "digits(\n"
        "        x: float32[s0, 2],\n"
        "        fc1.weight: float32[3, 2] (state),\n"
        "        fc1.bias: float32[3] (state),\n"
        "        fc2.weight: float32[2, 3] (state),\n"
        "        fc2.bias: float32[2] (state),\n"
        ") -> float32[s0, 2]:\n"
        "    for s0 of 1 or more\n"
        "    linear = aten.linear.default(x, fc1.weight, fc1.bias)\n"
        "    relu = aten.relu.default(linear)\n"
        "    linear_1 = aten.linear.default(relu, fc2.weight, fc2.bias)\n"
        "    log_softmax = aten.log_softmax.int(linear_1, 1)\n"
        "    return log_softmax"
    )


def test_sub_graphs_stand_under_their_ops() -> None:
    """With a signature and names of their own, however deep."""
    assert readable(halving()) == (
        "halving(x: float32[n], top: float32[]) -> (float32[n], int64[]):\n"
        "    for n of 1 or more\n"
        "    full = aten.full.default([], 0, dtype=int64)\n"
        "    while_loop_0, while_loop_1 = control.while_loop.default(condition, body, [x, full], [top]):\n"
        "        condition(x: float32[n], count: int64[], top: float32[]) -> bool[]:\n"
        "            amax = aten.amax.default(x)\n"
        "            gt = aten.gt.Tensor(amax, top)\n"
        "            return gt\n"
        "        body(x: float32[n], count: int64[], top: float32[]) -> (float32[n], int64[]):\n"
        "            div = aten.div.Tensor(x, 2)\n"
        "            add = aten.add.Tensor(count, 1)\n"
        "            return (div, add)\n"
        "    return (while_loop_0, while_loop_1)"
    )
    assert readable(nested(2)).splitlines()[1:6] == [
        "    cond, = control.cond.default(yes, if_true, if_false, [x, yes]):",
        "        if_true(x: float32[], yes: bool[]) -> float32[]:",
        "            cond, = control.cond.default(yes, if_true, if_false, [x, yes]):",
        "                if_true(x: float32[], yes: bool[]) -> float32[]:",
        "                    add = aten.add.Tensor(x, 1)",
    ]


def test_a_step_of_a_sub_graph() -> None:
    """By its number in the plan, with the names that it has there."""
    steps = [step_text(halving(), number) for number in range(6)]
    assert steps == [
        "full = aten.full.default([], 0, dtype=int64)",
        "while_loop_0, while_loop_1 = control.while_loop.default(condition, body, [x, full], [top])",
        "amax = aten.amax.default(x)",
        "gt = aten.gt.Tensor(amax, top)",
        "div = aten.div.Tensor(x, 2)",
        "add = aten.add.Tensor(count, 1)",
    ]


def test_every_kind_of_argument() -> None:
    """Lists, dtypes, symbolic and complex numbers, constants and several outputs are written as in Python."""
    graph = graph_of(
        [Input(name="x", dtype="float32", shape=["n", "m"]), Input(name="rate", dtype="float64", kind="number")],
        [
            op("split.Tensor", value(0), 2, 1, outputs=1),
            op("unbind.int", value(0), outputs=3),
            op("sort.stable", value(0), outputs=2, stable=True),
            op("full.default", listed(Special(s=["mul", 2, "n"])), Special(c=(0.0, 1.0)), dtype=Special(d="complex64")),
            op("clone.default", value(0), memory_format=Special(o="memory_format:preserve_format")),
            op("index.Tensor", value(0), Special(t=[None, value(7)])),
        ],
        [2, 3, 5, 8, 9],
        symbols=[Symbol(name="n", low=2, high=8), Symbol(name="m")],
        conditions=[["eq", ["mod", "m", 2], 0]],
        tree=["d", "parts", ["l", 0, 1], "rest", ["t", 2, None], "n", 3, "c", 4],
        name="f",
    )
    assert readable(graph).splitlines()[3:] == [
        (
            ") -> {'parts': [float32[n, m], float32[m]], 'rest': (float32[m], None), "
            "'n': complex64[2 * n], 'c': float32[n, m]}:"
        ),
        "    for n from 2 to 8",
        "    for any m",
        "    if m % 2 == 0",
        "    split, = aten.split.Tensor(x, 2, 1)",
        "    unbind_0, _, unbind_2 = aten.unbind.int(x)",
        "    _, sort = aten.sort.stable(x, stable=True)",
        "    full = aten.full.default([2 * n], 1j, dtype=complex64)",
        "    clone = aten.clone.default(x, memory_format=memory_format:preserve_format)",
        "    index = aten.index.Tensor(x, (None, sort))",
        "    return {'parts': [split, unbind_0], 'rest': (unbind_2, None), 'n': full, 'c': clone}",
    ]
    assert readable(graph).splitlines()[1:3] == ["        x: float32[n, m],", "        rate: float64[] (number),"]


def test_names_are_unique() -> None:
    """An op's name gives way to an input's, and to those before it."""
    graph = graph_of(
        [Input(name="add", dtype="float32"), Input(name="add_1", dtype="float32")],
        [
            op("add.Tensor", value(0), value(1)),
            op("add.Tensor", value(2), value(0)),
            op("add.Tensor", value(3), value(0)),
        ],
        [4],
    )
    assert value_names(graph) == ["add", "add_1", "add_2", "add_3", "add_4"]
    assert step_text(graph, 1) == "add_3 = aten.add.Tensor(add_2, add)"


def test_a_plan_that_does_not_type_is_not_shown() -> None:
    """What `readable` shows has been checked."""
    with pytest.raises(UnknownOp, match=r"expected an op of the registry, got 'aten.add_.Tensor' \(op 0 of the plan\)"):
        readable(graph_of([Input(name="x", dtype="float32")], [op("add_.Tensor", value(0), value(0))], [1]))


def test_a_type_without_dims() -> None:
    """A scalar has empty brackets."""
    from edge_agent.plan.format import TensorType

    assert render_type(TensorType(dtype="int64", shape=[])) == "int64[]"
