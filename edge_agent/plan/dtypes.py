"""Which dtype an op gives: torch's type promotion, without torch.

The rules are those of torch's documentation, "Tensor Attributes", "type promotion": a tensor with dims outweighs one
without, which outweighs a Python number, as long as it is of the same category (bool, integral, floating, complex) or
a higher one. The default dtype is float32, always: a plan does not know what its process has set.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.protocol.tensors import DTYPES
from edge_agent.plan.errors import PlanTypeError

__all__ = [
    "BOOLEAN",
    "COMPLEX",
    "DEFAULT",
    "FLOATING",
    "INDICES",
    "INTEGRAL",
    "NUMBER_DTYPES",
    "common_dtype",
    "complex_of",
    "promote",
    "real_of",
    "to_floating",
]

DEFAULT = "float32"
"""What integers become where an op needs floats, and what a Python float is."""

BOOLEAN = frozenset({"bool"})
INTEGRAL = frozenset({"uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"})
FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
COMPLEX = frozenset({"complex64", "complex128"})
INDICES = frozenset({"int64", "int32"})
"""The dtypes of tensors that index others."""

NUMBER_DTYPES = {"bool": "bool", "int": "int64", "float": DEFAULT, "complex": "complex64"}
"""What a Python number counts as in promotion, by its kind."""

_SIGNED_ORDER = ["int8", "int16", "int32", "int64"]
_BAREBONE = frozenset({"uint16", "uint32", "uint64"})
_REAL_OF = {"complex64": "float32", "complex128": "float64"}
_COMPLEX_OF = {"float32": "complex64", "float64": "complex128", "bfloat16": "complex64"}


def _category(dtype: str) -> int:
    if dtype in INTEGRAL:
        return 1
    if dtype in FLOATING:
        return 2
    return 3 if dtype in COMPLEX else 0


def _promote(a: str, b: str) -> str | None:
    if a == b:
        return a
    high, low = (a, b) if _category(a) >= _category(b) else (b, a)
    if low in _BAREBONE or high in _BAREBONE:
        # torch knows these three as storage, and promotes them to floats only
        return high if high in FLOATING else None
    if _category(high) != _category(low):
        if high == "complex64" and low == "float64":
            return "complex128"
        return high
    if high in COMPLEX:
        return "complex128"
    if high in FLOATING:
        if "float64" in (a, b):
            return "float64"
        return "float32"  # float16 and bfloat16, or either and float32
    if "uint8" in (a, b):
        other = b if a == "uint8" else a
        return "int16" if other == "int8" else other
    return _SIGNED_ORDER[max(_SIGNED_ORDER.index(a), _SIGNED_ORDER.index(b))]


_PROMOTED = {(a, b): _promote(a, b) for a in DTYPES for b in DTYPES}


def promote(a: str, b: str) -> str:
    """The smallest dtype that torch promotes both to. Raises `PlanTypeError` where it has none."""
    promoted = _PROMOTED[a, b]
    if promoted is None:
        raise PlanTypeError(f"expected dtypes that promote to a common one, got {a} and {b}")
    return promoted


def complex_of(dtype: str) -> str:
    """The complex dtype whose parts are of ``dtype``."""
    if dtype not in _COMPLEX_OF:
        raise PlanTypeError(f"expected a dtype with a complex counterpart that may travel, got {dtype}")
    return _COMPLEX_OF[dtype]


def real_of(dtype: str) -> str:
    """The dtype of a complex dtype's parts; any other is its own."""
    return _REAL_OF.get(dtype, dtype)


def to_floating(dtype: str) -> str:
    """What bools and integers become in an op that needs floats."""
    return DEFAULT if dtype in INTEGRAL or dtype == "bool" else dtype


def _combine(higher: str | None, lower: str | None) -> str | None:
    # torch's combine_categories (aten/src/ATen/native/TypeProperties.cpp)
    if higher is None or lower is None:
        return higher or lower
    if higher in COMPLEX:
        return higher
    if higher in FLOATING:
        return complex_of(higher) if lower in COMPLEX else higher
    if lower in COMPLEX:
        return lower
    if higher == "bool" or lower in FLOATING:
        return promote(higher, lower)
    return higher


def common_dtype(operands: Iterable[tuple[str, str]]) -> str:
    """The dtype that an element-wise op computes in. An operand is its dtype and its weight: ``dims``, ``scalar`` (a
    tensor without dims) or ``number``. Raises `PlanTypeError` where torch has none.
    """
    found: dict[str, str | None] = {"dims": None, "scalar": None, "number": None}
    for dtype, weight in operands:
        held = found[weight]
        found[weight] = dtype if held is None else promote(held, dtype)
    combined = _combine(found["dims"], _combine(found["scalar"], found["number"]))
    if combined is None:
        raise PlanTypeError("expected an operand, got none")
    return combined
