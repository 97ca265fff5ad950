"""The agent's state machines, as data: which step may follow which.

Four machines: a command on its way through the device, a plan, the link to the broker, and the worker process. The
core moves along these tables and nowhere else (`advance` raises `InvalidTransition`); the diagrams in the docs are
made from them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TypeVar

from broker.protocol.errors import InvalidTransition

__all__ = [
    "ANNOUNCED",
    "COMMAND",
    "LINK",
    "LINK_REGISTERED",
    "PLAN",
    "PLAN_LOADED",
    "READY",
    "RECORDED",
    "RUNNING",
    "STORING",
    "TAKEN",
    "WAITING_ARGUMENTS",
    "WAITING_PLAN",
    "WORKER",
    "WORKER_UP",
    "LinkStep",
    "PlanStep",
    "Step",
    "WorkerStep",
    "advance",
]


class Step(enum.StrEnum):
    """Where a command is."""

    TAKEN = "taken"
    """It is in the device's queue."""
    WAITING_ARGUMENTS = "waiting_arguments"
    """Values that it names are not here yet. Later commands may overtake it."""
    WAITING_PLAN = "waiting_plan"
    """Its plan is not loaded in the worker yet. Later commands of its session wait behind it."""
    READY = "ready"
    """It may start as soon as the worker has room."""
    RUNNING = "running"
    """The worker has it."""
    STORING = "storing"
    """Its values are on their way to the disk, before they are announced."""
    ANNOUNCED = "announced"
    """It has ended, and its announcement waits for the broker's record."""
    RECORDED = "recorded"
    """The broker has it on record: the core forgets it."""


TAKEN, WAITING_ARGUMENTS, WAITING_PLAN, READY, RUNNING, STORING, ANNOUNCED, RECORDED = Step
"""The steps under names of their own, as `PLAN_LOADED` and the like below. To find a member of an enum, Python 3.11
calls a function, which takes ten times as long as a name; and a command on its way looks at twenty.
"""


COMMAND: Mapping[Step, frozenset[Step]] = {
    Step.TAKEN: frozenset({Step.WAITING_ARGUMENTS, Step.WAITING_PLAN, Step.READY, Step.STORING, Step.ANNOUNCED}),
    Step.WAITING_ARGUMENTS: frozenset({Step.WAITING_PLAN, Step.READY, Step.STORING, Step.ANNOUNCED}),
    Step.WAITING_PLAN: frozenset({Step.READY, Step.WAITING_ARGUMENTS, Step.ANNOUNCED}),
    Step.READY: frozenset({Step.WAITING_PLAN, Step.WAITING_ARGUMENTS, Step.RUNNING, Step.ANNOUNCED}),
    Step.RUNNING: frozenset({Step.READY, Step.STORING, Step.ANNOUNCED}),
    Step.STORING: frozenset({Step.ANNOUNCED}),
    Step.ANNOUNCED: frozenset({Step.RECORDED}),
    Step.RECORDED: frozenset(),
}
"""A command of the device. From RUNNING back to READY: the worker died; from READY to WAITING_PLAN: it was ended; from
either to WAITING_ARGUMENTS: a value that was here is gone.
"""


class PlanStep(enum.StrEnum):
    """How far a plan is from being run."""

    ASKED = "asked"
    """Parts of it are still at the broker."""
    HERE = "here"
    """All its parts are in the store."""
    LOADING = "loading"
    """The worker is checking it."""
    LOADED = "loaded"
    """The worker can run it."""
    REFUSED = "refused"
    """It cannot be had, or the worker does not take it."""


PLAN_LOADED = PlanStep.LOADED

PLAN: Mapping[PlanStep, frozenset[PlanStep]] = {
    PlanStep.ASKED: frozenset({PlanStep.HERE, PlanStep.REFUSED}),
    PlanStep.HERE: frozenset({PlanStep.LOADING, PlanStep.ASKED, PlanStep.REFUSED}),
    PlanStep.LOADING: frozenset({PlanStep.LOADED, PlanStep.HERE, PlanStep.REFUSED}),
    PlanStep.LOADED: frozenset({PlanStep.HERE}),
    PlanStep.REFUSED: frozenset({PlanStep.ASKED}),
}
"""A plan. Back to HERE: the worker is gone; from REFUSED to ASKED: somebody invokes it again."""


class LinkStep(enum.StrEnum):
    """How the agent stands with its broker."""

    DOWN = "down"
    REGISTERING = "registering"
    REGISTERED = "registered"
    LEFT = "left"


LINK_REGISTERED = LinkStep.REGISTERED

LINK: Mapping[LinkStep, frozenset[LinkStep]] = {
    LinkStep.DOWN: frozenset({LinkStep.REGISTERING, LinkStep.LEFT}),
    LinkStep.REGISTERING: frozenset({LinkStep.REGISTERED, LinkStep.DOWN, LinkStep.LEFT}),
    LinkStep.REGISTERED: frozenset({LinkStep.REGISTERING, LinkStep.DOWN, LinkStep.LEFT}),
    LinkStep.LEFT: frozenset(),
}
"""The link to the broker. From REGISTERED to REGISTERING: the broker does not know this device any more (`Stranger`).
"""


class WorkerStep(enum.StrEnum):
    """Whether there is a process that runs plans."""

    ABSENT = "absent"
    STARTING = "starting"
    UP = "up"
    STOPPING = "stopping"


WORKER_UP = WorkerStep.UP

WORKER: Mapping[WorkerStep, frozenset[WorkerStep]] = {
    WorkerStep.ABSENT: frozenset({WorkerStep.STARTING}),
    WorkerStep.STARTING: frozenset({WorkerStep.UP, WorkerStep.ABSENT, WorkerStep.STOPPING}),
    WorkerStep.UP: frozenset({WorkerStep.STOPPING, WorkerStep.ABSENT}),
    WorkerStep.STOPPING: frozenset({WorkerStep.ABSENT}),
}
"""The worker. To ABSENT: it has ended, as told or by dying."""

S = TypeVar("S", bound=enum.StrEnum)


def advance(table: Mapping[S, frozenset[S]], start: S, finish: S, subject: str, story: Sequence[str] = ()) -> S:
    """``finish``, if the table lets it follow ``start``; else raises `InvalidTransition`, with the story of
    ``subject``.
    """
    if finish not in table[start]:
        raise InvalidTransition(subject, start.value, finish.value, story)
    return finish
