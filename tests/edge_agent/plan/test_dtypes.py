"""Type promotion without torch, against torch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from broker.protocol.tensors import DTYPES
from edge_agent.plan.dtypes import NUMBER_DTYPES, common_dtype, complex_of, promote, real_of, to_floating
from edge_agent.plan.errors import PlanTypeError
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES

PAIRS = list(itertools.product(DTYPES, DTYPES))
NUMBERS: dict[str, Any] = {"bool": True, "int": 1, "float": 0.5, "complex": 1j}


def torch_says(a: Any, b: Any) -> str | None:
    """The name of the dtype that torch computes in; None where it has none, or one that may not travel."""
    try:
        return DTYPE_NAMES.get(torch.result_type(a, b))
    except RuntimeError:
        return None


def we_say(*operands: tuple[str, str]) -> str | None:
    """The dtype that the checker computes in; None where it refuses."""
    try:
        return common_dtype(operands)
    except PlanTypeError:
        return None


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_pairs_promote_as_in_torch(a: str, b: str) -> None:
    """Every pair of dtypes, and the error where torch has no common one."""
    try:
        wanted = DTYPE_NAMES[torch.promote_types(TORCH_DTYPES[a], TORCH_DTYPES[b])]
    except RuntimeError:
        with pytest.raises(PlanTypeError) as caught:
            promote(a, b)
        assert str(caught.value) == f"expected dtypes that promote to a common one, got {a} and {b}"
    else:
        assert promote(a, b) == wanted


@pytest.mark.parametrize(("left", "right"), list(itertools.product(["dims", "scalar"], repeat=2)))
def test_dims_outweigh_scalars_as_in_torch(left: str, right: str) -> None:
    """A tensor without dims changes the dtype of one with dims only where its category is higher."""
    shapes = {"dims": (2,), "scalar": ()}
    for a, b in PAIRS:
        first = torch.ones(shapes[left], dtype=TORCH_DTYPES[a])
        second = torch.ones(shapes[right], dtype=TORCH_DTYPES[b])
        assert we_say((a, left), (b, right)) == torch_says(first, second), (a, b)


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_weigh_least_as_in_torch(kind: str) -> None:
    """A Python number changes a tensor's dtype only where its category is higher."""
    for dtype in DTYPES:
        for weight, shape in (("dims", (2,)), ("scalar", ())):
            wanted = torch_says(torch.ones(shape, dtype=TORCH_DTYPES[dtype]), NUMBERS[kind])
            assert we_say((dtype, weight), (NUMBER_DTYPES[kind], "number")) == wanted, (dtype, weight)


def test_counterparts() -> None:
    """Real parts of complex dtypes, complex ones of real parts, and floats for integers."""
    assert [real_of(dtype) for dtype in ("complex64", "complex128", "int8")] == ["float32", "float64", "int8"]
    assert [complex_of(dtype) for dtype in ("float32", "float64", "bfloat16")] == [
        "complex64",
        "complex128",
        "complex64",
    ]
    assert [to_floating(dtype) for dtype in ("bool", "uint16", "float16", "complex64")] == [
        "float32",
        "float32",
        "float16",
        "complex64",
    ]
    with pytest.raises(PlanTypeError, match="expected a dtype with a complex counterpart that may travel, got float16"):
        complex_of("float16")
