"""The algebra of dims: what the checker knows of sizes before they are.

A dim is brought to a normal form: a sum of products of symbols and of what cannot be taken apart (a floor division, a
minimum, ...), in a fixed order. Two dims with one normal form are equal; two whose difference cannot be 0 are not; of
any others nothing is known, and the op itself decides when it runs. The conditions of the graph are used: ``s1 == s0``
makes them one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.expressions import INT_LIMIT
from edge_agent.plan.format import Dim, Expression, Symbol
from edge_agent.plan.polynomials import (
    MAX_DEGREE,
    Frozen,
    Poly,
    Product,
    add,
    atom_of,
    exact_quotient,
    freeze,
    key_of,
    multiply,
    parse,
    rank,
    scaled,
    single_floordiv,
    symbols_in,
    to_expression,
    within,
)

__all__ = ["Sizes"]

STEPS = 100_000
"""How many steps the algebra may take for a graph, besides `STEPS_PER_OP` for each op. A step takes microseconds."""
STEPS_PER_OP = 200

Bounds: TypeAlias = tuple[int | None, int | None]


class Sizes:
    """What is known about the sizes of one graph: its symbols' ranges, and its conditions.

    Dims come in as checked expressions, and go out in normal form. ``ops``: how many ops the graph has, which limits
    the work.
    """

    def __init__(self, symbols: Iterable[Symbol] = (), conditions: Iterable[Expression] = (), *, ops: int = 0) -> None:
        self._bounds: dict[str, Bounds] = {symbol.name: (symbol.low, symbol.high) for symbol in symbols}
        self._order = {name: place for place, name in enumerate(self._bounds)}
        self._replaced: dict[str, Poly] = {}
        self._zero: set[Frozen] = set()
        self._steps = STEPS + STEPS_PER_OP * ops
        self._nonzero: set[Frozen] = set()
        facts = [fact for condition in conditions for fact in _facts(condition)]
        # equations first, so that all else is told of the symbols that stay
        for name, left, right in sorted(facts, key=lambda fact: fact[0] != "eq"):
            self._learn(name, left, right)

    # ---------------------------------------------------------------------------------------- what dims are

    def normal(self, dim: Dim) -> Dim:
        """The normal form of a dim."""
        if type(dim) is int or (type(dim) is str and dim not in self._replaced):
            return dim
        return to_expression(self._poly(dim))

    def equal(self, a: Dim, b: Dim) -> bool | None:
        """Whether two dims are equal; None: not known."""
        if type(a) is int and type(b) is int:
            return a == b
        if a == b:
            return True
        difference = add(self._poly(a), self._poly(b), -1)
        if not difference:
            return True
        if not any(difference):  # a constant other than 0
            return False
        key, opposite = key_of(difference), key_of(scaled(difference, -1))
        if key in self._zero or opposite in self._zero:
            return True
        if key in self._nonzero or opposite in self._nonzero:
            return False
        low, high = self._range(difference)
        if (low is not None and low > 0) or (high is not None and high < 0):
            return False
        return None

    def low(self, dim: Dim) -> int | None:
        """The least that a dim can be, as far as is known."""
        return dim if type(dim) is int else self._range(self._poly(dim))[0]

    def high(self, dim: Dim) -> int | None:
        """The most that a dim can be, as far as is known."""
        return dim if type(dim) is int else self._range(self._poly(dim))[1]

    def line(self, dim: Dim) -> tuple[str, int, int] | None:
        """``(s, a, b)`` if the dim is ``a * s + b`` for one symbol s, and a of 1 or more; else None."""
        poly = self._poly(dim)
        terms = [term for term in poly if term]
        if len(terms) != 1 or len(terms[0]) != 1 or not isinstance(terms[0][0], str) or poly[terms[0]] < 1:
            return None
        return terms[0][0], poly[terms[0]], poly.get((), 0)

    # ---------------------------------------------------------------------------------------- what dims make

    def add(self, *dims: Dim) -> Dim:
        """The sum."""
        if all(type(dim) is int for dim in dims):
            return within(sum(dims))  # type: ignore[arg-type]  # ints, all of them
        total: Poly = {}
        for dim in dims:
            total = add(total, self._poly(dim), 1)
        return to_expression(total)

    def sub(self, a: Dim, b: Dim) -> Dim:
        """The difference."""
        if type(a) is int and type(b) is int:
            return within(a - b)
        return to_expression(add(self._poly(a), self._poly(b), -1))

    def mul(self, *dims: Dim) -> Dim:
        """The product; of none: 1."""
        if len(dims) == 1:
            return self.normal(dims[0])
        factor = 1
        symbolic: Poly | None = None
        for dim in dims:
            if type(dim) is int:
                factor = within(factor * dim)
            else:
                symbolic = self._poly(dim) if symbolic is None else self._multiplied(symbolic, self._poly(dim))
        return factor if symbolic is None else to_expression(scaled(symbolic, factor))

    def floordiv(self, a: Dim, b: Dim) -> Dim:
        """The quotient, rounded down."""
        if b == 0:
            raise PlanTypeError("expected a divisor other than 0, got 0")
        if type(a) is int and type(b) is int:
            return a // b
        return to_expression(self._divided(self._poly(a), self._poly(b)))

    def min(self, *dims: Dim) -> Dim:
        """The least."""
        return to_expression(self._extreme("min", [self._poly(dim) for dim in dims]))

    def max(self, *dims: Dim) -> Dim:
        """The greatest."""
        return to_expression(self._extreme("max", [self._poly(dim) for dim in dims]))

    def make(self, *parts: Any) -> Dim:
        """The normal form of ``[operator, operand, ...]``, for an operator that has no method here."""
        return self.normal(list(parts))

    def broadcast(self, a: Dim, b: Dim) -> Dim:
        """The dim that broadcasting makes of two. Raises `PlanTypeError` if it is certain that they do not fit."""
        if a == b or b == 1:
            return a
        if a == 1:
            return b
        if type(a) is int and type(b) is int:
            raise PlanTypeError(f"expected dims that broadcast, got {a} and {b}")
        equal = self.equal(a, b)
        if equal:
            return b if type(b) is int else a
        one_a, one_b = self.equal(a, 1), self.equal(b, 1)
        if one_a:
            return b
        if one_b:
            return a
        if equal is False and one_a is False and one_b is False:
            raise PlanTypeError(f"expected dims that broadcast, got {a} and {b}")
        # whichever is certainly not 1 is the result, if there is one at all
        if one_b is False and (type(b) is int or one_a is None):
            return b
        if one_a is False:
            return a
        first, second = sorted((a, b), key=str)
        return to_expression({(atom_of(("broadcast", freeze(first), freeze(second))),): 1})

    # ---------------------------------------------------------------------------------------- normal forms

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise PlanTypeError("expected dims that can be checked in reasonable time, got a plan whose dims cannot")

    def _multiplied(self, a: Poly, b: Poly) -> Poly:
        self._spend(8 * len(a) * len(b))
        return multiply(a, b)

    def _poly(self, dim: Any) -> Poly:
        self._spend(1)
        if isinstance(dim, int):
            return {(): int(dim)} if dim else {}
        if isinstance(dim, str):
            replaced = self._replaced.get(dim)
            return {(dim,): 1} if replaced is None else replaced
        if isinstance(dim, float):
            raise PlanTypeError(f"expected an integer as a size, got {dim}")
        name, *operands = dim
        if name in ("add", "sub"):
            total: Poly = {}
            for place, operand in enumerate(operands):
                total = add(total, self._poly(operand), -1 if name == "sub" and place else 1)
            return total
        if name == "neg":
            return scaled(self._poly(operands[0]), -1)
        if name == "mul":
            product: Poly = {(): 1}
            for operand in operands:
                product = self._multiplied(product, self._poly(operand))
            return product
        return self._compound(name, operands)

    def _compound(self, name: str, operands: list[Any]) -> Poly:
        if any(_inexact(operand) for operand in operands):
            return {(atom_of((name, *map(freeze, operands))),): 1}
        if name == "floordiv":
            return self._divided(self._poly(operands[0]), self._poly(operands[1]))
        if name == "mod":
            a, b = (self._poly(operand) for operand in operands)
            return add(a, self._multiplied(b, self._divided(a, b)), -1)
        if name == "ceildiv":
            a, b = (self._poly(operand) for operand in operands)
            if list(b) == [()] and b[()] > 0:
                return self._by_constant(add(a, {(): b[()] - 1}, 1), b[()])
            return scaled(self._divided(scaled(a, -1), b), -1)
        if name in ("trunc", "floor", "ceil", "round"):
            return self._poly(operands[0])  # of an integer, which it is: see _inexact
        if name == "pow" and type(operands[1]) is int and 0 <= operands[1] <= MAX_DEGREE:
            return self._poly(["mul", 1, *[operands[0]] * operands[1]])
        if name in ("min", "max"):
            return self._extreme(name, [self._poly(operand) for operand in operands])
        if name in ("broadcast", "pow", "abs"):
            return {(atom_of((name, *(freeze(self.normal(operand)) for operand in operands))),): 1}
        return {(atom_of((name, *map(freeze, operands))),): 1}

    def _divided(self, a: Poly, b: Poly) -> Poly:
        if len(b) == 1:
            ((divisor, coefficient),) = b.items()
            if divisor:
                exact = exact_quotient(a, divisor, coefficient)
                if exact is not None:
                    return exact
            elif coefficient > 0:
                return self._by_constant(a, coefficient)
            else:
                return self._by_constant(scaled(a, -1), -coefficient)
        return {(atom_of(("floordiv", freeze(to_expression(a)), freeze(to_expression(b)))),): 1}

    def _by_constant(self, a: Poly, divisor: int) -> Poly:
        leading = min((term for term in a if term), key=rank, default=())
        if leading and a[leading] < 0:  # floor(-x / n) = -floor((x + n - 1) / n)
            return scaled(self._by_constant(add(scaled(a, -1), {(): divisor - 1}, 1), divisor), -1)
        whole = {term: coefficient // divisor for term, coefficient in a.items()}
        # a // n = q + r // n for a = q n + r: each coefficient's remainder stays under the division
        rest = {term: coefficient - whole[term] * divisor for term, coefficient in a.items()}
        whole = {term: coefficient for term, coefficient in whole.items() if coefficient}
        rest = {term: coefficient for term, coefficient in rest.items() if coefficient}
        low, high = self._range(rest)
        if low is not None and high is not None and low // divisor == high // divisor:
            return add(whole, {(): low // divisor}, 1)
        inner = single_floordiv(rest)
        if inner is not None:  # (x // m) // n = x // (m n)
            numerator, denominator = inner
            return add(whole, self._by_constant(parse(numerator), within(denominator * divisor)), 1)
        return add(whole, {(atom_of(("floordiv", freeze(to_expression(rest)), divisor)),): 1}, 1)

    def _extreme(self, name: str, operands: Sequence[Poly]) -> Poly:
        flat: dict[Frozen, Poly] = {}
        for operand in operands:
            for part in self._parts(name, operand):
                flat[key_of(part)] = part
        kept = dict(flat)
        self._spend(len(flat) ** 2)
        for key, candidate in flat.items() if len(flat) <= 8 else ():
            for other_key, other in flat.items():
                if key != other_key and other_key in kept and key in kept:
                    low, high = self._range(add(candidate, other, -1))
                    if (name == "max" and high is not None and high <= 0) or (
                        name == "min" and low is not None and low >= 0
                    ):
                        del kept[key]
        if len(kept) == 1:
            return next(iter(kept.values()))
        ordered = sorted((freeze(to_expression(part)) for part in kept.values()), key=str)
        return {(atom_of((name, *ordered)),): 1}

    def _parts(self, name: str, operand: Poly) -> list[Poly]:
        if len(operand) == 1:
            ((term, coefficient),) = operand.items()
            if coefficient == 1 and len(term) == 1 and isinstance(term[0], tuple) and term[0][0] == name:
                return [parse(part) for part in term[0][1:]]
        return [operand]

    # ---------------------------------------------------------------------------------------- bounds

    def _range(self, poly: Poly) -> Bounds:
        low: int | None = 0
        high: int | None = 0
        for term, coefficient in poly.items():
            least, most = self._term_range(term)
            if coefficient < 0:
                least, most = most, least
            low = None if low is None or least is None else low + coefficient * least
            high = None if high is None or most is None else high + coefficient * most
        return low, high

    def _term_range(self, term: Product) -> Bounds:
        least: int | None = 1
        most: int | None = 1
        for atom in term:
            low, high = self._atom_range(atom)
            if len(term) == 1:
                return low, high
            if low is None or low < 0:
                return None, None
            least = None if least is None else min(least * low, INT_LIMIT)
            most = None if most is None or high is None else most * high
            if most is not None and most > INT_LIMIT:
                most = None
        return least, most

    def _atom_range(self, atom: Frozen) -> Bounds:
        if isinstance(atom, str):
            return self._bounds.get(atom, (None, None))
        self._spend(1)
        name, *operands = atom
        if name not in ("floordiv", "min", "max", "broadcast") or any(_inexact(operand) for operand in operands):
            return None, None
        ranges = [self._range(parse(operand)) for operand in operands]
        lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
        if name == "floordiv":
            divisor = operands[1]
            if type(divisor) is int and divisor > 0:
                (low, high), _ = ranges
                return None if low is None else low // divisor, None if high is None else high // divisor
            return (0, None) if all(low is not None and low >= 0 for low in lows) else (None, None)
        known_lows, known_highs = [low for low in lows if low is not None], [high for high in highs if high is not None]
        if name == "max":
            return max(known_lows, default=None), max(known_highs) if len(known_highs) == len(highs) else None
        if name == "min":
            return min(known_lows) if len(known_lows) == len(lows) else None, min(known_highs, default=None)
        return (
            min(known_lows) if len(known_lows) == len(lows) else None,
            max(known_highs) if len(known_highs) == len(highs) else None,
        )

    # ---------------------------------------------------------------------------------------- conditions

    def _learn(self, name: str, left: Expression, right: Expression) -> None:
        try:
            difference = add(self._poly(left), self._poly(right), -1)
            if name == "eq":
                self._learn_equal(difference)
        except PlanTypeError:
            if self._steps < 0:
                raise
            return  # too large to be of use here; the call checks it all the same
        if name == "ne":
            self._nonzero.add(key_of(difference))
        elif name != "eq":
            self._learn_bound(name, difference)

    def _learn_equal(self, difference: Poly) -> None:
        alone = [
            term[0]
            for term, coefficient in difference.items()
            if len(term) == 1 and isinstance(term[0], str) and abs(coefficient) == 1
        ]
        for symbol in sorted(alone, key=lambda name: -self._order.get(name, 0)):
            others = {term: coefficient for term, coefficient in difference.items() if term != (symbol,)}
            if len(others) <= 4 and not any(symbol in symbols_in(term) for term in others):
                self._replace(symbol, scaled(others, -difference[symbol,]))
                return
        self._zero.add(key_of(difference))

    def _replace(self, symbol: str, by: Poly) -> None:
        low, high = self._range(by)
        own_low, own_high = self._bounds.get(symbol, (None, None))
        if len(by) == 1 and (only := next(iter(by))) and len(only) == 1 and isinstance(only[0], str) and by[only] == 1:
            # the symbol that stays has both ranges
            self._bounds[only[0]] = (_tighter(low, own_low, max), _tighter(high, own_high, min))
        self._replaced[symbol] = by
        for name, poly in self._replaced.items():
            if any(symbol in symbols_in(term) for term in poly):
                self._replaced[name] = self._poly(to_expression(poly))

    def _learn_bound(self, name: str, difference: Poly) -> None:
        constant = difference.get((), 0)
        symbols = {term: coefficient for term, coefficient in difference.items() if term}
        if len(symbols) != 1:
            return
        ((term, coefficient),) = symbols.items()
        if len(term) != 1 or not isinstance(term[0], str) or abs(coefficient) != 1:
            return
        low, high = self._bounds.get(term[0], (None, None))
        # coefficient * s + constant (name) 0
        upward = (name in ("gt", "ge")) == (coefficient > 0)
        edge = -constant * coefficient
        if name in ("gt", "lt"):
            edge += 1 if upward else -1
        self._bounds[term[0]] = (_tighter(low, edge, max), high) if upward else (low, _tighter(high, edge, min))


def _facts(condition: Expression) -> list[tuple[str, Expression, Expression]]:
    """The comparisons of integers that are true where the condition is."""
    facts = []
    pending: list[Any] = [condition]
    while pending:
        node = pending.pop()
        if not isinstance(node, list):
            continue
        if node[0] == "and":
            pending += node[1:]
        elif node[0] in ("eq", "ne", "lt", "le", "gt", "ge") and not any(_inexact(operand) for operand in node[1:]):
            facts.append((node[0], node[1], node[2]))
    return facts


def _inexact(expr: Any) -> bool:
    """Whether floats or conditions take part, to which the algebra of integers does not apply."""
    pending = [expr]
    while pending:
        node = pending.pop()
        if isinstance(node, float | bool):
            return True
        if isinstance(node, list | tuple):
            if node[0] in (
                "truediv",
                "float",
                "sqrt",
                "exp",
                "log",
                "eq",
                "ne",
                "lt",
                "le",
                "gt",
                "ge",
                "and",
                "or",
                "not",
                "where",
            ):
                return True
            pending.extend(node[1:])
    return False


def _tighter(a: int | None, b: int | None, choose: Any) -> int | None:
    if a is None or b is None:
        return a if b is None else b
    return int(choose(a, b))
