"""What is particular to plans of functions: they are pickled and copied, though pickle knows a function by a name that
the plan has taken.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from coordinator.function_plan import FunctionPlan, func2plan
from coordinator.plan_state import TracedState


@func2plan(args_shape=[(-1,)], state=[torch.ones(1)])
def scaled(x: torch.Tensor, state: TracedState) -> torch.Tensor:
    """A decorated function with state: the name shows the plan."""
    (factor,) = state.read()
    return x * factor


def halved(x: torch.Tensor) -> torch.Tensor:
    """A function whose name still shows it."""
    return x / 2


class Scaler:
    """Something whose method becomes a plan."""

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """Three times."""
        return x * 3


def _pickled(plan: FunctionPlan) -> FunctionPlan:
    again: FunctionPlan = pickle.loads(pickle.dumps(plan))  # noqa: S301 -- our own
    return again


def _of_ones(plan: FunctionPlan) -> list[float]:
    result: list[float] = plan(torch.ones(2)).tolist()
    return result


@pytest.mark.parametrize("duplicate", [_pickled, copy.deepcopy])
def test_a_decorated_function_is_copied_with_its_state(duplicate: Callable[[FunctionPlan], FunctionPlan]) -> None:
    """The copy has what the plan's state was then, is built, and goes its own way."""
    plan = copy.deepcopy(scaled)
    plan.state.write(torch.full((1,), 5.0))
    other = duplicate(plan)
    assert other.id == plan.id
    assert (other.name, other.__wrapped__) == ("scaled", scaled.__wrapped__)
    plan.state.write(torch.full((1,), 7.0))
    assert _of_ones(other) == [5.0, 5.0]
    assert _of_ones(plan) == [7.0, 7.0]


def test_a_plan_goes_to_a_process_of_its_own() -> None:
    """As with multiprocessing, where the other process imports the function's module itself."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_of_ones, (scaled,)).get(timeout=120) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [(halved, 0.5), (Scaler().scale, 3.0), (partial(torch.add, other=torch.tensor(1.0)), 2.0), (nn.ReLU(), 1.0)],
)
def test_whatever_a_pickle_can_find(function: Callable[..., torch.Tensor], expected: float) -> None:
    """Functions that are not decorated, methods, modules."""
    plan = FunctionPlan(function)
    plan.build(torch.zeros(2))
    assert _of_ones(_pickled(plan)) == [expected, expected]


def test_a_function_that_no_import_finds() -> None:
    """It says what was expected, and what takes any plan; a copy needs no name."""
    plan = func2plan(args_shape=[(2,)])(lambda x: x + 1)
    with pytest.raises(pickle.PicklingError, match=r"<lambda>: expected a function or a plan .* plan\.save\(path\)"):
        pickle.dumps(plan)
    assert _of_ones(copy.deepcopy(plan)) == [2.0, 2.0]
