"""The worker process as the core sees it: started on demand, ended after idling, restarted when it dies."""

from __future__ import annotations

from broker.protocol.messages import Failure
from edge_agent.core_commands import Command
from edge_agent.core_desk import INFO, WARNING, AgentConfig, Desk, failure
from edge_agent.core_plans import Plan
from edge_agent.effects import Assign, KillWorker, StartWorker, StopWorker, WorkerDied
from edge_agent.jobs import CancelJob, Order, WorkerReady, WorkerUnfit
from edge_agent.transitions import WORKER, WORKER_UP, WorkerStep, advance

__all__ = ["WorkerDesk"]

_BACKOFF = 0.5
"""Seconds before another worker is started after one that did not start; doubled each time, up to 64 times as long."""


_SAID_SECONDS = 1.0
"""How much later than the worker itself we look whether a job takes too long: it may be about to say so."""


class WorkerDesk:
    """What the worker was given and has not answered yet, by number."""

    def __init__(self, desk: Desk, config: AgentConfig) -> None:
        self._desk = desk
        self._config = config
        self._last = 0
        self._orders: list[Order] = []
        self._stillborn = 0
        self._unfit = ""
        self._start_at = 0.0
        self._idle_at: float | None = None
        self._cancelled: set[int] = set()
        self._ending = 0  # the cancelled job that the worker is at
        self._kill_at: float | None = None  # when it has been at that for too long
        self._timed = 0  # the job that the worker is at, where jobs may not take as long as they like
        self._overdue_at: float | None = None  # when that has taken too long
        self.step = WorkerStep.ABSENT
        self.under_way: dict[int, Command | Plan] = {}

    @property
    def up(self) -> bool:
        """Whether it takes orders."""
        return self.step is WORKER_UP

    @property
    def room(self) -> bool:
        """Whether it may be given more."""
        return self.step is WORKER_UP and len(self.under_way) < self._config.window

    def wanted(self) -> None:
        """There is work: start a worker, unless there is one, or the last one has only just failed to start."""
        if self.step is WorkerStep.ABSENT and self._desk.now >= self._start_at:
            self._move(WorkerStep.STARTING)
            self._desk.do(StartWorker())

    def number(self, subject: Command | Plan) -> int:
        """The number of the next order, which is about ``subject``."""
        self._last += 1
        self.under_way[self._last] = subject
        return self._last

    def order(self, order: Order) -> None:
        """Give the worker an order, at the end of the batch."""
        self._orders.append(order)

    def cancel(self, n: int) -> None:
        """Nobody wants job ``n`` any more: it is not started, or stops between two ops, or the worker is ended."""
        self.order(CancelJob(n=n))
        self._cancelled.add(n)

    def answered(self, n: int) -> Command | Plan | None:
        """Order ``n`` is done: what it was about. None: it is not under way."""
        if self._cancelled:
            self._cancelled.discard(n)
        return self.under_way.pop(n, None)

    def flush(self) -> None:
        """The batch has ended."""
        if self._orders:
            self._desk.do(Assign(orders=self._orders))
            self._orders = []
        if self._cancelled or self._ending:
            self._watch_cancelled()
        if self._config.max_seconds:
            self._watch_time()
        if self.under_way:
            self._idle_at = None
        elif self._idle_at is None and self.step is WORKER_UP:
            self._idle_at = self._desk.now + self._config.idle_seconds

    def _watch_cancelled(self) -> None:
        """Orders are done in order, so the worker is at the first: if that is cancelled, it has a while to stop."""
        first = next(iter(self.under_way), 0)
        if first not in self._cancelled:
            self._ending, self._kill_at = 0, None
        elif first != self._ending:
            self._ending, self._kill_at = first, self._desk.now + self._config.cancel_grace

    def _watch_time(self) -> None:
        first = next(iter(self.under_way), 0)
        if first != self._timed:
            self._timed = first
            self.progressed(first)

    def progressed(self, n: int) -> None:
        """The worker is still at job ``n``, and has come further: another step of a fold, at least another op. It
        looks at the time itself then; what does not come to the end of an op is for us to end.
        """
        if self._config.max_seconds and n == self._timed:
            patience = self._config.max_seconds + _SAID_SECONDS
            self._overdue_at = self._desk.now + patience if isinstance(self.under_way.get(n), Command) else None

    def overdue(self) -> Command | None:
        """The command that the worker has been at for too long without a word, if that is so."""
        if self._overdue_at is None or self._desk.now < self._overdue_at:
            return None
        self._overdue_at = None
        subject = self.under_way.get(self._timed)
        return subject if isinstance(subject, Command) else None

    def ready(self, answer: WorkerReady) -> None:
        """It has started."""
        if self.step is WorkerStep.STARTING:
            self._move(WORKER_UP)
            self._stillborn = 0
            self._desk.log(INFO, "worker_started", pid=answer.pid, runtime=answer.runtime, version=answer.version)

    def unfit(self, answer: WorkerUnfit) -> None:
        """It cannot run plans; `WorkerDied` follows."""
        self._unfit = answer.reason

    def tick(self, *, work: bool) -> None:
        """Time has passed: end a worker that idles or does not stop, start one that was put off."""
        if self._kill_at is not None and self._desk.now >= self._kill_at and self.step is WORKER_UP:
            self._desk.log(WARNING, "worker_overdue", seconds=self._config.cancel_grace)
            self._kill_at = None
            self._move(WorkerStep.STOPPING)
            self._desk.do(KillWorker())
        elif work:
            self.wanted()
        elif self.step is WORKER_UP and self._idle_at is not None and self._desk.now >= self._idle_at:
            self.stop()

    def stop(self) -> None:
        """End it."""
        if self.step in (WORKER_UP, WorkerStep.STARTING):
            self._move(WorkerStep.STOPPING)
            self._desk.do(StopWorker())

    def next_timer(self, *, work: bool) -> float | None:
        """When `tick` is due."""
        if self.step is WORKER_UP:
            if self._kill_at is not None or self._overdue_at is not None:
                return min(at for at in (self._kill_at, self._overdue_at) if at is not None)
            return (
                None if work else self._idle_at
            )  # with work to come it does not idle, though it may have nothing to do
        return self._start_at if work and self.step is WorkerStep.ABSENT else None

    def died(self, event: WorkerDied) -> tuple[list[Command | Plan], Command | Plan | None, Failure | None]:
        """It is gone. What it leaves undone, in order; which of these it died of; and, when workers do not start at
        all, why nothing can be run.
        """
        asked = self.step is WorkerStep.STOPPING
        starting = self.step is WorkerStep.STARTING
        self._move(WorkerStep.ABSENT)
        undone = [self.under_way[n] for n in sorted(self.under_way)]
        culprit = self.under_way.get(event.doing)
        if culprit is None and undone and not asked:
            culprit = undone[0]  # it died between two orders, or before it could say at which it was
        self.under_way.clear()
        self._cancelled.clear()
        self._ending, self._kill_at = 0, None
        self._timed, self._overdue_at = 0, None
        self._orders.clear()
        self._idle_at = None
        self._desk.log(
            INFO if asked else WARNING,
            "worker_ended",
            asked=asked,
            reason=self._unfit or event.reason,
            undone=len(undone),
        )
        if not starting:
            return undone, None if asked else culprit, None
        self._start_at = self._desk.now + _BACKOFF * (1 << min(self._stillborn, 6))
        self._stillborn += 1
        reason, self._unfit = self._unfit or event.reason, ""
        if reason == event.reason and self._stillborn % self._config.start_failures:
            return undone, culprit, None
        said = f"no worker starts on this device: {reason}"
        return undone, culprit, failure("WorkerDied", said, reason=reason)

    def _move(self, step: WorkerStep) -> None:
        self.step = advance(WORKER, self.step, step, "the worker")
