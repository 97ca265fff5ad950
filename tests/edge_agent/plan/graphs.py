"""Graphs that several tests use."""

from __future__ import annotations

from typing import Any

import torch

from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.checker import check_graph
from edge_agent.plan.format import (
    FORMAT_VERSION,
    Argument,
    Expression,
    Graph,
    Input,
    Manifest,
    Op,
    Special,
    Symbol,
    Tree,
    digest_of,
    encode_graph,
)
from edge_agent.runtimes.torch_tensors import encode_tensor

__all__ = ["bundle_of", "double_abs", "graph_of", "listed", "net", "op", "residual_blocks", "value"]


def value(number: int) -> Special:
    """A reference to a value."""
    return Special(v=number)


def listed(*elements: Argument) -> Special:
    """A list argument."""
    return Special(l=list(elements))


def op(name: str, *args: Argument, outputs: int = 1, **kwargs: Argument) -> Op:
    """A call of ``aten.<name>``."""
    return Op(name=f"aten.{name}", args=list(args), kwargs=kwargs, outputs=outputs)


def graph_of(
    inputs: list[Input],
    ops: list[Op],
    outputs: list[int],
    *,
    symbols: list[Symbol] | None = None,
    conditions: list[Expression] | None = None,
    tree: Tree = None,
    **rest: Any,
) -> Graph:
    """A graph that takes its user inputs by position and returns its outputs as a tuple; a single one as it is."""
    given = sum(one.kind != "state" for one in inputs)
    returned: Tree = 0 if len(outputs) == 1 else ["t", *range(len(outputs))]
    return Graph(
        inputs=inputs,
        ops=ops,
        outputs=outputs,
        signature=["t", ["t", *range(given)], ["d"]],
        tree=returned if tree is None else tree,
        symbols=symbols or [],
        conditions=conditions or [],
        **rest,
    )


def double_abs() -> Graph:
    """The tutorial's plan: its input doubled, then made positive."""
    return graph_of(
        [Input(name="x", dtype="float32", shape=[2])],
        [op("add.Tensor", value(0), value(0)), op("abs.default", value(1))],
        [2],
        name="plan_double_abs",
    )


def net() -> tuple[Graph, list[torch.Tensor]]:
    """The tutorial's network of two linear layers for any number of rows, and its weights."""
    shapes = {"fc1.weight": [3, 2], "fc1.bias": [3], "fc2.weight": [2, 3], "fc2.bias": [2]}
    graph = graph_of(
        [
            Input(name="x", dtype="float32", shape=["s0", 2]),
            *(Input(name=name, dtype="float32", shape=list(shape), kind="state") for name, shape in shapes.items()),
        ],
        [
            op("linear.default", value(0), value(1), value(2)),
            op("relu.default", value(5)),
            op("linear.default", value(6), value(3), value(4)),
            op("log_softmax.int", value(7), 1),
        ],
        [8],
        symbols=[Symbol(name="s0", low=1)],
        name="Net",
    )
    generator = torch.Generator().manual_seed(1)
    return graph, [torch.rand(shape, generator=generator) for shape in shapes.values()]


def bundle_of(
    graph: Graph, state: list[torch.Tensor] | None = None, beside: dict[str, bytes] | None = None
) -> PlanBundle:
    """A graph and its state as a whole plan."""
    frames = [encode_tensor(one) for one in state or []]
    data = encode_graph(graph)
    manifest = Manifest(
        version=FORMAT_VERSION,
        graph=digest_of(data),
        outputs=check_graph(graph).output_types,
        state=[digest_of(frame) for frame in frames],
    )
    return PlanBundle(manifest, data, {digest_of(frame): frame for frame in frames}, beside or {})


def residual_blocks(count: int) -> Graph:
    """Many ops over a size that varies: ``count`` blocks of five, the output of each the input of the next."""
    inputs = [Input(name="x", dtype="float32", shape=["n", 8]), Input(name="w", dtype="float32", shape=[8, 8])]
    ops = []
    for place in range(count):
        last = 5 * place + 1 if place else 0
        first = 5 * place + 2
        ops += [
            op("linear.default", value(last), value(1)),
            op("view.default", value(first), listed(-1, 4)),
            op("relu.default", value(first + 1)),
            op("view.default", value(first + 2), listed(Special(s="n"), 8)),
            op("add.Tensor", value(first + 3), value(last)),
        ]
    return graph_of(inputs, ops, [5 * count + 1], symbols=[Symbol(name="n", low=1)])
