"""What may change between `build` and `send`, and what may not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coordinator.errors import PlanStale
from coordinator.function_plan import func2plan
from coordinator.plan import Plan

V = torch.tensor([1.0, 2.0])


def _same_as_live(plan: Plan) -> None:
    """What would be sent gives what the module gives."""
    torch.testing.assert_close(plan.run_plan(V), plan(V).detach())


# ------------------------------------------------------------------------------------------------- tied weights


class Pair(Plan):
    """Two layers, that may share their weight."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 2, bias=False)
        if tied:
            self.two.weight = self.one.weight
        self.build(V)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(self.one(x))
        return result


def test_tied_weights_that_came_apart_are_stale() -> None:
    """The plan carries one tensor for both names: with two it would be wrong, and the error names them."""
    pair = Pair(tied=True)
    pair.one.weight = nn.Parameter(torch.eye(2))
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight: one tensor became 2"):
        pair.bundle()
    pair.two.weight = nn.Parameter(torch.eye(2) * 3)
    with pytest.raises(PlanStale) as caught:
        pair.run_plan(V)
    assert caught.value.changes == ("one.weight and two.weight: one tensor became 2",)
    pair.build(V)
    _same_as_live(pair)


def test_a_tied_head_that_was_replaced_is_stale() -> None:
    """Also where the whole layer is another one, of the same shape."""
    pair = Pair(tied=True)
    pair.two = nn.Linear(2, 2, bias=False)
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight"):
        pair.bundle()
    pair.two.weight = pair.one.weight
    _same_as_live(pair)


def test_three_names_of_one_tensor() -> None:
    """Each is named, also if only one of them came apart."""

    class Three(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
            for layer in self.layers:
                layer.weight = self.layers[0].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    three = Three()
    three.build(V)
    three.layers[1].weight = nn.Parameter(torch.eye(2))
    with pytest.raises(
        PlanStale, match=r"layers\.0\.weight and layers\.1\.weight and layers\.2\.weight: one tensor became 2"
    ):
        three.bundle()


def test_tied_weights_of_a_functions_modules() -> None:
    """Two modules that a function uses may share a weight as well."""
    one, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    two.weight = one.weight

    @func2plan(args_shape=[(2,)])
    def plan(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = two(one(x))
        return result

    two.weight = nn.Parameter(torch.eye(2))
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight"):
        plan.bundle()


def test_tied_weights_that_stay_tied_are_sent() -> None:
    """Trained, loaded, converted to what they were, or tied to another tensor."""
    pair = Pair(tied=True)
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.1)
    pair(V).sum().backward()
    optimizer.step()
    _same_as_live(pair)
    pair.to(torch.float32)
    pair.load_state_dict(Pair(tied=True).state_dict())
    _same_as_live(pair)
    pair.one.weight = pair.two.weight = nn.Parameter(torch.eye(2) * 3)
    _same_as_live(pair)
    pair.load_state_dict(Pair(tied=True).state_dict(), assign=True)
    assert pair.one.weight is not pair.two.weight  # two views of the same elements
    _same_as_live(pair)
    with torch.no_grad():
        pair.two.weight.add_(1)
    _same_as_live(pair)


def test_weights_that_were_tied_later_are_sent() -> None:
    """The plan carries two tensors, which may be equal; they may come apart again."""
    pair = Pair(tied=False)
    pair.two.weight = pair.one.weight
    _same_as_live(pair)
    pair.two.weight = nn.Parameter(torch.eye(2))
    _same_as_live(pair)
