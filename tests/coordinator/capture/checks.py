"""What the tests of capture share: build a plan, compare it with its function, and catch a refusal with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from coordinator.build_errors import PlanBuildError
from coordinator.function_plan import FunctionPlan
from coordinator.plan import Plan

_HALVES = (torch.float16, torch.bfloat16)

Error = TypeVar("Error", bound=PlanBuildError)


def built(function: Callable[..., Any], *example: Any, shape: Any = None, **options: Any) -> FunctionPlan:
    """A plan of the function, built with an example."""
    plan = FunctionPlan(function)
    plan.build(*example, args_shape=shape, **options)
    return plan


def assert_same(plan: Plan, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """The plan gives what the function gives: values, dtypes, shapes and nesting."""
    with torch.no_grad():
        wanted = function(*args, **kwargs)
    halves = any(isinstance(value, torch.Tensor) and value.dtype in _HALVES for value in args)
    torch.testing.assert_close(
        plan.run_plan(*args, **kwargs),
        _as_results(wanted),
        rtol=5e-3 if halves else 1e-4,
        atol=1e-3 if halves else 1e-5,
        equal_nan=True,
    )


def _as_results(nest: Any) -> Any:
    """Results as a plan has them: numbers as tensors, named tuples as tuples."""
    if isinstance(nest, dict):
        return {key: _as_results(value) for key, value in nest.items()}
    if isinstance(nest, list):
        return [_as_results(value) for value in nest]
    if isinstance(nest, tuple):
        return tuple(_as_results(value) for value in nest)
    if isinstance(nest, float):
        return torch.tensor(nest, dtype=torch.float64)
    return torch.tensor(nest) if isinstance(nest, bool | int) else nest


def refused(
    error: type[Error], function: Callable[..., Any], *example: Any, shape: Any = None, line: str = ""
) -> Error:
    """Building fails with this error, which names a line of the test's own file that has ``line`` in it."""
    with pytest.raises(error) as caught:
        built(function, *example, shape=shape)
    assert type(caught.value) is error
    where = caught.value.where
    assert where is not None, f"no line in {caught.value}"
    assert Path(where.file).name == Path(function.__code__.co_filename).name
    assert line in where.text
    assert f"{where.file}:{where.line}: {where.text}" in str(caught.value)
    return caught.value
