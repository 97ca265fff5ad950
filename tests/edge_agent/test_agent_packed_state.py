"""Plans whose state comes packed for a variant: what the device asks for, keeps, counts and gives to its worker."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from edge_agent.core import AgentConfig
from edge_agent.effects import BlobUnkept
from edge_agent.jobs import LoadPlan, PlanLoaded
from edge_agent.plan.format import digest_of
from edge_agent.plan.quantised import PackedState, encode_packed
from tests.edge_agent.device import DemoPlan, Device

LIGHT = AgentConfig(runtimes=("onnx",))
WEIGHT, BIAS = b"a weight of float32, long", b"a bias"
VARIANT = b"a model of int8"
ROUNDED, SCALE = b"bytes", b"scales"
PLAN = DemoPlan("packed", state=(WEIGHT, BIAS))
PACKED = encode_packed(
    PackedState(variant=digest_of(VARIANT), state=[digest_of(ROUNDED), digest_of(BIAS), digest_of(SCALE)])
)
NAMED = digest_of(PACKED)
GRAPH = digest_of(PLAN.graph)


def supplied(*contents: bytes) -> DemoPlan:
    """The plan with more blobs beside it, as a broker has them."""
    plan = DemoPlan("packed", state=(WEIGHT, BIAS))
    plan.parts |= {digest_of(content): content for content in (PACKED, VARIANT, ROUNDED, SCALE, *contents)}
    return plan


def asked(device: Device) -> set[bytes]:
    """What the device asks the broker for, once."""
    [message] = device.take_sent(m.NeedBlobs)
    return set(message.digests)


def answer(device: Device, *contents: bytes) -> None:
    """The broker has these."""
    device.receive(m.Blobs(attached=[digest_of(one) for one in contents]), *contents)


def ran(device: Device, counter: int = 1) -> None:
    """One command by the variant with packed state, to its end."""
    device.invoke(PLAN, counter=counter, variant=NAMED)
    device.supply(supplied())
    if counter == 1:
        device.start_worker()
    device.load()
    device.finish_all()


@pytest.mark.parametrize("first", ["manifest", "packed"])
def test_the_float32_weight_is_never_asked_for(first: str) -> None:
    """First come the manifest and what the command names, by one message, in any order; then what they name."""
    device = Device(LIGHT)
    device.register()
    device.invoke(PLAN, counter=1, variant=NAMED)
    assert asked(device) == {PLAN.id, NAMED}
    two = (PLAN.manifest, PACKED)
    for content in two if first == "manifest" else reversed(two):
        answer(device, content)
    assert asked(device) == {GRAPH, digest_of(VARIANT), digest_of(ROUNDED), digest_of(BIAS), digest_of(SCALE)}
    answer(device, PLAN.graph, VARIANT, ROUNDED, BIAS, SCALE)
    device.start_worker()
    [order] = [one for one in device.orders if isinstance(one, LoadPlan)]
    assert (order.manifest, order.graph, order.variant) == (PLAN.manifest, PLAN.graph, VARIANT)
    assert (order.state, order.packed) == ([ROUNDED, BIAS, SCALE], PACKED)
    device.orders.clear()
    device.feed(PlanLoaded(n=order.n, plan=order.plan, seconds=0.0))
    [job] = device.jobs()
    assert job.plan == order.plan != PLAN.id


def test_one_changed_weight_is_all_that_is_fetched() -> None:
    """The variant, and the state that is the same, are here; each packed state is a name of its own for the worker."""
    device = Device(LIGHT)
    device.register()
    ran(device)
    other = DemoPlan("packed", state=(WEIGHT + b", changed", BIAS))
    names = [digest_of(one) for one in (b"other bytes", BIAS, SCALE)]
    packed = encode_packed(PackedState(variant=digest_of(VARIANT), state=names))
    device.invoke(other, counter=2, variant=digest_of(packed))
    assert asked(device) == {other.id, digest_of(packed)}
    answer(device, other.manifest, packed)
    assert asked(device) == {digest_of(b"other bytes")}


def test_a_restarted_device_asks_for_nothing() -> None:
    """All is in its store, though nothing there says whose it is before a command does."""
    device = Device(LIGHT)
    device.register()
    ran(device)
    again = Device(LIGHT, shelf=device.shelf)
    again.register()
    again.invoke(PLAN, counter=2, variant=NAMED)
    again.start_worker()
    assert again.take_sent(m.NeedBlobs) == []
    again.load()
    assert len(again.finish_all()) == 1


def test_what_is_here_counts_once_after_a_restart() -> None:
    """The float32 weight that is not here counts for nothing, and for its bytes when it comes after all."""
    device = Device(LIGHT)
    device.register()
    ran(device)
    here = sum(map(len, (PLAN.graph, BIAS, PACKED, VARIANT, ROUNDED, SCALE)))
    plain = b"a model of float32"
    for room, kept in ((len(WEIGHT + plain), True), (len(WEIGHT + plain) - 1, False)):
        config = AgentConfig(runtimes=("onnx",), plan_bytes=here + room)
        again = Device(config, shelf=device.shelf)
        again.register()
        again.invoke(PLAN, counter=2 + kept, variant=NAMED)
        again.start_worker()
        again.load()
        again.finish_all()
        again.invoke(PLAN, counter=4 + kept, variant=digest_of(plain))
        again.supply(supplied(plain))
        again.load()
        again.finish_all()
        assert again.shelf.blob(digest_of(WEIGHT)) == WEIGHT
        assert (again.shelf.blob(digest_of(ROUNDED)) is not None) is kept


def test_packed_state_that_is_cut_is_refused() -> None:
    """For good: the same bytes will always be."""
    cut = PACKED[:-1]
    device = Device(LIGHT)
    device.register()
    command = device.invoke(PLAN, counter=1, variant=digest_of(cut))
    device.supply(supplied(cut))
    assert device.failure_of(command.id).code == "PlanMalformed"
    assert "expected the packed state of a plan" in device.failure_of(command.id).message


@pytest.mark.parametrize("lost", [PACKED, ROUNDED])
def test_what_the_broker_has_not_is_said(lost: bytes) -> None:
    """As for other parts: the command fails, and the next one asks again."""
    device = Device(LIGHT)
    device.register()
    command = device.invoke(PLAN, counter=1, variant=NAMED)
    without = supplied()
    del without.parts[digest_of(lost)]
    device.supply(without)
    assert device.failure_of(command.id).code == "PlanNotFound"
    ran_on = device.invoke(PLAN, counter=2, variant=NAMED)
    device.supply(supplied())
    device.start_worker()
    device.load()
    assert device.finish_all() == [ran_on.id]


def test_a_store_that_cannot_keep_it_refuses_the_plan() -> None:
    """Also while nothing but the packed state is known."""
    device = Device(LIGHT)
    device.register()
    command = device.invoke(PLAN, counter=1, variant=NAMED)
    answer(device, PACKED)
    failure = m.Failure(code="StoreFull", message="no room")
    device.feed(BlobUnkept(digest=NAMED, failure=failure))
    assert device.failure_of(command.id).code == "StoreFull"


def test_evicting_leaves_what_others_are_made_of() -> None:
    """Of two packed states of one graph the older goes, and the bias, the graph and the variant stay."""
    device = Device(AgentConfig(runtimes=("onnx",), plan_count=1))
    device.register()
    ran(device)
    other = DemoPlan("packed", state=(WEIGHT + b", changed", BIAS))
    names = [digest_of(one) for one in (b"other bytes", BIAS, b"other scales")]
    packed = encode_packed(PackedState(variant=digest_of(VARIANT), state=names))
    other.parts |= {digest_of(one): one for one in (packed, VARIANT, b"other bytes", b"other scales")}
    device.invoke(other, counter=2, variant=digest_of(packed))
    device.supply(other)
    device.load()
    device.finish_all()
    for gone in (PLAN.manifest, PACKED, ROUNDED, SCALE):
        assert device.shelf.blob(digest_of(gone)) is None
    for here in (other.manifest, packed, VARIANT, BIAS, PLAN.graph):
        assert device.shelf.blob(digest_of(here)) == here
