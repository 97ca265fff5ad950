"""Pointers and devices: search, send, values, what becomes of results, and what a pointer is not."""

from __future__ import annotations

import asyncio
import copy
import itertools
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from broker.ledger.blobs import MemoryBlobs
from broker.protocol.errors import TensorRefused
from broker.protocol.messages import ResultStatus
from broker.server import BrokerServer
from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.device import Device
from coordinator.errors import (
    ArgumentFailed,
    ForeignPointer,
    InvocationCancelled,
    PointerError,
    ResultReleased,
    ResultTimeout,
    StoreFull,
    UnknownDevice,
    UnknownResult,
)
from coordinator.fleet import Fleet
from coordinator.notifications import Notification
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

WITHIN = 60.0

_sleepers = itertools.count()


@func2plan(args_shape=[(-1,)])
def add_one(x: torch.Tensor) -> torch.Tensor:
    """A quick plan."""
    return x + 1


@func2plan(args_shape=[(-1, -1)], args_dtype=[torch.int64])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan for the matrix."""
    return x + x


@func2plan(args_shape=[(500, 500)])
def slow(x: torch.Tensor) -> torch.Tensor:
    """A plan that takes a while."""
    for _ in range(20):
        x = torch.tanh(x @ x)
    return x


# -------------------------------------------------------------------------------------------------------- search


def test_search_needs_all_tags(device_1: VirtualWorker) -> None:
    """One tag finds all that carry it, two only what carries both; none finds everything; a miss finds nothing."""
    assert len(device_1.search("readings")) == 2
    (pointer,) = device_1.search("readings", "input_data")
    assert torch.equal(pointer.get(WITHIN), torch.tensor([-1.0, 2.0]))
    assert {tag for found in device_1.search() for tag in found.tags} >= {"readings", "matrix"}
    assert device_1.search("readings", "matrix") == []


def test_search_over_the_fleet(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """A dict from device to pointers, of the devices that have any."""
    found = fleet.search("input_data")
    assert {name: len(pointers) for name, pointers in found.items()} == {"device_1": 1, "device_2": 1}
    assert list(fleet.search("matrix")) == ["device_1"]


def test_what_a_found_pointer_says(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Id, shape, dtype, tags, description and device, and all of it in the repr."""
    (pointer,) = device_1.search("input_data")
    assert pointer.shape == torch.Size([2])
    assert pointer.dtype is torch.float32
    assert set(pointer.tags) == {"input_data", "readings"}
    assert pointer.description == "two readings"
    assert pointer.device == device_1
    assert len(pointer.id) == 32
    assert repr(pointer).splitlines() == [
        f"[PointerTensor | me:{fleet.short_id} -> device_1:{pointer.id[:4]}{pointer.id[-4:]}]",
        "\tTags: input_data readings",
        "\tShape: torch.Size([2])",
        "\tDescription: two readings",
    ]


def test_devices_say_what_the_broker_knows(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """Online, last seen, labels, runtimes and protocol version of each device."""
    first, second = fleet.devices()
    assert (first.id, second.id) == ("device_1", "device_2")
    assert first == device_1
    assert first.online
    assert abs(first.last_seen.timestamp() - time.time()) < 60
    assert (first.runtimes, first.labels, first.version) == (["torch"], {}, (1, 1))
    with pytest.raises(UnknownDevice, match="nobody"):
        _ = fleet.device("nobody").online
    with pytest.raises(ValueError, match="expected a device id"):
        fleet.device("no good name")


# ---------------------------------------------------------------------------------------------------- send and get


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 1, 2, 1, 2, 1, 2, 1)])
def test_every_dtype_goes_there_and_back(device_1: VirtualWorker, dtype: str, shape: tuple[int, ...]) -> None:
    """Small tensors of every dtype come back equal to the bit."""
    bits = torch.randint(0, 2, shape).to(TORCH_DTYPES[dtype])
    value = device_1.send(bits).get(WITHIN)
    assert value.dtype is bits.dtype
    assert value.shape == bits.shape
    assert torch.equal(value, bits)


@pytest.mark.parametrize("dtype", ["float32", "bool", "bfloat16", "complex64", "complex128", "uint16"])
@pytest.mark.parametrize("size", [65_536, 300_000])
def test_large_tensors_go_by_blob(device_1: VirtualWorker, dtype: str, size: int) -> None:
    """Tensors at and above the limit of a message come back equal, also transposed ones and ones with gradients."""
    count = size // TORCH_DTYPES[dtype].itemsize
    tensor = torch.randint(0, 2, (2, count // 2)).to(TORCH_DTYPES[dtype]).t()
    assert not tensor.is_contiguous()
    if dtype == "float32":
        tensor = tensor.clone().requires_grad_()
    value = device_1.send(tensor).get(WITHIN)
    assert torch.equal(value, tensor.detach())
    assert not value.requires_grad


def test_nan_and_inf_are_data(device_1: VirtualWorker) -> None:
    """They pass."""
    value = device_1.send(torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])).get(WITHIN)
    assert torch.isnan(value[0])
    assert value[1:].tolist() == [float("inf"), -float("inf"), 0.0]
    assert torch.signbit(value[3])


@pytest.mark.parametrize("count", [4, 400_000])
def test_what_is_sent_is_the_tensor_of_that_moment(device_1: VirtualWorker, count: int) -> None:
    """Changing the tensor in place right after send does not change what arrives."""
    tensor = torch.ones(count)
    pointer = device_1.send(tensor)
    tensor.zero_()
    assert torch.equal(pointer.get(WITHIN), torch.ones(count))


@pytest.mark.parametrize("count", [4, 400_000])
def test_get_copies(device_1: VirtualWorker, count: int) -> None:
    """Each get gives a value of its own, which may be written to."""
    pointer = device_1.send(torch.ones(count))
    first = pointer.get(WITHIN)
    first.add_(1)
    assert torch.equal(pointer.get(WITHIN), torch.ones(count))


def test_send_gives_its_pointer_at_once(device_1: VirtualWorker) -> None:
    """The pointer knows shape, dtype, tags and description before the device has the tensor, and then it is found by
    its tags.
    """
    tensor = tagged(torch.ones(2, 3, dtype=torch.int16), "sent", description="ones")
    pointer = device_1.send(tensor, tags=["more"])
    assert (pointer.shape, pointer.dtype) == (torch.Size([2, 3]), torch.int16)
    assert (pointer.tags, pointer.description) == (("sent", "more"), "ones")
    assert pointer.wait(WITHIN)
    (found,) = device_1.search("sent", "more")
    assert found.id == pointer.id
    assert found == pointer
    assert len({found, pointer}) == 1


def test_what_can_not_travel_is_refused_at_once(device_1: VirtualWorker) -> None:
    """Sparse and quantised tensors, unknown dtypes and things that are no tensors."""
    for bad, says in (
        (torch.eye(3).to_sparse(), "expected a dense tensor"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "expected a dtype"),
        (torch.zeros(2, device="meta"), "with values"),
        ([1.0, 2.0], "expected a torch tensor, got a list"),
    ):
        with pytest.raises(TensorRefused, match=says):
            device_1.send(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected tags of 1 to 256 characters"):
        device_1.send(torch.ones(1), tags=["x" * 257])


def test_a_device_that_nobody_knows(fleet: Fleet) -> None:
    """Sending to it fails with the name; the fleet works on."""
    with pytest.raises(UnknownDevice, match="nobody"):
        fleet.device("nobody").send(torch.ones(1)).get(WITHIN)


# -------------------------------------------------------------------------------------------------- nests of pointers


def test_a_nest_of_pointers_comes_back_as_it_was(
    fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker
) -> None:
    """Lists, tuples and dicts, pointers of two devices, large and small values, the same pointer twice, and other
    things.
    """
    small, large = device_1.send(torch.tensor([1.0])), device_2.send(torch.ones(100_000))
    values = fleet.get({"a": [small, large], "b": (small, None, "text", 3), "c": {}}, timeout=WITHIN)
    assert torch.equal(values["a"][0], torch.tensor([1.0]))
    assert torch.equal(values["a"][1], torch.ones(100_000))
    assert torch.equal(values["b"][0], torch.tensor([1.0]))
    assert values["b"][1:] == (None, "text", 3)
    assert values["c"] == {}
    assert values["b"][0] is not values["a"][0]


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_one_round_trip_a_device(
    fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker, errors: Literal["raise", "return"]
) -> None:
    """Fetching many values of two devices takes one request to each."""
    pointers = [device.send(torch.ones(300)) for device in (device_1, device_2) for _ in range(20)]
    for pointer in pointers:
        assert pointer.wait(WITHIN)
    before = fleet.stats().total.control
    assert len(fleet.get(pointers, timeout=WITHIN, errors=errors)) == 40
    # two fetches in, two to the devices, two answers, two to us, and the question for the counters itself;
    # heartbeats may come between
    assert fleet.stats().total.control - before <= 8 + 1 + 4


def test_many_small_values_come_in_messages(fleet: Fleet, device_1: VirtualWorker) -> None:
    """More than one message can carry, in several: none of them takes the way of large values."""
    pointers = [device_1.send(torch.full((1000,), float(k))) for k in range(300)]
    assert all(pointer.wait(WITHIN) for pointer in pointers)
    before = fleet.stats().total.blobs_in
    values = fleet.get(pointers, timeout=WITHIN)
    assert [float(value[0]) for value in values] == [float(k) for k in range(300)]
    assert fleet.stats().total.blobs_in == before


def test_errors_in_the_place_of_values(fleet: Fleet, device_1: VirtualWorker) -> None:
    """errors="return" puts them there; else the first is raised."""
    good, bad = device_1.send(torch.ones(1)), fleet.device("nobody").send(torch.ones(1))
    value, error = fleet.get([good, bad], timeout=WITHIN, errors="return")
    assert torch.equal(value, torch.ones(1))
    assert isinstance(error, UnknownDevice)
    assert error.id == bad.id
    with pytest.raises(UnknownDevice):
        fleet.get([good, bad], timeout=WITHIN)
    with pytest.raises(ValueError, match="'raise' or 'return'"):
        fleet.get([], errors="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nest", "kind"),
    [
        (lambda p: (one for one in [p]), "generator"),
        (lambda p: {"of all": {p}}, "set"),
        (lambda p: {"a": p}.values(), "dict_values"),
        (lambda p: {"a": p}.items(), "dict_items"),
        (lambda p: [deque([p])], "deque"),
    ],
)
def test_pointers_where_none_are_looked_for(
    fleet: Fleet, device_1: VirtualWorker, nest: Callable[[Any], Any], kind: str
) -> None:
    """They would come back as pointers: an error says what to make of them. What holds none stays as it is."""
    pointer = device_1.send(torch.ones(1))
    with pytest.raises(TypeError, match=f"in lists, tuples and dicts, got a {kind}: make a list of it"):
        fleet.get(nest(pointer), timeout=WITHIN)
    assert fleet.get([{"a", "b"}, {"a": 1}.values()], timeout=WITHIN)[0] == {"a", "b"}


def test_a_tensor_for_which_the_broker_has_no_room() -> None:
    """It ends as StoreFull, with what there is; what needs it, too, and the next one is taken."""
    with BrokerServer("tcp://127.0.0.1:*", store=MemoryBlobs(quota=1 << 20)) as broker:
        fleet = connect(broker.endpoints.listen, insecure=True)
        with fleet, VirtualWorker(fleet, "roomy") as device:
            too_large = device.send(torch.zeros(1 << 20))
            with pytest.raises(StoreFull, match="got a quota of 1048576 bytes"):
                too_large.get(timeout=WITHIN)
            with pytest.raises(ArgumentFailed, match="got a quota of 1048576 bytes") as failed:
                (too_large + too_large).get(timeout=WITHIN)
            assert (failed.value.argument, failed.value.argument_code) == (too_large.id, "StoreFull")
            fits = torch.arange(1 << 17, dtype=torch.float32)
            assert torch.equal(device.send(fits).get(timeout=WITHIN), fits)


def test_what_is_late_has_its_error_in_its_place() -> None:
    """With errors="return", all that is there is given, small and large, the same twice, and of what is late the time;
    it comes later, all the same.
    """
    with connect() as fleet:
        device = VirtualWorker(fleet, "awake")
        VirtualWorker(fleet, "sleeper").close()
        late = add_one.send(fleet.device("sleeper"))(torch.ones(2))
        bad = fleet.device("nobody").send(torch.ones(1))
        small, large = device.send(torch.tensor([1.0])), device.send(torch.ones(100_000))
        assert all(pointer.wait(WITHIN) for pointer in (small, large, bad))
        values = fleet.get({"a": [late, small], "b": (large, small, bad, 3)}, timeout=5.0, errors="return")
        missing = values["a"][0]
        assert isinstance(missing, ResultTimeout)
        assert (missing.id, missing.timeout, missing.device) == (late.id, 5.0, "sleeper")
        for value in (values["a"][1], values["b"][1]):
            assert torch.equal(value, torch.tensor([1.0]))
        assert torch.equal(values["b"][0], torch.ones(100_000))
        assert isinstance(values["b"][2], UnknownDevice)
        assert values["b"][3] == 3
        with pytest.raises(ResultTimeout, match=late.id):
            fleet.get([late, small], timeout=0.01)
        VirtualWorker(fleet, "sleeper")
        (value,) = fleet.get([late], timeout=WITHIN, errors="return")
        assert torch.equal(value, torch.full((2,), 2.0))


def test_what_ends_meanwhile_is_fetched(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """Results that end one after the other, while it is waited for them, all come, those that stay on their devices,
    too.
    """
    keep = slow.send(device_1).options(inline=False)
    pointers = [keep(device_1.send(torch.eye(500) * k)) for k in range(4)]
    pointers += [device_2.send(torch.full((300_000,), float(k))) for k in range(4)]
    values = fleet.get(pointers, timeout=WITHIN, errors="return")
    assert [value.shape for value in values] == [(500, 500)] * 4 + [(300_000,)] * 4
    assert fleet.driver._waiters == {}


# ------------------------------------------------------------------------------------------------------------ waiting


@pytest.fixture
def sleeper(fleet: Fleet) -> Device:
    """A device that is away: what it is sent is late until the test wakes it."""
    name = f"sleeper-{next(_sleepers)}"
    VirtualWorker(fleet, name).close()
    return fleet.device(name)


def test_a_timeout_leaves_the_pointer_intact(fleet: Fleet, sleeper: Device) -> None:
    """TimeoutError names id and device; the value comes later, all the same."""
    pointer = add_one.send(sleeper)(torch.ones(2))
    with pytest.raises(TimeoutError, match=f"no result {pointer.id} from {sleeper.id} within 0.001 s") as caught:
        pointer.get(timeout=0.001)
    assert isinstance(caught.value, ResultTimeout)
    assert pointer.wait(0.001) is False
    assert not pointer.ready
    VirtualWorker(fleet, sleeper.id)
    assert torch.equal(pointer.get(timeout=float("inf")), torch.full((2,), 2.0))
    assert pointer.ready


def test_as_completed_gives_what_ends_first(fleet: Fleet, sleeper: Device, device_2: VirtualWorker) -> None:
    """Pointers come in the order in which their results end, also those that end without a value, and then it stops."""
    late = add_one.send(sleeper)(torch.ones(2))
    early = add_one.send(device_2)(torch.ones(2))
    failing = add_one.send(device_2)("no such tag")
    order = fleet.as_completed([late, failing, early], timeout=WITHIN)
    assert {next(order), next(order)} == {early, failing}
    VirtualWorker(fleet, sleeper.id)
    assert list(order) == [late]
    assert list(fleet.as_completed([])) == []


def test_as_completed_times_out(fleet: Fleet, sleeper: Device, device_1: VirtualWorker) -> None:
    """What has ended comes first; then the time is up."""
    done = device_1.send(torch.ones(1))
    assert done.wait(WITHIN)
    late = add_one.send(sleeper)(torch.ones(2))
    ends = fleet.as_completed([late, done], timeout=0.01)
    assert next(ends) is done
    with pytest.raises(ResultTimeout, match=late.id):
        next(ends)
    VirtualWorker(fleet, sleeper.id)
    assert late.wait(WITHIN)


def test_await_and_async_for(fleet: Fleet, device_1: VirtualWorker, device_2: VirtualWorker) -> None:
    """await gives the value, a large one too; async for gives pointers as they end."""

    async def use() -> None:
        small, large = add_one.send(device_1)(torch.ones(3)), device_2.send(torch.ones(200_000))
        assert torch.equal(await small, torch.full((3,), 2.0))
        assert torch.equal(await large, torch.ones(200_000))
        assert torch.equal(await large, torch.ones(200_000))
        pointers = [add_one.send(device)(torch.ones(1)) for device in (device_1, device_2)]
        assert {p async for p in fleet.as_completed(pointers, timeout=WITHIN)} == set(pointers)
        with pytest.raises(UnknownDevice):
            await fleet.device("nobody").send(torch.ones(1))

    asyncio.run(asyncio.wait_for(use(), WITHIN))


def test_one_content_is_sent_many_times(fleet: Fleet, device_1: VirtualWorker) -> None:
    """As large tensors, by themselves and as arguments: each is a tensor of its own, and all are kept."""
    plan, large = add_one.send(device_1), torch.zeros(20_000)
    pointers = [one for _ in range(60) for one in (device_1.send(large), plan(large))]
    values = fleet.get(pointers, timeout=WITHIN)
    assert [float(value[0]) for value in values] == [0.0, 1.0] * 60


def test_notifications_tell_everybody(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Whoever follows hears of results by their ids, done and failed; a prefix picks out some."""
    plan = add_one.send(device_1)
    with (
        fleet.notifications() as everything,
        fleet.notifications(fleet.session_id) as ours,
        fleet.notifications("00") as none,
    ):
        for follower in (everything, ours):
            while follower.receive(0.02) is None:  # subscribing takes a moment that nobody tells
                plan(torch.ones(1))
        done, failed = plan(torch.ones(1)), plan("no such tag")
        last: dict[str, Notification] = {}
        while not {done.id, failed.id} <= set(last):
            notification = ours.receive(WITHIN)
            assert notification is not None
            last[notification.id] = notification
        assert last[done.id] == Notification(done.id, "device_1", ResultStatus.DONE)
        why = last[failed.id].failure
        assert last[failed.id].status is ResultStatus.FAILED
        assert why is not None
        assert why.code == "TagNotFound"
        assert none.receive(0) is None
    with pytest.raises(ValueError, match="prefix"):
        fleet.notifications("no hex")


def test_notifications_in_a_coroutine(fleet: Fleet, device_1: VirtualWorker) -> None:
    """async for over them, beside what makes them."""
    plan = add_one.send(device_1)

    async def first() -> Notification:
        async def invoke() -> None:
            while True:
                await plan(torch.ones(1))

        invoking = asyncio.create_task(invoke())
        try:
            with fleet.notifications(fleet.session_id) as notifications:
                async for notification in notifications:
                    return notification
        finally:
            invoking.cancel()
        raise AssertionError

    assert asyncio.run(asyncio.wait_for(first(), WITHIN)).status is ResultStatus.DONE


# ------------------------------------------------------------------------------------------ what becomes of results


def test_status_release_and_what_follows(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Done, then released; releasing twice is once; the value is gone, also for others who know the id."""
    pointer = device_1.send(torch.ones(3))
    assert torch.equal(pointer.get(WITHIN), torch.ones(3))
    assert pointer.status() is ResultStatus.DONE
    pointer.release()
    pointer.release()
    with pytest.raises(ResultReleased) as caught:
        pointer.get(WITHIN)
    assert caught.value.id == pointer.id
    other = fleet.pointer(pointer.id)
    with pytest.raises(ResultReleased):
        other.get(WITHIN)


def test_nobody_deletes_a_devices_own_tensor(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Releasing it does nothing to it: the pointer, its status and all that points to it say that it is there."""
    (found,) = device_1.search("matrix")
    for pointer in (found, fleet.pointer(found.id)):
        pointer.release()
        pointer.release()
        fleet.flush(WITHIN)
        (again,) = device_1.search("matrix")
        for good in (pointer, again, fleet.pointer(found.id)):
            assert not good.released
            assert good.status() is ResultStatus.DONE
            assert torch.equal(good.get(WITHIN), torch.arange(6).reshape(2, 3))
            assert torch.equal(double.send(device_1)(good).get(WITHIN), 2 * torch.arange(6).reshape(2, 3))


def test_a_result_found_by_its_tags_can_be_released(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Whoever made it: it is gone for whoever found it, and for all others."""
    made = device_1.send(torch.ones(3), tags=["found and released"])
    assert made.wait(WITHIN)
    (found,) = device_1.search("found and released")
    found.release()
    assert found.released
    fleet.flush(WITHIN)
    for gone in (found, made, fleet.pointer(made.id)):
        assert gone.status() is ResultStatus.RELEASED
        with pytest.raises(ResultReleased):
            gone.get(WITHIN)


def test_a_result_of_another_session_can_be_released() -> None:
    """Found by its tags or taken up by its id: the broker says that it is gone."""
    with BrokerServer("tcp://127.0.0.1:*") as broker:
        assert broker.wait_until_listening(WITHIN)
        url = broker.endpoints.listen
        with connect(url, insecure=True) as owner, connect(url, insecure=True) as other:
            device = VirtualWorker(owner, "d1")
            for found in (True, False):
                made = device.send(torch.ones(3), tags=["of another session"])
                assert made.wait(WITHIN)
                (pointer,) = other.device("d1").search("of another session") if found else [other.pointer(made.id)]
                pointer.release()
                other.flush(WITHIN)
                for gone in (pointer, other.pointer(made.id), made):
                    assert gone.status() is ResultStatus.RELEASED
                    with pytest.raises(ResultReleased):
                        gone.get(WITHIN)


def test_cancel(fleet: Fleet, device_1: VirtualWorker, gate: threading.Event) -> None:
    """A queued invocation is cancelled, what needs its result fails; cancelling what has ended does nothing."""
    run = slow.send(device_1)
    first = run(device_1.send(torch.eye(500)))
    second = run(first)
    third = run(second)
    second.cancel()
    with pytest.raises(InvocationCancelled):
        second.get(WITHIN)
    with pytest.raises(ArgumentFailed) as caught:
        third.get(WITHIN)
    assert caught.value.argument == second.id
    assert second.status() is ResultStatus.CANCELLED
    gate.set()
    assert first.get(WITHIN).shape == (500, 500)
    first.cancel()
    assert first.status() is ResultStatus.DONE


def test_an_id_is_enough(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Another fleet of the same broker takes up results by their ids: ended, running, failed and tagged ones."""
    run = slow.send(device_1).options(tags=["taken up"])
    running = run(device_1.send(torch.eye(500)))
    waiting = fleet.pointer(running.id)
    assert waiting == running
    assert waiting.get(WITHIN).shape == (500, 500)
    done = fleet.pointer(running.id)
    assert done.ready
    assert (done.shape, done.tags, done.device) == (torch.Size([500, 500]), ("taken up",), device_1)
    failed = fleet.pointer(add_one.send(device_1)("no such tag").result_id)
    with pytest.raises(LookupError, match="no such tag"):
        failed.get(WITHIN)
    (own,) = device_1.search("input_data")
    assert torch.equal(fleet.pointer(own.id).get(WITHIN), torch.tensor([-1.0, 2.0]))


def test_ids_that_nobody_knows(fleet: Fleet) -> None:
    """An unknown id has the status unknown, and no pointer; what is no id is a ValueError."""
    assert fleet.status("00" * 16) is ResultStatus.UNKNOWN
    with pytest.raises(UnknownResult, match="00000000"):
        fleet.pointer("00" * 16)
    for bad in ("", "zz", "00" * 15):
        with pytest.raises(ValueError, match="expected a result id of 32 hex digits"):
            fleet.status(bad)


# -------------------------------------------------------------------------------------------- what a pointer is not

USES: dict[str, Callable[[Any], object]] = {
    "bool()": bool,
    "float()": float,
    "int()": int,
    "complex()": complex,
    "len()": len,
    "iterating": list,
    "in": lambda p: 1 in p,
    "using it as an index": lambda p: [1, 2][p],
    "pickling or copying": pickle.dumps,
    "copying": copy.copy,
    "making an array": lambda p: __import__("numpy").asarray(p),
}


@pytest.mark.parametrize("use", USES)
def test_a_pointer_is_not_its_value(device_1: VirtualWorker, use: str) -> None:
    """Using it as one is a PointerError that names get() and the id."""
    pointer = device_1.send(torch.ones(2))
    with pytest.raises(PointerError, match=rf"\.get\(\).*{pointer.id}"):
        USES[use](pointer)


def test_a_plan_that_is_called_here_needs_values(device_1: VirtualWorker) -> None:
    """Of a pointer it is said where to send the plan."""
    plan = func2plan(args_shape=[(2,)])(torch.abs)
    said = "expected a tensor of float32 to run the plan here, got "
    with pytest.raises(ArgumentMismatch, match=f"{said}a pointer: send the plan to its device"):
        plan(device_1.send(torch.ones(2)))
    with pytest.raises(ArgumentMismatch, match=f"{said}a NoneType"):
        plan(None)


def test_pointers_of_another_fleet_are_refused(fleet: Fleet, device_1: VirtualWorker) -> None:
    """As an argument, in a nest, and among what is waited for: before anything is sent."""
    with connect() as other:
        foreign = VirtualWorker(other, "elsewhere").send(torch.ones(2))
        before = fleet.stats().total.commands
        with pytest.raises(ForeignPointer, match=rf"^x: .*{foreign.id}"):
            add_one.send(device_1)(foreign)
        with pytest.raises(ForeignPointer):
            fleet.get([foreign])
        with pytest.raises(ForeignPointer):
            fleet.as_completed([foreign])
        with pytest.raises(ForeignPointer):
            add_one.send(device_1, other.device("elsewhere"))
        assert fleet.stats().total.commands == before
    with pytest.raises(TypeError, match="expected pointers, got a Tensor"):
        fleet.as_completed([torch.ones(1)])
