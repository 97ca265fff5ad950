"""A user of a session: invokes, sends, cancels and releases at random, and never waits for anything."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from broker.protocol.ids import nth
from broker.protocol.messages import Argument, Cancel, Invoke, Put, Release
from coordinator.core_events import SendPlan, SubmitCommand
from coordinator.core_results import Result
from tests.simulation.fakes import FakePlan, answer_frames, fake_plans, tensor_frame
from tests.simulation.promises import Promises, Submitted
from tests.simulation.world import World

__all__ = ["User"]

UNKNOWN_DEVICE = "nowhere"
SHORT_DEADLINE_MS = 3_000
PATIENT_MS = 7 * 24 * 3600 * 1000


class User:
    """Does things to a session at random. ``submit`` hands an event to the session's core; ``take_ids`` takes its ids.

    ``everything``: what all users have submitted, since a pointer of one session may be an argument in another.
    """

    def __init__(
        self,
        world: World,
        promises: Promises,
        devices: tuple[str, ...],
        *,
        submit: Callable[[SubmitCommand | SendPlan], None],
        take_ids: Callable[[int], bytes],
        results: Mapping[bytes, Result],
        everything: list[Submitted],
        order: itertools.count[int],
    ) -> None:
        self._world = world
        self._promises = promises
        self._devices = devices
        self._submit = submit
        self._take_ids = take_ids
        self._mine: list[Submitted] = []
        self._everything = everything
        self._order = order
        self._results = results

    def act(self, actions: int, seconds: float) -> None:
        """Plan ``actions`` things over about ``seconds``: alone, and in bursts."""
        random = self._world.random
        time = 0.0
        kinds = (self._invoke, self._invoke_many, self._put, self._cancel, self._release, self._send_plan)
        for _ in range(actions):
            if random.random() < 0.5:
                time += random.random() * 4 * seconds / actions
            self._world.at(time, random.choices(kinds, (10, 2, 3, 1, 2, 1))[0])

    # ------------------------------------------------------------------------------------------- what it does

    def _put(self) -> None:
        number = self._world.random.randrange(1 << 40)
        frame = tensor_frame(number)
        device = self._device()
        command = self._command(self._take_ids(1), device, [frame])
        put = Put(id=command.id, tags=["sent"] if number % 2 else [])
        self._send([command], SubmitCommand(devices=(device,), command=put, frames=(frame,)))

    def _invoke(self) -> None:
        self._invoke_on((self._device(),))

    def _invoke_many(self) -> None:
        self._invoke_on(tuple(self._world.random.sample(self._devices, k=min(2, len(self._devices)))))

    def _invoke_on(self, devices: tuple[str, ...]) -> None:
        random = self._world.random
        plan: FakePlan = random.choices(fake_plans(), (5, 5, 3, 1))[0]
        args, operands, frames, earlier = self._arguments()
        excuses = {"ExecutionFailed"} if plan.fails else set()
        deadline = PATIENT_MS
        if random.random() < 0.04:
            deadline = SHORT_DEADLINE_MS
            excuses.add("DeadlineExpired")
        id = self._take_ids(plan.outputs * len(devices))
        values = answer_frames(plan.id, tuple(operands), plan.outputs)
        commands = [
            self._command(nth(id, k * plan.outputs), device, values, arguments=earlier, excuses=excuses)
            for k, device in enumerate(devices)
        ]
        inline = random.random() < 0.7
        invoke = Invoke(id=id, plan=plan.id, args=args, outputs=plan.outputs, deadline_ms=deadline, inline=inline)
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
        if self._mine:
            command = self._world.random.choice(self._mine[-10:])
            command.excuses.add("InvocationCancelled")
            self._submit(SubmitCommand(devices=(command.device,), command=Cancel(id=command.id)))

    def _release(self) -> None:
        if self._mine:
            command = self._world.random.choice(self._mine[-20:])
            command.released_at = command.released_at or next(self._order)
            released = tuple((self._results[command.id], k) for k in range(command.outputs))
            ids = [nth(command.id, k) for k in range(command.outputs)]
            self._submit(SubmitCommand(devices=(command.device,), command=Release(ids=ids), released=released))

    def _send_plan(self) -> None:
        self._submit(SendPlan(plan=self._world.random.choice(fake_plans()).parts))

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
    ) -> Submitted:
        return Submitted(
            id=id,
            device=device,
            outputs=len(frames),
            frames=frames,
            number=next(self._order),
            arguments=arguments or (),
            excuses=(excuses or set()) | ({"UnknownDevice"} if device == UNKNOWN_DEVICE else set()),
        )

    def _send(self, commands: list[Submitted], event: SubmitCommand) -> None:
        for command in commands:
            self._promises.submit(command)
        self._mine += commands
        self._everything += commands
        self._submit(event)
