"""Symbolic scalars: their values, their checks, and how they are written."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.errors import ConditionFailed, PlanMalformed
from edge_agent.plan.expressions import (
    MAX_DEPTH,
    MAX_NODES,
    OPERATORS,
    check_expression,
    evaluate,
    is_symbol_name,
    render,
    symbols_of,
)

SIZES = {"s0": 7, "s1": 3}


@pytest.mark.parametrize(
    ("expr", "wanted", "text"),
    [
        (5, 5, "5"),
        ("s0", 7, "s0"),
        (["add", "s0", 1, "s1"], 11, "s0 + 1 + s1"),
        (["add", "s0", -1], 6, "s0 - 1"),
        (["add", "s0", ["mul", -2, "s1"]], 1, "s0 - 2 * s1"),
        (["add", "s0", ["mul", -1, "s1"]], 4, "s0 - s1"),
        (["sub", "s0", ["sub", "s1", 1]], 5, "s0 - (s1 - 1)"),
        (["mul", 2, ["add", "s0", 1]], 16, "2 * (s0 + 1)"),
        (["neg", ["add", "s0", "s1"]], -10, "-(s0 + s1)"),
        (["floordiv", "s0", 2], 3, "s0 // 2"),
        (["floordiv", ["neg", "s0"], 2], -4, "-s0 // 2"),
        (["ceildiv", "s0", 2], 4, "ceildiv(s0, 2)"),
        (["truediv", "s0", 2], 3.5, "s0 / 2"),
        (["mod", "s0", "s1"], 1, "s0 % s1"),
        (["mod", ["neg", "s0"], "s1"], 2, "-s0 % s1"),
        (["pow", "s1", 2], 9, "s1 ** 2"),
        (["pow", ["pow", "s1", 2], 2], 81, "(s1 ** 2) ** 2"),
        (["pow", 4, 0.5], 2.0, "4 ** 0.5"),
        (["abs", ["neg", "s0"]], 7, "abs(-s0)"),
        (["min", "s0", "s1", 5], 3, "min(s0, s1, 5)"),
        (["max", "s0", "s1"], 7, "max(s0, s1)"),
        (["broadcast", "s0", 1], 7, "broadcast(s0, 1)"),
        (["broadcast", 1, "s1"], 3, "broadcast(1, s1)"),
        (["float", "s0"], 7.0, "float(s0)"),
        (["trunc", ["neg", ["truediv", "s0", 2]]], -3, "trunc(-(s0 / 2))"),
        (["floor", ["truediv", "s0", 2]], 3, "floor(s0 / 2)"),
        (["ceil", ["truediv", "s0", 2]], 4, "ceil(s0 / 2)"),
        (["round", ["truediv", "s0", 2]], 4, "round(s0 / 2)"),
        (["sqrt", ["add", "s0", 2]], 3.0, "sqrt(s0 + 2)"),
        (["exp", 0], 1.0, "exp(0)"),
        (["log", 1], 0.0, "log(1)"),
        (["eq", ["mod", "s0", 2], 0], False, "s0 % 2 == 0"),
        (["ne", "s0", "s1"], True, "s0 != s1"),
        (["lt", "s0", 8], True, "s0 < 8"),
        (["le", "s0", 6], False, "s0 <= 6"),
        (["gt", "s0", 3], True, "s0 > 3"),
        (["ge", "s0", 7], True, "s0 >= 7"),
        (["and", ["gt", "s0", 3], ["lt", "s1", 3]], False, "s0 > 3 and s1 < 3"),
        (["or", ["gt", "s0", 3], ["and", ["lt", "s1", 3], True]], True, "s0 > 3 or s1 < 3 and True"),
        (["not", ["and", ["gt", "s0", 3], True]], False, "not (s0 > 3 and True)"),
        (["where", ["gt", "s0", 3], "s1", 0], 3, "where(s0 > 3, s1, 0)"),
    ],
    ids=str,
)
def test_an_expression_has_a_value_and_a_text(expr: Any, wanted: Any, text: str) -> None:
    """Each operator computes as Python does, and is written as in Python."""
    kind = check_expression(expr, {"s0", "s1"})
    found = evaluate(expr, SIZES)
    assert (found, type(found).__name__) == (wanted, kind)
    assert render(expr) == text


def test_every_operator_is_tried() -> None:
    """No operator is left out of the test above."""
    marks: list[pytest.Mark] = list(test_an_expression_has_a_value_and_a_text.pytestmark)
    tried: set[str] = set()

    def collect(expr: Any) -> None:
        if isinstance(expr, list):
            tried.add(expr[0])
            for operand in expr[1:]:
                collect(operand)

    for case in marks[0].args[1]:
        collect(case[0])
    assert tried == set(OPERATORS)


EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from(["s0", "s1"]), st.integers(-5, 5)),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["add", "mul", "min", "max", "sub", "floordiv", "mod", "ceildiv"]), inner, inner),
        st.tuples(st.sampled_from(["neg", "abs"]), inner),
    ).map(list),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_the_text_means_what_the_expression_means(expr: Any) -> None:
    """What `render` writes, Python reads as the same number: no bracket is missing."""
    try:
        wanted = evaluate(expr, SIZES)
    except ConditionFailed:
        return
    names = {**SIZES, "ceildiv": lambda a, b: -(-a // b), "min": min, "max": max, "abs": abs}
    assert eval(render(expr), {"__builtins__": {}}, names) == wanted  # noqa: S307


@pytest.mark.parametrize(
    ("expr", "sentence"),
    [
        ("s2", "expected a declared symbol, got 's2'"),
        (["add", "s0", "s9"], "expected a declared symbol, got 's9'"),
        (["run", 1, 2], "expected a number, a symbol or [operator, operand, ...], got ['run', ...]"),
        ([], "expected a number, a symbol or [operator, operand, ...], got []"),
        ([["add"], 1], "expected a number, a symbol or [operator, operand, ...], got [['add', ...], ...]"),
        (None, "expected a number, a symbol or [operator, operand, ...], got None"),
        ({"add": 1}, "expected a number, a symbol or [operator, operand, ...], got dict"),
        (b"s0", "expected a number, a symbol or [operator, operand, ...], got b's0'"),
        (["add", 1], "expected 2 operands of add or more, up to 1024, got 1"),
        (["neg", 1, 2], "expected 1 operands of neg or more, up to 1, got 2"),
        (["add", True, 1], "expected int or float operands of add, got bool, int"),
        (["and", "s0", True], "expected bool operands of and, got int, bool"),
        (["ceildiv", 1.5, 2], "expected int operands of ceildiv, got float, int"),
        (["where", "s0", 1, 2], "expected a condition and two of one kind for where, got int, int, int"),
        (["where", True, 1, 2.0], "expected a condition and two of one kind for where, got bool, int, float"),
        (["add", math.nan, 1], "expected a finite number in an expression, got nan"),
        (["add", math.inf, 1], "expected a finite number in an expression, got inf"),
        (1 << 63, "expected a number within 64 bits in an expression, got a larger one"),
        (["add", -(1 << 63), 1], "expected a number within 64 bits in an expression, got a larger one"),
        (["add", *[1] * MAX_NODES], f"expected 2 operands of add or more, up to {MAX_NODES}, got {MAX_NODES}"),
        (["add", *[1] * 600, ["add", *[1] * 600]], "expected an expression of at most 1024 operators and operands"),
    ],
    ids=repr,
)
def test_what_is_not_an_expression_is_refused(expr: Any, sentence: str) -> None:
    """Whatever a plan has in the place of an expression is judged before it is computed."""
    if "got 1024" in sentence:
        expr = [*expr, 1]
        sentence = sentence.replace("got 1024", "got 1025")
    with pytest.raises(PlanMalformed) as caught:
        check_expression(expr, {"s0", "s1"})
    assert sentence in str(caught.value)


def test_deep_expressions_are_refused() -> None:
    """Nesting is bounded, long before Python's own limit."""
    expr: Any = "s0"
    for _ in range(MAX_DEPTH):
        expr = ["neg", expr]
    assert check_expression(expr, {"s0"}) == "int"
    assert evaluate(expr, SIZES) == 7
    with pytest.raises(PlanMalformed, match=f"expected operators nested at most {MAX_DEPTH} deep"):
        check_expression(["neg", expr], {"s0"})


@pytest.mark.parametrize(
    "expr",
    [
        ["floordiv", "s0", ["sub", "s1", 3]],
        ["mod", "s0", 0],
        ["truediv", 1, 0],
        ["pow", "s0", 1000000],
        ["pow", "s0", -1],
        ["pow", ["neg", "s0"], 0.5],
        ["pow", 1e300, 2.0],
        ["mul", *["s0"] * 60],
        ["add", (1 << 63) - 1, 1],
        ["trunc", ["exp", 400]],
        ["exp", 1000],
        ["log", 0],
        ["sqrt", ["neg", 1]],
    ],
    ids=render,
)
def test_what_has_no_value_fails_as_a_condition(expr: Any) -> None:
    """A division by zero and what lies beyond 64 bits are sizes for which the plan was not made."""
    check_expression(expr, {"s0", "s1"})
    with pytest.raises(ConditionFailed) as caught:
        evaluate(expr, SIZES)
    assert caught.value.condition == f"{render(expr)} defined and within 64 bits"
    assert caught.value.sizes.items() <= SIZES.items()


def test_symbols_are_found_at_any_depth() -> None:
    """The symbols of an expression are those that evaluating it needs, and no operator's name."""
    assert symbols_of(["add", "s0", ["mul", 2, ["max", "s1", "s0", 1.5]]]) == {"s0", "s1"}
    assert symbols_of("s0") == {"s0"}
    assert symbols_of(3) == set()


def test_symbols_have_plain_names() -> None:
    """A symbol's name is an identifier, and not an operator's."""
    assert is_symbol_name("s0")
    assert is_symbol_name("batch_size")
    for name in ("", "0s", "a b", "add", "s" * 65, "s\n", "ß-"):
        assert not is_symbol_name(name)
