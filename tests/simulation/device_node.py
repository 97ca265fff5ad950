"""A simulated device: the real agent core over a store in memory, and a worker that runs fake plans."""

from __future__ import annotations

from broker.protocol.messages import Failure
from edge_agent import effects as e
from edge_agent.catalog import MemoryShelf
from edge_agent.core import AgentConfig, AgentCore
from edge_agent.jobs import (
    CancelJob,
    JobFailed,
    JobFinished,
    LoadPlan,
    Order,
    PlanLoaded,
    RunJob,
    UnloadPlan,
    WorkerReady,
)
from tests.simulation.broker_node import BrokerNode
from tests.simulation.fakes import FakePlan, answer_outputs
from tests.simulation.network import Network
from tests.simulation.nodes import Client, seeded
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["DeviceNode"]


class DeviceNode(Client):
    """A device. Its store outlives the agent, which may end and start again."""

    def __init__(
        self,
        world: World,
        name: str,
        network: Network,
        broker: BrokerNode,
        promises: Promises,
        plans: dict[bytes, FakePlan],
    ) -> None:
        super().__init__(world, name, network, broker)
        self._promises = promises
        self._plans = plans
        self.shelf = MemoryShelf()
        self._store_id = world.random_bytes(16)
        self._registration = (b"", b"")
        self._boots = 0
        self._alive = False
        self._worker = 0  # counts up when the worker ends: what it was doing does not happen
        self._orders: list[Order] = []
        self._doing = 0
        self._kept: list[bytes] = []
        self._execute |= {
            e.StartWorker: self._start_worker,
            e.StopWorker: lambda _: self._end_worker("told to"),
            e.Assign: self._assign,
            e.KeepResult: self._keep,
            e.MarkRecorded: lambda event: self.shelf.mark_recorded(event.ids),
            e.LedgerChanged: lambda _: self.shelf.mark_unrecorded(),
            e.DropValues: lambda event: self.shelf.drop(event.ids),
            e.DropFiles: lambda _: None,
            e.KeepBlob: lambda event: self.shelf.keep_blob(event.digest, event.source, manifest=event.manifest),
            e.DropBlobs: lambda event: self.shelf.drop_blobs(event.digests),
            e.OpenBlobs: lambda _: None,
            e.SaveRegistration: self._save_registration,
            e.Reconnect: lambda _: self.disconnect(),
            e.GiveUp: lambda event: promises.broken("a device is let in", f"{name} was refused: {event}"),
        }

    def begin(self) -> None:
        """The agent starts."""
        self._boots += 1
        self._worker += 1
        self._alive = False
        self._doing = 0
        self._orders.clear()
        self._kept.clear()
        token, ledger = self._registration
        core = AgentCore(
            AgentConfig(runtimes=("torch",), idle_seconds=3.0),
            self.shelf,
            device=self.name,
            store_id=self._store_id,
            boot=self.world.random_bytes(8),
            token=token,
            ledger=ledger,
            rng=seeded(self.world),
            log_level=10,
            now=self.world.now,
        )
        self.start(core)
        self.connect()

    def restart(self) -> None:
        """The agent is killed, and starts again."""
        self.world.tell(self.name, "   killed")
        self.crash()
        self.world.after(0.5 + self.world.random.random(), self.begin)

    def kill_worker(self) -> None:
        """The worker dies of something."""
        if self._alive:
            self.world.tell(self.name, "   worker killed")
            self._end_worker("killed by signal 9")

    # ------------------------------------------------------------------------------------------- store

    def _keep(self, keep: e.KeepResult) -> None:
        self.shelf.keep(keep.ended, keep.values, durable=keep.durable)
        if keep.durable:
            if not self._kept:
                self.later(0.01 * self.world.random.random(), self._commit)
            self._kept.append(keep.ended.id)

    def _commit(self) -> None:
        kept, self._kept = tuple(self._kept), []
        self.feed(e.Kept(ids=kept))

    def _save_registration(self, save: e.SaveRegistration) -> None:
        self._registration = (save.token, save.ledger)

    # ------------------------------------------------------------------------------------------- worker

    def _start_worker(self, _start: e.StartWorker) -> None:
        self._worker += 1
        self._alive = True
        worker = self._worker
        self.later(0.3 * self.world.random.random(), lambda: self._ready(worker))

    def _ready(self, worker: int) -> None:
        if worker == self._worker:
            self.feed(WorkerReady(pid=worker, runtime="torch"))

    def _end_worker(self, reason: str) -> None:
        if not self._alive:
            return  # it has died already, and that is on its way to the core
        self._alive = False
        self._worker += 1
        self._orders.clear()
        doing, self._doing = self._doing, 0

        def died() -> None:
            self.feed(e.WorkerDied(doing=doing, reason=reason))

        self.later(0.01, died)

    def _assign(self, assign: e.Assign) -> None:
        idle = not self._orders
        self._orders += assign.orders
        if idle:
            self._next()

    def _next(self) -> None:
        if not self._orders:
            self._doing = 0
            return
        order = self._orders[0]
        self._doing = 0 if isinstance(order, UnloadPlan | CancelJob) else order.n
        if isinstance(order, RunJob):
            self._promises.start(order.id, self.name, self._boots)
        worker = self._worker
        slow = 2.0 if self.world.random.random() < 0.02 else 0.004
        self.later(slow * self.world.random.random(), lambda: self._done(worker, order))

    def _done(self, worker: int, order: Order) -> None:
        if worker != self._worker:
            return
        self._orders.pop(0)
        if isinstance(order, LoadPlan):
            self.feed(PlanLoaded(n=order.n, plan=order.plan, seconds=0.001))
        elif isinstance(order, RunJob):
            answer = answer_outputs(order, self._plans)
            if isinstance(answer, Failure):
                self.feed(JobFailed(n=order.n, failure=answer))
            else:
                self.feed(JobFinished(n=order.n, outputs=answer))
        if worker == self._worker:
            self._next()
