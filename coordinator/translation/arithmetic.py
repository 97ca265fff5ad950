"""Numbers that are known only when a plan runs, as nodes of the model: an operation of an expression at a time.

The values are of shape [1], in int64, float64 or bool; `edge_agent.plan.expressions` says what each operation means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.translation.writer import Value, Writer

__all__ = ["computed"]

_DTYPES: Mapping[str, str] = {"int": "int64", "float": "float64", "bool": "bool"}
_COMPARISONS: Mapping[str, str] = {
    "eq": "Equal",
    "ne": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
_FOLDED: Mapping[str, str] = {"add": "Add", "mul": "Mul", "sub": "Sub", "min": "Min", "max": "Max"}
_LOGICAL: Mapping[str, str] = {"and": "And", "or": "Or"}
_ROUNDINGS: Mapping[str, str] = {"floor": "Floor", "ceil": "Ceil", "round": "Round"}


def computed(writer: Writer, name: str, parts: Sequence[Value], kind: str) -> Value:
    """The operation ``name`` of its operands. ``kind``: what it gives, as of `check_expression`."""
    dtype = _DTYPES[kind]
    if name in _COMPARISONS:
        return _compared(writer, name, parts)
    if name in _LOGICAL:
        return _folded(writer, _LOGICAL[name], parts)
    if name == "not":
        return writer.op("Not", parts[0])
    if name == "where":
        return writer.op("Where", *parts, dtype=dtype)
    if name == "broadcast":
        a, b = parts
        return writer.op("Where", writer.op("Equal", a, writer.ints([1]), dtype="bool"), b, a, dtype="int64")
    if name in _FOLDED:
        return _folded(writer, _FOLDED[name], [writer.cast(one, dtype) for one in parts])
    if name == "trunc" or name in _ROUNDINGS:
        return _rounded(writer, name, parts[0])
    if name == "float":
        return writer.cast(parts[0], "float64")
    if name in ("sqrt", "exp", "log"):
        return writer.op(name.capitalize(), writer.cast(parts[0], "float64"))
    if name in ("neg", "abs"):
        return writer.op(name.capitalize(), parts[0])
    if name == "pow":
        return writer.cast(writer.op("Pow", *(writer.cast(one, dtype) for one in parts)), dtype)
    return _divided(writer, name, parts, dtype)


def _compared(writer: Writer, name: str, parts: Sequence[Value]) -> Value:
    wide = "float64" if any(one.dtype == "float64" for one in parts) else "int64"
    a, b = (writer.cast(one, wide) for one in parts)
    found = writer.op(_COMPARISONS[name], a, b, dtype="bool")
    return writer.op("Not", found) if name == "ne" else found


def _folded(writer: Writer, kind: str, parts: Sequence[Value]) -> Value:
    result = parts[0]
    for one in parts[1:]:
        result = writer.op(kind, result, one)
    return result


def _rounded(writer: Writer, name: str, value: Value) -> Value:
    if value.dtype == "int64":
        return value
    # trunc is what the cast does
    return writer.cast(writer.op(_ROUNDINGS[name], value) if name in _ROUNDINGS else value, "int64")


def _divided(writer: Writer, name: str, parts: Sequence[Value], dtype: str) -> Value:
    a, b = (writer.cast(one, "float64" if name == "truediv" else dtype) for one in parts)
    if dtype == "int64":  # what divides by 0 is refused before it runs; onnxruntime would die of it
        zero = writer.op("Equal", b, writer.ints([0]), dtype="bool")
        b = writer.op("Where", zero, writer.ints([1]), b, dtype="int64")
    if name == "ceildiv":
        return writer.op("Neg", writer.floor_divide(writer.op("Neg", a), b))
    if name == "floordiv":
        return writer.floor_divide(a, b)
    if name == "mod":
        return writer.remainder(a, b)
    return writer.op("Div", a, b)
