"""A plan as people read it."""

from __future__ import annotations

from edge_agent.plan.format import Graph, TensorType

__all__ = ["readable", "render_type"]


def render_type(tensor: TensorType) -> str:
    """``float32[s0, 6]``."""
    raise NotImplementedError


def readable(graph: Graph, *, plan_name: str = "") -> str:
    """The graph as text: a typed signature, symbols and conditions, one op a line. ``plan_name`` stands in for the graph's name.

    The graph must pass the checker; raises what it raises.
    """
    raise NotImplementedError
