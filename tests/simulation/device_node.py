"""A simulated device: the real agent core over a store that outlives it, and a worker that runs fake plans."""

from __future__ import annotations

from collections.abc import Callable

from broker.protocol.bundles import reads_bundles
from broker.protocol.effects import Send
from broker.protocol.ids import nth
from broker.protocol.messages import Announce, Failure, Message, Registered
from edge_agent import effects as e
from edge_agent.core import AgentConfig, AgentCore
from edge_agent.jobs import (
    CancelJob,
    File,
    JobFailed,
    JobFinished,
    LoadPlan,
    Operand,
    Order,
    Output,
    PlanLoaded,
    PlanRefused,
    RunJob,
    UnloadPlan,
    WorkerReady,
)
from tests.simulation.broker_node import BrokerNode
from tests.simulation.device_blobs import DeviceBlobs
from tests.simulation.disks import ShelfDisk, value_path
from tests.simulation.fakes import LARGE_BYTES, FakePlan, answer_values, frame_of, tensor_file
from tests.simulation.network import Network
from tests.simulation.nodes import Client, seeded
from tests.simulation.promises import Promises
from tests.simulation.world import World

__all__ = ["DeviceNode"]

FULL = Failure(code="StoreFull", message="the store could not be written: no space left on the device")


class DeviceNode(Client):
    """A device. ``crash_points``: how many times it dies between two steps of a commit, besides when it is told to."""

    def __init__(
        self,
        world: World,
        name: str,
        network: Network,
        broker: BrokerNode,
        promises: Promises,
        plans: dict[bytes, FakePlan],
        *,
        crash_points: int = 0,
    ) -> None:
        super().__init__(world, name, network, broker, promises)
        self._broker_node = broker
        self._plans = plans
        self.crash_points = crash_points
        self.shelf = ShelfDisk(world, name)
        self.refused = ""
        self._backup: ShelfDisk | None = None
        self._alive = False
        self._worker = 0  # counts up when the worker ends: what it was doing does not happen
        self._orders: list[Order] = []
        self._doing = 0
        self._write_at = float("inf")
        self._write_due = False  # whether the writer was busy when it was time to write
        self._fruitless = 0
        self._full_until = 0.0
        self._full_share = 1.0
        self._execute |= {
            e.StartWorker: self._start_worker,
            e.MarkDeath: self._mark_death,
            e.KillWorker: lambda _: self._end_worker("killed"),
            e.StopWorker: lambda _: self._end_worker("told to"),
            e.Assign: self._assign,
            e.KeepResult: self._keep,
            e.MarkRecorded: self._mark_recorded,
            e.DropValues: self._drop_values,
            e.KeepBlob: self._keep_blob,
            e.DropBlobs: self._drop_blobs,
            e.OpenBlobs: lambda _: None,
            e.SaveRegistration: self._save_registration,
            e.Reconnect: lambda _: self.disconnect(),
            e.Quarantined: lambda event: self._give_up(e.GiveUp(code="stale_token", reason=event.reason)),
            e.GiveUp: self._give_up,
        }

    def begin(self) -> None:
        """The agent starts."""
        if self.core is not None or self.refused:
            return
        self._worker += 1
        self._alive = False
        self._doing = 0
        self._orders.clear()
        self._write_at = float("inf")
        self._write_due = False
        self._fruitless = 0
        self._execute |= DeviceBlobs(self, self._broker_node).instructions
        self.shelf.fails, self.shelf.settled = self._disk_fails, self._settled
        self.shelf.forgotten = self._promises.ends_unwritten
        token, ledger = self.shelf.registration
        core = AgentCore(
            AgentConfig(runtimes=("torch",), idle_seconds=3.0),
            self.shelf,
            device=self.name,
            store_id=self.shelf.id,
            boot=self.world.random_bytes(8),
            token=token,
            ledger=ledger,
            rng=seeded(self.world),
            log_level=10,
            now=self.clock(),
        )
        self.start(core)
        self.connect()

    # ------------------------------------------------------------------------------------------- its end

    def kill(self) -> None:
        """The agent is killed, and starts again."""
        if self.core is not None:
            self.world.tell(self.name, "   killed")
            self._end(0.5)
            self.shelf.kill()
            self._promises.device_ended(self.name, self.shelf.lost)

    def lose_power(self) -> None:
        """The device loses power, and comes back."""
        if self.core is not None:
            self.world.tell(self.name, "   power lost")
            self._end(1.0)
            self.shelf.lose_power()
            self.boot()
            self._promises.device_ended(self.name, self.shelf.lost)

    def lose_store(self) -> None:
        """The device's card dies. It comes back with an empty one."""
        self.world.tell(self.name, "   store lost")
        if self.core is not None:
            self._end(1.0)
        lost = list(self.shelf.commands)
        self.shelf = ShelfDisk(self.world, self.name)
        self.boot()
        self._promises.device_ended(self.name, lost)

    def back_up(self) -> None:
        """Its owner makes an image of the card."""
        self._backup = self.shelf.clone()

    def restore_backup(self) -> None:
        """Its owner writes an old image to the card."""
        if self._backup is not None and self.core is not None:
            self.world.tell(self.name, "   backup restored")
            self._end(1.0)
            lost = list(self.shelf.commands)
            self.shelf = self._backup.clone()
            self.boot()
            self._promises.device_ended(self.name, lost)

    def _end(self, at_least: float) -> None:
        self._alive = False
        self.crash()
        random = self.world.random
        self.world.after(at_least + random.choice((1.0, 1.0, 30.0)) * random.random(), self.begin)

    def _dies_here(self) -> bool:
        """Whether this is where the device dies, between two steps of a commit."""
        random = self.world.random
        if not self.crash_points or random.random() > 0.04:
            return False
        self.crash_points -= 1
        random.choice((self.kill, self.lose_power))()
        return True

    def _give_up(self, event: e.GiveUp) -> None:
        self.refused = event.code
        self.world.tell(self.name, "   gives up ", event)
        self.crash()
        self._promises.device_refused(self.name, event.code)

    def _hear(self, message: Message) -> None:
        if type(message) is Registered:
            self.out.bundling = reads_bundles(message.version)

    def _send(self, send: Send) -> None:
        if type(send.message) is Announce:
            self._promises.announced(send.message.event, self.shelf)
        super()._send(send)

    # ------------------------------------------------------------------------------------------- store

    def fill_disk(self) -> None:
        """The device's disk is full, or nearly so, for a while: writes fail, all of them or some."""
        random = self.world.random
        self._full_share = random.choice((1.0, 1.0, 0.5))
        self._full_until = self.world.now + random.choice((0.1, 3.0, 30.0)) * random.random()
        self.world.tell(self.name, f"   disk full until {self._full_until:.4f}, for {self._full_share:.0%} of writes")

    def free_disk(self) -> None:
        """There is room again."""
        self._full_until = 0.0

    def _disk_fails(self) -> bool:
        if self.world.now >= self._full_until or self.world.random.random() >= self._full_share:
            return False
        self._promises.unwritten(self.name)
        return True

    def _write_now(self, do: Callable[[], None]) -> bool:
        """Write something at once; whether that could be done."""
        try:
            do()
        except OSError as error:
            self.world.tell(self.name, f"   not written: {error}")
            return False
        return True

    def _mark_death(self, mark: e.MarkDeath) -> None:
        self._write_now(lambda: self.shelf.mark_death(mark.id, mark.deaths))

    def _keep(self, keep: e.KeepResult) -> None:
        self.shelf.keep(keep.ended, keep.values, durable=keep.durable)
        self._write_within(0.01 if keep.durable else 0.5)

    def _mark_recorded(self, mark: e.MarkRecorded) -> None:
        self._promises.told_recorded(mark.ids, self._broker_node.disk)
        self.shelf.mark_recorded(mark.ids)
        self._write_within(0.5)

    def _drop_values(self, drop: e.DropValues) -> None:
        self.shelf.drop(drop.ids)
        self._write_within(0.5)

    def _keep_blob(self, keep: e.KeepBlob) -> None:
        if self._write_now(lambda: self.shelf.keep_blob(keep.digest, keep.source, manifest=keep.manifest)):
            self._write_within(0.5)
        else:
            self.later(0, lambda: self.feed(e.BlobUnkept(digest=keep.digest, failure=FULL)))

    def _drop_blobs(self, drop: e.DropBlobs) -> None:
        self.shelf.drop_blobs(drop.digests)
        self._write_within(0.5)

    def _save_registration(self, save: e.SaveRegistration) -> None:
        if self._write_now(lambda: self.shelf.save_registration(save.token, save.ledger, other=save.other)):
            self._fruitless = 0
            return
        self._fruitless += 1  # as `edge_agent.agent_socket.BrokerSocket` counts

        def unsaved() -> None:
            self.feed(e.RegistrationUnsaved())
            self.disconnect(within=0.2 * (1 << min(self._fruitless, 8)))

        self.later(0, unsaved)

    def _write_within(self, seconds: float) -> None:
        at = self.world.now + seconds * self.world.random.random()
        if at < self._write_at:
            self._write_at = at
            self.later(at - self.world.now, self._write)

    def _write(self) -> None:
        """Hand all that has gathered to the writer, who takes a while; or, if it is busy, when it is done."""
        self._write_at = float("inf")
        if self._dies_here():
            return
        if self.shelf.hand_over():
            self.later(0.005 * self.world.random.random(), self._sync)
        else:
            self._write_due = True

    def _sync(self) -> None:
        """The writer is done: a batch that has what is to be announced only then is synced."""
        if self._dies_here():
            return
        self.shelf.finish()
        if not self._dies_here():
            self._tell_ends()
            if self._write_due and self.core is not None:
                self._write_due = False
                self._write()

    def _settled(self) -> None:
        """Batches were over early, for a question that only the disk can answer: tell of them once that is answered."""
        self.later(0.004 * self.world.random.random(), self._tell_ends)

    def _tell_ends(self) -> None:
        """As `edge_agent.agent.Agent` does."""
        ends, self.shelf.ends = self.shelf.ends, []
        kept: list[bytes] = []
        for batch, written in ends:
            if written:
                kept += batch.durable
                continue
            self.world.tell(self.name, f"   not written: {len(batch.acts)} writes, the ends of ", batch.ended)
            self.feed(e.KeepFailed(ids=tuple(batch.durable), failure=FULL))
            for digest in batch.blobs:
                self.feed(e.BlobUnkept(digest=digest, failure=FULL))
        if kept:
            self.feed(e.Kept(ids=tuple(kept)))

    # ------------------------------------------------------------------------------------------- worker

    def kill_worker(self) -> None:
        """The worker dies of something."""
        if self._alive:
            self.world.tell(self.name, "   worker killed")
            self._end_worker("killed by signal 9")

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
        self._promises.worker_ended(self.name)

        def died() -> None:
            self.feed(e.WorkerDied(doing=doing, reason=reason))

        self.later(0.01, died)

    def _assign(self, assign: e.Assign) -> None:
        if not self._alive:
            return  # it has died, and that is on its way to the core
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
        worker = self._worker
        slow = 2.0 if self.world.random.random() < 0.02 else 0.004
        if isinstance(order, RunJob):
            self._promises.start(order.id, self.name, self.shelf.ended(order.id))
            plan = self._plans[order.plan]
            if plan.poison or plan.deadly:
                kill = self.kill if plan.deadly else self._die_of_poison
                # Not before the broker knows that the command was taken: else it can't count how often it was.
                after = 2.0 + self.world.random.random() if plan.deadly else slow * self.world.random.random()
                self.later(after, lambda: kill() if worker == self._worker else None)
                return
        self.later(slow * self.world.random.random(), lambda: self._done(worker, order))

    def _die_of_poison(self) -> None:
        self._end_worker("killed by signal 11")

    def _done(self, worker: int, order: Order) -> None:
        if worker != self._worker:
            return
        self._orders.pop(0)
        if isinstance(order, LoadPlan):
            self.feed(self._load(order))
        elif isinstance(order, RunJob):
            self.feed(self._run(order))
        if worker == self._worker:
            self._next()

    def _load(self, order: LoadPlan) -> PlanLoaded | PlanRefused:
        for part in (order.graph, *order.state):
            if isinstance(part, File) and part.path not in self.shelf.files:
                name = part.path.rpartition("/")[2]
                why = Failure(code="PartDamaged", message="no such file", details={"part": name})
                return PlanRefused(n=order.n, plan=order.plan, failure=why)
        return PlanLoaded(n=order.n, plan=order.plan, seconds=0.001)

    def _run(self, order: RunJob) -> JobFinished | JobFailed:
        args: list[Operand] = []
        for argument in order.args:
            if isinstance(argument, File):
                content = self.shelf.files.get(argument.path)
                if content is None:
                    why = Failure(code="ResultLost", message=f"an argument was lost: no {argument.path}")
                    return JobFailed(n=order.n, failure=why)
                argument = frame_of(content)  # noqa: PLW2901 - as it is when it is read
            args.append(argument)
        values = answer_values(order, tuple(args), self._plans)
        if isinstance(values, Failure):
            return JobFailed(n=order.n, failure=values)
        if not self._plans[order.plan].large:
            outputs = [Output(dtype="int64", shape=(), nbytes=8, source=frame) for frame in values]
            return JobFinished(n=order.n, outputs=outputs)
        outputs = []
        for k, frame in enumerate(values):
            path = value_path(nth(order.id, k))
            try:
                self.shelf.write_file(path, tensor_file(frame))
            except OSError as error:
                why = Failure(code="StoreFull", message=f"the result could not be kept: {error.strerror}")
                return JobFailed(n=order.n, failure=why)
            outputs.append(Output(dtype="int64", shape=(), nbytes=LARGE_BYTES, source=File(path)))
        return JobFinished(n=order.n, outputs=outputs)
