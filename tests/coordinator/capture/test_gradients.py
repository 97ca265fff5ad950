"""Functions that compute gradients, captured beneath autograd: run at other sizes, compared with eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.build_errors import DataDependentBranch, GradientsNotSupported, MutatedInput, MutatedState
from edge_agent.plan.errors import ArgumentMismatch
from tests.coordinator.capture.checks import built, refused


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _backward(x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (x**2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


def _frozen_if_sizes_are(x: torch.Tensor) -> Any:
    return torch.func.grad(lambda a: (a**2).sum() / len(a))(x)


def _each(x: torch.Tensor) -> Any:
    weight = torch.ones(4, 2)
    return torch.func.vmap(torch.func.grad(lambda w, row: torch.tanh(row @ w).sum()), in_dims=(None, 0))(weight, x)


def _value_and_second(x: torch.Tensor) -> Any:
    def function(a: torch.Tensor) -> torch.Tensor:
        return (a**3).sum()

    gradient, value = torch.func.grad_and_value(function)(x)
    return gradient, value, torch.func.grad(lambda a: torch.func.grad(function)(a).sum())(x)


def _of_autograd(x: torch.Tensor) -> Any:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(x.sin().prod(-1).sum(), x)


def _by_an_optimizer(x: torch.Tensor) -> torch.Tensor:
    weight = torch.full((4, 1), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(x @ weight, x[:, :1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weight


@pytest.mark.parametrize(
    "function", [_backward, _frozen_if_sizes_are, _each, _value_and_second, _of_autograd, _by_an_optimizer]
)
def test_a_function_that_computes_gradients(function: Callable[..., Any]) -> None:
    """`torch.func` and ``backward()``, with an optimiser and without, at sizes other than the example's."""
    plan = built(function, _randn(5, 4), shape=[(-1, 4)])
    for size in (2, 9):
        torch.testing.assert_close(plan(_randn(size, 4)), _plain(function(_randn(size, 4))), rtol=1e-4, atol=1e-5)


def _plain(nest: Any) -> Any:
    return nest.detach() if isinstance(nest, torch.Tensor) else type(nest)(map(_plain, nest))


def test_a_branch_on_a_size_is_a_range() -> None:
    """What Python decides by a size beside a gradient holds for one side of it: other sizes are refused."""

    def function(x: torch.Tensor) -> Any:
        gradient = torch.func.grad(lambda a: (a**2).sum())(x)
        return gradient if x.shape[0] > 3 else -gradient

    plan = built(function, torch.randn(5), shape=[(-1,)])
    torch.testing.assert_close(plan(torch.ones(4)), torch.full((4,), 2.0))
    with pytest.raises(ArgumentMismatch, match="of 4 or more"):
        plan(torch.ones(2))


def test_equal_sizes_stay_two() -> None:
    """Two dims that are equal in the example are not taken for one."""

    def function(x: torch.Tensor, y: torch.Tensor) -> Any:
        return torch.func.grad(lambda a: a.sum() * y.sum())(x)

    plan = built(function, torch.ones(5), torch.ones(5), shape=[(-1,), (-1,)])
    torch.testing.assert_close(plan(torch.ones(2), torch.ones(7)), torch.full((2,), 7.0))


def test_a_module_gets_no_gradient_left_behind() -> None:
    """The gradients of a module's parameters are results; nothing is left on the user's module."""
    module = nn.Linear(4, 3)

    def function(x: torch.Tensor, y: torch.Tensor) -> Any:
        loss = F.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: parameter.grad for name, parameter in module.named_parameters()}, loss

    labels = torch.tensor([0, 1, 2, 0, 1, 1, 0])
    plan = built(function, _randn(5, 4), labels[:5], shape=[("rows", 4), ("rows",)])
    gradients, loss = plan(_randn(7, 4), labels)
    assert module.weight.grad is None
    wanted = F.cross_entropy(module(_randn(7, 4)), labels)
    wanted.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(gradients, {name: one.grad for name, one in module.named_parameters()})


def test_refusals_keep_their_lines() -> None:
    """Beside a gradient, too, a branch on data and writes to what is given are refused with their lines."""
    module = nn.BatchNorm1d(3)

    def branch(x: torch.Tensor) -> Any:
        gradient = torch.func.grad(lambda a: (a**2).sum())(x)
        if gradient.sum() > 0:
            return gradient
        return -gradient

    def write(x: torch.Tensor) -> Any:
        x.add_(1)
        return torch.func.grad(lambda a: (a**2).sum())(x)

    def write_buffer(x: torch.Tensor) -> Any:
        module(x).sum().backward()
        return x

    def needless(x: torch.Tensor) -> Any:
        x.sum().backward()  # type: ignore[no-untyped-call]
        return x.grad

    refused(GradientsNotSupported, needless, torch.randn(4, 3), line="x.sum().backward()")
    refused(DataDependentBranch, branch, torch.randn(4, 3), line="if gradient.sum() > 0:")
    refused(MutatedInput, write, torch.randn(4, 3), line="x.add_(1)")
    refused(MutatedState, write_buffer, torch.randn(4, 3), line="module(x)")


class _First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(x)[0]


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution in groups": (lambda: nn.Conv1d(4, 4, 3, stride=2, groups=2, dilation=2, padding=1), (4, 11)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (2, 4, 4)),
    "transposed convolution in groups": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (4, 4, 4)),
    "three dims": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.MaxPool3d(2)), (1, 4, 4, 4)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (2, 7, 7)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), (2, 8, 8)),
    "average pool without its padding": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 8, 8)),
    "average pool, rounded up": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 8, 8)),
    "adaptive pools": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d((4, 3)), nn.AdaptiveMaxPool2d((3, 2))), (2, 7, 5)),
    "norms": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv1d(4, 4, 1), nn.LayerNorm(3)), (4, 3)),
    "upsampling": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample((9, 7), mode="bilinear", align_corners=True)),
        (1, 3, 3),
    ),
    "padding": (lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.Conv2d(2, 1, 3)), (2, 4, 4)),
    "activations": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softshrink(0.01), nn.Hardshrink(0.01), nn.GLU()),
        (4,),
    ),
    "recurrent": (lambda: _First(nn.GRU(3, 4, batch_first=True)), (3, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_gradient_of(name: str) -> None:
    """Ours, where torch has no decomposition of a derivative, and torch's: of the input and of the parameters."""
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module = make()

    def function(x: torch.Tensor) -> Any:
        x = x.clone().requires_grad_()
        result = module(x)
        (result**3).sum().backward()
        return x.grad, {name: parameter.grad for name, parameter in module.named_parameters()}

    plan = built(function, _randn(3, *shape), shape=[(-1, *shape)])
    got = plan(_randn(5, *shape))
    x = _randn(5, *shape).requires_grad_()
    (module(x) ** 3).sum().backward()
    wanted = (x.grad, {name: parameter.grad for name, parameter in module.named_parameters()})
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
