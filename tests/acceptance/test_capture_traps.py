"""Traps of capture, end to end: right on the device at another size, or refused at build with the line.

A trap that is neither would be a plan that is silently wrong.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator import Plan, func2plan
from coordinator.errors import (
    DataDependentBranch,
    NumpyInPlan,
    PlanBuildError,
    PythonRandomness,
)
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed
from tests.acceptance.worlds import World
from tests.waiting import PATIENCE

Function = Callable[..., torch.Tensor]
Shapes = Sequence[tuple[int, ...]]


def branch_on_a_size(x: torch.Tensor) -> torch.Tensor:
    """Another branch for small inputs."""
    if x.shape[0] > 3:
        return x + 1
    return x - 1


def mean_by_len(x: torch.Tensor) -> torch.Tensor:
    """A sum divided by a Python number that is a size."""
    return x.sum() / len(x)


def sizes_equal_by_chance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two sizes that are the same in the example and need not be."""
    return x.sum() + y.sum() * y.shape[0]


def branch_on_a_parity(x: torch.Tensor) -> torch.Tensor:
    """Another branch for even sizes."""
    if x.size(0) % 2 == 0:
        return x * 2
    return x * 3


def loop_over_a_size(x: torch.Tensor) -> torch.Tensor:
    """A Python loop, as many times round as there are elements."""
    total = torch.zeros(())
    for k in range(x.shape[0]):
        total = total + x[k] * k
    return total


def zip_of_rows(x: torch.Tensor) -> torch.Tensor:
    """A loop over the tensor itself."""
    total = torch.zeros(())
    for row in x:
        total = total + row.sum()
    return total


SIZED: list[tuple[Function, Shapes, Sequence[Shapes], str]] = [
    (branch_on_a_size, [(5,)], [[(5,)], [(2,)], [(4,)]], "if x.shape[0] > 3:"),
    (mean_by_len, [(5,)], [[(5,)], [(2,)], [(9,)]], "return x.sum() / len(x)"),
    (sizes_equal_by_chance, [(4,), (4,)], [[(4,), (4,)], [(2,), (7,)]], "return x.sum() + y.sum() * y.shape[0]"),
    (branch_on_a_parity, [(4,)], [[(4,)], [(3,)], [(6,)]], "if x.size(0) % 2 == 0:"),
    (loop_over_a_size, [(4,)], [[(4,)], [(3,)], [(6,)]], "for k in range(x.shape[0]):"),
    (zip_of_rows, [(4,)], [[(4,)], [(3,)]], "for row in x:"),
]


@functools.cache
def built(function: Function, example: Shapes) -> Plan | PlanBuildError:
    """The plan of a function with an example of these shapes, all of whose sizes may vary; or why there is none."""
    plan: Plan = func2plan()(function)
    try:
        return plan.build(*map(torch.randn, example), args_shape=[(-1,)] * len(example))
    except PlanBuildError as error:
        return error


def names_the_line(error: PlanBuildError, line: str) -> bool:
    """Whether the error points to that line of this file."""
    where = error.where
    return where is not None and Path(where.file).name == Path(__file__).name and where.text.startswith(line)


@pytest.mark.parametrize(("function", "example", "sizes", "line"), SIZED, ids=[row[0].__name__ for row in SIZED])
def test_a_size_is_never_frozen(
    world: World, function: Function, example: Shapes, sizes: Sequence[Shapes], line: str
) -> None:
    """What depends on a size is right at every size that the plan takes, or refused at build with its line."""
    plan = built(function, tuple(example))
    if isinstance(plan, PlanBuildError):
        assert names_the_line(plan, line), str(plan)
        return
    generator = torch.Generator().manual_seed(1)
    device = world.devices[0]
    on_device = plan.send(device)
    right = 0
    for shapes in sizes:
        arguments = [torch.randn(shape, generator=generator) for shape in shapes]
        try:
            value = on_device(*arguments).get(timeout=PATIENCE)
        except (ConditionFailed, ArgumentMismatch):
            continue  # the plan says that it was not made for this size
        assert torch.allclose(value, function(*arguments)), shapes
        right += 1
    assert right >= 1


def test_sizes_that_may_vary_do_vary(world: World) -> None:
    """A sum divided by `len(x)`, and two sizes that were equal in the example, are right at others."""
    device = world.devices[0]
    mean = built(mean_by_len, ((5,),))
    both = built(sizes_equal_by_chance, ((4,), (4,)))
    assert isinstance(mean, Plan)
    assert isinstance(both, Plan)
    data, more = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 5.0])
    assert torch.equal(mean.send(device)(data).get(timeout=PATIENCE), torch.tensor(3.0))
    assert torch.equal(both.send(device)(data, more).get(timeout=PATIENCE), torch.tensor(21.0))


def with_random(x: torch.Tensor) -> torch.Tensor:
    """Python's random."""
    return x * random.random()


def with_random_choice(x: torch.Tensor) -> torch.Tensor:
    """A branch by Python's random."""
    return x if random.choice([True, False]) else -x


def with_own_generator(x: torch.Tensor) -> torch.Tensor:
    """A generator made on the spot."""
    return x + random.Random().randint(1, 10)


def with_numpy_random(x: torch.Tensor) -> torch.Tensor:
    """numpy's random."""
    return x * float(np.random.rand())  # noqa: NPY002  (what a user may write)


def with_the_clock(x: torch.Tensor) -> torch.Tensor:
    """The time of day."""
    return x * time.time()


FROZEN: list[tuple[Function, str]] = [
    (with_random, "return x * random.random()"),
    (with_random_choice, "return x if random.choice([True, False]) else -x"),
    (with_own_generator, "return x + random.Random().randint(1, 10)"),
    (with_numpy_random, "return x * float(np.random.rand())"),
    (with_the_clock, "return x * time.time()"),
]


@pytest.mark.parametrize(("function", "line"), FROZEN, ids=[row[0].__name__ for row in FROZEN])
def test_pythons_randomness_is_refused_at_build(function: Function, line: str) -> None:
    """What gives another value at each call is refused with its line, instead of being frozen into the plan."""
    plan = func2plan()(function)
    with pytest.raises(PythonRandomness) as caught:
        plan.build(torch.ones(3))
    assert names_the_line(caught.value, line), str(caught.value)
    assert not plan.is_built


def branch_on_data(x: torch.Tensor) -> torch.Tensor:
    """A branch on what the tensor holds."""
    if x.sum() > 0:
        return x
    return -x


def loop_on_data(x: torch.Tensor) -> torch.Tensor:
    """A loop on what the tensor holds."""
    while x.max() > 1:
        x = x / 2
    return x


@pytest.mark.parametrize(
    ("function", "line"), [(branch_on_data, "if x.sum() > 0:"), (loop_on_data, "while x.max() > 1:")]
)
def test_branches_on_data_are_refused_and_point_to_cond(function: Function, line: str) -> None:
    """A data-dependent `if` or `while` is refused with its line, and the error says what to write instead."""
    plan = func2plan()(function)
    with pytest.raises(DataDependentBranch, match=r"torch\.cond") as caught:
        plan.build(torch.ones(3))
    assert names_the_line(caught.value, line), str(caught.value)


def test_torchs_randomness_is_not_frozen() -> None:
    """A random op draws at each run: equal under a seed, other numbers under another."""

    @func2plan()
    def plan_noise(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(3)

    plan_noise.build(torch.ones(3))
    one, again, other = (plan_noise.options(seed=seed)(torch.ones(3)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_values_seen_by_numpy_are_refused_at_build() -> None:
    """A value that leaves torch would be frozen: it is refused."""

    @func2plan()
    def plan_by_numpy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(np.cumsum(x.numpy()))

    with pytest.raises((NumpyInPlan, PlanBuildError)):
        plan_by_numpy.build(torch.ones(3))


def test_a_plan_inside_a_plan_is_not_frozen_either(world: World) -> None:
    """A plan that another one calls is inlined with its sizes, and stays right at another size."""

    @func2plan(args_shape=[(-1,)])
    def plan_mean(x: torch.Tensor) -> torch.Tensor:
        return x.sum() / len(x)

    @func2plan(args_shape=[(-1,)])
    def plan_centre(x: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = plan_mean(x)
        return x - mean

    assert isinstance(plan_centre, Plan)
    on_device = plan_centre.send(world.devices[0])
    for size in (2, 5):
        data = torch.arange(float(size))
        assert torch.allclose(on_device(data).get(timeout=PATIENCE), data - data.mean())
