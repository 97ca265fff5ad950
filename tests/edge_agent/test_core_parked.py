"""Commands that wait for a plan hold up what came later in their session; their end lets it go."""

from __future__ import annotations

from broker.protocol import messages as m
from edge_agent import effects as e
from tests.edge_agent.device import DemoPlan, Device, result_id, tensor_frame

PLAN, OTHER = DemoPlan(), DemoPlan("other")


def test_a_command_cancelled_while_it_waits_for_its_plan_holds_up_nobody() -> None:
    """What came later in the session starts, though the plan of the cancelled one never comes."""
    device = Device()
    device.ready(PLAN)
    device.invoke(OTHER, counter=1)
    for counter in (2, 3):
        device.invoke(PLAN, counter=counter)
    assert device.jobs() == []
    device.deliver(m.Cancel(id=result_id(1)))
    assert device.finish_all() == [result_id(2), result_id(3)]


def test_a_command_that_expires_while_it_waits_for_its_plan_holds_up_nobody() -> None:
    """As above, when its time is over."""
    device = Device()
    device.ready(PLAN)
    device.invoke(OTHER, counter=1, deadline_ms=2000)
    device.invoke(PLAN, counter=2)
    assert device.jobs() == []
    device.wait(2.5)
    assert device.finish_all() == [result_id(2)]


def test_those_that_still_wait_for_a_plan_stay_in_order() -> None:
    """The end of one of two waiting commands lets nothing overtake the other."""
    device = Device()
    device.ready(PLAN)
    for counter in (1, 2):
        device.invoke(OTHER, counter=counter)
    device.invoke(PLAN, counter=3)
    device.deliver(m.Cancel(id=result_id(1)))
    assert device.jobs() == []
    device.supply(OTHER)
    device.load()
    assert device.finish_all() == [result_id(2), result_id(3)]


def test_a_command_that_waits_for_its_argument_survives_a_restart_of_the_device() -> None:
    """The broker delivers again what has not ended: it waits again, asks again, and runs when the value comes; what
    had ended before is told once more and not run again.
    """
    device = Device()
    device.ready(PLAN)
    first = device.invoke(PLAN, counter=1)
    parked = device.invoke(PLAN, result_id(9, b"session9"), counter=2)
    assert device.finish_all() == [first.id]
    told = device.announced()[-1]
    again = Device(shelf=device.shelf)
    again.register()
    for command in (first, parked):
        again.deliver(command)
    assert again.announced()[-1] == told
    [asked] = again.take_sent(m.NeedValues)
    assert asked.ids == [result_id(9, b"session9")]
    again.receive(m.Supply(outcomes=[m.Outcome(id=result_id(9, b"session9"))]), tensor_frame(4, 2))
    again.start_worker()
    again.load()
    assert again.finish_all() == [parked.id]


def test_the_same_id_with_another_command_is_a_conflict_after_a_restart_too() -> None:
    """It is neither run nor answered with the other one's result."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    again = Device(shelf=device.shelf)
    again.register()
    again.sent.clear()
    again.invoke(PLAN, counter=1, seed=7)
    assert again.failure_of(result_id(1)).code == "IdConflict"
    assert again.take(e.StartWorker) == []
