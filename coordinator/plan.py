"""Plans: torch modules that devices run. `Plan` is the base of all; `coordinator.function_plan` makes one of a
function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from torch import nn

from broker.protocol.tensors import inspect as inspect_tensor
from coordinator.capture.arguments import arguments_from_example, arguments_from_shapes
from coordinator.capture.building import Captured, capture, named_tensor
from coordinator.capture.graphs import StateSource
from coordinator.capture.tracing import Target
from coordinator.errors import PlanNotBuilt, PlanStale, ProtectedName, SourceLine
from coordinator.plan_files import parted, with_methods
from coordinator.plan_looks import Looks, Place, looks_of, places_of
from coordinator.plan_state import PlanState
from coordinator.signature import Signature
from coordinator.variants import Packed, packed_state, variant_name, variant_of
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.checker import check_graph, check_plan
from edge_agent.plan.cost import Cost, CostModel, cost_of
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.format import Graph, Manifest, TensorType, Tree, digest_of, encode_graph, version_of
from edge_agent.plan.readable import readable
from edge_agent.runtimes.torch import LoadedPlan, TorchRuntime
from edge_agent.runtimes.torch_tensors import decode_tensor, encode_tensor

if TYPE_CHECKING:
    from coordinator.drawing import Drawing

__all__ = ["Plan", "StoredPlan"]

_PROTECTED = frozenset(
    {
        "bind",
        "build",
        "build_method",
        "bundle",
        "cost",
        "costs",
        "graph",
        "id",
        "is_built",
        "draw",
        "load",
        "methods",
        "name",
        "options",
        "output_tree",
        "output_types",
        "owner",
        "readable_plan",
        "run_plan",
        "save",
        "send",
        "signature",
        "source_table",
        "state",
        "variant",
        "variant_parts",
    }
)
"""Attributes that a plan needs for itself."""

_SEED_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class _Built:
    """What `build` made: the graph, where its state comes from, and what the module looked like."""

    graph: Graph
    graph_bytes: bytes
    outputs: tuple[TensorType, ...]
    state: tuple[StateSource, ...]
    lines: tuple[SourceLine | None, ...]
    signature: Signature
    looks: Looks

    def __deepcopy__(self, _memo: object) -> _Built:
        return self

    def copied(self, memo: Mapping[int, Any]) -> _Built:
        """What was built, for a deep copy of the module, which left this memo."""
        state = tuple(replace(source, tensor=memo.get(id(source.tensor), source.tensor)) for source in self.state)
        return replace(self, state=state, looks=self.looks.copied(memo))


class Plan(nn.Module):
    """A torch module that devices run: subclass it and define ``forward``, `build` it with an example, then `send` it.

    Called, it is the live, differentiable module; `run_plan` runs what was built. A changed weight is sent anew with
    the next `send`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._built: _Built | None = None
        self._frames: dict[str, tuple[bytes, bytes]] = {}
        self._loaded: tuple[bytes, LoadedPlan] | None = None
        self._variants: dict[tuple[bytes, str], bytes] = {}
        self._packed: Packed = {}
        self._methods: dict[str, Plan] = {}

    def __init_subclass__(cls, *, ours: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in () if ours else sorted(_PROTECTED & cls.__dict__.keys()):
            raise ProtectedName(cls.__name__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_name(name)
        super().__setattr__(name, value)

    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        """As torch's."""
        self._check_name(name)
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's."""
        self._check_name(name)
        super().register_parameter(name, param)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As torch's."""
        self._check_name(name)
        super().add_module(name, module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """A plan that is built as this one is, of the copied tensors and modules."""
        make, arguments, state, *_ = cast("tuple[Any, ...]", self.__reduce_ex__(4))
        other: Plan = make(*arguments)
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        if self._built is not None:
            other._built = self._built.copied(memo)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over, also through a pickle: all but what was loaded to run it here, which is done anew."""
        return {**self.__dict__, "_loaded": None}

    def _check_name(self, name: str) -> None:
        if name in _PROTECTED:
            raise ProtectedName(type(self).__name__, name)

    # --------------------------------------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        """The class's name, or the function's."""
        return type(self).__name__

    @property
    def owner(self) -> str:
        """Whose it is: ``me``, since plans are made here and devices have copies."""
        return "me"

    @property
    def is_built(self) -> bool:
        """Whether it can be sent."""
        return self._built is not None

    @property
    def id(self) -> str:
        """The hash that names the plan with its weights as they are now: 64 hex digits, equal in every process that
        builds the same.

        Raises `PlanNotBuilt`.
        """
        self._need("it has an id")
        return self.bundle().plan_id.hex()

    @property
    def state(self) -> PlanState:
        """What the plan carries: of a module, its parameters and buffers."""
        return PlanState.over([*self.parameters(), *self.buffers()])

    @property
    def readable_plan(self) -> str:
        """The ops, one a line, with types. Raises `PlanNotBuilt`."""
        return readable(self._need("it can be read").graph, plan_name=self.name)

    @property
    def costs(self) -> CostModel:
        """What running it costs, as formulas in its sizes. Raises `PlanNotBuilt`."""
        return cost_of(check_graph(self._need("it has a cost").graph))

    def cost(self, **sizes: int) -> Cost:
        """What running it costs where the dims that vary are so large: ``plan.cost(batch=32)``.

        Raises `PlanNotBuilt`, or `ArgumentMismatch` for a size that is missing, unknown or too small: `readable_plan`
        names them.
        """
        return self.costs.at(sizes)

    def draw(self, path: str | PathLike[str] | None = None) -> Drawing:
        """The plan as a picture (SVG), top to bottom, which a notebook shows; written to ``path``, if there is one.

        Raises `PlanNotBuilt`, OSError.
        """
        from coordinator.drawing import draw

        drawing = draw(self._need("it can be drawn").graph, title=self.name)
        if path is not None:
            drawing.save(path)
        return drawing

    def __repr__(self) -> str:
        if not self.__dict__.get("_built"):
            return f"<Plan {self.name} id:- owner:{self.owner} not built>"
        try:
            return f"<Plan {self.name} id:{self.id[:8]} owner:{self.owner} built>"
        except PlanStale:
            return f"<Plan {self.name} id:- owner:{self.owner} changed since it was built>"

    # --------------------------------------------------------------------------------------------- building

    def build(
        self,
        *args: Any,
        args_shape: Sequence[Any] | Mapping[str, Any] | None = None,
        args_dtype: Sequence[Any] | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Plan:
        """Capture what the plan does to such arguments; the plan itself, built.

        ``args_shape`` has an entry an argument (or maps names to them): a shape, with -1 or a name for each dim that
        may vary, nested as the argument is. Without example arguments, it and ``args_dtype`` say all: values are made
        up. Raises `coordinator.errors.PlanBuildError`, which an example that the function does not take is, too.
        """
        target = self._target()
        entry, skip = self._entry()
        if not args and not kwargs and args_shape is not None:
            arguments = arguments_from_shapes(entry, args_shape, args_dtype, skip=skip)
        else:
            arguments = arguments_from_example(
                entry, args, kwargs, args_shape=args_shape, args_dtype=args_dtype, skip=skip
            )
        self._keep(capture(target, arguments, name=self.name))
        return self

    def build_method(self, method: str, *args: Any, **options: Any) -> Plan:
        """Capture another method than ``forward``, as `build` does; the plan itself. It is sent with the plan, and
        called by its name on the pointer plan: ``pointer_net.score(x)``.

        Raises AttributeError where there is no such method, `ProtectedName` for one that a plan has itself.
        """
        from coordinator.methods import MethodPlan

        self._methods[method] = MethodPlan(self, method).build(*args, **options)
        return self

    @property
    def methods(self) -> Mapping[str, Plan]:
        """What `build_method` has built, by name."""
        return dict(self._methods)

    def _target(self) -> Target:
        return Target(self, modules=self._carried())

    def _carried(self) -> Mapping[str, nn.Module]:
        """The modules whose parameters and buffers the plan carries, by the name that these begin with."""
        return {"": self}

    def _entry(self) -> tuple[Callable[..., Any], frozenset[str]]:
        """The function whose parameters are the plan's arguments, and the names among them that are not."""
        return self.forward, frozenset()

    def _keep(self, captured: Captured) -> None:
        self._built = _Built(
            graph=captured.graph,
            graph_bytes=encode_graph(captured.graph),
            outputs=tuple(captured.checked.output_types),
            state=captured.state,
            lines=captured.lines,
            signature=Signature(captured.graph),
            looks=self._looks(places_of(self._carried(), captured.reads)),
        )
        self._frames = {}
        self._loaded = None

    def _need(self, action: str) -> _Built:
        if self._built is None:
            raise PlanNotBuilt(self.name, action)
        return self._built

    def _looks(self, places: tuple[Place, ...]) -> Looks:
        """What must not change between `build` and `send`, for a plan whose code read modules at these places."""
        return looks_of(self._carried(), places)

    def _check_fresh(self, built: _Built) -> None:
        changes = built.looks.changes(self._looks(built.looks.places))
        if changes:
            raise PlanStale(self.name, changes)

    # --------------------------------------------------------------------------------------------- sending

    def bundle(self) -> PlanBundle:
        """The plan with its weights as they are now, as it is sent. Raises `PlanNotBuilt`, or `PlanStale` if the
        module has changed.
        """
        built = self._need("being sent to a worker")
        self._check_fresh(built)
        frames: dict[bytes, bytes] = {}
        digests: list[bytes] = []
        for source in built.state:
            digest, frame = self._frame(source)
            digests.append(digest)
            frames[digest] = frame
        manifest = Manifest(
            version=version_of(built.graph),
            graph=digest_of(built.graph_bytes),
            outputs=list(built.outputs),
            state=digests,
        )
        return PlanBundle(
            manifest,
            built.graph_bytes,
            frames,
            {"source": msgspec.msgpack.encode([entry and tuple(entry) for entry in built.lines])},
        )

    def _frame(self, source: StateSource) -> tuple[bytes, bytes]:
        """The digest and the frame of a tensor of the state. Whether it has changed is told by its content: a write
        through ``.data`` leaves no other trace.
        """
        frame = encode_tensor(self._tensor(source))
        known = self._frames.get(source.name)
        if known is None or known[1] != frame:
            known = self._frames[source.name] = (digest_of(frame), frame)
        return known

    def _tensor(self, source: StateSource) -> torch.Tensor:
        return named_tensor(self._carried(), source.name) if source.tensor is None else source.tensor

    def send(self, *targets: Any, variant: str = "") -> Any:
        """Send the plan to devices, or to the devices that a fleet knows now; a `coordinator.pointer_plan.PointerPlan`.

        A device without torch gets an onnx variant of it, made once; ``variant`` ``float16`` makes that compute in
        float16, ``int8`` with weights of one byte, which then travel, are kept and are multiplied as such.

        Raises `PlanNotBuilt`, or `PlanStale` if the module has changed since it was built;
        `coordinator.translation.errors.TranslationUnsupported` for a device without torch, if there is no variant, and
        for int8 `NothingToQuantise` or `WeightNotFinite` of the same module.
        """
        self._need("being sent to a worker")
        from coordinator.pointer_plan import send_plan

        return send_plan(self, targets, variant)

    def variant(self, bundle: PlanBundle, precision: str = "") -> bytes:
        """The onnx variant of what `bundle` gave: see `coordinator.variants.variant_of`."""
        return variant_of(bundle, self._need("being translated").lines, precision, self._variants)

    def variant_parts(self, bundle: PlanBundle, precision: str = "") -> dict[str, bytes]:
        """All that devices without torch need besides what `bundle` gave, by name; the last is what commands name as
        the variant: for int8 see `coordinator.variants.packed_state`.
        """
        variant = self.variant(bundle, precision)
        packed = packed_state(bundle, variant, self._packed) if precision == "int8" else {}
        return {variant_name(precision): variant, **packed}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan, with its weights as they are now, to a file, and with it the variants that were made, and the
        methods that `build_method` has built.

        Raises `PlanNotBuilt` or `PlanStale`.
        """
        methods = {name: method._file_bundle() for name, method in self._methods.items()}  # noqa: SLF001 - a plan's
        with_methods(self._file_bundle(), methods).save(path)

    def _file_bundle(self) -> PlanBundle:
        self._need("being saved")
        bundle = self.bundle()
        variants = {
            variant_name(precision): made
            for (graph, precision), made in self._variants.items()
            if graph == bundle.manifest.graph
        }
        return replace(bundle, beside={**bundle.beside, **variants})

    @staticmethod
    def load(path: str | PathLike[str]) -> StoredPlan:
        """The plan of a file: built, to be run or sent. Raises `edge_agent.plan.errors.PlanMalformed` for a file that
        was cut or altered.
        """
        return StoredPlan(PlanBundle.load(path))

    # --------------------------------------------------------------------------------------------- running here

    def run_plan(self, *args: Any, **kwargs: Any) -> Any:
        """Run what was built, here, with the weights as they are now: what a device with the same runtime would give.

        Raises `PlanNotBuilt`, `PlanStale`, `ArgumentMismatch`, `ConditionFailed`, or `OpFailed` with your line as a
        note.
        """
        return self._run(None, args, kwargs)

    def options(self, *, seed: int) -> Callable[..., Any]:
        """`run_plan` with a seed for what the plan draws at random: equal seeds give equal results, here and on
        devices (`PointerPlan.options`). Without one, a seed comes from torch's generator.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(seed, args, kwargs)

        return run

    def _run(self, seed: int | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        built = self._need("being run")
        leaves = built.signature.bind(args, kwargs)
        sizes = built.signature.sizes(leaves)
        if seed is None and built.graph.inputs and built.graph.inputs[-1].kind == "random":
            seed = int(torch.empty((), dtype=torch.int64).random_())
        try:
            values = self._load().run(built.signature.tensors(leaves), sizes, seed=(seed or 0) & _SEED_BITS)
        except OpFailed as error:
            line = built.lines[error.op_index] if error.op_index < len(built.lines) else None
            if line is not None:
                error.add_note(f"at {line}")
            raise
        return built.signature.results(values)

    def _load(self) -> LoadedPlan:
        bundle = self.bundle()
        if self._loaded is None or self._loaded[0] != bundle.plan_id:
            frames = [bundle.state[digest] for digest in bundle.manifest.state]
            checked = check_plan(bundle.manifest, bundle.graph, [inspect_tensor(frame) for frame in frames])
            self._loaded = (
                bundle.plan_id,
                TorchRuntime().load(checked, [decode_tensor(frame) for frame in frames]),
            )
        return self._loaded[1]

    # --------------------------------------------------------------------------------------------- for pointer plans

    @property
    def graph(self) -> Graph:
        """The graph. Raises `PlanNotBuilt`."""
        return self._need("it has a graph").graph

    @property
    def signature(self) -> Signature:
        """The calls that it takes. Raises `PlanNotBuilt`."""
        return self._need("it has a signature").signature

    @property
    def output_tree(self) -> Tree:
        """How its results nest. Raises `PlanNotBuilt`."""
        return self._need("it has results").graph.tree

    @property
    def output_types(self) -> tuple[TensorType, ...]:
        """The types of its results, in order: an invocation takes as many ids. Raises `PlanNotBuilt`."""
        return self._need("it has results").outputs

    @property
    def source_table(self) -> tuple[SourceLine | None, ...]:
        """The line that each op came from. Raises `PlanNotBuilt`."""
        return self._need("it has ops").lines

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """See `Signature.bind`. Raises `PlanNotBuilt` or `ArgumentMismatch`."""
        return self.signature.bind(args, kwargs)


class StoredPlan(Plan, ours=True):
    """A plan read from a file. Called, it runs, here; it can be sent, and not be built again. The methods that were
    saved with it are called by their names.
    """

    def __init__(self, bundle: PlanBundle) -> None:
        super().__init__()
        bundle, methods = parted(bundle)
        self._methods = {name: StoredPlan(one) for name, one in methods.items()}
        checked = bundle.verify()
        table = bundle.beside.get("source")
        lines = [] if table is None else msgspec.msgpack.decode(table, type=list[tuple[str, int, str] | None])
        self._bundle = bundle
        self._built = _Built(
            graph=checked.graph,
            graph_bytes=bundle.graph_bytes,
            outputs=tuple(bundle.manifest.outputs),
            state=(),
            lines=tuple(None if line is None else SourceLine(*line) for line in lines),
            signature=Signature(checked.graph),
            looks=Looks({}),
        )

    def __getattr__(self, name: str) -> Any:
        """A method that was saved with it."""
        methods: dict[str, Plan] = self.__dict__.get("_methods", {})
        return methods[name] if name in methods else super().__getattr__(name)

    @property
    def name(self) -> str:
        """The name that it was built under."""
        return self.graph.name

    @property
    def state(self) -> PlanState:
        """A copy of the tensors that it carries."""
        return PlanState(decode_tensor(self._bundle.state[digest]) for digest in self._bundle.manifest.state)

    def bundle(self) -> PlanBundle:
        """The plan as it was saved."""
        return self._bundle

    def build(self, *_args: Any, **_options: Any) -> Plan:
        """A stored plan has no code to build from: raises TypeError."""
        raise TypeError(f"{self.name} was loaded from a file: it is built, and its code is elsewhere")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, here."""
        return self.run_plan(*args, **kwargs)
