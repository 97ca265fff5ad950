"""A command on the device, and the order in which commands start."""

from __future__ import annotations

import heapq
from collections import deque

from broker.protocol import messages as m
from broker.protocol.ids import INCARNATION_BYTES, short
from edge_agent.core_plans import Plan
from edge_agent.transitions import ANNOUNCED, COMMAND, READY, RECORDED, TAKEN, WAITING_PLAN, Step, advance

__all__ = ["Command", "StartQueue"]


class Command:
    """An `Invoke` or a `Put` that the device has taken.

    ``order`` is its place among all commands taken. ``missing``: how many of its arguments are not here yet.
    ``dropped``: which of its results were released before it ended. ``ids``: all its results, if they are more than
    one. ``event``: what will be announced once it is on the disk; or how it ended, if without a value. ``deaths``: how
    many workers died of it. ``progress``: how far the worker is with it, 0 to 1; -1: nobody knows.
    """

    __slots__ = (
        "body",
        "deadline",
        "deaths",
        "digest",
        "dropped",
        "event",
        "frames",
        "id",
        "ids",
        "job",
        "missing",
        "order",
        "outputs",
        "plan",
        "progress",
        "step",
        "story",
    )

    def __init__(
        self, body: m.Invoke | m.Put, digest: bytes, frames: tuple[m.Frame, ...], *, order: int, deadline: float
    ) -> None:
        self.body = body
        self.id = body.id
        self.digest = digest
        self.frames = frames
        self.order = order
        self.deadline = deadline
        self.outputs = body.outputs if isinstance(body, m.Invoke) else 1
        self.plan: Plan | None = None
        self.missing = 0
        self.job = 0
        self.deaths = 0
        self.progress = -1.0
        self.dropped: set[bytes] | None = None
        self.ids: list[bytes] | None = None
        self.event: m.Event | None = None
        self.step = TAKEN
        self.story: list[str] = [TAKEN]

    def move(self, step: Step) -> None:
        """Take a step of the table. Raises `InvalidTransition`, with the steps so far."""
        if step not in COMMAND[self.step]:
            advance(COMMAND, self.step, step, f"command {short(self.id)}", self.story)
        self.step = step
        self.story.append(step)

    @property
    def session(self) -> bytes:
        """Whose command it is."""
        return self.id[:INCARNATION_BYTES]

    @property
    def queued(self) -> bool:
        """Whether it waits to be started, with all its arguments."""
        return self.step is READY or self.step is WAITING_PLAN

    @property
    def ended(self) -> bool:
        """Whether nothing can become of it any more but its record."""
        return self.step is ANNOUNCED or self.step is RECORDED


class StartQueue:
    """Commands whose arguments are here, to be started in the order taken.

    One whose plan is not loaded yet parks its session: what came later in that session waits behind it, what came
    earlier does not.
    """

    def __init__(self) -> None:
        self._last: deque[Command] = deque()  # those that came after all that waited then, as most do: no search
        self._heap: list[tuple[int, Command]] = []  # the others, by their order: numbers are compared without a call
        self._parked: dict[bytes, list[tuple[int, Command]]] = {}  # session to a heap of its commands

    def __bool__(self) -> bool:
        """Whether any command waits to be started, for its plan too; one that has ended meanwhile does not count."""
        for command in self._last:
            if command.queued:
                return True
        for heap in (self._heap, *self._parked.values()):
            for _, command in heap:
                if command.queued:
                    return True
        return False

    @property
    def parked(self) -> bool:
        """Whether any command waits for its plan."""
        return bool(self._parked)

    def push(self, command: Command) -> None:
        """Its arguments are here."""
        last = self._last
        if not last or last[-1].order < command.order:
            last.append(command)
        else:
            heapq.heappush(self._heap, (command.order, command))

    def pop(self) -> Command | None:
        """The next to start, or to `park`. None: there is none now."""
        heap, last = self._heap, self._last
        while heap or last:
            in_turn = last and (not heap or last[0].order < heap[0][0])
            command = last.popleft() if in_turn else heapq.heappop(heap)[1]
            if command.step is not READY and command.step is not WAITING_PLAN:
                continue  # it has ended while it waited
            if self._parked and (parked := self._parked.get(command.session)) and parked[0][0] < command.order:
                heapq.heappush(parked, (command.order, command))
                continue
            return command
        return None

    def park(self, command: Command) -> None:
        """Its plan is not loaded."""
        heapq.heappush(self._parked.setdefault(command.session, []), (command.order, command))

    def unpark(self) -> None:
        """Plans have become loaded, or are refused: look at all parked commands again."""
        for parked in self._parked.values():
            for entry in parked:
                heapq.heappush(self._heap, entry)
        self._parked.clear()
