"""A worker with onnxruntime: a model is one call to it, and is left between two ops all the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker.protocol import messages as m
from broker.protocol.tensors import decode_array, encode_array
from coordinator.translation.variants import make_variant
from edge_agent.jobs import CancelJob, JobFailed, JobFinished, JobProgress, LoadPlan, PlanLoaded, RunJob, WorkerReady
from edge_agent.limits import Limits
from edge_agent.runtimes.interface import Runtime
from edge_agent.worker import load_runtime
from edge_agent.worker_hosts import ProcessWorker, ThreadWorker
from tests.edge_agent import small_plans
from tests.edge_agent.device import result_id
from tests.edge_agent.test_worker_process import Host, Talk, job
from tests.waiting import wait_until


@functools.cache
def variant(name: str) -> bytes:
    """The variant of a small plan."""
    return make_variant(getattr(small_plans, name)().graph)


def load(name: str, n: int) -> LoadPlan:
    """The order to load a small plan for onnxruntime."""
    plan: small_plans.HandMade = getattr(small_plans, name)()
    return msgspec.structs.replace(plan.load(n), variant=variant(name))


def _onnx() -> Runtime:
    return load_runtime("onnx")


@pytest.fixture(params=["process", "thread"])
def hosted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Talk]]:
    """Either kind of worker under limits, up, and gone after the test."""
    (tmp_path / "tensors").mkdir()
    hosts: list[Host] = []

    def start(limits: Limits | None = None, checkpoint_seconds: float = 30.0) -> Talk:
        host: Host
        if request.param == "process":
            host = ProcessWorker("onnx", tmp_path, limits=limits, checkpoint_seconds=checkpoint_seconds)
        else:
            host = ThreadWorker(_onnx, tmp_path, limits=limits, checkpoint_seconds=checkpoint_seconds)
        hosts.append(host)
        talk = Talk(host)
        host.start()
        assert talk.next(WorkerReady).runtime == "onnx"
        return talk

    yield start
    for host in hosts:
        host.stop()
        host.bury()


def running(talk: Talk, n: int = 3) -> None:
    """Load a plan that takes many seconds and another one, run the first as job ``n``, and wait until it is at it."""
    talk.host.assign([load("long", 1), load("double_abs", 2), job(small_plans.long(), n, small_plans.square())])
    talk.next(PlanLoaded)
    talk.next(PlanLoaded)
    host = talk.host
    assert isinstance(host, ProcessWorker | ThreadWorker)
    wait_until(lambda: host._board is not None and host._board.doing == n)


def doubled(talk: Talk, n: int) -> list[float]:
    """What the worker gives for another plan."""
    talk.host.assign([job(small_plans.double_abs(), n, encode_array(np.array([-1, 2], dtype=np.float32)))])
    [output] = talk.next(JobFinished).outputs
    assert isinstance(output.source, bytes)
    found: list[float] = decode_array(output.source).tolist()
    return found


def test_a_run_is_left_when_it_is_cancelled(hosted: Callable[..., Talk]) -> None:
    """Between two of its ops; the same worker goes on with the next job, and can be cancelled in that as well."""
    talk = hosted()
    pid = getattr(talk.host, "pid", None)
    running(talk)
    talk.host.assign([CancelJob(n=3)])
    assert talk.next(JobFailed).failure.code == "InvocationCancelled"
    assert doubled(talk, 4) == [2, 4]
    talk.host.assign([job(small_plans.long(), 5, small_plans.square()), CancelJob(n=5)])
    assert talk.next(JobFailed).failure.code == "InvocationCancelled"
    assert doubled(talk, 6) == [2, 4]
    assert getattr(talk.host, "pid", None) == pid


def test_a_run_that_takes_too_long_is_left(hosted: Callable[..., Talk]) -> None:
    """As torch's is: with how long it took and might have taken."""
    talk = hosted(Limits(seconds=0.3))
    pid = getattr(talk.host, "pid", None)
    running(talk)
    failure = talk.next(JobFailed).failure
    assert failure.code == "PlanOverQuota"
    assert failure.message.endswith("seconds or more, and this device allows 0.3 seconds")
    assert isinstance(failure.details["needed"], float)
    assert failure.details["needed"] >= 0.3
    assert doubled(talk, 4) == [2, 4]
    assert getattr(talk.host, "pid", None) == pid


def test_a_worker_that_shall_end_leaves_its_run(hosted: Callable[..., Talk]) -> None:
    """It is not killed for it; its number tells what was not done."""
    talk = hosted()
    running(talk)
    talk.host.stop()
    doing, reason = talk.host.bury()
    assert (doing, reason) == (3, "exit code 0" if isinstance(talk.host, ProcessWorker) else "it ended")


def test_a_fold_goes_on_after_its_worker_was_ended(hosted: Callable[..., Talk], tmp_path: Path) -> None:
    """What it was at is left, and not given up: its checkpoint stays."""
    plan = small_plans.summing()
    steps = 1_000_000
    fold = m.Fold(carry=1, batch_size=3, epochs=steps)
    zero, data = encode_array(np.zeros((), np.float32)), encode_array(np.ones(3, np.float32))
    order = RunJob(n=2, plan=plan.id, id=result_id(1), args=[zero, data], outputs=2, fold=fold)
    for resumed in (False, True):
        talk = hosted(checkpoint_seconds=0.0)
        talk.host.assign([load("summing", 1), order])
        talk.next(PlanLoaded)
        if resumed:
            assert talk.next(JobProgress).resumed > 0
        wait_until((tmp_path / "checkpoints" / order.id.hex()).exists)  # written last
        talk.host.stop()
        assert talk.host.bury()[0] == 2
        assert len(list(tmp_path.glob("checkpoints/*"))) >= 2
