"""Branches and loops: onnx has its own, whose sub-graphs see all around them, so that operands need no passing in.

A condition is asked in two places: before the first step, and at the end of each. What is carried keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from coordinator.translation.table import Translation, translates, translates_complex
from coordinator.translation.writer import Value, Writer

__all__ = ["Body"]

Body: TypeAlias = Callable[[Writer, Sequence[Value]], list[Value]]
"""``body(writer, inputs) -> outputs``: writes a sub-graph's ops into a graph."""


def _results(w: Writer, names: Sequence[str]) -> list[Value]:
    return [Value(name, kind.dtype, tuple(kind.shape)) for name, kind in zip(names, w.out, strict=True)]


def _cond(w: Writer, predicate: Value, if_true: Body, if_false: Body, operands: list[Value]) -> list[Value]:
    branches = {}
    for name, body in (("then_branch", if_true), ("else_branch", if_false)):
        inside = w.inside()
        branches[name] = inside.subgraph(name, [], body(inside, operands))
    return _results(w, w.node("If", [predicate.name], len(w.out), **branches))


def _while_loop(w: Writer, condition: Body, body: Body, carried: list[Value], operands: list[Value]) -> list[Value]:
    out = w.out
    (going,) = condition(w, [*carried, *operands])
    w.out = out
    inside = w.inside()
    step, before = Value(inside.name(), "int64", ()), Value(inside.name(), "bool", ())
    held = [Value(inside.name(), one.dtype, one.shape) for one in carried]
    after = body(inside, [*held, *operands])
    (again,) = condition(inside, [*after, *operands])
    graph = inside.subgraph("body", [step, before, *held], [again, *after])
    names = w.node("Loop", ["", going.name, *(one.name for one in carried)], len(carried), body=graph)
    return _results(w, names)


def _scan(
    w: Writer, step: Body, carried: list[Value], rows: list[Value], operands: list[Value], reverse: bool
) -> list[Value]:
    inside = w.inside()
    held = [Value(inside.name(), one.dtype, one.shape) for one in carried]
    each = [Value(inside.name(), one.dtype, one.dims[1:]) for one in rows]
    results = step(inside, [*held, *each, *operands])
    directions = {}
    if reverse:
        directions["scan_input_directions"] = [1] * len(rows)
        directions["scan_output_directions"] = [1] * (len(results) - len(held))
    names = w.node(
        "Scan",
        [one.name for one in (*carried, *rows)],
        len(w.out),
        body=inside.subgraph("step", [*held, *each], results),
        num_scan_inputs=len(rows),
        **directions,
    )
    return _results(w, names)


_ALL: dict[str, Translation] = {"cond": _cond, "while_loop": _while_loop, "scan": _scan}
for _name, _translation in _ALL.items():
    for _register in (translates, translates_complex):  # numbers of any kind may be carried
        _register(f"control.{_name}.default")(_translation)
