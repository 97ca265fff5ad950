"""What an owner allows a run of a plan: memory, operations, time. With real workers, and in the agent's core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.protocol import messages as m
from broker.protocol.tensors import encode_array
from edge_agent import effects as e
from edge_agent.admission import Admission, as_over_quota
from edge_agent.core import AgentConfig
from edge_agent.jobs import Answer, CancelJob, JobFailed, JobFinished, JobProgress, PlanLoaded, RunJob, WorkerReady
from edge_agent.limits import Limits
from edge_agent.pipe import Board
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import OpFailed, PlanOverQuota
from edge_agent.plan.format import Graph, Input, Op, Special, TensorType
from edge_agent.runtimes.interface import Runtime
from edge_agent.workbench import Workbench
from edge_agent.worker import load_runtime
from edge_agent.worker_hosts import ProcessWorker, ThreadWorker
from edge_agent.worker_torch import TorchTensors
from tests.edge_agent import small_plans
from tests.edge_agent.device import DemoPlan, Device, result_id
from tests.edge_agent.plan.control_graphs import halving
from tests.edge_agent.test_worker_process import Talk

PLAN = DemoPlan()

Host = ProcessWorker | ThreadWorker


def vector(size: int) -> bytes:
    """A float32 vector of ones, as a frame."""
    return encode_array(np.ones(size, dtype=np.float32))


def job(plan: small_plans.HandMade, n: int, *args: bytes, outputs: int = 1, fold: m.Fold | None = None) -> RunJob:
    """A job."""
    return RunJob(n=n, plan=plan.id, id=result_id(n), args=list(args), outputs=outputs, fold=fold)


def greedy() -> small_plans.HandMade:
    """A convolution of float64 with a large kernel: little to give, gigabytes to get there, which no formula knows."""
    given = [("x", [1, 1, 600, 600]), ("w", [1, 1, 31, 31])]
    graph = Graph(
        inputs=[Input(name=name, dtype="float64", shape=list(shape)) for name, shape in given],
        ops=[
            Op(
                name="aten.convolution.default",
                args=[
                    Special(v=0),
                    Special(v=1),
                    None,
                    Special(l=[1, 1]),
                    Special(l=[0, 0]),
                    Special(l=[1, 1]),
                    False,
                    Special(l=[0, 0]),
                    1,
                ],
            )
        ],
        outputs=[2],
        signature=["t", ["t", 0, 1], ["d"]],
        tree=0,
        name="greedy",
    )
    return small_plans.HandMade(graph, [TensorType(dtype="float64", shape=[1, 1, 570, 570])])


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[Limits], Workbench]:
    """A bench under limits, on an empty store folder."""
    (tmp_path / "tensors").mkdir()
    board = Board(memoryview(bytearray(Board.SIZE)))
    return lambda limits: Workbench(TorchTensors(), tmp_path, board, limits=limits)


@pytest.fixture(params=["process", "thread"])
def hosted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Limits], Talk]]:
    """Either kind of worker under limits, up, and gone after the test."""
    (tmp_path / "tensors").mkdir()
    hosts: list[Host] = []

    def start(limits: Limits) -> Talk:
        host: Host
        if request.param == "process":
            host = ProcessWorker("torch", tmp_path, limits=limits)
        else:
            host = ThreadWorker(_torch, tmp_path, limits=limits)
        hosts.append(host)
        talk = Talk(host)
        host.start()
        talk.next(WorkerReady)
        return talk

    yield start
    for host in hosts:
        host.stop()
        host.bury()


def _torch() -> Runtime:
    return load_runtime("torch")


def failure_of(answer: Answer | None) -> m.Failure:
    """Why a job has failed."""
    assert isinstance(answer, JobFailed), answer
    return answer.failure


# ------------------------------------------------------------------------------------------------ before a run


def test_what_costs_too_much_is_not_run(hosted: Callable[[Limits], Talk]) -> None:
    """By the sizes of this call: a smaller one passes before and after. The failure says how much of what."""
    plan = small_plans.double_abs()  # x + x and abs: two operations an element; 12 bytes, since x stays to the end
    talk = hosted(Limits(ops=200))
    talk.host.assign([plan.load(1), job(plan, 2, vector(100)), job(plan, 3, vector(101)), job(plan, 4, vector(100))])
    talk.next(PlanLoaded)
    talk.next(JobFinished)
    failure = talk.next(JobFailed).failure
    talk.next(JobFinished)
    assert failure.code == "PlanOverQuota"
    assert failure.message == "a run of the plan needs 202 operations, and this device allows 200 operations"
    told = {key: failure.details[key] for key in ("what", "needed", "allowed")}
    assert told == {"what": "operations", "needed": 202, "allowed": 200}
    assert failure.details["plan"] == plan.id.hex()


def test_memory_is_that_of_all_values_at_their_peak(bench: Callable[[Limits], Workbench]) -> None:
    """The argument, and what is made of it."""
    plan = small_plans.double_abs()
    one = bench(Limits(memory_bytes=12_000))
    assert isinstance(one.do(plan.load()), PlanLoaded)
    assert isinstance(one.do(job(plan, 2, vector(1000))), JobFinished)
    failure = failure_of(one.do(job(plan, 3, vector(1001))))
    assert failure.message == (
        "a run of the plan needs 12,012 bytes of memory, and this device allows 12,000 bytes of memory"
    )
    assert failure.details["what"] == "memory"


def test_a_fold_is_measured_by_its_step(bench: Callable[[Limits], Workbench]) -> None:
    """Ten steps of four operations pass where four are allowed, and none where three are."""
    plan = small_plans.summing()
    data = encode_array(np.arange(30, dtype=np.float32))
    fold = m.Fold(carry=1, batch_size=3)
    zero = encode_array(np.zeros((), dtype=np.float32))
    for allowed, expected in ((4, JobFinished), (3, JobFailed)):
        one = bench(Limits(ops=allowed))
        assert isinstance(one.do(plan.load()), PlanLoaded)
        answer = one.do(job(plan, 2, zero, data, outputs=2, fold=fold))
        assert isinstance(answer, expected), answer
    assert failure_of(answer).code == "PlanOverQuota"


def test_without_a_limit_nothing_is_computed(bench: Callable[[Limits], Workbench]) -> None:
    """No formulas at load, nothing at a run."""
    plan = small_plans.double_abs()
    one = bench(Limits())
    one.do(plan.load())
    assert one._plans[plan.id].admission is None
    assert one._call == one._call_freely


def test_formulas_are_evaluated_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has passed passes again without being computed."""
    admission = Admission(Limits(ops=200), check_graph(small_plans.double_abs().graph))
    admission.admit({"n": 100})
    assert admission._model is not None
    monkeypatch.setattr(type(admission._model), "at", lambda *_: pytest.fail("computed again"))
    admission.admit({"n": 100})


def test_a_loop_of_which_nobody_knows_how_often_it_runs() -> None:
    """It is let in whatever operations are allowed, and refused where its values alone need too much memory; one that
    counts is judged by its bound.
    """
    endless, counted = check_graph(halving()), check_graph(halving(1000))
    Admission(Limits(ops=100, memory_bytes=20_000), endless).admit({"n": 1000})
    with pytest.raises(PlanOverQuota) as caught:
        Admission(Limits(memory_bytes=10_000), endless).admit({"n": 1000})
    assert caught.value.what == "memory"
    with pytest.raises(PlanOverQuota) as caught:
        Admission(Limits(ops=1_000_000), counted).admit({"n": 1000})
    assert caught.value.what == "operations"
    Admission(Limits(ops=1_000_000), counted).admit({"n": 100})


# ------------------------------------------------------------------------------------------------ while it runs


def test_a_loop_that_takes_too_long_is_left(hosted: Callable[[Limits], Talk]) -> None:
    """Between two ops of it; the worker goes on."""
    types = [TensorType(dtype="float32", shape=["n"]), TensorType(dtype="int64", shape=[])]
    plan = small_plans.HandMade(halving(), types)
    top = encode_array(np.array(1.0, dtype=np.float32))
    endless = encode_array(np.array([np.inf], dtype=np.float32))
    talk = hosted(Limits(seconds=0.3))
    talk.host.assign([plan.load(1), job(plan, 2, endless, top, outputs=2), job(plan, 3, vector(2), top, outputs=2)])
    talk.next(PlanLoaded)
    failure = talk.next(JobFailed).failure
    assert failure.code == "PlanOverQuota"
    assert failure.details["what"] == "time"
    talk.next(JobFinished)


def test_an_endless_loop_is_left_when_it_is_cancelled(hosted: Callable[[Limits], Talk]) -> None:
    """Without any limit."""
    types = [TensorType(dtype="float32", shape=["n"]), TensorType(dtype="int64", shape=[])]
    plan = small_plans.HandMade(halving(), types)
    top = encode_array(np.array(1.0, dtype=np.float32))
    endless = encode_array(np.array([np.inf], dtype=np.float32))
    talk = hosted(Limits())
    talk.host.assign([plan.load(1), job(plan, 2, endless, top, outputs=2), job(plan, 3, vector(2), top, outputs=2)])
    talk.next(PlanLoaded)
    talk.next(JobProgress)  # so it runs
    talk.host.assign([CancelJob(n=2)])
    assert talk.next(JobFailed).failure.code == "InvocationCancelled"
    talk.next(JobFinished)


def test_a_plan_that_takes_too_long_is_left(hosted: Callable[[Limits], Talk]) -> None:
    """Between two ops; the worker goes on with what is next, whatever it was."""
    plan, quick = small_plans.long(), small_plans.double_abs()
    talk = hosted(Limits(seconds=0.3))
    talk.host.assign([plan.load(1), quick.load(2), job(plan, 3, small_plans.square()), job(quick, 4, vector(2))])
    talk.next(PlanLoaded)
    talk.next(PlanLoaded)
    failure = talk.next(JobFailed).failure
    assert failure.code == "PlanOverQuota"
    assert failure.message.endswith("seconds or more, and this device allows 0.3 seconds")
    assert isinstance(failure.details["needed"], float)
    assert failure.details["needed"] >= 0.3
    talk.next(JobFinished)


def test_memory_that_no_formula_knows_is_refused_by_the_kernel(tmp_path: Path) -> None:
    """An op asks for gigabytes inside itself: a designed failure, and the worker lives on. A run that needs nearly all
    that is allowed passes: there is something more for the runtime itself.
    """
    (tmp_path / "tensors").mkdir()
    size = 20_000_000
    allowed = 3 * 4 * size
    host = ProcessWorker("torch", tmp_path, limits=Limits(memory_bytes=allowed))
    plan, modest = greedy(), small_plans.double_abs()
    frames = [encode_array(np.ones(one.shape)) for one in plan.graph.inputs]
    try:
        talk = Talk(host)
        host.start()
        pid = talk.next(WorkerReady).pid
        host.assign([plan.load(1), modest.load(2), job(plan, 3, *frames), job(modest, 4, vector(size))])
        talk.next(PlanLoaded)
        talk.next(PlanLoaded)
        failure = talk.next(JobFailed).failure
        talk.next(JobFinished)
        assert host.pid == pid
    finally:
        host.stop()
        host.bury()
    assert failure.code == "PlanOverQuota"
    assert (failure.details["what"], failure.details["allowed"]) == ("memory", allowed)
    assert isinstance(failure.details["needed"], int)
    assert failure.details["needed"] > 2_000_000_000  # 31 * 31 columns of 570 * 570 numbers of 8 bytes
    assert failure.message.endswith("bytes of memory or more, and this device allows 240,000,000 bytes of memory")


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (OpFailed("aten.mm.default", 0, "RuntimeError", "you tried to allocate 4000 bytes. Error code 12"), 4000),
        (OpFailed("the plan", -1, "Fail", "Failed to allocate memory for requested buffer of size 5000"), 5000),
        (OpFailed("aten.mm.default", 0, "MemoryError", "std::bad_alloc"), 101),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), 101),
    ],
)
def test_every_runtime_is_understood_when_it_gets_no_memory(error: Exception, needed: int) -> None:
    """By what it says; how much it asked for, where it says so."""
    over = as_over_quota(error, Limits(memory_bytes=100))
    assert over is not None
    assert (over.what, over.needed, over.allowed, over.at_least) == ("memory", needed, 100, True)
    assert as_over_quota(error, Limits(seconds=1)) is None  # nobody has limited it: the machine is full


def test_another_failure_stays_what_it_is() -> None:
    """An op that fails of something else has not run out of memory."""
    assert (
        as_over_quota(OpFailed("aten.mm.default", 0, "RuntimeError", "no such index"), Limits(memory_bytes=1)) is None
    )


def test_the_sentence_names_both() -> None:
    """What is needed, and what is allowed."""
    assert str(PlanOverQuota("time", 2.5, 2.0)) == (
        "a run of the plan needs 2.5 seconds, and this device allows 2 seconds"
    )


# ------------------------------------------------------------------------------------------------ seen from the agent


def limited(seconds: float) -> Device:
    """A device whose runs may take so long, and that has run a plan."""
    device = Device(AgentConfig(runtimes=("torch",), max_seconds=seconds, cancel_grace=5.0))
    device.ready(PLAN)
    return device


def test_an_op_that_does_not_end_costs_its_worker() -> None:
    """The worker cannot look at the time inside an op: the agent does, fails the command, and ends the worker."""
    device = limited(10)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    first, _ = device.jobs()
    device.wait(10.9)
    assert device.take_orders(CancelJob) == []
    device.wait(0.2)
    assert device.take_orders(CancelJob) == [CancelJob(n=first.n)]
    failure = device.failure_of(result_id(1))
    assert failure.code == "PlanOverQuota"
    assert failure.message == "a run of the plan needs more than 10 seconds, and this device allows 10 seconds"
    device.wait(6)
    assert device.take(e.KillWorker) == [e.KillWorker()]
    device.kill_worker(doing=first)
    device.wait(1)
    device.start_worker()
    device.load()
    assert device.finish_all() == [result_id(2)]


def test_a_job_that_comes_further_is_given_time() -> None:
    """A fold of many steps says so between them; the limit is that of one step."""
    device = limited(10)
    device.invoke(PLAN, counter=1)
    [running] = device.jobs()
    for k in range(10):
        device.wait(9)
        device.feed(JobProgress(n=running.n, progress=k / 10))
    assert device.announced() == []
    device.finish(running)
    device.wait(60)
    assert device.take(e.KillWorker) == []


def test_a_job_that_waits_in_the_pipe_is_not_running() -> None:
    """Its time begins when the one before it has ended."""
    device = limited(10)
    device.invoke(PLAN, counter=1)
    device.invoke(PLAN, counter=2)
    first, second = device.jobs()
    device.wait(8)
    device.finish(first)
    device.wait(8)
    device.finish(second)
    ended = {event.id: type(event) for event in device.announced()}
    assert ended == {result_id(1): m.ResultReady, result_id(2): m.ResultReady}


def test_a_command_is_left_when_its_deadline_passes_while_it_runs() -> None:
    """Between two ops, as if it had been cancelled; it has expired."""
    device = Device()
    device.ready(PLAN)
    device.invoke(PLAN, counter=1, deadline_ms=5000)
    [running] = device.jobs()
    device.wait(4.9)
    assert device.take_orders(CancelJob) == []
    device.wait(0.2)
    assert device.take_orders(CancelJob) == [CancelJob(n=running.n)]
    assert [type(event) for event in device.announced()] == [m.Expired]
    device.fail(running, m.Failure(code="InvocationCancelled", message=""))
    assert [type(event) for event in device.announced()] == [m.Expired]
