"""Plan graph to ONNX model, op by op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.errors import SourceLine
from coordinator.translation import ops as _ops  # noqa: F401 - fills the table
from coordinator.translation.errors import NothingToQuantise, TranslationUnsupported
from coordinator.translation.ops.control import Body
from coordinator.translation.quantised import Rounded, Rounder, Weight, rounded_weights
from coordinator.translation.table import COMPLEX_TRANSLATIONS, TRANSLATIONS
from coordinator.translation.writer import Symbolic, Value, Writer
from edge_agent.plan.checker import CheckedGraph
from edge_agent.plan.dtypes import COMPLEX
from edge_agent.plan.expressions import EverySymbol, check_expression
from edge_agent.plan.format import Argument, Op, Special, TensorType
from edge_agent.plan.quantised import QuantisedModel, encode_quantised
from edge_agent.plan.spec import Number, OpSpec, Parameter

__all__ = ["translate", "translated_ops"]


def translated_ops() -> tuple[str, ...]:
    """The names of the ops that have a translation, sorted."""
    return tuple(sorted({*TRANSLATIONS, *COMPLEX_TRANSLATIONS}))


def translate(checked: CheckedGraph, lines: Sequence[SourceLine | None] = (), precision: str = "") -> bytes:
    """The ONNX model of a checked graph: inputs ``x0``, ``x1``, ... in the graph's order, state among them, so that
    new weights need no new model, and random numbers, which the device draws; outputs ``y0``, ``y1``, ... Equal graphs
    give equal bytes.

    ``precision`` ``float16``: what is float32 in the plan is rounded to float16 after every op; inputs and outputs stay
    as they are. ``int8``: weights are rounded as `coordinator.translation.quantised` says, and are no inputs but
    constants that the device gives; the result is then an `edge_agent.plan.quantised.QuantisedModel`.

    Raises `TranslationUnsupported`, with the op and its line (``lines[index]``), or `NothingToQuantise`.
    """
    graph = checked.graph
    rounded = rounded_weights(checked) if precision == "int8" else _NOTHING
    axes = rounded.axes
    if precision == "int8" and not axes:
        raise NothingToQuantise(given=rounded.given)
    writer = Writer(checked.sizes, [symbol.name for symbol in graph.symbols])
    rounder = Rounder(writer, rounded)
    inputs = [(f"x{k}", checked.types[k]) for k in range(len(graph.inputs)) if k not in axes]
    translation = _Translation(precision)
    kinds = translation.kinds(checked)
    try:
        given: list[Value | Weight] = []
        for k, kind in enumerate(checked.types[: len(graph.inputs)]):
            if k in axes:
                given.append(rounder.weight(k, kind))
            else:
                given.append(writer.cast(writer.input(f"x{k}", kind), kinds[k].dtype))
        values = translation.write(writer, checked, given, rounder)
        for k, value in enumerate(graph.outputs):
            writer.give(writer.cast(rounder.plain(values[value]), checked.types[value].dtype), f"y{k}")
        outputs = [(f"y{k}", checked.types[value]) for k, value in enumerate(graph.outputs)]
        model = writer.model(graph.name, inputs, outputs)
    except TranslationUnsupported as error:
        op, number = translation.op, translation.number
        where = lines[number] if op is not None and number < len(lines) else None
        raise TranslationUnsupported(
            error.reason, op=None if op is None else op.name, index=None if op is None else number, where=where
        ) from None
    data: bytes = model.SerializeToString(deterministic=True)
    return encode_quantised(QuantisedModel(model=data, axes=list(axes.items()))) if axes else data


_NOTHING = Rounded({}, {}, given=False)
"""Inside a sub-graph all weights are what they were: its operands come plain."""


class _Translation:
    """The ops of a plan, graph by graph. ``op`` is the one that is being written, ``number`` its own in the plan."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self.op: Op | None = None
        self.number = 0

    def kinds(self, checked: CheckedGraph) -> list[TensorType]:
        """The types that the values of a graph have in onnx."""
        return checked.types if self._precision != "float16" else [_halved(kind) for kind in checked.types]

    def write(
        self, writer: Writer, checked: CheckedGraph, inputs: Sequence[Value | Weight], rounder: Rounder
    ) -> list[Value | Weight]:
        """Write a graph's ops: all its values."""
        kinds = self.kinds(checked)
        values = list(inputs)
        before = self.op, self.number, writer.index
        for index, op in enumerate(checked.graph.ops):
            self.op, self.number = op, checked.first + index
            writer.index = self.number
            bodies = {name: self._body(one) for name, one in checked.inner.get(index, {}).items()}
            values += _written(writer, rounder, checked, kinds, values, op, checked.specs[index], bodies)
        self.op, self.number, writer.index = before
        return values

    def _body(self, checked: CheckedGraph) -> Body:
        kinds = self.kinds(checked)

        def body(writer: Writer, given: Sequence[Value]) -> list[Value]:
            inputs = []
            for one, kind in zip(given, kinds, strict=False):
                writer.learn(one.name, kind)
                inputs.append(Value(one.name, kind.dtype, tuple(kind.shape)))
            rounder = Rounder(writer, _NOTHING)
            values = self.write(writer, checked, inputs, rounder)
            return [rounder.plain(values[value]) for value in checked.graph.outputs]

        return body


def _halved(kind: TensorType) -> TensorType:
    return TensorType(dtype="float16", shape=kind.shape) if kind.dtype == "float32" else kind


def _written(
    writer: Writer,
    rounder: Rounder,
    checked: CheckedGraph,
    kinds: Sequence[TensorType],
    values: list[Value | Weight],
    op: Op,
    spec: OpSpec,
    bodies: Mapping[str, Body],
) -> Sequence[Value | Weight]:
    types = list(kinds[len(values) : len(values) + op.outputs])
    writer.out = types
    arguments = _bound(spec, op, values, checked, bodies)
    quantised = rounder.write(op, arguments)
    if isinstance(quantised, Weight):
        return [quantised]
    if quantised is not None:
        return _typed(writer, [quantised], types)
    arguments = rounder.plain(arguments)
    with_complex = any(kind.dtype in COMPLEX for kind in types) or any(map(_is_complex, arguments))
    translation = (COMPLEX_TRANSLATIONS if with_complex else TRANSLATIONS).get(op.name)
    if translation is None:
        numbers = " for complex numbers" if with_complex and op.name in TRANSLATIONS else ""
        raise TranslationUnsupported(f"onnx has no translation of it{numbers} yet")
    result = translation(writer, *arguments)
    results = [result] if isinstance(result, Value) else list(result)
    if len(results) != len(types):
        raise AssertionError(f"{op.name} has {len(types)} results, and its translation {len(results)}")
    return _typed(writer, results, types)


def _typed(writer: Writer, results: Sequence[Value], types: Sequence[TensorType]) -> list[Value]:
    bound = []
    for value, kind in zip(results, types, strict=True):
        given = writer.cast(value, kind.dtype)
        writer.learn(given.name, kind)
        bound.append(Value(given.name, kind.dtype, tuple(kind.shape)))
    return bound


def _is_complex(argument: Any) -> bool:
    if isinstance(argument, list):
        return any(map(_is_complex, argument))
    return isinstance(argument, Value) and argument.dtype in COMPLEX


def _bound(
    spec: OpSpec, op: Op, values: Sequence[Value | Weight], checked: CheckedGraph, bodies: Mapping[str, Body]
) -> list[Any]:
    symbols = EverySymbol()

    def one(argument: Argument) -> Any:
        if not isinstance(argument, Special):
            return argument
        if argument.v is not None:
            return values[argument.v]
        if argument.s is not None:
            kind = check_expression(argument.s, symbols)
            plain = checked.sizes.normal(argument.s) if kind == "int" else argument.s
            return plain if isinstance(plain, bool | int | float) else Symbolic(plain, kind)
        if argument.d is not None:
            return argument.d
        if argument.c is not None:
            return complex(*argument.c)
        elements = argument.l if argument.l is not None else argument.t
        if elements is not None:
            return [one(element) for element in elements]
        return argument.o

    def bind(parameter: Parameter, place: int) -> Any:
        if parameter.name in bodies:
            return bodies[parameter.name]
        if place < len(op.args):
            found = one(op.args[place])
        elif parameter.name in op.kwargs:
            found = one(op.kwargs[parameter.name])
        else:
            default = parameter.default
            found = default.value if isinstance(default, Number) else default
        if parameter.length and not isinstance(found, list | None):
            found = [found] * parameter.length
        return found

    return [bind(parameter, place) for place, parameter in enumerate(spec.parameters)]
