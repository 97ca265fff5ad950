"""Sub-graphs: the graphs that ops such as ``control.while_loop.default`` take as arguments.

A sub-graph has typed inputs, ops and outputs, and nothing else: no signature, no tree, no symbols, no conditions and no
name. Its values are numbered from 0, and none of those around it is seen inside: what it needs is given to it.

Ops have numbers over the whole plan, by which errors and the table of source lines name them: those of the graph itself
come first, in order; then, for each of them in order, those of its sub-graphs, each with its own first and those nested
in it after these. So a plan without sub-graphs counts as it always did.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import Argument, Graph, Op, Special

__all__ = ["MAX_NESTING", "all_ops", "argument_of", "check_nesting", "has_loops", "subgraphs_of", "uses_of"]

MAX_NESTING = 8
"""How deep sub-graphs may nest: a loop in the plan itself is of depth 1."""


def subgraphs_of(op: Op) -> list[Graph]:
    """The sub-graphs that an op takes, in the order of its arguments."""
    return [one.g for one in (*op.args, *op.kwargs.values()) if isinstance(one, Special) and one.g is not None]


def all_ops(graph: Graph) -> Iterator[tuple[Graph, int]]:
    """Every op of a plan, in the order of its numbers: the graph that it stands in, and its place there."""
    yield from ((graph, place) for place in range(len(graph.ops)))
    for op in graph.ops:
        for one in subgraphs_of(op):
            yield from all_ops(one)


def has_loops(graph: Graph) -> bool:
    """Whether a plan has a loop that runs as often as its data say."""
    return any(own.ops[place].name == "control.while_loop.default" for own, place in all_ops(graph))


def check_nesting(graph: Graph) -> int:
    """How many ops a graph from anywhere has, those of sub-graphs included. Raises `PlanMalformed` where they nest
    deeper than `MAX_NESTING`.
    """
    count = 0
    pending = [(graph, 0)]  # a list, since whoever wrote the plan decides how deep this goes
    while pending:
        one, depth = pending.pop()
        if depth > MAX_NESTING:
            raise PlanMalformed(f"expected sub-graphs nested at most {MAX_NESTING} deep, got deeper ones")
        count += len(one.ops)
        pending += [(inner, depth + 1) for op in one.ops for inner in subgraphs_of(op)]
    return count


def argument_of(op: Op, place: int, name: str) -> Argument:
    """An argument of a checked op that must be given: by position, or by name."""
    return op.args[place] if place < len(op.args) else op.kwargs[name]


def uses_of(argument: Argument) -> list[int]:
    """The values that an argument names. A sub-graph names none of those around it."""
    if not isinstance(argument, Special):
        return []
    if argument.v is not None:
        return [argument.v]
    elements = argument.l if argument.l is not None else argument.t
    return [value for one in elements or () for value in uses_of(one)]
