"""The worker as a real process: starts, runs, is killed, and never outlives its agent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from broker.protocol.tensors import decode_array, encode_array
from edge_agent.jobs import (
    Answer,
    CancelJob,
    JobFailed,
    JobFinished,
    JobProgress,
    PlanLoaded,
    RunJob,
    WorkerReady,
    WorkerUnfit,
)
from edge_agent.runtimes.interface import Runtime
from edge_agent.worker import load_runtime
from edge_agent.worker_hosts import ProcessWorker, ThreadWorker, WorkerHost
from tests.edge_agent import small_plans
from tests.edge_agent.device import result_id
from tests.processes import started
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
T = TypeVar("T")

Host = ProcessWorker | ThreadWorker


class Talk:
    """A test's side of a worker's pipe."""

    def __init__(self, host: WorkerHost) -> None:
        self.host = host
        self._heard: list[Answer] = []

    def next(self, kind: type[T]) -> T:
        """Wait for the next answer, which must be of this kind; what is said of progress before it, where jobs take
        long, is skipped.
        """
        while True:
            while self._heard and isinstance(self._heard[0], JobProgress) and kind is not JobProgress:
                del self._heard[0]
            if self._heard:
                break
            pipe = self.host.fileno()
            readable, writable, _ = select.select([pipe], [pipe] if self.host.clogged else [], [], PATIENCE)
            assert readable or writable, f"no {kind.__name__} within {PATIENCE} s"
            self.host.flush()
            heard = self.host.hear()
            assert heard is not None, "the worker has ended"
            self._heard += heard
        answer = self._heard.pop(0)
        assert isinstance(answer, kind), answer
        return answer

    def end(self) -> tuple[int, str]:
        """Wait for the worker's end; how it ended."""
        while True:
            readable, _, _ = select.select([self.host.fileno()], [], [], PATIENCE)
            assert readable, "the worker should have ended"
            if self.host.hear() is None:
                return self.host.bury()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's folder."""
    (tmp_path / "tensors").mkdir()
    return tmp_path


@pytest.fixture(params=["process", "thread"])
def host(request: pytest.FixtureRequest, folder: Path) -> Iterator[Host]:
    """Either kind of worker, gone after the test."""
    made: Host
    made = ProcessWorker("torch", folder) if request.param == "process" else ThreadWorker(torch_runtime, folder)
    yield made
    made.stop()
    made.bury()


@pytest.fixture
def process(folder: Path) -> Iterator[ProcessWorker]:
    """A worker process, gone after the test."""
    made = ProcessWorker("torch", folder)
    yield made
    made.bury()


def torch_runtime() -> Runtime:
    """What the thread runs plans with."""
    return load_runtime("torch")


def frame(*numbers: float) -> bytes:
    """A float32 vector."""
    return encode_array(np.array(numbers, dtype=np.float32))


def job(plan: small_plans.HandMade, n: int, *args: bytes) -> RunJob:
    """A job of one output."""
    return RunJob(n=n, plan=plan.id, id=result_id(n), args=list(args))


def test_a_worker_runs_plans_and_ends_when_told(host: Host) -> None:
    """Either kind; and it can be started again after its end."""
    plan = small_plans.double_abs()
    for _ in range(2):
        talk = Talk(host)
        host.start()
        assert talk.next(WorkerReady).runtime == "torch"
        host.assign([plan.load(1), job(plan, 2, frame(-1, 2))])
        talk.next(PlanLoaded)
        [output] = talk.next(JobFinished).outputs
        assert isinstance(output.source, bytes)
        assert decode_array(output.source).tolist() == [2, 4]
        host.stop()
        assert talk.end()[0] == 0
        assert host.fileno() == -1


def test_a_long_job_is_left_when_it_is_cancelled(host: Host) -> None:
    """Between two ops: the next job does not wait for the end of it."""
    plan = small_plans.long()
    talk = Talk(host)
    host.start()
    talk.next(WorkerReady)
    host.assign([plan.load(1), job(plan, 2, small_plans.square())])
    talk.next(PlanLoaded)
    wait_until(lambda: host._board is not None and host._board.doing == 2)
    host.assign([CancelJob(n=2)])
    assert talk.next(JobFailed).failure.code == "InvocationCancelled"


def test_a_killed_worker_tells_what_it_was_doing(process: ProcessWorker) -> None:
    """The number of the job that it was at, and the signal."""
    plan = small_plans.long()
    talk = Talk(process)
    process.start()
    talk.next(WorkerReady)
    process.assign([plan.load(1), job(plan, 2, small_plans.square())])
    talk.next(PlanLoaded)
    wait_until(lambda: process._board is not None and process._board.doing == 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert talk.end() == (2, "SIGKILL")


def test_a_worker_without_its_runtime_says_so(folder: Path) -> None:
    """What is missing is its only word; then it ends."""
    host = ProcessWorker("tvm", folder)
    talk = Talk(host)
    try:
        host.start()
        assert "expected the runtime torch or onnx" in talk.next(WorkerUnfit).reason
        assert talk.end() == (0, "exit code 1")
    finally:
        host.bury()


def test_a_worker_does_not_outlive_its_agent(folder: Path) -> None:
    """Killed without a chance to tidy up, in the middle of a job: the worker goes with it."""
    code = """
import select, sys, time
from pathlib import Path
from edge_agent.worker_hosts import ProcessWorker
from tests.edge_agent import small_plans
from tests.edge_agent.test_worker_process import job
host, plan = ProcessWorker("torch", Path(sys.argv[1])), small_plans.long()
host.start()
host.assign([plan.load(1), job(plan, 2, small_plans.square())])
while host._board.doing != 2:
    select.select([host.fileno()], [], [], 0.1)
    host.flush()
print(host.pid, flush=True)
select.select([], [], [])
"""
    with started(sys.executable, "-c", code, str(folder), cwd=ROOT, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        watched = os.pidfd_open(int(agent.stdout.readline()))
    ended, _, _ = select.select([watched], [], [], PATIENCE)
    os.close(watched)
    assert ended


def test_ctrl_c_is_the_agents_to_handle(process: ProcessWorker) -> None:
    """SIGINT goes to everything in the terminal: the worker goes on until its agent ends it."""
    plan = small_plans.double_abs()
    talk = Talk(process)
    process.start()
    talk.next(WorkerReady)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.assign([plan.load(1)])
    talk.next(PlanLoaded)
