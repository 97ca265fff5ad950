"""Writes an ONNX graph node by node.

A `Value` is a tensor of it, with its dtype and (where known) its shape. `Writer.op` adds a node, computing in a wider
dtype where onnxruntime has no kernel. Sizes that are known only when the plan runs become arithmetic on the shapes of
the inputs (`Writer.size`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coordinator.translation.arithmetic import computed
from coordinator.translation.errors import TranslationUnsupported
from coordinator.translation.kernels import IR_VERSION, KERNELS, OPSET, wider
from edge_agent.plan.dtypes import COMPLEX, FLOATING
from edge_agent.plan.expressions import check_expression
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import result_type
from edge_agent.plan.sizes import Sizes
from edge_agent.plan.spec import Number

__all__ = ["ONNX_DTYPES", "Operand", "Symbolic", "Value", "Writer", "unsupported"]

ONNX_DTYPES: dict[str, int] = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32,
    "int64": TensorProto.INT64,
    "uint64": TensorProto.UINT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


_GIVEN = "given by the device"
"""Where a model says that constants are which it does not hold: there is no such file."""

REAL_OF: Mapping[str, str] = {"complex64": "float32", "complex128": "float64"}
"""What a complex number's parts are. A complex tensor is a real one here, with a last dim of two."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph. ``shape`` None: not known, and not asked for; of a complex one, without its last dim."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None = None

    @property
    def rank(self) -> int:
        """How many dims it has."""
        return len(self.dims)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Its shape, which must be known."""
        if self.shape is None:
            raise AssertionError(f"the shape of {self.name} was asked for, and nobody told it")
        return self.shape


@dataclass(frozen=True, slots=True)
class Symbolic:
    """A number that is known only when the plan runs."""

    expression: Any
    kind: str


Operand: TypeAlias = Value | Symbolic | bool | int | float | complex
"""What an element-wise op computes with."""


def unsupported(reason: str) -> TranslationUnsupported:
    """The error of an op that can't be written; the translator adds which."""
    return TranslationUnsupported(reason)


class Writer:
    """One ONNX graph. ``out`` are the types of the op that is being written, ``index`` its place in the plan."""

    def __init__(self, sizes: Sizes, symbols: Sequence[str]) -> None:
        self.sizes = sizes
        self.out: list[TensorType] = []
        self.index = 0
        self._symbols = dict.fromkeys(symbols)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._externals: list[onnx.TensorProto] = []
        self._expressions: dict[str, Value] = {}
        self._origins: dict[str, tuple[str, int, int, int]] = {}  # symbol: value, dim, slope, offset
        self._casts: dict[tuple[str, str], Value] = {}
        self.parts: dict[str, tuple[Value, Value]] = {}
        """Real and imaginary parts of complex values, by name, where they are known."""
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------------------------------------ sub-graphs

    def inside(self) -> Writer:
        """The writer of a sub-graph: what has been written so far is seen in it. Names and constants are those of the
        whole.
        """
        inner = Writer(self.sizes, list(self._symbols))
        inner.index = self.index
        inner._constants, inner._initializers = self._constants, self._initializers
        inner._numbers = self._numbers
        inner._expressions = dict(self._expressions)
        inner._origins = dict(self._origins)
        inner._casts = dict(self._casts)
        inner.parts = dict(self.parts)
        return inner

    def subgraph(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.GraphProto:
        """What was written, as a sub-graph. It gives nothing on that it was not given or has not made."""
        given = [Value(self.node("Identity", [one.name])[0], one.dtype, one.shape) for one in outputs]
        return helper.make_graph(self._nodes, name, list(map(_inner_info, inputs)), list(map(_inner_info, given)))

    # ------------------------------------------------------------------------------------------ nodes

    def name(self) -> str:
        """A name that nothing has yet."""
        return f"v{next(self._numbers)}"

    def node(self, kind: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node as it is."""
        names = [self.name() for _ in range(outputs)]
        # onnxruntime names a node that fails: so the op of the plan is told
        node = helper.make_node(kind, list(inputs), names, name=f"op{self.index}.{names[0]}", **attributes)
        self._nodes.append(node)
        return names

    def op(
        self,
        kind: str,
        *inputs: Value | None,
        dtype: str | None = None,
        shape: Sequence[Dim] | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output. ``dtype``: of the output, where it is not that of the (first typed) input;
        ``shape``: of the output, where somebody will ask.
        """
        return self.ops(kind, *inputs, dtypes=(dtype,), shapes=(shape,), **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: Value | None,
        dtypes: Sequence[str | None],
        shapes: Sequence[Sequence[Dim] | None] | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs; see `op`."""
        kernels, typed = KERNELS.get(kind, (None, None))
        places = range(len(inputs)) if typed is None else typed
        first = next((inputs[k] for k in places if k < len(inputs) and inputs[k] is not None), None)
        own = first.dtype if first is not None else None
        if own is not None and own in COMPLEX:
            raise unsupported(f"onnx has no {kind} of {own}")
        taken = list(inputs)
        if kernels is not None and own is not None and own not in kernels:
            computed = wider(kind, own)
            if computed is None:
                raise unsupported(f"onnxruntime has no {kind} of {own}")
            for k in places:
                if k < len(taken) and taken[k] is not None:
                    taken[k] = self.cast(taken[k], computed)  # type: ignore[arg-type]
        else:
            computed = own
        names = self.node(kind, [one.name if one else "" for one in taken], len(dtypes), **attributes)
        results = []
        for k, (name, dtype) in enumerate(zip(names, dtypes, strict=True)):
            shape = None if shapes is None or shapes[k] is None else tuple(shapes[k] or ())
            if dtype is not None or computed == own:
                results.append(Value(name, dtype or own or "float32", shape))
            else:
                assert computed is not None
                assert own is not None
                results.append(self.cast(Value(name, computed, shape), own))
        return results

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype."""
        if value.dtype == dtype:
            return value
        if dtype in COMPLEX or value.dtype in COMPLEX:
            raise unsupported(f"onnx has no cast from {value.dtype} to {dtype}")
        key = (value.name, dtype)
        if key not in self._casts:
            (name,) = self.node("Cast", [value.name], to=ONNX_DTYPES[dtype])
            self._casts[key] = Value(name, dtype, value.shape)
        return Value(self._casts[key].name, dtype, value.shape)

    def input(self, name: str, kind: TensorType) -> Value:
        """An input of the graph. bfloat16, which numpy does not have, comes as float32; see the onnx runtime."""
        value = Value(name, kind.dtype, tuple(kind.shape))
        if kind.dtype == "bfloat16":
            value = self.cast(Value(name, "float32", tuple(kind.shape)), "bfloat16")
        self.learn(name, kind)
        return value

    def external(self, name: str, dtype: str, shape: Sequence[Dim]) -> Value:
        """A constant that is not in the model: a device gives it when it opens the model (onnxruntime's
        ``add_external_initializers``).
        """
        tensor = TensorProto(name=name, data_type=ONNX_DTYPES[dtype], data_location=TensorProto.EXTERNAL)
        tensor.dims.extend(int(size) for size in shape)  # type: ignore[arg-type]  # state has no symbolic sizes
        tensor.external_data.add(key="location", value=_GIVEN)
        self._externals.append(tensor)
        return Value(name, dtype, tuple(shape))

    def learn(self, name: str, kind: TensorType) -> None:
        """A value whose shape may tell the sizes of symbols that are not known yet."""
        for place, dim in enumerate(kind.shape):
            if isinstance(dim, str):
                self._origins.setdefault(dim, (name, place, 1, 0))
        algebra = Sizes()
        for place, dim in enumerate(kind.shape):
            if isinstance(dim, list) and (line := algebra.line(dim)) is not None:
                symbol, slope, offset = line
                self._origins.setdefault(symbol, (name, place, slope, offset))

    # ------------------------------------------------------------------------------------------ constants

    def constant(self, value: Any, dtype: str) -> Value:
        """A constant tensor."""
        if dtype in COMPLEX:
            raise unsupported(f"onnx has no {dtype}")
        plain = "float32" if dtype == "bfloat16" else dtype
        with np.errstate(over="ignore"):
            array = np.asarray(value).astype(plain) if not isinstance(value, bool) else np.asarray(value, plain)
        key = (plain, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.name()
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
            self._constants[key] = Value(name, plain, array.shape)
        return self.cast(self._constants[key], dtype)

    def ints(self, values: Sequence[int]) -> Value:
        """A 1-d int64 constant."""
        return self.constant(np.array(list(values), dtype=np.int64), "int64")

    def operand(self, operand: Any, dtype: str) -> Value:
        """An operand in a dtype: cast; a number as a 0-d tensor."""
        if isinstance(operand, Value):
            return self.cast(operand, dtype)
        if isinstance(operand, Symbolic):
            return self.cast(self.scalar(operand), dtype)
        if isinstance(operand, complex):
            raise unsupported("onnx has no complex numbers")
        if dtype == "bool":
            return self.constant(bool(operand), dtype)
        if dtype not in FLOATING:
            return self.constant(np.int64(int(operand)), dtype)
        return self.constant(float(operand), dtype)

    def wide(self, operand: Any, dtype: str | None = None) -> Value:
        """An operand in the dtype of the result, or a dtype given; float32 in place of shorter floats, as torch
        computes on CPUs: the result is rounded once.
        """
        own = dtype or self.out[0].dtype
        return self.operand(operand, "float32" if own in ("float16", "bfloat16") else own)

    def common(self, *operands: Any) -> str:
        """The dtype that an element-wise op of these computes in."""
        return result_type([_typed(operand) for operand in operands if operand is not None])

    # ------------------------------------------------------------------------------------------ sizes

    def size(self, dim: Any) -> Value:
        """A size as an int64 tensor of shape [1]."""
        if isinstance(dim, Symbolic):
            return self.cast(self._expression(dim.expression), "int64")
        if isinstance(dim, bool | int):
            return self.ints([int(dim)])
        return self.cast(self._expression(dim), "int64")

    def scalar(self, number: Symbolic | Any) -> Value:
        """A size, or another symbolic number, as a 0-d tensor of its own kind."""
        value = self._expression(number.expression if isinstance(number, Symbolic) else number)
        return self.op("Reshape", value, self.ints([]), shape=())

    def shape(self, dims: Sequence[Any]) -> Value:
        """Sizes as one 1-d int64 tensor."""
        plain = [self._plain(dim) for dim in dims]
        if all(isinstance(dim, int) for dim in plain):
            return self.ints(plain)
        parts: list[Value] = []
        run: list[int] = []
        for dim in plain:
            if isinstance(dim, int):
                run.append(dim)
                continue
            if run:
                parts.append(self.ints(run))
                run = []
            parts.append(self.size(dim))
        if run:
            parts.append(self.ints(run))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _plain(self, dim: Any) -> Any:
        if isinstance(dim, Symbolic):
            dim = self.sizes.normal(dim.expression)
        return int(dim) if isinstance(dim, bool | int) else dim

    def count(self, dims: Sequence[Any]) -> Any:
        """How many elements dims make: a number or an expression."""
        total: Any = 1
        for dim in dims:
            plain = self._plain(dim)
            total = total * plain if isinstance(total, int) and isinstance(plain, int) else ["mul", total, plain]
        return total if isinstance(total, int) else self.sizes.normal(total)

    def _expression(self, expr: Any) -> Value:
        """An expression as a tensor of shape [1]: int64, float64 or bool."""
        if isinstance(expr, bool):
            return self.constant([expr], "bool")
        if isinstance(expr, int):
            return self.ints([expr])
        if isinstance(expr, float):
            return self.constant([expr], "float64")
        key = repr(expr)
        if key not in self._expressions:
            self._expressions[key] = self._symbol(expr) if isinstance(expr, str) else self._computed(expr)
        return self._expressions[key]

    def _symbol(self, symbol: str) -> Value:
        if symbol not in self._origins:
            raise unsupported(f"nothing tells the size {symbol} before it is needed")
        name, place, slope, offset = self._origins[symbol]
        (size,) = self.node("Shape", [name], start=place, end=place + 1)
        value = Value(size, "int64", (1,))
        if offset:
            value = self.op("Sub", value, self.ints([offset]))
        return self.op("Div", value, self.ints([slope])) if slope != 1 else value

    def _computed(self, expr: Sequence[Any]) -> Value:
        name, *operands = expr
        kind = check_expression(list(expr), self._symbols)
        return computed(self, name, [self._expression(operand) for operand in operands], kind)

    # ------------------------------------------------------------------------------------------ shapes

    def reshape(self, value: Value, dims: Sequence[Any]) -> Value:
        """The same elements in another shape."""
        plain = [self._plain(dim) for dim in dims]
        if value.shape is not None and list(value.shape) == plain:
            return value
        free = [place for place, dim in enumerate(plain) if not isinstance(dim, int)]
        if len(free) == 1 and all(plain[place] for place in range(len(plain)) if place != free[0]):
            target = self.ints([dim if isinstance(dim, int) else -1 for dim in plain])
        else:
            target = self.shape(plain)
        return self.op("Reshape", value, target, shape=plain, allowzero=1)

    def expand(self, value: Value, dims: Sequence[Any]) -> Value:
        """The value broadcast to a shape."""
        plain = [self._plain(dim) for dim in dims]
        if value.shape is not None:
            if list(value.shape) == plain:
                return value
            offset = len(plain) - len(value.shape)
            # a 1 leaves a dim as it is: so a size that is not known need not be worked out
            target = [
                1 if place >= offset and value.shape[place - offset] == dim else dim for place, dim in enumerate(plain)
            ]
        else:
            target = plain
        return self.op("Expand", value, self.shape(target), shape=plain)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The dims in another order."""
        if list(order) == list(range(len(order))):
            return value
        shape = None if value.shape is None else [value.shape[place] for place in order]
        return self.op("Transpose", value, perm=list(order), shape=shape)

    def unsqueeze(self, value: Value, *places: int) -> Value:
        """With dims of size 1 at these places of the result, which count from the front."""
        shape = list(value.dims)
        for place in sorted(places):
            shape.insert(place, 1)
        return self.op("Unsqueeze", value, self.ints(list(places)), shape=shape)

    def slice(self, value: Value, axis: int, start: Any, end: Any, step: int = 1) -> Value:
        """Python's slice of one dim. Its shape is not told."""
        return self.op("Slice", value, self.size(start), self.size(end), self.ints([axis]), self.ints([step]))

    def range(self, count: Any) -> Value:
        """0, 1, ... as int64."""
        plain = self._plain(count)
        if isinstance(plain, int) and plain <= 4096:
            return self.constant(np.arange(plain, dtype=np.int64), "int64")
        scalar = self.op("Reshape", self.size(plain), self.ints([]))
        zero, one = self.constant(np.int64(0), "int64"), self.constant(np.int64(1), "int64")
        return self.op("Range", zero, scalar, one, shape=[plain])

    # ------------------------------------------------------------------------------------------ division

    def remainder(self, a: Value, b: Value) -> Value:
        """Python's %: of the sign of b."""
        if a.dtype not in FLOATING:
            return self.op("Mod", a, b, fmod=0)
        rest = self.op("Mod", a, b, fmod=1)
        zero = self.constant(0, a.dtype)
        other = self.op(
            "Xor",
            self.op("Less", rest, zero, dtype="bool"),
            self.op("Less", b, zero, dtype="bool"),
        )
        wrong = self.op("And", other, self.op("Not", self.op("Equal", rest, zero, dtype="bool")))
        return self.op("Where", wrong, self.op("Add", rest, b), rest)

    def floor_divide(self, a: Value, b: Value) -> Value:
        """Python's //."""
        if a.dtype in FLOATING:
            rest = self.remainder(a, b)
            return self.op("Round", self.op("Div", self.op("Sub", a, rest), b))
        return self.op("Div", self.op("Sub", a, self.remainder(a, b)), b)

    # ------------------------------------------------------------------------------------------ the whole

    def model(
        self, name: str, inputs: Sequence[tuple[str, TensorType]], outputs: Sequence[tuple[str, TensorType]]
    ) -> onnx.ModelProto:
        """The graph as a model, checked."""
        graph = helper.make_graph(
            self._nodes,
            name or "plan",
            [_info(name, kind) for name, kind in inputs],
            [_info(name, kind) for name, kind in outputs],
            self._initializers,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgeplan"
        )
        # the checker would look for the file that the others are said to be in: to it they are inputs
        model.graph.input.extend(_described(tensor) for tensor in self._externals)
        onnx.checker.check_model(model)
        del model.graph.input[len(inputs) :]
        model.graph.initializer.extend(self._externals)
        return model

    def give(self, value: Value, name: str) -> None:
        """Make a value an output of the graph, under this name."""
        plain = self.cast(value, "float32") if value.dtype == "bfloat16" else value
        self._nodes.append(helper.make_node("Identity", [plain.name], [name]))


def _typed(operand: Any) -> TensorType | Number:
    if isinstance(operand, Value):
        return TensorType(dtype=operand.dtype, shape=list(operand.dims))
    if isinstance(operand, Symbolic):
        return Number(operand.kind, operand.expression)
    return Number(type(operand).__name__, operand)


def _described(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _inner_info(value: Value) -> onnx.ValueInfoProto:
    """The type of an input or output of a sub-graph, where bfloat16 is itself."""
    dims = [dim if isinstance(dim, int | str) else None for dim in value.dims]
    dims += [2] if value.dtype in COMPLEX else []
    return helper.make_tensor_value_info(value.name, ONNX_DTYPES[REAL_OF.get(value.dtype, value.dtype)], dims)


def _info(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    dtype = "float32" if kind.dtype == "bfloat16" else REAL_OF.get(kind.dtype, kind.dtype)
    if dtype not in ONNX_DTYPES:
        raise unsupported(f"onnx has no {kind.dtype}")
    dims = [dim if isinstance(dim, int | str) else None for dim in kind.shape]
    dims += [2] if kind.dtype in COMPLEX else []
    return helper.make_tensor_value_info(name, ONNX_DTYPES[dtype], dims)
