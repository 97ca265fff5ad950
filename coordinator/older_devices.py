"""Devices whose op registry is older than this one's: a plan is put in the ops that they know, or refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from coordinator.errors import OpNotSupported, PlanBuildError
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.checker import check_graph
from edge_agent.plan.format import Manifest, decode_graph, digest_of, encode_graph, version_of
from edge_agent.plan.nesting import all_ops
from edge_agent.plan.registry import known_to

if TYPE_CHECKING:
    from coordinator.variants import Runtimes

__all__ = ["OpTooNew", "bundle_for"]


class OpTooNew(OpNotSupported):
    """A device's registry is too old for an op of the plan, and the op can't be put in older ones. ``op`` is its name,
    ``device`` the device's, ``version`` that of its registry.
    """

    def __init__(self, op: str, device: str, version: int, reason: str) -> None:
        super().__init__(op)
        self.device = device
        self.version = version
        self.reason = (
            f"{op} is not an op that {device} knows, whose ops are of version {version}, and it can't be put in older "
            f"ones ({reason}): update the device"
        )
        self.args = (op, device, version, reason)


def bundle_for(bundle: PlanBundle, devices: Iterable[str], runtimes: Runtimes) -> PlanBundle:
    """The plan for these devices: itself, if they know all its ops, or another plan that gives the same in ops that
    the one with the oldest registry knows. Raises `OpTooNew`.
    """
    older = runtimes.older(devices)
    if not older:
        return bundle
    device, version = next(iter(older.items()))
    made = runtimes.lowered
    known = known_to(version)
    graph = bundle.graph
    names = (own.ops[place].name for own, place in all_ops(graph))
    unknown = next((name for name in names if name not in known), None)
    if unknown is None:
        return bundle
    key = (bundle.manifest.graph, version)
    if key not in made:
        from coordinator.capture.relower import in_older_ops
        from edge_agent.runtimes.torch_tensors import decode_tensor

        state = [decode_tensor(bundle.state[digest]) for digest in bundle.manifest.state]
        try:
            made[key] = encode_graph(in_older_ops(graph, state, known))
        except PlanBuildError as error:
            op = error.op if isinstance(error, OpNotSupported) else unknown
            raise OpTooNew(op, device, version, error.reason) from error
    return _with_graph(bundle, made[key])


def _with_graph(bundle: PlanBundle, graph_bytes: bytes) -> PlanBundle:
    graph = decode_graph(graph_bytes)
    manifest = Manifest(
        version=version_of(graph),
        graph=digest_of(graph_bytes),
        outputs=check_graph(graph).output_types,
        state=bundle.manifest.state,
    )
    return PlanBundle(manifest, graph_bytes, bundle.state)
