"""What running a plan costs, as formulas, against torch's own counter and against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from coordinator import Plan, func2plan
from edge_agent.plan.checker import check_graph
from edge_agent.plan.cost import CostModel, cost_of
from edge_agent.plan.errors import ArgumentMismatch


def model_of(plan: Plan) -> CostModel:
    """The formulas of a built plan."""
    return cost_of(check_graph(plan.graph))


def plan_of(function: Callable[..., Any], *shapes: tuple[Any, ...]) -> Plan:
    """A function as a plan."""
    return func2plan(args_shape=list(shapes))(function)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, y: x @ y, [(7, 5), (5, 3)]),
        (lambda x, y: torch.bmm(x, y), [(2, 7, 5), (2, 5, 3)]),  # noqa: PLW0108
        (lambda x, y: functional.linear(x, y), [(7, 5), (3, 5)]),  # noqa: PLW0108
        (lambda x, y: functional.conv2d(x, y, padding=1), [(2, 3, 8, 9), (4, 3, 3, 3)]),
        (lambda x, y: functional.conv2d(x, y, groups=2), [(2, 4, 8, 8), (6, 2, 3, 3)]),
        (lambda x, y: functional.conv1d(x, y, stride=2), [(2, 3, 11), (4, 3, 3)]),
        (lambda x, y: functional.conv_transpose2d(x, y), [(2, 4, 5, 5), (4, 3, 3, 3)]),  # noqa: PLW0108
    ],
)
def test_products_and_convolutions_are_counted_as_torch_counts_them(
    function: Callable[..., Any], shapes: list[tuple[int, ...]]
) -> None:
    """An operation more or less would be another formula."""
    with FlopCounterMode(display=False) as counter:
        function(*(torch.randn(shape) for shape in shapes))
    assert model_of(plan_of(function, *shapes)).at({}).flops == counter.get_total_flops()


def test_a_network_is_a_formula_in_its_batch() -> None:
    """Computed by hand for two layers; the peak is while both of a layer's tensors are there."""
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    class Net(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.net(x)
            return result

    plan = Net()
    plan.build(torch.randn(2, 64), args_shape=[("batch", 64)])
    model = model_of(plan)
    state = 4 * (64 * 128 + 128 + 128 * 10 + 10)
    for batch in (2, 32, 1000):
        cost = model.at({"batch": batch})
        assert cost.flops == batch * (2 * 64 * 128 + 128 + 128 + 2 * 128 * 10 + 10)
        assert cost.peak_bytes == state + 4 * batch * (64 + 128 + 128)
        assert cost.state_bytes == state
        assert cost.bounded
    assert "batch" in str(model)
    assert str(plan.cost(batch=2)) == str(model.at({"batch": 2}))
    assert repr(model).splitlines() == [f"<CostModel {str(model).replace(chr(10), '; ')}>"]


def test_views_take_no_memory_and_keep_what_they_look_at() -> None:
    """A transposed copy would be twice as much; the first tensor stays while its view is used."""

    def function(x: torch.Tensor) -> Any:
        y = x + 1
        z = y.t()
        w = x * 2
        return z.sum() + w.sum()

    cost = model_of(plan_of(function, (100, 50))).at({})
    assert cost.peak_bytes == 4 * (5000 * 3 + 1)  # x, y, w, and the first sum
    assert cost.flops == 2 * 5000 + 2 * 5000 + 1


def test_memory_that_is_no_longer_needed_is_free() -> None:
    """A chain of any length needs three tensors at most."""

    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            x = torch.sin(x)
        return x

    assert model_of(plan_of(function, (1000,))).at({}).peak_bytes == 4 * 1000 * 3


def test_the_peak_is_where_it_is_for_each_size() -> None:
    """Which op needs most may depend on the sizes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        small = (x[:, None] * x[None, :]).sum(0)  # n * n
        return small.repeat(100)  # 100 * n

    model = model_of(plan_of(function, ("n",)))
    for n in (2, 10, 1000):
        peak = model.at({"n": n}).peak_bytes
        assert peak >= 4 * max(n * n, 100 * n)
        assert peak <= 4 * (max(n * n, 100 * n) + 5 * n)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({}, "n: expected a size, got nothing"),
        ({"n": 1, "m": 2}, "m: expected"),
        ({"n": -1}, "n: expected a size of 0 or more, got -1"),
        ({"n": "all"}, "n: expected a size of 0 or more, got 'all'"),
    ],
)
def test_a_size_that_is_missing_or_can_not_be(sizes: dict[str, Any], said: str) -> None:
    """Named."""
    model = model_of(plan_of(lambda x: x * 2, ("n",)))
    with pytest.raises(ArgumentMismatch, match=said):
        model.at(sizes)


def test_dtypes_have_their_own_size() -> None:
    """bool one byte, bfloat16 two, complex128 sixteen."""
    for dtype, item in ((torch.bool, 1), (torch.bfloat16, 2), (torch.int64, 8), (torch.complex128, 16)):
        plan = func2plan(args_shape=[(10,)], args_dtype=[dtype])(lambda x: torch.cat([x, x]))
        assert model_of(plan).at({}).peak_bytes == 30 * item
