"""The twin of edge_agent/plan/ops/network.py: norms, softmax, embedding and resampling against torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from edge_agent.plan.ops import network
from tests.edge_agent.plan.agreement import (
    Call,
    T,
    assert_agrees,
    assert_agrees_where_torch_runs,
    call,
    f32,
    i64,
    refusal,
)

X = f32(2, 6, 5)
C = f32(6)
HALF = T("bfloat16", (2, 6, 5))

CASES = [
    call("native_layer_norm", X, [5], f32(5), f32(5), 1e-5),
    call("native_layer_norm", X, [6, 5], None, None, 1e-5),
    call("native_layer_norm", HALF, [5], f32(5), f32(5), 1e-5),
    call("native_layer_norm", HALF, [5], None, None, 1e-5),
    call("layer_norm", X, [5], f32(5), f32(5)),
    call("layer_norm", X, [6, 5]),
    call("rms_norm", X, [5], f32(5)),
    call("rms_norm", X, [5], None, 1e-6),
    call("native_group_norm", X, C, C, 2, 6, 5, 3, 1e-5),
    call("native_group_norm", HALF, C, C, 2, 6, 5, 3, 1e-5),
    call("group_norm", X, 2, C, C),
    call("group_norm", X, 3),
    call("instance_norm", X, C, C, None, None, True, 0.1, 1e-5, False),
    call("instance_norm", X, None, None, C, T("float32", (6,), "ones"), False, 0.1, 1e-5, False),
    call("batch_norm", X, C, C, C, T("float32", (6,), "ones"), False, 0.1, 1e-5, False),
    call("batch_norm", f32(2, 6), None, None, None, None, True, 0.1, 1e-5, False),
    call("_native_batch_norm_legit_no_training", X, C, C, C, T("float32", (6,), "ones"), 0.1, 1e-5),
    call("_native_batch_norm_legit_no_training", HALF, C, C, C, T("float32", (6,), "ones"), 0.1, 1e-5),
    call("_native_batch_norm_legit.no_stats", X, C, C, True, 0.1, 1e-5),
    call("_softmax", X, 1, False),
    call("_log_softmax", X, -1, False),
    call("_softmax", f32(), 0, False),
    call("_safe_softmax", X, -1),
    call("softmax.int", X, 0),
    call("softmax.int", i64(2, 3), 1, torch.float64),
    call("log_softmax.int", X, 2, torch.float64),
    call("embedding", f32(4, 3), i64(2, 5)),
    call("embedding", f32(4, 3), T("int32", (2,), "index"), 1, False, False),
    call("upsample_linear1d.vec", f32(2, 3, 5), None, False, [2.0]),
    call("upsample_linear1d.vec", f32(2, 3, 5), [7], True, None),
    call("upsample_nearest1d.vec", f32(2, 3, 5), None, [1.7]),
    call("upsample_nearest2d.vec", f32(2, 3, 5, 4), None, [2.0, 0.5]),
    call("upsample_nearest2d.vec", f32(2, 3, 5, 4), [6, 9], None),
    call("upsample_bilinear2d.vec", f32(2, 3, 5, 4), [6, 9], True, None),
    call("upsample_bicubic2d.vec", f32(2, 3, 5, 4), None, False, [1.5, 2]),
    call("upsample_nearest3d.vec", f32(2, 3, 5, 4, 3), None, [2.0, 1.5, 1.0]),
    call("upsample_trilinear3d.vec", f32(2, 3, 5, 4, 3), [2, 3, 4], False, None),
    call("grid_sampler_2d", f32(2, 3, 5, 4), f32(2, 6, 7, 2), 0, 0, False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_types_are_those_of_torch(case: Call) -> None:
    """What a layer gives, and the statistics that it keeps, have torch's dtypes and shapes."""
    assert_agrees(case)


def test_every_op_has_a_case() -> None:
    """No op of the family goes without a comparison with torch."""
    assert {case.name for case in CASES} == {spec.name for spec in network.OPS}


@given(size=st.integers(1, 9), scale=st.sampled_from([0.3, 0.5, 1.0, 1.1, 1.7, 2.0, 2.5, 3]))
def test_scaled_sizes_are_those_of_torch(size: int, scale: float) -> None:
    """A size times a factor is rounded down as torch does it, also for a symbolic size."""
    case = call("upsample_nearest1d.vec", f32(1, 2, size), None, [scale])
    assert assert_agrees_where_torch_runs(case) or refusal(case) is not None


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (
            call("layer_norm", X, [4]),
            "expected the last sizes of the input and normalized_shape to be equal, got 5 and 4",
        ),
        (call("layer_norm", X, [5], f32(4)), "expected the sizes of a weight or bias and normalized_shape to be equal"),
        (call("layer_norm", X, []), "expected a normalized_shape of 1 to 3 sizes, got 0"),
        (call("layer_norm", X, [5], T("float64", (5,))), "expected parameters of float32, got float64"),
        (call("layer_norm", i64(2, 3), [3]), "expected an input of bfloat16"),
        (call("group_norm", X, 4), "expected groups that divide 6 channels, got 4"),
        (call("group_norm", f32(6), 2), "expected an input with at least 2 dims, got float32[6]"),
        (
            call("native_group_norm", X, C, C, 2, 6, 4, 3, 1e-5),
            "expected HxW and the product of the input's other sizes",
        ),
        (
            call("batch_norm", X, f32(5), None, None, None, True, 0.1, 1e-5, False),
            "statistic and the channels to be equal, got 5 and 6",
        ),
        (
            call("batch_norm", X, C, C, C, C, True, 0.1, 1e-5, False),
            "expected no running statistics in training, got some, which the op would change",
        ),
        (
            call("instance_norm", X, C, C, C, C, True, 0.1, 1e-5, False),
            "expected no running statistics where those of the input are used, got some, which the op would change",
        ),
        (
            call("_native_batch_norm_legit.no_stats", X, C, C, False, 0.1, 1e-5),
            "expected training, as there are no running statistics",
        ),
        (call("_softmax", i64(2), 0, False), "expected an input of bfloat16"),
        (call("_softmax", X, 3, False), "expected dim from -3 to 2, got 3"),
        (call("_softmax", X, 0, True), "expected half_to_float of False, as on the CPU, got True"),
        (call("softmax.int", X, 0, torch.int64), "expected floats, got int64"),
        (call("embedding", f32(4, 3), f32(2)), "expected indices of int32, int64, got float32"),
        (call("embedding", f32(4), i64(2)), "expected a table with 2 dims, got float32[4]"),
        (
            call("upsample_nearest1d.vec", f32(2, 3, 5), None, None),
            "expected either output_size or scale_factors, got neither",
        ),
        (call("upsample_nearest1d.vec", f32(2, 3, 5), [4, 4], None), "expected 1 sizes or factors, got 2"),
        (call("upsample_nearest1d.vec", f32(2, 3, 5), None, [0.01]), "expected output sizes of 1 or more, got [0]"),
        (call("upsample_nearest1d.vec", f32(2, 3, 5), None, [float("nan")]), "expected a finite scale, got nan"),
        (
            call("grid_sampler_2d", f32(2, 3, 5, 4), f32(2, 6, 7, 3), 0, 0, False),
            "expected the grid's last size and 2 to be equal",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(case: Any, sentence: str) -> None:
    """Parameters that do not fit the input are refused before the op runs."""
    assert sentence in str(refusal(case))
