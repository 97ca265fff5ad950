"""Ops that take sub-graphs: what they type to, and each way in which they do not fit."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.plan import checker
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import PlanError, PlanMalformed, PlanTypeError, UnknownOp
from edge_agent.plan.expressions import render
from edge_agent.plan.format import Graph, Input, Op, Special, Symbol
from tests.edge_agent.plan.control_graphs import branch, control, halving, inner, nested, running, taking
from tests.edge_agent.plan.graphs import graph_of, listed, op, value

X = taking("x", "float32", "n", 2)
YES = taking("yes", "bool")
SAME = inner([X], [], [0])
TWICE = inner([X], [op("add.Tensor", value(0), value(0))], [1])
SYMBOLS = [Symbol(name="n", low=1)]


def types(graph: Graph) -> list[str]:
    """The types of a graph's outputs."""
    checked = check_graph(graph)
    return [f"{one.dtype}[{', '.join(map(render, one.shape))}]" for one in checked.output_types]


def refusal(one: Op, *others: Any) -> str:
    """What the checker says of a graph of x, yes, a number of rows, and this op."""
    inputs = [X, YES, taking("m", "float32", "k")]
    with pytest.raises(PlanError) as caught:
        check_graph(graph_of(inputs, [one, *others], [3], symbols=[*SYMBOLS, Symbol(name="k")]))
    assert type(caught.value) in (PlanTypeError, PlanMalformed, UnknownOp)
    return str(caught.value)


def test_what_they_give() -> None:
    """A branch gives what its sides do, a loop what it carries, a scan its outputs as rows; nested, too."""
    assert types(branch()) == ["float32[n, 2]"]
    assert types(halving()) == ["float32[n]", "int64[]"]
    assert types(running()) == ["float32[3]", "float32[n, 3]"]
    assert types(nested(8)) == ["float32[]"]


def test_sub_graphs_are_kept_with_their_types() -> None:
    """By op and parameter; numbers of ops go on from those of the plan itself."""
    checked = check_graph(halving(3))
    (index,) = checked.inner
    condition, body = checked.inner[index].values()
    assert list(checked.inner[index]) == ["condition", "body"]
    assert (checked.first, condition.first, body.first) == (0, 2, 6)
    assert [one.dtype for one in body.types] == ["float32", "int64", "float32", "float32", "int64"]
    assert [spec.name for spec in body.specs] == ["aten.div.Tensor", "aten.add.Tensor"]


COND: dict[str, Op] = {
    "op 0 of the plan, control.cond.default: expected a predicate of bool[], got float32[n, 2]": control(
        "cond", value(0), SAME, SAME, listed(value(0))
    ),
    "op 0 of the plan, control.cond.default: expected a sub-graph for if_true, got a tensor": control(
        "cond", value(1), value(0), SAME, listed(value(0))
    ),
    "op 0 of the plan, control.cond.default: expected the sub-graph if_false by position, got it by name": control(
        "cond", value(1), SAME, if_false=SAME, operands=listed(value(0))
    ),
    "op 0 of the plan, control.cond.default: expected if_false to take float32[n, 2], got bool[]": control(
        "cond", value(1), SAME, inner([YES], [], [0]), listed(value(0))
    ),
    "op 0 of the plan, control.cond.default: expected if_true to take float32[n, 2], got float32[n, 2], bool[]": (
        control("cond", value(1), inner([X, YES], [], [0]), SAME, listed(value(0)))
    ),
    "op 0 of the plan, control.cond.default: expected if_false to give what if_true does: float32[n, 2], got "
    "nothing": control("cond", value(1), SAME, inner([X], [], []), listed(value(0))),
    "op 0 of the plan, control.cond.default: expected 1 outputs, got 2": control(
        "cond", value(1), SAME, TWICE, listed(value(0)), outputs=2
    ),
}

WHILE: dict[str, Op] = {
    "op 0 of the plan, control.while_loop.default: expected at least one carried tensor, got none": control(
        "while_loop", SAME, SAME, listed(), listed()
    ),
    "op 0 of the plan, control.while_loop.default: expected a condition of bool[], got float32[n, 2]": control(
        "while_loop", SAME, SAME, listed(value(0)), listed()
    ),
    "op 0 of the plan, control.while_loop.default: expected a condition with one output, got 0": control(
        "while_loop", inner([X], [], []), SAME, listed(value(0)), listed()
    ),
    "op 0 of the plan, control.while_loop.default: expected body to give what is carried: bool[], got float32[]": (
        control(
            "while_loop",
            inner([YES], [], [0]),
            inner([YES], [op("full.default", listed(), 1.0)], [1]),
            listed(value(1)),
            listed(),
        )
    ),
    # the sizes n and k may be equal, but need not be: no fixed point
    "op 0 of the plan, control.while_loop.default: expected body to take float32[k], bool[], got float32[n], "
    "bool[]": control(
        "while_loop",
        inner([taking("m", "float32", "k"), YES], [], [1]),
        inner([taking("m", "float32", "n"), YES], [], [0]),
        listed(value(2)),
        listed(value(1)),
    ),
}

SCAN: dict[str, Op] = {
    "op 0 of the plan, control.scan.default: expected rows to go over: at least one tensor, each with dims, got "
    "bool[]": (control("scan", inner([], [], []), listed(), listed(value(1)), listed())),
    "op 0 of the plan, control.scan.default: expected rows of one number, got float32[n, 2], float32[k]": control(
        "scan", inner([], [], []), listed(), listed(value(0), value(2)), listed()
    ),
    "op 0 of the plan, control.scan.default: expected step to take bool[], float32[2], got float32[2]": control(
        "scan", inner([taking("row", "float32", 2)], [], [0]), listed(value(1)), listed(value(0)), listed()
    ),
    "op 0 of the plan, control.scan.default: expected step to give first what is carried: bool[], got float32[2]": (
        control(
            "scan", inner([YES, taking("row", "float32", 2)], [], [1]), listed(value(1)), listed(value(0)), listed()
        )
    ),
    "op 0 of the plan, control.scan.default: expected True or False for reverse, got 1": control(
        "scan", inner([taking("row", "float32", 2)], [], [0]), listed(), listed(value(0)), listed(), reverse=1
    ),
}

INSIDE: dict[str, Op] = {
    "expected an op of the registry, got 'aten.rand.default' (op 1 of the plan, in the if_true of op 0)": control(
        "cond", value(1), inner([X], [op("rand.default", listed(2))], [1]), SAME, listed(value(0))
    ),
    "op 1 of the plan, in the if_true of op 0, aten.mm.default: expected a tensor for mat2, got 1.5": control(
        "cond", value(1), inner([X], [op("mm.default", value(0), 1.5)], [1]), SAME, listed(value(0))
    ),
    "op 2 of the plan, in the if_false of op 0, aten.neg.default: expected a value that is bound earlier, at most 0, "
    "got 2": (control("cond", value(1), TWICE, inner([X], [op("neg.default", value(2))], [1]), listed(value(0)))),
    "op 0 of the plan, control.cond.default: expected outputs among the 1 values of the graph, got 5": control(
        "cond", value(1), inner([X], [], [5]), SAME, listed(value(0))
    ),
    "expected a declared symbol, got 'q'": control(
        "cond", value(1), inner([taking("x", "float32", "q")], [], [0]), SAME, listed(value(0))
    ),
    "expected a name of its own of at most 256 characters for each input, got 'x'": control(
        "cond", value(1), inner([X, X], [], [0]), SAME, listed(value(0), value(0))
    ),
}


@pytest.mark.parametrize("cases", [COND, WHILE, SCAN, INSIDE], ids=["cond", "while_loop", "scan", "inside"])
def test_what_does_not_fit(cases: dict[str, Op]) -> None:
    """Each has its sentence, which names the op, and the sub-graph that it is in."""
    for sentence, one in cases.items():
        assert refusal(one).startswith(sentence)


@pytest.mark.parametrize(
    "changed",
    [
        {"symbols": [Symbol(name="m")]},
        {"conditions": [["eq", "n", 2]]},
        {"name": "inner"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_a_sub_graph_must_not_have(changed: dict[str, Any]) -> None:
    """Symbols, conditions and a name are the plan's; so are trees, and inputs that nobody gives."""
    side = inner([X], [], [0], **changed)
    assert refusal(control("cond", value(1), side, SAME, listed(value(0)))).startswith(
        "expected nothing but inputs, ops and outputs of a sub-graph, got more in the if_true of op 0: its signature, "
        "tree, symbols, conditions and name are those of the plan"
    )
    whole = Special(g=graph_of([X], [], [0]))
    assert "got more in the if_false of op 0" in refusal(control("cond", value(1), SAME, whole, listed(value(0))))


@pytest.mark.parametrize("kind", ["state", "random", "number", "other"])
def test_inputs_of_sub_graphs_are_given(kind: str) -> None:
    """None is state, none is drawn: what a sub-graph needs, its op gives it."""
    side = inner([Input(name="w", dtype="float32", shape=[2], kind=kind)], [], [0])
    assert refusal(control("cond", value(1), side, SAME, listed(value(0)))) == (
        f"expected inputs that are given to the sub-graph, got 'w' of kind '{kind}' in the if_true of op 0"
    )


def test_nesting_has_an_end() -> None:
    """Deeper than eight is refused, however deep: before anything else is looked at."""
    for deep in (9, 40):
        with pytest.raises(PlanMalformed) as caught:
            check_graph(nested(deep))
        assert str(caught.value) == "expected sub-graphs nested at most 8 deep, got deeper ones"


def test_values_are_counted_over_all_sub_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan does not escape the limit by nesting."""
    assert len(check_graph(halving(3)).types) == 5
    for most in (12, 14):
        monkeypatch.setattr(checker, "MAX_VALUES", most)
        with pytest.raises(PlanError, match=f"expected at most {most} values in a graph, got more"):
            check_graph(halving(3))
