"""The table of translations: op name to the function that writes it. The families fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from coordinator.translation.writer import Value

__all__ = ["TRANSLATIONS", "Translation", "translates"]

Translation: TypeAlias = Callable[..., Value | Sequence[Value]]
"""``translation(writer, *arguments)``: arguments as in the schema, defaults filled in; tensors as `Value`, symbolic
numbers as `Symbolic`, dtypes as names."""

Written = TypeVar("Written", bound=Translation)

TRANSLATIONS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Written], Written]:
    """Register a function for ops: ``add.Tensor``; the overload is ``default`` where none is named."""

    def register(function: Written) -> Written:
        for name in names:
            full = f"aten.{name}" if "." in name else f"aten.{name}.default"
            if full in TRANSLATIONS:
                raise ValueError(f"expected one translation of {full}, got two")
            TRANSLATIONS[full] = function
        return function

    return register
