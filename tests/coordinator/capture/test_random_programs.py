"""Programs made at random of branches and loops, nested: the plan, its variant and Python's own loops give the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._higher_order_ops as torchs_operators

from coordinator.capture.control_flow import control_flow
from coordinator.translation.variants import make_variant, prove
from edge_agent.plan.checker import check_graph
from edge_agent.plan.nesting import all_ops
from tests.coordinator.capture.checks import built

operators: Any = torchs_operators
WEIGHTS = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) / 3
PROGRAMS = 8
_DEEPEST = 2


class Choices:
    """Numbers that a seed decides: Python's own would be refused in a plan."""

    def __init__(self, seed: int) -> None:
        self._state = seed * 2862933555777941757 + 3037000493

    def below(self, end: int) -> int:
        """A number from 0 on, below ``end``."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self._state >> 33) % end

    def of(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One of these."""
        return values[self.below(len(values))]


def simple(choices: Choices, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """One op or a few, of tensors of n rows and 3 columns, which give another."""
    a, b = choices.of(values), choices.of(values)
    made = (
        lambda: torch.tanh(a + b),
        lambda: a * 0.5 - b * 0.25,
        lambda: torch.tanh(a @ WEIGHTS),
        lambda: a.t().contiguous().t() * 0.9,
        lambda: torch.where(a > b, a, b),
        lambda: torch.sin(a).clone(),
        lambda: a.t().reshape(3, -1).t(),
        lambda: torch.softmax(a, 1),
    )
    return made[choices.below(len(made))]()


def branch(choices: Choices, values: Sequence[torch.Tensor], depth: int) -> torch.Tensor:
    """Either of two programs, which give it turned as well."""
    seed = choices.below(1 << 30)

    def side(place: int) -> Any:
        def run(a: torch.Tensor) -> Any:
            made = program(seed + place, depth - 1, [*values, a], 2)
            return made, made.t()

        return run

    made, turned = operators.cond(choices.of(values)[0].sum() > 0.2, side(0), side(1), (choices.of(values),))
    result: torch.Tensor = made + turned.t()
    return result


def loop(choices: Choices, values: Sequence[torch.Tensor], depth: int) -> torch.Tensor:
    """A program, a few times over."""
    seed, most = choices.below(1 << 30), choices.below(4)

    def body(count: torch.Tensor, a: torch.Tensor) -> Any:
        return count + 1, program(seed, depth - 1, [*values, a], 2)

    def going(count: torch.Tensor, a: torch.Tensor) -> Any:
        return (count < most) & (a.abs().sum() > 0.1)

    count, made = operators.while_loop(going, body, (0, choices.of(values)))
    result: torch.Tensor = made + count * 0.1
    return result


def scan(choices: Choices, values: Sequence[torch.Tensor], depth: int) -> torch.Tensor:
    """A program on two rows at a time, from either end."""
    seed, reverse = choices.below(1 << 30), bool(choices.below(2))

    def step(carry: torch.Tensor, row: torch.Tensor) -> Any:
        mixed = torch.tanh(carry + row)
        pairs = [mixed.expand(2, 3) * 1.0, *(one.sum(0, keepdim=True).expand(2, 3) for one in values[:2])]
        return program(seed, depth - 1, pairs, 1)[0], mixed * 0.5

    carry, rows = operators.scan(step, choices.of(values).sum(0), choices.of(values), reverse=reverse)
    result: torch.Tensor = rows + carry
    return result


def program(seed: int, depth: int, values: Sequence[torch.Tensor], steps: int) -> torch.Tensor:
    """So many steps, each of which takes what is there, and gives one more."""
    choices, made = Choices(seed), list(values)
    for _ in range(steps):
        kind = choices.below(8 if depth else 4)
        if kind < 4:
            made.append(simple(choices, made))
        elif kind == 4:
            made.append(branch(choices, made, depth))
        elif kind == 5:
            made.append(loop(choices, made, depth))
        elif kind == 6:
            made.append(scan(choices, made, depth))
        else:
            made.append(operators.map(lambda row: torch.tanh(row * 2) + row.sum(), choices.of(made)))
    return made[-1]


def _randn(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def test_programs_made_at_random() -> None:
    """At other sizes than that of the example, and on onnxruntime; together they have ops of each kind."""
    used: set[str] = set()
    for seed in range(PROGRAMS):

        def function(x: torch.Tensor, y: torch.Tensor, seed: int = seed) -> torch.Tensor:
            return program(seed, _DEEPEST, [x, y], 4)

        plan = built(function, _randn(5, seed), _randn(5, seed + 1), shape=[("n", 3), ("n", 3)])
        used |= {own.ops[place].name for own, place in all_ops(plan.graph)}
        assert plan.readable_plan
        assert plan.draw().svg
        assert str(plan.costs)
        for rows in (1, 3, 8):
            x, y = _randn(rows, seed + 2), _randn(rows, seed + 3)
            with control_flow(traced=False):
                wanted = function(x, y)
            torch.testing.assert_close(plan.run_plan(x, y), wanted, rtol=1e-4, atol=1e-5, msg=f"program {seed}")
        assert prove(check_graph(plan.graph), make_variant(plan.graph)) < 1e-4
    assert used >= {"control.cond.default", "control.scan.default", "control.while_loop.default"}
