"""Random ops in plans: drawn by our generator, equal under a seed here and on a device, and as torch distributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.build_errors import RandomOpNotSupported
from coordinator.fleet import connect
from coordinator.virtual import VirtualWorker
from tests.coordinator.capture.checks import built, refused


def _sampled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "rand": torch.rand(x.shape[0], 3),
        "randn": torch.randn_like(x),
        "half": torch.rand(5, dtype=torch.float16),
        "complex": torch.randn(3, dtype=torch.complex64),
        "integers": torch.randint(3, 9, (len(x),)),
        "order": x[torch.randperm(x.shape[0])],
        "coins": torch.bernoulli(x.sigmoid()),
        "picked": torch.multinomial(x.abs() + 0.1, 2),
        "picked again": torch.multinomial(x.abs() + 0.1, 6, replacement=True),
        "written": torch.empty_like(x).normal_(2, 3) + torch.empty(1).uniform_(-1, 1),
        "waits": torch.empty(4).exponential_(2),
        "dropped": F.dropout2d(x[:, :, None, None], 0.5, training=True),
    }


def test_sampling() -> None:
    """Each op at other sizes: the same under the same seed, another under another one."""
    plan = built(_sampled, torch.randn(5, 4), shape=[(-1, 4)])
    x = torch.randn(7, 4)
    first, again, other = plan.options(seed=7)(x), plan.options(seed=7)(x), plan.options(seed=8)(x)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert all(not torch.equal(first[name], other[name]) for name in first if name not in ("dropped", "coins"))
    assert sorted(first["order"][:, 0].tolist()) == sorted(x[:, 0].tolist())
    assert first["integers"].min() >= 3
    assert first["integers"].max() < 9
    assert all(len(set(row.tolist())) == 2 for row in first["picked"])
    kinds = {one.kind for one in plan.graph.inputs}
    assert kinds == {"user", "random"}
    assert [one.draw.number for one in plan.graph.inputs if one.draw] == list(range(len(plan.graph.inputs) - 1))


def test_what_is_drawn_is_distributed_as_torch_says() -> None:
    """Frequencies of picks, the share that dropout keeps, and moments."""

    def function(x: torch.Tensor) -> Any:
        weights = torch.tensor([0.1, 0.2, 0.7]).expand(x.shape[0], 3)
        return (
            torch.multinomial(weights, 1),
            torch.multinomial(weights, 1, replacement=True),
            F.dropout(x, 0.25),
            torch.empty_like(x).exponential_(2.0),
        )

    picked, replaced, dropped, waits = built(function, torch.ones(5), shape=[(-1,)]).options(seed=1)(torch.ones(20_000))
    for picks in (picked, replaced):
        shares = torch.bincount(picks.flatten(), minlength=3) / 20_000
        torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), rtol=0, atol=0.015)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.015)
    assert float(dropped.max()) == pytest.approx(1 / 0.75)
    assert float(waits.mean()) == pytest.approx(0.5, abs=0.02)


def test_dropout_in_training() -> None:
    """The forward and the backward pass drop the same, between recurrent layers too."""
    torch.manual_seed(0)
    recurrent = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True)

    def function(x: torch.Tensor) -> Any:
        x = x.clone().requires_grad_()
        dropped = F.dropout(x, 0.5)
        dropped.sum().backward()  # type: ignore[no-untyped-call]
        return dropped, x.grad, recurrent(x)[0]

    plan = built(function, torch.ones(3, 2, 4), shape=[(-1, 2, 4)])
    dropped, gradient, _ = plan.options(seed=3)(torch.ones(5, 2, 4))
    torch.testing.assert_close(dropped, gradient)


def test_without_a_seed_torchs_generator_gives_one() -> None:
    """`torch.manual_seed` makes local runs repeat; two calls differ."""
    plan = built(lambda x: x + torch.rand(x.shape[0]), torch.zeros(5), shape=[(-1,)])
    torch.manual_seed(4)
    first, second = plan(torch.zeros(3)), plan(torch.zeros(3))
    torch.manual_seed(4)
    assert not torch.equal(first, second)
    assert torch.equal(plan(torch.zeros(3)), first)


def test_a_seed_gives_the_same_on_a_device() -> None:
    """``options(seed=7)`` on a device equals the run here; without one, each invocation draws anew."""
    plan = built(_sampled, torch.randn(5, 4), shape=[(-1, 4)])
    x = torch.randn(3, 4)
    with connect() as fleet:
        remote = plan.send(VirtualWorker(fleet, id="dice"))
        seeded = fleet.get(remote.options(seed=7)(x), timeout=60)
        torch.testing.assert_close(seeded, plan.options(seed=7)(x), rtol=0, atol=0)
        one, other = fleet.get([remote(x), remote(x)], timeout=60)
        assert not torch.equal(one["rand"], other["rand"])


def _poisson(x: torch.Tensor) -> torch.Tensor:
    return torch.poisson(x.abs())


def _own_generator(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "line", "op"),
    [
        (_poisson, "torch.poisson", "aten.poisson.default"),
        (_own_generator, "torch.rand(3", "aten.rand.generator with a generator of its own"),
    ],
)
def test_what_can_not_be_drawn(function: Callable[..., Any], line: str, op: str) -> None:
    """Distributions that plans have no numbers for, and generators of one's own, are refused by name and line."""
    error = refused(RandomOpNotSupported, function, torch.randn(3), line=line)
    assert error.op == op
    assert str(error).startswith(f"{op} draws random numbers in a way that plans can't")
