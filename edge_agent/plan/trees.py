"""How leaves nest: between a nest of tuples, lists and dicts, and the flat list of its leaves.

A `Tree` is data (see `format.Tree`). Each function names the path of what does not fit: ``args[0]["weights"][2]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edge_agent.plan.errors import ArgumentMismatch, PlanMalformed
from edge_agent.plan.format import Tree

__all__ = ["MAX_DEPTH", "check_tree", "flatten", "leaf_paths", "spec_of", "unflatten"]

MAX_DEPTH = 64
"""How deep a nest may go."""

_NAMES = {"l": "list", "t": "tuple", "d": "dict"}


def check_tree(tree: Any) -> int:
    """How many leaves a tree from anywhere has.

    Raises `PlanMalformed` unless its leaves are 0, 1, 2, ... in this order, each once, its keys strings or integers,
    each once in its dict, and it keeps to `MAX_DEPTH`.
    """
    return _check(tree, 0, 0)


def _check(tree: Any, seen: int, depth: int) -> int:
    if tree is None:
        return seen
    if isinstance(tree, int) and not isinstance(tree, bool):
        if tree != seen:
            raise PlanMalformed(f"expected leaf {seen} of a tree, got {tree}")
        return seen + 1
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str) or tree[0] not in _NAMES:
        raise PlanMalformed(f"expected a tree, got a {type(tree).__name__}")
    if depth >= MAX_DEPTH:
        raise PlanMalformed(f"expected a tree at most {MAX_DEPTH} deep, got a deeper one")
    if tree[0] != "d":
        for subtree in tree[1:]:
            seen = _check(subtree, seen, depth + 1)
        return seen
    keys, subtrees = tree[1::2], tree[2::2]
    if len(keys) != len(subtrees) or not all(type(key) in (str, int) for key in keys) or len(set(keys)) != len(keys):
        raise PlanMalformed("expected a dict of different strings or integers in a tree, got other keys")
    for subtree in subtrees:
        seen = _check(subtree, seen, depth + 1)
    return seen


def flatten(tree: Tree, nest: Any, *, name: str = "value") -> list[Any]:
    """The leaves of ``nest``, in order, if it nests as ``tree`` says. A dict may have its keys in any order.

    Raises `ArgumentMismatch` with the path (which starts with ``name``) of the first place that differs.
    """
    leaves: list[Any] = []
    _flatten(tree, nest, name, leaves)
    return leaves


def _flatten(tree: Any, nest: Any, path: str, leaves: list[Any]) -> None:
    if isinstance(tree, int):
        leaves.append(nest)
        return
    if tree is None:
        if nest is not None:
            raise ArgumentMismatch(path, "None", _kind(nest))
        return
    kind, *children = tree
    if kind == "d":
        if not isinstance(nest, dict):
            raise ArgumentMismatch(path, "a dict", _kind(nest))
        keys = children[::2]
        if nest.keys() != set(keys):
            raise ArgumentMismatch(path, f"a dict with the keys {_keys(keys)}", f"one with {_keys(list(nest))}")
        for key, subtree in zip(keys, children[1::2], strict=True):
            _flatten(subtree, nest[key], f"{path}[{key!r}]", leaves)
        return
    wanted: type = list if kind == "l" else tuple
    if not isinstance(nest, list | tuple) or not isinstance(nest, wanted):
        raise ArgumentMismatch(path, f"a {wanted.__name__} of {len(children)}", _kind(nest))
    if len(nest) != len(children):
        raise ArgumentMismatch(path, f"a {wanted.__name__} of {len(children)}", f"one of {len(nest)}")
    for position, subtree in enumerate(children):
        _flatten(subtree, nest[position], f"{path}[{position}]", leaves)


def unflatten(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The nest of ``leaves`` that ``tree`` describes. ``leaves`` has as many as the checked tree."""
    if tree is None:
        return None
    if isinstance(tree, int):
        return leaves[tree]
    assert isinstance(tree, list)  # a Tree is never a bare str
    kind, *children = tree
    if kind == "d":
        return {key: unflatten(subtree, leaves) for key, subtree in zip(children[::2], children[1::2], strict=True)}
    parts = (unflatten(subtree, leaves) for subtree in children)
    return list(parts) if kind == "l" else tuple(parts)


def spec_of(nest: Any, is_leaf: Callable[[Any], bool] | None = None, *, name: str = "value") -> tuple[Tree, list[Any]]:
    """The tree and the leaves of a nest. Whatever is no list, tuple, dict or None is a leaf.

    ``is_leaf`` says what stands as a leaf though it could nest, None too. Named tuples become tuples. Raises
    `ArgumentMismatch` for a dict with a key that is neither string nor int, and for a nest deeper than `MAX_DEPTH` (or
    that holds itself).
    """
    leaves: list[Any] = []
    return _spec(nest, is_leaf or (lambda _: False), leaves, name, 0), leaves


def _spec(nest: Any, is_leaf: Callable[[Any], bool], leaves: list[Any], path: str, depth: int) -> Tree:
    if is_leaf(nest) or not isinstance(nest, list | tuple | dict | None):
        leaves.append(nest)
        return len(leaves) - 1
    if nest is None:
        return None
    if depth >= MAX_DEPTH:
        raise ArgumentMismatch(path, f"a nest at most {MAX_DEPTH} deep", "a deeper one")
    if isinstance(nest, dict):
        tree: list[Any] = ["d"]
        for key, value in nest.items():
            if type(key) not in (str, int):
                raise ArgumentMismatch(path, "a dict whose keys are strings or integers", f"the key {key!r}")
            tree += [key, _spec(value, is_leaf, leaves, f"{path}[{key!r}]", depth + 1)]
        return tree
    parts = [_spec(value, is_leaf, leaves, f"{path}[{position}]", depth + 1) for position, value in enumerate(nest)]
    return ["l" if isinstance(nest, list) else "t", *parts]


def leaf_paths(tree: Tree, name: str = "value") -> list[str]:
    """The path of each leaf of a checked tree: what an error calls it."""
    if tree is None:
        return []
    if isinstance(tree, int):
        return [name]
    assert isinstance(tree, list)
    kind, *children = tree
    pairs = zip(children[::2], children[1::2], strict=True) if kind == "d" else enumerate(children)
    return [path for key, subtree in pairs for path in leaf_paths(subtree, f"{name}[{key!r}]")]


def _kind(nest: Any) -> str:
    if nest is None:
        return "None"
    if isinstance(nest, list | tuple):
        return f"a {type(nest).__name__} of {len(nest)}"
    return f"a {type(nest).__name__}"


def _keys(keys: list[Any]) -> str:
    return ", ".join(repr(key) for key in keys) or "nothing"
