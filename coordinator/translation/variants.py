"""Makes variants: translates a graph, runs it beside torch at two sizes, and packs it with what proves it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from coordinator.capture.patience import Patience
from coordinator.errors import LoopEndless, SourceLine
from coordinator.translation.errors import TranslationUnsupported, VariantUnsound
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedGraph, CheckedPlan, check_graph
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed, OpFailed, VariantRefused
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import FORMAT_VERSION, Graph, Manifest, digest_of, encode_graph
from edge_agent.plan.nesting import has_loops
from edge_agent.plan.variants import (
    FILLS,
    PRECISIONS,
    VARIANT_VERSION,
    Golden,
    Variant,
    encode_variant,
    golden_inputs,
    golden_output,
)
from edge_agent.runtimes.torch import TorchRuntime
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES

__all__ = ["make_variant", "prove"]

_SIZES = (3, 2, 5, 4, 8, 7, 6, 16, 12, 9, 32, 10, 24, 28, 64, 1, 100, 128, 224, 256)
_TRIES = 4000
_SEED = 20_261_122


def make_variant(graph: Graph, lines: Sequence[SourceLine | None] = (), precision: str = "") -> bytes:
    """The onnx variant of a graph: a blob for devices without torch, which has given what torch gives, here, at two
    sizes.

    Raises `TranslationUnsupported`, `VariantUnsound`, ValueError for a precision that there is not.
    """
    if precision not in PRECISIONS:
        named = ", ".join(repr(one) for one in PRECISIONS)
        raise ValueError(f"expected a variant of {named}, got {precision!r}")
    try:
        from coordinator.translation.graphs import translate
        from edge_agent.runtimes import onnx as _runtime  # noqa: F401 - it is needed below
    except ImportError as error:
        raise TranslationUnsupported(
            f"{error.name} is not installed here; install it with: pip install 'edgeplan[translation]'"
        ) from error
    checked = check_graph(graph)
    content = translate(checked, lines, precision)
    variant = Variant(
        version=VARIANT_VERSION,
        runtime="onnx",
        graph=digest_of(encode_graph(graph)),
        precision=precision,
        content=content,
        goldens=list(_goldens(checked)),
    )
    data = encode_variant(variant)
    try:
        prove(checked, data)
    except VariantRefused as error:
        if error.error is None or error.tolerance is None or error.output is None:
            raise TranslationUnsupported(f"onnxruntime does not run it: {error.reason}") from error
        raise VariantUnsound(error.output, error.error, error.tolerance) from error
    return data


def prove(checked: CheckedGraph, variant: bytes) -> float:
    """Run a variant's goldens here, as a device does: the largest difference. Raises `VariantRefused`."""
    from edge_agent.runtimes.onnx import OnnxRuntime

    state = [one for one in checked.graph.inputs if one.kind == "state"]
    empty: list[Any] = [np.empty(0)] * len(state)  # goldens bring a state of their own
    return OnnxRuntime().load(_plan(checked), empty, variant).prove()


def _plan(checked: CheckedGraph) -> CheckedPlan:
    graph = digest_of(encode_graph(checked.graph))
    return CheckedPlan(Manifest(version=FORMAT_VERSION, graph=graph, outputs=checked.output_types), checked)


# ------------------------------------------------------------------------------------------------ goldens


def _goldens(checked: CheckedGraph) -> Iterator[Golden]:
    """Two golden runs, of different sizes where sizes may differ."""
    made = 0
    for number, sizes in enumerate(_sizes(checked.graph)):
        golden = _golden(checked, sizes, _SEED + number)
        if golden is not None:
            yield golden
            made += 1
            if made == 2:
                return
    if not made:
        raise TranslationUnsupported("no arguments were found with which torch runs it, to compare the results")


def _golden(checked: CheckedGraph, sizes: Mapping[str, int], seed: int) -> Golden | None:
    best: tuple[float, str, list[torch.Tensor]] | None = None
    for fill in FILLS:
        results = _run(checked, sizes, seed, fill)
        if results is None:
            continue
        strange = _strange(results)
        if best is None or strange < best[0]:
            best = strange, fill, results
        if not strange:
            break
    if best is None:
        return None
    outputs = [golden_output(DTYPE_NAMES[one.dtype], _plain(one)) for one in best[2]]
    return Golden(sizes=dict(sizes), seed=seed, fill=best[1], outputs=outputs)


def _run(checked: CheckedGraph, sizes: Mapping[str, int], seed: int, fill: str) -> list[torch.Tensor] | None:
    """What torch gives; None: it refuses such arguments, or a loop does not end with them."""
    tensors = [
        torch.from_numpy(array).to(TORCH_DTYPES[dtype])
        for dtype, array in golden_inputs(checked.graph, sizes, seed, fill)
    ]
    user = len(checked.graph.given)
    state = tensors[user : len(tensors) - len(checked.graph.drawn)]
    loaded = TorchRuntime().load(_plan(checked), state)
    if has_loops(checked.graph):
        patience = Patience()
        loaded.between_ops = lambda _: patience.spend()
    try:
        return loaded.run(tensors[:user], sizes, seed=seed)
    except (OpFailed, ConditionFailed, LoopEndless):
        return None


def _strange(results: Sequence[torch.Tensor]) -> float:
    """Which part of the results is no number: the less the better, to be compared."""
    floats = [one for one in results if one.is_floating_point() and one.numel()]
    return sum(1.0 - float(torch.isfinite(one).double().mean()) for one in floats)


def _plain(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    array: np.ndarray = tensor.contiguous().resolve_conj().resolve_neg().numpy()
    return array


def _sizes(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes for which the plan was made, each symbol's different in every one if possible; the same, where there is
    but one.
    """
    names = [symbol.name for symbol in graph.symbols]
    if not names:
        yield {}
        yield {}
        return
    choices = []
    for place, symbol in enumerate(graph.symbols):
        low, high = symbol.low, symbol.high
        near = [low + step for step in (0, 1, 2)]
        fitting = [size for size in (*_SIZES, *near) if size >= max(low, 1) and (high is None or size <= high)]
        turned = fitting[place % max(len(fitting), 1) :] + fitting[: place % max(len(fitting), 1)]
        choices.append(list(dict.fromkeys(turned)) or [low])
    used: list[dict[str, int]] = []
    for _ in range(4):
        for picked in itertools.islice(itertools.product(*choices), _TRIES):
            sizes = dict(zip(names, picked, strict=True))
            if any(sizes[name] == one[name] for one in used for name in names) or not _fits(graph, sizes):
                continue
            used.append(sizes)
            yield sizes
            break
    if len(used) < 2:
        for picked in itertools.islice(itertools.product(*choices), _TRIES):
            sizes = dict(zip(names, picked, strict=True))
            if sizes not in used and _fits(graph, sizes):
                yield sizes


def _fits(graph: Graph, sizes: Mapping[str, int]) -> bool:
    try:
        shapes = [(one.dtype, [int(evaluate(dim, sizes)) for dim in one.shape]) for one in graph.given]
        return bind_sizes(graph, shapes) == dict(sizes)
    except (ArgumentMismatch, ConditionFailed, KeyError):
        return False
