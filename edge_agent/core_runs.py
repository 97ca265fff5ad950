"""Commands on the device, from being taken to their end. The steps stand in `edge_agent.transitions`."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

from broker.protocol import messages as m
from broker.protocol.errors import ProtocolError
from broker.protocol.ids import nth
from edge_agent import effects as e
from edge_agent.catalog import Catalog, Held, announcement
from edge_agent.core_arguments import Arguments
from edge_agent.core_blobs import BlobWants
from edge_agent.core_commands import Command, StartQueue
from edge_agent.core_desk import DEBUG, INFO, WARNING, AgentConfig, Desk, failure
from edge_agent.core_ends import Ends
from edge_agent.core_link import Link
from edge_agent.core_plans import Plan, Plans
from edge_agent.core_puts import Puts
from edge_agent.core_quota import Quota
from edge_agent.core_tags import TagIndex
from edge_agent.core_worker import WorkerDesk
from edge_agent.jobs import (
    File,
    JobFailed,
    JobFinished,
    JobProgress,
    Output,
    PlanLoaded,
    PlanRefused,
    RunJob,
    UnloadPlan,
)
from edge_agent.transitions import (
    ANNOUNCED,
    PLAN_LOADED,
    READY,
    RECORDED,
    RUNNING,
    STORING,
    TAKEN,
    WAITING_ARGUMENTS,
    WAITING_PLAN,
    PlanStep,
)

__all__ = ["Runs"]

_OUTPUTS = 1 << 16
"""The most results that one command may have."""

_QUEUED = frozenset({TAKEN, WAITING_ARGUMENTS, WAITING_PLAN, READY})


class Runs:
    """All commands of the device that the broker has not on record yet."""

    def __init__(
        self,
        desk: Desk,
        catalog: Catalog,
        blobs: BlobWants,
        link: Link,
        tags: TagIndex,
        quota: Quota,
        config: AgentConfig,
        *,
        device: str,
        store_id: bytes,
    ) -> None:
        self._desk = desk
        self._catalog = catalog
        self._link = link
        self._max_deaths = config.worker_deaths
        self._max_seconds = config.max_seconds
        self._device = device
        self._own = store_id[:8]
        self._order = 0
        self._commands: dict[bytes, Command] = {}
        self._queue = StartQueue()
        self._failing: deque[tuple[Command, m.Failure]] = deque()  # what follows from other failures
        self._expires_at: float | None = None  # no queued command's deadline is earlier
        self._plans = Plans(desk, catalog, blobs, quota, config, self._plan_changed)
        self.producing: dict[bytes, Command] = {}
        """Which command will make which id."""
        self.arguments = Arguments(
            desk, catalog, blobs, config, self._complete, lambda command, why: self._failing.append((command, why))
        )
        self.worker = WorkerDesk(desk, config)
        self.ends = Ends(
            desk,
            link,
            tags,
            quota,
            self.arguments,
            self._plans,
            self._queue,
            commands=self._commands,
            producing=self.producing,
            failing=self._failing,
        )
        self._puts = Puts(desk, blobs, self.ends.store, self.ends.fail)
        quota.evict_plan, quota.drop, quota.used = self._plans.evict_one, self.ends.drop, self.arguments.uses

    def live(self, id: bytes) -> bool:
        """Whether the command has not ended yet, or its end is on the way to the disk."""
        command = self._commands.get(id)
        return command is not None and not command.ended

    def running(self) -> dict[bytes, float]:
        """The invocations that the worker has, and how far each is: 0 to 1; -1: nobody knows."""
        under_way = self.worker.under_way.values()
        return {one.id: one.progress for one in under_way if isinstance(one, Command) and one.step is RUNNING}

    def recorded(self, ids: Iterable[bytes]) -> None:
        """The broker has these on record: they are done with."""
        for id in ids:
            command = self._commands.get(id)
            if command is not None and command.step is ANNOUNCED:
                command.move(RECORDED)
                del self._commands[id]

    def tell_unwritten(self, written: Container[bytes]) -> None:
        """At a registration: what has ended, is not on record at the broker, and is none of ``written``, which is all
        that the store has of that kind, could not be written. Nobody would ever hear of it.
        """
        for command in list(self._commands.values()):
            if command.step is ANNOUNCED and command.id not in written:
                self.ends.tell_unwritten(command)

    # ------------------------------------------------------------------------------------------- taking

    def take(self, body: m.Invoke | m.Put, digest: bytes, frames: tuple[m.Frame, ...]) -> None:
        """A command has come; perhaps one that has come before."""
        if self._known(body.id, digest):
            return
        desk, id = self._desk, body.id
        self._order = order = self._order + 1
        deadline = desk.now + (body.deadline_ms or m.DEFAULT_DEADLINE_MS) / 1000
        command = self._commands[id] = Command(body, digest, frames, order=order, deadline=deadline)
        if self._expires_at is None or deadline < self._expires_at:
            self._expires_at = deadline
        if desk.log_level <= DEBUG:
            desk.log(DEBUG, "invocation_taken", result=id.hex(), kind=type(body).__name__)
        why = self.arguments.take(command, self.producing) if isinstance(body, m.Invoke) else None
        if deaths := self._catalog.deaths(id):
            command.deaths = deaths
            if deaths >= self._max_deaths:
                why = self._died_of(command, "before the agent was started again")
        why = why or self._claim(command)
        if why is not None:
            self.ends.fail(command, why)
        elif isinstance(body, m.Put):
            self._puts.take(command, body)
        else:
            plan = command.plan = self._plans.use(body.plan, body.variant)
            if plan.failure is not None and plan.step is PlanStep.REFUSED:
                self.ends.fail(command, plan.failure)
            elif command.missing:
                command.move(WAITING_ARGUMENTS)
            else:
                self._complete(command)

    def _known(self, id: bytes, digest: bytes) -> bool:
        """Whether a command of this id was taken before; if it has ended, it is announced again. Not if it had a value
        that could not be written: it is run again.
        """
        live = self._commands.get(id)
        if live is not None and (live.digest != digest or not live.ended):
            if live.digest != digest:
                self._conflict(id, digest)
            return True
        ended = self._catalog.ended(id)
        if ended is None or isinstance(ended.event, m.TagsChanged):
            return live is not None and self.ends.tell_again(live)
        if ended.event.digest != digest:
            self._conflict(id, digest)
        else:
            self._link.announce(*announcement(self._catalog, ended))
        return True

    def _conflict(self, id: bytes, digest: bytes) -> None:
        said = f"another command has used the id {id.hex()} before"
        self._desk.log(WARNING, "id_conflict", result=id.hex())
        self._link.announce(m.ResultFailed(id=id, digest=digest, failure=failure("IdConflict", said)))

    def _claim(self, command: Command) -> m.Failure | None:
        """Say that the command will make its ids."""
        if command.id.startswith(self._own):
            return failure("IdConflict", f"the id {command.id.hex()} is the device's own to give")
        if command.outputs == 1:
            self.producing[command.id] = command
            return None
        if command.outputs > _OUTPUTS:
            return failure("ArgumentMismatch", f"expected at most {_OUTPUTS} results, got {command.outputs}")
        try:
            ids = [nth(command.id, k) for k in range(command.outputs)]
        except ProtocolError as error:
            return failure("ArgumentMismatch", str(error))
        for id in ids:
            self.producing[id] = command
        command.ids = ids
        return None

    def _complete(self, command: Command) -> None:
        """All its arguments are here."""
        assert command.plan is not None
        command.move(READY if command.plan.step is PLAN_LOADED else WAITING_PLAN)
        self._queue.push(command)

    def tensor_adopted(self, event: e.TensorAdopted) -> None:
        """A large tensor is in the store: that of a `Put`, or an argument from elsewhere."""
        held = event.held
        command = self._commands.get(held.id)
        if command is not None and command.step is WAITING_ARGUMENTS:
            self.ends.store(command, (held,))
        elif not self.arguments.adopted(held) and isinstance(held.source, str):
            self._desk.do(e.DropFiles(paths=[held.source]))

    def tensor_unfit(self, event: e.TensorUnfit) -> None:
        """What was to be a tensor is none."""
        command = self._commands.get(event.id)
        if command is None or command.step is not WAITING_ARGUMENTS:
            self.arguments.unfit(event.id, event.failure, gone=event.gone)
        elif event.gone:
            self._puts.again(command)
        else:
            self.ends.fail(command, event.failure)

    # ------------------------------------------------------------------------------------------- running

    def flush(self) -> None:
        """The batch has ended: give the worker what it has room for."""
        self.ends.fail_all()
        queue, worker = self._queue, self.worker
        if queue:
            if worker.up:
                self._start()
            else:
                worker.wanted()
        worker.flush()
        self.ends.fail_all()

    def _start(self) -> None:
        queue, worker = self._queue, self.worker
        for id in self._plans.unloads():
            worker.order(UnloadPlan(plan=id))
        while worker.room and (command := queue.pop()) is not None:
            self._start_one(command)
        for plan in self._plans.loadable() if queue.parked else ():
            n = worker.number(plan)
            order = self._plans.order(plan, n)
            if order is None:
                worker.answered(n)
            else:
                worker.order(order)

    def _start_one(self, command: Command) -> None:
        plan, body = command.plan, command.body
        assert plan is not None
        assert isinstance(body, m.Invoke)
        if command.deadline <= self._desk.now:
            self.ends.expire(command)
            return
        if plan.step is not PLAN_LOADED:
            if command.step is READY:
                command.move(WAITING_PLAN)
            self._queue.park(command)
            return
        given = self.arguments.operands(command)
        if given is None:
            command.move(WAITING_ARGUMENTS)
            self.arguments.look_again(command, self.producing)
            return
        if isinstance(given, m.Failure):
            self.ends.fail(command, given)
            return
        operands, names = given
        if plan.manifest is not None and len(plan.manifest.outputs) != command.outputs:
            said = f"expected a plan of {command.outputs} outputs, got one of {len(plan.manifest.outputs)}"
            self.ends.fail(command, failure("ArgumentMismatch", said, plan=plan.id.hex()))
            return
        if command.step is WAITING_PLAN:
            command.move(READY)
        command.move(RUNNING)
        command.job = n = self.worker.number(command)
        self.worker.order(
            RunJob(
                n=n,
                plan=plan.key,
                id=command.id,
                args=operands,
                outputs=command.outputs,
                seed=body.seed,
                fold=body.fold,
                names=names,
            )
        )
        if self._desk.log_level <= DEBUG:
            attempt = command.deaths + 1
            self._desk.log(DEBUG, "invocation_started", result=command.id.hex(), plan=plan.id.hex(), attempt=attempt)

    def plan_loaded(self, answer: PlanLoaded) -> None:
        """The worker can run a plan now."""
        self.worker.answered(answer.n)
        self._plans.loaded(answer)

    def plan_refused(self, answer: PlanRefused) -> None:
        """The worker does not take a plan."""
        self.worker.answered(answer.n)
        self._plans.refused(answer)

    def blob_unkept(self, event: e.BlobUnkept) -> None:
        """A part of a plan could not be written down."""
        self._plans.unkept(event.digest, event.failure)

    def _plan_changed(self, plan: Plan) -> None:
        self._queue.unpark()
        if plan.step is PlanStep.REFUSED and plan.failure is not None:
            for command in self._commands.values():
                if command.plan is plan and command.step in (WAITING_PLAN, WAITING_ARGUMENTS, READY):
                    self._failing.append((command, plan.failure))

    def job_finished(self, answer: JobFinished) -> None:
        """The worker has run a command."""
        command = self.worker.answered(answer.n)
        if not isinstance(command, Command) or command.step is not RUNNING:
            # It was cancelled while it ran: the broker's record has decided.
            self._desk.do(
                e.DropFiles(paths=[one.source.path for one in answer.outputs if isinstance(one.source, File)])
            )
            return
        body = command.body
        assert isinstance(body, m.Invoke)
        if command.ids is None:  # by far the most, and to pair one with one is not worth a loop
            [output] = answer.outputs
            values: tuple[Held, ...] = (_held(command.id, output, body),)
        else:
            pairs = zip(command.ids, answer.outputs, strict=True)
            values = tuple([_held(id, output, body) for id, output in pairs])
        if self._desk.log_level <= DEBUG:
            self._desk.log(DEBUG, "invocation_finished", result=command.id.hex(), seconds=round(answer.seconds, 6))
        self.ends.store(command, values, inline=body.inline)

    def job_failed(self, answer: JobFailed) -> None:
        """A command has failed in the worker."""
        command = self.worker.answered(answer.n)
        if isinstance(command, Command) and command.step is RUNNING:
            why = answer.failure
            details = {"device": self._device, **why.details}
            if command.plan is not None:
                details.setdefault("plan", command.plan.id.hex())
            self.ends.fail(command, m.Failure(code=why.code, message=why.message, details=details))

    def job_progress(self, answer: JobProgress) -> None:
        """The worker is at it."""
        command = self.worker.under_way.get(answer.n)
        if isinstance(command, Command):
            command.progress = answer.progress
            self.worker.progressed(answer.n)
            if answer.resumed:
                self._desk.log(INFO, "fold_resumed", result=command.id.hex(), steps=answer.resumed)

    def worker_died(self, event: e.WorkerDied) -> None:
        """The worker is gone. What it had is started again, but for what it has died of too often."""
        undone, culprit, hopeless = self.worker.died(event)
        self._plans.worker_gone()
        for one in undone:
            if isinstance(one, Command) and one.step is RUNNING:
                one.move(READY)
                one.progress = -1.0
                self._queue.push(one)
        self._queue.unpark()
        if culprit is not None:
            culprit.deaths += 1
            if isinstance(culprit, Command) and culprit.step is READY:
                # On the disk before it is tried again: the agent may be the next to die of it.
                self._desk.do(e.MarkDeath(id=culprit.id, deaths=culprit.deaths))
            if culprit.deaths >= self._max_deaths:
                self._poison(culprit, event.reason)
        if hopeless is not None:
            for command in self._commands.values():
                if command.step in (READY, WAITING_PLAN):
                    self._failing.append((command, hopeless))

    def _poison(self, culprit: Command | Plan, reason: str) -> None:
        if isinstance(culprit, Plan):
            if culprit.step is PlanStep.HERE:
                said = f"the worker died {culprit.deaths} times while it loaded this plan: {reason}"
                self._plans.refuse(culprit, failure("WorkerDied", said, plan=culprit.id.hex(), deaths=culprit.deaths))
        elif culprit.step is READY:
            self.ends.fail(culprit, self._died_of(culprit, reason))

    def _died_of(self, command: Command, reason: str) -> m.Failure:
        said = f"the worker died {command.deaths} times while it ran this: {reason}"
        return failure("WorkerDied", said, device=self._device, deaths=command.deaths, reason=reason)

    # ------------------------------------------------------------------------------------------- cancel

    def cancel(self, body: m.Cancel) -> None:
        """End a command as cancelled, or as the broker has, unless it has ended. One that runs stops between two ops,
        or its worker is ended after a grace: nobody will see.
        """
        command = self._commands.get(body.id)
        if command is None or command.ended or command.step is STORING:
            return
        if command.step is RUNNING:
            self.worker.cancel(command.job)
        if body.failure is not None:
            self.ends.fail(command, body.failure)
        elif body.expired:
            self.ends.expire(command)
        else:
            self.ends.cancel(command)

    # ------------------------------------------------------------------------------------------- time

    def tick(self) -> None:
        """Time has passed."""
        now = self._desk.now
        self.worker.tick(work=bool(self._queue))
        if (overdue := self.worker.overdue()) is not None:
            self._overrun(overdue)
        if self._expires_at is None or now < self._expires_at:
            return
        under_way = [one for one in self._commands.values() if one.step in _QUEUED or one.step is RUNNING]
        for command in under_way:
            if command.deadline <= now:
                if command.step is RUNNING:
                    self.worker.cancel(command.job)
                self.ends.expire(command)
        self._expires_at = min((command.deadline for command in under_way if command.deadline > now), default=None)

    def _overrun(self, command: Command) -> None:
        """It takes longer than a run may, and does not come to the end of an op."""
        allowed = self._max_seconds
        said = f"a run of the plan needs more than {allowed:g} seconds, and this device allows {allowed:g} seconds"
        self.worker.cancel(command.job)
        self.ends.fail(command, failure("PlanOverQuota", said, device=self._device, what="time", allowed=allowed))

    def next_timer(self) -> float | None:
        """When `tick` is due."""
        timer = self.worker.next_timer(work=bool(self._queue))
        if self._expires_at is None:
            return timer
        return self._expires_at if timer is None else min(timer, self._expires_at)


def _held(id: bytes, output: Output, body: m.Invoke) -> Held:
    """A result as a value."""
    source = output.source
    where, check = (source, None) if isinstance(source, bytes) else (source.path, source.check)
    return Held(
        id=id,
        dtype=output.dtype,
        shape=output.shape,
        nbytes=output.nbytes,
        source=where,
        check=check,
        tags=tuple(body.tags),
        description=body.description,
    )
