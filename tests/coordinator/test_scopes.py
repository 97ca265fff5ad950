"""Results that are released when the block that made them is left; and releasing twice."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from broker.protocol.messages import ResultStatus
from coordinator import VirtualWorker, connect, func2plan
from coordinator.errors import FleetClosed, ResultReleased
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from tests.coordinator.conftest import WITHIN


@func2plan(args_shape=[(-1,)])
def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A plan with two results."""
    return x + x, x * x


def settled(pointer: PointerTensor) -> ResultStatus:
    """Its status once nothing that was sent before is under way."""
    assert pointer.wait(WITHIN)
    pointer.fleet.flush(WITHIN)
    return pointer.status()


def test_what_is_made_inside_is_released(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Results and sent tensors of the block go when it is left; what was found, kept or made outside stays."""
    on_device = both.send(device_1)
    outside = on_device(torch.ones(2))[0]
    (found,) = device_1.search("input_data")
    with fleet.scope() as scope:
        sent = device_1.send(torch.tensor([3.0]))
        first, second = on_device(sent)
        kept = scope.keep({"sum": on_device(first)[0]})["sum"]
        taken_up = fleet.pointer(outside.id)
        assert torch.equal(second.get(WITHIN), torch.tensor([9.0]))
    assert torch.equal(kept.get(WITHIN), torch.tensor([12.0]))
    for gone in (sent, first, second):
        assert gone.released
        with pytest.raises(ResultReleased):
            gone.get(WITHIN)
        assert settled(gone) is ResultStatus.RELEASED
    for stays in (outside, taken_up, found, kept):
        assert not stays.released
        assert stays.get(WITHIN).numel()
    assert settled(kept) is ResultStatus.DONE


def test_what_can_not_be_kept(fleet: Fleet, device_1: VirtualWorker) -> None:
    """What was meant to be kept would be released, without a word."""
    with fleet.scope() as scope:
        pointer = device_1.send(torch.ones(1))
        with pytest.raises(TypeError, match="in lists, tuples and dicts, got a generator"):
            scope.keep(one for one in [pointer])
        scope.keep(pointer)
    assert torch.equal(pointer.get(timeout=WITHIN), torch.ones(1))


def test_an_exception_releases_as_well(fleet: Fleet, device_1: VirtualWorker) -> None:
    """Left by an exception, also when the fleet was closed meanwhile: that exception comes out."""
    made: list[PointerTensor] = []

    def fail(fleet: Fleet, device: VirtualWorker, *, close: bool = False) -> None:
        with fleet.scope():
            made.append(device.send(torch.ones(1)))
            if close:
                fleet.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(fleet, device_1)
    assert settled(made[0]) is ResultStatus.RELEASED
    other = connect()
    with pytest.raises(ZeroDivisionError):
        fail(other, VirtualWorker(other, "d1"), close=True)
    again = connect()
    scope = again.scope().__enter__()
    VirtualWorker(again, "d1").send(torch.ones(1))
    again.close()
    with pytest.raises(FleetClosed):
        scope.__exit__(None, None, None)


def test_scopes_nest(fleet: Fleet, device_1: VirtualWorker) -> None:
    """A result is the innermost scope's; what that keeps is the next one's; one scope is entered once."""
    with fleet.scope() as outer:
        with fleet.scope() as inner:
            gone, passed, kept = (device_1.send(torch.ones(1)) for _ in range(3))
            assert inner.keep([passed, kept]) == [passed, kept]
            outer.keep(kept)
        assert [gone.released, passed.released, kept.released] == [True, False, False]
        with connect() as other, other.scope():
            strange = VirtualWorker(other, "d1").send(torch.ones(1))
            late = device_1.send(torch.ones(1))
        assert [strange.released, late.released] == [True, False]
        with pytest.raises(RuntimeError, match="entered before"):
            inner.__enter__()
    assert [passed.released, kept.released, late.released] == [True, False, True]


def test_scopes_of_threads_and_tasks_are_their_own(fleet: Fleet, device_1: VirtualWorker) -> None:
    """What another thread makes meanwhile is not in the scope; of two tasks, each has its own."""
    elsewhere: list[PointerTensor] = []
    with fleet.scope():
        thread = threading.Thread(target=lambda: elsewhere.append(device_1.send(torch.ones(1))))
        thread.start()
        thread.join(WITHIN)
    assert not elsewhere[0].released

    async def work(entered: asyncio.Event, leave: asyncio.Event) -> tuple[PointerTensor, PointerTensor]:
        with fleet.scope():
            inside = device_1.send(torch.ones(1))
            entered.set()
            await leave.wait()
            later = device_1.send(torch.ones(1))
            assert not inside.released
        return inside, later

    async def main() -> None:
        events = [asyncio.Event() for _ in range(4)]
        one = asyncio.create_task(work(events[0], events[1]))
        two = asyncio.create_task(work(events[2], events[3]))
        await events[0].wait()
        await events[2].wait()
        between = device_1.send(torch.ones(1))
        events[1].set()
        assert all(pointer.released for pointer in await one)
        events[3].set()
        assert all(pointer.released for pointer in await two)
        assert not between.released
        with fleet.scope():
            started = asyncio.create_task(asyncio.to_thread(device_1.send, torch.ones(1)))
            assert not (inherited := await started).released
        assert inherited.released

    asyncio.run(main())


def test_releasing_again_sends_nothing(fleet: Fleet, device_1: VirtualWorker) -> None:
    """The second release of a pointer is no command."""
    pointer = device_1.send(torch.ones(1))
    pointer.release()
    assert settled(pointer) is ResultStatus.RELEASED
    fleet.flush(WITHIN)
    accepted = fleet.driver.core._commands._outbox.last
    pointer.release()
    assert fleet.driver.core._commands._outbox.last == accepted


def test_a_released_unended_result_drops_its_value(fleet: Fleet) -> None:
    """A result whose scope is left before it has ended has no value when it ends, and what needs it still gets it."""
    device = VirtualWorker(fleet, "sleepy")
    device.close()
    on_device = both.send(fleet.device("sleepy"))
    with fleet.scope() as scope:
        first, second = on_device(torch.ones(2))
        user = scope.keep(on_device(first)[0])
    assert not user.ready
    VirtualWorker(fleet, "sleepy")
    assert torch.equal(user.get(WITHIN), torch.full((2,), 4.0))
    for gone in (first, second):
        with pytest.raises(ResultReleased):
            gone.get(WITHIN)
