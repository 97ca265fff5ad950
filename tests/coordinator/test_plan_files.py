"""Plan files: what is in them beside the plan itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from coordinator import Plan, VirtualWorker, connect
from coordinator.plan_files import parted
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.errors import PlanMalformed


class TwoFaced(Plan):
    """Two methods over weights that they have in common, and one of its own for each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.first, self.second = nn.Linear(50, 50), nn.Linear(50, 2), nn.Linear(50, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.first(self.shared(x))
        return found

    def score(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(self.shared(x))
        return found


def test_methods_are_saved_with_the_plan(tmp_path: Path) -> None:
    """Called by name on what is loaded, here and on a device, with weights that are in the file once; and kept when
    that is saved again.
    """
    net, x = TwoFaced(), torch.randn(4, 50)
    net.build(x, args_shape=[("batch", 50)])
    net.save(tmp_path / "one.plan")
    net.build_method("score", x, args_shape=[("batch", 50)])
    net.save(tmp_path / "two.plan")
    assert (tmp_path / "two.plan").stat().st_size < (tmp_path / "one.plan").stat().st_size + 5_000
    Plan.load(tmp_path / "two.plan").save(tmp_path / "again.plan")
    for name in ("two.plan", "again.plan"):
        loaded = Plan.load(tmp_path / name)
        assert (loaded.id, loaded.score.id) == (net.id, net.methods["score"].id)
        assert torch.equal(loaded.score(x[:3]), net.methods["score"](x[:3]))
        assert set(loaded.bundle().beside) == {"source"}
    with connect() as fleet:
        on_device = loaded.send(VirtualWorker(fleet, id="pi"))
        assert torch.equal(on_device.score(x).get(30), net.methods["score"](x))
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = loaded.nonesuch


def test_a_method_without_its_weights_is_refused(tmp_path: Path) -> None:
    """A file that somebody has put together wrongly."""
    net, x = TwoFaced(), torch.randn(4, 50)
    net.build(x)
    net.build_method("score", x)
    net.save(tmp_path / "net.plan")
    bundle, methods = parted(PlanBundle.load(tmp_path / "net.plan"))
    score = methods["score"].to_bytes(without=methods["score"].state)
    replace(bundle, beside={**bundle.beside, "method:score": score}).save(tmp_path / "net.plan")
    with pytest.raises(PlanMalformed, match="got a plan without it"):
        Plan.load(tmp_path / "net.plan")
