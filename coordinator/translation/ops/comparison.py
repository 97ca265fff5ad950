"""Comparisons and logic."""

from __future__ import annotations

from typing import Any

from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Value, Writer
from edge_agent.plan.dtypes import FLOATING

__all__: list[str] = []


def _comparison(kind: str, *, negated: bool = False) -> Translation:
    def write(w: Writer, a: Any, b: Any) -> Value:
        dtype = w.common(a, b)
        x, y = w.operand(a, dtype), w.operand(b, dtype)
        if dtype == "bool" and kind != "Equal":
            x, y = w.cast(x, "int32"), w.cast(y, "int32")
        result = w.op(kind, x, y, dtype="bool")
        return w.op("Not", result) if negated else result

    return write


for _overload in ("Tensor", "Scalar"):
    TRANSLATIONS[f"aten.eq.{_overload}"] = _comparison("Equal")
    TRANSLATIONS[f"aten.ne.{_overload}"] = _comparison("Equal", negated=True)
    TRANSLATIONS[f"aten.lt.{_overload}"] = _comparison("Less")
    TRANSLATIONS[f"aten.le.{_overload}"] = _comparison("LessOrEqual")
    TRANSLATIONS[f"aten.gt.{_overload}"] = _comparison("Greater")
    TRANSLATIONS[f"aten.ge.{_overload}"] = _comparison("GreaterOrEqual")


def _logic(kind: str) -> Translation:
    def write(w: Writer, a: Value, b: Value) -> Value:
        return w.op(kind, w.cast(a, "bool"), w.cast(b, "bool"))

    return write


for _name in ("and", "or", "xor"):
    TRANSLATIONS[f"aten.logical_{_name}.default"] = _logic(_name.capitalize())


@translates("isclose")
def _isclose(w: Writer, a: Value, b: Value, rtol: float, atol: float, equal_nan: bool) -> Value:
    equal = w.op("Equal", a, b, dtype="bool")
    wide = "float64" if a.dtype not in FLOATING else a.dtype
    x, y = w.wide(a, wide), w.wide(b, wide)
    room = w.op("Add", w.op("Mul", w.op("Abs", y), w.operand(rtol, x.dtype)), w.operand(atol, x.dtype))
    gap = w.op("Abs", w.op("Sub", x, y))
    finite = w.op("Not", w.op("IsInf", gap, dtype="bool"))
    result = w.op("Or", equal, w.op("And", w.op("LessOrEqual", gap, room, dtype="bool"), finite))
    if equal_nan and a.dtype in FLOATING:
        both = w.op("And", w.op("IsNaN", x, dtype="bool"), w.op("IsNaN", y, dtype="bool"))
        result = w.op("Or", result, both)
    return result


@translates("isin.Tensor_Tensor", "isin.Tensor_Scalar")
def _isin(w: Writer, elements: Value, tests: Any, _assume_unique: bool, invert: bool) -> Value:
    dtype = w.common(elements, tests)
    x = w.op("Unsqueeze", w.operand(elements, dtype), w.ints([-1]))
    y = w.op("Reshape", w.operand(tests, dtype), w.ints([-1]))
    same = w.cast(w.op("Equal", x, y, dtype="bool"), "int32")
    found = w.cast(w.op("ReduceSum", same, w.ints([-1]), keepdims=0), "bool")
    return w.op("Not", found) if invert else found
