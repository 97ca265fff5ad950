"""The registry: every op that a plan may have, by the name of its ATen overload, or, for what takes sub-graphs, ours.

No op mutates, none belongs to one backend, none draws random numbers, and none has a result whose size depends on the
data. A family stands in one file of `edge_agent.plan.ops`, with its type rules; its twin under tests compares them
with torch.
"""

from __future__ import annotations

from types import MappingProxyType

from edge_agent.plan.errors import UnknownOp
from edge_agent.plan.ops import (
    arithmetic,
    comparison,
    control,
    conversion,
    convolution,
    creation,
    indexing,
    joining,
    loss,
    matrix,
    network,
    pointwise,
    reduction,
    sorting,
    spectral,
    splits,
    views,
)
from edge_agent.plan.spec import MISSING, Number, OpSpec, Parameter, Scope

__all__ = [
    "FAMILIES",
    "MISSING",
    "REGISTRY",
    "Number",
    "OpSpec",
    "Parameter",
    "Scope",
    "known_to",
    "lookup",
    "registered",
]

FAMILIES = (
    pointwise,
    arithmetic,
    comparison,
    reduction,
    views,
    splits,
    joining,
    creation,
    conversion,
    indexing,
    sorting,
    spectral,
    matrix,
    convolution,
    network,
    loss,
    control,
)
"""The modules of the op families, in the order of the docs."""


def _gather() -> dict[str, OpSpec]:
    gathered: dict[str, OpSpec] = {}
    for family in FAMILIES:
        for spec in family.OPS:
            if spec.name in gathered:
                raise ValueError(f"expected each op once, got {spec.name} twice")
            gathered[spec.name] = spec
    return gathered


REGISTRY = MappingProxyType(_gather())
"""Op name to spec."""


def registered() -> tuple[str, ...]:
    """The names of all ops, sorted."""
    return tuple(sorted(REGISTRY))


def known_to(version: int) -> frozenset[str]:
    """The names of the ops that a device knows whose registry is of this version; 0 is the first one, too."""
    return frozenset(name for name, spec in REGISTRY.items() if spec.since <= max(version, 1))


def lookup(name: str, index: int | None = None, inside: str = "") -> OpSpec:
    """The spec of an op. Raises `UnknownOp`, with ``index`` as the op's number in its plan, ``inside`` a sub-graph."""
    spec = REGISTRY.get(name)
    if spec is None:
        raise UnknownOp(name[:128], index, inside)
    return spec
