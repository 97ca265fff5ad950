"""Graphs with sub-graphs, written by hand, that several tests use: one for each op that takes some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from edge_agent.plan.format import Argument, Dim, Graph, Input, Op, Special, Symbol
from tests.edge_agent.plan.graphs import graph_of, listed, op, value

__all__ = ["EXAMPLES", "Example", "branch", "halving", "inner", "nested", "running", "taking"]

N = Symbol(name="n", low=1)


def taking(name: str, dtype: str, *shape: Dim) -> Input:
    """An input of a sub-graph."""
    return Input(name=name, dtype=dtype, shape=list(shape))


def inner(inputs: Sequence[Input], ops: Sequence[Op], outputs: Sequence[int], **changed: Any) -> Special:
    """A sub-graph as an argument."""
    graph = Graph(inputs=list(inputs), ops=list(ops), outputs=list(outputs), signature=None, tree=None, **changed)
    return Special(g=graph)


def control(name: str, *args: Argument, outputs: int = 1, **kwargs: Argument) -> Op:
    """A call of ``control.<name>.default``."""
    return Op(name=f"control.{name}.default", args=list(args), kwargs=kwargs, outputs=outputs)


def branch() -> Graph:
    """``x @ w`` where x sums to more than 0, else ``x`` as it is."""
    x, w = taking("x", "float32", "n", 2), taking("w", "float32", 2, 2)
    return graph_of(
        [x, w],
        [
            op("sum.default", value(0)),
            op("gt.Scalar", value(2), 0),
            control(
                "cond",
                value(3),
                inner([x, w], [op("mm.default", value(0), value(1))], [2]),
                inner([x, w], [], [0]),
                listed(value(0), value(1)),
            ),
        ],
        [4],
        symbols=[N],
        name="branch",
    )


def halving(limit: int | None = None) -> Graph:
    """x, halved as often as its largest element is above ``top``, and how often that was; at most ``limit`` times."""
    x, count, top = taking("x", "float32", "n"), taking("count", "int64"), taking("top", "float32")
    asked = [op("amax.default", value(0)), op("gt.Tensor", value(3), value(2))]
    if limit is not None:
        asked += [op("lt.Scalar", value(1), limit), op("logical_and.default", value(4), value(5))]
    return graph_of(
        [x, top],
        [
            op("full.default", listed(), 0, dtype=Special(d="int64")),
            control(
                "while_loop",
                inner([x, count, top], asked, [2 + len(asked)]),
                inner([x, count, top], [op("div.Tensor", value(0), 2), op("add.Tensor", value(1), 1)], [3, 4]),
                listed(value(0), value(2)),
                listed(value(1)),
                outputs=2,
            ),
        ],
        [3, 4],
        symbols=[N],
        name="halving",
    )


def running(*, reverse: bool = False) -> Graph:
    """The running sum of the rows of x, each scaled by w, and its double at each row; from the last row on."""
    total, row, w = taking("total", "float32", 3), taking("row", "float32", 3), taking("w", "float32", 3)
    step = [
        op("mul.Tensor", value(1), value(2)),
        op("add.Tensor", value(0), value(3)),
        op("mul.Tensor", value(4), 2),
    ]
    return graph_of(
        [taking("x", "float32", "n", 3), w],
        [
            op("zeros.default", listed(3)),
            control(
                "scan",
                inner([total, row, w], step, [4, 5]),
                listed(value(2)),
                listed(value(0)),
                listed(value(1)),
                outputs=2,
                **({"reverse": True} if reverse else {}),
            ),
        ],
        [3, 4],
        symbols=[N],
        name="running",
    )


def nested(depth: int) -> Graph:
    """A branch in a branch in a branch, ``depth`` of them: x plus 1 for each whose predicate holds."""
    x, yes = taking("x", "float32"), taking("yes", "bool")
    ops = [op("add.Tensor", value(0), 1)]
    for _ in range(depth):
        taken = inner([x, yes], ops, [2])
        ops = [control("cond", value(1), taken, inner([x, yes], [], [0]), listed(value(0), value(1)))]
    return graph_of([x, yes], ops, [2], name="nested")


class Example(NamedTuple):
    """A graph of one op that takes sub-graphs, a call of it, and what plain torch gives for that."""

    name: str
    graph: Graph
    args: list[torch.Tensor]
    results: list[torch.Tensor]


def _examples() -> list[Example]:
    generator = torch.Generator().manual_seed(5)
    x, w = torch.rand(3, 2, generator=generator), torch.rand(2, 2, generator=generator)
    big, top = torch.tensor([3.0, -2.0, 20.0]), torch.tensor(1.5)
    halved, count = big, 0
    while halved.amax() > top:
        halved, count = halved / 2, count + 1
    rows, scale = torch.rand(4, 3, generator=generator), torch.rand(3, generator=generator)
    sums = (rows * scale).cumsum(0)
    return [
        Example("control.cond.default", branch(), [x, w], [x @ w]),
        Example("control.while_loop.default", halving(), [big, top], [halved, torch.tensor(count)]),
        Example("control.scan.default", running(), [rows, scale], [sums[-1], 2 * sums]),
    ]


EXAMPLES = _examples()
"""One for each op."""
