"""The sizes of a captured plan: its symbols, their ranges, and the conditions under which the plan is right.

torch's shape environment is the truth: what it has replaced (a size by another, or by a number), the range it has
narrowed each size to, and its guards. `Sizes` says the same in the words of the plan format.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from coordinator.capture.expressions import to_expression
from coordinator.errors import DimPinned, PlanBuildError, SourceLine
from edge_agent.plan.errors import ConditionFailed
from edge_agent.plan.expressions import evaluate, symbols_of
from edge_agent.plan.format import Expression, Symbol

__all__ = ["Bounds", "DynamicDim", "Guard", "Sizes"]

_HINT = (
    "a loop over a size, a comparison with ==, and int(), float(), range() and math.* of a size fix it; "
    "a size works in arithmetic as it is, and torch has functions for the whole tensor, and scan and map for its rows"
)

_TORCHS = (
    "torch itself fixes it, in a function that takes the size for a number, or since some size comes to 0 or 1 on the "
    "way, which it takes for constants: another function does not, or a larger example"
)

_LARGEST = 1 << 31
"""A range that ends above this has no end: torch writes the largest index for it."""


@dataclass(frozen=True, slots=True)
class DynamicDim:
    """A dim declared dynamic: of leaf ``leaf`` (called ``path``), torch's ``symbol`` for it, and the user's name, if
    any.
    """

    leaf: int
    dim: int
    path: str
    symbol: sympy.Symbol
    name: str


@dataclass(frozen=True, slots=True)
class Guard:
    """What torch assumed of the sizes, and where: ``direct`` if the user's own line asked, and not torch on its
    behalf.
    """

    expr: Any
    where: SourceLine | None
    direct: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """For which sizes a plan was made: the parts of a graph that say so.

    ``asked`` are the conditions of the user's own lines; ``assumed`` those that torch made on its way; ``lines`` all
    that the user's own lines ask, also what the ranges tell already.
    """

    symbols: tuple[Symbol, ...]
    asked: tuple[Expression, ...] = ()
    assumed: tuple[Expression, ...] = ()
    lines: tuple[Expression, ...] = ()

    @property
    def conditions(self) -> tuple[Expression, ...]:
        """All conditions."""
        return self.asked + self.assumed

    def hold(self, sizes: Mapping[str, int]) -> bool:
        """Whether these sizes are among them."""
        within = all(
            symbol.low <= sizes[symbol.name] and (symbol.high is None or sizes[symbol.name] <= symbol.high)
            for symbol in self.symbols
        )
        return within and _hold(self.conditions, sizes)

    def search(self, near: Mapping[str, int], *, tries: int = 4000) -> Iterator[dict[str, int]]:
        """Sizes among them, other than ``near``: first small ones about it, all different, then drawn at random under
        a fixed seed.
        """
        seen = [dict(near)]
        drawn = random.Random(0)
        for number in range(tries):
            sizes = {}
            for k, symbol in enumerate(self.symbols):
                top = min(near[symbol.name] + 8 + number // 4, _LARGEST if symbol.high is None else symbol.high)
                low = max(symbol.low, min(2, top))
                sizes[symbol.name] = (
                    min(near[symbol.name] + number + 1 + k, top) if number < 4 else drawn.randint(min(low, top), top)
                )
            self.derive(sizes)
            if sizes not in seen and self.hold(sizes):
                seen.append(sizes)
                yield sizes

    def derive(self, sizes: dict[str, int]) -> None:
        """Set the sizes that follow from others: a condition "s1 == 2 * s0" is met at once, in place of by luck."""
        for condition in self.conditions:
            if isinstance(condition, list) and condition[0] == "eq" and isinstance(condition[1], str):
                try:
                    sizes[condition[1]] = int(evaluate(condition[2], sizes))
                except ConditionFailed:
                    return


class Sizes:
    """The symbols of one tracing.

    Raises `DimPinned` when a dim declared dynamic has become a number.
    """

    def __init__(self, env: Any, dims: Sequence[DynamicDim], guards: Sequence[Guard]) -> None:
        self._env = env
        self._dims = {(dim.leaf, dim.dim): dim for dim in dims}
        self._guards = list(guards)
        self.names: dict[sympy.Symbol, str] = {}
        self._merged: dict[sympy.Symbol, sympy.Symbol] = {}
        self._own: dict[sympy.Symbol, Any] = {}
        for dim in dims:
            final = env.replace(dim.symbol)
            if final.is_number:
                raise self._pinned(dim, int(final))
            if not isinstance(final, sympy.Symbol):
                self._own[dim.symbol] = final
        self._name(dims)

    def _pinned(self, dim: DynamicDim, size: int) -> DimPinned:
        about = [guard for guard in self._guards if dim.symbol in guard.expr.free_symbols]
        site = next((guard for guard in about if guard.direct), about[0] if about else None)
        by_torch = site is None or not site.direct
        hint = _TORCHS if by_torch else _HINT
        return DimPinned(dim.path, dim.dim, size, by_torch=by_torch, hint=hint, where=site.where if site else None)

    def _canonical(self, dim: DynamicDim) -> sympy.Symbol:
        return dim.symbol if dim.symbol in self._own else self._env.replace(dim.symbol)

    def _name(self, dims: Sequence[DynamicDim]) -> None:
        taken = {dim.name for dim in dims if dim.name}
        first: dict[str, sympy.Symbol] = {}
        for dim in sorted(dims, key=lambda dim: not dim.name):  # the user's names first
            symbol = self._canonical(dim)
            if symbol in self.names:
                continue
            name = dim.name
            if name:
                self._merged[symbol] = first.setdefault(name, symbol)
            self.names[symbol] = name
        free = (name for k in range(len(dims) + len(taken)) if (name := f"s{k}") not in taken)
        for dim in dims:
            symbol = self._canonical(dim)
            if not self.names[symbol]:
                self.names[symbol] = next(free)

    # --------------------------------------------------------------------------------------------- what a graph needs

    def of_dim(self, leaf: int, dim: int, size: Any) -> Expression:
        """The dim of an input: its symbol's name, or its size."""
        declared = self._dims.get((leaf, dim))
        return int(size) if declared is None else self.names[self._canonical(declared)]

    def expression(self, value: Any) -> Expression | float:
        """The expression of a symbolic int, float or bool of the graph, or of a plain one."""
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return to_expression(self._simplified(value.node.expr), self.names)
        return to_expression(value, self.names)

    def _simplified(self, expr: Any) -> Any:
        return self._env.replace(expr).xreplace(self._merged)

    def bounds(self) -> Bounds:
        """The symbols with their ranges, and the conditions that the ranges do not tell already."""
        ranges: dict[sympy.Symbol, Any] = {}
        for symbol in self.names:
            target = self._merged.get(symbol, symbol)
            bound = ValueRanges(0, int_oo) if symbol in self._own else self._env.var_to_range[symbol]
            ranges[target] = ranges[target] & bound if target in ranges else bound
        symbols = tuple(
            Symbol(name=self.names[symbol], low=_low(bound), high=_high(bound)) for symbol, bound in ranges.items()
        )
        must: list[Expression] = []
        may: list[Expression] = []
        lines: list[Expression] = []
        for symbol, final in self._own.items():
            value = to_expression(self._simplified(final), self.names)
            must.append(["eq", self.names[symbol], value])
        for guard in self._guards:
            expr = self._simplified(guard.expr)
            if expr is sympy.false:
                raise PlanBuildError("no sizes meet all that this function assumes of them", where=guard.where)
            if expr is sympy.true:
                continue
            implied = _implied(expr, ranges)
            if implied and not guard.direct:
                continue
            condition: Any = to_expression(expr, self.names)
            if guard.direct:
                lines.append(condition)
            if not implied and condition not in must and condition not in may:
                (must if guard.direct else may).append(condition)
        for condition in sorted(may, key=lambda c: -len(repr(c))):
            rest = [*must, *(other for other in may if other != condition)]
            if _redundant(condition, Bounds(symbols, tuple(rest), ())):
                may.remove(condition)
        return Bounds(symbols, tuple(must), tuple(may), tuple(lines))


def _hold(conditions: Sequence[Expression], sizes: Mapping[str, int]) -> bool:
    try:
        return all(evaluate(condition, sizes) for condition in conditions)
    except ConditionFailed:
        return False


def _low(bound: Any) -> int:
    return max(0, int(bound.lower))


def _high(bound: Any) -> int | None:
    return None if not bound.upper.is_finite or bound.upper > _LARGEST else int(bound.upper)


def _implied(expr: Any, ranges: Mapping[sympy.Symbol, Any]) -> bool:
    if any(symbol not in ranges for symbol in expr.free_symbols):
        return False
    bound = bound_sympy(expr, dict(ranges))
    return bool(bound == ValueRanges.wrap(sympy.true))


def _redundant(condition: Expression, others: Bounds) -> bool:
    """Whether an assumption of torch's own (not of the user's lines) follows from the others, as far as trying sizes
    can tell. torch asks more than it needs, as whether two sizes differ on its way to a view; an op that could not
    run checks its sizes again.
    """
    near = {symbol.name: max(symbol.low, 2) for symbol in others.symbols}
    literals = sorted({number + step for number in _integers(condition) for step in (-1, 0, 1) if number + step >= 0})
    tried = 0
    for sizes in others.search(near, tries=1500):
        tried += 1
        if not _hold([condition], sizes):
            return False
    names = symbols_of(condition)
    for name in names:
        for literal in literals:
            sizes = {**near, name: literal}
            if others.hold(sizes) and not _hold([condition], sizes):
                return False
    return tried >= 16


def _integers(expr: Any) -> set[int]:
    if isinstance(expr, list):
        return {number for operand in expr[1:] for number in _integers(operand)}
    return {expr} if isinstance(expr, int) and not isinstance(expr, bool) else set()
