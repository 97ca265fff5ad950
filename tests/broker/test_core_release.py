"""Releasing results: after all that came before, once, and never what is the device's own."""

from __future__ import annotations

import pytest

from broker.config import BrokerConfig
from broker.protocol.ids import nth
from broker.protocol.messages import (
    Busy,
    Command,
    Deliver,
    Fetch,
    Goodbye,
    Invoke,
    NeedValues,
    Release,
    ResultFailed,
    ResultStatus,
    Submit,
    Supply,
    Values,
)
from tests.broker.bench import VALUE, Bench, DevicePeer


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def commands(device: DevicePeer) -> list[Command]:
    """What has come to the device."""
    return [deliver.command for deliver in device.take_all()]


def test_release(bench: Bench) -> None:
    """A released value is dropped on the device by a command of its stream, and cannot be fetched any more."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one(), inline=False)
    session.submit(Release(ids=[result]))
    assert commands(device) == [Release(ids=[result])]
    assert session.status(result) is ResultStatus.RELEASED
    session.tell(Fetch(r=4, ids=[result]))
    (outcome,) = session.take(Values).outcomes
    assert outcome.failure is not None
    assert outcome.failure.code == "ResultReleased"


def test_release_twice(bench: Bench) -> None:
    """Releasing again does nothing."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    for _ in range(3):
        session.submit(Release(ids=[result, result]))
    assert commands(device) == [Release(ids=[result])]
    assert session.accepted() == session.n


def test_release_before_the_end(bench: Bench) -> None:
    """An id that has not ended drops its value when it does; until then it says where it is."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    session.submit(Release(ids=[result]))
    (deliver,) = device.take_all()
    assert session.status(result) is ResultStatus.DELIVERED
    device.ready(deliver)
    assert session.status(result) is ResultStatus.RELEASED
    assert commands(device) == [Release(ids=[result])]
    assert len(session.notified()) == 1


def test_release_of_what_fails(bench: Bench) -> None:
    """An id that was released and fails has failed."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    session.submit(Release(ids=[result]))
    device.failed(device.take_one())
    assert session.status(result) is ResultStatus.FAILED
    assert commands(device) == []


def test_release_waits_for_earlier_commands_elsewhere(bench: Bench) -> None:
    """A command on another device that was sent before the release still gets the value."""
    session, device, other = bench.session(), bench.device(), bench.device("other")
    argument = session.invoke()
    device.ready(device.take_one())
    session.invoke(argument, device="other")
    session.submit(Release(ids=[argument]))
    assert commands(device) == []
    (deliver,) = other.take_all()
    other.tell(NeedValues(ids=[argument]))
    (outcome,) = other.take(Supply).outcomes
    assert outcome.failure is None
    assert other.frames == (VALUE,)
    other.ready(deliver)
    assert commands(device) == [Release(ids=[argument])]
    assert session.status(argument) is ResultStatus.RELEASED


def test_release_waits_for_earlier_commands_of_its_device(bench: Bench) -> None:
    """Commands sent before to the same device come first, also where they name the value by a tag."""
    session, device = bench.session(), bench.device()
    argument = session.invoke()
    session.invoke(["grads"])
    session.submit(Release(ids=[argument]))
    session.invoke()
    one, two, three = device.take_all()
    device.ready(one)
    device.ready(three)
    assert commands(device) == []
    device.ready(two)
    assert commands(device) == [Release(ids=[argument])]


def test_release_does_not_wait_for_other_devices(bench: Bench) -> None:
    """What a sleeping device holds up is what it needs itself, and nothing else."""
    session, device, asleep = bench.session(), bench.device(), bench.device("asleep")
    asleep.tell(Goodbye())
    needed, free = session.invoke(), session.invoke()
    session.invoke(needed, device="asleep")
    for deliver in device.take_all():
        device.ready(deliver)
    session.submit(Release(ids=[needed, free]))
    assert commands(device) == [Release(ids=[free])]
    assert session.status(free) is session.status(needed) is ResultStatus.RELEASED  # what a session may ask after
    asleep.come_back(restarted=True)
    (deliver,) = asleep.take_all()
    asleep.ready(deliver)
    assert commands(device) == [Release(ids=[needed])]


def test_later_commands_find_it_released(bench: Bench) -> None:
    """A command sent after the release fails, whether the value is gone already or not."""
    session, device = bench.session(), bench.device()
    argument = session.invoke()
    session.submit(Release(ids=[argument]))
    device.take_all()
    late = session.invoke(argument)
    (notify,) = session.notified()
    assert isinstance(notify.event, ResultFailed)
    assert notify.event.id == late
    assert notify.event.failure.code == "ArgumentFailed"
    assert notify.event.failure.details["code"] == "ResultReleased"


def test_several_releases_in_turn(bench: Bench) -> None:
    """Each release waits for what came before it, and no longer."""
    session, device = bench.session(), bench.device()
    results = []
    for _ in range(3):
        results.append(session.invoke())
        session.submit(Release(ids=[results[-1]]))
    one, two, three = device.take_all()
    device.ready(three)
    assert commands(device) == []
    device.ready(one)
    assert commands(device) == [Release(ids=[results[0]])]
    device.ready(two)
    released = commands(device)
    assert [command.ids for command in released if isinstance(command, Release)] == [[results[1]], [results[2]]]


def test_release_of_some_outputs(bench: Bench) -> None:
    """Each output is released by itself."""
    session, device = bench.session(), bench.device()
    result = session.invoke(outputs=3)
    device.ready(device.take_one(), inline=False, outputs=3)
    session.submit(Release(ids=[nth(result, 1)]))
    assert commands(device) == [Release(ids=[nth(result, 1)])]
    assert [session.status(nth(result, k)) for k in range(3)] == [
        ResultStatus.DONE,
        ResultStatus.RELEASED,
        ResultStatus.DONE,
    ]
    session.submit(Release(ids=[result, nth(result, 1), nth(result, 2)]))
    assert commands(device) == [Release(ids=[result, nth(result, 2)])]
    assert session.status(result) is ResultStatus.RELEASED


def test_release_by_another_session(bench: Bench) -> None:
    """A later coordinator releases what an earlier one made."""
    session, later, device = bench.session(), bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    later.submit(Release(ids=[result]))
    assert commands(device) == [Release(ids=[result])]


def test_unknown_ids_go_to_the_devices_named(bench: Bench) -> None:
    """An id without a record may be a result of an earlier ledger: its device decides, since its own data stays."""
    session, device = bench.session(), bench.device()
    session.submit(Release(ids=[b"?" * 16]), devices=("device_1", "nobody"))
    assert commands(device) == [Release(ids=[b"?" * 16])]
    session.submit(Release(ids=[b"?" * 16]), devices=())
    assert commands(device) == []


def test_release_for_a_sleeping_device(bench: Bench) -> None:
    """A release waits for its device like any command, over restarts of its agent."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one())
    device.tell(Goodbye())
    session.submit(Release(ids=[result]))
    assert session.status(result) is ResultStatus.RELEASED
    device.come_back(restarted=True)
    assert [deliver.command for deliver in device.all(Deliver)] == [Release(ids=[result])]
    device.clear()
    device.come_back(restarted=True)
    assert commands(device) == [Release(ids=[result])]
    device.come_back(restarted=True)
    assert commands(device) == []


def test_release_frees_the_brokers_copy(bench: Bench) -> None:
    """An inline value is gone from the broker when it is released and was seen, and not before it was seen."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.ready(device.take_one(), b"x" * 1000)
    session.submit(Release(ids=[result]))
    assert bench.core.gauges()["value_bytes"] == 1000
    (notify,) = session.notified()
    assert notify.n == 1
    assert session.frames == (b"x" * 1000,)
    assert bench.core.gauges()["value_bytes"] == 0


def test_lanes_are_cleared(bench: Bench) -> None:
    """Nothing is left of releases that have acted."""
    session, device = bench.session(), bench.device()
    for _ in range(5):
        result = session.invoke()
        session.submit(Release(ids=[result]))
        device.ready(device.take_all()[-1])
        device.take_all()
    held = bench.core.sessions.by_incarnation[session.incarnation]
    assert held.lanes == {}
    assert isinstance(session.invoke(), bytes)
    assert list(held.lanes) == ["device_1"]
    assert Invoke in {type(deliver.command) for deliver in device.take_all()}


def test_releasing_again_and_again_takes_no_memory(bench: Bench) -> None:
    """A release that was asked for is not queued once more while it waits."""
    session, device = bench.session(), bench.device()
    result = session.invoke()
    device.take_all()
    for _ in range(50):
        session.submit(Release(ids=[result]))
    (lane,) = bench.core.sessions.by_incarnation[session.incarnation].lanes.values()
    assert len(lane) == 2


def test_releases_of_a_sleeping_device_are_bounded() -> None:
    """Releases of what nobody knows make their session wait, when too many wait for the device already."""
    bench = Bench(BrokerConfig(log_level=10, mailbox_commands=3))
    session, device = bench.session(), bench.device()
    device.tell(Goodbye())
    for k in range(4):
        session.submit(Release(ids=[bytes([k]) * 16]))
    assert session.take(Busy).reason == "3 releases and cancels wait for device_1"
    device.come_back(restarted=True)
    assert len(device.take_all()) == 3
    session.tell(Submit(n=session.n, devices=["device_1"], command=Release(ids=[b"?" * 16])))
    assert len(device.take_all()) == 1


def test_many_ids_are_released_in_parts(bench: Bench) -> None:
    """What a session said in messages that were as long as may be comes to the device in shorter ones."""
    session, device = bench.session(), bench.device()
    ids = [nth(b"elsewhre" + bytes(8), k) for k in range(10_000)]
    session.submit(Release(ids=ids))
    released = commands(device)
    assert [len(one.ids) for one in released if isinstance(one, Release)] == [4096, 4096, 1808]
    assert [each for one in released if isinstance(one, Release) for each in one.ids] == ids
