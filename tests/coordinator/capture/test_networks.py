"""Networks and statistics with a dynamic batch: captured at one size, run at others, compared with eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.errors import PlanStale
from coordinator.plan import Plan
from tests.coordinator.capture.checks import assert_same, built


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Convolutional(nn.Module):
    """Convolutions, norms and pools, as in a small classifier of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.batch_norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3)
        self.group_norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.batch_norm(self.first(x))), 2)
        x = F.adaptive_avg_pool2d(F.gelu(self.group_norm(self.second(x))), 3)
        return F.log_softmax(self.head(x.flatten(1)), 1)


class Attention(nn.Module):
    """Self-attention with its weights as a second result."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed, weights = self.attention(x, x, x)
        return mixed, weights


class Words(nn.Module):
    """An embedding's mean through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.embedding(indices).mean(1))
        return result


class Causal(nn.Module):
    """Scaled dot product attention as a function, with a mask made of the size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3), nn.Softmax(-1))


def _indices(*shape: int) -> torch.Tensor:
    return torch.arange(shape[0] * shape[1]).reshape(shape) % 10


@pytest.mark.parametrize(
    ("make", "draw", "example", "shape", "others"),
    [
        (_perceptron, _randn, (5, 4), (-1, 4), [(1, 4), (9, 4)]),
        (Convolutional, _randn, (5, 1, 10, 10), (-1, 1, 10, 10), [(1, 1, 10, 10), (3, 1, 10, 10)]),
        (lambda: nn.LayerNorm(6), _randn, (5, 4, 6), (-1, -1, 6), [(1, 3, 6), (3, 7, 6)]),
        (lambda: nn.BatchNorm1d(6), _randn, (5, 6), (-1, 6), [(1, 6), (3, 6)]),
        (Attention, _randn, (5, 4, 8), (-1, -1, 8), [(1, 3, 8), (3, 7, 8)]),
        (Causal, _randn, (2, 3, 5, 4), (-1, 3, -1, 4), [(1, 3, 2, 4), (4, 3, 7, 4)]),
        (Words, _indices, (5, 3), (-1, 3), [(1, 3), (8, 3)]),
        (lambda: nn.Conv1d(3, 4, 3, stride=2), _randn, (2, 3, 11), (-1, 3, -1), [(1, 3, 20), (4, 3, 7)]),
    ],
    ids=["perceptron", "convolutional", "layer-norm", "batch-norm", "attention", "causal", "words", "conv1d"],
)
def test_a_network_at_other_batch_sizes(
    make: Callable[[], nn.Module],
    draw: Callable[..., torch.Tensor],
    example: tuple[int, ...],
    shape: tuple[int, ...],
    others: list[tuple[int, ...]],
) -> None:
    """A network in eval mode, captured with a dynamic batch, gives what eager gives at other sizes."""
    module = make().eval()

    class Network(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> Any:
            return self.module(x)

    plan = Network().eval()
    plan.build(draw(*example), args_shape=[shape])
    for other in others:
        assert_same(plan, module, draw(*other))


def _statistics(x: torch.Tensor) -> dict[str, Any]:
    return {
        "mean": x.mean(0),
        "std": x.std(0),
        "variance": x.var(0, unbiased=False),
        "median": x.median(0).values,
        "quartiles": torch.quantile(x, torch.tensor([0.25, 0.75]), dim=0),
        "extremes": (x.amin(0), x.amax(0), x.min(0)),
        "histogram": torch.histc(x, 5, -2, 2),
        "sorted": x.sort(0).values,
        "positive": (x > 0).sum(0),
        "covariance": (x - x.mean(0)).T @ (x - x.mean(0)) / (x.shape[0] - 1),
        "count": len(x),
    }


def test_statistics_over_a_devices_readings() -> None:
    """Mean, spread, order statistics and a covariance, over any number of readings."""
    plan = built(_statistics, _randn(6, 4), shape=[("readings", 4)])
    for size in (2, 3, 40):
        assert_same(plan, _statistics, _randn(size, 4))


def _einsums(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.einsum("bi,bj->ij", x, y), torch.einsum("bij,bjk->bik", x[:, :, None], y[:, None, :])


def test_einsum_with_a_named_batch() -> None:
    """einsum over a batch that both arguments share by name."""
    plan = built(_einsums, _randn(5, 3), _randn(5, 4), shape=[("batch", 3), ("batch", 4)])
    assert [symbol.name for symbol in plan.graph.symbols] == ["batch"]
    for size in (1, 2, 7):
        assert_same(plan, _einsums, _randn(size, 3), _randn(size, 4))


def _selections(x: torch.Tensor) -> dict[str, Any]:
    return {
        "best": x.topk(2, dim=0),
        "which": x.argmax(1),
        "sums": x.cumsum(0),
        "one_hot": F.one_hot((x[:, 0] > 0).long(), 2),
        "last": x[-1],
        "columns": x[:, [0, 2]],
        "reversed": x.flip(0),
        "numbers": torch.arange(x.shape[0]),
    }


def test_selecting_and_indexing() -> None:
    """Top-k, indexing, flips and ranges over a dynamic dim."""
    plan = built(_selections, _randn(6, 4), shape=[(-1, 4)])
    for size in (2, 3, 11):
        assert_same(plan, _selections, _randn(size, 4))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int32, torch.uint8, torch.bool]
)
def test_dtypes(dtype: torch.dtype) -> None:
    """Arguments of other dtypes keep them."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.reshape(-1).flip(0), torch.cat([x, x])

    example = torch.tensor([[0, 1], [1, 1], [1, 0]]).to(dtype)
    plan = built(function, example, shape=[(-1, 2)])
    assert_same(plan, function, torch.tensor([[1, 1], [0, 1]]).to(dtype))
    assert {kind.dtype for kind in plan.output_types} == {str(dtype).removeprefix("torch.")}


def test_a_module_inside_a_function() -> None:
    """A function that calls a module from outside carries its weights, by name, as they are when it is sent."""
    module = nn.Linear(4, 2)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(module(x))

    plan = built(function, _randn(5, 4), shape=[(-1, 4)])
    assert [given.name for given in plan.graph.inputs] == ["x", "module.weight", "module.bias"]
    assert_same(plan, function, _randn(2, 4))
    with torch.no_grad():
        module.weight.add_(1)
    assert_same(plan, function, _randn(2, 4))
    module.weight = nn.Parameter(_randn(2, 4))
    assert_same(plan, function, _randn(2, 4))
    module.double()
    with pytest.raises(PlanStale, match=r"parameter module.weight: float32\[2, 4\] became float64\[2, 4\]"):
        plan.bundle()


def test_modules_in_a_list_are_carried_too() -> None:
    """What a function does not use by a name of its own is a constant of the plan."""
    layers = [nn.Linear(4, 4), nn.Linear(4, 2)]

    def function(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x)
        return x

    plan = built(function, _randn(5, 4), shape=[(-1, 4)])
    assert len(plan.graph.inputs) == 5
    assert_same(plan, function, _randn(2, 4))


def test_a_module_as_a_function() -> None:
    """A module in place of a function is carried with its names."""
    module = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    plan = built(module, _randn(5, 4), shape=[(-1, 4)])
    assert [given.name for given in plan.graph.inputs] == ["input", "0.weight", "0.bias"]
    assert_same(plan, module, _randn(2, 4))
    assert not list(plan.parameters())
