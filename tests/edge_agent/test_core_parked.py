"""Commands that wait for a plan hold up what came later in their session; their end lets it go."""

from __future__ import annotations

from broker.protocol import messages as m
from tests.edge_agent.device import DemoPlan, Device, result_id

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
