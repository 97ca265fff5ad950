"""`training_plan`: a hundred steps here equal a hundred of eager torch; the same step runs on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.errors import ArgumentNotSupported, OptimizerNotSupported
from coordinator.fleet import connect
from coordinator.training import training_plan
from coordinator.virtual import VirtualWorker

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda params: torch.optim.Adam(params, lr=1e-2, weight_decay=1e-3),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3, momentum=0.5),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
}


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def _convolutional() -> nn.Module:
    # without a bias before the batch norm: its gradient is 0, and an adaptive optimiser's steps follow the noise
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def _accuracy(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (prediction.argmax(1) == target).float().mean()


def _data(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(61, *shape, generator=generator), torch.randint(0, 3, (61,), generator=generator)


@pytest.mark.parametrize(
    ("make", "shape", "optimizer"),
    [
        *((_perceptron, (6,), name) for name in ("sgd", "momentum", "adam", "adamw")),
        *(pytest.param(_perceptron, (6,), name, marks=pytest.mark.long) for name in ("rmsprop", "adagrad")),
        (_convolutional, (1, 6, 6), "adamw"),
        pytest.param(_convolutional, (1, 6, 6), "momentum", marks=pytest.mark.long),
    ],
)
def test_a_hundred_steps_equal_eager_torch(
    make: Callable[[], nn.Module], shape: tuple[int, ...], optimizer: str
) -> None:
    """Parameters, buffers and loss are eager torch's within float error after 100 steps, the last batch of an epoch
    being smaller.
    """
    torch.manual_seed(1)
    model = make().double()  # in single precision, two runs of eager torch drift apart as far in a hundred steps
    eager = copy.deepcopy(model)
    makes = OPTIMIZERS[optimizer]
    own = makes(list(eager.parameters()))
    inputs, targets = _data(*shape)
    inputs = inputs.double()
    step = training_plan(
        model, loss=F.cross_entropy, optimizer=makes, example=(inputs[:8], targets[:8]), metrics={"right": _accuracy}
    )
    carry = step.initial_carry()
    for k in range(100):
        rows = slice(k % 8 * 8, k % 8 * 8 + 8)
        x, y = inputs[rows], targets[rows]
        carry, out = step(carry, x, y)
        own.zero_grad()
        prediction = eager(x)
        loss = F.cross_entropy(prediction, y)
        loss.backward()  # type: ignore[no-untyped-call]
        own.step()
    torch.testing.assert_close(out["loss"], loss.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out["right"], _accuracy(prediction, y))
    trained = {**carry["params"], **carry.get("buffers", {})}
    torch.testing.assert_close(trained, dict(eager.state_dict()), rtol=1e-3, atol=1e-4)
    model.load_state_dict(trained)


def test_the_carry_has_what_changes() -> None:
    """Parameters by name, the optimiser's state by parameter, buffers if the model has some; the model's own stay."""
    model = _convolutional()
    inputs, targets = _data(1, 6, 6)
    step = training_plan(model, loss=F.cross_entropy, optimizer=OPTIMIZERS["adam"], example=(inputs[:4], targets[:4]))
    before = copy.deepcopy(model.state_dict())
    carry = step.initial_carry()
    assert list(carry) == ["params", "optimizer", "buffers"]
    assert list(carry["params"]) == ["0.weight", "1.weight", "1.bias", "5.weight", "5.bias"]
    assert set(carry["optimizer"]["0.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert not any(value.any() for state in carry["optimizer"].values() for value in state.values())
    after, _ = step(carry, inputs[:9], targets[:9])
    assert int(after["buffers"]["1.num_batches_tracked"]) == 1
    assert float(after["optimizer"]["0.weight"]["step"]) == 1
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_and_tied_parameters() -> None:
    """What needs no gradient is carried by the plan as it is; a weight that two layers share is trained once."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.last = nn.Linear(4, 4, bias=False)
            self.last.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> Any:
            return self.last(torch.tanh(self.frozen(self.first(x))))

    model = Tied()
    eager = copy.deepcopy(model)
    own = torch.optim.SGD([eager.first.weight], lr=0.1)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    step = training_plan(
        model, loss=F.mse_loss, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), example=(x, x)
    )
    assert [one.name for one in step.graph.inputs if one.kind == "state"] == [
        "module.frozen.weight",
        "module.frozen.bias",
    ]
    carry, _ = step(step.initial_carry(), x[:3], x[:3])
    F.mse_loss(eager(x[:3]), x[:3]).backward()  # type: ignore[no-untyped-call]
    own.step()
    torch.testing.assert_close(carry["params"], {"first.weight": eager.first.weight.detach()})


class _Own(torch.optim.Optimizer):
    def __init__(self, params: list[torch.Tensor]) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


@pytest.mark.parametrize(
    ("optimizer", "because"),
    [
        (lambda params: torch.optim.SGD(params, momentum=0.9, dampening=0.1), "with dampening"),
        (lambda params: torch.optim.Adagrad(params, lr_decay=0.1), "its learning rate depends on"),
        (_Own, "its step is not one of torch.optim's functions"),
    ],
)
def test_optimizers_that_can_not(optimizer: Optimizer, because: str) -> None:
    """An optimiser that would not be equal to eager is refused, and why is said."""
    with pytest.raises(OptimizerNotSupported, match=f"can't become a part of a plan: .*{because}"):
        training_plan(
            _perceptron(),
            loss=F.cross_entropy,
            optimizer=optimizer,
            example=(torch.randn(3, 6), torch.tensor([0, 1, 2])),
        )


def test_a_step_on_a_device() -> None:
    """Sent, the step takes the carry (values or pointers) and gives it back as pointers, nested alike."""
    model = _perceptron()
    inputs, targets = _data(6)
    step = training_plan(model, loss=F.cross_entropy, optimizer=OPTIMIZERS["adam"], example=(inputs[:8], targets[:8]))
    with connect() as fleet:
        device = VirtualWorker(fleet, id="trainer")
        remote = step.send(device)
        here, there = step.initial_carry(), step.initial_carry()
        for rows in (slice(0, 8), slice(8, 13)):
            here, out = step(here, inputs[rows], targets[rows])
            there, pointed = remote(there, inputs[rows], targets[rows])
        torch.testing.assert_close(fleet.get(there, timeout=60), here, rtol=0, atol=0)
        torch.testing.assert_close(pointed["loss"].get(timeout=60), out["loss"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"loss": 3}, "loss: expected a function, got a int"),
        ({"optimizer": 0.1}, "optimizer: expected a function, got a float"),
        ({"metrics": {"right": None}}, "right: expected a function, got a NoneType"),
        ({"example": torch.ones(4, 6)}, "example: expected a batch as a tuple: what the model takes, then the "),
    ],
)
def test_what_makes_no_training_step(given: dict[str, Any], sentence: str) -> None:
    """Said by its name, and not by what torch made of it."""
    batch = torch.ones(4, 6), torch.zeros(4, dtype=torch.int64)
    usual: dict[str, Any] = {"loss": F.cross_entropy, "optimizer": OPTIMIZERS["sgd"], "example": batch}
    with pytest.raises(ArgumentNotSupported) as caught:
        training_plan(_perceptron(), **{**usual, **given})
    assert str(caught.value).startswith(sentence)
