"""A command's way through the agent's core: taken, run, kept, announced, recorded; and all the ways in which it may
end.
"""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.framing import encode
from edge_agent import effects as e
from edge_agent.catalog import Ended
from edge_agent.core import AgentConfig
from edge_agent.jobs import CancelJob, File, RunJob
from tests.edge_agent.device import DemoPlan, Device, all_ids, own_value, result_id, tensor_frame

PLAN = DemoPlan()


def test_a_command_is_run_and_announced_with_its_value() -> None:
    """Deliver to a fresh device: parts are asked for, the worker started, the plan loaded, run, and the value
    announced inline.
    """
    device = Device()
    device.shelf.keep(None, [own_value(1, "input_data")], durable=True)
    device.register()
    command = m.Invoke(id=result_id(1), plan=PLAN.id, args=[own_value(1).id])
    digest = device.deliver(command)
    device.supply(PLAN)
    device.start_worker()
    device.load()
    [job] = device.jobs()
    assert (job.plan, job.id, job.args) == (PLAN.id, command.id, [tensor_frame(-1, 2)])
    device.finish(job, tensor_frame(2, 4))
    assert device.announced() == [m.ResultReady(id=command.id, digest=digest, inline=True)]
    assert device.sent[-1][1] == (tensor_frame(2, 4),)


def test_what_is_delivered_is_acknowledged_once_for_many() -> None:
    """Taken follows a moment after the deliveries, for all of them in one message."""
    device = Device()
    device.register()
    for counter in range(1, 11):
        device.invoke(PLAN, counter=counter)
    device.wait(0.1)
    assert device.take_sent(m.Taken) == [m.Taken(n=10)]


def test_a_delivery_out_of_turn_is_not_taken() -> None:
    """A gap is left for the broker to fill; what comes twice is acknowledged again and not run again."""
    device = Device()
    device.ready(PLAN)
    device.delivered += 1
    device.invoke(PLAN, counter=2)
    assert device.jobs() == []
    device.delivered -= 2
    device.invoke(PLAN, counter=1)
    device.delivered -= 1
    device.invoke(PLAN, counter=1)
    device.wait(0.1)
    assert [job.id for job in device.jobs()] == [result_id(1)]
    assert device.take_sent(m.Taken)[-1] == m.Taken(n=2)


def test_commands_of_a_batch_go_to_the_worker_together() -> None:
    """Ready commands don't wait for each other's results: the worker's pipe holds as many as the window allows."""
    device = Device(AgentConfig(window=3))
    device.ready(PLAN)
    for counter in range(1, 6):
        device.invoke(PLAN, counter=counter)
    assert [job.id for job in device.jobs()] == [result_id(counter) for counter in (1, 2, 3)]
    device.finish(device.jobs()[0])
    assert [job.id for job in device.jobs()] == [result_id(counter) for counter in (2, 3, 4)]


def test_a_chain_runs_link_by_link_without_asking_the_broker() -> None:
    """Ten commands, each on the result of the one before, delivered at once: each starts when its argument is there."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    for counter in range(2, 11):
        device.invoke(PLAN, result_id(counter - 1), counter=counter)
    assert device.finish_all() == [result_id(counter) for counter in range(1, 11)]
    assert device.take_sent(m.NeedValues) == []


def test_commands_of_a_session_start_in_order() -> None:
    """Also when the first one's plan has to be fetched and the second one's is loaded already."""
    device = Device()
    device.ready(PLAN)
    other = DemoPlan("other")
    device.invoke(other, counter=1)
    device.invoke(PLAN, counter=2)
    assert device.jobs() == []
    device.supply(other)
    device.load()
    assert device.finish_all() == [result_id(1), result_id(2)]


def test_a_session_waits_for_no_other_session() -> None:
    """A plan on its way holds up only the session that wants it."""
    device = Device()
    device.ready(PLAN)
    device.invoke(DemoPlan("other"), counter=1)
    device.invoke(PLAN, counter=1, session=b"session2")
    assert [job.id for job in device.jobs()] == [result_id(1, b"session2")]


def test_a_command_that_waits_for_an_argument_may_be_overtaken() -> None:
    """The one behind starts first; once the argument is there, the earlier one goes before those behind it that still
    wait.
    """
    device = Device(AgentConfig(window=1))
    device.ready(PLAN)
    missing = result_id(1, b"elsewhre")
    device.invoke(PLAN, missing, counter=1)
    for counter in (2, 3, 4):
        device.invoke(PLAN, counter=counter)
    assert [job.id for job in device.jobs()] == [result_id(2)]
    device.receive(m.Supply(outcomes=[m.Outcome(id=missing)]), tensor_frame(1, 2))
    assert device.finish_all() == [result_id(counter) for counter in (2, 1, 3, 4)]


def test_several_outputs_are_several_values_and_one_announcement() -> None:
    """Ids id, id + 1, ...: each is a value of its own for later commands."""
    device = Device()
    plan = DemoPlan("pair", outputs=2)
    device.ready(plan)
    command = device.invoke(plan, counter=1)
    device.invoke(plan, all_ids(command)[1], counter=3)
    [job] = device.jobs()
    device.finish(job, tensor_frame(1), tensor_frame(2))
    assert [type(event) for event in device.announced()] == [m.ResultReady]
    assert device.jobs()[0].args == [tensor_frame(2)]


@pytest.mark.parametrize("reason", ["large", "by wish", "file"])
def test_a_value_that_does_not_ride_along_is_on_the_disk_before_it_is_announced(reason: str) -> None:
    """Too large for its notification, asked to stay, or in a file: announced without the value, and only once it is
    kept.
    """
    device = Device()
    device.ready(PLAN)
    device.hold_commits = True
    command = device.invoke(PLAN, counter=1, inline=reason != "by wish")
    source = File("tensors/1") if reason == "file" else tensor_frame(1, 2)
    device.finish(device.jobs()[0], source, nbytes=8 if reason == "by wish" else 4096)
    assert device.announced() == []
    device.commit()
    [event] = device.announced()
    assert isinstance(event, m.ResultReady)
    assert (event.id, event.inline, event.infos[0].dtype) == (command.id, False, "float32")


def test_a_value_that_cannot_be_kept_fails_its_command() -> None:
    """A full disk: StoreFull, and never an announcement of something that is not there."""
    device = Device()
    device.ready(PLAN)
    device.hold_commits = True
    command = device.invoke(PLAN, counter=1, inline=False)
    device.finish(device.jobs()[0])
    device.feed(e.KeepFailed(ids=(command.id,), failure=m.Failure(code="StoreFull", message="the disk is full")))
    assert device.failure_of(command.id).code == "StoreFull"


def test_a_tagged_value_that_cannot_be_kept_is_found_no_more() -> None:
    """The broker was told of its tags when it was there; nobody shall find a tensor that has failed."""
    device = Device()
    device.register()
    device.acknowledge()
    device.hold_commits = True
    id = result_id(1)
    device.deliver(m.Put(id=id, tags=["t"]), tensor_frame(1, 2))
    [told] = [announce.event for announce in device.take_sent(m.Announce)]
    assert isinstance(told, m.TagsChanged)
    assert [entry.id for entry in told.entries] == [id]
    device.feed(e.KeepFailed(ids=(id,), failure=m.Failure(code="StoreFull", message="the disk is full")))
    untold, failed = (announce.event for announce in device.take_sent(m.Announce))
    assert untold == m.TagsChanged(gone=[id])
    assert isinstance(failed, m.ResultFailed)


def test_a_failure_names_device_and_plan() -> None:
    """What the worker says of a failure is announced, with where it happened."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    why = m.Failure(code="ExecutionFailed", message="boom", details={"op": "aten.add.Tensor", "op_index": 0})
    device.fail(device.jobs()[0], why)
    failure = device.failure_of(command.id)
    assert failure.details == {"device": "device_1", "plan": PLAN.id.hex(), "op": "aten.add.Tensor", "op_index": 0}


def test_a_failure_that_says_much_is_announced_shortened() -> None:
    """An announcement that is too long would be refused, and all behind it would wait."""
    device = Device()
    device.ready(PLAN)
    tags = [f"{k:0256}" for k in range(4000)]
    command = device.invoke(PLAN, tags, counter=1)
    assert device.failure_of(command.id).code == "TagNotFound"
    assert max(len(encode(message)) for message in device.take_sent(m.Announce)) < 20_000


def test_a_failed_argument_fails_all_that_hangs_on_it() -> None:
    """A chain of thousands falls in one go, each with ArgumentFailed and the id that it waited for."""
    device = Device()
    device.ready(PLAN)
    first = device.invoke(PLAN, counter=1)
    for counter in range(2, 3002):
        device.invoke(PLAN, result_id(counter - 1), counter=counter)
    device.fail(device.jobs()[0], m.Failure(code="ExecutionFailed", message="boom"))
    events: list[m.Event] = []
    while announced := device.acknowledge():  # the window lets so many out at once
        events += announced
    assert [event.id for event in events if not isinstance(event, m.TagsChanged)] == [
        result_id(k) for k in range(1, 3002)
    ]
    [last] = [event for event in events if isinstance(event, m.ResultFailed) and event.id == result_id(3001)]
    failure = last.failure
    assert (failure.code, failure.details["argument"]) == ("ArgumentFailed", result_id(3000).hex())
    assert (failure.details["code"], failure.details["message"]) == ("ExecutionFailed", "boom")
    assert len(failure.message) < 200
    assert first.id not in [job.id for job in device.jobs()]


def test_tags_name_the_one_tensor_that_carries_them_all() -> None:
    """None and several are failures of that command alone."""
    device = Device()
    device.shelf.keep(None, [own_value(1, "a", "b"), own_value(2, "a"), own_value(3, "a", "c")], durable=True)
    device.ready(PLAN)
    device.invoke(PLAN, ["a", "b"], counter=1)
    assert device.jobs()[0].args == [tensor_frame(-1, 2)]
    device.invoke(PLAN, ["a"], counter=2)
    device.invoke(PLAN, ["x"], counter=3)
    assert device.failure_of(result_id(2)).code == "TagAmbiguous"
    assert device.failure_of(result_id(3)).code == "TagNotFound"


def test_frames_and_numbers_are_arguments_too() -> None:
    """None stands for the next frame of the message, numbers for themselves, in the plan's order."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, None, 3, None, 2.5, counter=1, frames=[tensor_frame(1), tensor_frame(2)])
    assert device.jobs()[0].args == [tensor_frame(1), 3, tensor_frame(2), 2.5]


@pytest.mark.parametrize(("args", "frames"), [([None], []), ([], [tensor_frame(1)])])
def test_frames_that_do_not_fit_the_arguments_are_a_failure(args: list[None], frames: list[bytes]) -> None:
    """Too few and too many."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, *args, counter=1, frames=frames)
    assert device.failure_of(result_id(1)).code == "ArgumentMismatch"


@pytest.mark.parametrize("outputs", [2, 1 << 40])
def test_a_command_with_another_number_of_outputs_than_its_plan_fails(outputs: int) -> None:
    """Its ids would belong to nobody, or take all memory there is."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1, outputs=outputs)
    assert device.failure_of(result_id(1)).code == "ArgumentMismatch"
    device.invoke(PLAN, counter=5)
    assert device.finish_all() == [result_id(5)]


def test_ids_that_leave_their_counter_are_a_failure() -> None:
    """The last id of a session has no successor."""
    device = Device()
    plan = DemoPlan("pair", outputs=2)
    device.ready(plan)
    device.invoke(plan, counter=(1 << 64) - 1)
    assert device.failure_of(result_id((1 << 64) - 1)).code == "ArgumentMismatch"


def test_nobody_gives_an_id_of_the_devices_own() -> None:
    """A result can't take the place of a tensor that the owner has put, or will put."""
    device = Device()
    device.shelf.keep(None, [own_value(1)], durable=True)
    device.ready(PLAN)
    device.deliver(m.Invoke(id=own_value(1).id, plan=PLAN.id, args=[]))
    device.deliver(m.Put(id=own_value(2).id), tensor_frame(1))
    assert {device.failure_of(own_value(k).id).code for k in (1, 2)} == {"IdConflict"}


# ------------------------------------------------------------------------------------------------- put


def test_a_tensor_put_is_kept_and_then_announced() -> None:
    """Its info is announced once it is on the disk; commands may use it before that."""
    device = Device()
    device.ready(PLAN)
    device.hold_commits = True
    digest = device.deliver(m.Put(id=result_id(1), tags=["t"], description="two"), tensor_frame(1, 2))
    device.invoke(PLAN, result_id(1), counter=2)
    assert device.jobs()[0].args == [tensor_frame(1, 2)]
    assert device.announced() == []
    device.commit()
    info = m.ResultInfo(dtype="float32", shape=[2], nbytes=8)
    assert device.announced() == [m.ResultReady(id=result_id(1), digest=digest, infos=[info])]
    changed = [event for event in device.acknowledge() if isinstance(event, m.TagsChanged)]
    assert [entry.tags for event in changed for entry in event.entries] == [["t"]]


@pytest.mark.parametrize("frames", [[], [b"junk"], [tensor_frame(1), tensor_frame(2)]])
def test_what_is_no_tensor_is_not_put(frames: list[bytes]) -> None:
    """No frame, bytes that are none, and more than one."""
    device = Device()
    device.ready(PLAN)
    device.deliver(m.Put(id=result_id(1)), *frames)
    assert device.failure_of(result_id(1)).code in ("TensorRefused", "ArgumentMismatch")


# ------------------------------------------------------------------------------------------------- the same again


def test_the_same_command_again_is_not_run_again() -> None:
    """While it runs: nothing. When it has ended: what was announced is announced again, the value too."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    device.deliver(command)
    assert len(device.jobs()) == 1
    device.finish_all()
    device.acknowledge()
    device.deliver(command)
    assert device.jobs() == []
    [(message, frames)] = [one for one in device.sent if isinstance(one[0], m.Announce)]
    assert isinstance(message, m.Announce)
    assert isinstance(message.event, m.ResultReady)
    assert (message.event.id, len(frames)) == (command.id, 1)


@pytest.mark.parametrize("ended", [False, True])
def test_another_command_under_the_same_id_is_a_conflict(ended: bool) -> None:
    """The first one stands; the second gets IdConflict, under its own digest."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    if ended:
        device.finish_all()
        device.acknowledge()
    digest = device.deliver(m.Invoke(id=result_id(1), plan=PLAN.id, args=[3]))
    [event] = [event for event in device.announced() if isinstance(event, m.ResultFailed)]
    assert (event.digest, event.failure.code) == (digest, "IdConflict")
    assert len(device.jobs()) == (0 if ended else 1)


def test_a_command_that_ended_before_a_restart_is_known_after_it() -> None:
    """The store remembers: announced again at registration while unrecorded, and replayed when delivered again."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    device.finish_all()
    again = Device(shelf=device.shelf)
    again.register(epoch=2)
    assert [event.id for event in again.announced()] == [command.id]
    again.acknowledge()
    again.deliver(command)
    assert [event.id for event in again.announced()] == [command.id]
    assert again.jobs() == []


# ------------------------------------------------------------------------------------------------- early ends


@pytest.mark.parametrize("state", ["waiting for an argument", "waiting for its plan", "ready"])
def test_a_queued_command_that_is_cancelled_never_runs(state: str) -> None:
    """It ends as cancelled, wherever it waits."""
    device = Device(AgentConfig(window=1))
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    other = DemoPlan("other")
    args = [result_id(9, b"elsewhre")] if state == "waiting for an argument" else []
    command = device.invoke(other if state == "waiting for its plan" else PLAN, *args, counter=2)
    digest_of_command = device.delivered
    device.deliver(m.Cancel(id=command.id))
    assert [event.id for event in device.announced() if isinstance(event, m.Cancelled)] == [command.id]
    device.supply(other)
    device.load()
    assert command.id not in device.finish_all()
    assert device.delivered == digest_of_command + 1


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_command_that_its_broker_has_ended_ends_in_the_same_way(state: str) -> None:
    """Expired, or with a failure: a broker of another ledger may hear of it from the device alone."""
    device = Device(AgentConfig(window=1 if state == "queued" else 2))
    device.ready(PLAN)
    if state == "queued":
        device.invoke(PLAN, counter=9)
    expired, failed = device.invoke(PLAN, counter=1), device.invoke(PLAN, counter=2)
    why = m.Failure(code="WorkerDied", message="delivered 5 times")
    device.deliver(m.Cancel(id=expired.id, expired=True))
    device.deliver(m.Cancel(id=failed.id, failure=why))
    events = device.announced()
    assert [event.id for event in events if isinstance(event, m.Expired)] == [expired.id]
    assert [(event.id, event.failure) for event in events if isinstance(event, m.ResultFailed)] == [(failed.id, why)]


def test_a_running_command_that_is_cancelled_is_left() -> None:
    """It ends as cancelled at once; the worker is told; what it may still return is dropped, its files too."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    dependent = device.invoke(PLAN, command.id, counter=2)
    [job] = device.jobs()
    device.deliver(m.Cancel(id=command.id))
    assert device.take_orders(CancelJob) == [CancelJob(n=job.n)]
    assert isinstance(device.announced()[0], m.Cancelled)
    assert device.failure_of(dependent.id).details["code"] == "InvocationCancelled"
    device.finish(job, File("tensors/1"))
    assert device.take(e.DropFiles) == [e.DropFiles(paths=["tensors/1"])]
    assert len(device.announced()) == 2
    assert device.shelf.find(command.id) is None


@pytest.mark.parametrize("state", ["unknown", "ended"])
def test_cancelling_what_cannot_be_cancelled_does_nothing(state: str) -> None:
    """An id never heard of, and one that has ended."""
    device = Device()
    device.ready(PLAN)
    if state == "ended":
        device.invoke(PLAN, counter=1)
        device.finish_all()
    before = len(device.announced())
    device.deliver(m.Cancel(id=result_id(1)))
    assert len(device.announced()) == before


def test_a_released_value_is_dropped() -> None:
    """At once if nothing uses it; releasing again does nothing."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.finish_all()
    assert device.shelf.find(result_id(1)) is not None
    for _ in range(2):
        device.deliver(m.Release(ids=[result_id(1)]))
    assert device.shelf.find(result_id(1)) is None


def test_release_acts_after_the_commands_before_it() -> None:
    """A command taken before the release still gets the value, one taken after it does not."""
    device = Device(AgentConfig(window=1))
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    before = device.invoke(PLAN, result_id(1), counter=3)
    device.finish(device.jobs()[0])
    device.deliver(m.Release(ids=[result_id(1)]))
    after = device.invoke(PLAN, result_id(1), counter=4)
    assert device.failure_of(after.id).details["code"] == "ResultReleased"
    assert device.finish_all() == [result_id(2), before.id]
    assert device.shelf.find(result_id(1)) is None


def test_releasing_what_has_not_ended_drops_its_value_at_the_end() -> None:
    """It runs, is announced, feeds what was sent before the release, and leaves nothing."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    dependent = device.invoke(PLAN, command.id, counter=2)
    device.deliver(m.Release(ids=[command.id]))
    assert device.finish_all() == [command.id, dependent.id]
    assert [type(event) for event in device.announced()] == [m.ResultReady, m.ResultReady]
    assert device.shelf.find(command.id) is None


def test_nobody_releases_the_owners_tensor() -> None:
    """It stays, and the attempt is logged."""
    device = Device()
    device.shelf.keep(None, [own_value(1)], durable=True)
    device.ready(PLAN)
    device.deliver(m.Release(ids=[own_value(1).id]))
    assert device.shelf.find(own_value(1).id) is not None
    assert "release_refused" in [log.event for log in device.logs]


def test_a_command_past_its_deadline_is_not_started() -> None:
    """The device counts the time left itself: queued it expires, and running it is left between two ops."""
    device = Device(AgentConfig(window=1))
    device.ready(PLAN)
    running = device.invoke(PLAN, counter=1, deadline_ms=1000)
    waiting = device.invoke(PLAN, counter=2, deadline_ms=2000)
    longer = device.invoke(PLAN, counter=3, deadline_ms=60_000)
    device.wait(5)
    assert [event.id for event in device.announced() if isinstance(event, m.Expired)] == [running.id, waiting.id]
    assert device.finish_all() == [running.id, longer.id]  # the worker has not heard of it in time
    ends = {event.id: type(event) for event in device.announced()}
    assert ends == {running.id: m.Expired, waiting.id: m.Expired, longer.id: m.ResultReady}


def test_everything_ended_is_remembered_with_its_digest() -> None:
    """Values, failures and cancellations alike are kept in the store, unrecorded until the broker says so."""
    device = Device()
    device.ready(PLAN)
    for counter in (1, 2, 3):
        device.invoke(PLAN, counter=counter)
    device.fail(device.jobs()[0], m.Failure(code="ExecutionFailed", message="boom"))
    device.finish(device.jobs()[0])
    device.deliver(m.Cancel(id=result_id(3)))
    kept = [device.shelf.ended(result_id(counter)) for counter in (1, 2, 3)]
    assert [type(one.event) for one in kept if isinstance(one, Ended)] == [m.ResultFailed, m.ResultReady, m.Cancelled]
    assert not any(one.recorded for one in kept if one is not None)
    device.acknowledge()
    assert all(one.recorded for one in device.shelf.commands.values())


def test_a_job_names_its_ids_and_seed() -> None:
    """What the worker needs to name result files, and to draw random numbers."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=7, seed=42)
    [job] = device.jobs()
    assert isinstance(job, RunJob)
    assert (job.id, job.outputs, job.seed) == (result_id(7), 1, 42)
