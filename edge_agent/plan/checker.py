"""The checker: types a plan before it runs, and trusts nothing that the plan says of itself.

What comes out of `check_graph` holds for every run with sizes that `edge_agent.plan.calls.bind_sizes` accepts: each op
is in the registry and gets arguments of the right kinds, each value is bound once and before it is used, and has the
dtype and the shape that `CheckedGraph.types` says. Where two sizes must be equal and nobody can know before the sizes
are there, the op itself refuses when it runs.

Whatever the graph, checking ends soon and takes little memory: see the limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.protocol.tensors import DTYPES, MAX_DIMS, TensorHeader
from edge_agent.plan.arguments import Binder
from edge_agent.plan.errors import PlanMalformed, PlanTypeError
from edge_agent.plan.expressions import INT_LIMIT, check_expression, is_symbol_name, render
from edge_agent.plan.format import Dim, Graph, Input, Manifest, Op, TensorType
from edge_agent.plan.nesting import check_nesting
from edge_agent.plan.registry import lookup
from edge_agent.plan.sizes import Sizes
from edge_agent.plan.spec import OpSpec, Scope, SubGraph
from edge_agent.plan.trees import check_tree

__all__ = ["MAX_CONDITIONS", "MAX_SYMBOLS", "MAX_VALUES", "CheckedGraph", "CheckedPlan", "check_graph", "check_plan"]

MAX_VALUES = 100_000
"""How many values a graph may have: inputs, and outputs of ops; those of its sub-graphs included."""
MAX_SYMBOLS = 256
MAX_CONDITIONS = 1024
_MAX_NAME = 256
_KINDS = ("user", "number", "state", "random")
_DRAWN = {"uniform": ("float32", "float64"), "normal": ("float32", "float64"), "permutation": ("int64",)}


@dataclass(frozen=True, slots=True)
class CheckedGraph:
    """A graph that has been typed.

    ``types[k]`` is the type of value k, with dims in normal form; ``sizes`` is what is known of them; ``specs[i]`` is
    the registry's entry for op i; ``inner[i]`` are its sub-graphs, if it takes any, by the names of its parameters.
    ``first`` is the number of its first op in the plan: 0, but for a sub-graph.
    """

    graph: Graph
    types: list[TensorType]
    specs: list[OpSpec]
    sizes: Sizes
    inner: Mapping[int, Mapping[str, CheckedGraph]] = field(default_factory=dict)
    first: int = 0

    @property
    def output_types(self) -> list[TensorType]:
        """The types of the graph's outputs, in order: what the manifest must say."""
        return [self.types[value] for value in self.graph.outputs]


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan that may be run: see `edge_agent.runtimes`."""

    manifest: Manifest
    checked: CheckedGraph

    @property
    def graph(self) -> Graph:
        """The plan's graph."""
        return self.checked.graph


def check_graph(graph: Graph) -> CheckedGraph:
    """Type every value of a graph from anywhere. Raises `UnknownOp`, `PlanTypeError` or `PlanMalformed`."""
    count = check_nesting(graph)
    symbols = _check_symbols(graph)
    _check_conditions(graph, symbols)
    sizes = Sizes(graph.symbols, graph.conditions, ops=count)
    types = _check_inputs(graph, symbols, sizes)
    _check_signature(graph)
    return _Ops(symbols, sizes).check(graph, types, "")


def check_plan(manifest: Manifest, graph: Graph, state_headers: Sequence[TensorHeader]) -> CheckedPlan:
    """Check a plan whole: its graph, its state's dtypes and shapes, its manifest's outputs. ``state_headers`` in the
    manifest's order.

    That the parts have the digests that the manifest names is for whoever has their bytes: see
    `edge_agent.plan.bundle`. Raises `UnknownOp`, `PlanTypeError` or `PlanMalformed`.
    """
    checked = check_graph(graph)
    state = [one for one in graph.inputs if one.kind == "state"]
    if not len(state) == len(manifest.state) == len(state_headers):
        raise PlanMalformed(
            f"expected {len(state)} tensors of state, as the graph has inputs for them, "
            f"got {len(manifest.state)} in the manifest and {len(state_headers)} tensors"
        )
    for one, header in zip(state, state_headers, strict=True):
        if one.dtype != header.dtype or one.shape != list(header.shape):
            raise PlanTypeError(
                f"expected {_brief(one.dtype, one.shape)} for the state {one.name}, "
                f"got {_brief(header.dtype, header.shape)}"
            )
    _check_promised(manifest, checked)
    return CheckedPlan(manifest, checked)


class _Ops:
    """Types the ops of one plan, graph by graph, and numbers them as `edge_agent.plan.nesting` says."""

    def __init__(self, symbols: dict[str, None], sizes: Sizes) -> None:
        self._symbols = symbols
        self._sizes = sizes
        self._numbered = 0
        self._room = MAX_VALUES

    def check(self, graph: Graph, types: list[TensorType], inside: str) -> CheckedGraph:
        """A graph whose inputs have been typed: ``types`` are theirs, and grow. ``inside``: which sub-graph it is."""
        first = self._numbered
        self._numbered += len(graph.ops)
        self._take(len(types))
        checked: dict[str, CheckedGraph] = {}

        def nested(name: str, one: Graph) -> SubGraph:
            own = self._nested(one, f"the {name} of op {number}")
            checked[name] = own
            return SubGraph(name, own.types[: len(one.inputs)], own.output_types)

        binder = Binder(types, self._sizes, self._symbols, nested)
        scope = Scope(self._sizes)
        specs: list[OpSpec] = []
        inner: dict[int, dict[str, CheckedGraph]] = {}
        for index, op in enumerate(graph.ops):
            number = first + index
            spec = lookup(op.name, number, inside)
            specs.append(spec)
            checked = {}
            try:
                made = _type_op(op, spec, binder, scope, room=self._room)
            except PlanTypeError as error:
                if error.index is None:
                    error.op, error.index, error.inside = spec.name, number, inside
                raise
            self._take(len(made))
            types += made
            if checked:
                inner[index] = checked
        _check_outputs(graph, len(types))
        return CheckedGraph(graph, types, specs, self._sizes, inner, first)

    def _take(self, values: int) -> None:
        self._room -= values
        if self._room < 0:
            raise PlanMalformed(f"expected at most {MAX_VALUES} values in a graph, got more")

    def _nested(self, graph: Graph, inside: str) -> CheckedGraph:
        if (graph.signature, graph.tree, graph.symbols, graph.conditions, graph.name) != (None, None, [], [], ""):
            raise PlanMalformed(
                f"expected nothing but inputs, ops and outputs of a sub-graph, got more in {inside}: its signature, "
                "tree, symbols, conditions and name are those of the plan"
            )
        for one in graph.inputs:
            if one.kind != "user":
                raise PlanMalformed(
                    f"expected inputs that are given to the sub-graph, got {one.name[:64]!r} of kind {one.kind[:64]!r} "
                    f"in {inside}"
                )
        return self.check(graph, _input_types(graph, self._symbols, self._sizes), inside)


# ------------------------------------------------------------------------------------------------ the graph's parts


def _check_symbols(graph: Graph) -> dict[str, None]:
    if len(graph.symbols) > MAX_SYMBOLS:
        raise PlanMalformed(f"expected at most {MAX_SYMBOLS} symbols, got {len(graph.symbols)}")
    names: dict[str, None] = {}
    for symbol in graph.symbols:
        if not is_symbol_name(symbol.name):
            raise PlanMalformed(f"expected an identifier as a symbol's name, got {symbol.name[:64]!r}")
        if symbol.name in names:
            raise PlanMalformed(f"expected each symbol once, got {symbol.name} twice")
        if symbol.low >= INT_LIMIT or (symbol.high is not None and not symbol.low <= symbol.high < INT_LIMIT):
            raise PlanMalformed(
                f"expected a range from a least to a greatest size for {symbol.name}, got {symbol.low} to {symbol.high}"
            )
        names[symbol.name] = None
    return names


def _check_conditions(graph: Graph, symbols: dict[str, None]) -> None:
    if len(graph.conditions) > MAX_CONDITIONS:
        raise PlanMalformed(f"expected at most {MAX_CONDITIONS} conditions, got {len(graph.conditions)}")
    for condition in graph.conditions:
        kind = check_expression(condition, symbols)
        if kind != "bool":
            raise PlanMalformed(f"expected a condition that is true or false, got the {kind} {render(condition)}")


def _check_inputs(graph: Graph, symbols: dict[str, None], sizes: Sizes) -> list[TensorType]:
    types = _input_types(graph, symbols, sizes)
    _check_told(graph, symbols)
    return types


def _input_types(graph: Graph, symbols: dict[str, None], sizes: Sizes) -> list[TensorType]:
    if len(graph.inputs) > MAX_VALUES:
        raise PlanMalformed(f"expected at most {MAX_VALUES} values, got {len(graph.inputs)} inputs")
    names: set[str] = set()
    types: list[TensorType] = []
    last = ""
    for one in graph.inputs:
        if not 0 < len(one.name) <= _MAX_NAME or one.name in names:
            raise PlanMalformed(
                f"expected a name of its own of at most {_MAX_NAME} characters for each input, got {one.name[:64]!r}"
            )
        names.add(one.name)
        if one.kind not in _KINDS:
            raise PlanMalformed(f"expected an input of kind {', '.join(_KINDS)}, got {one.kind[:64]!r}")
        if last in ("state", "random") and one.kind != last and one.kind != "random":
            raise PlanMalformed(
                f"expected the user's inputs before the state, and what is drawn after it, got {one.name} after it"
            )
        last = one.kind
        _check_draw(one)
        types.append(_input_type(one, symbols, sizes))
    return types


def _input_type(one: Input, symbols: dict[str, None], sizes: Sizes) -> TensorType:
    if one.dtype not in DTYPES:
        raise PlanTypeError(f"expected a dtype of {', '.join(DTYPES)} for the input {one.name}, got {one.dtype[:64]!r}")
    if one.kind == "number" and one.shape:
        raise PlanMalformed(f"expected no dims for the number {one.name}, got {len(one.shape)}")
    if len(one.shape) > MAX_DIMS:
        raise PlanTypeError(f"expected at most {MAX_DIMS} dims for the input {one.name}, got {len(one.shape)}")
    for dim in one.shape:
        if type(dim) is int and 0 <= dim < INT_LIMIT:
            continue
        kind = check_expression(dim, symbols)
        if kind != "int" or isinstance(dim, int) or one.kind == "state":
            raise PlanMalformed(f"expected sizes of 0 or more for the input {one.name}, got {render(dim)}")
    return TensorType(dtype=one.dtype, shape=[sizes.normal(dim) for dim in one.shape])


def _check_draw(one: Input) -> None:
    if (one.kind == "random") != (one.draw is not None):
        raise PlanMalformed(f"expected a draw for each random input and for no other, got {one.name} otherwise")
    if one.draw is not None:
        dtypes = _DRAWN.get(one.draw.distribution)
        if dtypes is None:
            raise PlanMalformed(
                f"expected a draw of {', '.join(_DRAWN)} for {one.name}, got {one.draw.distribution[:64]!r}"
            )
        if one.dtype not in dtypes or (one.draw.distribution == "permutation" and len(one.shape) != 1):
            raise PlanTypeError(
                f"expected a {one.draw.distribution} of {' or '.join(dtypes)} for {one.name}, "
                f"got {_brief(one.dtype, one.shape)}"
            )
        if one.draw.number >> 32:
            raise PlanMalformed(f"expected a draw's number of 32 bits for {one.name}, got a larger one")


def _check_told(graph: Graph, symbols: dict[str, None]) -> None:
    """Every symbol must be told by some argument: by a dim that is the symbol, or a multiple of it plus a constant."""
    plain = Sizes()
    told: set[str] = set()
    for one in graph.given:
        for dim in one.shape:
            if isinstance(dim, str):
                told.add(dim)
            elif isinstance(dim, list) and (line := plain.line(dim)) is not None:
                told.add(line[0])
    for name in symbols:
        if name not in told:
            raise PlanMalformed(f"expected an input whose shape tells the size {name}, got none")


def _check_signature(graph: Graph) -> None:
    given = len(graph.given)
    tree: Any = graph.signature
    if (
        not isinstance(tree, list)
        or len(tree) != 3
        or tree[0] != "t"
        or not all(isinstance(part, list) and part for part in tree[1:])
        or tree[1][0] not in ("t", "l")
        or tree[2][0] != "d"
        or not all(isinstance(key, str) for key in tree[2][1::2])
    ):
        raise PlanMalformed(
            "expected a signature of a tuple of arguments and a dict of keyword arguments, got another tree"
        )
    leaves = check_tree(tree)
    if leaves != given:
        raise PlanMalformed(f"expected a signature with {given} leaves, as many as the inputs, got {leaves}")
    leaves = check_tree(graph.tree)
    if leaves != len(graph.outputs):
        raise PlanMalformed(
            f"expected an output tree with {len(graph.outputs)} leaves, as many as the outputs, got {leaves}"
        )
    if len(graph.name) > _MAX_NAME:
        raise PlanMalformed(f"expected a name of at most {_MAX_NAME} characters, got {len(graph.name)}")


def _type_op(op: Op, spec: OpSpec, binder: Binder, scope: Scope, *, room: int) -> list[TensorType]:
    if op.outputs > room:
        raise PlanTypeError(f"expected at most {MAX_VALUES} values in a graph, got more")
    if spec.outputs is not None and op.outputs != spec.outputs:
        raise PlanTypeError(f"expected {spec.outputs} outputs, got {op.outputs}")
    scope.outputs = op.outputs
    made = spec.rule(scope, *binder.bind(spec, op.args, op.kwargs))
    types = [made] if isinstance(made, TensorType) else list(made)
    if len(types) != op.outputs:
        raise PlanTypeError(f"expected {len(types)} outputs, got {op.outputs}")
    for one in types:
        if len(one.shape) > MAX_DIMS:
            raise PlanTypeError(f"expected a result of at most {MAX_DIMS} dims, got {len(one.shape)}")
        for dim in one.shape:
            if type(dim) is int and not 0 <= dim < INT_LIMIT:
                raise PlanTypeError(f"expected a result with sizes of 0 or more, within 64 bits, got {dim}")
    return types


def _check_outputs(graph: Graph, values: int) -> None:
    for value in graph.outputs:
        if value >= values:
            raise PlanTypeError(f"expected outputs among the {values} values of the graph, got {value}")


def _check_promised(manifest: Manifest, checked: CheckedGraph) -> None:
    found = checked.output_types
    if len(manifest.outputs) != len(found):
        raise PlanTypeError(
            f"expected a manifest with {len(found)} outputs, as many as the graph, got {len(manifest.outputs)}"
        )
    symbols = {symbol.name for symbol in checked.graph.symbols}
    for place, (promised, own) in enumerate(zip(manifest.outputs, found, strict=True)):
        fits = promised.dtype == own.dtype and len(promised.shape) == len(own.shape)
        if fits and promised.shape != own.shape:
            for dim, size in zip(promised.shape, own.shape, strict=True):
                check_expression(dim, symbols)
                fits = fits and bool(checked.sizes.equal(dim, size))
        if not fits:
            raise PlanTypeError(
                f"expected {_brief(own.dtype, own.shape)} for output {place} in the manifest, as the graph gives it, "
                "got another type"
            )


def _brief(dtype: str, shape: Sequence[Dim]) -> str:
    return f"{dtype}[{', '.join(map(render, shape))}]"
