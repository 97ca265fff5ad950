"""Does a call fit a plan? Answered from dtypes and shapes alone, by the coordinator before it sends and by the device before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.plan.format import Graph

__all__ = ["Argument", "bind_sizes"]

Argument = tuple[str, Sequence[int]] | None
"""A user argument's dtype name and shape; None: not known here."""


def bind_sizes(graph: Graph, shapes: Sequence[Argument]) -> dict[str, int]:
    """The size of each symbol, from the user's arguments (in the order of the graph's user inputs).

    An argument that is None is skipped, and symbols that only it would tell stay unbound, as do conditions on them. Raises `ArgumentMismatch`, which names the
    argument, what was expected and what came, or `ConditionFailed`.
    """
    raise NotImplementedError
