"""Pointer plans: what a call takes and gives, on one device and on many, and what is refused before anything is
sent.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from broker.protocol.errors import TensorRefused
from broker.protocol.messages import ResultStatus
from coordinator import Plan, VirtualWorker, connect, func2plan
from coordinator.errors import (
    DeadlineExpired,
    ExecutionFailed,
    ForeignPointer,
    TagAmbiguous,
    TagNotFound,
    UnknownDevice,
)
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed
from tests.waiting import wait_until

WITHIN = 60.0


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """The plan that most tests run."""
    return x + x


@func2plan(args_shape=[(-1, 2), (-1, 2)])
def join(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """Two arguments, a nest of results of which some shapes are fixed."""
    return {"joined": torch.cat([x, y]), "sums": [x.sum(), y.sum(dim=0)], "first": (x[:1],)}


def scaled() -> Any:
    """A plan that takes nests and numbers."""

    @func2plan()
    def scale(batch: dict[str, Any], factor: float, *, offset: float = 0.0) -> torch.Tensor:
        x, (y, z) = batch["x"], batch["rest"]
        result: torch.Tensor = (x + y * z) * factor + offset
        return result

    one = torch.ones(2)
    scale.build({"x": one, "rest": [one, one]}, 2.0, offset=1.0)
    return scale


# ------------------------------------------------------------------------------------------------ one device


def test_results_nest_as_the_function_nests_them(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A dict of tensors, lists and tuples comes back as one of pointers, with consecutive ids, from one command."""
    before = fleet.stats().devices["device_1"]
    made = join.send(device_1)(torch.ones(1, 2), torch.ones(3, 2))
    assert list(made) == ["joined", "sums", "first"]
    pointers = [made["joined"], *made["sums"], *made["first"]]
    assert isinstance(made["first"], tuple)
    numbers = [int(pointer.id[16:], 16) for pointer in pointers]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert [pointer.shape for pointer in pointers] == [(4, 2), (), (2,), (1, 2)]
    assert all(pointer.dtype is torch.float32 for pointer in pointers)
    values = fleet.get(made, timeout=WITHIN)
    assert torch.equal(values["joined"], torch.ones(4, 2))
    assert torch.equal(values["sums"][1], torch.tensor([3.0, 3.0]))
    after = fleet.stats().devices["device_1"]
    assert (after.commands - before.commands, after.notifications - before.notifications) == (1, 1)


def test_shapes_that_only_the_device_knows(device_1: VirtualWorker) -> None:
    """Where an argument's shape is not known yet, neither is the result's, until it is there."""
    run = double.send(device_1)
    unknown = run("input_data")
    assert (unknown.shape, unknown.dtype) in {(None, torch.float32), (torch.Size([2]), torch.float32)}
    following = run(unknown)
    assert torch.equal(following.get(WITHIN), torch.tensor([-4.0, 8.0]))
    assert following.shape == torch.Size([2])


def test_nests_numbers_and_keywords(device_1: VirtualWorker) -> None:
    """Nested arguments, a pointer and a local tensor among them, numbers, numpy arrays, by position and by keyword."""
    run = scaled().send(device_1)
    (pointer,) = device_1.search("input_data")  # -1, 2
    batch = {"rest": [torch.tensor([1.0, 2.0]), np.array([3.0, 4.0], dtype=np.float32)], "x": pointer}
    assert torch.equal(run(batch, 2, offset=1).get(WITHIN), torch.tensor([5.0, 21.0]))
    assert torch.equal(run(offset=0.5, factor=-1.0, batch=batch).get(WITHIN), torch.tensor([-1.5, -9.5]))


def test_a_chain_of_ten(device_1: VirtualWorker) -> None:
    """Each plan on the result of the one before, which is not waited for: the right value in the end."""
    run = double.send(device_1)
    pointer = run(torch.ones(2))
    for _ in range(9):
        pointer = run(pointer)
    assert torch.equal(pointer.get(WITHIN), torch.full((2,), 1024.0))


def test_a_result_of_another_device_is_an_argument(device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """Small and large results travel from device to device, ready or not."""
    on_1, on_2 = double.send(device_1), double.send(device_2)
    for count in (3, 100_000):
        pointer = on_2(on_1(on_2(torch.ones(count))))
        assert torch.equal(pointer.get(WITHIN), torch.full((count,), 8.0))


def test_large_local_arguments(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A tensor too large for the message is put first, used as it was at the call, and dropped afterwards."""
    large = torch.ones(60_000, 2)
    pointer = join.send(device_1)(large, torch.ones(1, 2))["joined"]
    large.zero_()
    assert torch.equal(pointer.get(WITHIN), torch.ones(60_001, 2))
    put = int(pointer.id[16:], 16) - 1
    passing = f"{fleet.session_id}{put:016x}"
    wait_until(lambda: fleet.status(passing) is ResultStatus.RELEASED)


def test_many_medium_arguments(device_1: VirtualWorker) -> None:
    """What fits one by one but not together goes all the same."""

    @func2plan(args_shape=[(10_000,)] * 4)
    def add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return a + b + c + d

    value = add.send(device_1)(*(torch.full((10_000,), float(k)) for k in range(4))).get(WITHIN)
    assert torch.equal(value, torch.full((10_000,), 6.0))


def test_tags_as_arguments(device_1: VirtualWorker) -> None:
    """One tag, or several that one tensor carries all; none and two are failures of that invocation."""
    run = double.send(device_1)
    assert torch.equal(run("input_data2").get(WITHIN), torch.tensor([2.0, -4.0]))
    assert torch.equal(run(["readings", "input_data"]).get(WITHIN), torch.tensor([-2.0, 4.0]))
    with pytest.raises(TagNotFound, match="nobody's"):
        run("nobody's").get(WITHIN)
    with pytest.raises(TagAmbiguous, match="readings"):
        run("readings").get(WITHIN)


# --------------------------------------------------------------------------------------------------- options


def test_options_of_an_invocation(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Tags, description and inline are the invocation's; the plan pointer itself stays as it was."""
    run = double.send(device_1)
    named = run.options(tags=["doubled", "twice"], description="by two", inline=False)
    pointer = named(torch.ones(2))
    assert (pointer.tags, pointer.description) == (("doubled", "twice"), "by two")
    assert torch.equal(pointer.get(WITHIN), torch.full((2,), 2.0))
    (found,) = device_1.search("doubled", "twice")
    assert found == pointer
    assert run(torch.ones(2)).tags == ()
    before = fleet.stats().total.control
    assert torch.equal(run.options(inline=False)(torch.ones(2)).get(WITHIN), torch.full((2,), 2.0))
    assert fleet.stats().total.control > before + 1  # the value was fetched


def test_a_deadline_ends_what_sleeps(fleet: Fleet) -> None:
    """An invocation for a device that is away expires."""
    asleep = VirtualWorker(fleet, "asleep")
    run = double.send(asleep)
    asleep.close()
    with pytest.raises(DeadlineExpired):
        run.options(deadline=0.2)(torch.ones(2)).get(WITHIN)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_must_be_one(device_1: VirtualWorker, deadline: float) -> None:
    """It is some positive number of seconds."""
    with pytest.raises(ValueError, match="deadline"):
        double.send(device_1).options(deadline=deadline)


# ------------------------------------------------------------------------------------------------ many devices


def test_many_devices_by_one_command(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """A tag, a tensor or a dict of pointers; a dict of pointers comes back, with consecutive ids."""
    run = double.send(device_1, device_2)
    assert repr(run).startswith(f"[PointerPlan double | me:{fleet.short_id} -> device_1:{run.id[:8]}, device_2:")
    before = fleet.stats().total
    made = run("input_data")
    assert list(made) == ["device_1", "device_2"]
    assert int(made["device_2"].id[16:], 16) == int(made["device_1"].id[16:], 16) + 1
    values = fleet.get(made, timeout=WITHIN)
    assert torch.equal(values["device_1"], torch.tensor([-2.0, 4.0]))
    assert torch.equal(values["device_2"], torch.tensor([10.0, 12.0]))
    assert fleet.stats().total.commands - before.commands == 2
    pointers = {device.id: device.search("input_data")[0] for device in (device_1, device_2)}
    again = fleet.get(run(pointers), timeout=WITHIN)
    assert torch.equal(again["device_2"], torch.tensor([10.0, 12.0]))
    swapped = {device_1: pointers["device_2"], device_2: pointers["device_1"]}
    crossed = fleet.get(run(swapped), timeout=WITHIN)
    assert torch.equal(crossed["device_1"], torch.tensor([10.0, 12.0]))
    for count in (3, 50_000):
        same = fleet.get(run(torch.ones(count)), timeout=WITHIN)
        assert torch.equal(same["device_1"], torch.full((count,), 2.0))
        assert torch.equal(same["device_2"], same["device_1"])


def test_a_fleet_is_the_devices_known_at_that_moment() -> None:
    """send(fleet) takes those known then, and no later ones; a fleet without devices is an error."""
    with connect() as fleet:
        with pytest.raises(UnknownDevice, match="no device yet"):
            double.send(fleet)
        VirtualWorker(fleet, "one")
        VirtualWorker(fleet, "two")
        run = double.send(fleet)
        VirtualWorker(fleet, "three")
        assert [device.id for device in run.devices] == ["one", "two"]
        assert sorted(fleet.get(run(torch.ones(1)), timeout=WITHIN)) == ["one", "two"]


def test_a_tag_fails_for_its_device_alone(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """Where no tensor carries it, that device's result fails; the other's is there."""
    made = double.send(device_1, device_2)("input_data2")
    values = fleet.get(made, timeout=WITHIN, errors="return")
    assert torch.equal(values["device_1"], torch.tensor([2.0, -4.0]))
    assert isinstance(values["device_2"], TagNotFound)
    assert values["device_2"].device == "device_2"


def test_dicts_of_pointers_are_checked(device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """A dict must have a pointer for each device, each of which fits."""
    run = double.send(device_1, device_2)
    pointer = device_1.search("input_data")[0]
    matrix = device_1.search("matrix")[0]
    for bad, says in (
        (
            {"device_1": pointer},
            "x: expected a pointer for each device that the plan was sent to, got none for device_2",
        ),
        ({"device_1": pointer, "device_2": pointer, "d3": pointer}, "got one for d3, too"),
        ({"device_1": pointer, "device_2": torch.ones(2)}, r"x\['device_2'\]: expected a pointer, got a Tensor"),
        ({"device_1": pointer, "device_2": matrix}, r"x: expected float32\[s0\].*, got int64\[2, 3\]"),
    ):
        with pytest.raises(ArgumentMismatch, match=says):
            run(bad)


# -------------------------------------------------------------------------------------------- what does not fit


def test_what_does_not_fit_is_refused_before_anything_is_sent(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Arity, keyword, dtype, rank, dim, type: each names the argument, what was expected and what came."""

    @func2plan(args_shape=[(-1, 3)], args_dtype=[torch.float32])
    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1)

    run = rows.send(device_1)
    matrix = device_1.search("matrix")[0]
    before = fleet.stats().total.commands
    for args, kwargs, says in (
        ((), {}, "x: expected a value, got nothing"),
        ((1, 2), {}, r"arguments: expected at most 1 \(x\), got 2"),
        ((), {"y": matrix}, "y: expected one of the arguments x, got this keyword"),
        ((matrix,), {"x": matrix}, "x: expected one value, got two"),
        ((matrix,), {}, r"x: expected float32\[s0, 3\].*, got int64\[2, 3\]"),
        ((torch.ones(3),), {}, r"x: expected float32\[s0, 3\].*, got float32\[3\]"),
        ((torch.ones(2, 4),), {}, r"x: expected float32\[s0, 3\].*, got float32\[2, 4\]"),
        ((3.0,), {}, "x: expected a tensor of float32, got the number 3.0"),
        ((object(),), {}, "x: expected a tensor of float32, got a object"),
        ((None,), {}, "x: expected"),
        (([torch.ones(2, 3)],), {}, "x: expected"),
    ):
        with pytest.raises(ArgumentMismatch, match=says):
            run(*args, **kwargs)
    with pytest.raises(TensorRefused, match="x: expected a dense tensor"):
        run(torch.ones(2, 3).to_sparse())
    with pytest.raises(ValueError, match="tags"):
        run("")
    assert fleet.stats().total.commands == before
    assert torch.equal(run(torch.ones(4, 3)).get(WITHIN), torch.full((4,), 3.0))


def test_sizes_outside_what_the_plan_was_made_for(device_1: VirtualWorker) -> None:
    """A condition on the sizes is checked before anything is sent, and by the device where only that knows them."""

    @func2plan()
    def halves(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)

    halves.build(torch.ones(4), args_shape=[(-1,)])
    run = halves.send(device_1)
    with pytest.raises((ConditionFailed, ArgumentMismatch), match="3"):
        run(torch.ones(3))
    assert run(torch.ones(4)).get(WITHIN).shape == (2, 2)


def test_targets_must_be_devices_of_one_fleet(device_1: VirtualWorker) -> None:
    """No target, something else, or devices of two fleets."""
    with pytest.raises(TypeError, match="at least one device"):
        double.send()
    with pytest.raises(TypeError, match="got a str"):
        double.send("device_1")
    with connect() as other, pytest.raises(ForeignPointer, match="elsewhere"):
        double.send(device_1, other.device("elsewhere"))


def test_a_failure_inside_a_plan_names_its_line(device_1: VirtualWorker) -> None:
    """ExecutionFailed carries device, plan, op, the user's line and the original message."""

    @func2plan
    def root(x: torch.Tensor) -> torch.Tensor:
        y = x * 1.0
        root_of: torch.Tensor = torch.linalg.cholesky(y)  # this line
        return root_of

    root.build(torch.eye(2))
    run = root.send(device_1)
    with pytest.raises(ExecutionFailed, match="positive-definite") as caught:
        run(-torch.eye(2)).get(WITHIN)
    error = caught.value
    assert (error.device, error.plan, error.op_index) == ("device_1", run.id, 1)
    assert "cholesky" in error.op
    assert error.source.endswith("torch.linalg.cholesky(y)  # this line")
    assert __file__ in error.source
    assert torch.equal(run(torch.eye(2)).get(WITHIN), torch.eye(2))


# -------------------------------------------------------------------------------------------------- uploads


class Net(Plan):
    """Two layers, of which one is too large for a message."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(200, 200)
        self.narrow = nn.Linear(200, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two numbers."""
        out: torch.Tensor = self.narrow(torch.relu(self.wide(x)))
        return out


def test_what_was_uploaded_is_not_uploaded_again(
    fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker
) -> None:
    """A second device costs nothing, and after one weight changes, one tensor moves; its value is used at once."""
    torch.manual_seed(3)
    net = Net()
    net.build(torch.ones(1, 200))
    x = torch.ones(1, 200)

    def spent(device: VirtualWorker) -> tuple[int, int]:
        before = fleet.stats().total
        value = net.send(device)(x).get(WITHIN)
        assert torch.allclose(value, net(x).detach(), atol=1e-6)
        after = fleet.stats().total
        return after.blobs_in - before.blobs_in, after.blob_bytes_in - before.blob_bytes_in

    blobs, size = spent(device_1)
    assert blobs == 7  # manifest, graph, four tensors, and the table of lines
    assert size > 160_000
    assert spent(device_2) == (0, 0)
    assert spent(device_1) == (0, 0)
    with torch.no_grad():
        net.narrow.bias.add_(1.0)
    blobs, size = spent(device_1)
    assert blobs == 2  # the bias, and the manifest that names it
    assert size < 1000
    with torch.no_grad():
        net.wide.weight.mul_(0.5)
    blobs, size = spent(device_1)
    assert blobs == 2
    assert 160_000 < size < 162_000


def test_calls_from_many_threads(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Threads that share a pointer plan get their own values, under ids of their own."""
    run = double.send(device_1)
    made: list[tuple[float, PointerTensor]] = []

    def call(start: int) -> None:
        made.extend((float(k), run(torch.tensor([float(k)]))) for k in range(start, start + 50))

    threads = [threading.Thread(target=call, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len({pointer.id for _, pointer in made}) == 200
    values = fleet.get([pointer for _, pointer in made], timeout=WITHIN)
    assert [float(value) for value in values] == [2 * k for k, _ in made]
