"""What parts of edgeplan cost, each in this process and beside a peer that does the same."""

from __future__ import annotations

import logging
import timeit
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from broker.logs import get_logger
from edge_agent.plan.checker import check_graph
from edge_agent.runtimes.torch import TorchRuntime
from tests.benchmarks.report import Row
from tests.coordinator.translation.int8_table import Measured
from tests.edge_agent.plan.graphs import bundle_of, double_abs, residual_blocks

__all__ = ["rows"]

BLOCKS = 100
"""Of five ops each, in the plan that is checked."""

ROUND_SECONDS = 0.05
"""About how long each side is measured in a round."""

LARGE_LAYERS = "MLP 512-1024-1024-10"
"""Of the table in docs/runtimes.md: layers large enough for int8 to be faster."""


def rows(rounds: int) -> list[Row]:
    """The measurements, as rows of the table."""
    return [_small_plan(rounds), _checking(rounds), _silent_logs(rounds), _int8(rounds)]


def _small_plan(rounds: int) -> Row:
    """The two-op plan on torch, beside its two ops."""
    plan = TorchRuntime().load(bundle_of(double_abs()).verify(), [])
    x = torch.tensor([1.0, -2.0])
    add, absolute = torch.ops.aten.add.Tensor, torch.ops.aten.abs.default
    ours, floor = _in_turn(rounds, lambda: plan.run([x], {}), lambda: absolute(add(x, x)))
    return Row(name="two-op plan on torch; floor: its two ops", unit="us", ours=ours, floor=floor, at_most=4)


def _checking(rounds: int) -> Row:
    """A plan of 500 ops is checked, beside torch finding out dtypes and shapes of the same ops."""
    graph = residual_blocks(BLOCKS)

    def propagate() -> None:
        with FakeTensorMode():
            x, w = torch.empty(6, 8), torch.empty(8, 8)
            for _ in range(BLOCKS):
                x = functional.relu(functional.linear(x, w).view(-1, 4)).view(6, 8) + x

    ours, floor = _in_turn(rounds, lambda: check_graph(graph), propagate)
    name = f"a plan of {5 * BLOCKS} ops checked; floor: FakeTensorMode"
    return Row(name=name, unit="us", ours=ours, floor=floor, at_most=1)


def _silent_logs(rounds: int) -> Row:
    """The fast path logs each hop of each invocation, mostly below the level."""
    log, peer = get_logger("broker"), logging.getLogger("edgeplan.benchmarks")
    ours, floor = _in_turn(rounds, lambda: log.debug("hop", n=1), lambda: peer.debug("hop %d", 1))
    return Row(name="a log call below the level; floor: logging", unit="us", ours=ours, floor=floor, at_most=3)


def _int8(rounds: int) -> Row:
    """A forward pass of one row on onnxruntime."""
    measured = Measured(LARGE_LAYERS)
    float32, int8 = zip(*(measured.seconds(1) for _ in range(rounds)), strict=True)
    ours, floor = ([1e6 * seconds for seconds in side] for side in (int8, float32))
    return Row(name=f"{LARGE_LAYERS} in int8; floor: float32", unit="us", ours=ours, floor=floor, at_most=1)


def _in_turn(rounds: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Microseconds a call of each side, by round, one right after the other."""
    taken: list[list[float]] = [[] for _ in sides]
    timers = [timeit.Timer(side) for side in sides]
    numbers = [max(1, int(ROUND_SECONDS / timer.timeit(1))) for timer in timers]  # warms it up, too
    for _ in range(rounds):
        for timer, number, values in zip(timers, numbers, taken, strict=True):
            values.append(1e6 * timer.timeit(number) / number)
    return taken
