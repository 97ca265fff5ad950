"""From sympy to the plan format's expressions."""

from __future__ import annotations

from typing import Any

import pytest
import sympy  # type: ignore[import-untyped]
from torch.utils._sympy import functions as tf
from torch.utils._sympy.numbers import int_oo

from coordinator.build_errors import PlanBuildError
from coordinator.capture.expressions import to_expression
from edge_agent.plan.expressions import check_expression, evaluate

A = sympy.Symbol("s77", positive=True, integer=True)
B = sympy.Symbol("s8", positive=True, integer=True)
NAMES = {A: "a", B: "b"}


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (sympy.Integer(3), 3),
        (A, "a"),
        (2 * A, ["mul", "a", 2]),
        (A * B * 3, ["mul", "a", "b", 3]),
        (A + 1, ["add", "a", 1]),
        (A - 1, ["sub", "a", 1]),
        (A - 2 * B - 1, ["sub", ["sub", "a", ["mul", "b", 2]], 1]),
        (-A, ["neg", "a"]),
        (-A - 1, ["neg", ["add", "a", 1]]),
        (A**2, ["pow", "a", 2]),
        (tf.FloorDiv(A, 2), ["floordiv", "a", 2]),
        (tf.Mod(A, 3), ["mod", "a", 3]),
        (tf.Max(A, B), ["max", "a", "b"]),  # type: ignore[no-untyped-call]
        (tf.IntTrueDiv(1, A), ["truediv", 1, "a"]),
        (tf.ToFloat(A), ["float", "a"]),
        (tf.FloatPow(tf.ToFloat(A), 0.5), ["sqrt", ["float", "a"]]),
        (tf.CeilToInt(tf.IntTrueDiv(A, 2)), ["ceil", ["truediv", "a", 2]]),
        (sympy.Eq(A, B), ["eq", "a", "b"]),
        (sympy.And(A > 3, B <= 2), ["and", ["gt", "a", 3], ["le", "b", 2]]),
        (sympy.true, True),
        (int_oo, (1 << 63) - 1),
        (1.5, 1.5),
    ],
)
def test_expressions(expr: Any, expected: Any) -> None:
    """Each is written as one would, in an order without torch's names in it, and passes the device's check."""
    made = to_expression(expr, NAMES)
    assert made == expected
    check_expression(made, {"a", "b"})


def test_an_exact_division_stays_an_integer() -> None:
    """torch writes `3 * a / 2`, where it knows that it is whole, with a fraction in front."""
    even = sympy.Symbol("e", positive=True, integer=True, even=True)
    made = to_expression(sympy.Rational(3, 2) * even, {even: "e"})
    assert made == ["floordiv", ["mul", "e", 3], 2]
    assert evaluate(made, {"e": 8}) == 12


def test_what_has_no_operator() -> None:
    """A function that the format lacks is an error of the build."""
    with pytest.raises(PlanBuildError, match="which plans can't express"):
        to_expression(sympy.Function("strange")(A), NAMES)
