"""Branches and loops in the torch runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.format import Graph, Special, Symbol
from edge_agent.runtimes.torch import LoadedPlan
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES
from tests.edge_agent.plan.agreement import loaded
from tests.edge_agent.plan.control_graphs import (
    EXAMPLES,
    Example,
    branch,
    control,
    halving,
    inner,
    nested,
    running,
    taking,
)
from tests.edge_agent.plan.graphs import graph_of, listed, op, value


def run(graph: Graph, *args: torch.Tensor, plan: LoadedPlan | None = None) -> list[torch.Tensor]:
    """A graph's results."""
    sizes = bind_sizes(graph, [(DTYPE_NAMES[one.dtype], tuple(one.shape)) for one in args])
    return (plan or loaded(check_graph(graph))).run(args, sizes)


@pytest.mark.parametrize("example", EXAMPLES, ids=[one.name for one in EXAMPLES])
def test_they_give_what_plain_torch_does(example: Example) -> None:
    """Each op, as often as wanted."""
    plan = loaded(check_graph(example.graph))
    for _ in range(2):
        for found, wanted in zip(run(example.graph, *example.args, plan=plan), example.results, strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_scan_from_the_last_row() -> None:
    """Outputs keep the places of their rows."""
    x, w = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    total, rows = run(running(reverse=True), x, w)
    torch.testing.assert_close(total, x.sum(0))
    torch.testing.assert_close(rows, torch.stack([2 * x.sum(0), 2 * x[1]]))


def test_a_loop_that_need_not_run() -> None:
    """It gives what it was given, as memory of its own."""
    x = torch.ones(3)
    same, count = run(halving(), x, torch.tensor(2.0))
    assert torch.equal(same, x)
    assert int(count) == 0
    same.zero_()
    assert torch.equal(x, torch.ones(3))
    (given,) = run(branch(), -x.reshape(3, 1).expand(3, 2), torch.eye(2))
    assert torch.equal(given, -torch.ones(3, 2))


def test_a_scan_over_no_rows() -> None:
    """It gives what is carried, and outputs of no rows, in their dtypes."""
    row = taking("row", "float32", 2)
    step = inner([taking("total", "int64"), row], [op("eq.Scalar", value(1), 0)], [0, 2])
    graph = graph_of(
        [taking("total", "int64"), taking("x", "float32", "n", 2)],
        [control("scan", step, listed(value(0)), listed(value(1)), listed(), outputs=2)],
        [2, 3],
        symbols=[Symbol(name="n")],
    )
    total, rows = run(graph, torch.tensor(7), torch.zeros(0, 2))
    assert int(total) == 7
    assert (rows.shape, rows.dtype) == ((0, 2), torch.bool)


def test_only_one_side_of_a_branch_runs() -> None:
    """What would fail on the other does not."""
    x, at = taking("x", "float32", 2), taking("at", "int64", 1)
    graph = graph_of(
        [x, at, taking("yes", "bool")],
        [
            control(
                "cond",
                value(2),
                inner([x, at], [op("index_select.default", value(0), 0, value(1))], [2]),
                inner([x, at], [op("narrow.default", value(0), 0, 1, 1)], [2]),
                listed(value(0), value(1)),
            )
        ],
        [3],
    )
    args = torch.tensor([1.0, 2.0]), torch.tensor([5])
    assert run(graph, *args, torch.tensor(False))[0].tolist() == [2.0]
    with pytest.raises(OpFailed) as caught:
        run(graph, *args, torch.tensor(True))
    error = caught.value
    assert (error.op, error.op_index) == ("aten.index_select.default", 1)
    assert str(error).startswith("op 1 of the plan, aten.index_select.default, failed with IndexError: ")
    assert error.__notes__ == ["while running index_select = aten.index_select.default(x, 0, at)"]
    assert run(nested(8), torch.tensor(1.0), torch.tensor(True))[0] == 2


def test_symbolic_numbers_and_lists_inside() -> None:
    """Sizes of the run are known inside, also where loops nest."""
    x = taking("x", "float32", "n")
    ones = [op("full.default", listed(Special(s="n")), 1.0), op("cat.default", listed(value(0), value(1)))]
    half = inner([x], [*ones, op("narrow.default", value(2), 0, 0, Special(s="n"))], [3])
    step = [
        control("cond", value(1), half, inner([x], [], [0]), listed(value(0))),
        op("mul.Tensor", value(2), Special(s=["add", "n", 1])),
    ]
    row = taking("row", "bool")
    graph = graph_of(
        [x, taking("flags", "bool", "m")],
        [control("scan", inner([x, row], step, [3]), listed(value(0)), listed(value(1)), listed())],
        [2],
        symbols=[Symbol(name="n", low=1), Symbol(name="m", low=1)],
    )
    for size in (2, 5):
        found = run(graph, torch.ones(size), torch.tensor([True, False, True]))[0]
        torch.testing.assert_close(found, torch.full((size,), float(size + 1) ** 3))


def test_it_can_be_left_between_ops_inside() -> None:
    """``between_ops`` is asked before each op of a sub-graph, with the op of the plan; what it raises ends the run."""

    class Enough(Exception):
        """Nobody wants more."""

    asked: list[int] = []

    def between(index: int) -> None:
        asked.append(index)
        if len(asked) == 1000:
            raise Enough

    plan = loaded(check_graph(halving()))
    plan.between_ops = between
    endless: Any = (torch.tensor([float("inf")]), torch.tensor(1.0))
    with pytest.raises(Enough) as caught:
        run(halving(), *endless, plan=plan)
    assert caught.value.__cause__ is None
    assert asked == [0, *[1] * 999]
    # also where a sub-graph has no op of its own
    yes = taking("yes", "bool")
    same = inner([yes], [], [0])
    idle = graph_of([yes], [control("while_loop", same, same, listed(value(0)), listed())], [1])
    plan = loaded(check_graph(idle))
    plan.between_ops = between
    asked.clear()
    with pytest.raises(Enough):
        run(idle, torch.tensor(True), plan=plan)
    assert torch.is_grad_enabled()
