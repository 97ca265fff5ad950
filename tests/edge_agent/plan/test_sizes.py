"""The algebra of dims: its normal form is right, the same for what is equal, and never large."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.errors import ConditionFailed, PlanTypeError
from edge_agent.plan.expressions import evaluate
from edge_agent.plan.format import Symbol
from edge_agent.plan.sizes import Sizes
from tests.edge_agent.plan.effort import within

RANGES = {"a": (2, None), "b": (0, None), "c": (1, 9)}
SYMBOLS = [Symbol(name=name, low=low, high=high) for name, (low, high) in RANGES.items()]

EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from(list(RANGES)), st.integers(-4, 7)),
    lambda inner: st.one_of(
        st.tuples(
            st.sampled_from(["add", "sub", "mul", "floordiv", "mod", "min", "max", "ceildiv", "broadcast"]),
            inner,
            inner,
        ),
        st.tuples(st.just("neg"), inner),
    ).map(list),
    max_leaves=8,
)
GIVEN = st.fixed_dictionaries({"a": st.integers(2, 9), "b": st.integers(0, 9), "c": st.integers(1, 9)})


@given(expr=EXPRESSIONS, sizes=st.lists(GIVEN, min_size=1, max_size=4))
def test_the_normal_form_has_the_same_value(expr: Any, sizes: list[dict[str, int]]) -> None:
    """A dim in normal form has the same value for all sizes, and is its own normal form."""
    algebra = Sizes(SYMBOLS)
    try:
        normal = algebra.normal(expr)
    except PlanTypeError:
        return
    assert algebra.normal(normal) == normal
    low, high = algebra.low(normal), algebra.high(normal)
    for given_sizes in sizes:
        try:
            wanted = evaluate(expr, given_sizes)
        except ConditionFailed:
            continue
        assert evaluate(normal, given_sizes) == wanted
        assert low is None or low <= wanted
        assert high is None or wanted <= high


@given(first=EXPRESSIONS, second=EXPRESSIONS, sizes=GIVEN)
def test_what_is_said_of_equality_holds(first: Any, second: Any, sizes: dict[str, int]) -> None:
    """Dims called equal are equal for all sizes, dims called different for none."""
    algebra = Sizes(SYMBOLS)
    try:
        equal = algebra.equal(first, second)
        values = evaluate(first, sizes), evaluate(second, sizes)
    except (PlanTypeError, ConditionFailed):
        return
    if equal is not None:
        assert (values[0] == values[1]) is equal


@given(left=EXPRESSIONS, right=EXPRESSIONS, sizes=GIVEN)
def test_a_condition_changes_no_value_where_it_holds(left: Any, right: Any, sizes: dict[str, int]) -> None:
    """What follows from a condition is true for all sizes that fulfil it."""
    try:
        holds = evaluate(left, sizes) == evaluate(right, sizes)
        algebra = Sizes(SYMBOLS, [["eq", left, right]])
        normal = algebra.normal(["add", left, ["mul", 2, right], "a"])
    except (PlanTypeError, ConditionFailed):
        return
    if holds:
        try:
            assert evaluate(normal, sizes) == 3 * int(evaluate(left, sizes)) + sizes["a"]
        except ConditionFailed:
            return  # the other side, put in its place, divides by zero here


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [
        (["add", "a", 1, ["mul", 2, "b"], 3], ["add", "a", ["mul", 2, "b"], 4]),
        (["sub", "a", "a"], 0),
        (["floordiv", ["mul", 6, "a"], 3], ["mul", 2, "a"]),
        (["floordiv", ["mul", "a", "b"], "a"], "b"),
        (["floordiv", ["add", ["mul", 2, "a"], 1], 2], "a"),
        (["floordiv", ["floordiv", "b", 2], 3], ["floordiv", "b", 6]),
        (["add", ["floordiv", ["add", "a", -1], 2], 1], ["floordiv", ["add", "a", 1], 2]),
        (["ceildiv", "b", 4], ["floordiv", ["add", "b", 3], 4]),
        (["max", 1, "a"], "a"),
        (["max", 1, "b"], ["max", 1, "b"]),
        (["min", "c", 9], "c"),
        (["mod", ["mul", 4, "a"], 2], 0),
        (["pow", "a", 2], ["mul", "a", "a"]),
        (["trunc", "a"], "a"),
        (["broadcast", "a", "b"], ["broadcast", "a", "b"]),
    ],
    ids=str,
)
def test_normal_forms(expr: Any, wanted: Any) -> None:
    """Like terms are gathered, exact divisions done, extremes decided where the ranges decide them."""
    assert Sizes(SYMBOLS).normal(expr) == wanted


def test_conditions_are_used() -> None:
    """An equation makes two sizes one; an inequality and a range tell what a size is not."""
    algebra = Sizes(SYMBOLS, [["eq", "b", ["mul", 2, "a"]], ["eq", ["mod", "c", 2], 0], ["ne", "c", 4], ["lt", "a", 5]])
    assert algebra.normal("b") == ["mul", 2, "a"]
    assert algebra.equal("c", ["mul", 2, ["floordiv", "c", 2]])
    assert algebra.equal("c", 4) is False
    assert algebra.high("b") == 8
    assert Sizes(SYMBOLS, [["eq", "b", 3]]).normal(["add", "b", "a"]) == ["add", "a", 3]
    assert Sizes(SYMBOLS, [["and", ["ge", "b", 3], ["eq", "a", "c"]]]).low("b") == 3


def test_broadcasting_uses_what_is_known() -> None:
    """A size that is certainly not 1 is the result; of two that may be, only running tells."""
    algebra = Sizes(SYMBOLS)
    assert algebra.broadcast("b", 1) == "b"
    assert algebra.broadcast("b", 5) == 5
    assert algebra.broadcast("a", "b") == "a"
    assert algebra.broadcast("c", "b") == ["broadcast", "b", "c"]
    with pytest.raises(PlanTypeError, match="expected dims that broadcast, got 2 and 3"):
        algebra.broadcast(2, 3)
    with pytest.raises(PlanTypeError, match="expected dims that broadcast"):
        algebra.broadcast("a", ["add", "a", 1])


@pytest.mark.parametrize(
    ("dim", "wanted"),
    [
        ("a", ("a", 1, 0)),
        (["add", ["mul", 3, "a"], 2], ("a", 3, 2)),
        (["mul", "a", "b"], None),
        (["neg", "a"], None),
        (4, None),
        (["floordiv", "a", 2], None),
    ],
)
def test_lines_are_told(dim: Any, wanted: Any) -> None:
    """A dim that is a multiple of one symbol and a constant tells that symbol."""
    assert Sizes(SYMBOLS).line(dim) == wanted


def test_growth_is_bounded() -> None:
    """A few steps that double a dim end in a refusal, not in a full memory or a long wait."""
    algebra = Sizes(SYMBOLS)

    def grown(step: Callable[[Any], Any], dim: Any) -> None:
        for _ in range(64):
            dim = step(dim)

    with within(10):
        with pytest.raises(PlanTypeError, match="expected dims of at most 512 operators and operands"):
            grown(lambda dim: algebra.make("floordiv", ["add", dim, ["max", dim, "c"]], "c"), "b")
        with pytest.raises(PlanTypeError, match="expected dims of at most 16 factors"):
            grown(lambda dim: algebra.mul(dim, dim), "b")
        with pytest.raises(PlanTypeError, match="expected sizes within 64 bits"):
            grown(lambda dim: algebra.mul(dim, 2), 2)
        wide = [algebra.make("floordiv", "b", place + 2) for place in range(65)]
        with pytest.raises(PlanTypeError, match="expected dims of at most 64 terms"):
            algebra.add(*wide)


def test_work_is_bounded() -> None:
    """A graph whose dims take millions of steps is refused, however small each of them is."""
    algebra = Sizes(SYMBOLS)
    dim = algebra.make("max", *(["floordiv", "b", place + 2] for place in range(8)))
    with pytest.raises(PlanTypeError, match="expected dims that can be checked in reasonable time"):
        collections.deque((algebra.mul(dim, dim, dim, dim) for _ in range(1_000_000)), maxlen=0)
