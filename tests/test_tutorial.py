"""PySyft's "Part 8: Introduction to Plans", line by line: over TCP with real processes, and on virtual devices, by the
same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from coordinator import Plan, VirtualWorker, connect, func2plan, tagged
from coordinator.device import Device
from coordinator.errors import DataDependentBranch
from coordinator.fleet import Fleet
from coordinator.pointer_plan import PointerPlan
from coordinator.pointers import PointerTensor
from edge_agent import Store
from edge_agent.plan.errors import ArgumentMismatch
from tests.acceptance import plans
from tests.processes import running
from tests.waiting import wait_until

WITHIN = 60.0
"""Seconds that any one value may take."""

DATA = (
    (torch.tensor([-1.0, 2.0]), "input_data", "two readings"),
    (torch.tensor([1.0, -2.0]), "input_data2", "two more"),
)


@dataclass(frozen=True)
class World:
    """A fleet of two devices, as cell 1 of the tutorial wants it."""

    fleet: Fleet
    device_1: Device
    device_2: Device


@pytest.fixture(scope="module")
def over_tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A broker process and two agent processes."""
    folder = tmp_path_factory.mktemp("devices")
    for device in ("device_1", "device_2"):
        with Store.open(folder / device) as store:
            for tensor, tag, description in DATA:
                store.put(tensor, tags=[tag], description=description)
    with running(folder, "device_1", "device_2") as broker, connect(broker.endpoint, insecure=True) as fleet:
        world = World(fleet, fleet.device("device_1"), fleet.device("device_2"))
        # an agent that has registered tells of its tags in the next moment
        wait_until(lambda: all(len(device.search()) == len(DATA) for device in (world.device_1, world.device_2)))
        yield world


@pytest.fixture(scope="module")
def in_process() -> Iterator[World]:
    """Virtual devices and a broker in this process."""
    with connect() as fleet:
        data = [tagged(tensor, tag, description=description) for tensor, tag, description in DATA]
        first, second = (VirtualWorker(fleet, id=device, data=data) for device in ("device_1", "device_2"))
        yield World(fleet, first, second)


@pytest.fixture(params=["over_tcp", "in_process"])
def world(request: pytest.FixtureRequest) -> World:
    """Both, one after the other."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, World)
    return made


def double_abs() -> Any:
    """Cell 2's plan, new and not built."""

    @func2plan()
    def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
        x = x + x
        return torch.abs(x)

    return plan_double_abs


class Net(Plan):
    """Cell 9's plan: two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of two classes."""
        x = functional.relu(self.fc1(x))
        x = self.fc2(x)
        return functional.log_softmax(x, dim=0)


def test_1_two_devices_with_two_tensors_each(world: World) -> None:
    """Each device holds [-1, 2] tagged input_data and [1, -2] tagged input_data2."""
    for device in (world.device_1, world.device_2):
        for tensor, tag, description in DATA:
            (pointer,) = device.search(tag)
            assert torch.equal(pointer.get(timeout=WITHIN), tensor)
            assert pointer.description == description
    found = world.fleet.search("input_data")
    assert {device: len(pointers) for device, pointers in found.items()} == {"device_1": 1, "device_2": 1}
    assert len(world.device_1.search()) >= 2
    assert world.device_1.search("nobody's tag") == []
    assert world.device_1.search("input_data", "input_data2") == []


def test_2_the_decorator_makes_a_plan() -> None:
    """The name shows a plan: name, id, owner, not built."""
    text = repr(double_abs())
    assert "plan_double_abs" in text
    assert "id:" in text
    assert "owner:me" in text
    assert "not built" in text


def test_3_a_search_gives_pointers(world: World) -> None:
    """The pointer's repr shows from where to where, its tags and its shape."""
    pointer = world.device_1.search("input_data")[0]
    assert isinstance(pointer, PointerTensor)
    lines = repr(pointer).splitlines()
    assert lines[0].startswith(f"[PointerTensor | me:{world.fleet.short_id} -> device_1:")
    assert "\tTags: input_data" in lines
    assert "\tShape: torch.Size([2])" in lines


def test_4_a_plan_must_be_built_before_it_is_sent(world: World) -> None:
    """Sending one that is not is a RuntimeError with PySyft's sentence."""
    plan = double_abs()
    assert plan.is_built is False
    with pytest.raises(RuntimeError, match=r"^A plan needs to be built before being sent to a worker\.$"):
        plan.send(world.device_1)


def test_5_building_it_shows_its_ops() -> None:
    """After build with an example, the ops can be read."""
    plan = double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    assert plan.is_built is True
    assert "aten.add.Tensor" in plan.readable_plan
    assert "aten.abs" in plan.readable_plan


def test_6_and_7_send_it_and_run_it(world: World) -> None:
    """A PointerPlan with from and to; called, it gives a pointer whose id was there first; the value is [2, 4]."""
    plan = double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    pointer_plan = plan.send(world.device_1)
    assert isinstance(pointer_plan, PointerPlan)
    assert f"me:{world.fleet.short_id} -> device_1:" in repr(pointer_plan)
    pointer = pointer_plan(world.device_1.search("input_data")[0])
    assert isinstance(pointer, PointerTensor)
    assert pointer.id.startswith(world.fleet.session_id)
    assert torch.equal(pointer.get(timeout=WITHIN), torch.tensor([2.0, 4.0]))


def test_8_devices_do_not_wait_for_each_other(world: World) -> None:
    """Commands for both devices leave before either has answered, and a long group on one does not delay the other."""
    plan = double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    data = world.device_2.search("input_data")[0]
    slow_1, plan_2 = plans.busy().send(world.device_1), plan.send(world.device_2)
    large = world.device_1.send(torch.ones(plans.BUSY_SIZE))
    for pointer in (slow_1(torch.ones(2)), plan_2(data), large):
        assert pointer.wait(WITHIN)  # both workers run, and have their plans
    group = [slow_1(large) for _ in range(4)]
    alone = plan_2(data)
    assert not any(pointer.ready for pointer in group)  # all are under way, and nothing was waited for
    assert torch.equal(alone.get(timeout=WITHIN), torch.tensor([2.0, 4.0]))
    assert not any(pointer.ready for pointer in group)
    for pointer in group:
        pointer.cancel()  # they would take most of a minute
    assert all(pointer.wait(WITHIN) for pointer in group)


def test_9_and_10_a_module_on_both_devices(world: World) -> None:
    """A Plan class runs on both devices' data, built once, with the values that it has locally."""
    torch.manual_seed(0)
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    for device in (world.device_1, world.device_2):
        value = net.send(device)(device.search("input_data")[0]).get(timeout=WITHIN)
        assert torch.allclose(value, net(torch.tensor([-1.0, 2.0])).detach())


def test_11_args_shape_builds_at_once() -> None:
    """With shapes the decorator builds; -1 is a dim that varies."""

    @func2plan(args_shape=[(-1, 1)])
    def plan_double(x: torch.Tensor) -> torch.Tensor:
        return x + x

    @func2plan(args_shape=[(1, 2), (-1, 2)])
    def plan_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    assert plan_double.is_built
    assert plan_sum.is_built
    assert plan_double(torch.ones(7, 1)).shape == (7, 1)
    assert plan_sum(torch.ones(1, 2), torch.ones(5, 2)).shape == (5, 2)


def test_12_a_function_with_state(world: World) -> None:
    """The function reads its state and adds it, on a tensor that the coordinator sends."""

    @func2plan(args_shape=[(1,)], state=(torch.tensor([1]),))
    def plan_abs(x: torch.Tensor, state: Any) -> torch.Tensor:
        (bias,) = state.read()
        shifted: torch.Tensor = x.abs() + bias
        return shifted

    pointer_plan = plan_abs.send(world.device_1)
    value = pointer_plan(world.device_1.send(torch.tensor([-1.0]))).get(timeout=WITHIN)
    assert torch.equal(value, torch.tensor([2.0]))


# ------------------------------------------------------------------------------- 13: where that tutorial had limits


def test_13_a_branch_is_never_frozen(world: World) -> None:
    """A branch on data is an error that names the line; a branch on a size is right at every size, or refused."""

    @func2plan()
    def branches(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(DataDependentBranch, match=r"torch\.cond") as caught:
        branches.build(torch.ones(2))
    assert caught.value.where is not None
    assert "if x.sum() > 0" in caught.value.where.text


def test_13_a_plan_of_several_results_gives_several_pointers(world: World) -> None:
    """A tuple comes back as a tuple of pointers, a dict as a dict, in one message."""

    @func2plan(args_shape=[(2,)])
    def several(x: torch.Tensor) -> dict[str, Any]:
        return {"both": (x + 1, x * 2), "sum": x.sum()}

    made = several.send(world.device_1)(world.device_1.search("input_data")[0])
    assert isinstance(made["both"], tuple)
    values = world.fleet.get(made, timeout=WITHIN)
    assert torch.equal(values["both"][0], torch.tensor([0.0, 3.0]))
    assert torch.equal(values["both"][1], torch.tensor([-2.0, 4.0]))
    assert torch.equal(values["sum"], torch.tensor(1.0))


def test_13_a_wrong_keyword_is_an_error(world: World) -> None:
    """It is named, before anything is sent; the right one works."""
    plan = double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    pointer_plan = plan.send(world.device_1)
    data = world.device_1.search("input_data")[0]
    before = world.fleet.stats().devices["device_1"].commands
    with pytest.raises(ArgumentMismatch, match=r"^y: expected one of the arguments x"):
        pointer_plan(y=data)
    assert world.fleet.stats().devices["device_1"].commands == before
    assert torch.equal(pointer_plan(x=data).get(timeout=WITHIN), torch.tensor([2.0, 4.0]))


def test_13_a_changed_weight_is_really_sent(world: World) -> None:
    """After a weight changes, sending again sends it, and the device computes with it."""
    torch.manual_seed(1)
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    data = world.device_1.search("input_data")[0]
    first = net.send(world.device_1)(data).get(timeout=WITHIN)
    with torch.no_grad():
        net.fc2.bias.add_(torch.tensor([3.0, -3.0]))
    second = net.send(world.device_1)(data).get(timeout=WITHIN)
    assert torch.allclose(second, net(torch.tensor([-1.0, 2.0])).detach())
    assert not torch.allclose(first, second)
