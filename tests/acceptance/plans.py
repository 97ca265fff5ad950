"""Plans that several acceptance tests send."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from coordinator import Plan, func2plan

__all__ = [
    "BUSY_SIZE",
    "Net",
    "busy",
    "double_abs",
    "fifty_ops",
    "fifty_ops_eagerly",
    "identity",
    "index_select",
    "net",
    "plus_one",
]

BUSY_SIZE = 1600
"""For so many numbers `busy` takes about ten seconds, and each of its ops a tenth of one: then a cancel is seen."""


@functools.cache
def double_abs() -> Plan:
    """The tutorial's plan of two ops, for vectors of any length."""

    @func2plan(args_shape=[(-1,)])
    def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
        x = x + x
        return torch.abs(x)

    return plan_double_abs


@functools.cache
def plus_one() -> Plan:
    """One op, for vectors of any length."""

    @func2plan(args_shape=[(-1,)])
    def plan_plus_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    return plan_plus_one


@functools.cache
def identity() -> Plan:
    """Gives back a vector of bytes of any length."""

    @func2plan(args_shape=[(-1,)], args_dtype=[torch.uint8])
    def plan_identity(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    return plan_identity


@functools.cache
def busy() -> Plan:
    """Keeps a device at work for many seconds with `BUSY_SIZE` numbers: one matrix product after another."""

    @func2plan(args_shape=[(-1,)])
    def plan_busy(x: torch.Tensor) -> torch.Tensor:
        square = x.unsqueeze(1) * x.unsqueeze(0)
        for _ in range(100):
            square = torch.tanh(square @ square)
        return square.sum()

    return plan_busy


def fifty_ops_eagerly(x: torch.Tensor) -> torch.Tensor:
    """What `fifty_ops` computes."""
    for k in range(25):
        x = torch.sin(x + k)
    return x


@functools.cache
def fifty_ops() -> Plan:
    """A plan of exactly fifty ops."""
    plan = func2plan()(fifty_ops_eagerly)
    plan.build(torch.tensor([1.0, -2.0]))
    return plan


class Net(Plan):
    """The tutorial's net: two linear layers, 2-3-2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of two classes."""
        return functional.log_softmax(self.fc2(functional.relu(self.fc1(x))), dim=0)


def net(seed: int = 0) -> Net:
    """A `Net`, built; its weights come from ``seed``, so that no other test's plan has them."""
    torch.manual_seed(seed)
    made = Net()
    made.build(torch.tensor([1.0, 2.0]))
    return made


@functools.cache
def index_select() -> Plan:
    """Picks elements by their indices: fails for one that is out of range."""

    @func2plan(args_shape=[(-1,), (-1,)], args_dtype=[torch.float32, torch.int64])
    def plan_index_select(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.index_select(x, 0, index)

    return plan_index_select
