"""Sub-graphs: how they are found, counted, encoded, and how their ops are numbered."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import (
    FORMAT_VERSION,
    Special,
    decode_graph,
    encode_graph,
    version_of,
)
from edge_agent.plan.nesting import MAX_NESTING, all_ops, check_nesting, has_loops, subgraphs_of, uses_of
from tests.edge_agent.plan.control_graphs import branch, control, halving, inner, nested, running, taking
from tests.edge_agent.plan.graphs import double_abs, graph_of, listed, op, value
from tests.edge_agent.plan.make_versions import VERSIONS


def test_ops_are_numbered_over_the_whole_plan() -> None:
    """Those of the plan first; then each sub-graph's, with what is nested in it after its own."""
    x, yes = taking("x", "float32"), taking("yes", "bool")
    deep = inner([x, yes], [op("neg.default", value(0))], [2])
    side = inner(
        [x, yes],
        [op("abs.default", value(0)), control("cond", value(1), deep, deep, listed(value(0), value(1)))],
        [3],
    )
    other = inner([x, yes], [op("exp.default", value(0))], [2])
    graph = graph_of(
        [x, yes],
        [
            control("cond", value(1), side, other, listed(value(0), value(1))),
            op("sin.default", value(2)),
            control("cond", value(1), other, other, listed(value(3), value(1))),
        ],
        [4],
    )
    names = [own.ops[place].name.split(".")[1] for own, place in all_ops(graph)]
    assert names == ["cond", "sin", "cond", "abs", "cond", "neg", "neg", "exp", "exp", "exp"]
    checked = check_graph(graph)
    firsts = {name: one.first for name, one in checked.inner[0].items()}
    assert firsts == {"if_true": 3, "if_false": 7}
    assert {name: one.first for name, one in checked.inner[0]["if_true"].inner[1].items()} == {
        "if_true": 5,
        "if_false": 6,
    }
    assert {name: one.first for name, one in checked.inner[2].items()} == {"if_true": 8, "if_false": 9}
    assert check_nesting(graph) == len(names)


def test_what_an_op_refers_to() -> None:
    """The values around it, not those inside."""
    (loop,) = [one for one in halving().ops if subgraphs_of(one)]
    assert [value for one in loop.args for value in uses_of(one)] == [0, 2, 1]
    assert len(subgraphs_of(loop)) == 2


def test_which_plans_have_loops_without_a_known_number_of_steps() -> None:
    """At any depth; a scan is none."""
    assert has_loops(halving())
    assert not any(map(has_loops, (double_abs(), branch(), running())))
    loop = Special(g=msgspec.structs.replace(halving(), signature=None, tree=None, name="", symbols=[]))
    assert has_loops(graph_of([], [control("cond", value(1), loop, loop, listed())], []))


def test_the_earliest_version_that_has_it() -> None:
    """Plans without sub-graphs keep their versions, and so their ids."""
    assert FORMAT_VERSION == 3
    assert version_of(double_abs()) == 1
    assert [version_of(one) for one in (branch(), halving(), running(), nested(1))] == [3] * 4
    for path in sorted((VERSIONS / "v1" / "captured").glob("*.plan")):
        bundle = PlanBundle.load(path)
        assert encode_graph(bundle.graph) == bundle.graph_bytes
        assert version_of(bundle.graph) == bundle.manifest.version < 3


def test_sub_graphs_in_canonical_bytes() -> None:
    """An array of inputs, ops, outputs, and nil for signature and tree."""
    data = encode_graph(nested(1))
    assert encode_graph(decode_graph(data)) == data
    plain = msgspec.msgpack.decode(data)
    (_, args) = plain[1][0][:2]
    assert [next(iter(one)) for one in args] == ["v", "g", "g", "l"]
    assert args[2]["g"] == [[["x", "float32"], ["yes", "bool"]], [], [0], None, None]


def test_nesting_is_measured_without_recursion() -> None:
    """However deep it is."""
    assert check_nesting(nested(MAX_NESTING)) == MAX_NESTING + 1
    graph = nested(1)
    for _ in range(5_000):
        held = msgspec.structs.replace(graph, signature=None, tree=None, name="")
        graph = msgspec.structs.replace(graph, ops=[control("cond", value(1), Special(g=held), Special(g=held))])
    with pytest.raises(PlanMalformed):
        check_nesting(graph)
