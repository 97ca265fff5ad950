"""The registry: every op that a plan may have, by its ATen overload name, with its schema and its type rule."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.plan.errors import UnknownOp

__all__ = ["OpSpec", "Parameter", "lookup", "registered"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an op. ``kind``: Tensor, Tensor?, Tensor[], Tensor?[], Scalar, Scalar?, int, int?, int[], int[]?, float, float?,
    bool, bool?, str, str?, dtype?, layout?, device?, memory_format?, ... (as in the schema, SymInt written as int)."""

    name: str
    kind: str
    required: bool
    keyword_only: bool


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An op: ``name`` as in the plan (``aten.add.Tensor``), ``outputs`` (None: as many as its type rule says)."""

    name: str
    parameters: tuple[Parameter, ...]
    outputs: int | None


def registered() -> tuple[str, ...]:
    """The names of all ops, sorted."""
    raise NotImplementedError


def lookup(name: str, index: int | None = None) -> OpSpec:
    """The spec of an op. Raises `UnknownOp`, with ``index`` as the op's place in its plan."""
    raise UnknownOp(name, index)
