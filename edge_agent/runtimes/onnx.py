"""The onnx runtime: a plan's variant to a callable on numpy arrays. No torch.

A tensor here is a numpy array, or, for bfloat16, which numpy does not have, `Bfloat16`: its bits. In the model's
own inputs and outputs a bfloat16 is a float32, which holds every one of its values, and a complex tensor a real one,
with a last dim of two.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from edge_agent.plan.checker import CheckedPlan
from edge_agent.plan.errors import OpFailed, PlanMalformed, VariantRefused
from edge_agent.plan.format import Graph
from edge_agent.plan.nesting import all_ops, has_loops
from edge_agent.plan.readable import step_text
from edge_agent.plan.variants import Variant, compare, decode_variant, golden_inputs
from edge_agent.runtimes.random import drawn
from edge_agent.runtimes.watch import Watch, Watched

__all__ = ["Array", "Bfloat16", "OnnxPlan", "OnnxRuntime", "complex_of", "narrowed", "widened"]

_NODE = re.compile(r"Name:'op(\d+)")


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """A bfloat16 tensor: the bits, as uint16."""

    bits: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape


Array: TypeAlias = np.ndarray | Bfloat16


def widened(value: Array) -> np.ndarray:
    """A tensor as the model takes it."""
    if isinstance(value, Bfloat16):
        return (value.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if value.dtype.kind == "c":
        parts = np.ascontiguousarray(value).reshape(*value.shape, 1)
        return parts.view(np.float32 if value.dtype == np.complex64 else np.float64)
    return value


def narrowed(array: np.ndarray, dtype: str) -> Array:
    """A result of the model as a tensor of its dtype."""
    if dtype == "bfloat16":
        return Bfloat16((np.ascontiguousarray(array).view(np.uint32) >> np.uint32(16)).astype(np.uint16))
    return complex_of(array, dtype)


def complex_of(array: np.ndarray, dtype: str) -> np.ndarray:
    """A result of the model with its last dim as the parts of complex numbers, where it is of them."""
    if not dtype.startswith("complex"):
        return array
    return np.ascontiguousarray(array).view(dtype).reshape(array.shape[:-1])


class OnnxPlan:
    """A variant with the plan's state, ready to run, as often as wanted.

    ``between_ops``, if set, is called before each run; and, where the plan has a loop that runs as often as its data
    say, now and then in it, on another thread, while this one waits (`edge_agent.runtimes.watch`). What it raises ends
    the run, unchanged.
    """

    def __init__(self, graph: Graph, variant: Variant, session: Any, state: Sequence[Array], dtypes: Sequence[str]):
        self.between_ops: Callable[[int], None] | None = None
        self._graph = graph
        self._watch = Watch() if has_loops(graph) else None
        self._variant = variant
        self._session = session
        self._dtypes = dtypes
        taken = {one.name for one in session.get_inputs()}
        names = [f"x{k}" for k in range(len(graph.inputs))]
        if not taken <= set(names):
            raise PlanMalformed("expected a model whose inputs are those of the graph, got others")
        user, draws = len(graph.given), len(names) - len(graph.drawn)
        self._user = [(k, name, graph.inputs[k].dtype) for k, name in enumerate(names[:user]) if name in taken]
        self._state = {name: widened(one) for name, one in zip(names[user:draws], state, strict=True) if name in taken}
        drawn_names = zip(names[draws:], graph.drawn, strict=True)
        self._draws = [(name, one) for name, one in drawn_names if name in taken]
        self._outputs = [f"y{k}" for k in range(len(graph.outputs))]
        if [one.name for one in session.get_outputs()] != self._outputs:
            raise PlanMalformed("expected a model whose outputs are those of the graph, got others")

    def run(
        self, user_inputs: Sequence[Array], sizes: Mapping[str, int], *, seed: int = 0, step: int = 0
    ) -> list[Array]:
        """The plan's outputs, one a leaf of its output tree. ``seed`` and ``step`` decide what is drawn, of shapes that
        ``sizes`` give; the model takes sizes from shapes itself. Raises `OpFailed`, or `ConditionFailed` for a size
        that is not one.
        """
        if self.between_ops is not None:
            self.between_ops(0)
        feed = {name: widened(user_inputs[k]) for k, name, _ in self._user}
        feed.update(self._state)
        for name, one in self._draws:
            feed[name] = drawn(one, sizes, seed, step)
        results = self._run(feed) if self.between_ops is None or self._watch is None else self._run_watched(feed)
        return [narrowed(array, dtype) for array, dtype in zip(results, self._dtypes, strict=True)]

    def _run(self, feed: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        try:
            results: list[np.ndarray] = self._session.run(self._outputs, feed, options)
        except Exception as error:
            raise self._failed(error) from error
        return results

    def _run_watched(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        assert self.between_ops is not None  # nobody else has it watched
        assert self._watch is not None
        watched = Watched(self.between_ops, ort.RunOptions())
        self._watch.begin(watched)
        try:
            return self._run(feed, watched.options)
        except OpFailed:
            if watched.error is not None:
                raise watched.error from None
            raise
        finally:
            watched.end()

    def _failed(self, error: Exception) -> OpFailed:
        message = str(error)
        found = _NODE.findall(message)  # inside a loop, its own comes first
        number = int(found[-1]) if found else -1
        place = next(itertools.islice(all_ops(self._graph), number, None), None) if found else None
        if place is None:
            return OpFailed("the plan", -1, type(error).__name__, message)
        own, index = place
        failed = OpFailed(own.ops[index].name, number, type(error).__name__, message)
        failed.add_note(f"while running {step_text(self._graph, number)}")
        return failed

    def prove(self) -> float:
        """Run the goldens: the largest difference to them. Raises `VariantRefused` where it is too large, or where
        the model does not run.
        """
        if not self._variant.goldens:
            raise VariantRefused("it has no golden outputs to be compared with")
        worst = 0.0
        for golden in self._variant.goldens:
            made = golden_inputs(self._graph, golden.sizes, golden.seed, golden.fill)
            taken = {one.name for one in self._session.get_inputs()}
            feed = {f"x{k}": widened(array) for k, (_, array) in enumerate(made) if f"x{k}" in taken}
            try:
                results = self._run(feed)
            except OpFailed as error:
                raise VariantRefused(f"it does not run here: {error}") from error
            typed = [(dtype, complex_of(array, dtype)) for dtype, array in zip(self._dtypes, results, strict=True)]
            worst = max(worst, compare(golden, typed, self._variant.precision))
        return worst


class OnnxRuntime:
    """Loads variants for onnxruntime on the CPU. ``threads``: how many a plan may use."""

    name = "onnx"

    def __init__(self, threads: int = 1) -> None:
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.log_severity_level = 4
        # memory comes back after a run: a device has other things to do with it
        self._options.enable_cpu_mem_arena = False
        self._options.enable_mem_pattern = False

    def load(self, checked: CheckedPlan, state: Sequence[Array], variant: bytes) -> OnnxPlan:
        """A plan, by its variant. Raises `VariantRefused` for one of another graph or that does not load,
        `PlanMalformed` for bytes that are none.
        """
        decoded = decode_variant(variant)
        if decoded.graph != checked.manifest.graph:
            raise VariantRefused(
                f"it was made from the graph {decoded.graph.hex()[:16]}, and the plan has "
                f"{checked.manifest.graph.hex()[:16]}"
            )
        if decoded.runtime != self.name:
            raise VariantRefused(f"it is for the runtime {decoded.runtime[:32]!r}, and this is {self.name}")
        try:
            session = ort.InferenceSession(decoded.content, self._options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise VariantRefused(f"onnxruntime does not load it: {type(error).__name__}: {error}") from error
        dtypes = [one.dtype for one in checked.checked.output_types]
        return OnnxPlan(checked.graph, decoded, session, state, dtypes)
