"""The twin of edge_agent/plan/ops/convolution.py: convolutions and pooling against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from edge_agent.plan.ops import convolution
from tests.edge_agent.plan.agreement import (
    Call,
    T,
    assert_agrees,
    assert_agrees_where_torch_runs,
    boolean,
    call,
    f32,
    i64,
    refusal,
)

IMAGE = f32(2, 4, 9, 7)
VOLUME = f32(2, 4, 5, 6, 7)

CASES = [
    call("convolution", f32(2, 4, 9), f32(6, 4, 3), f32(6), [2], [1], [1], False, [0], 1),
    call("convolution", IMAGE, f32(6, 2, 3, 3), None, [1, 2], [1], [2, 1], False, [0, 0], 2),
    call("convolution", IMAGE, f32(4, 3, 3, 2), f32(6), [2, 3], [1, 0], [1, 1], True, [1, 0], 2),
    call("conv1d", f32(2, 4, 9), f32(6, 4, 3), f32(6)),
    call("conv1d", f32(4, 9), f32(6, 4, 3), None, [2], [1]),
    call("conv2d", IMAGE, f32(6, 4, 3, 3)),
    call("conv2d", IMAGE, f32(6, 4, 3, 2), f32(6), [2, 1], [1, 1], [2, 2]),
    call("conv3d", VOLUME, f32(6, 4, 3, 3, 3), None, [1, 1, 2]),
    call("conv1d.padding", f32(2, 4, 9), f32(6, 4, 4), None, [1], "same"),
    call("conv2d.padding", IMAGE, f32(6, 4, 3, 3), None, [2, 2], "valid"),
    call("conv2d.padding", IMAGE, f32(6, 4, 3, 3), None, [1, 1], "same", [2, 2]),
    call("conv_transpose1d", f32(2, 4, 9), f32(4, 3, 3), f32(3), [2], [1], [1]),
    call("conv_transpose2d.input", IMAGE, f32(4, 3, 3, 3), None, [2, 2], [1, 0], [1, 0], 2, [1, 2]),
    call("conv_transpose3d.input", VOLUME, f32(4, 3, 2, 2, 2)),
    call("max_pool1d", f32(2, 4, 9), [2]),
    call("max_pool1d", f32(4, 9), [3], [2], [1], [1], True),
    call("max_pool2d", IMAGE, [2, 2]),
    call("max_pool2d", IMAGE, [3, 2], [2, 2], [1, 1], [1, 2], True),
    call("max_pool3d", VOLUME, [2, 2, 2]),
    call("max_pool1d_with_indices", f32(2, 4, 9), [2]),
    call("max_pool2d_with_indices", IMAGE, [2]),
    call("max_pool3d_with_indices", VOLUME, [2, 2, 2], [1, 2, 3]),
    call("avg_pool1d", f32(2, 4, 9), [2]),
    call("avg_pool2d", IMAGE, [2, 2], [], [1, 0], True, False, 3),
    call("avg_pool2d", f32(4, 9, 7), [3, 3], [2, 2], [1, 1], True),
    call("avg_pool3d", VOLUME, [2, 2, 2]),
    call("adaptive_avg_pool1d", f32(2, 4, 9), [3]),
    call("_adaptive_avg_pool2d", IMAGE, [3, 2]),
    call("adaptive_avg_pool2d", IMAGE, [1, 1]),
    call("_adaptive_avg_pool3d", VOLUME, [1, 2, 3]),
    call("adaptive_avg_pool3d", VOLUME, [1, 2, 3]),
    call("adaptive_max_pool1d", f32(2, 4, 9), [3]),
    call("adaptive_max_pool2d", IMAGE, [3, 2]),
    call("adaptive_max_pool3d", VOLUME, [1, 2, 3]),
    call("im2col", IMAGE, [2, 3], [1, 1], [1, 0], [2, 1]),
    call("im2col", f32(4, 9, 7), [2, 2], [2, 1], [0, 0], [1, 1]),
    call("col2im", f32(2, 8, 20), [6, 5], [2, 2], [1, 1], [0, 0], [1, 1]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """Batch stays, channels come from the weight, and the area follows from kernel, stride, padding and dilation."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in convolution.OPS}


SMALL = st.integers(1, 3)


@given(
    size=st.integers(1, 12),
    kernel=SMALL,
    stride=SMALL,
    padding=st.integers(0, 2),
    dilation=SMALL,
    transposed=st.booleans(),
)
def test_convolved_sizes_are_those_of_torch(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    transposed: bool,
) -> None:
    """Whatever the geometry, the convolved size is torch's, also as a formula in a symbolic size."""
    case = call(
        "convolution", f32(1, 1, size), f32(1, 1, kernel), None, [stride], [padding], [dilation], transposed, [0], 1
    )
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@given(
    size=st.integers(1, 12),
    kernel=SMALL,
    stride=SMALL,
    padding=st.integers(0, 1),
    dilation=SMALL,
    ceil_mode=st.booleans(),
)
def test_pooled_sizes_are_those_of_torch(
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    ceil_mode: bool,
) -> None:
    """Rounded up or down, the pooled size is torch's, also as a formula in a symbolic size."""
    assume(padding <= kernel // 2)
    for case in (
        call("max_pool2d", f32(1, 2, size, 3), [kernel, 1], [stride, 1], [padding, 0], [dilation, 1], ceil_mode),
        call("avg_pool1d", f32(1, 2, size), [kernel], [stride], [padding], ceil_mode),
    ):
        assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            call("conv2d", IMAGE, f32(6, 3, 3, 3)),
            "expected the input's channels and the weight's to be equal, got 4 and 3",
        ),
        (call("conv2d", IMAGE, f32(6, 4, 3)), "expected a weight with 4 dims, got float32[6, 4, 3]"),
        (call("conv2d", f32(4, 4), f32(6, 4, 3, 3)), "expected an input with 3 or 4 dims, got float32[4, 4]"),
        (call("conv2d", IMAGE, T("float64", (6, 4, 3, 3))), "expected an input, a weight and a bias of one dtype"),
        (
            call("conv2d", IMAGE, f32(6, 4, 3, 3), f32(5)),
            "expected the bias's size and the output's channels to be equal",
        ),
        (call("conv2d", IMAGE, f32(6, 4, 11, 3)), "expected an input at least as large as the kernel"),
        (call("conv2d", IMAGE, f32(6, 4, 3, 3), None, [0, 1]), "expected stride, dilation and groups of 1 or more"),
        (
            call("conv2d", IMAGE, f32(6, 4, 3, 3), None, [1, 1], [-1, 0]),
            "expected padding of 0 or more, got [-1, 0, 0, 0]",
        ),
        (call("conv2d", IMAGE, f32(6, 4, 3, 3), None, [1, 1, 1]), "expected 1 or 2 values of stride, got 3"),
        (
            call("conv2d", IMAGE, f32(6, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 4),
            "expected the input's channels and the weight's",
        ),
        (
            call("conv2d.padding", IMAGE, f32(6, 4, 3, 3), None, [2, 2], "same"),
            "expected a stride of 1 with padding 'same'",
        ),
        (
            call("conv2d.padding", IMAGE, f32(6, 4, 3, 3), None, [1, 1], "full"),
            "expected a padding of 'valid' or 'same', got 'full'",
        ),
        (call("max_pool2d", IMAGE, [2, 2], [], [2, 2]), "expected a padding of at most half the kernel, 1, got 2"),
        (call("max_pool2d", IMAGE, [20, 2]), "expected an input at least as large as the kernel"),
        (call("max_pool2d", boolean(2, 4, 9, 7), [2, 2]), "expected real numbers of"),
        (call("adaptive_avg_pool2d", i64(2, 4, 9, 7), [1, 1]), "expected an input of bfloat16"),
        (call("adaptive_avg_pool2d", IMAGE, [1, 1, 1]), "expected 1 or 2 values of output_size, got 3"),
        (
            call("col2im", f32(2, 8, 21), [6, 5], [2, 2], [1, 1], [0, 0], [1, 1]),
            "expected the number of columns and of windows",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(case: Any, sentence: str) -> None:
    """Channels, kernels and paddings that do not fit are refused before the op runs."""
    assert sentence in str(refusal(case))
