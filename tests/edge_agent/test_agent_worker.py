"""The worker as the core sees it: started on demand, ended when idle, restarted when it dies, given up on a poison
command.
"""

from __future__ import annotations

from broker.protocol import messages as m
from edge_agent import effects as e
from edge_agent.core import AgentConfig
from edge_agent.jobs import CancelJob, JobFailed, JobProgress, LoadPlan, WorkerReady, WorkerUnfit
from tests.edge_agent.device import DemoPlan, Device, result_id

PLAN = DemoPlan()


def restart(device: Device) -> None:
    """A worker that died is replaced, and loads its plans."""
    device.start_worker()
    device.load()


def test_the_worker_is_started_by_the_first_command() -> None:
    """And once, however many there are."""
    device = Device()
    device.register()
    assert device.take(e.StartWorker) == []
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    assert len(device.take(e.StartWorker)) == 1


def test_an_idle_worker_is_ended_and_comes_back() -> None:
    """After the idle time and not before; the next command starts another."""
    device = Device(AgentConfig(idle_seconds=60))
    device.ready(PLAN)
    device.wait(59)
    assert device.take(e.StopWorker) == []
    device.wait(2)
    assert len(device.take(e.StopWorker)) == 1
    device.invoke(PLAN, counter=1)
    assert device.take(e.StartWorker) == []
    device.feed(e.WorkerDied(reason="exit code 0"))
    restart(device)
    assert device.finish_all() == [result_id(1)]


def test_a_working_worker_is_not_ended() -> None:
    """A plan that takes an hour is work."""
    device = Device(AgentConfig(idle_seconds=60))
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.wait(3600)
    assert device.take(e.StopWorker) == []


def test_what_a_dead_worker_left_undone_is_done_by_the_next() -> None:
    """In the same order; what had ended before is not run again."""
    device = Device()
    device.ready(PLAN)
    for counter in (1, 2, 3):
        device.invoke(PLAN, counter=counter)
    device.finish(device.jobs()[0])
    device.kill_worker(doing=device.jobs()[0])
    restart(device)
    assert device.finish_all() == [result_id(2), result_id(3)]


def test_a_command_that_kills_two_workers_has_failed() -> None:
    """WorkerDied, with how it ended; those around it are run and unharmed."""
    device = Device()
    device.ready(PLAN)
    for counter in (1, 2, 3):
        device.invoke(PLAN, counter=counter)
    device.finish(device.jobs()[0])
    for _ in range(2):
        device.kill_worker(doing=device.jobs()[0], reason="SIGSEGV")
        restart(device)
    failure = device.failure_of(result_id(2))
    assert (failure.code, failure.details["deaths"], failure.details["reason"]) == ("WorkerDied", 2, "SIGSEGV")
    assert device.finish_all() == [result_id(3)]


def test_deaths_are_counted_across_a_restart_of_the_agent() -> None:
    """The first is written down before the next attempt; after the second the command has failed, and is not run by
    another start of the agent either.
    """
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    device.kill_worker(doing=device.jobs()[0])
    assert device.shelf.deaths(command.id) == 1
    again = Device(shelf=device.shelf)
    again.register()
    again.deliver(command)
    again.start_worker()
    again.load()
    again.kill_worker(doing=again.jobs()[0])
    assert again.failure_of(command.id).code == "WorkerDied"
    assert again.shelf.deaths(command.id) == 0  # its end is in the store
    poisoned = Device(shelf=device.shelf)
    poisoned.shelf.mark_death(result_id(2), 2)  # the agent was killed between writing this and the end
    poisoned.register()
    poisoned.invoke(PLAN, counter=2)
    assert poisoned.failure_of(result_id(2)).code == "WorkerDied"


def test_a_cancelled_job_that_does_not_stop_costs_its_worker() -> None:
    """After a grace, counted from when the worker has come to it; those behind it are run by the next."""
    device = Device(AgentConfig(runtimes=("torch",), cancel_grace=5.0))
    device.ready(PLAN)
    for counter in (1, 2, 3):
        device.invoke(PLAN, counter=counter)
    first, second, _ = device.jobs()
    device.deliver(m.Cancel(id=result_id(2)))
    assert device.take_orders(CancelJob) == [CancelJob(n=second.n)]
    device.wait(60)
    assert device.take(e.KillWorker) == []  # the first may take its time
    device.finish(first)
    device.wait(4.9)
    assert device.take(e.KillWorker) == []
    device.wait(0.2)
    assert device.take(e.KillWorker) == [e.KillWorker()]
    device.kill_worker(doing=second)
    restart(device)
    assert device.finish_all() == [result_id(3)]
    assert device.shelf.deaths(result_id(2)) == 0


def test_a_cancelled_job_that_stops_in_time_costs_nothing() -> None:
    """The worker has left it between two ops."""
    device = Device(AgentConfig(runtimes=("torch",), cancel_grace=5.0))
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    [job] = device.jobs()
    device.deliver(m.Cancel(id=result_id(1)))
    device.wait(4)
    device.orders.clear()
    device.feed(JobFailed(n=job.n, failure=m.Failure(code="InvocationCancelled", message="")))
    device.wait(30)
    assert device.take(e.KillWorker) == []


def test_heartbeats_say_how_far_the_worker_is() -> None:
    """With what runs; what waits in the worker's pipe is not known to be anywhere. Another attempt begins anew."""
    device = Device()
    device.ready(PLAN)
    for counter in (1, 2):
        device.invoke(PLAN, counter=counter)
    job = device.jobs()[0]
    device.feed(JobProgress(n=job.n, progress=0.25))
    device.wait(11.1)
    assert device.take_sent(m.Heartbeat)[-1].running == {result_id(1): 0.25, result_id(2): -1.0}
    device.kill_worker(doing=job)
    restart(device)
    device.wait(11.1)
    assert device.take_sent(m.Heartbeat)[-1].running[result_id(1)] == -1.0


def test_deaths_that_name_no_order_end_too() -> None:
    """A worker that dies before it can say where it was: the first undone command is suspected, and no loop goes on
    for ever.
    """
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1)
    device.kill_worker()
    restart(device)
    device.kill_worker()
    assert device.failure_of(result_id(1)).code == "WorkerDied"
    assert device.take(e.StartWorker) == []


def test_a_plan_that_kills_two_workers_while_it_is_loaded_is_refused() -> None:
    """All its commands fail, now and later."""
    device = Device()
    device.register()
    device.invoke(PLAN, counter=1)
    device.supply(PLAN)
    for _ in range(2):
        device.start_worker()
        [order] = device.take_orders(LoadPlan)
        device.kill_worker(doing=order)
    assert device.failure_of(result_id(1)).code == "WorkerDied"
    device.invoke(PLAN, counter=2)
    assert device.failure_of(result_id(2)).code == "WorkerDied"


def test_a_worker_that_does_not_start_is_tried_again_and_then_its_commands_fail() -> None:
    """Three times, with growing pauses; a later command tries anew."""
    device = Device()
    device.register()
    device.invoke(PLAN, counter=1)
    device.supply(PLAN)
    for _ in range(3):
        assert len(device.take(e.StartWorker)) == 1
        device.feed(e.WorkerDied(reason="exit code 1"))
        device.wait(10)
    assert device.failure_of(result_id(1)).code == "WorkerDied"
    assert device.take(e.StartWorker) == []
    device.invoke(PLAN, counter=2)
    device.wait(10)
    device.start_worker()
    device.load()
    assert device.finish_all() == [result_id(2)]


def test_a_worker_that_says_why_it_cannot_run_plans_is_believed() -> None:
    """Torch is not installed: three attempts would not change that."""
    device = Device()
    device.register()
    device.invoke(PLAN, counter=1)
    device.supply(PLAN)
    device.take(e.StartWorker)
    device.feed(WorkerUnfit(reason="ModuleNotFoundError: No module named 'torch'"))
    device.feed(e.WorkerDied(reason="exit code 1"))
    failure = device.failure_of(result_id(1))
    assert failure.code == "WorkerDied"
    assert "No module named 'torch'" in failure.message


def test_a_command_cancelled_while_its_worker_dies_stays_cancelled() -> None:
    """It is neither run again nor failed."""
    device = Device()
    device.ready(PLAN)
    command = device.invoke(PLAN, counter=1)
    job = device.jobs()[0]
    device.deliver(m.Cancel(id=command.id))
    for _ in range(2):
        device.kill_worker(doing=job)
        device.invoke(PLAN, counter=2)
        device.wait(1)
        device.take(e.StartWorker)
        device.feed(WorkerReady(pid=1, runtime="torch"))
        device.load()
    assert [type(event) for event in device.announced()] == [m.Cancelled]
    assert device.finish_all() == [result_id(2)]
