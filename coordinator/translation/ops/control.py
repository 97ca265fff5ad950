"""Branches and loops: onnx has its own, whose sub-graphs see all around them, so that operands need no passing in.

A condition is asked in two places: before the first step, and at the end of each. What is carried keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from coordinator.translation.table import Translation, translates, translates_complex
from coordinator.translation.writer import REAL_OF, Value, Writer
from edge_agent.plan.format import TensorType

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
    count = rows[0].dims[0]
    if (w.sizes.low(count) or 0) > 0:
        return _over_rows(w, step, carried, rows, operands, reverse)
    # onnxruntime refuses to scan over no rows
    none, some = w.inside(), w.inside()
    some.out = w.out
    empty_rows = [_no_rows(none, kind) for kind in w.out[len(carried) :]]
    branches = {
        "then_branch": none.subgraph("none", [], [*carried, *empty_rows]),
        "else_branch": some.subgraph("some", [], _over_rows(some, step, carried, rows, operands, reverse)),
    }
    empty = w.op("Reshape", w.op("Equal", w.size(count), w.ints([0]), dtype="bool"), w.ints([]))
    return _results(w, w.node("If", [empty.name], len(w.out), **branches))


def _no_rows(w: Writer, kind: TensorType) -> Value:
    real = REAL_OF.get(kind.dtype, kind.dtype)
    dims = [0, *kind.shape[1:], *([2] if real != kind.dtype else [])]
    return Value(w.expand(w.constant(0, real), dims).name, kind.dtype, tuple(kind.shape))


def _over_rows(
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
