"""Variants of plans on the device: fetched with the plan, loaded each under a name of its own, refused when wrong."""

from __future__ import annotations

from broker.protocol import messages as m
from edge_agent.core import AgentConfig
from edge_agent.jobs import LoadPlan, PlanLoaded, PlanRefused
from edge_agent.plan.format import digest_of
from tests.edge_agent.device import DemoPlan, Device

PLAN = DemoPlan("varied")
PLAIN, HALVED = b"a model", b"a model in float16"
LIGHT = AgentConfig(runtimes=("onnx",))


def supplied(*contents: bytes) -> DemoPlan:
    """The plan with variants among its parts, as a broker has them."""
    plan = DemoPlan("varied")
    plan.parts |= {digest_of(content): content for content in contents}
    return plan


def loads(device: Device) -> list[LoadPlan]:
    """The plans that the worker was told to load."""
    return [order for order in device.orders if isinstance(order, LoadPlan)]


def test_the_variant_that_the_command_names_is_loaded() -> None:
    """It is a part of the plan like the others: asked for, and given to the worker with them."""
    device = Device(LIGHT)
    device.register()
    device.invoke(PLAN, counter=1, variant=digest_of(PLAIN))
    device.supply(supplied(PLAIN))
    device.start_worker()
    [order] = loads(device)
    assert order.variant == PLAIN
    assert order.plan != PLAN.id
    device.orders.clear()
    device.feed(PlanLoaded(n=order.n, plan=order.plan, seconds=0.0))
    [job] = device.jobs()
    assert job.plan == order.plan


def test_two_variants_of_a_plan_stand_side_by_side() -> None:
    """Each has a name of its own, so that one is never run for the other."""
    device = Device(LIGHT)
    device.register()
    for counter, content in enumerate((PLAIN, HALVED), 1):
        device.invoke(PLAN, counter=counter, variant=digest_of(content))
    device.supply(supplied(PLAIN, HALVED))
    device.start_worker()
    first, second = loads(device)
    assert {first.variant, second.variant} == {PLAIN, HALVED}
    assert first.plan != second.plan
    assert first.manifest == second.manifest == PLAN.manifest


def test_a_device_with_torch_needs_no_variant() -> None:
    """It runs the graph, whatever the command names."""
    device = Device(AgentConfig(runtimes=("torch",)))
    device.register()
    device.invoke(PLAN, counter=1, variant=digest_of(PLAIN))
    device.supply(PLAN)
    device.start_worker()
    [order] = loads(device)
    assert (order.plan, order.variant) == (PLAN.id, None)


def test_a_refused_variant_fails_its_commands_and_no_others() -> None:
    """The command with another variant of the same plan goes on."""
    device = Device(LIGHT)
    device.register()
    for counter, content in enumerate((PLAIN, HALVED), 1):
        device.invoke(PLAN, counter=counter, variant=digest_of(content))
    device.supply(supplied(PLAIN, HALVED))
    device.start_worker()
    orders = {order.variant: order for order in loads(device)}
    device.orders.clear()
    wrong, right = orders[PLAIN], orders[HALVED]
    why = m.Failure(code="VariantRefused", message="its result 0 lies 0.5 from torch's")
    device.feed(PlanRefused(n=wrong.n, plan=wrong.plan, failure=why))
    device.feed(PlanLoaded(n=right.n, plan=right.plan, seconds=0.0))
    [job] = device.jobs()
    assert job.plan == right.plan
    failed = [one.event for one in device.take_sent(m.Announce) if isinstance(one.event, m.ResultFailed)]
    assert [event.failure.code for event in failed] == ["VariantRefused"]


def run(device: Device, content: bytes, counter: int) -> None:
    """One command by that variant, to its end."""
    device.invoke(PLAN, counter=counter, variant=digest_of(content))
    device.supply(supplied(PLAIN, HALVED))
    if counter == 1:
        device.start_worker()
    device.load()
    device.finish_all()


def ran(config: AgentConfig) -> Device:
    """A light device that has run both variants."""
    device = Device(config)
    device.register()
    run(device, PLAIN, 1)
    run(device, HALVED, 2)
    return device


def test_evicting_one_variant_leaves_the_plan_to_the_other() -> None:
    """The manifest and the graph are those of both; the evicted variant itself goes."""
    device = ran(AgentConfig(runtimes=("onnx",), plan_count=1))
    assert device.shelf.blob(digest_of(PLAIN)) is None
    assert device.shelf.blob(digest_of(HALVED)) == HALVED
    assert all(device.shelf.blob(part) == content for part, content in PLAN.parts.items())


def test_variants_count_after_a_restart() -> None:
    """Nothing on the disk says whose they are: beyond the limit they go first, else they are used as before."""
    device = ran(LIGHT)
    parts = sum(len(content) for part, content in PLAN.parts.items() if part != PLAN.id)
    limit = parts + len(PLAIN) + len(HALVED)
    for plan_bytes, kept in ((limit, True), (limit - 1, False)):
        again = Device(AgentConfig(runtimes=("onnx",), plan_bytes=plan_bytes), shelf=device.shelf)
        again.register()
        again.invoke(PLAN, counter=3 + kept, variant=digest_of(HALVED))
        again.start_worker()
        assert again.take_sent(m.NeedBlobs) == []
        again.load()
        again.finish_all()
        assert again.shelf.blob(digest_of(HALVED)) == HALVED
        assert (again.shelf.blob(digest_of(PLAIN)) is not None) is kept
