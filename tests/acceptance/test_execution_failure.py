"""An exception inside a plan tells who, what and where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordinator import Plan, func2plan
from coordinator.errors import ArgumentFailed, ExecutionFailed
from tests.acceptance.worlds import World
from tests.waiting import PATIENCE


def picking_plan() -> Plan:
    """A plan of three ops whose second one fails for an index out of range."""

    @func2plan(args_shape=[(-1,), (2,)], args_dtype=[torch.float32, torch.int64])
    def plan_pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        doubled = x + x
        picked = torch.index_select(doubled, 0, index)  # the line that fails
        return picked.abs()

    return plan_pick


def test_a_failing_op_arrives_with_all_that_is_known(world: World) -> None:
    """The error names the device, the plan, the op, its place, the user's source line and the original message."""
    device = world.devices[1]
    plan = picking_plan()
    on_device = plan.send(device)
    x, index = device.send(torch.tensor([1.0, -2.0, 3.0])), device.send(torch.tensor([0, 7]))
    result = on_device(x, index)
    with pytest.raises(ExecutionFailed) as caught:
        result.get(timeout=PATIENCE)
    error = caught.value
    assert error.device == device.id
    assert error.plan == plan.id
    assert error.op == "aten.index_select.default"
    assert error.op_index == 1
    assert error.error == "IndexError"
    assert "out of range" in error.message
    assert Path(__file__).name in error.source
    assert error.source.endswith("picked = torch.index_select(doubled, 0, index)  # the line that fails")
    assert error.id == result.id
    for part in (device.id, plan.id[:8], "aten.index_select.default", "out of range", error.source):
        assert part in str(error)
    assert result.status() == "failed"


def test_what_builds_on_a_failure_fails_too_and_the_next_call_works(world: World) -> None:
    """A command whose argument has failed ends with that argument's error; the plan runs on good data afterwards."""
    device = world.devices[1]
    on_device = picking_plan().send(device)
    x = device.send(torch.tensor([1.0, -2.0, 3.0]))
    failed = on_device(x, device.send(torch.tensor([0, 7])))
    after = on_device(failed, device.send(torch.tensor([0, 1])))
    with pytest.raises(ArgumentFailed) as caught:
        after.get(timeout=PATIENCE)
    assert caught.value.argument == failed.id
    assert caught.value.argument_code == "ExecutionFailed"
    value = on_device(x, device.send(torch.tensor([2, 1]))).get(timeout=PATIENCE)
    assert torch.equal(value, torch.tensor([6.0, 4.0]))


def test_errors_may_be_had_as_values(world: World) -> None:
    """`fleet.get` with errors="return" puts the error in the place of the value that there is not."""
    device = world.devices[1]
    on_device = picking_plan().send(device)
    x = device.send(torch.tensor([1.0, -2.0, 3.0]))
    nest = {"good": on_device(x, torch.tensor([0, 1])), "bad": [on_device(x, torch.tensor([0, -9]))]}
    values = world.fleet.get(nest, timeout=PATIENCE, errors="return")
    assert torch.equal(values["good"], torch.tensor([2.0, 4.0]))
    assert isinstance(values["bad"][0], ExecutionFailed)
    with pytest.raises(ExecutionFailed):
        world.fleet.get(nest, timeout=PATIENCE)
