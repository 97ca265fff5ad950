"""Sums of products: the normal form of dims, and what is computed with it.

A sum maps each of its products (its atoms, sorted; the empty product is 1) to its coefficient, which is not 0. An atom
is a symbol, or an expression that cannot be taken apart, with tuples for lists. All functions keep to the limits
below, so that a plan cannot fill the memory with its dims.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.expressions import INT_LIMIT, MAX_DEPTH
from edge_agent.plan.format import Dim

__all__ = [
    "MAX_DEGREE",
    "MAX_TERMS",
    "MAX_WEIGHT",
    "Frozen",
    "Poly",
    "Product",
    "add",
    "atom_of",
    "exact_quotient",
    "freeze",
    "key_of",
    "multiply",
    "parse",
    "rank",
    "scaled",
    "single_floordiv",
    "symbols_in",
    "thaw",
    "to_expression",
    "within",
]

MAX_TERMS = 64
MAX_DEGREE = 16
MAX_WEIGHT = 512
"""How many operators and operands a dim may have: a plan whose dims grow beyond it is refused."""

Frozen: TypeAlias = Any
"""An expression with tuples for lists, so that it can be a key."""
Product: TypeAlias = tuple[Frozen, ...]
Poly: TypeAlias = dict[Product, int]


def within(number: int) -> int:
    """The number itself. Raises `PlanTypeError` beyond 64 bits."""
    if not -INT_LIMIT < number < INT_LIMIT:
        raise PlanTypeError("expected sizes within 64 bits, got larger ones")
    return number


def rank(term: Product) -> tuple[int, str]:
    """What products are ordered by: highest degree first, then by name, the same in every process."""
    return -len(term), str(term)


def add(a: Poly, b: Poly, sign: int) -> Poly:
    """``a + sign * b``."""
    total = dict(a)
    for term, coefficient in b.items():
        combined = within(total.get(term, 0) + sign * coefficient)
        if combined:
            total[term] = combined
        else:
            total.pop(term, None)
    return _limited(total)


def scaled(poly: Poly, factor: int) -> Poly:
    """``factor * poly``."""
    return {term: within(coefficient * factor) for term, coefficient in poly.items()} if factor else {}


def multiply(a: Poly, b: Poly) -> Poly:
    """``a * b``."""
    product: Poly = {}
    for left, first in a.items():
        for right, second in b.items():
            term = tuple(sorted((*left, *right), key=str)) if left and right else left or right
            if len(term) > MAX_DEGREE:
                raise PlanTypeError(f"expected dims of at most {MAX_DEGREE} factors, got more")
            combined = within(product.get(term, 0) + within(first * second))
            if combined:
                product[term] = combined
            else:
                product.pop(term, None)
    return _limited(product)


def _limited(poly: Poly) -> Poly:
    if len(poly) > MAX_TERMS:
        raise PlanTypeError(f"expected dims of at most {MAX_TERMS} terms, got more")
    return poly


def exact_quotient(a: Poly, divisor: Product, coefficient: int) -> Poly | None:
    """``a`` divided by one product, if every term has it as a factor."""
    quotient: Poly = {}
    for term, own in a.items():
        if own % coefficient:
            return None
        remaining = list(term)
        for atom in divisor:
            if atom not in remaining:
                return None
            remaining.remove(atom)
        quotient[tuple(remaining)] = own // coefficient
    return quotient


def single_floordiv(poly: Poly) -> tuple[Frozen, int] | None:
    """The numerator and the denominator, if the sum is one floor division by a positive constant."""
    if len(poly) == 1:
        ((term, coefficient),) = poly.items()
        if coefficient == 1 and len(term) == 1 and isinstance(term[0], tuple) and term[0][0] == "floordiv":
            _, numerator, denominator = term[0]
            if type(denominator) is int and denominator > 0:
                return numerator, denominator
    return None


def to_expression(poly: Poly) -> Dim:
    """The dim that a sum is: an int, a symbol, or an expression in normal form."""
    if not poly:
        return 0
    terms = sorted(poly.items(), key=lambda item: rank(item[0]))
    parts: list[Any] = []
    for term, coefficient in terms:
        factors = [thaw(atom) for atom in term]
        if not factors:
            parts.append(coefficient)
        elif coefficient == 1 and len(factors) == 1:
            parts.append(factors[0])
        else:
            parts.append(["mul", *([] if coefficient == 1 else [coefficient]), *factors])
    expression: Dim = parts[0] if len(parts) == 1 else ["add", *parts]
    if isinstance(expression, list):
        _weigh(expression)
    return expression


def parse(frozen: Frozen) -> Poly:
    """The sum that an expression in normal form is: nothing is brought to it again."""
    if isinstance(frozen, int):
        return {(): frozen} if frozen else {}
    if isinstance(frozen, tuple) and frozen[0] == "add":
        return {term: coefficient for part in frozen[1:] for term, coefficient in parse(part).items()}
    if isinstance(frozen, tuple) and frozen[0] == "mul":
        coefficient = frozen[1] if type(frozen[1]) is int else 1
        return {tuple(frozen[2:] if type(frozen[1]) is int else frozen[1:]): coefficient}
    return {(frozen,): 1}


def freeze(expr: Any) -> Frozen:
    """The expression with tuples for its lists."""
    return tuple(map(freeze, expr)) if isinstance(expr, list) else expr


def thaw(frozen: Frozen) -> Any:
    """The expression with lists for its tuples."""
    return list(map(thaw, frozen)) if isinstance(frozen, tuple) else frozen


def key_of(poly: Poly) -> Frozen:
    """What tells a sum from any other."""
    return frozenset(poly.items())


def atom_of(atom: Frozen) -> Frozen:
    """The atom itself. Raises `PlanTypeError` if it is too large."""
    _weigh(atom)
    return atom


def _weigh(expr: Any) -> None:
    """Refuse an expression that has grown too large: a few ops that double it could otherwise fill the memory."""
    weight = 0
    pending = [(expr, 1)]
    while pending:
        node, depth = pending.pop()
        weight += 1
        if weight > MAX_WEIGHT or depth > MAX_DEPTH - 4:
            raise PlanTypeError(f"expected dims of at most {MAX_WEIGHT} operators and operands, got larger ones")
        if isinstance(node, list | tuple):
            pending.extend((operand, depth + 1) for operand in node[1:])


def symbols_in(term: Product) -> set[str]:
    """The names of the symbols in a product."""
    found: set[str] = set()
    pending: list[Frozen] = list(term)
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            found.add(node)
        elif isinstance(node, tuple):
            pending.extend(node[1:])
    return found
