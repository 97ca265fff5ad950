"""A user of a session: invokes, sends, cancels, releases, reads and asks at random, and never waits for anything."""

from __future__ import annotations

import itertools

from broker.protocol.ids import nth
from broker.protocol.messages import Argument, Cancel, Invoke, Put, Release
from coordinator.core_events import SendPlan, SubmitCommand
from tests.simulation.broker_node import MOST_OUTPUTS
from tests.simulation.fakes import (
    LARGE_BYTES,
    POPULAR,
    FakePlan,
    answer_frames,
    fake_plans,
    large_plans,
    tensor_file,
    tensor_frame,
)
from tests.simulation.promises import SHORT_DEADLINE_MS, Promises
from tests.simulation.session_node import SessionNode
from tests.simulation.submitted import Kind, Submitted
from tests.simulation.world import World

__all__ = ["User"]

UNKNOWN_DEVICE = "nowhere"
PATIENT_MS = 7 * 24 * 3600 * 1000


class User:
    """Does things to a session at random. ``node`` is its session's present incarnation.

    ``everything``: what all users have submitted, since a pointer of one session may be an argument in another.
    ``large``: some tensors and plans are too large for a message.
    """

    def __init__(
        self,
        world: World,
        promises: Promises,
        devices: tuple[str, ...],
        node: SessionNode,
        *,
        everything: list[Submitted],
        order: itertools.count[int],
        large: bool,
    ) -> None:
        self._world = world
        self._promises = promises
        self._devices = devices
        self.node = node
        self._mine: list[Submitted] = []
        self._everything = everything
        self._order = order
        self._large = large
        self._plans = fake_plans() + (large_plans() if large else ())
        self._weights = (50, 50, 30, 10, 1, 0.5, 30, 20)[: len(self._plans)]

    def act(self, actions: int, seconds: float) -> None:
        """Plan ``actions`` things over about ``seconds``: alone, and in bursts."""
        random = self._world.random
        time = self._world.now
        kinds = (
            (self._invoke, 10),
            (self._invoke_many, 2),
            (self._put, 6 if self._large else 3),
            (self._cancel, 1),
            (self._release, 2),
            (self._send_plan, 1),
            (self._read, 2),
            (self._ask, 1),
            (self._invoke_too_much, 0.1),
            (self._use_an_id_again, 0.3),
        )
        for _ in range(actions):
            if random.random() < 0.5:
                time += random.random() * 4 * seconds / actions
            self._world.at(time, random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0])

    def go_on(self, node: SessionNode) -> None:
        """The coordinator has started again: take up all pointers that it had."""
        self.node = node
        for command in self._mine:
            if not command.ended:
                node.take_up(command.id, command.device, command.id)

    # ------------------------------------------------------------------------------------------- what it does

    def _put(self) -> None:
        if not self.node.living:
            return
        random = self._world.random
        large = self._large and random.random() < 0.5
        number = random.choice((*POPULAR, random.randrange(1 << 40))) if large else random.randrange(1 << 40)
        frame = tensor_frame(number)
        device = self._device()
        command = self._command(self.node.session.take_ids(1), device, [frame])
        put = Put(id=command.id, tags=["sent"] if number % 2 else [])
        if large:
            self.node.contents[put.id] = tensor_file(frame)
            submit = SubmitCommand(devices=(device,), command=put, upload=put.id, upload_size=LARGE_BYTES)
        else:
            submit = SubmitCommand(devices=(device,), command=put, frames=(frame,))
        self._send([command], submit)

    def _invoke(self) -> None:
        self._invoke_on((self._device(),))

    def _invoke_many(self) -> None:
        self._invoke_on(tuple(self._world.random.sample(self._devices, k=min(2, len(self._devices)))))

    def _invoke_too_much(self) -> None:
        self._invoke_on((self._device(),), outputs=MOST_OUTPUTS + 1)

    def _use_an_id_again(self) -> None:
        """What no coordinator should do: another command under an id that is taken."""
        mine = self.node.session.incarnation
        records = self._promises.records
        mine_ended = [one for one in self._mine if one.ended and one.id in records and one.incarnation == mine]
        ended = [one for one in mine_ended if not one.used_again]
        if self._promises.kind is Kind.USUAL and ended and self.node.living:
            command = self._world.random.choice(ended)
            self._promises.used_again(command)
            frame = tensor_frame(self._world.random.randrange(1 << 40))
            put = Put(id=command.id)
            self._submit(SubmitCommand(devices=(command.device,), command=put, frames=(frame,)))

    def _invoke_on(self, devices: tuple[str, ...], *, outputs: int = 0) -> None:
        if not self.node.living:
            return
        random = self._world.random
        plan: FakePlan = random.choices(self._plans, self._weights)[0]
        args, operands, frames, earlier = self._arguments()
        worthless = plan.fails or plan.poison or plan.deadly
        excuses = {"ExecutionFailed"} if plan.fails else {"WorkerDied"} if worthless else set()
        deadline = PATIENT_MS
        if random.random() < 0.04:
            deadline = SHORT_DEADLINE_MS
            excuses.add("DeadlineExpired")
        if outputs:
            excuses.add("NotAllowed")
        if len(devices) > 1:
            excuses.add("QueueFull")  # for one of several devices, whose mailbox is full
        outputs = outputs or plan.outputs
        id = self.node.session.take_ids(outputs * len(devices))
        values = answer_frames(plan.id, tuple(operands), outputs)
        commands = [
            self._command(nth(id, k * outputs), device, values, arguments=earlier, excuses=excuses, worthless=worthless)
            for k, device in enumerate(devices)
        ]
        inline = random.random() < 0.7
        invoke = Invoke(id=id, plan=plan.id, args=args, outputs=outputs, deadline_ms=deadline, inline=inline)
        self._send(commands, SubmitCommand(devices=devices, command=invoke, frames=tuple(frames), plan=plan.parts))

    def _arguments(self) -> tuple[list[Argument], list[bytes | int], list[bytes], list[Submitted]]:
        random = self._world.random
        args: list[Argument] = []
        operands: list[bytes | int] = []
        frames: list[bytes] = []
        earlier: list[Submitted] = []
        for _ in range(random.randrange(3)):
            kind = random.randrange(4)
            if kind == 0:
                number = random.randrange(1000)
                args.append(number)
                operands.append(number)
            elif kind == 1 or not self._everything:
                frames.append(tensor_frame(random.randrange(1 << 40)))
                args.append(None)
                operands.append(frames[-1])
            else:
                pool = self._mine if self._mine and random.random() < 0.8 else self._everything
                before = random.choice(pool[-12:])
                k = random.randrange(before.outputs)
                args.append(nth(before.id, k))
                operands.append(before.frames[k])
                earlier.append(before)
        return args, operands, frames, earlier

    def _cancel(self) -> None:
        if self._mine and self.node.living:
            command = self._world.random.choice(self._mine[-10:])
            command.excuses.add("InvocationCancelled")
            self._submit(SubmitCommand(devices=(command.device,), command=Cancel(id=command.id)))

    def _release(self) -> None:
        if self._mine and self.node.living:
            command = self._world.random.choice(self._mine[-20:])
            result = self.node.results.get(command.id)
            if result is None:
                return
            if not command.released_at:
                command.released_at, command.released_by = next(self._order), self.node.session.incarnation
            released = tuple((result, k) for k in range(command.outputs))
            self._submit(SubmitCommand(devices=(command.device,), command=Release(ids=command.ids), released=released))

    def _send_plan(self) -> None:
        self._submit(SendPlan(plan=self._world.random.choice(self._plans).parts))

    def _read(self) -> None:
        ready = [command for command in self._everything[-30:] if command.ended == "value"]
        if ready and self.node.living:
            self.node.fetch(self._world.random.choice(ready).ids)

    def _ask(self) -> None:
        if self._everything and self.node.living:
            self.node.ask([command.id for command in self._everything[-10:]])

    # ------------------------------------------------------------------------------------------- how it keeps its books

    def _device(self) -> str:
        return UNKNOWN_DEVICE if self._world.random.random() < 0.02 else self._world.random.choice(self._devices)

    def _command(
        self,
        id: bytes,
        device: str,
        frames: list[bytes],
        *,
        arguments: list[Submitted] | None = None,
        excuses: set[str] | None = None,
        worthless: bool = False,
    ) -> Submitted:
        return Submitted(
            id=id,
            device=device,
            outputs=len(frames),
            frames=frames,
            number=next(self._order),
            at=self._world.now,
            arguments=arguments or (),
            excuses=(excuses or set()) | ({"UnknownDevice"} if device == UNKNOWN_DEVICE else set()),
            worthless=worthless,
        )

    def _send(self, commands: list[Submitted], event: SubmitCommand) -> None:
        for command in commands:
            self._promises.submit(command)
        self._mine += commands
        self._everything += commands
        self._submit(event)

    def _submit(self, event: SubmitCommand | SendPlan) -> None:
        if self.node.living:
            self.node.submit(event)
