"""The checker: types a plan before it runs, and trusts nothing that the plan says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol.tensors import TensorHeader
from edge_agent.plan.format import Graph, Manifest, TensorType

__all__ = ["CheckedGraph", "CheckedPlan", "check_graph", "check_plan"]


@dataclass(frozen=True, slots=True)
class CheckedGraph:
    """A graph that has been typed: ``types[k]`` is the type of value k, ``output_types`` those of the graph's outputs."""

    graph: Graph
    types: list[TensorType]

    @property
    def output_types(self) -> list[TensorType]:
        """The types of the graph's outputs, in order: what the manifest must say."""
        return [self.types[value] for value in self.graph.outputs]


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan that may be run: see `edge_agent.runtimes`."""

    manifest: Manifest
    checked: CheckedGraph

    @property
    def graph(self) -> Graph:
        """The plan's graph."""
        return self.checked.graph


def check_graph(graph: Graph) -> CheckedGraph:
    """Type every value of a graph from anywhere. Raises `UnknownOp`, `PlanTypeError` or `PlanMalformed`."""
    raise NotImplementedError


def check_plan(manifest: Manifest, graph: Graph, state_headers: Sequence[TensorHeader]) -> CheckedPlan:
    """Check a plan whole: its graph, its state's dtypes and shapes, its manifest's outputs. ``state_headers`` in the manifest's order.

    Raises `UnknownOp`, `PlanTypeError` or `PlanMalformed`.
    """
    raise NotImplementedError
