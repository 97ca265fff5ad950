"""What a worker does with its orders: load plans, run them, keep large results as files. The same on a process and on
a thread.

`serve` is the loop; what belongs to one runtime (torch) stands behind `edge_agent.runtimes.interface.Runtime`, so that
this module imports neither torch nor numpy itself.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from broker.disk_space import is_full
from broker.protocol.errors import EdgePlanError
from broker.protocol.ids import nth
from broker.protocol.messages import INLINE_TENSORS_BYTES, Failure, Fold, LogValue
from broker.protocol.tensors import inspect
from edge_agent.admission import Admission, as_over_quota, ceiling
from edge_agent.checkpoints import Checkpoint
from edge_agent.folding import Opened, fold_plan
from edge_agent.jobs import (
    CHECKPOINT_SECONDS,
    Answer,
    CancelJob,
    File,
    JobFailed,
    JobFinished,
    JobProgress,
    LoadPlan,
    Operand,
    Order,
    Output,
    PlanLoaded,
    PlanRefused,
    RunJob,
    Source,
    UnloadPlan,
    WorkerReady,
)
from edge_agent.limits import Limits
from edge_agent.pipe import Board, Pipe
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedPlan, check_plan
from edge_agent.plan.errors import ArgumentMismatch, OpFailed, PlanOverQuota
from edge_agent.plan.format import decode_graph, decode_manifest, digest_of
from edge_agent.plan.quantised import decode_packed, unpacked_headers
from edge_agent.runtimes.interface import Provable, Runnable, Runtime, Watchable
from edge_agent.runtimes.random import seed_of
from edge_agent.tensor_files import FileAltered, map_tensor, tensor_path, write

__all__ = ["Workbench", "serve"]

_COALESCE_SECONDS = 0.001
"""How long an answer may wait for others, to be said with them."""

_PROGRESS_SECONDS = 0.5

_REMEMBERED_SIZES = 64
"""For how many different shapes of its arguments a plan's sizes are remembered."""

_OPEN_FRAMES = 256
_OPEN_FRAME_BYTES = 4096
"""How many frames stay open as tensors, and how large they may be."""

_DOING, _LEAVE = Board.DOING, Board.LEAVE

_SEED_BITS = (1 << 64) - 1

_MAPPED_FILES = 8
"""How many tensor files stay mapped. One that is deleted meanwhile still takes its room on the disk."""


class PartDamaged(EdgePlanError):
    """What the store gave as a part of a plan is not that part. ``part``: its digest, in hex."""

    def __init__(self, part: str, reason: str) -> None:
        self.part = part
        self.reason = reason
        super().__init__(part, reason)

    def __str__(self) -> str:
        return f"expected part {self.part} of the plan, got something else: {self.reason}"


class _Left(BaseException):
    """The job that is being run was cancelled: out of it, past everything that handles errors."""


class _Ending(BaseException):
    """The worker shall end: out of the job that is being run, which another worker will do again, or go on with."""


class _Loaded:
    """A plan on the bench, ``id`` its own. ``inputs``: kind and dtype of each user input. ``ops``: how many it has, 1
    at least. ``draws``: whether it draws random numbers. ``admission`` None: there is no limit.
    """

    __slots__ = ("_sizes", "admission", "checked", "draws", "id", "inputs", "ops", "runnable", "seconds")

    def __init__(self, id: bytes, checked: CheckedPlan, runnable: Runnable, admission: Admission | None) -> None:
        self.id = id
        self.admission = admission
        self._sizes: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[str, int]] = {}
        self.seconds = math.inf  # that the last run took
        self.checked = checked
        self.runnable = runnable
        self.inputs = [(one.name, one.kind, one.dtype) for one in checked.graph.given]
        self.ops = max(1, len(checked.graph.ops))
        self.draws = len(checked.graph.inputs) > 0 and checked.graph.inputs[-1].kind == "random"

    def sizes_of(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, int]:
        """The sizes that these arguments give to the plan's symbols; remembered, since most calls are alike."""
        sizes = self._sizes.get(shapes)
        if sizes is None:
            sizes = bind_sizes(self.checked.graph, shapes)
            if len(self._sizes) < _REMEMBERED_SIZES:
                self._sizes[shapes] = sizes
        return sizes


class Workbench:
    """Does one order at a time. ``folder`` is the store's; large results go there as files, on the disk before they
    are told of. ``limits``: what a run may take. ``alone``: this process is the worker's own, so that the kernel can
    watch its memory.
    """

    def __init__(
        self,
        runtime: Runtime,
        folder: Path,
        board: Board,
        *,
        limits: Limits | None = None,
        alone: bool = False,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self._runtime = runtime
        self._checkpoint_seconds = checkpoint_seconds
        self._limits = limits or Limits()
        self._ceiling = self._limits.memory_bytes if alone else 0
        self._call = self._call_limited if self._limits else self._call_freely
        self._over_at = math.inf  # when what is being run will have taken too long
        self._folder = folder
        self._board = board
        self._cells = board.cells
        self._plans: dict[bytes, _Loaded] = {}
        self._frames: OrderedDict[bytes, Opened] = OrderedDict()
        self._files: OrderedDict[str, Opened] = OrderedDict()
        self._cancelled: set[int] = set()
        self._now_doing = 0
        self._ops = 1  # of the plan that is being run
        self._steps = (0, 1)  # done, and in all, where it is folded
        self._told_at = math.inf
        self.tell: Callable[[Answer], None] | None = None
        """Says something at once, while an order is being done."""

    def cancel(self, n: int) -> None:
        """Don't start job ``n``."""
        self._cancelled.add(n)

    @property
    def leave(self) -> int:
        """Which job the board says to leave."""
        return self._cells[_LEAVE]

    def do(self, order: Order) -> Answer | None:
        """Carry out an order; its answer, if it has one."""
        if isinstance(order, RunJob):
            self._cells[_DOING] = self._now_doing = order.n
            answer: Answer | None = self._run(order)
        elif isinstance(order, LoadPlan):
            self._cells[_DOING] = order.n
            answer = self._load(order)
        else:
            if isinstance(order, UnloadPlan):
                self._plans.pop(order.plan, None)
            return None
        self._cells[_DOING] = 0
        return answer

    def is_quick(self, order: Order) -> bool:
        """Whether an order will be done in no time, as far as one can know: its plan was, the last time."""
        if isinstance(order, RunJob):
            loaded = self._plans.get(order.plan)
            return loaded is not None and loaded.seconds < _COALESCE_SECONDS
        return not isinstance(order, LoadPlan)

    # ------------------------------------------------------------------------------------------- plans

    def _load(self, order: LoadPlan) -> Answer:
        started = perf_counter()
        try:
            self._plans[order.plan] = self._read(order)
        except Exception as error:  # noqa: BLE001 - a plan from anywhere must not end the worker; the agent is told
            # by its own id, whatever the worker calls it
            return PlanRefused(n=order.n, plan=order.plan, failure=_failure_of(error, digest_of(order.manifest)))
        return PlanLoaded(n=order.n, plan=order.plan, seconds=perf_counter() - started)

    def _read(self, order: LoadPlan) -> _Loaded:
        manifest = decode_manifest(order.manifest)
        packed = decode_packed(order.packed)
        names = [manifest.graph, *(manifest.state if packed is None else packed.state)]
        sources = [order.graph, *order.state]
        graph_bytes, *state = [_part(name, source) for name, source in zip(names, sources, strict=True)]
        graph, headers = decode_graph(graph_bytes), [inspect(frame) for frame in state]
        checked = check_plan(manifest, graph, headers if packed is None else unpacked_headers(graph, headers))
        variant = order.variant if not isinstance(order.variant, File) else Path(order.variant.path).read_bytes()
        runnable = self._runtime.load(checked, headers, variant)
        if variant is not None and isinstance(runnable, Provable):
            self._prove(runnable, variant)
        runnable.between_ops = self._between_ops
        if isinstance(runnable, Watchable):
            runnable.while_running = self._look
        admission = Admission(self._limits, checked.checked) if self._limits else None
        return _Loaded(digest_of(order.manifest), checked, runnable, admission)

    def _prove(self, runnable: Provable, variant: bytes) -> None:
        """Once for each variant and version of the runtime: it gives what torch gave whoever made it."""
        proof = self._folder / "proofs" / f"{digest_of(variant).hex()}-{self._runtime.version}"
        if not proof.exists():
            error = runnable.prove()
            proof.parent.mkdir(exist_ok=True)
            proof.write_text(f"{error}\n")

    def _look(self) -> float:
        """The time. Raises what ends the job, if it shall end. Any thread may call."""
        leave = self._cells[_LEAVE]
        if leave == self._now_doing:
            raise _Left
        if leave == Board.ALL:
            raise _Ending
        now = perf_counter()
        if now >= (over_at := self._over_at):
            seconds = self._limits.seconds
            raise PlanOverQuota("time", now - over_at + seconds, seconds, at_least=True)
        return now

    def _between_ops(self, index: int) -> None:
        """Heed the board and the clock. Mostly neither says anything, which is seen here at once."""
        if self._cells[_LEAVE] or (now := perf_counter()) >= self._told_at or now >= self._over_at:
            self._heed(index)

    def _heed(self, index: int) -> None:
        if self._look() >= self._told_at:
            done, steps = self._steps
            self.progress((done + index / self._ops) / steps)

    def _step_done(self, done: int, steps: int) -> None:
        self._steps = (done, max(1, steps))
        self._between_ops(0)

    def _resumed(self, job: RunJob, done: int, steps: int) -> None:
        if self.tell is not None:
            self.tell(JobProgress(n=job.n, progress=done / steps, resumed=done))

    def progress(self, done: float) -> None:
        """So much of the job is done, 0 to 1: told every half second at most, for the broker to know."""
        now = perf_counter()
        if now >= self._told_at and self.tell is not None:
            self._told_at = now + _PROGRESS_SECONDS
            self.tell(JobProgress(n=self._now_doing, progress=done))

    # ------------------------------------------------------------------------------------------- jobs

    def _run(self, job: RunJob) -> Answer:
        started = perf_counter()
        if self._cancelled:
            cancelled = job.n in self._cancelled
            self._cancelled = {n for n in self._cancelled if n > job.n}
            if cancelled:
                return _left(job)
        loaded = self._plans.get(job.plan)
        if loaded is None:
            said = f"plan {job.plan.hex()} is not loaded"
            return JobFailed(n=job.n, failure=Failure(code="PlanNotFound", message=said))
        self._ops = loaded.ops
        self._told_at = started + _PROGRESS_SECONDS
        self._steps = (0, 1)
        try:
            opened = self._open(loaded, job.args)
            values = self._call(loaded, opened, job) if job.fold is None else self._fold(loaded, job, job.fold, opened)
            outputs = self._outputs(job, values)
        except _Left:
            return _left(job)
        except Exception as error:  # noqa: BLE001 - whatever a plan runs into is the invoker's to know
            return JobFailed(n=job.n, failure=_failure_of(error, loaded.id))
        loaded.seconds = perf_counter() - started
        return JobFinished(n=job.n, outputs=outputs, seconds=loaded.seconds)

    def _call_limited(self, loaded: _Loaded, opened: Sequence[Opened], job: RunJob, step: int = 0) -> list[Any]:
        """As `_call_freely`, of what may run. Raises `PlanOverQuota`."""
        if loaded.admission is not None:
            loaded.admission.admit(loaded.sizes_of(tuple([(dtype, shape) for dtype, shape, _ in opened])))
        seconds = self._limits.seconds
        started = perf_counter()
        self._over_at = started + seconds if seconds else math.inf
        try:
            with ceiling(self._ceiling):
                values = self._call_freely(loaded, opened, job, step)
        except (OpFailed, MemoryError, RuntimeError) as error:
            over = as_over_quota(error, self._limits)
            if over is None:
                raise
            raise over from error
        finally:
            self._over_at = math.inf
        if seconds and (took := perf_counter() - started) >= seconds:
            raise PlanOverQuota("time", took, seconds)
        return values

    def _call_freely(self, loaded: _Loaded, opened: Sequence[Opened], job: RunJob, step: int = 0) -> list[Any]:
        sizes = loaded.sizes_of(tuple([(dtype, shape) for dtype, shape, _ in opened]))
        if loaded.draws:
            seed = (seed_of(job.id) if job.seed is None else job.seed) & _SEED_BITS
            run: Callable[..., list[Any]] = loaded.runnable.run
            return run([tensor for _, _, tensor in opened], sizes, seed=seed, step=step)
        return loaded.runnable.run([tensor for _, _, tensor in opened], sizes)

    def _fold(self, loaded: _Loaded, job: RunJob, fold: Fold, opened: Sequence[Opened]) -> list[Any]:
        checkpoint = Checkpoint(self._folder, job.id, job.names)
        try:
            values = fold_plan(
                fold,
                opened,
                lambda arguments, step: self._call(loaded, arguments, job, step),
                self._runtime,
                checkpoint=checkpoint,
                on_step=self._step_done,
                on_resumed=lambda done, steps: self._resumed(job, done, steps),
                every=self._checkpoint_seconds,
            )
        except _Ending:
            raise
        except BaseException:
            checkpoint.drop()  # it has ended, with an error: nothing goes on from here
            raise
        checkpoint.drop()
        return values

    def _open(self, loaded: _Loaded, args: Sequence[Operand]) -> list[Opened]:
        if len(args) != len(loaded.inputs):
            name = loaded.checked.graph.name or "the plan"
            raise ArgumentMismatch(name, f"{len(loaded.inputs)} arguments", str(len(args)))
        opened: list[Opened] = []
        for (name, kind, dtype), arg in zip(loaded.inputs, args, strict=True):
            if isinstance(arg, bytes):
                opened.append(self._framed(arg))
            elif isinstance(arg, File):
                opened.append(self._mapped(arg))
            elif kind == "number":
                opened.append((dtype, (), self._runtime.number(arg, dtype)))
            else:
                raise ArgumentMismatch(name, f"a tensor of {dtype}", f"the number {arg}")
        return opened

    def _framed(self, frame: bytes) -> Opened:
        """The tensor in a frame; small ones used last stay open: results become arguments, and data is used again."""
        opened = self._frames.get(frame) if len(frame) <= _OPEN_FRAME_BYTES else None
        if opened is None:
            header = inspect(frame)
            opened = header.dtype, header.shape, self._runtime.tensor(header)
            if len(frame) <= _OPEN_FRAME_BYTES:
                self._frames[frame] = opened
                if len(self._frames) > _OPEN_FRAMES:
                    self._frames.popitem(last=False)
        return opened

    def _outputs(self, job: RunJob, tensors: list[Any]) -> list[Output]:
        if len(tensors) != job.outputs:
            raise ArgumentMismatch("the plan", f"{job.outputs} results", str(len(tensors)))
        outputs = []
        for k, tensor in enumerate(tensors):
            form = self._runtime.form(tensor)
            source: Source
            if form.nbytes <= INLINE_TENSORS_BYTES:
                source = form.frame(self._runtime.content(tensor))
            else:
                path = tensor_path(self._folder, nth(job.id, k))
                source = File(str(path), write(path, form.dtype, form.shape, self._runtime.elements(tensor)))
            outputs.append(Output(dtype=form.dtype, shape=tuple(form.shape), nbytes=form.nbytes, source=source))
        return outputs

    def _mapped(self, file: File) -> Opened:
        """The tensor in a file; the files used last stay mapped. Raises `FileAltered`."""
        path = file.path
        mapped = self._files.get(path)
        if mapped is None:
            header = map_tensor(path, file.check)
            mapped = self._files[path] = (header.dtype, header.shape, self._runtime.tensor(header))
            if len(self._files) > _MAPPED_FILES:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(path)
        return mapped


def serve(pipe: Pipe[Answer, Order], bench: Workbench, ready: WorkerReady) -> None:
    """Do orders until the other end of the pipe is gone, or the board says that all shall be left. Raises OSError when
    it goes while something is being said.
    """
    bench.tell = lambda answer: pipe.say([answer])
    with contextlib.suppress(_Ending):
        _serve(pipe, bench, ready)


def _serve(pipe: Pipe[Answer, Order], bench: Workbench, ready: WorkerReady) -> None:
    pipe.say([ready])
    orders: deque[Order] = deque()
    while True:
        leave = bench.leave
        heard = pipe.hear(wait=not orders)
        if heard is None:
            return
        for order in heard:
            if isinstance(order, CancelJob):
                bench.cancel(order.n)
        orders += heard
        if orders and (answers := _do_some(bench, orders, leave)):
            pipe.say(answers)


def _do_some(bench: Workbench, orders: deque[Order], leave: int) -> list[Answer]:
    """Do the first of the orders, and those after it that will be done in no time: their answers, to be said at once.

    The pipe is not heard meanwhile. So it ends when a job has failed, and when the board does not name ``leave`` any
    more as the job to leave: a cancellation may wait in the pipe.
    """
    answer = bench.do(orders.popleft())
    answers = [answer]
    until = perf_counter() + _COALESCE_SECONDS
    while (
        orders
        and bench.is_quick(orders[0])
        and bench.leave == leave
        and not isinstance(answer, JobFailed)
        and perf_counter() < until
    ):
        answer = bench.do(orders.popleft())
        answers.append(answer)
    return [one for one in answers if one is not None]


def _part(name: bytes, source: Source) -> bytes:
    """A part of a plan. Raises `PartDamaged`."""
    try:
        part = source if isinstance(source, bytes) else Path(source.path).read_bytes()
    except OSError as error:
        raise PartDamaged(name.hex(), str(error)) from error
    if (got := digest_of(part)) != name:
        raise PartDamaged(name.hex(), f"its digest is {got.hex()}")
    return part


def _left(job: RunJob) -> JobFailed:
    return JobFailed(n=job.n, failure=Failure(code="InvocationCancelled", message="the job was cancelled"))


def _failure_of(error: Exception, plan: bytes) -> Failure:
    """What is told of an error: its class for what is ours, `ExecutionFailed` for what an op of the plan ran into."""
    details: dict[str, LogValue] = {"plan": plan.hex()}
    if isinstance(error, OpFailed):
        details |= {"op": error.op, "op_index": error.op_index, "error": error.error_type}
        return Failure(code="ExecutionFailed", message=error.message, details=details)
    if isinstance(error, FileAltered | FileNotFoundError):
        # A value that the store had, and has no more as it was.
        return Failure(code="ResultLost", message=f"an argument was lost: {error}", details=details)
    if isinstance(error, EdgePlanError):
        details |= {name: value for name, value in vars(error).items() if isinstance(value, (str, int, float))}
        return Failure(code=type(error).__name__, message=str(error), details=details)
    if is_full(error):
        return Failure(code="StoreFull", message=f"the result could not be kept: {error.strerror}", details=details)
    details["error"] = type(error).__name__
    return Failure(code="ExecutionFailed", message=str(error), details=details)
