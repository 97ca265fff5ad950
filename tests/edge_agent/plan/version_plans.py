"""Whole plans for `tests.edge_agent.plan.make_versions`, captured: what single ops do not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn
from torch._higher_order_ops.scan import scan

from coordinator import Plan, func2plan
from coordinator.training import training_plan

__all__ = ["Captured", "captured"]


class Captured(NamedTuple):
    """A plan, what it is called with, and what torch gives for that."""

    name: str
    plan: Plan
    args: list[torch.Tensor]
    results: list[torch.Tensor]
    seed: int = 0


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class _Small(nn.Module):
    """Convolution, batch norm, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        return F.log_softmax(self.head(x.flatten(1)), 1)


def _network() -> Captured:
    """State, a dynamic batch."""
    torch.manual_seed(1)
    module = _Small().eval()
    plan = func2plan()(module)
    plan.build(_randn(3, 1, 4, 4), args_shape=[(-1, 1, 4, 4)])
    x = _randn(5, 1, 4, 4)
    return Captured("network", plan, [x], [module(x).detach()])


def _recurrent() -> Captured:
    """An LSTM: a loop that was unrolled."""
    torch.manual_seed(2)
    module = nn.LSTM(3, 4, batch_first=True)
    plan = func2plan()(module)
    plan.build(_randn(2, 5, 3), args_shape=[(-1, 5, 3)])
    x = _randn(4, 5, 3)
    with torch.no_grad():
        out, (h, c) = module(x)
    return Captured("recurrent", plan, [x], [out, h, c])


def _attention() -> Captured:
    """A layer of a transformer."""
    torch.manual_seed(3)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    plan = func2plan()(module)
    plan.build(_randn(2, 4, 8), args_shape=[(-1, 4, 8)])
    x = _randn(3, 4, 8)
    with torch.no_grad():
        return Captured("attention", plan, [x], [module(x)])


def _sizes(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sizes in expressions, and a condition: both have an even number of rows."""
    half = x.reshape(x.shape[0] // 2, 2, x.shape[1]).sum(1)
    return {"half": half, "mean": y.sum() / y.shape[0], "joined": torch.cat([x, y])}


def _expressions() -> Captured:
    plan = func2plan()(_sizes)
    plan.build(_randn(4, 3), _randn(6, 3), args_shape=[(-1, 3), (-1, 3)])
    x, y = _randn(8, 3), _randn(5, 3)
    return Captured("sizes", plan, [x, y], list(_sizes(x, y).values()))


def _branch(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))
    return result


def _branches() -> Captured:
    """A branch on data."""
    plan = func2plan()(_branch)
    plan.build(_randn(4), args_shape=[(-1,)])
    x = -torch.ones(6)
    return Captured("branch", plan, [x], [_branch(x)])


def _rooted(a: torch.Tensor) -> Any:
    """Square roots by Newton's iteration, and how many steps that took."""

    def going(x: torch.Tensor, steps: Any) -> Any:
        return ((x * x - a).abs().max() > 1e-5) & (steps < 40)

    loop: Any = torch.while_loop
    return loop(going, lambda x, steps: (0.5 * (x + a / x), steps + 1), (a, 0))


def _while_loop() -> Captured:
    """A loop that runs as often as its data say, with a bound."""
    plan = func2plan()(_rooted)
    plan.build(torch.tensor([2.0, 9.0, 30.0]), args_shape=[(-1,)])
    x = torch.tensor([4.0, 25.0])
    return Captured("while_loop", plan, [x], [torch.tensor([2.0, 5.0]), torch.tensor(6)])


class _Cell(nn.Module):
    """A recurrent layer over as many rows as there are, whose input is looked at only where it is not all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.forget = nn.Linear(3, 4)
        self.take = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        def step(h: torch.Tensor, row: torch.Tensor) -> Any:
            h = torch.cond(row.any(), lambda h: torch.tanh(self.forget(row) + self.take(h)), lambda h: h / 2, (h,))
            return h, h.sum()

        return scan(step, torch.zeros(4), x)


def _scan() -> Captured:
    """A loop over a varying size, with a branch in it, of which one side runs."""
    torch.manual_seed(6)
    module = _Cell()
    plan = func2plan()(module)
    plan.build(_randn(3, 3), args_shape=[(-1, 3)])
    x = _randn(5, 3)
    x[2] = 0
    h, sums = torch.zeros(4), []
    with torch.no_grad():
        for row in x:
            h = torch.tanh(module.forget(row) + module.take(h)) if row.any() else h / 2
            sums.append(h.sum())
    return Captured("scan", plan, [x], [h, torch.stack(sums)])


def _drawing(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + torch.rand(x.shape[0], 2), torch.randperm(x.shape[0])


def _random() -> Captured:
    """Random numbers: what this version's generator gave for the seed."""
    plan = func2plan()(_drawing)
    plan.build(_randn(3, 2), args_shape=[(-1, 2)])
    x = torch.zeros(4, 2)
    return Captured("random", plan, [x], list(plan.options(seed=7)(x)), 7)


def _training() -> Captured:
    """A step of Adam: gradients, optimiser state, a nest of arguments."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = _randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    step = training_plan(
        model, loss=F.cross_entropy, optimizer=lambda params: torch.optim.Adam(params, lr=1e-2), example=(x, y)
    )
    carry = step.initial_carry()
    leaves: list[Any] = step.bind((carry, x, y), {})
    tensors = step.signature.tensors(leaves)
    loss = F.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    results = torch.utils._pytree.tree_leaves(step(carry, x, y))
    eager = torch.optim.Adam(model.parameters(), lr=1e-2)
    eager.step()
    wanted = dict(zip(dict(model.named_parameters()), model.parameters(), strict=True))
    for name, value in step(carry, x, y)[0]["params"].items():
        torch.testing.assert_close(value, wanted[name].detach())
    return Captured("training", step, tensors, results)


MAKERS: tuple[Callable[[], Captured], ...] = (
    _network,
    _recurrent,
    _attention,
    _expressions,
    _branches,
    _while_loop,
    _scan,
    _random,
    _training,
)


def captured() -> Iterator[Captured]:
    """Each of them."""
    for make in MAKERS:
        yield make()
