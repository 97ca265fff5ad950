"""A plan with all its parts, and the one file that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.format import Graph, Manifest

__all__ = ["PlanBundle"]


@dataclass(frozen=True, slots=True)
class PlanBundle:
    """A plan as it travels: the manifest, the graph's bytes, and the state's frames by digest. ``beside`` holds what is not part of the
    plan, by name, such as ``source``: the table from op to source line."""

    manifest: Manifest
    graph_bytes: bytes
    state: Mapping[bytes, bytes] = field(default_factory=dict)
    beside: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def manifest_bytes(self) -> bytes:
        """The canonical bytes of the manifest."""
        raise NotImplementedError

    @property
    def plan_id(self) -> bytes:
        """The plan's id: 32 bytes."""
        raise NotImplementedError

    @property
    def graph(self) -> Graph:
        """The decoded graph, not checked. Raises `PlanMalformed`."""
        raise NotImplementedError

    @property
    def parts(self) -> dict[bytes, bytes]:
        """Every blob of the plan by its digest: manifest, graph, state."""
        raise NotImplementedError

    @property
    def wire_size(self) -> int:
        """The bytes of all parts: what a device pulls."""
        raise NotImplementedError

    def verify(self) -> CheckedPlan:
        """Check every digest and then the plan. Raises `PlanMalformed`, `UnknownOp` or `PlanTypeError`."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The content of a plan file."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> PlanBundle:
        """The bundle that a plan file holds. Raises `PlanMalformed` if it was cut or altered."""
        raise NotImplementedError

    def save(self, path: str | PathLike[str]) -> None:
        """Write a plan file, whole or not at all."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PlanBundle:
        """Read a plan file. Raises `PlanMalformed` if it was cut or altered, OSError if it cannot be read."""
        raise NotImplementedError
