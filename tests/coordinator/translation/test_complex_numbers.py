"""Complex numbers in onnx, which has none: each op against torch, on numbers with both parts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from coordinator.translation.errors import TranslationUnsupported
from coordinator.translation.table import COMPLEX_TRANSLATIONS
from coordinator.translation.variants import make_variant, prove
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import PlanError
from edge_agent.plan.format import Graph, Input, Special
from tests.edge_agent.plan import agreement
from tests.edge_agent.plan.agreement import Call, T, boolean, call, f32, i64
from tests.edge_agent.plan.graphs import graph_of, op, value

C = T("complex64", (3, 4))
ROW = T("complex64", (4,))
WIDE = T("complex128", (3, 4))
FLOAT32 = 1e-5

CASES = [
    call("_conj", C),
    call("_fft_c2c", C, [0, 1], 0, True),
    call("_fft_c2c", C, [1], 2, False),
    call("_fft_c2c", C, [0], 1, False),
    call("_fft_c2r", C, [1], 2, 6),
    call("_fft_c2r", C, [1], 1, 7),
    call("_fft_c2r", C, [0, 1], 0, 6),
    call("_fft_c2r", T("complex64", (3, 1)), [1], 0, 1),
    call("_fft_r2c", f32(3, 7), [1], 0, True),
    call("_fft_r2c", f32(3, 8), [0, 1], 1, True),
    call("_fft_r2c", f32(3, 6), [1], 2, False),
    call("_to_copy", C, dtype=torch.complex128),
    call("_to_copy", f32(3), dtype=torch.complex64),
    call("_to_copy", i64(3), dtype=torch.complex64),
    call("_unsafe_view", C, [4, 3]),
    call("abs", C),
    call("abs", WIDE),
    call("add.Scalar", C, 2.5),
    call("add.Tensor", C, C, alpha=0.5),
    call("add.Tensor", f32(4), C),
    call("addmm", ROW, C, T("complex64", (4, 4))),
    call("addmm", ROW, C, T("complex64", (4, 4)), beta=2, alpha=0.5),
    call("alias", C),
    call("bmm", T("complex64", (2, 3, 4)), T("complex64", (2, 4, 2))),
    call("cat", [C, C], 1),
    call("clone", C),
    call("conj", C),
    call("complex", f32(3, 4), f32(4)),
    call("conj_physical", C),
    call("contiguous", C),
    call("detach", C),
    call("div.Scalar", C, 2),
    call("div.Tensor", C, C),
    call("div.Tensor", C, f32(4)),
    call("div.Tensor", f32(4), C),
    call("eq.Scalar", C, 1.0),
    call("eq.Tensor", C, C),
    call("expand", ROW, [3, 4]),
    call("flip", C, [0]),
    call("full", [2, 3], 1.5, dtype=torch.complex64),
    call("full_like", C, 2),
    call("gather", C, 1, i64(3, 2)),
    call("imag", C),
    call("index.Tensor", C, [i64(2)]),
    call("index_select", C, 0, i64(2)),
    call("lift_fresh_copy", C),
    call("linear", C, T("complex64", (2, 4)), T("complex64", (2,))),
    call("matmul", C, ROW),
    call("mean", C),
    call("mean.dim", C, [1], True),
    call("mm", C, T("complex64", (4, 2))),
    call("mm", WIDE, T("complex128", (4, 2))),
    call("mul.Scalar", C, 2),
    call("mul.Tensor", C, C),
    call("mul.Tensor", C, f32(3, 1)),
    call("mul.Tensor", f32(3, 1), C),
    call("mv", C, ROW),
    call("narrow", C, 1, 1, 2),
    call("neg", C),
    call("new_ones", C, [2]),
    call("new_zeros", C, [2]),
    call("ones", [2], dtype=torch.complex64),
    call("ones_like", C),
    call("permute", C, [1, 0]),
    call("pow.Tensor_Scalar", C, 2),
    call("pow.Tensor_Scalar", C, 1),
    call("real", C),
    call("repeat", C, [2, 1]),
    call("reshape", C, [12]),
    call("resolve_conj", C),
    call("resolve_neg", C),
    call("roll", C, [1], [1]),
    call("scalar_tensor", 2.0, dtype=torch.complex64),
    call("select.int", C, 1, 2),
    call("select_scatter", C, ROW, 0, 1),
    call("sgn", C),
    call("slice.Tensor", C, 1, 1, 3),
    call("slice_scatter", C, T("complex64", (3, 2)), 1, 1, 3),
    call("split.Tensor", C, 2, 1),
    call("split_with_sizes", C, [1, 3], 1),
    call("squeeze", T("complex64", (3, 1))),
    call("squeeze.dim", T("complex64", (3, 1)), 1),
    call("squeeze.dims", T("complex64", (3, 1)), [1]),
    call("stack", [C, C], 0),
    call("sub.Scalar", C, 2),
    call("sub.Tensor", C, f32(4)),
    call("sum", C),
    call("sum.dim_IntList", C, [0], True),
    call("t", C),
    call("transpose.int", C, 0, 1),
    call("unbind.int", C),
    call("unsqueeze", C, 0),
    call("view", C, [4, 3]),
    call("view_as_complex", f32(3, 2)),
    call("view_as_real", C),
    call("where.self", boolean(3, 4), C, ROW),
    call("zeros", [2], dtype=torch.complex64),
    call("zeros_like", C),
]


def graphs(case: Call) -> list[Graph]:
    """A call as a plan, with symbolic sizes and without, where the checker takes it."""
    args, kwargs = agreement._arguments(case, torch.Generator().manual_seed(0))
    outputs = len(agreement.torch_results(case, args, kwargs))
    found = []
    for symbolic in (True, False):
        try:
            graph = agreement._Plan(symbolic=symbolic).graph(case.name, args, kwargs, outputs)
            check_graph(graph)
        except PlanError:
            continue
        found.append(graph)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_torch_gives(case: Call) -> None:
    """On golden runs, whose numbers have an imaginary part."""
    errors = []
    for graph in graphs(case):
        try:
            errors.append(prove(check_graph(graph), make_variant(graph)))
        except TranslationUnsupported as refused:
            # the same call with fixed sizes must run
            assert re.search("whose size varies|no arguments were found", refused.reason)  # noqa: PT017
    assert errors
    assert max(errors) < FLOAT32


def test_every_op_has_a_case() -> None:
    """No translation is untested. Branches and loops are tested with complex numbers in `test_control`."""
    assert {case.name for case in CASES} >= {name for name in COMPLEX_TRANSLATIONS if not name.startswith("control.")}


@pytest.mark.parametrize(
    ("call_", "reason"),
    [
        (op("exp.default", value(0)), "onnx has no translation of it for complex numbers yet"),
        (op("pow.Tensor_Scalar", value(0), 3), "onnx has no complex numbers to the power of 3"),
        (op("_fft_c2c.default", value(0), Special(l=[0]), 0, True), "transform of float64 is as coarse"),
    ],
)
def test_what_is_missing_is_said(call_: Any, reason: str) -> None:
    """With the op's name."""
    dtype = "complex128" if "fft" in call_.name else "complex64"
    graph = graph_of([Input(name="x", dtype=dtype, shape=[3])], [call_], [1])
    with pytest.raises(TranslationUnsupported, match=reason) as caught:
        make_variant(graph)
    assert caught.value.op == call_.name
