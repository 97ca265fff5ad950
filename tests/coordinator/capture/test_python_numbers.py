"""Python numbers as arguments: inputs of a plan that behave as Python's numbers do in eager torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edge_agent.plan.errors import ArgumentMismatch
from tests.coordinator.capture.checks import assert_same, built


def _mixed(x: torch.Tensor, n: Any) -> dict[str, Any]:
    return {
        "product": x * n,
        "shifted": n + x,
        "difference": n - x,
        "larger": x > n,
        "chosen": torch.where(x > 0, x, n),
        "clamped": torch.maximum(x, x * n),
        "scalar": x.sum() * n,
        "alone": n * 2,
        "halved": n / 2,
    }


@pytest.mark.parametrize(
    ("x", "number", "other"),
    [
        (torch.randn(4), 0.5, -3.25),
        (torch.randn(4), 3, -2),
        (torch.randn(4).half(), 0.1, 0.3),
        (torch.randn(4, dtype=torch.float64), 0.1, 0.7),
        (torch.arange(4), 0.5, 2.25),
        (torch.arange(4, dtype=torch.int16), 3, 5),
        (torch.tensor(1.5), 0.1, 0.2),
        (torch.tensor(2), 0.5, 1.5),
    ],
    ids=["float", "int", "half", "double", "float-for-ints", "int-for-shorts", "0-d", "float-for-0-d-int"],
)
def test_numbers_promote_as_in_eager_torch(x: torch.Tensor, number: float, other: float) -> None:
    """The dtypes and values are those of a Python number, at the example and for another number."""
    plan = built(_mixed, x, number)
    assert plan.graph.inputs[1].kind == "number"
    assert_same(plan, _mixed, x, number)
    assert_same(plan, _mixed, x, other)


def test_a_complex_number() -> None:
    """A complex number makes a complex result of real tensors."""

    def function(x: torch.Tensor, n: complex) -> torch.Tensor:
        return x * n

    plan = built(function, torch.randn(4), 1j)
    assert_same(plan, function, torch.randn(4), 2 + 1j)


def test_numbers_take_only_their_kind() -> None:
    """A float where the plan has an int is refused by name; an int where it has a float is one."""

    def function(x: torch.Tensor, n: float) -> torch.Tensor:
        return x * n

    whole = built(function, torch.randn(2), 3)
    with pytest.raises(ArgumentMismatch, match=r"^n: expected an int of 64 bits, got 0.5$"):
        whole(torch.randn(2), 0.5)
    with pytest.raises(ArgumentMismatch, match=r"^n: expected an int of 64 bits, got 9223372036854775808$"):
        whole(torch.randn(2), 1 << 63)
    broken = built(function, torch.randn(2), 0.5)
    assert torch.equal(broken(torch.ones(2), 2), torch.full((2,), 2.0))
    with pytest.raises(ArgumentMismatch, match="n: expected a number, got 1j"):
        broken(torch.ones(2), 1j)


def test_a_number_where_the_plan_has_a_tensor() -> None:
    """A number does not stand for a tensor."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with pytest.raises(ArgumentMismatch, match=r"^x: expected a tensor of float32, got the number 2.0$"):
        built(function, torch.tensor(1.0))(2.0)


def test_a_number_left_at_its_default_is_part_of_the_plan() -> None:
    """A default is frozen on purpose: it may decide branches and sizes, and can't be given later."""

    def function(x: torch.Tensor, times: int = 3, *, negate: bool = True) -> torch.Tensor:
        for _ in range(times):
            x = x + 1
        return -x if negate else x

    plan = built(function, torch.zeros(2))
    assert torch.equal(plan(torch.zeros(2)), torch.full((2,), -3.0))
    with pytest.raises(ArgumentMismatch, match=r"^times: expected one of the arguments x, got this keyword$"):
        plan(torch.zeros(2), times=5)
