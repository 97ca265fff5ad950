"""Complex numbers, which onnx does not have: a real tensor with one more dim at its end, of two elements.

What is said of an op here holds where one of its arguments or results is complex. Most ops act on both parts alike,
and are written by their own translation, once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from coordinator.translation.table import TRANSLATIONS, Translation, translates_complex
from coordinator.translation.writer import REAL_OF, Symbolic, Value, Writer, unsupported
from edge_agent.plan.dtypes import COMPLEX
from edge_agent.plan.format import TensorType
from edge_agent.plan.shapes import wrap_dim

__all__: list[str] = []

_ALIKE = (
    "_to_copy",
    "_unsafe_view",
    "add.Scalar",
    "add.Tensor",
    "alias",
    "cat",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "flip",
    "gather",
    "index.Tensor",
    "index_select",
    "lift_fresh_copy",
    "mean",
    "mean.dim",
    "narrow",
    "neg",
    "permute",
    "repeat",
    "reshape",
    "roll",
    "select.int",
    "select_scatter",
    "slice.Tensor",
    "slice_scatter",
    "split.Tensor",
    "split_with_sizes",
    "squeeze",
    "squeeze.dim",
    "squeeze.dims",
    "stack",
    "sub.Scalar",
    "sub.Tensor",
    "sum",
    "sum.dim_IntList",
    "t",
    "transpose.int",
    "unbind.int",
    "unsqueeze",
    "view",
    "where.self",
)
"""Ops that treat real and imaginary part alike."""

_FILLED = ("full", "full_like", "ones", "ones_like", "zeros", "zeros_like", "scalar_tensor", "new_zeros", "new_ones")
"""Ops that make real tensors: the imaginary part is 0."""

_INDICES = {"gather": (2,), "index.Tensor": (1,), "index_select": (2,), "where.self": (0,)}
"""Which arguments are not of the op's dtype: they are taken as they are."""


def _full(name: str) -> str:
    return f"aten.{name}" if "." in name else f"aten.{name}.default"


def _parts(w: Writer, operand: Any) -> tuple[Any, Any]:
    """Real and imaginary part of an operand."""
    if isinstance(operand, complex):
        return operand.real, operand.imag
    if not isinstance(operand, Value):
        return operand, 0
    if operand.dtype not in COMPLEX:
        return operand, w.op("Sub", operand, operand) if operand.dtype in REAL_OF.values() else _zero(w, operand)
    if operand.name not in w.parts:
        base = REAL_OF[operand.dtype]
        plain = Value(operand.name, base)
        found = [w.op("Gather", plain, w.constant(np.int64(k), "int64"), axis=-1, shape=operand.dims) for k in (0, 1)]
        w.parts[operand.name] = found[0], found[1]
    return w.parts[operand.name]


def _zero(w: Writer, operand: Value) -> Value:
    base = REAL_OF[next(one.dtype for one in w.out if one.dtype in COMPLEX)]
    return w.op("Sub", w.cast(operand, base), w.cast(operand, base))


def _joined(w: Writer, real: Value, imaginary: Value, kind: TensorType) -> Value:
    base = REAL_OF[kind.dtype]
    pair = [w.expand(w.cast(one, base), kind.shape) for one in (real, imaginary)]
    raised = [w.op("Unsqueeze", one, w.ints([-1])) for one in pair]
    whole = w.op("Concat", *raised, axis=-1)
    w.parts[whole.name] = pair[0], pair[1]
    return Value(whole.name, kind.dtype, tuple(kind.shape))


def _real(kind: TensorType) -> TensorType:
    return TensorType(dtype=REAL_OF.get(kind.dtype, kind.dtype), shape=kind.shape)


def _write(w: Writer, name: str, *args: Any, out: Sequence[TensorType] | None = None) -> list[Value]:
    """An op on real tensors, by its own translation; ``out``: its types, where they are not those of the whole."""
    before = w.out
    w.out = [_real(kind) for kind in (before if out is None else out)]
    try:
        result = TRANSLATIONS[_full(name)](w, *args)
        results = [result] if isinstance(result, Value) else list(result)
        typed = [w.cast(one, kind.dtype) for one, kind in zip(results, w.out, strict=True)]
        return [Value(one.name, one.dtype, tuple(kind.shape)) for one, kind in zip(typed, w.out, strict=True)]
    finally:
        w.out = before


# ------------------------------------------------------------------------------------------------ both parts alike


def _alike(name: str) -> Translation:
    own = _INDICES.get(name, ())

    def part(w: Writer, place: int, argument: Any, which: int) -> Any:
        if place in own:
            return argument
        if isinstance(argument, list) and any(isinstance(one, Value) for one in argument):
            return [_parts(w, one)[which] for one in argument]
        return _parts(w, argument)[which] if isinstance(argument, Value | complex) else argument

    def translation(w: Writer, *args: Any) -> list[Value]:
        if any(kind.dtype not in COMPLEX for kind in w.out):
            raise unsupported("onnx has no such op from complex to real numbers")
        of_parts = []
        for which in (0, 1):
            taken = [part(w, place, argument, which) for place, argument in enumerate(args)]
            if name in ("add.Scalar", "sub.Scalar", "add.Tensor", "sub.Tensor"):
                taken = [*(_parts(w, argument)[which] for argument in args[:2]), _plain_alpha(args[2])]
            if name == "_to_copy":
                taken[1] = REAL_OF[w.out[0].dtype]
            of_parts.append(_write(w, name, *taken))
        return [_joined(w, re, im, kind) for re, im, kind in zip(*of_parts, w.out, strict=True)]

    return translation


def _plain_alpha(alpha: Any) -> Any:
    if isinstance(alpha, complex):
        raise unsupported("onnx has no complex alpha")
    return alpha


def _filled(name: str) -> Translation:
    def translation(w: Writer, *args: Any) -> Value:
        taken = [REAL_OF.get(one, one) if isinstance(one, str) else one for one in args]
        taken = [_parts(w, one)[0] if isinstance(one, Value | complex) else one for one in taken]
        if any(isinstance(one, complex) and one.imag for one in args):
            raise unsupported("onnx has no filling with complex numbers")
        (real,) = _write(w, name, *taken)
        return _joined(w, real, w.op("Sub", real, real), w.out[0])

    return translation


for _name in _ALIKE:
    translates_complex(_name)(_alike(_name))
for _name in _FILLED:
    translates_complex(_name)(_filled(_name))


# ------------------------------------------------------------------------------------------------ to and from parts


@translates_complex("complex")
def _complex(w: Writer, real: Value, imaginary: Value) -> Value:
    return _joined(w, real, imaginary, w.out[0])


@translates_complex("view_as_real")
def _view_as_real(_w: Writer, x: Value) -> Value:
    return Value(x.name, REAL_OF[x.dtype], (*x.dims, 2))


@translates_complex("view_as_complex")
def _view_as_complex(w: Writer, x: Value) -> Value:
    return Value(x.name, w.out[0].dtype, x.dims[:-1])


@translates_complex("real")
def _real_part(w: Writer, x: Value) -> Value:
    return cast("Value", _parts(w, x)[0])


@translates_complex("imag")
def _imaginary_part(w: Writer, x: Value) -> Value:
    return cast("Value", _parts(w, x)[1])


@translates_complex("_conj", "conj", "conj_physical")
def _conjugate(w: Writer, x: Value) -> Value:
    real, imaginary = _parts(w, x)
    return _joined(w, real, w.op("Neg", imaginary), w.out[0])


@translates_complex("resolve_conj", "resolve_neg")
def _same(_w: Writer, x: Value) -> Value:
    return x


# ------------------------------------------------------------------------------------------------ arithmetic


def _size(w: Writer, x: Value) -> Value:
    real, imaginary = _parts(w, x)
    return w.op("Sqrt", w.op("Add", w.op("Mul", real, real), w.op("Mul", imaginary, imaginary)), shape=x.dims)


@translates_complex("abs")
def _abs(w: Writer, x: Value) -> Value:
    return _size(w, x)


@translates_complex("sgn")
def _sgn(w: Writer, x: Value) -> Value:
    size = _size(w, x)
    none = w.op("Equal", size, w.constant(0.0, size.dtype), dtype="bool")
    by = w.op("Where", none, w.constant(1.0, size.dtype), size)
    real, imaginary = (w.op("Div", one, by) for one in _parts(w, x))
    return _joined(w, real, imaginary, w.out[0])


def _product(w: Writer, a: Any, b: Any, times: Callable[[Any, Any], Value]) -> tuple[Value, Value]:
    """By a product of real tensors; what is real on one side is multiplied twice instead of four times."""
    if not _is_complex(b):
        return cast("tuple[Value, Value]", tuple(times(one, b) for one in _parts(w, a)))
    if not _is_complex(a):
        return cast("tuple[Value, Value]", tuple(times(a, one) for one in _parts(w, b)))
    (ar, ai), (br, bi) = _parts(w, a), _parts(w, b)
    return w.op("Sub", times(ar, br), times(ai, bi)), w.op("Add", times(ar, bi), times(ai, br))


def _is_complex(operand: Any) -> bool:
    return isinstance(operand, complex) or (isinstance(operand, Value) and operand.dtype in COMPLEX)


def _times(w: Writer) -> Callable[[Any, Any], Value]:
    base = REAL_OF[w.out[0].dtype]
    return lambda a, b: w.op("Mul", w.operand(a, base), w.operand(b, base))


@translates_complex("mul.Tensor", "mul.Scalar")
def _mul(w: Writer, a: Any, b: Any) -> Value:
    return _joined(w, *_product(w, a, b, _times(w)), w.out[0])


@translates_complex("div.Tensor", "div.Scalar")
def _div(w: Writer, a: Any, b: Any) -> Value:
    base = REAL_OF[w.out[0].dtype]
    if isinstance(b, complex):
        return _mul(w, a, 1 / b)
    if not _is_complex(b):
        by = w.operand(b, base)
        real, imaginary = (w.op("Div", w.operand(one, base), by) for one in _parts(w, a))
        return _joined(w, real, imaginary, w.out[0])
    real, imaginary = _parts(w, b)
    square = w.op("Add", w.op("Mul", real, real), w.op("Mul", imaginary, imaginary))
    inverse = TensorType(dtype=b.dtype, shape=list(b.dims))
    turned = _joined(w, w.op("Div", real, square), w.op("Neg", w.op("Div", imaginary, square)), inverse)
    return _mul(w, a, turned)


@translates_complex("pow.Tensor_Scalar")
def _pow(w: Writer, x: Value, exponent: Any) -> Value:
    if isinstance(exponent, Symbolic) or exponent not in (1, 2):
        raise unsupported(f"onnx has no complex numbers to the power of {exponent}")
    return x if exponent == 1 else _mul(w, x, x)


@translates_complex("mm", "bmm", "mv", "matmul")
def _matmul(w: Writer, a: Value, b: Value) -> Value:
    return _joined(w, *_product(w, a, b, lambda x, y: w.op("MatMul", x, y)), w.out[0])


@translates_complex("addmm")
def _addmm(w: Writer, c: Value, a: Value, b: Value, beta: Any, alpha: Any) -> Value:
    product = _mul(w, _matmul(w, a, b), alpha)
    sums = zip(_parts(w, _mul(w, c, beta)), _parts(w, product), strict=True)
    real, imaginary = (w.op("Add", one, other) for one, other in sums)
    return _joined(w, real, imaginary, w.out[0])


@translates_complex("linear")
def _linear(w: Writer, x: Value, weight: Value, bias: Value | None) -> Value:
    turned = Value(w.node("Transpose", [weight.name], perm=[1, 0, 2])[0], weight.dtype, weight.dims[::-1])
    product = _matmul(w, x, turned)
    return product if bias is None else _alike("add.Tensor")(w, product, bias, 1)[0]  # type: ignore[index]


@translates_complex("eq.Tensor", "eq.Scalar")
def _eq(w: Writer, a: Any, b: Any) -> Value:
    base = REAL_OF[next(one.dtype for one in (a, b) if isinstance(one, Value) and one.dtype in COMPLEX)]
    pairs = zip(_parts(w, a), _parts(w, b), strict=True)
    real, imaginary = (
        w.op("Equal", w.operand(one, base), w.operand(other, base), dtype="bool") for one, other in pairs
    )
    return w.op("And", real, imaginary)


# ------------------------------------------------------------------------------------------------ Fourier transforms

_BY_ROOT, _BY_COUNT = 1, 2


def _transformed(w: Writer, x: Value, dims: Sequence[int], *, inverse: bool) -> str:
    """The tensor with its last dim, transformed over these dims and not scaled, by name."""
    base = REAL_OF[x.dtype]
    if base == "float64":
        raise unsupported("onnxruntime's transform of float64 is as coarse as that of float32")
    name = x.name
    for dim in dims:
        (name,) = w.node("DFT", [name, "", w.constant(np.int64(dim), "int64").name], inverse=int(inverse), onesided=0)
    if not inverse:
        return name
    by = w.cast(w.size(w.count([x.dims[dim] for dim in dims])), base)  # onnx has divided by it
    return w.op("Mul", Value(name, base), by).name


def _scaled(w: Writer, name: str, base: str, sizes: Sequence[Any], normalization: int) -> str:
    if normalization not in (_BY_ROOT, _BY_COUNT):
        return name
    by = w.cast(w.size(w.count(sizes)), base)
    return w.op("Div", Value(name, base), w.op("Sqrt", by) if normalization == _BY_ROOT else by).name


@translates_complex("_fft_c2c")
def _fft_c2c(w: Writer, x: Value, dims: Sequence[int], normalization: int, forward: bool) -> Value:
    axes = [wrap_dim(dim, x.rank) for dim in dims]
    name = _transformed(w, x, axes, inverse=not forward)
    name = _scaled(w, name, REAL_OF[x.dtype], [x.dims[axis] for axis in axes], normalization)
    return Value(name, x.dtype, x.dims)


@translates_complex("_fft_r2c")
def _fft_r2c(w: Writer, x: Value, dims: Sequence[int], normalization: int, onesided: bool) -> Value:
    axes = [wrap_dim(dim, x.rank) for dim in dims]
    kind = TensorType(dtype=w.out[0].dtype, shape=list(x.dims))
    whole = _fft_c2c(w, _joined(w, x, w.op("Sub", x, x), kind), axes, normalization, True)
    if not onesided:
        return whole
    half = w.slice(Value(whole.name, REAL_OF[kind.dtype]), axes[-1], 0, _half(x.dims[axes[-1]]))
    return Value(half.name, kind.dtype, tuple(w.out[0].shape))


def _half(size: Any) -> Any:
    if not isinstance(size, int):
        raise unsupported("onnx has no half of a spectrum whose size varies")
    return size // 2 + 1


@translates_complex("_fft_c2r")
def _fft_c2r(w: Writer, x: Value, dims: Sequence[int], normalization: int, last_dim_size: Any) -> Value:
    """The half that is missing is the conjugate of the other, backwards."""
    axes = [wrap_dim(dim, x.rank) for dim in dims]
    last, base = axes[-1], REAL_OF[x.dtype]
    half = _half(last_dim_size)
    name = _transformed(w, x, axes[:-1], inverse=True) if axes[:-1] else x.name
    first = w.slice(Value(name, base), last, 0, half)
    if (rest := (last_dim_size - 1) // 2) > 0:
        turned = w.slice(first, last, rest, 0, -1)
        turned = w.op("Mul", turned, w.constant(np.array([1.0, -1.0]), base))
        first = w.op("Concat", first, turned, axis=last)
    shape = [*x.dims]
    shape[last] = last_dim_size
    full = Value(first.name, x.dtype, tuple(shape))
    name = _scaled(w, _transformed(w, full, [last], inverse=True), base, [shape[axis] for axis in axes], normalization)
    result = _parts(w, Value(name, x.dtype, tuple(shape)))[0]
    return cast("Value", result)
