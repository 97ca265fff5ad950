"""A store that is full: plans go first, then values whose lease is over; never a leased one, never the owner's."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from edge_agent import effects as e
from edge_agent.catalog import Held, size_of
from edge_agent.core import AgentConfig
from edge_agent.jobs import File
from tests.edge_agent.device import DemoPlan, Device, own_value, result_id, tensor_frame

PLAN, OTHER = DemoPlan(), DemoPlan("other", state=[b"s" * 3000])
SMALL = tensor_frame(1, 2)


def device_with(quota: int, *, run: tuple[DemoPlan, ...] = (PLAN,)) -> Device:
    """A device that has run these plans and may keep so many bytes beyond what it has by now."""
    device = Device()
    for plan in run:
        if plan is run[0]:
            device.ready(plan)
        else:
            device.invoke(plan, counter=1, session=b"warm-up2")
            device.supply(plan)
            device.load()
            device.finish_all()
    config = AgentConfig(runtimes=("torch",), store_quota=device.shelf.used + quota)
    full = Device(config, shelf=device.shelf)
    full.register()
    full.acknowledge()
    full.sent.clear()
    return full


def put(device: Device, counter: int, *, tags: list[str] | None = None) -> m.Event:
    """A coordinator sends a small tensor; what becomes of that."""
    device.deliver(m.Put(id=result_id(counter), tags=tags or []), SMALL)
    return device.announced()[-1]


def test_what_does_not_fit_is_refused_with_sizes() -> None:
    """And says how much room there is; what was there before stays, and so does a leased value."""
    device = device_with(size_of(8), run=())
    assert isinstance(put(device, 1), m.ResultReady)
    assert isinstance(put(device, 2), m.ResultFailed)
    failure = device.failure_of(result_id(2))
    assert failure.code == "StoreFull"
    assert failure.details == {"needed": size_of(8), "free": 0, "limit": size_of(8)}
    assert failure.message == f"expected room for {size_of(8)} bytes in the store, got 0 of {size_of(8)}"
    assert device.shelf.find(result_id(1)) is not None


def test_plans_go_before_values() -> None:
    """The one used least recently first; a value whose lease is over stays while a plan can go."""
    device = device_with(0, run=(OTHER, PLAN))
    device.shelf.expired = [result_id(1, b"warm-up!")]
    assert isinstance(put(device, 2), m.ResultReady)
    assert [digest for digest, _ in device.shelf.plans()] == [PLAN.id]
    assert device.shelf.find(result_id(1, b"warm-up!")) is not None


def test_values_whose_lease_is_over_go_next_and_the_owners_never() -> None:
    """The oldest first, and the broker is told of the tags."""
    device = device_with(32 * size_of(8), run=())
    device.shelf.keep(None, [own_value(1, "mine")], durable=True)
    for counter in range(1, 33):
        assert isinstance(put(device, counter, tags=["t"] if counter == 1 else []), m.ResultReady)
    assert isinstance(put(device, 33), m.ResultFailed)
    device.shelf.expired = [own_value(1).id, *(result_id(counter) for counter in range(1, 9))]
    assert isinstance(put(device, 34), m.ResultReady)
    left = [id for id in device.shelf.values if not device.shelf.values[id].own]
    assert left == [result_id(counter) for counter in (*range(3, 33), 34)]  # a little more than was needed
    assert device.shelf.find(own_value(1).id) is not None
    told = [message.event for message, _ in device.sent if isinstance(message, m.Announce)]
    assert [result_id(1)] in [event.gone for event in told if isinstance(event, m.TagsChanged)]


def test_what_a_command_names_is_not_evicted() -> None:
    """Its lease is over, but a command that waits for its other argument is going to use it."""
    device = device_with(4 * size_of(8) + 4000)
    put(device, 1)
    device.invoke(PLAN, result_id(1), result_id(9, b"session9"), counter=2)
    device.shelf.expired = [result_id(1)]
    for counter in range(3, 20):
        put(device, counter)
    assert isinstance(device.announced()[-1], m.ResultFailed)
    assert device.shelf.find(result_id(1)) is not None


def test_a_result_that_does_not_fit_leaves_no_file() -> None:
    """The worker has written it already."""
    device = device_with(10_000)
    device.invoke(PLAN, counter=1)
    device.start_worker()
    device.load()
    [job] = device.jobs()
    device.finish(job, File("/store/tensors/x"), nbytes=1 << 20)
    assert device.failure_of(result_id(1)).code == "StoreFull"
    assert device.take(e.DropFiles) == [e.DropFiles(paths=["/store/tensors/x"])]


def test_a_large_tensor_that_does_not_fit_is_not_fetched() -> None:
    """Its size is known before."""
    device = device_with(10_000, run=())
    device.deliver(m.Put(id=result_id(1), blob=b"b" * 32))
    device.take_sent(m.NeedBlobs)
    device.receive(m.Blobs(pull={b"b" * 32: 1 << 20}))
    assert device.take(e.FetchBlob) == []
    assert device.failure_of(result_id(1)).code == "StoreFull"


def test_a_plan_that_does_not_fit_fails_its_commands_for_now() -> None:
    """When there is room again, the next command gets it."""
    device = device_with(2 * size_of(8), run=())
    device.invoke(OTHER, counter=1)
    device.supply(OTHER)
    failure = device.failure_of(result_id(1))
    assert failure.code == "StoreFull"
    assert failure.details["plan"] == OTHER.id.hex()
    roomy = Device(shelf=device.shelf)
    roomy.register()
    roomy.invoke(OTHER, counter=2)
    roomy.supply(OTHER)
    roomy.start_worker()
    roomy.load()
    assert [job.id for job in roomy.jobs()] == [result_id(2)]


@pytest.mark.parametrize("quota", [0, 1 << 40])
def test_without_a_limit_all_fits(quota: int) -> None:
    """As many as the disk takes."""
    device = Device(AgentConfig(store_quota=quota))
    device.register()
    values = [Held(id=result_id(1), dtype="float32", shape=(2,), nbytes=1 << 35, source=SMALL)]
    device.shelf.keep(None, values, durable=True)
    assert isinstance(put(device, 2), m.ResultReady)


def test_the_record_and_the_lease_outlast_the_deadline() -> None:
    """The store is told how much time the command had left."""
    device = Device()
    device.register()
    device.deliver(m.Put(id=result_id(1), deadline_ms=60_000), SMALL)
    assert device.shelf.leases[result_id(1)] == pytest.approx(60)
