"""Makes variants: translates a graph, runs it beside torch at two sizes, and packs it with what proves it.

A variant of int8 is not compared with the plan's graph, from which it may lie far, but with `rounded_graph`, which has
the same roundings as ops: so a wrong kernel stands out, however deep the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch

from coordinator.capture.patience import Patience
from coordinator.errors import LoopEndless, SourceLine
from coordinator.translation.errors import TranslationUnsupported, VariantUnsound
from coordinator.translation.quantised import rounded_weights
from coordinator.translation.rounded_graphs import rounded_graph, rounded_inputs
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedGraph, CheckedPlan, check_graph
from edge_agent.plan.dtypes import FLOATING
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed, OpFailed, VariantRefused
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import FORMAT_VERSION, Graph, Manifest, digest_of, encode_graph
from edge_agent.plan.nesting import has_loops
from edge_agent.plan.quantised import MOST_TOLERANCE, decode_quantised, encode_quantised
from edge_agent.plan.variants import (
    FILLS,
    PRECISIONS,
    VARIANT_VERSION,
    Golden,
    Variant,
    compare,
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

_SHIFT = 2.0**-20
"""Eight last bits of float32: what two right runtimes may differ by before a variant of int8 rounds."""

_MOVED = 3.0
"""How much further than results under such a shift those of a right runtime may lie."""

_SETTLING = 8
"""With how many seeds a golden run of a variant of int8 is tried."""

_ANY = dict.fromkeys(FLOATING, math.inf)


def make_variant(graph: Graph, lines: Sequence[SourceLine | None] = (), precision: str = "") -> bytes:
    """The onnx variant of a graph: a blob for devices without torch, which has given what torch gives, here, at two
    sizes.

    Raises `TranslationUnsupported`, `VariantUnsound`, `NothingToQuantise` for int8, ValueError for a precision that
    there is not.
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
    if precision == "int8":
        content, goldens = _settled(checked, content)
    else:
        goldens = list(_goldens(_Reference(checked)))
    variant = Variant(
        version=VARIANT_VERSION,
        runtime="onnx",
        graph=digest_of(encode_graph(graph)),
        precision=precision,
        content=content,
        goldens=goldens,
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

    return OnnxRuntime().model(_plan(checked), variant).prove()


def _plan(checked: CheckedGraph) -> CheckedPlan:
    graph = digest_of(encode_graph(checked.graph))
    return CheckedPlan(Manifest(version=FORMAT_VERSION, graph=graph, outputs=checked.output_types), checked)


# ------------------------------------------------------------------------------------------------ goldens


@dataclass(frozen=True)
class _Reference:
    """What a variant has to give: a graph that torch runs, and which weights are rounded before."""

    checked: CheckedGraph
    axes: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def rounded(cls, checked: CheckedGraph, shift: float = 0.0) -> _Reference:
        """For the variant of int8 of a graph, see `rounded_graph`."""
        rounded = rounded_weights(checked)
        return cls(check_graph(rounded_graph(checked.graph, rounded, shift)), rounded.axes)

    def run(self, sizes: Mapping[str, int], seed: int, fill: str) -> list[torch.Tensor] | None:
        """What torch gives; None: it refuses such arguments, or a loop does not end with them."""
        graph = self.checked.graph
        inputs = rounded_inputs(golden_inputs(graph, sizes, seed, fill), self.axes)
        tensors = [torch.from_numpy(array).to(TORCH_DTYPES[dtype]) for dtype, array in inputs]
        user = len(graph.given)
        state = tensors[user : len(tensors) - len(graph.drawn)]
        loaded = TorchRuntime().load(_plan(self.checked), state)
        if has_loops(graph):
            patience = Patience()
            loaded.between_ops = lambda _: patience.spend()
        try:
            return loaded.run(tensors[:user], sizes, seed=seed)
        except (OpFailed, ConditionFailed, LoopEndless):
            return None


def _settled(checked: CheckedGraph, content: bytes) -> tuple[bytes, list[Golden]]:
    """The content of a variant of int8 with its tolerance, and golden runs whose integers (the place of the largest of
    some scores, say) do not hang on the last bits.
    """
    reference = _Reference.rounded(checked)
    others = [_Reference.rounded(checked, shift) for shift in (_SHIFT, -_SHIFT)]
    moved = 0.0
    goldens = []
    for golden in _goldens(reference):
        for attempt in range(_SETTLING):
            tried = golden if not attempt else _golden(reference, golden.sizes, golden.seed + 1000 * attempt)
            apart = None if tried is None else _apart(tried, others)
            if tried is not None and apart is not None:
                goldens.append(tried)
                moved = max(moved, apart)
                break
    if not goldens:
        raise TranslationUnsupported("its integer results hang on the last bits of float32, whatever the arguments")
    model = decode_quantised(content)
    tolerance = min(_MOVED * moved, MOST_TOLERANCE)
    return encode_quantised(msgspec.structs.replace(model, tolerance=tolerance)), goldens


def _apart(golden: Golden, others: Sequence[_Reference]) -> float | None:
    """How far other references lie from a golden run; None: they have other integers, or none of torch's results."""
    worst = 0.0
    for other in others:
        results = other.run(golden.sizes, golden.seed, golden.fill)
        if results is None:
            return None
        try:
            worst = max(worst, compare(golden, [(DTYPE_NAMES[one.dtype], _plain(one)) for one in results], _ANY))
        except VariantRefused:
            return None
    return worst


def _goldens(reference: _Reference) -> Iterator[Golden]:
    """Two golden runs, of different sizes where sizes may differ."""
    made = 0
    for number, sizes in enumerate(_sizes(reference.checked.graph)):
        golden = _golden(reference, sizes, _SEED + number)
        if golden is not None:
            yield golden
            made += 1
            if made == 2:
                return
    if not made:
        raise TranslationUnsupported("no arguments were found with which torch runs it, to compare the results")


def _golden(reference: _Reference, sizes: Mapping[str, int], seed: int) -> Golden | None:
    best: tuple[float, str, list[torch.Tensor]] | None = None
    for fill in FILLS:
        results = reference.run(sizes, seed, fill)
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
