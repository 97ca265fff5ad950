"""A device in memory for tests: the agent's core, a `MemoryShelf`, and a broker and a worker that the test plays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

from broker.protocol import messages as m
from broker.protocol.effects import BatchEnded, LinkUp, Log, Received, Send, Tick
from broker.protocol.framing import MESSAGE_LIMIT, command_digest
from broker.protocol.ids import nth
from edge_agent import effects as e
from edge_agent.catalog import Held, MemoryShelf
from edge_agent.core import AgentConfig, AgentCore
from edge_agent.jobs import (
    CancelJob,
    JobFailed,
    JobFinished,
    LoadPlan,
    Order,
    Output,
    PlanLoaded,
    PlanRefused,
    RunJob,
    Source,
    WorkerReady,
)
from edge_agent.plan.format import Graph, Manifest, TensorType, digest_of, encode_graph, encode_manifest

__all__ = ["LEDGER", "STORE", "Device", "DemoPlan", "own_value", "result_id", "tensor_frame"]

STORE = b"store-id"
LEDGER = b"ledger-1"
T = TypeVar("T")

Ending: TypeAlias = m.ResultReady | m.ResultFailed | m.Cancelled | m.Expired
"""How a command ends."""


class DemoPlan:
    """A plan's bytes: of one op less than nothing, since the worker is played by the test."""

    def __init__(self, name: str = "demo", *, outputs: int = 1, state: Sequence[bytes] = ()) -> None:
        graph = Graph(inputs=[], ops=[], outputs=[], signature=["t", ["t"], ["d"]], tree=None, name=name)
        self.graph = encode_graph(graph)
        types = [TensorType(dtype="float32", shape=[2]) for _ in range(outputs)]
        digests = [digest_of(part) for part in state]
        manifest = Manifest(version=1, graph=digest_of(self.graph), outputs=types, state=digests)
        self.manifest = encode_manifest(manifest)
        self.id = digest_of(self.manifest)
        self.parts = {self.id: self.manifest, digest_of(self.graph): self.graph}
        self.parts |= dict(zip(digests, state, strict=True))


def result_id(counter: int, session: bytes = b"session1") -> bytes:
    """The id of a session's ``counter``-th result."""
    return session + counter.to_bytes(8, "big")


def tensor_frame(*numbers: float) -> bytes:
    """The frame of a float32 vector, without numpy."""
    import struct

    import msgspec

    data = struct.pack(f"<{len(numbers)}f", *numbers)
    fields = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [len(numbers)], b"data": data}
    return msgspec.msgpack.encode(fields)


def own_value(counter: int, *tags: str, source: bytes | str | None = None) -> Held:
    """A tensor that the device's owner has put into the store."""
    return Held(
        id=STORE + counter.to_bytes(8, "big"),
        dtype="float32",
        shape=(2,),
        nbytes=8,
        source=source if source is not None else tensor_frame(-1, 2),
        tags=tags,
        own=True,
    )


class Device:
    """Feeds the core, executes what concerns the store, and collects the rest for the test to look at.

    Each method that feeds an event ends the batch, too.
    """

    def __init__(
        self, config: AgentConfig | None = None, *, shelf: MemoryShelf | None = None, log_level: int = 30
    ) -> None:
        self.shelf = shelf or MemoryShelf()
        self.now = 1000.0
        self.delivered = 0
        self.sent: list[tuple[m.Message, tuple[m.Frame, ...]]] = []
        self.told: list[e.AgentInstruction] = []
        self.orders: list[Order] = []
        self.logs: list[Log] = []
        self.durable: list[bytes] = []
        self.hold_commits = False
        self.core = AgentCore(
            config or AgentConfig(runtimes=("torch",)),
            self.shelf,
            random.Random(7),
            device="device_1",
            store_id=STORE,
            boot=b"boot-001",
            log_level=log_level,
            now=self.now,
        )

    # ------------------------------------------------------------------------------------------- feeding

    def feed(self, *events: e.AgentEvent) -> None:
        """Hand in a batch of events."""
        for event in (*events, BatchEnded()):
            for instruction in self.core.handle(event, self.now):
                self._execute(instruction)
        if self.durable and not self.hold_commits:
            self.commit()

    def commit(self) -> None:
        """What must be on the disk is there."""
        kept, self.durable = tuple(self.durable), []
        self.feed(e.Kept(ids=kept))

    def receive(self, message: m.Message, *frames: m.Frame) -> None:
        """A message of the broker's arrives."""
        self.feed(Received(message=message, frames=frames))

    def wait(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.now + seconds
        while (timer := self.core.next_timer()) is not None and timer <= end:
            self.now = max(self.now, timer)
            self.feed(Tick())
        self.now = end
        self.feed(Tick())

    def register(
        self,
        *,
        ledger: bytes = LEDGER,
        epoch: int = 1,
        first: int = 1,
        blobs: str = "",
        level: int = 0,
        max_message: int = MESSAGE_LIMIT,
    ) -> None:
        """Connect, and let the broker take the device."""
        self.feed(LinkUp())
        self.welcome(ledger=ledger, epoch=epoch, first=first, blobs=blobs, level=level, max_message=max_message)

    def welcome(
        self,
        *,
        ledger: bytes = LEDGER,
        epoch: int = 1,
        token: bytes = b"token-01",
        first: int = 1,
        blobs: str = "",
        level: int = 0,
        max_message: int = MESSAGE_LIMIT,
    ) -> None:
        """The broker answers a registration."""
        self.delivered = first - 1
        self.receive(
            m.Registered(
                version=m.PROTOCOL_VERSION,
                ledger=ledger,
                epoch=epoch,
                token=token,
                first=first,
                heartbeat_ms=10_000,
                max_message=max_message,
                blobs=blobs,
                log_level=level,
            )
        )

    def deliver(self, command: m.Command, *frames: m.Frame, digest: bytes | None = None) -> bytes:
        """The broker delivers a command; its digest."""
        self.delivered += 1
        digest = digest or command_digest(command, frames)
        self.receive(m.Deliver(n=self.delivered, digest=digest, command=command), *frames)
        return digest

    # ------------------------------------------------------------------------------------------- playing

    def start_worker(self) -> None:
        """The worker that was asked for starts."""
        assert self.take(e.StartWorker)
        self.feed(WorkerReady(pid=4711, runtime="torch"))

    def supply(self, *plans: DemoPlan) -> None:
        """Answer what the device asks for, from these plans, until it asks for nothing more."""
        parts = {digest: part for plan in plans for digest, part in plan.parts.items()}
        while asked := self.take_sent(m.NeedBlobs):
            digests = [digest for message in asked for digest in message.digests]
            here = [digest for digest in digests if digest in parts]
            none = [digest for digest in digests if digest not in parts]
            self.receive(m.Blobs(attached=here, none=none), *(parts[digest] for digest in here))

    def load(self, *, refuse: m.Failure | None = None) -> None:
        """The worker loads the plans that it was told to load, or refuses them."""
        for order in self.take_orders(LoadPlan):
            if refuse is None:
                self.feed(PlanLoaded(n=order.n, plan=order.plan, seconds=0.1))
            else:
                self.feed(PlanRefused(n=order.n, plan=order.plan, failure=refuse))

    def ready(self, plan: DemoPlan) -> None:
        """Bring the device to where it has run ``plan`` once."""
        self.register()
        self.invoke(plan, counter=1, session=b"warm-up!")
        self.supply(plan)
        self.start_worker()
        self.load()
        self.finish_all()
        self.acknowledge()
        self.sent.clear()

    def invoke(
        self, plan: DemoPlan, *args: m.Argument, counter: int, frames: Sequence[bytes] = (), **more: Any
    ) -> m.Invoke:
        """The broker delivers an invocation of ``plan``, of the first session unless ``session`` is given."""
        session = more.pop("session", b"session1")
        outputs = more.pop("outputs", len(plan.parts) and _outputs(plan))
        command = m.Invoke(id=result_id(counter, session), plan=plan.id, args=list(args), outputs=outputs, **more)
        self.deliver(command, *frames)
        return command

    def jobs(self) -> list[RunJob]:
        """The jobs that the worker has been given and not answered, in order."""
        return [order for order in self.orders if isinstance(order, RunJob)]

    def finish(self, job: RunJob, *sources: Source, nbytes: int = 8) -> None:
        """The worker has run a job; its outputs are ``sources``, or small vectors."""
        self.orders.remove(job)
        given = sources or tuple(tensor_frame(k, job.n) for k in range(job.outputs))
        outputs = [Output(dtype="float32", shape=(2,), nbytes=nbytes, source=source) for source in given]
        self.feed(JobFinished(n=job.n, outputs=outputs))

    def finish_all(self) -> list[bytes]:
        """The worker runs all that it has, and what follows from it; the ids of the commands in the order of their
        starts.
        """
        started = []
        while jobs := self.jobs():
            started.append(jobs[0].id)
            self.finish(jobs[0])
        return started

    def fail(self, job: RunJob, failure: m.Failure) -> None:
        """The worker could not run a job."""
        self.orders.remove(job)
        self.feed(JobFailed(n=job.n, failure=failure))

    def kill_worker(self, *, doing: RunJob | LoadPlan | None = None, reason: str = "SIGKILL") -> None:
        """The worker dies, while it is at an order."""
        self.orders.clear()
        self.feed(e.WorkerDied(doing=0 if doing is None else doing.n, reason=reason))

    def acknowledge(self) -> list[m.Event]:
        """The broker records all that was announced; these events."""
        announced = self.take_sent(m.Announce)
        if announced:
            self.receive(m.Recorded(n=max(message.n for message in announced)))
        return [message.event for message in announced]

    # ------------------------------------------------------------------------------------------- looking

    def announced(self) -> list[Ending]:
        """The events announced so far, but for the tag index, in order. They stay."""
        events = [message.event for message, _ in self.sent if isinstance(message, m.Announce)]
        return [event for event in events if not isinstance(event, m.TagsChanged)]

    def failure_of(self, id: bytes) -> m.Failure:
        """Why a command has failed, as announced."""
        events = [event for event in self.announced() if isinstance(event, m.ResultFailed) and event.id == id]
        assert events
        assert all(event == events[0] for event in events)  # it may have been announced again
        return events[0].failure

    def take(self, kind: type[T]) -> list[T]:
        """The instructions of one kind so far; they are gone then."""
        found: list[T] = [one for one in self.told if isinstance(one, kind)]
        self.told = [one for one in self.told if not isinstance(one, kind)]
        return found

    def take_sent(self, kind: type[T]) -> list[T]:
        """The messages of one kind so far; they are gone then."""
        found: list[T] = [message for message, _ in self.sent if isinstance(message, kind)]
        self.sent = [one for one in self.sent if not isinstance(one[0], kind)]
        return found

    def take_orders(self, kind: type[T]) -> list[T]:
        """The worker's orders of one kind so far; they are gone then."""
        found: list[T] = [order for order in self.orders if isinstance(order, kind)]
        self.orders = [order for order in self.orders if not isinstance(order, kind)]
        return found

    def _execute(self, instruction: e.AgentInstruction) -> None:
        do = self._DO.get(type(instruction))
        if do is None:
            self.told.append(instruction)
        else:
            do(self, instruction)

    def _save_registration(self, one: e.SaveRegistration) -> None:
        self.shelf.save_registration(one.token, one.ledger, other=one.other)
        self.told.append(one)

    def _keep(self, instruction: e.KeepResult) -> None:
        self.shelf.keep(instruction.ended, instruction.values, durable=instruction.durable, left=instruction.left)
        if instruction.durable:
            self.durable.append(instruction.ended.id)

    _DO: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        Send: lambda self, one: self.sent.append((one.message, one.frames)),
        Log: lambda self, one: self.logs.append(one),
        e.Assign: lambda self, one: self.orders.extend(one.orders),
        e.KeepResult: _keep,
        e.MarkRecorded: lambda self, one: self.shelf.mark_recorded(one.ids),
        e.SaveRegistration: _save_registration,
        e.MarkDeath: lambda self, one: self.shelf.mark_death(one.id, one.deaths),
        e.DropValues: lambda self, one: self.shelf.drop(one.ids),
        e.KeepBlob: lambda self, one: self.shelf.keep_blob(one.digest, one.source, manifest=one.manifest),
        e.DropBlobs: lambda self, one: self.shelf.drop_blobs(one.digests),
    }


def _outputs(plan: DemoPlan) -> int:
    from edge_agent.plan.format import decode_manifest

    return len(decode_manifest(plan.manifest).outputs)


def all_ids(command: m.Invoke) -> list[bytes]:
    """The ids of an invocation's results."""
    return [nth(command.id, k) for k in range(command.outputs)]


__all__ += ["CancelJob", "all_ids"]
