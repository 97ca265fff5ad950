"""From torch's symbolic sizes (sympy) to the expressions of the plan format, in an order that every process agrees
on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]
from torch.utils._sympy import functions as tf
from torch.utils._sympy.numbers import int_oo

from coordinator.errors import PlanBuildError
from edge_agent.plan.format import Expression

__all__ = ["to_expression"]

Names = Mapping[sympy.Symbol, str]


def to_expression(expr: Any, names: Names) -> Expression | float:
    """The expression of a sympy one. ``names`` has the name of every symbol in it.

    Raises `PlanBuildError` for a function that the format has no operator for.
    """
    if expr is True or expr is sympy.true:
        return True
    if expr is False or expr is sympy.false:
        return False
    if isinstance(expr, int | float):
        return expr
    if isinstance(expr, sympy.Symbol):
        return names[expr]
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Rational):
        return ["truediv", int(expr.p), int(expr.q)]
    if expr is int_oo:
        return (1 << 63) - 1
    if isinstance(expr, sympy.Float) or getattr(expr, "is_number", False):
        return float(expr)
    convert = _CONVERSIONS.get(expr.func)
    if convert is not None:
        converted: Expression | float = convert(expr, names)
        return converted
    operator = _OPERATORS.get(expr.func)
    if operator is None:
        raise PlanBuildError(f"the sizes of this plan depend on each other by {expr}, which plans can't express")
    return [operator, *(to_expression(operand, names) for operand in expr.args)]


def _ordered(operands: list[Any]) -> list[Any]:
    # symbols first, then what is computed, then numbers: as one would write it
    return sorted(operands, key=lambda part: (isinstance(part, int | float), isinstance(part, list), repr(part)))


def _commutative(operator: str) -> Callable[[Any, Names], Any]:
    def convert(expr: Any, names: Names) -> Any:
        return [operator, *_ordered([to_expression(operand, names) for operand in expr.args])]

    return convert


def _sum(expr: Any, names: Names) -> Any:
    plus: list[Any] = []
    minus: list[Any] = []
    for term in expr.args:
        negative = term.could_extract_minus_sign()
        (minus if negative else plus).append(to_expression(-term if negative else term, names))
    if not plus:
        return ["neg", _add(minus)]
    result = _add(plus)
    for term in _ordered(minus):
        result = ["sub", result, term]
    return result


def _add(terms: list[Any]) -> Any:
    return terms[0] if len(terms) == 1 else ["add", *_ordered(terms)]


def _product(expr: Any, names: Names) -> Any:
    coefficient, rest = expr.as_coeff_Mul()
    if coefficient == -1:
        return ["neg", to_expression(rest, names)]
    if isinstance(coefficient, sympy.Rational) and not isinstance(coefficient, sympy.Integer):
        # torch writes an exact division of integers so
        whole = to_expression(rest * coefficient.p, names)
        return ["floordiv" if expr.is_integer else "truediv", whole, int(coefficient.q)]
    return ["mul", *_ordered([to_expression(factor, names) for factor in expr.args])]


def _power(expr: Any, names: Names) -> Any:
    base, exponent = (to_expression(operand, names) for operand in expr.args)
    if exponent == -1:
        return ["truediv", 1, base]
    return ["pow", base, exponent]


def _float_power(expr: Any, names: Names) -> Any:
    base, exponent = (to_expression(operand, names) for operand in expr.args)
    return ["sqrt", base] if exponent == 0.5 else ["pow", base, exponent]


def _modular_indexing(expr: Any, names: Names) -> Any:
    base, divisor, modulus = (to_expression(operand, names) for operand in expr.args)
    return ["mod", ["floordiv", base, divisor], modulus]


def _where(expr: Any, names: Names) -> Any:
    return ["where", *(to_expression(operand, names) for operand in expr.args)]


def _identity(expr: Any, names: Names) -> Any:
    return to_expression(expr.args[0], names)


_OPERATORS: dict[Any, str] = {
    tf.FloorDiv: "floordiv",
    tf.CleanDiv: "floordiv",
    tf.CeilDiv: "ceildiv",
    tf.Mod: "mod",
    tf.PythonMod: "mod",
    tf.IntTrueDiv: "truediv",
    tf.FloatTrueDiv: "truediv",
    tf.ToFloat: "float",
    tf.TruncToInt: "trunc",
    tf.RoundToInt: "round",
    tf.CeilToInt: "ceil",
    tf.FloorToInt: "floor",
    tf.PowByNatural: "pow",
    tf.OpaqueUnaryFn_sqrt: "sqrt",
    tf.OpaqueUnaryFn_exp: "exp",
    tf.OpaqueUnaryFn_log: "log",
    sympy.Abs: "abs",
    sympy.Ne: "ne",
    sympy.Eq: "eq",
    sympy.Lt: "lt",
    sympy.Le: "le",
    sympy.Gt: "gt",
    sympy.Ge: "ge",
    sympy.Not: "not",
}

_CONVERSIONS: dict[Any, Callable[[Any, Names], Any]] = {
    sympy.Add: _sum,
    sympy.Mul: _product,
    sympy.Pow: _power,
    tf.FloatPow: _float_power,
    tf.Max: _commutative("max"),
    tf.Min: _commutative("min"),
    sympy.Max: _commutative("max"),
    sympy.Min: _commutative("min"),
    sympy.And: _commutative("and"),
    sympy.Or: _commutative("or"),
    tf.ModularIndexing: _modular_indexing,
    tf.Where: _where,
    tf.Identity: _identity,
}
