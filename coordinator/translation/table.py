"""The table of translations: op name to the function that writes it. The families fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from coordinator.translation.writer import Value

__all__ = ["COMPLEX_TRANSLATIONS", "TRANSLATIONS", "Translation", "translates", "translates_complex"]

Translation: TypeAlias = Callable[..., Value | Sequence[Value]]
"""``translation(writer, *arguments)``: arguments as in the schema, defaults filled in; tensors as `Value`, symbolic
numbers as `Symbolic`, dtypes as names."""

Written = TypeVar("Written", bound=Translation)

TRANSLATIONS: dict[str, Translation] = {}

COMPLEX_TRANSLATIONS: dict[str, Translation] = {}
"""The same for ops that take or give complex numbers."""


def translates(*names: str) -> Callable[[Written], Written]:
    """Register a function for ops: ``add.Tensor``; the overload is ``default`` where none is named. What is not torch's
    is named whole: ``control.cond.default``.
    """
    return _registering(TRANSLATIONS, names)


def translates_complex(*names: str) -> Callable[[Written], Written]:
    """Register a function for ops where an argument or a result is complex."""
    return _registering(COMPLEX_TRANSLATIONS, names)


def _registering(table: dict[str, Translation], names: Sequence[str]) -> Callable[[Written], Written]:
    def register(function: Written) -> Written:
        for name in names:
            full = f"aten.{name}" if "." in name else f"aten.{name}.default"
            full = name if name.startswith("control.") else full
            if full in table:
                raise ValueError(f"expected one translation of {full}, got two")
            table[full] = function
        return function

    return register
