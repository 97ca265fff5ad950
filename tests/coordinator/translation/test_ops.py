"""Each translation against torch, on the calls of its family's twin test (tests/edge_agent/plan/ops)."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from coordinator.translation.errors import TranslationUnsupported
from coordinator.translation.graphs import translate, translated_ops
from edge_agent.plan.checker import CheckedGraph, check_graph
from edge_agent.plan.errors import PlanError, VariantRefused
from edge_agent.plan.ops import loss
from edge_agent.plan.registry import FAMILIES, REGISTRY, registered
from edge_agent.plan.variants import Golden, compare, golden_output
from edge_agent.runtimes.onnx import complex_of, widened
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES
from tests.edge_agent.plan import agreement
from tests.edge_agent.plan.agreement import Call, T, call, f32

ROOT = Path(__file__).resolve().parents[3]

OPTIONS = ort.SessionOptions()
OPTIONS.intra_op_num_threads = 1
OPTIONS.log_severity_level = 4

TWINS = (
    "conversion",
    "convolution",
    "creation",
    "indexing",
    "joining",
    "matrix",
    "network",
    "sorting",
    "spectral",
    "splits",
    "views",
)
"""The families whose twin tests list their calls."""

ANY_ORDER = {"aten.topk.default(T(dtype='float32', shape=(4, 3), fill='rand'), 3, 0, False, False)"}
"""Calls whose result torch gives in an order of its own."""

SMALL = [T(dtype, (2, 3)) for dtype in ("float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool")]


def plain(tensor: torch.Tensor) -> np.ndarray:
    """As numpy has it, bfloat16 as float32."""
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor.contiguous().resolve_conj()
    found: np.ndarray = tensor.numpy()
    return found


def run(checked: CheckedGraph, tensors: list[torch.Tensor]) -> list[tuple[str, np.ndarray]]:
    """What onnxruntime gives, by the graph's translation."""
    session = ort.InferenceSession(translate(checked), OPTIONS, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    feed = {f"x{k}": widened(plain(one)) for k, one in enumerate(tensors) if f"x{k}" in taken}
    dtypes = [one.dtype for one in checked.output_types]
    results = zip(dtypes, session.run(None, feed), strict=True)
    return [(dtype, complex_of(array, dtype)) for dtype, array in results]


def agrees(case: Call) -> bool:
    """Compare a call, with symbolic sizes where the plan may have them. False: torch or the checker refuses it."""
    args, kwargs = agreement._arguments(case, torch.Generator().manual_seed(0))
    try:
        wanted = agreement.torch_results(case, args, kwargs)
    except agreement.TORCH_REFUSALS:
        return False
    ran = False
    for symbolic in (True, False):
        plan = agreement._Plan(symbolic=symbolic)
        try:
            checked = check_graph(plan.graph(case.name, args, kwargs, len(wanted)))
        except PlanError:
            continue
        try:
            results = run(checked, plan.tensors)
        except TranslationUnsupported:
            continue
        outputs = [golden_output(DTYPE_NAMES[one.dtype], plain(one)) for one in wanted]
        try:
            compare(Golden(sizes={}, seed=0, fill="signed", outputs=outputs), results)
        except VariantRefused as error:
            error.add_note(f"{case}, {'with symbolic sizes' if symbolic else 'with sizes that are numbers'}")
            raise
        ran = True
    return ran


@pytest.mark.parametrize("family", TWINS)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_the_calls_of_the_twin_test(family: str) -> None:
    """What was translated gives what torch gives, within the tolerance of its dtype."""
    twin = importlib.import_module(f"tests.edge_agent.plan.ops.test_{family}")
    cases = [case for _, value in inspect.getmembers(twin) if isinstance(value, list) for case in value]
    calls = [case for case in cases if isinstance(case, Call) and f"{case.name}{case.args}" not in ANY_ORDER]
    ran = [case for case in calls if agrees(case)]
    assert len(ran) > len(calls) // 2


EXTRA: dict[str, tuple[Any, ...]] = {
    "aten.round.decimals": (1,),
    "aten.threshold.default": (0.5, 2),
    "aten.glu.default": (1,),
    "aten.prelu.default": (f32(3),),
    "aten._prelu_kernel.default": (f32(3),),
}


def simple_calls(family: Any) -> list[Call]:
    """Each op of a family with small tensors of several dtypes, where its schema says enough; losses as their twin
    test calls them.
    """
    if family is loss:
        twin = importlib.import_module("tests.edge_agent.plan.ops.test_loss")
        return [case for reduction in (0, 1, 2) for case in twin.cases(reduction)]
    calls = []
    for spec in family.OPS:
        kinds = [one.kind for one in spec.parameters if one.required]
        name = spec.name.removeprefix("aten.")
        for tensor in SMALL:
            given = {
                "Tensor": tensor,
                "Scalar": 2,
                "int": 1,
                "bool": True,
                "str?": "trunc",
                "int[]?": [0],
                "int[]": [0],
            }
            if spec.name in EXTRA:
                calls.append(call(name, tensor, *EXTRA[spec.name]))
            elif spec.name.startswith(("aten.where.", "aten.masked_fill.")):
                mask = T("bool", (2, 3), "index")
                rest = [given[kind] for kind in kinds]
                place = 0 if spec.name.startswith("aten.where") else 1
                rest[place] = mask
                calls.append(call(name, *rest))
            elif all(kind in given for kind in kinds):
                named = {one.name: given[one.kind] for one in spec.parameters if one.required and one.keyword_only}
                args = [given[one.kind] for one in spec.parameters if one.required and not one.keyword_only]
                calls.append(call(name, *args, **named))
    return calls


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.__name__.rpartition(".")[2] not in (*TWINS, "control")]
)
@pytest.mark.filterwarnings("ignore")
def test_simple_calls(family: Any) -> None:
    """The element-wise ops, reductions and losses, in several dtypes."""
    calls = simple_calls(family)
    ran = {case.name for case in calls if agrees(case)}
    translated = {spec.name for spec in family.OPS} & set(translated_ops())
    assert len(ran) >= 0.7 * len(translated), sorted(translated - ran)


def test_every_translation_is_of_a_registered_op() -> None:
    """A name misspelt would never be found."""
    assert set(translated_ops()) <= set(registered())


def test_the_document_lists_what_has_no_translation() -> None:
    """docs/runtimes.md names exactly the ops that onnx devices do not run."""
    text = (ROOT / "docs" / "runtimes.md").read_text()
    section = text.partition("<!-- not translated -->")[2].partition("<!-- end -->")[0]
    listed = {f"aten.{name}" for name in section.replace("`", "").replace(",", " ").split()}
    assert listed == set(REGISTRY) - set(translated_ops())
