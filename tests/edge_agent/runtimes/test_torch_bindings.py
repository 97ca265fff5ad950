"""Torch's bindings of ops come to the overloads that plans name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edge_agent.plan.registry import REGISTRY
from edge_agent.runtimes.torch import overload
from edge_agent.runtimes.torch_bindings import BOUND, binding
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES

SHAPES = [(), (1,), (2,), (2, 2)]


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which overloads are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An op on its way."""
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


def outcome(call: Any, args: list[torch.Tensor]) -> tuple[str, str]:
    """The result, or the error, as text."""
    try:
        result = call(*args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same
        return type(error).__name__, str(error)
    return f"{result.dtype}{list(result.shape)}{list(result.stride())}", str(result.tolist())


@pytest.mark.parametrize("name", BOUND)
def test_a_binding_is_the_overload(name: str) -> None:
    """Whatever the dtypes and shapes, numbers without dims among them: it calls that overload and no other, with the
    same result or error.
    """
    bound, whole = binding(name, BOUND[name]), overload(name)
    assert bound is not None
    reached = 0
    for dtypes in itertools.product(("float32", "float64", "int64", "bool", "complex64", "bfloat16"), repeat=2):
        for shapes in itertools.product(SHAPES, repeat=BOUND[name]):
            args = [
                (torch.arange(4)[: torch.Size(shape).numel()].reshape(shape) + 1).to(TORCH_DTYPES[dtypes[place % 2]])
                for place, shape in enumerate(shapes)
            ]
            assert outcome(bound, args) == outcome(whole._op, args)
            with Seen() as seen:
                found = outcome(bound, args)
            assert seen.ops in ([whole], []), (dtypes, shapes, found)
            reached += len(seen.ops)
    assert reached


@pytest.mark.parametrize("name", BOUND)
def test_only_tensors_are_bound(name: str) -> None:
    """With any other number of arguments there is no binding; and all are ops of the registry."""
    assert name in REGISTRY
    assert [count for count in range(8) if binding(name, count)] == [BOUND[name]]
    assert binding("aten.add.Scalar", 2) is None
