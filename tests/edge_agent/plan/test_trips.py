"""How often a loop runs at most, and what that costs."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.plan.checker import check_graph
from edge_agent.plan.cost import cost_of
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Graph, Op, Special, Symbol
from edge_agent.plan.sizes import Sizes
from edge_agent.plan.trips import Trips
from tests.edge_agent.plan.control_graphs import branch, control, halving, inner, nested, running, taking
from tests.edge_agent.plan.graphs import graph_of, listed, op, value


def steps(graph: Graph) -> str | None:
    """The bound of a graph's one loop."""
    checked = check_graph(graph)
    (index,) = checked.inner
    most = Trips(Sizes(graph.symbols)).most(checked, index)
    return None if most is None else render(most)


def counting(start: Op, comparison: Op, change: Op, dtype: str = "int64") -> Graph:
    """A loop over a count: value 0 in the condition and the body; an operand of the same type is value 1."""
    count, other, x = taking("count", dtype), taking("other", dtype), taking("x", "float32", "n")
    return graph_of(
        [x, other],
        [
            start,
            control(
                "while_loop",
                inner([count, other], [comparison], [2]),
                inner([count, other], [change], [2]),
                listed(value(2)),
                listed(value(1)),
            ),
        ],
        [3],
        symbols=[Symbol(name="n", low=1)],
    )


INT = Special(d="int64")
ZERO = op("full.default", listed(), 0, dtype=INT)
UP = op("add.Tensor", value(0), 1)


@pytest.mark.parametrize(
    ("start", "comparison", "change", "most"),
    [
        (ZERO, op("lt.Scalar", value(0), 10), UP, "10"),
        (ZERO, op("le.Scalar", value(0), 10), UP, "11"),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Scalar", value(0), 3), "4"),
        (ZERO, op("lt.Scalar", value(0), -5), UP, "0"),
        (ZERO, op("lt.Scalar", value(0), Special(s="n")), UP, "n"),
        (ZERO, op("lt.Scalar", value(0), Special(s=["mul", 2, "n"])), op("add.Tensor", value(0), 2), "n"),
        (op("ones.default", listed(), dtype=INT), op("lt.Scalar", value(0), 10), UP, "9"),
        (op("full.default", listed(), 7, dtype=INT), op("gt.Scalar", value(0), 0), op("sub.Tensor", value(0), 2), "4"),
        (op("full.default", listed(), 7, dtype=INT), op("ge.Scalar", value(0), 0), op("add.Tensor", value(0), -1), "8"),
        # what has none
        (ZERO, op("ne.Scalar", value(0), 10), UP, None),
        (ZERO, op("lt.Tensor", value(0), value(1)), UP, None),
        (ZERO, op("lt.Scalar", value(1), 10), UP, None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", value(0), value(1)), None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", value(1), 1), None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", value(0), 0), None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", value(0), -1), None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", value(0), 1, alpha=0), None),
        (ZERO, op("lt.Scalar", value(0), 10), op("mul.Tensor", value(0), 2), None),
        (ZERO, op("lt.Scalar", value(0), 1 << 40), UP, str(1 << 40)),
        (ZERO, op("lt.Scalar", value(0), (1 << 62) + 1), UP, None),
        (ZERO, op("lt.Scalar", value(0), other=10), UP, None),
        (ZERO, op("lt.Scalar", self=value(0), other=10), UP, None),
        (ZERO, op("lt.Scalar", value(0), 10), op("add.Tensor", self=value(0), other=1), None),
        (op("full.default", size=listed(), fill_value=0, dtype=INT), op("lt.Scalar", value(0), 10), UP, None),
        (op("clone.default", self=value(1)), op("lt.Scalar", value(0), 10), UP, None),
        (op("clone.default", value(1)), op("lt.Scalar", value(0), 10), UP, None),
        (op("neg.default", value(1)), op("lt.Scalar", value(0), 10), UP, None),
    ],
)
def test_loops_that_count(start: Op, comparison: Op, change: Op, most: str | None) -> None:
    """A constant start, a constant step towards the limit; of anything else, nobody can say."""
    assert steps(counting(start, comparison, change)) == most


def test_other_counts_and_conditions() -> None:
    """A short integer overflows before it is there; a float may stand still; of several conditions, each may end it."""
    for dtype in ("int8", "float32"):
        start = op("full.default", listed(), 0, dtype=Special(d=dtype))
        assert steps(counting(start, op("lt.Scalar", value(0), 100), UP, dtype)) is None
    start = op("full.default", listed(), 0, dtype=Special(d="int32"))
    assert steps(counting(start, op("lt.Scalar", value(0), 100), UP, "int32")) == "100"
    for limit in ((1 << 31) - 1 + 1, Special(s="n")):
        assert steps(counting(start, op("lt.Scalar", value(0), limit), UP, "int32")) is None
    assert steps(halving()) is None
    assert steps(halving(12)) == "12"
    assert steps(running()) == "n"


def test_what_they_cost() -> None:
    """A branch as its dearer side, a loop as often as it runs at most; where nobody knows that, once."""
    n, w = {"n": 5}, 2 * 2
    assert cost_of(check_graph(branch())).at(n).flops == 5 * 2 + 1 + 2 * 5 * w
    once = cost_of(check_graph(halving()))
    asked, done = 5 + 1, 5 + 1
    assert (once.bounded, once.at(n).flops) == (False, 1 + (asked + done) + asked)
    assert str(once).endswith("\nwithout a bound: it has a loop that decides by itself")
    assert str(once.at(n)).endswith(", and as often as its loops run")
    often = cost_of(check_graph(halving(10)))
    asked += 1 + 1  # the count's own limit
    assert (often.bounded, often.at(n).flops) == (True, 1 + 10 * (asked + done) + asked)
    assert cost_of(check_graph(running())).at(n).flops == 3 + 5 * 3 * 3
    assert cost_of(check_graph(nested(8))).at({}).flops == 1


def test_the_memory_of_a_loop() -> None:
    """What is carried and made in one step, and what a scan has given so far: not all steps' values."""
    n = {"n": 1000}
    arguments = 1000 * 4 + 4
    # what was carried before, and what is carried now; beside it counts and single numbers
    assert arguments + 2 * 4000 <= cost_of(check_graph(halving())).at(n).peak_bytes <= arguments + 2 * 4000 + 64
    rows = 1000 * 3 * 4
    assert 2 * rows <= cost_of(check_graph(running())).at(n).peak_bytes <= 2 * rows + 128


def test_memory_that_a_branch_holds_on_to() -> None:
    """A result may be a view of what the branch was given: as long as it is used, that is not free."""
    x, yes = taking("x", "float32", "n"), taking("yes", "bool")
    first = inner([x], [op("select.int", value(0), 0, 0)], [1])
    ops: list[Any] = [
        op("add.Tensor", value(0), 1),
        control("cond", value(1), first, first, listed(value(2))),
        op("mul.Tensor", value(0), value(3)),
        op("sum.default", value(4)),
    ]
    graph = graph_of([x, yes], ops, [5], symbols=[Symbol(name="n", low=1)])
    assert cost_of(check_graph(graph)).at({"n": 1000}).peak_bytes >= 3 * 4000
