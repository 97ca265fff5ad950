"""The twin of edge_agent/plan/ops/conversion.py: copies and casts against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edge_agent.plan.ops import conversion
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES
from tests.edge_agent.plan.agreement import ALL_DTYPES, Call, T, assert_agrees, call, f32, i64, refusal

CASES = [
    call("clone", f32(2, 3)),
    call("clone", f32(2, 3, 4, 5), memory_format=torch.channels_last),
    call("contiguous", f32(2, 3)),
    call("contiguous", f32(2, 3), memory_format=torch.contiguous_format),
    call("_to_copy", f32(2)),
    call("_to_copy", f32(2), dtype=torch.int64, non_blocking=False, memory_format=torch.preserve_format),
    call("to.dtype", f32(2), torch.float32),
    call("to.dtype", f32(2), torch.float16, False, True),
    call("type_as", f32(2), i64(3)),
    call("type_as", f32(2), f32(3)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """A copy keeps the shape, and the dtype if no other is asked for."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in conversion.OPS}


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_dtype_is_cast_to_every_other(dtype: str) -> None:
    """Casts go between all dtypes that may travel."""
    for other in ALL_DTYPES:
        assert_agrees(call("_to_copy", T(dtype, (2, 3), "ones"), dtype=TORCH_DTYPES[other]))


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("_to_copy", f32(2), pin_memory=True), "expected memory that is not pinned, got pin_memory of True"),
        (call("to.dtype", f32(2), "float32"), "expected a dtype of bool, uint8"),
        (call("clone", f32(2), memory_format="contiguous_format"), "expected one of memory_format:contiguous_format"),
    ],
    ids=str,
)
def test_what_no_device_has_is_refused(case: Any, sentence: str) -> None:
    """Constants that the format does not know are refused before the op runs."""
    assert sentence in str(refusal(case))
