"""What a worker does with its orders, with real torch, without a process: plans checked and run, results framed or
filed.
"""

from __future__ import annotations

import errno
import math
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from broker.protocol.messages import INLINE_TENSORS_BYTES, Failure, Fold
from broker.protocol.tensors import decode_array, encode_array
from edge_agent.jobs import (
    Answer,
    CancelJob,
    File,
    JobFailed,
    JobFinished,
    JobProgress,
    LoadPlan,
    Operand,
    Order,
    PlanLoaded,
    PlanRefused,
    RunJob,
    UnloadPlan,
    WorkerReady,
)
from edge_agent.pipe import Board, agent_end, worker_end
from edge_agent.plan.format import digest_of
from edge_agent.tensor_files import map_tensor, sum_of_file, tensor_path, write
from edge_agent.workbench import Workbench, serve
from edge_agent.worker_torch import TorchTensors
from tests.edge_agent import small_plans
from tests.edge_agent.device import result_id
from tests.waiting import PATIENCE, wait_until

LARGE = INLINE_TENSORS_BYTES // 4 + 1  # elements of float32


@pytest.fixture
def board() -> Board:
    """Shared by bench and test."""
    return Board(memoryview(bytearray(Board.SIZE)))


@pytest.fixture
def bench(tmp_path: Path, board: Board) -> Workbench:
    """A bench on an empty store folder."""
    (tmp_path / "tensors").mkdir()
    return Workbench(TorchTensors(), tmp_path, board)


def vector(*numbers: float) -> bytes:
    """A float32 vector as a frame."""
    return encode_array(np.array(numbers, dtype=np.float32))


def run(bench: Workbench, plan: small_plans.HandMade, *args: Operand, outputs: int = 1, n: int = 2) -> Answer:
    """Load a plan and run it once."""
    loaded = bench.do(plan.load())
    assert isinstance(loaded, PlanLoaded), loaded
    answer = bench.do(RunJob(n=n, plan=plan.id, id=result_id(1), args=list(args), outputs=outputs))
    assert answer is not None
    return answer


def values(answer: Answer) -> list[list[float]]:
    """The values of a finished job whose outputs are frames."""
    assert isinstance(answer, JobFinished), answer
    frames = [output.source for output in answer.outputs]
    return [decode_array(frame).tolist() for frame in frames if isinstance(frame, bytes)]


def failure_of(answer: Answer) -> Failure:
    """Why a job has failed."""
    assert isinstance(answer, JobFailed), answer
    return answer.failure


def test_a_plan_is_loaded_and_run(bench: Workbench) -> None:
    """The tutorial's two ops; sizes are bound anew at each run."""
    assert values(run(bench, small_plans.double_abs(), vector(-1, 2))) == [[2, 4]]
    assert values(run(bench, small_plans.double_abs(), vector(1, -2, 3))) == [[2, 4, 6]]


def test_state_and_numbers_and_several_results(bench: Workbench) -> None:
    """State comes with the plan; a number becomes a tensor of the plan's dtype."""
    assert values(run(bench, small_plans.add_state(), vector(1, 2))) == [[11, 22]]
    assert values(run(bench, small_plans.two_results(), vector(1, 2), 5, outputs=2)) == [[6, 7], [-1, -2]]


def test_a_result_says_what_it_is(bench: Workbench) -> None:
    """dtype, shape and size beside the frame."""
    answer = run(bench, small_plans.double_abs(), vector(-1, 2, 3))
    assert isinstance(answer, JobFinished)
    [output] = answer.outputs
    assert (output.dtype, output.shape, output.nbytes) == ("float32", (3,), 12)


def test_large_tensors_are_files(bench: Workbench, tmp_path: Path) -> None:
    """In and out: mapped, and written under the result's id."""
    value = np.arange(LARGE, dtype=np.float32) - 5
    write(tmp_path / "tensors" / "in", "float32", (LARGE,), value.tobytes())
    for _ in range(2):  # mapped, and then found mapped
        answer = run(bench, small_plans.double_abs(), File(str(tmp_path / "tensors" / "in")))
        assert isinstance(answer, JobFinished)
        path = tensor_path(tmp_path, result_id(1))
        assert answer.outputs[0].source == File(str(path), sum_of_file(path))
        found = map_tensor(tensor_path(tmp_path, result_id(1)))
        assert np.array_equal(np.frombuffer(found.data, np.float32), np.abs(value * 2))


def test_an_altered_file_is_not_computed_with(bench: Workbench, tmp_path: Path) -> None:
    """One bit of it: the command fails, and says which file."""
    path = tmp_path / "tensors" / "in"
    check = write(path, "float32", (LARGE,), bytes(4 * LARGE))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    failure = failure_of(run(bench, small_plans.double_abs(), File(str(path), check)))
    assert failure.code == "ResultLost"
    assert "the tensor file in was altered: expected CRC-32" in failure.message


def test_a_long_job_tells_how_far_it_is(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two ops, but not at each: every half second at most."""
    told: list[object] = []
    bench.tell = told.append
    run(bench, small_plans.double_abs(), vector(1, 2))
    assert told == []
    monkeypatch.setattr("edge_agent.workbench._PROGRESS_SECONDS", 0.0)
    run(bench, small_plans.double_abs(), vector(1, 2))
    assert told == [JobProgress(n=2, progress=0.0), JobProgress(n=2, progress=0.5)]


def test_nan_and_inf_are_data(bench: Workbench) -> None:
    """They pass."""
    [result] = values(run(bench, small_plans.double_abs(), vector(math.nan, -math.inf)))
    assert math.isnan(result[0])
    assert result[1] == math.inf


def test_an_op_that_fails_is_named(bench: Workbench) -> None:
    """Its name, its place in the plan, and what it said."""
    where = encode_array(np.array([7]))
    failure = failure_of(run(bench, small_plans.pick_one(), vector(1, 2), where))
    assert failure.code == "ExecutionFailed"
    assert (failure.details["op"], failure.details["op_index"]) == ("aten.index_select.default", 0)
    assert "index" in failure.message
    assert failure.details["error"] in ("RuntimeError", "IndexError")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], "ArgumentMismatch"),
        ([vector(1), vector(2)], "ArgumentMismatch"),
        ([3], "ArgumentMismatch"),
        ([encode_array(np.array([1.0]))], "ArgumentMismatch"),
        ([encode_array(np.ones((2, 2), dtype=np.float32))], "ArgumentMismatch"),
        ([b"junk"], "TensorRefused"),
        ([File("/nowhere")], "ResultLost"),
    ],
)
def test_arguments_that_do_not_fit(bench: Workbench, args: list[Operand], code: str) -> None:
    """Too few, too many, a number for a tensor, another dtype, another rank, no tensor at all."""
    assert failure_of(run(bench, small_plans.double_abs(), *args)).code == code
    assert values(run(bench, small_plans.double_abs(), vector(1))) == [[2]]


def test_a_mismatch_names_the_argument(bench: Workbench) -> None:
    """What was expected and what came, for the coordinator's error."""
    failure = failure_of(run(bench, small_plans.double_abs(), encode_array(np.array([1.0]))))
    assert failure.details["argument"] == "x"
    assert "float32" in str(failure.details["expected"])
    assert "float64" in str(failure.details["got"])


def refusal(bench: Workbench, order: LoadPlan) -> Failure:
    """Why a plan is refused."""
    answer = bench.do(order)
    assert isinstance(answer, PlanRefused), answer
    return answer.failure


def test_plans_that_are_refused(bench: Workbench) -> None:
    """An op outside the registry, an altered part, a manifest that is none, a part that is no tensor."""
    assert refusal(bench, small_plans.unknown_op().load()).code == "UnknownOp"
    plan = small_plans.add_state()
    altered = LoadPlan(
        n=1, plan=plan.id, manifest=plan.manifest, graph=plan.graph_bytes[:-1] + b"?", state=list(plan.state)
    )
    damaged = refusal(bench, altered)
    assert (damaged.code, damaged.details["part"]) == ("PartDamaged", digest_of(plan.graph_bytes).hex())
    other_state = LoadPlan(n=1, plan=plan.id, manifest=plan.manifest, graph=plan.graph_bytes, state=[vector(1, 2)])
    assert refusal(bench, other_state).code == "PartDamaged"
    junk = small_plans.HandMade(plan.graph, plan.outputs, [b"junk"])
    assert refusal(bench, junk.load()).code == "TensorRefused"
    no_manifest = LoadPlan(n=1, plan=plan.id, manifest=b"junk", graph=b"", state=[])
    assert refusal(bench, no_manifest).code == "PlanMalformed"


def test_parts_may_be_files(bench: Workbench, tmp_path: Path) -> None:
    """Large ones are."""
    plan = small_plans.add_state()
    (tmp_path / "state").write_bytes(plan.state[0])
    (tmp_path / "graph").write_bytes(plan.graph_bytes)
    order = LoadPlan(
        n=1,
        plan=plan.id,
        manifest=plan.manifest,
        graph=File(str(tmp_path / "graph")),
        state=[File(str(tmp_path / "state"))],
    )
    assert isinstance(bench.do(order), PlanLoaded)


def test_a_plan_that_was_unloaded_is_not_run(bench: Workbench) -> None:
    """Nor one that never was loaded."""
    plan = small_plans.double_abs()
    assert bench.do(plan.load()) is not None
    assert bench.do(UnloadPlan(plan=plan.id)) is None
    answer = bench.do(RunJob(n=2, plan=plan.id, id=result_id(1), args=[vector(1)]))
    assert answer is not None
    assert failure_of(answer).code == "PlanNotFound"


def test_a_full_disk_is_said_so(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """StoreFull, and not a failure of the plan."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    frame = encode_array(np.zeros(LARGE, dtype=np.float32))
    assert failure_of(run(bench, small_plans.double_abs(), frame)).code == "StoreFull"


def test_outputs_that_could_never_be_held_are_refused_at_once(bench: Workbench) -> None:
    """At the first step of a fold, and not after the years that all of them would take."""
    plan = small_plans.summing()
    assert isinstance(bench.do(plan.load()), PlanLoaded)
    fold = Fold(carry=1, batch_size=3, epochs=1 << 60)
    frames = [encode_array(np.zeros((), np.float32)), vector(1, 2, 3)]
    answer = bench.do(RunJob(n=2, plan=plan.id, id=result_id(1), args=list(frames), outputs=2, fold=fold))
    assert answer is not None
    failure = failure_of(answer)
    assert (failure.code, failure.details["error"]) == ("ExecutionFailed", "MemoryError")
    assert failure.message == (
        f"expected memory for {1 << 60:,} outputs of 4 bytes each, {1 << 62:,} bytes in all, got none"
    )


def test_a_cancelled_job_is_not_started(bench: Workbench) -> None:
    """It is answered all the same, and the next one runs."""
    bench.cancel(2)
    assert failure_of(run(bench, small_plans.double_abs(), vector(1))).code == "InvocationCancelled"
    assert values(run(bench, small_plans.double_abs(), vector(1), n=3)) == [[2]]


def test_a_running_job_is_left_between_two_ops(bench: Workbench, board: Board) -> None:
    """Seconds of work end when the agent says so on the board."""
    plan = small_plans.long()
    assert isinstance(bench.do(plan.load()), PlanLoaded)
    answers: list[Answer | None] = []

    def work() -> None:
        answers.append(bench.do(RunJob(n=9, plan=plan.id, id=result_id(1), args=[small_plans.square()])))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: board.doing == 9)
    finally:
        board.leave = 9
        thread.join(PATIENCE)
    [answer] = answers
    assert answer is not None
    assert failure_of(answer).code == "InvocationCancelled"
    assert board.doing == 0


def test_serving_a_pipe(bench: Workbench) -> None:
    """The first word, many orders at once, a job cancelled while it waits, and the end when the agent is gone."""
    ours, theirs = socket.socketpair()
    agent, ready = agent_end(ours), WorkerReady(pid=1, runtime="torch")
    thread = threading.Thread(target=serve, args=(worker_end(theirs), bench, ready))
    thread.start()
    try:
        plan = small_plans.double_abs()
        orders: list[Order] = [plan.load(1)]
        orders += [RunJob(n=n, plan=plan.id, id=result_id(n), args=[vector(n)]) for n in range(2, 30)]
        agent.say([*orders, CancelJob(n=29)])
        answers: list[Answer] = []
        ours.settimeout(PATIENCE)
        while len(answers) < 30:
            heard = agent.hear()
            assert heard is not None
            answers += heard
        assert answers[0] == ready
        assert isinstance(answers[1], PlanLoaded)
        assert [values(answer) for answer in answers[2:-1]] == [[[2.0 * n]] for n in range(2, 29)]
        assert failure_of(answers[-1]).code == "InvocationCancelled"
    finally:
        agent.close()
        thread.join(PATIENCE)
        theirs.close()
    assert not thread.is_alive()


def test_cancellations_are_heard_between_quick_jobs(
    bench: Workbench, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs done in no time are answered together, and the pipe is not heard meanwhile; but when the board names a job
    to leave, it is: there it says which others not to start.
    """
    monkeypatch.setattr("edge_agent.workbench._COALESCE_SECONDS", math.inf)
    ours, theirs = socket.socketpair()
    agent = agent_end(ours)
    plan = small_plans.double_abs()
    agent.say([plan.load(1)])
    agent.say([RunJob(n=n, plan=plan.id, id=result_id(n), args=[vector(n)]) for n in range(2, 10)])
    do = bench.do

    def do_and_cancel(order: Order) -> Answer | None:
        if isinstance(order, RunJob) and order.n == 4:
            agent.say([CancelJob(n=6), CancelJob(n=8)])
            board.leave = 6  # as the agent does; the second is read there, and the first only in the pipe
            board.leave = 8
        if isinstance(order, RunJob) and order.n == 9:
            ours.shutdown(socket.SHUT_WR)
        return do(order)

    monkeypatch.setattr(bench, "do", do_and_cancel)
    serve(worker_end(theirs), bench, WorkerReady(pid=1, runtime="torch"))
    answers = agent.hear()
    assert answers is not None
    assert [answer.n for answer in answers[2:] if isinstance(answer, JobFinished)] == [2, 3, 4, 5, 7, 9]
    assert [answer.n for answer in answers[2:] if isinstance(answer, JobFailed)] == [6, 8]
    agent.close()
    theirs.close()
