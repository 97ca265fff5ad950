"""Plans on the device: fetched part by part, checked by the worker, kept within limits."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.effects import LinkDown, Received
from broker.protocol.framing import command_digest
from edge_agent import effects as e
from edge_agent.core import AgentConfig
from edge_agent.jobs import File, LoadPlan, UnloadPlan
from edge_agent.plan.format import digest_of
from tests.edge_agent.device import DemoPlan, Device, result_id

STATE = DemoPlan("stateful", state=[b"weights" * 10, b"bias"])


def test_a_plan_is_asked_for_in_two_steps() -> None:
    """The manifest, then what it names; then the worker is told where all of it is."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[STATE.id])]
    device.receive(m.Blobs(attached=[STATE.id]), STATE.manifest)
    [asked] = device.take_sent(m.NeedBlobs)
    assert set(asked.digests) == STATE.parts.keys() - {STATE.id}
    device.receive(m.Blobs(attached=asked.digests), *(STATE.parts[digest] for digest in asked.digests))
    device.start_worker()
    [order] = device.take_orders(LoadPlan)
    assert (order.manifest, order.graph, order.state) == (STATE.manifest, STATE.graph, [b"weights" * 10, b"bias"])


def test_a_manifest_is_asked_for_apart() -> None:
    """It must come in the answer itself: neither the parts of another plan nor another manifest takes its room."""
    device = Device()
    device.register()
    second, third = DemoPlan("second"), DemoPlan("third")
    device.invoke(STATE, counter=1)
    device.take_sent(m.NeedBlobs)
    manifest = Received(message=m.Blobs(attached=[STATE.id]), frames=(STATE.manifest,))
    commands = [m.Invoke(id=result_id(k), plan=plan.id, args=[]) for k, plan in ((2, second), (3, third))]
    delivered = [m.Deliver(n=n, digest=command_digest(one), command=one) for n, one in enumerate(commands, 2)]
    device.feed(manifest, *(Received(message=one) for one in delivered))
    parts = [digest for digest in STATE.parts if digest != STATE.id]
    assert [one.digests for one in device.take_sent(m.NeedBlobs)] == [parts, [second.id], [third.id]]


def test_many_commands_ask_for_their_plan_once() -> None:
    """And all of them run when it is there."""
    device = Device()
    device.register()
    for counter in range(1, 6):
        device.invoke(STATE, counter=counter)
    assert len(device.take_sent(m.NeedBlobs)) == 1
    device.feed()
    assert device.take_sent(m.NeedBlobs) == []


def test_parts_that_are_here_already_are_not_asked_for() -> None:
    """New weights make a new manifest, and move only what has changed."""
    device = Device()
    device.ready(STATE)
    changed = DemoPlan("stateful", state=[b"weights" * 10, b"new bias"])
    device.invoke(changed, counter=1)
    device.receive(m.Blobs(attached=[changed.id]), changed.manifest)
    asked = [message.digests for message in device.take_sent(m.NeedBlobs)]
    assert asked == [[changed.id], [digest_of(b"new bias")]]


def test_an_altered_part_is_not_taken() -> None:
    """Bytes that do not have the digest are dropped, and asked for again."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.take_sent(m.NeedBlobs)
    device.receive(m.Blobs(attached=[STATE.id]), STATE.manifest[:-1] + b"?")
    assert "blob_altered" in [log.event for log in device.logs]
    device.wait(4)
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[STATE.id])]


def test_an_unanswered_question_is_asked_again_and_at_once_after_a_reconnect() -> None:
    """NeedBlobs may get lost like any message."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.take_sent(m.NeedBlobs)
    device.wait(3.5)
    assert len(device.take_sent(m.NeedBlobs)) == 1
    device.feed(LinkDown())
    device.wait(30)
    assert device.take_sent(m.NeedBlobs) == []
    device.register(first=2)
    assert len(device.take_sent(m.NeedBlobs)) == 1


def test_a_plan_that_nobody_has_fails_its_commands() -> None:
    """PlanNotFound; a later command asks again, since it may be there by then."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.receive(m.Blobs(none=[STATE.id]))
    assert device.failure_of(result_id(1)).code == "PlanNotFound"
    device.take_sent(m.NeedBlobs)
    device.invoke(STATE, counter=2)
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[STATE.id])]


def test_a_plan_that_is_none_fails_its_commands() -> None:
    """PlanMalformed, at once for every later command."""
    device = Device()
    device.register()
    junk = b"no manifest"
    device.deliver(m.Invoke(id=result_id(1), plan=digest_of(junk), args=[]))
    device.receive(m.Blobs(attached=[digest_of(junk)]), junk)
    device.deliver(m.Invoke(id=result_id(2), plan=digest_of(junk), args=[]))
    assert [device.failure_of(result_id(k)).code for k in (1, 2)] == ["PlanMalformed", "PlanMalformed"]


def test_a_plan_that_the_worker_refuses_fails_its_commands() -> None:
    """With the worker's own word for it, also for those that come later and those that wait for an argument."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.invoke(STATE, result_id(1, b"elsewhre"), counter=2)
    device.supply(STATE)
    device.start_worker()
    device.load(refuse=m.Failure(code="UnknownOp", message="expected an op of the registry"))
    device.invoke(STATE, counter=3)
    assert {device.failure_of(result_id(k)).code for k in (1, 2, 3)} == {"UnknownOp"}


def test_a_large_part_is_fetched_on_the_blob_channel() -> None:
    """The broker says its size, the driver fetches it, and the worker is given its file."""
    device = Device()
    device.register(blobs="tcp://*:5752")
    device.invoke(STATE, counter=1)
    device.receive(m.Blobs(attached=[STATE.id]), STATE.manifest)
    large = digest_of(b"weights" * 10)
    small = [digest for digest in STATE.parts if digest not in (STATE.id, large)]
    device.receive(m.Blobs(attached=small, pull={large: 70}), *(STATE.parts[digest] for digest in small))
    assert device.take(e.FetchBlob) == [e.FetchBlob(digest=large, size=70)]
    device.take_sent(m.NeedBlobs)
    device.feed(e.BlobFailed(digest=large, reason="cut"))
    device.wait(4)
    assert device.take_sent(m.NeedBlobs) == [m.NeedBlobs(digests=[large])]  # it may be there no longer
    device.receive(m.Blobs(pull={large: 70}))
    assert device.take(e.FetchBlob) == [e.FetchBlob(digest=large, size=70)]
    device.feed(e.BlobArrived(digest=large, path="incoming/large"))
    device.start_worker()
    [order] = device.take_orders(LoadPlan)
    assert order.state == [File("incoming/large"), b"bias"]


@pytest.mark.parametrize(("full", "code"), [(False, "PlanNotFound"), (True, "StoreFull")])
def test_a_part_that_can_never_be_fetched_fails_its_commands(full: bool, code: str) -> None:
    """After several attempts, by what stood in the way."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.receive(m.Blobs(attached=[STATE.id]), STATE.manifest)
    large = digest_of(b"bias")
    for _ in range(8):
        assert device.take_sent(m.NeedBlobs)
        device.receive(m.Blobs(pull={large: 4}))
        assert device.take(e.FetchBlob)
        device.feed(e.BlobFailed(digest=large, reason="it was cut", full=full))
        device.wait(60)
    failure = device.failure_of(result_id(1))
    assert failure.code == code
    assert "it was cut" in failure.message


def test_a_plan_is_loaded_again_by_the_next_worker() -> None:
    """Its parts are here: nothing is asked of the broker."""
    device = Device()
    device.ready(STATE)
    device.wait(61)
    device.take_sent(m.NeedBlobs)
    assert device.take(e.StopWorker)
    device.feed(e.WorkerDied())
    device.invoke(STATE, counter=1)
    device.start_worker()
    device.load()
    assert device.finish_all() == [result_id(1)]
    assert device.take_sent(m.NeedBlobs) == []


def test_plans_survive_a_restart() -> None:
    """What the store has is used without a question to the broker."""
    device = Device()
    device.ready(STATE)
    again = Device(shelf=device.shelf)
    again.register()
    again.invoke(STATE, counter=1)
    again.start_worker()
    again.load()
    assert again.finish_all() == [result_id(1)]
    assert again.take_sent(m.NeedBlobs) == []


@pytest.mark.parametrize("limit", [AgentConfig(plan_count=2), AgentConfig(plan_bytes=250)])
def test_the_plans_used_least_recently_go_first(limit: AgentConfig) -> None:
    """Beyond the limit of count or bytes, out of the store and out of the worker; and they can come again."""
    device = Device(limit)
    plans = [DemoPlan(name, state=[bytes([k]) * 100]) for k, name in enumerate(("a", "b", "c"))]
    device.ready(plans[0])
    for counter, plan in enumerate((plans[1], plans[0], plans[2]), 1):
        device.invoke(plan, counter=counter)
        device.supply(*plans)
        device.load()
        device.finish_all()
    assert device.shelf.blob(plans[1].id) is None
    assert device.shelf.blob(plans[0].id) is not None
    device.invoke(plans[1], counter=5)
    assert device.take_orders(UnloadPlan) == [UnloadPlan(plan=plans[1].id)]
    device.supply(*plans)
    device.load()
    assert device.finish_all() == [result_id(5)]


def test_a_part_that_two_plans_share_stays_with_the_second() -> None:
    """Evicting one plan takes only what no other plan consists of."""
    device = Device(AgentConfig(plan_count=2))
    first, second = DemoPlan("a", state=[b"shared", b"own"]), DemoPlan("b", state=[b"shared"])
    device.ready(first)
    for counter, plan in enumerate((second, DemoPlan("c")), 1):
        device.invoke(plan, counter=counter)
        device.supply(plan)
        device.load()
        device.finish_all()
    assert device.shelf.blob(digest_of(b"own")) is None
    assert device.shelf.blob(digest_of(b"shared")) is not None


def test_a_plan_in_use_is_not_evicted() -> None:
    """However small the limit: a command waits for it."""
    device = Device(AgentConfig(plan_count=1))
    first, second = DemoPlan("a"), DemoPlan("b")
    device.ready(first)
    device.invoke(first, counter=1)
    device.invoke(second, counter=2)
    device.supply(second)
    device.load()
    assert device.finish_all() == [result_id(1), result_id(2)]


def test_a_plan_that_the_store_cannot_keep_fails_its_commands_for_now() -> None:
    """The disk is full: StoreFull; a later command tries again."""
    device = Device()
    device.register()
    device.invoke(STATE, counter=1)
    device.supply(STATE)
    why = m.Failure(code="StoreFull", message="the disk is full")
    device.feed(e.BlobUnkept(digest=digest_of(b"bias"), failure=why))
    assert device.failure_of(result_id(1)).code == "StoreFull"
    device.invoke(STATE, counter=2)
    device.supply(STATE)
    device.start_worker()
    device.load()
    assert device.finish_all() == [result_id(2)]


def test_a_part_that_is_damaged_is_fetched_again() -> None:
    """The worker finds it: it is dropped, had from the broker once more, and the command that waits is run; but one
    that is damaged every time ends in a refusal.
    """
    plan = DemoPlan()
    device = Device()
    device.ready(plan)
    graph = next(digest for digest in plan.parts if digest != plan.id)
    again = Device(shelf=device.shelf)
    again.register()
    again.invoke(plan, counter=1)
    again.start_worker()
    why = m.Failure(code="PartDamaged", message="altered", details={"part": graph.hex()})
    again.load(refuse=why)
    [asked] = again.take_sent(m.NeedBlobs)
    assert asked.digests == [graph]
    assert again.shelf.blob(graph) is None
    again.receive(m.Blobs(attached=[graph]), plan.parts[graph])
    assert again.shelf.blob(graph) == plan.parts[graph]
    again.load(refuse=why)
    again.receive(m.Blobs(attached=[graph]), plan.parts[graph])
    again.load()
    assert again.finish_all() == [result_id(1)]
    hopeless = Device(shelf=device.shelf)
    hopeless.register()
    hopeless.invoke(plan, counter=2)
    hopeless.start_worker()
    for _ in range(3):
        hopeless.load(refuse=why)
        hopeless.receive(m.Blobs(attached=[graph]), plan.parts[graph])
    assert hopeless.failure_of(result_id(2)).code == "PartDamaged"
