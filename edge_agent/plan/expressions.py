"""Symbolic scalars: sizes that are known only when the plan runs, as data.

An expression is an int, a float, a symbol's name, or ``[operator, operand, ...]`` with an operator of `OPERATORS`. It
has a kind, ``int``, ``float`` or ``bool``, which `check_expression` tells. A dim of a shape is of kind int; a
condition of kind bool.

Evaluation never takes long and never makes large numbers: what lies beyond 64 bits, or is not defined (a division by
zero), is `ConditionFailed`, as a size for which the plan was not made.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from edge_agent.plan.errors import ConditionFailed, PlanMalformed
from edge_agent.plan.format import Expression

__all__ = [
    "INT_LIMIT",
    "MAX_DEPTH",
    "MAX_NODES",
    "OPERATORS",
    "EverySymbol",
    "Operator",
    "Scalar",
    "check_expression",
    "evaluate",
    "is_symbol_name",
    "render",
    "symbols_of",
]

Scalar: TypeAlias = int | float | bool
"""What an expression evaluates to."""

MAX_DEPTH = 64
"""How deep the operators of an expression may nest."""

MAX_NODES = 1024
"""How many operators and operands an expression may have."""

INT_LIMIT = 1 << 63
"""Every integer in an expression, and every integer that it evaluates to, is smaller than this in absolute value."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Operator(NamedTuple):
    """An operator: how many operands it takes, of what kinds, what it gives, how it is computed and written.

    ``kind``: ``int``, ``float`` or ``bool``; ``numeric`` is int where all operands are, else float. ``sign`` is the
    infix or prefix sign, or empty for ``name(a, b)``; a higher ``precedence`` binds tighter.
    """

    fewest: int
    most: int
    operands: str
    kind: str
    compute: Callable[..., Scalar]
    sign: str = ""
    precedence: int = 100


def _product(*factors: Scalar) -> Scalar:
    # bounded after every factor: the product of a thousand 63-bit numbers is never made
    result: Scalar = 1
    for factor in factors:
        result = _bounded(result * factor)
    return result


def _power(base: Scalar, exponent: Scalar) -> Scalar:
    if isinstance(base, int) and isinstance(exponent, int):
        if exponent < 0:
            raise ValueError("a negative exponent of an integer")
        if abs(base) > 1 and exponent >= 64:
            raise OverflowError("beyond 64 bits")
        power: int = int(base) ** exponent
        return power
    result = base**exponent
    if isinstance(result, complex):
        raise ValueError("a root of a negative number")
    return float(result)


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def _broadcast(a: int, b: int) -> int:
    # the size of a dim made of two: where they do not fit, the op itself fails
    return b if a == 1 else a


def _all(*operands: Scalar) -> bool:
    return all(operands)


def _any(*operands: Scalar) -> bool:
    return any(operands)


def _choose(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
    return a if condition else b


def _round(a: Scalar) -> int:
    return round(a)


_MANY = MAX_NODES

OPERATORS: dict[str, Operator] = {
    "add": Operator(2, _MANY, "number", "numeric", lambda *terms: sum(terms), "+", 60),
    "sub": Operator(2, 2, "number", "numeric", operator.sub, "-", 60),
    "mul": Operator(2, _MANY, "number", "numeric", _product, "*", 70),
    "neg": Operator(1, 1, "number", "numeric", operator.neg, "-", 80),
    "floordiv": Operator(2, 2, "number", "numeric", operator.floordiv, "//", 70),
    "ceildiv": Operator(2, 2, "int", "int", _ceil_divide),
    "truediv": Operator(2, 2, "number", "float", operator.truediv, "/", 70),
    "mod": Operator(2, 2, "number", "numeric", operator.mod, "%", 70),
    "pow": Operator(2, 2, "number", "numeric", _power, "**", 90),
    "abs": Operator(1, 1, "number", "numeric", abs),
    "min": Operator(2, _MANY, "number", "numeric", min),
    "max": Operator(2, _MANY, "number", "numeric", max),
    "broadcast": Operator(2, 2, "int", "int", _broadcast),
    "float": Operator(1, 1, "number", "float", float),
    "trunc": Operator(1, 1, "number", "int", math.trunc),
    "floor": Operator(1, 1, "number", "int", math.floor),
    "ceil": Operator(1, 1, "number", "int", math.ceil),
    "round": Operator(1, 1, "number", "int", _round),
    "sqrt": Operator(1, 1, "number", "float", math.sqrt),
    "exp": Operator(1, 1, "number", "float", math.exp),
    "log": Operator(1, 1, "number", "float", math.log),
    "eq": Operator(2, 2, "number", "bool", operator.eq, "==", 40),
    "ne": Operator(2, 2, "number", "bool", operator.ne, "!=", 40),
    "lt": Operator(2, 2, "number", "bool", operator.lt, "<", 40),
    "le": Operator(2, 2, "number", "bool", operator.le, "<=", 40),
    "gt": Operator(2, 2, "number", "bool", operator.gt, ">", 40),
    "ge": Operator(2, 2, "number", "bool", operator.ge, ">=", 40),
    "and": Operator(2, _MANY, "bool", "bool", _all, "and", 20),
    "or": Operator(2, _MANY, "bool", "bool", _any, "or", 10),
    "not": Operator(1, 1, "bool", "bool", operator.not_, "not ", 30),
    "where": Operator(3, 3, "choice", "choice", _choose),
}
"""Every operator. Integer division and remainder are Python's (towards minus infinity). ``broadcast(a, b)`` is b where
a is 1, else a; ``where(c, a, b)`` is a where c is true, else b, of the kind of a and b."""


def _bounded(result: Scalar) -> Scalar:
    if isinstance(result, int) and not -INT_LIMIT < result < INT_LIMIT:
        raise OverflowError("beyond 64 bits")
    return result


def evaluate(expr: Expression | float, sizes: Mapping[str, int]) -> Scalar:
    """The value of a checked expression. ``sizes`` maps every symbol in it to its size (see `symbols_of`).

    Raises `ConditionFailed` where the value is not defined, or has more than 64 bits.
    """
    if isinstance(expr, str):
        return sizes[expr]
    if isinstance(expr, int | float):
        return expr
    try:
        return _evaluate(expr, sizes)
    except (ArithmeticError, ValueError):
        names = symbols_of(expr)
        raise ConditionFailed(
            f"{render(expr)} defined and within 64 bits", {name: size for name, size in sizes.items() if name in names}
        ) from None


def _evaluate(expr: Any, sizes: Mapping[str, int]) -> Scalar:
    if isinstance(expr, str):
        return sizes[expr]
    if isinstance(expr, int | float):
        return expr
    return _bounded(OPERATORS[expr[0]].compute(*(_evaluate(operand, sizes) for operand in expr[1:])))


def symbols_of(expr: Expression | float) -> set[str]:
    """The names of the symbols in a checked expression."""
    if isinstance(expr, str):
        return {expr}
    if isinstance(expr, int | float):
        return set()
    found: set[str] = set()
    pending: list[Any] = list(expr[1:])
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            found.add(node)
        elif isinstance(node, list):
            pending.extend(node[1:])
    return found


def render(expr: Expression | float) -> str:
    """A checked expression as people write it: ``s0 // 2 + 1``."""
    return _render(expr)[0]


def _render(expr: Any) -> tuple[str, int]:
    if not isinstance(expr, list):
        return str(expr), 100 if isinstance(expr, str) or expr >= 0 else 80
    name, *operands = expr
    if name == "mul" and operands[0] == -1 and len(operands) == 2:
        name, operands = "neg", operands[1:]
    op = OPERATORS[name]
    if name == "add":
        return _render_sum(operands), op.precedence
    parts = [_render(operand) for operand in operands]
    if not op.sign:
        return f"{name}({', '.join(text for text, _ in parts)})", 100
    if len(parts) == 1:
        return op.sign + _bracketed(parts[0], op.precedence), op.precedence
    # operators are read from the left, so what stands on the right of an equal one needs its brackets; comparisons
    # and powers do not chain
    chains = 40 < op.precedence < 90
    texts = [_bracketed(part, op.precedence + (place > 0 or not chains)) for place, part in enumerate(parts)]
    return f" {op.sign} ".join(texts), op.precedence


def _render_sum(operands: list[Any]) -> str:
    text = _bracketed(_render(operands[0]), 60)
    for operand in operands[1:]:
        sign, positive = "+", operand
        if isinstance(operand, int) and operand < 0:
            sign, positive = "-", -operand
        elif isinstance(operand, list) and operand[0] == "mul" and isinstance(operand[1], int) and operand[1] < 0:
            rest = operand[2:] if operand[1] == -1 else [-operand[1], *operand[2:]]
            sign, positive = "-", rest[0] if len(rest) == 1 else ["mul", *rest]
        text += f" {sign} {_bracketed(_render(positive), 61)}"
    return text


def _bracketed(part: tuple[str, int], precedence: int) -> str:
    text, own = part
    return text if own >= precedence else f"({text})"


def check_expression(expr: Any, symbols: Collection[str]) -> str:
    """The kind of an expression from anywhere: ``int``, ``float`` or ``bool``.

    Raises `PlanMalformed` unless all its operators are in `OPERATORS`, with operands that fit, its symbols are among
    ``symbols``, its numbers finite and of less than 64 bits, and it keeps to `MAX_DEPTH` and `MAX_NODES`.
    """
    if type(expr) is str:  # the common cases first: a symbol, a size
        if expr not in symbols:
            raise PlanMalformed(f"expected a declared symbol, got {expr[:64]!r}")
        return "int"
    if type(expr) is int and -INT_LIMIT < expr < INT_LIMIT:
        return "int"
    return _Check(symbols).kind(expr, 0)


class EverySymbol(Collection[str]):
    """The symbols of an expression that the checker has passed: whichever it names."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Check:
    def __init__(self, symbols: Collection[str]) -> None:
        self.symbols = symbols
        self.nodes = 0

    def kind(self, expr: Any, depth: int) -> str:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise PlanMalformed(f"expected an expression of at most {MAX_NODES} operators and operands, got more")
        if isinstance(expr, bool):
            return "bool"
        if isinstance(expr, int):
            if not -INT_LIMIT < expr < INT_LIMIT:
                raise PlanMalformed("expected a number within 64 bits in an expression, got a larger one")
            return "int"
        if isinstance(expr, float):
            if not math.isfinite(expr):
                raise PlanMalformed(f"expected a finite number in an expression, got {expr}")
            return "float"
        if isinstance(expr, str):
            if expr not in self.symbols:
                raise PlanMalformed(f"expected a declared symbol, got {expr[:64]!r}")
            return "int"
        if depth >= MAX_DEPTH:
            raise PlanMalformed(f"expected operators nested at most {MAX_DEPTH} deep, got deeper ones")
        if not isinstance(expr, list) or not expr or not isinstance(expr[0], str) or expr[0] not in OPERATORS:
            raise PlanMalformed(f"expected a number, a symbol or [operator, operand, ...], got {_brief(expr)}")
        name, *operands = expr
        op = OPERATORS[name]
        if not op.fewest <= len(operands) <= op.most:
            raise PlanMalformed(
                f"expected {op.fewest} operands of {name} or more, up to {op.most}, got {len(operands)}"
            )
        kinds = [self.kind(operand, depth + 1) for operand in operands]
        return _kind_of(name, op, kinds)


def _kind_of(name: str, op: Operator, kinds: list[str]) -> str:
    if op.operands == "choice":
        condition, first, second = kinds
        if condition == "bool" and first == second:
            return first
        raise PlanMalformed(f"expected a condition and two of one kind for {name}, got {', '.join(kinds)}")
    taken = {"bool": ("bool",), "int": ("int",), "number": ("int", "float")}[op.operands]
    if any(kind not in taken for kind in kinds):
        raise PlanMalformed(f"expected {' or '.join(taken)} operands of {name}, got {', '.join(kinds)}")
    if op.kind == "numeric":
        return "float" if "float" in kinds else "int"
    return op.kind


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"[{_brief(value[0])}, ...]" if value else "[]"
    text = repr(value) if isinstance(value, str | bytes | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 64 else text[:61] + "..."


def is_symbol_name(name: str) -> bool:
    """Whether a symbol may have this name: an identifier of at most 64 characters, and not an operator's."""
    return bool(_NAME.fullmatch(name)) and name not in OPERATORS
