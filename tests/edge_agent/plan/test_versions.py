"""Plans that earlier versions wrote are loaded, checked and run as on the day that they were written.

The files are made by `tests.edge_agent.plan.make_versions`; none is ever rewritten (see CONTRIBUTING.md).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from broker.protocol.tensors import inspect
from coordinator.plan import Plan
from coordinator.translation.errors import TranslationUnsupported
from coordinator.translation.graphs import translate
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.registry import REGISTRY
from edge_agent.runtimes.torch import TorchRuntime
from edge_agent.runtimes.torch_tensors import decode_tensor
from tests.edge_agent.plan.make_versions import VERSIONS, Example, example_of, kept

FAMILIES = sorted({path.parent.relative_to(VERSIONS) for path in kept()})

TOLERANCES = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
}
"""How far another processor, or another version of torch, may be from what was kept; of other dtypes, not at all."""

SIGNS = {
    "aten._linalg_eigh.default",
    "aten.linalg_eigh.default",
    "aten._linalg_svd.default",
    "aten.linalg_svd.default",
    "aten.linalg_qr.default",
}
"""Ops with results of which a mathematician would accept either sign."""


UNTRANSLATED = {"spectral"}
"""Families that onnx has nothing for."""


def loaded(path: Path) -> tuple[PlanBundle, CheckedPlan, Example]:
    """A file, checked."""
    bundle = PlanBundle.load(path)
    return bundle, bundle.verify(), example_of(bundle)


def _paired(tensor: torch.Tensor) -> torch.Tensor:
    """A complex number as a translated graph has it: two real ones."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _unpaired(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    whole = torch.view_as_complex(tensor.contiguous()) if like.is_complex() else tensor
    return whole.to(like.dtype)


def assert_close(path: Path, found: list[torch.Tensor], example: Example, slack: float = 1.0) -> None:
    """Results are what was kept."""
    wanted = [decode_tensor(frame) for frame in example.results]
    assert len(found) == len(wanted)
    for own, other in zip(found, wanted, strict=True):
        tolerance = slack * TOLERANCES.get(other.dtype, 0.0)
        bare = path.stem in SIGNS and other.dtype.is_floating_point
        torch.testing.assert_close(
            own.abs() if bare else own,
            other.abs() if bare else other,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda told: f"{path.name}: {told}",
        )


def run(checked: CheckedPlan, bundle: PlanBundle, example: Example) -> list[torch.Tensor]:
    """What torch gives for it now."""
    state = [decode_tensor(bundle.state[digest]) for digest in bundle.manifest.state]
    shapes = [(header.dtype, header.shape) for header in map(inspect, example.arguments)]
    arguments = [decode_tensor(frame) for frame in example.arguments]
    sizes = bind_sizes(checked.graph, shapes)
    return TorchRuntime().load(checked, state).run(arguments, sizes, seed=example.seed)


@pytest.mark.parametrize("folder", FAMILIES, ids=str)
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_every_plan_that_was_kept_runs_as_it_did(folder: Path) -> None:
    """Of every kind of op, and whole plans: read, checked, run by torch."""
    for path in sorted((VERSIONS / folder).glob("*.plan")):
        bundle, checked, example = loaded(path)
        assert_close(path, run(checked, bundle, example), example)


@pytest.mark.parametrize("folder", FAMILIES, ids=str)
def test_what_can_be_translated_runs_on_onnx(folder: Path) -> None:
    """The graphs that were kept are translated anew, and give the same."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    paths = sorted((VERSIONS / folder).glob("*.plan"))
    ran = 0
    for path in paths:
        bundle, checked, example = loaded(path)
        if any(one.kind == "random" for one in checked.graph.inputs):
            continue  # its runtime draws the numbers: see tests/edge_agent/runtimes
        try:
            session = ort.InferenceSession(translate(checked.checked), options, providers=["CPUExecutionProvider"])
        except TranslationUnsupported:
            continue
        frames = [*example.arguments, *(bundle.state[digest] for digest in bundle.manifest.state)]
        taken = {one.name for one in session.get_inputs()}
        feed = {f"x{k}": _plain(_paired(decode_tensor(frame))) for k, frame in enumerate(frames) if f"x{k}" in taken}
        wanted = [decode_tensor(frame) for frame in example.results]
        results = session.run(None, feed)
        found = [_unpaired(torch.from_numpy(np.array(one)), other) for one, other in zip(results, wanted, strict=True)]
        assert_close(path, found, example, slack=20.0)
        ran += 1
    assert ran > len(paths) // 3 or folder.name in UNTRANSLATED


def _plain(tensor: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor.contiguous()).numpy()
    return found


def test_there_is_a_file_for_every_kind_of_op() -> None:
    """One that is new needs one: run ``python -m tests.edge_agent.plan.make_versions``, which adds what is missing."""
    names = {path.stem for path in kept()}
    assert set(REGISTRY) - names == set()


def test_a_plan_file_of_a_version_before_is_called_as_any_other() -> None:
    """`Plan.load`: its name, its arguments by name, where its ops came from, its state."""
    path = VERSIONS / "v1" / "captured" / "sizes.plan"
    plan = Plan.load(path)
    x, y = (decode_tensor(frame) for frame in example_of(PlanBundle.load(path)).arguments)
    given = plan(x, y=y)
    assert sorted(given) == ["half", "joined", "mean"]
    torch.testing.assert_close(given["joined"], torch.cat([x, y]))
    lines = [line for line in plan.source_table if line is not None]
    assert {line.file for line in lines} == {"version_plans.py"}
    assert "half = x.reshape(x.shape[0] // 2, 2, x.shape[1]).sum(1)" in {line.text for line in lines}
    network = Plan.load(VERSIONS / "v1" / "captured" / "network.plan")
    assert len(network.state.read()) == 8
    assert msgspec.msgpack.encode(network.source_table)
