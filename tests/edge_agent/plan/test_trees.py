"""Nests of tuples, lists and dicts, and their leaves."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.plan.errors import ArgumentMismatch, PlanMalformed
from edge_agent.plan.trees import MAX_DEPTH, check_tree, flatten, leaf_paths, spec_of, unflatten

NESTS = st.recursive(
    st.one_of(st.none(), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(-9, 9)), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(NESTS)
def test_a_nest_comes_back_as_it_was(nest: Any) -> None:
    """Taken apart and put together again, a nest has the same kinds, order, keys and leaves."""
    tree, leaves = spec_of(nest)
    assert check_tree(tree) == len(leaves)
    assert unflatten(tree, leaves) == nest
    assert flatten(tree, nest) == leaves
    assert len(leaf_paths(tree)) == len(leaves)


def test_a_tree_is_what_the_format_says() -> None:
    """Tuples, lists, dicts and None have the forms that the format names; leaves are numbered in order."""
    tree, leaves = spec_of({"a": [1.0, None], "b": (2.0, {3: 4.0})})
    assert tree == ["d", "a", ["l", 0, None], "b", ["t", 1, ["d", 3, 2]]]
    assert leaves == [1.0, 2.0, 4.0]
    assert leaf_paths(tree, "x") == ["x['a'][0]", "x['b'][0]", "x['b'][1][3]"]


def test_a_dict_may_be_given_in_any_order() -> None:
    """Keys decide, not the order in which somebody wrote them."""
    assert flatten(["d", "a", 0, "b", 1], {"b": 2.0, "a": 1.0}) == [1.0, 2.0]


def test_what_is_a_leaf_may_be_said() -> None:
    """A tuple, or None, can be a leaf where the caller says so."""
    tree, leaves = spec_of([(1, 2), None], is_leaf=lambda one: isinstance(one, tuple) or one is None)
    assert (tree, leaves) == (["l", 0, 1], [(1, 2), None])


@pytest.mark.parametrize(
    ("tree", "nest", "sentence"),
    [
        (["t", 0, 1], (1.0,), "x: expected a tuple of 2, got one of 1"),
        (["t", 0], [1.0], "x: expected a tuple of 1, got a list of 1"),
        (["l", ["t", 0]], [3.0], "x[0]: expected a tuple of 1, got a float"),
        (["d", "a", 0], {"b": 1.0}, "x: expected a dict with the keys 'a', got one with 'b'"),
        (["d", "a", 0], {}, "x: expected a dict with the keys 'a', got one with nothing"),
        (["d", "a", ["d", "b", 0]], {"a": 5}, "x['a']: expected a dict, got a int"),
        (["t", None], (1.0,), "x[0]: expected None, got a float"),
        (["l", 0], None, "x: expected a list of 1, got None"),
    ],
    ids=str,
)
def test_what_nests_otherwise_is_told_by_its_path(tree: Any, nest: Any, sentence: str) -> None:
    """The error names the place that differs, what was expected and what came."""
    with pytest.raises(ArgumentMismatch) as caught:
        flatten(tree, nest, name="x")
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("nest", "sentence"),
    [
        ({(1, 2): 3.0}, "value: expected a dict whose keys are strings or integers, got the key (1, 2)"),
        ([{True: 1.0}], "value[0]: expected a dict whose keys are strings or integers, got the key True"),
    ],
)
def test_keys_that_cannot_travel_are_refused(nest: Any, sentence: str) -> None:
    """A dict's keys are strings or integers."""
    with pytest.raises(ArgumentMismatch) as caught:
        spec_of(nest)
    assert str(caught.value) == sentence


def test_a_nest_that_holds_itself_is_refused() -> None:
    """Depth is bounded, so that a list inside itself ends in an error."""
    nest: list[Any] = []
    nest.append(nest)
    with pytest.raises(ArgumentMismatch, match=f"expected a nest at most {MAX_DEPTH} deep, got a deeper one"):
        spec_of(nest)


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (1, "expected leaf 0 of a tree, got 1"),
        (["t", 0, 0], "expected leaf 1 of a tree, got 0"),
        (True, "expected a tree, got a bool"),
        ("x", "expected a tree, got a str"),
        ([], "expected a tree, got a list"),
        (["x", 0], "expected a tree, got a list"),
        ([["t"], 0], "expected a tree, got a list"),
        (["d", "a"], "expected a dict of different strings or integers in a tree, got other keys"),
        (["d", "a", 0, "a", 1], "expected a dict of different strings or integers in a tree, got other keys"),
        (["d", 1.5, 0], "expected a dict of different strings or integers in a tree, got other keys"),
        (["d", ["l"], 0], "expected a dict of different strings or integers in a tree, got other keys"),
        (1 << 62, "expected leaf 0 of a tree, got 4611686018427387904"),
    ],
    ids=str,
)
def test_what_is_no_tree_is_refused(tree: Any, sentence: str) -> None:
    """A tree from anywhere is judged before anything is nested by it."""
    with pytest.raises(PlanMalformed) as caught:
        check_tree(tree)
    assert str(caught.value) == sentence


def test_deep_trees_are_refused() -> None:
    """Nesting is bounded, long before Python's own limit."""
    tree: Any = 0
    for _ in range(MAX_DEPTH):
        tree = ["t", tree]
    assert check_tree(tree) == 1
    with pytest.raises(PlanMalformed, match=f"expected a tree at most {MAX_DEPTH} deep"):
        check_tree(["t", tree])
