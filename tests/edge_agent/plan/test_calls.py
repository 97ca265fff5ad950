"""Whether a call fits a plan, and what is said if it does not."""

from __future__ import annotations

import pytest

from edge_agent.plan.calls import Argument, bind_sizes
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed
from edge_agent.plan.format import Graph, Input, Symbol
from tests.edge_agent.plan.graphs import graph_of


def plan() -> Graph:
    """A plan that takes rows and as many targets, an even number of them, a number, and state."""
    return graph_of(
        [
            Input(name="x", dtype="float32", shape=["rows", 6]),
            Input(name="y", dtype="int64", shape=["rows"]),
            Input(name="rate", dtype="float64", kind="number"),
            Input(name="w", dtype="float32", shape=[6, 6], kind="state"),
        ],
        [],
        [0],
        symbols=[Symbol(name="rows", low=2, high=64)],
        conditions=[["eq", ["mod", "rows", 2], 0]],
    )


X, Y, RATE = ("float32", (4, 6)), ("int64", (4,)), ("float64", ())


def test_symbols_are_bound_by_the_arguments() -> None:
    """A size stands where the plan has a symbol."""
    assert bind_sizes(plan(), [X, Y, RATE]) == {"rows": 4}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([X, Y], "the arguments: expected 3 of them, got 2"),
        ([("float64", (4, 6)), Y, RATE], "x: expected float32[rows, 6] with rows from 2 to 64, got float64[4, 6]"),
        ([("float32", (4,)), Y, RATE], "x: expected float32[rows, 6] with rows from 2 to 64, got float32[4]"),
        ([("float32", (4, 5)), Y, RATE], "x: expected float32[rows, 6] with rows = 4, got float32[4, 5]"),
        ([X, ("int64", (5,)), RATE], "y: expected int64[rows] with rows = 4, got int64[5]"),
        ([X, Y, ("float64", (1,))], "rate: expected a number (float64), got float64[1]"),
        (
            [("float32", (1, 6)), ("int64", (1,)), RATE],
            "x: expected float32[rows, 6] with rows from 2 to 64, got float32[1, 6]",
        ),
        (
            [("float32", (66, 6)), ("int64", (66,)), RATE],
            "x: expected float32[rows, 6] with rows from 2 to 64, got float32[66, 6]",
        ),
        ([None, ("int64", (1,)), RATE], "y: expected int64[rows] with rows from 2 to 64, got int64[1]"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_told(arguments: list[Argument], sentence: str) -> None:
    """The error names the argument, what was expected and what came."""
    with pytest.raises(ArgumentMismatch) as caught:
        bind_sizes(plan(), arguments)
    assert str(caught.value) == sentence


def test_a_condition_that_fails_is_told() -> None:
    """The error names the condition, and the sizes for which it does not hold."""
    with pytest.raises(ConditionFailed) as caught:
        bind_sizes(plan(), [("float32", (5, 6)), ("int64", (5,)), RATE])
    assert str(caught.value) == "expected sizes with rows % 2 == 0, got rows = 5"
    assert caught.value.sizes == {"rows": 5}


def test_an_argument_that_is_not_known_is_skipped() -> None:
    """Before a pointer's shape is known, what it would tell stays open, and so do the conditions on it."""
    assert bind_sizes(plan(), [None, Y, None]) == {"rows": 4}
    assert bind_sizes(plan(), [None, None, RATE]) == {}
    assert bind_sizes(plan(), [None, None, None]) == {}


def compound() -> Graph:
    """A plan that takes pairs: twice as many rows and one more, as its other argument has."""
    return graph_of(
        [
            Input(name="x", dtype="float32", shape=[["add", ["mul", 2, "n"], 1]]),
            Input(name="y", dtype="float32", shape=[["mul", "n", "m"], "m"]),
        ],
        [],
        [0],
        symbols=[Symbol(name="n", low=1), Symbol(name="m")],
    )


def test_a_symbol_is_told_by_a_multiple_of_it() -> None:
    """A dim of 2 n + 1 tells n; others must then agree."""
    graph = compound()
    assert bind_sizes(graph, [("float32", (7,)), ("float32", (6, 2))]) == {"n": 3, "m": 2}
    with pytest.raises(ArgumentMismatch) as caught:
        bind_sizes(graph, [("float32", (6,)), None])
    assert str(caught.value) == "x: expected float32[2 * n + 1] with n of 1 or more, got float32[6]"
    with pytest.raises(ArgumentMismatch) as caught:
        bind_sizes(graph, [("float32", (7,)), ("float32", (5, 2))])
    assert str(caught.value) == "y: expected float32[n * m, m] with n = 3 and m = 2, got float32[5, 2]"
    with pytest.raises(ArgumentMismatch) as caught:
        bind_sizes(graph, [("float32", (1,)), None])
    assert str(caught.value) == "x: expected float32[2 * n + 1] with n of 1 or more, got float32[1]"
