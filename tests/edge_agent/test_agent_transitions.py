"""The agent's tables of steps: complete, and kept to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from enum import StrEnum

import pytest

from broker.protocol import messages as m
from broker.protocol.errors import InvalidTransition
from edge_agent.core_commands import Command
from edge_agent.transitions import COMMAND, LINK, PLAN, WORKER, LinkStep, PlanStep, Step, WorkerStep, advance
from tests.edge_agent.device import DemoPlan, result_id

MACHINES: list[tuple[Mapping[StrEnum, frozenset[StrEnum]], type[StrEnum], StrEnum]] = [
    (COMMAND, Step, Step.TAKEN),  # type: ignore[list-item]  # a mapping's key is invariant
    (PLAN, PlanStep, PlanStep.ASKED),  # type: ignore[list-item]
    (LINK, LinkStep, LinkStep.DOWN),  # type: ignore[list-item]
    (WORKER, WorkerStep, WorkerStep.ABSENT),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("table", "steps", "first"), MACHINES)
def test_every_step_is_in_its_table_and_can_be_reached(
    table: Mapping[StrEnum, frozenset[StrEnum]], steps: type[StrEnum], first: StrEnum
) -> None:
    """No step without a row, none that nothing leads to."""
    assert set(table) == set(steps)
    reached = {first}
    while (further := reached.union(*(table[step] for step in reached))) != reached:
        reached = further
    assert reached == set(steps)


@pytest.mark.parametrize(("table", "steps", "first"), MACHINES)
def test_every_step_from_every_step(
    table: Mapping[StrEnum, frozenset[StrEnum]], steps: type[StrEnum], first: StrEnum
) -> None:
    """What the table has is taken; anything else is InvalidTransition, which tells both ends."""
    for start, finish in itertools.product(steps, steps):
        if finish in table[start]:
            assert advance(table, start, finish, "it") is finish
        else:
            with pytest.raises(InvalidTransition) as caught:
                advance(table, start, finish, "it")
            assert (caught.value.start, caught.value.finish) == (start.value, finish.value)


def test_a_command_that_leaves_its_table_tells_its_story() -> None:
    """The id, the step asked for, and all steps before."""
    command = Command(m.Invoke(id=result_id(1), plan=DemoPlan().id, args=[]), b"", (), order=1, deadline=0)
    command.move(Step.READY)
    with pytest.raises(
        InvalidTransition, match=r"command 73650001 cannot go from ready to recorded; before it: taken; ready"
    ):
        command.move(Step.RECORDED)


@pytest.mark.parametrize("step", [Step.ANNOUNCED, Step.RECORDED])
def test_nothing_follows_an_end_but_its_record(step: Step) -> None:
    """At most one recorded result: no way leads back from an announced end."""
    assert COMMAND[step] <= {Step.RECORDED}
