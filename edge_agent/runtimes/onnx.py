"""The onnx runtime: a plan's variant to a callable on numpy arrays. No torch.

`OnnxRuntime.model` reads a variant, `OnnxModel.load` makes a plan of it with a state. State is fed to the model as
arguments are; but weights of int8 are its constants, since onnxruntime packs only constants for its integer products
(fed with them, it packs them again in each run, which takes many times as long as the product). So each plan of such
a variant has a session of its own, made from the same model.

A tensor here is a numpy array, or, for bfloat16, which numpy does not have, `Bfloat16`: its bits. In the model's
own inputs and outputs a bfloat16 is a float32, which holds every one of its values, and a complex tensor a real one,
with a last dim of two.
"""

from __future__ import annotations

import ctypes
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
from edge_agent.plan.nesting import all_ops
from edge_agent.plan.quantised import axes_of, decode_quantised, quantised
from edge_agent.plan.readable import step_text
from edge_agent.plan.variants import TOLERANCES, Golden, Variant, compare, decode_variant, golden_inputs
from edge_agent.runtimes.lookout import Lookout
from edge_agent.runtimes.random import drawn

__all__ = ["Array", "Bfloat16", "OnnxModel", "OnnxPlan", "OnnxRuntime", "complex_of", "narrowed", "widened"]

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
        bits = np.ascontiguousarray(array).view(np.uint32) >> np.uint32(16)
        return Bfloat16(bits.astype(np.uint16).reshape(array.shape))  # numpy makes a vector of what has no dims
    return complex_of(array, dtype)


def complex_of(array: np.ndarray, dtype: str) -> np.ndarray:
    """A result of the model with its last dim as the parts of complex numbers, where it is of them."""
    if not dtype.startswith("complex"):
        return array
    return np.ascontiguousarray(array).view(dtype).reshape(array.shape[:-1])


def _is_widened(dtype: str) -> bool:
    """Whether tensors of a dtype are others in the model: see `widened`."""
    return dtype == "bfloat16" or dtype.startswith("complex")


class OnnxPlan:
    """A variant with a state, ready to run, as often as wanted. ``state``: what is fed to the model, by its inputs'
    names; ``constants``: what the session was opened over, and has not copied.

    ``between_ops``, if set, is called before each run. ``while_running``, if set, is called on another thread, now and
    then while one takes long. What either raises ends the run, unchanged: before the next op, where it is under way.
    """

    def __init__(
        self, model: OnnxModel, session: Any, state: Mapping[str, Array], constants: Mapping[str, np.ndarray]
    ) -> None:
        self.between_ops: Callable[[int], None] | None = None
        self.while_running: Callable[[], object] | None = None
        graph = model.graph
        self._model = model
        self._session = session
        self._constants = constants
        taken = {one.name for one in session.get_inputs()}
        names = [f"x{k}" for k in range(len(graph.inputs))]
        user, draws = len(graph.given), len(names) - len(graph.drawn)
        if not taken <= {*names[:user], *state, *names[draws:]}:
            raise PlanMalformed("expected a model whose inputs are those of the graph, got others")
        self._taken = taken
        self._user = [(k, name) for k, name in enumerate(names[:user]) if name in taken]
        self._wide = [name for k, name in self._user if _is_widened(graph.given[k].dtype)]
        self._narrow = [(k, dtype) for k, dtype in enumerate(model.dtypes) if _is_widened(dtype)]
        self._state = {name: widened(one) for name, one in state.items() if name in taken}
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
        feed: dict[str, Any] = {name: user_inputs[k] for k, name in self._user}
        for name in self._wide:
            feed[name] = widened(feed[name])
        for name, one in self._draws:
            feed[name] = drawn(one, sizes, seed, step)
        feed.update(self._state)
        look = self.while_running
        results: list[Any] = self._run(feed) if look is None else self._run_watched(feed, look)
        for k, dtype in self._narrow:
            results[k] = narrowed(results[k], dtype)
        return results

    def run_on(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The model's outputs for inputs that are made up, by name; what it does not take is left out. Raises
        `OpFailed`.
        """
        return self._run({name: array for name, array in inputs.items() if name in self._taken} | self._state)

    def _run(self, feed: Mapping[str, np.ndarray], options: ort.RunOptions | None = None) -> list[np.ndarray]:
        try:
            results: list[np.ndarray] = self._session.run(self._outputs, feed, options)
        except Exception as error:
            raise self._failed(error) from error
        return results

    def _run_watched(self, feed: Mapping[str, np.ndarray], look: Callable[[], object]) -> list[np.ndarray]:
        options = ort.RunOptions()  # of its own: what is set in it is for this run alone
        with self._model.lookout.over(options, look) as watched:
            try:
                return self._run(feed, options)
            except OpFailed:
                if watched.reason is not None:
                    raise watched.reason from None
                raise

    def _failed(self, error: Exception) -> OpFailed:
        graph = self._model.graph
        message = str(error)
        found = _NODE.findall(message)  # inside a loop, its own comes first
        number = int(found[-1]) if found else -1
        place = next(itertools.islice(all_ops(graph), number, None), None) if found else None
        if place is None:
            return OpFailed("the plan", -1, type(error).__name__, message)
        own, index = place
        failed = OpFailed(own.ops[index].name, number, type(error).__name__, message)
        failed.add_note(f"while running {step_text(graph, number)}")
        return failed

    def prove(self) -> float:
        """As `OnnxModel.prove`."""
        return self._model.prove()


class OnnxModel:
    """A variant of a checked plan's graph, without a state. ``dtypes``: those of its results. ``lookout``: who looks
    after runs that take long.
    """

    def __init__(self, checked: CheckedPlan, variant: Variant, threads: int, lookout: Lookout) -> None:
        self.graph: Graph = checked.graph
        self.lookout = lookout
        self.dtypes = [one.dtype for one in checked.checked.output_types]
        self._variant = variant
        self._threads = threads
        self._content = variant.content
        self._axes: Mapping[int, int] = {}
        self._allowed = TOLERANCES[variant.precision]
        if variant.precision == "int8":
            model = decode_quantised(variant.content)
            self._content, self._axes = model.model, axes_of(model, self.graph)
            self._allowed = {dtype: max(least, model.tolerance) for dtype, least in self._allowed.items()}
        self._shared: Any = None  # the session, where all state is fed to it

    def load(self, state: Sequence[Array]) -> OnnxPlan:
        """With a state: that of the plan, or what `edge_agent.plan.quantised.PackedState` names in its place.

        Raises `VariantRefused` for what onnxruntime does not load and for weights that can't be rounded,
        `PlanMalformed` for a state of other tensors.
        """
        fed, constants = self._split(state)
        if self._axes:
            session = self._open(constants)
            _give_back()
        else:
            session = self._shared = self._shared or self._open({})
        return OnnxPlan(self, session, fed, constants)

    def answer(self, golden: Golden) -> list[tuple[str, np.ndarray]]:
        """The dtypes and results of a golden run. Raises `VariantRefused` where it does not run."""
        made = golden_inputs(self.graph, golden.sizes, golden.seed, golden.fill)
        user, draws = len(self.graph.given), len(made) - len(self.graph.drawn)
        plan = self.load([array for _, array in made[user:draws]])
        others = {f"x{k}": widened(array) for k, (_, array) in enumerate(made) if not user <= k < draws}
        try:
            results = plan.run_on(others)
        except OpFailed as error:
            raise VariantRefused(f"it does not run here: {error}") from error
        return [(dtype, complex_of(array, dtype)) for dtype, array in zip(self.dtypes, results, strict=True)]

    def prove(self) -> float:
        """Run the goldens: the largest difference to them. Raises `VariantRefused` where it is too large, or where
        the model does not run.
        """
        if not self._variant.goldens:
            raise VariantRefused("it has no golden outputs to be compared with")
        return max(compare(golden, self.answer(golden), self._allowed) for golden in self._variant.goldens)

    def _split(self, state: Sequence[Array]) -> tuple[dict[str, Array], dict[str, np.ndarray]]:
        """State as what is fed to the model, and what is its constants; rounded here, where it comes as it is."""
        first = len(self.graph.given)
        names = [f"x{first + k}" for k, one in enumerate(self.graph.inputs[first:]) if one.kind == "state"]
        if len(state) not in (len(names), len(names) + len(self._axes)):
            raise PlanMalformed(f"expected {len(names)} tensors of state, got {len(state)}")
        fed = dict(zip(names, state, strict=False))
        constants: dict[str, np.ndarray] = {}
        for k, (place, axis) in enumerate(self._axes.items()):
            name = f"x{place}"
            weight = fed.pop(name)
            if len(state) == len(names):
                ints, scale = self._rounded(place, axis, weight)
            else:
                ints, scale = self._packed(place, axis, weight, state[len(names) + k])
            constants[name], constants[f"{name}.scale"] = ints, scale
        return fed, constants

    def _rounded(self, place: int, axis: int, weight: Array) -> tuple[np.ndarray, np.ndarray]:
        assert not isinstance(weight, Bfloat16)
        try:
            return quantised(weight, axis)
        except ValueError as error:
            raise VariantRefused(f"{self.graph.inputs[place].name} can't be rounded to int8: {error}") from error

    def _packed(self, place: int, axis: int, ints: Array, scale: Array) -> tuple[np.ndarray, np.ndarray]:
        shape = tuple(self.graph.inputs[place].shape)
        for tensor, dtype, expected in ((ints, "uint8", shape), (scale, "float32", shape[axis : axis + 1])):
            if isinstance(tensor, Bfloat16) or tensor.dtype != dtype or tensor.shape != expected:
                got = "bfloat16" if isinstance(tensor, Bfloat16) else tensor.dtype
                raise PlanMalformed(
                    f"expected {dtype}{list(expected)} for {self.graph.inputs[place].name}, rounded to int8, "
                    f"got {got}{list(tensor.shape)}"
                )
        assert not isinstance(ints, Bfloat16)
        assert not isinstance(scale, Bfloat16)
        return ints, scale.copy()  # in a frame its elements may lie at odd addresses

    def _open(self, constants: Mapping[str, np.ndarray]) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # memory comes back after a run: a device has other things to do with it
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        if constants:
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
            options.add_external_initializers(list(constants), values)
        try:
            return ort.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise VariantRefused(f"onnxruntime does not load it: {type(error).__name__}: {error}") from error


class OnnxRuntime:
    """Loads variants for onnxruntime on the CPU. ``threads``: how many a plan may use."""

    name = "onnx"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._lookout = Lookout()

    def model(self, checked: CheckedPlan, variant: bytes) -> OnnxModel:
        """The model of a plan's variant. Raises `VariantRefused` for one of another graph, `PlanMalformed` for bytes
        that are none.
        """
        decoded = decode_variant(variant)
        if decoded.graph != checked.manifest.graph:
            raise VariantRefused(
                f"it was made from the graph {decoded.graph.hex()[:16]}, and the plan has "
                f"{checked.manifest.graph.hex()[:16]}"
            )
        if decoded.runtime != self.name:
            raise VariantRefused(f"it is for the runtime {decoded.runtime[:32]!r}, and this is {self.name}")
        return OnnxModel(checked, decoded, self._threads, self._lookout)

    def load(self, checked: CheckedPlan, state: Sequence[Array], variant: bytes) -> OnnxPlan:
        """A plan, by its variant, with its state. Raises as `model` and `OnnxModel.load`."""
        return self.model(checked, variant).load(state)


def _give_back() -> None:
    """Give memory back to the system that was needed only while weights were packed: glibc would keep most of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
