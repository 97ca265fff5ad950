"""Devices whose op registry is older than the coordinator's: lowered plans, and refusals that name the op."""

from __future__ import annotations

import msgspec
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator import VirtualWorker, connect, func2plan, older_devices, variants
from coordinator.capture.relower import in_older_ops
from coordinator.errors import OpNotSupported
from coordinator.older_devices import OpTooNew
from coordinator.plan import Plan
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import OPS_VERSION, Graph, decode_graph
from edge_agent.plan.registry import REGISTRY, known_to, registered

PATIENCE = 60.0


def pretend(monkeypatch: pytest.MonkeyPatch, *new: str) -> None:
    """These ops have come with the next version of the registry; devices here have the one before."""
    known = frozenset(registered())
    monkeypatch.setattr(
        older_devices, "known_to", lambda version: known - set(new) if version == OPS_VERSION else known
    )
    plain = variants.Runtimes.older
    monkeypatch.setattr(variants.Runtimes, "older", lambda self, names: plain(self, names, OPS_VERSION + 1))


def gelu() -> Plan:
    """A plan with state, a varying size and ops that a device may not know."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 3)

    @func2plan(args_shape=[("batch", 4), (1,)])
    def plan_gelu(x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = F.gelu(linear(x)) * scale
        return {"mean": hidden.mean(0), "rows": hidden.reshape(x.shape[0] * 3)}

    return plan_gelu


def test_every_op_says_since_when_it_is_there() -> None:
    """The registry's version is that of its newest op; an agent that says nothing has the first."""
    assert max(spec.since for spec in REGISTRY.values()) == OPS_VERSION
    assert known_to(OPS_VERSION) == set(REGISTRY)
    assert known_to(0) == known_to(1)


def test_a_device_tells_its_version() -> None:
    """In its registration; the broker tells it on."""
    with connect() as fleet:
        device = VirtualWorker(fleet, id="pi")
        assert device.info.ops == OPS_VERSION
        assert fleet.runtimes.older(["pi"]) == {}
        assert fleet.runtimes.older(["pi"], OPS_VERSION + 1) == {"pi": OPS_VERSION}


def test_a_plan_is_lowered_for_a_device_with_older_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets another plan, without the ops that it does not know, which gives the same, at every size."""
    pretend(monkeypatch, "aten.gelu.default", "aten.addmm.default", "aten.linear.default")
    plan = gelu()
    used = {op.name for op in plan.graph.ops}
    assert "aten.gelu.default" in used
    with connect() as fleet:
        device = VirtualWorker(fleet, id="pi")
        on_device = plan.send(device)
        parts = on_device._parts
        assert parts.plan.hex() != plan.id
        graphs = [_graph_in(blob) for blob in parts.blobs.values()]
        [graph] = [one for one in graphs if one is not None]
        assert {op.name for op in graph.ops} <= set(registered()) - {"aten.gelu.default", "aten.addmm.default"}
        assert graph.signature == plan.graph.signature
        for size in (2, 9):
            x, scale = torch.randn(size, 4), torch.tensor([2.0])
            found = fleet.get(on_device(x, scale=scale), timeout=PATIENCE)
            wanted = plan(x, scale=scale)
            assert sorted(found) == sorted(wanted)
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value)
        assert plan.send(device)._parts.plan == parts.plan  # made once


def _graph_in(blob: bytes) -> Graph | None:
    try:
        return decode_graph(blob)
    except PlanMalformed:  # another part of the plan
        return None


def test_an_op_that_cannot_be_lowered_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """At `send`, before anything is sent, with the device and what to do."""
    pretend(monkeypatch, "aten.sort.default")

    @func2plan(args_shape=[(-1,)])
    def plan_sort(x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x).values + 1

    with connect() as fleet:
        device = VirtualWorker(fleet, id="pi")
        before = fleet.stats().total.commands
        with pytest.raises(OpTooNew) as caught:
            plan_sort.send(device)
        assert fleet.stats().total.commands == before
    error = caught.value
    assert isinstance(error, OpNotSupported)
    assert (error.op, error.device, error.version) == ("aten.sort.default", "pi", OPS_VERSION)
    assert str(error) == (
        f"aten.sort.default is not an op that pi knows, whose ops are of version {OPS_VERSION}, and it can't be put in "
        "older ones "
        "(aten.sort.default is not an op that plans can carry yet): update the device"
    )


def test_a_plan_of_old_ops_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old device is no reason to change a plan that it knows."""
    pretend(monkeypatch, "aten.sort.default")
    plan = gelu()
    with connect() as fleet:
        device = VirtualWorker(fleet, id="pi")
        assert plan.send(device)._parts.plan.hex() == plan.id


def test_random_inputs_and_ranges_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn, what is carried and which sizes are allowed are the same after lowering."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.silu(x + torch.rand(x.shape[0], 2))

    plan = func2plan()(function)
    plan.build(torch.randn(3, 2), args_shape=[(-1, 2)])
    known = frozenset(registered()) - {"aten.silu.default"}
    graph = in_older_ops(plan.graph, [], known)
    assert {op.name for op in graph.ops} <= known
    kinds = [(one.name, one.kind, one.draw) for one in graph.inputs]
    assert kinds == [(one.name, one.kind, one.draw) for one in plan.graph.inputs]
    assert [msgspec.to_builtins(one) for one in graph.symbols] == [
        msgspec.to_builtins(one) for one in plan.graph.symbols
    ]
