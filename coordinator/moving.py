"""Moving a tensor from one device to another, through the broker: a plan without ops runs where it is wanted, on a
pointer to where it is.
"""

from __future__ import annotations

from functools import lru_cache

from broker.protocol.messages import Invoke, Release
from coordinator.core_events import PlanParts, SubmitCommand
from coordinator.core_tables import Link
from coordinator.device import Device
from coordinator.errors import ForeignPointer
from coordinator.pointers import PointerTensor
from coordinator.scopes import note
from coordinator.variants import variant_name, variant_of
from coordinator.waiting import Deadline, wait_for
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.format import (
    Dim,
    Graph,
    Input,
    Manifest,
    Symbol,
    TensorType,
    digest_of,
    encode_graph,
)

__all__ = ["identity", "move"]


@lru_cache(maxsize=256)
def identity(dtype: str, rank: int) -> PlanBundle:
    """The plan that gives back the one tensor it takes: of that dtype, with ``rank`` dims of any size."""
    symbols = [Symbol(name=f"s{k}") for k in range(rank)]
    shape: list[Dim] = [symbol.name for symbol in symbols]
    graph = encode_graph(
        Graph(
            inputs=[Input(name="x", dtype=dtype, shape=shape)],
            ops=[],
            outputs=[0],
            signature=["t", ["t", 0], ["d"]],
            tree=0,
            symbols=symbols,
            name="identity",
        )
    )
    manifest = Manifest(version=1, graph=digest_of(graph), outputs=[TensorType(dtype=dtype, shape=shape)])
    return PlanBundle(manifest, graph)


def move(pointer: PointerTensor, device: Device) -> PointerTensor:
    """See `PointerTensor.move`."""
    fleet, result = pointer.fleet, pointer.result
    if not isinstance(device, Device):
        raise TypeError(f"expected a device to move a tensor to, got a {type(device).__name__}")
    if device.fleet is not fleet:
        raise ForeignPointer(f"the device {device.id}")
    if device.id == result.device:
        return pointer
    dtype, rank = _type_of(pointer)
    parts = _parts(device, dtype, rank)
    release = SubmitCommand(
        devices=(result.device,),
        command=Release(ids=[pointer.result_id]),  # its device keeps what is its owner's
        released=pointer.given_up,
    )
    driver = fleet.driver
    driver.check()
    with driver.lock:
        command = Invoke(
            id=driver.core.take_ids(1),
            plan=parts.plan,
            args=[pointer.result_id],
            tags=list(pointer.tags),
            description=pointer.description,
            variant=parts.variant or None,
        )
        [moved] = driver.submit(SubmitCommand(devices=(device.id,), command=command, plan=parts, then=release))
        driver.flush()
    known = pointer.known_type
    made = PointerTensor(
        fleet,
        moved,
        dtype=dtype,
        shape=None if known is None else known[1],
        rank=rank,
        tags=pointer.tags,
        description=pointer.description,
    )
    note((made,))
    return made


def _parts(device: Device, dtype: str, rank: int) -> PlanParts:
    """The plan as the device can run it: with a variant, where it is known to have no torch."""
    fleet, bundle = device.fleet, identity(dtype, rank)
    reachable = fleet.driver.core.link is Link.OPEN  # what else is known must do: a move waits for no broker
    if not fleet.runtimes.without_torch([device], fleet.device_infos if reachable else tuple):
        return PlanParts(plan=bundle.plan_id, blobs=bundle.parts)
    variant = _variant(dtype, rank)
    named = digest_of(variant)
    return PlanParts(
        plan=bundle.plan_id,
        blobs=bundle.parts | {named: variant},
        beside={variant_name(""): named},
        variant=named,
    )


@lru_cache(maxsize=256)
def _variant(dtype: str, rank: int) -> bytes:
    return variant_of(identity(dtype, rank), (), "", {})


def _type_of(pointer: PointerTensor) -> tuple[str, int]:
    """Its dtype and its number of dims: at once for all that a plan or a search has told; else when it has ended."""
    kind = pointer.known_rank
    if kind is None:
        fleet, result = pointer.fleet, pointer.result
        fleet.driver.check()
        wait_for(fleet.driver, [result], Deadline(None))
        kind = pointer.known_rank
        if kind is None:
            assert result.failure is not None
            raise fleet.error(result.failure, result, pointer.index)
    return kind
