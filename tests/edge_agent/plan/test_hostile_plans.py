"""Plans that nobody honest has made: whatever the bytes, a checked plan or a `PlanError`, and soon."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import CheckedGraph, check_graph
from edge_agent.plan.cost import cost_of
from edge_agent.plan.errors import PlanError
from edge_agent.plan.expressions import OPERATORS
from edge_agent.plan.format import Graph, Input, Op, Special, Symbol, decode_graph, decode_manifest, encode_graph
from edge_agent.plan.nesting import subgraphs_of
from edge_agent.plan.readable import readable
from edge_agent.plan.registry import REGISTRY, registered
from tests.edge_agent.plan.control_graphs import branch, control, halving, inner, nested, running, taking
from tests.edge_agent.plan.effort import within
from tests.edge_agent.plan.graphs import bundle_of, double_abs, graph_of, listed, net, op, value


def judged(data: bytes) -> CheckedGraph | None:
    """What the checker says of these bytes; None for a `PlanError`. Any other exception fails the test."""
    try:
        checked = check_graph(decode_graph(data))
    except PlanError as error:
        refused = str(error)
    else:
        assert readable(checked.graph)
        return checked
    assert refused
    return None


# ------------------------------------------------------------------------------------------------ bytes


@given(st.binary(max_size=200))
def test_random_bytes_are_no_plan(data: bytes) -> None:
    """Neither graph, manifest nor file: each says so in its own error."""
    judged(data)
    for read in (decode_manifest, PlanBundle.from_bytes):
        with pytest.raises(PlanError):
            read(data)


CONTROL = [branch(), halving(3), running(reverse=True), nested(3)]
SEEDS = [encode_graph(double_abs()), encode_graph(net()[0]), *map(encode_graph, CONTROL)]


@given(data=st.data())
def test_bytes_that_were_changed_are_judged(data: st.DataObject) -> None:
    """Some bytes of a plan are replaced, cut or doubled: what comes out is a plan that types, or a refusal."""
    plan = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(plan) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set":
            plan[place] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(plan) > 2:
            del plan[place]
        else:
            plan.insert(place, data.draw(st.integers(0, 255)))
    judged(bytes(plan))


# ------------------------------------------------------------------------------------------------ structures


NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    1 << 40,
    -(1 << 63),
    (1 << 64) - 1,
    1.5,
    float("inf"),
    float("nan"),
    True,
    None,
    "sum",
    "x" * 300,
]
DTYPES = ["float32", "int64", "bool", "complex64", "uint16", "float8"]
TEXTS = ["none", "floor", "sum", "mean", "same", "linear", "ij", "reflect", "L"]


class Maker:
    """Makes graphs out of registered ops and arguments that mostly have the right kind."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.values = 0

    def expression(self, depth: int = 3) -> Any:
        choice = self.random
        if depth == 0 or choice.random() < 0.3:
            return choice.choice(["s0", "s1", 0, 1, 2, 7, -3, 1 << 40, (1 << 63) - 1, 2.5, True, "s9"])
        name = choice.choice([*OPERATORS, "none"])
        count = OPERATORS[name].fewest if name in OPERATORS else 1
        return [name, *(self.expression(depth - 1) for _ in range(count + (choice.random() < 0.1)))]

    def value(self) -> Special:
        number = self.random.randrange(max(self.values, 1))
        return Special(v=number if self.random.random() < 0.97 else self.random.choice([self.values, 1 << 62]))

    def argument(self, kind: str) -> Any:
        choice = self.random
        if choice.random() < 0.1:
            return choice.choice(
                [*NUMBERS, self.value(), listed(), listed(None, 1), Special(o="device:cuda"), Special(c=(1.0, 2.0))]
            )
        if kind.endswith("?"):
            return None if choice.random() < 0.3 else self.argument(kind[:-1])
        if kind == "Graph":
            return Special(g=self.inner())
        if kind.endswith("[]"):
            return listed(*(self.argument(kind[:-2]) for _ in range(choice.randrange(4))))
        if kind == "Tensor":
            return self.value()
        if kind == "ScalarType":
            return Special(d=choice.choice(DTYPES))
        if kind in ("int", "float", "Scalar") and choice.random() < 0.3:
            return Special(s=self.expression())
        if kind == "int":
            return choice.choice([0, 1, 2, 3, -1, -2, 4, 6, 1 << 40])
        return {
            "float": choice.choice([0.5, 2.0, 3, float("nan")]),
            "Scalar": choice.choice([1, 2.5, True, Special(c=(0.0, 1.0))]),
            "bool": choice.random() < 0.5,
            "str": choice.choice(TEXTS),
        }.get(kind)

    def shape(self) -> list[Any]:
        sizes: list[Any] = [0, 1, 2, 3, 4, 6, "s0", "s1", ["mul", 2, "s0"], ["add", "s1", 1], 1 << 50]
        weights = [1, 4, 6, 6, 6, 4, 8, 6, 1, 1, 0.3]
        return self.random.choices(sizes, weights, k=self.random.choice([0, 1, 1, 2, 2, 3, 3, 4, 5]))

    def op(self) -> Op:
        choice = self.random
        spec = REGISTRY[choice.choice(registered())]
        args, kwargs = [], {}
        for parameter in spec.parameters:
            if not parameter.required and choice.random() < 0.5:
                continue
            if parameter.keyword_only:
                kwargs[parameter.name] = self.argument(parameter.kind)
            else:
                args.append(self.argument(parameter.kind))
        outputs = spec.outputs if spec.outputs is not None else choice.randrange(5)
        if choice.random() < 0.02:
            outputs = choice.choice([0, 7, 1 << 62])
        self.values += outputs
        return Op(name=spec.name, args=args, kwargs=kwargs, outputs=outputs)

    def inner(self, depth: int = 2) -> Graph:
        """A sub-graph, which mostly has the form of one."""
        choice = self.random
        around, self.values = self.values, choice.randrange(1, 4)
        kinds = ["user"] * 9 + ["state"]
        inputs = [
            Input(name=f"x{place}", dtype=choice.choice(DTYPES[:5]), shape=self.shape(), kind=choice.choice(kinds))
            for place in range(self.values)
        ]
        ops = [self.op() for _ in range(choice.randrange(3))] if depth else []
        outputs = [choice.randrange(max(self.values, 1)) for _ in range(choice.randrange(3))]
        self.values = around
        more: dict[str, Any] = {} if choice.random() < 0.9 else {"name": "inner", "symbols": [Symbol(name="s0")]}
        return Graph(inputs=inputs, ops=ops, outputs=outputs, signature=None, tree=None, **more)

    def graph(self) -> Graph:
        choice = self.random
        inputs = [
            Input(name=f"x{place}", dtype=choice.choice(DTYPES[:5]), shape=self.shape())
            for place in range(choice.randrange(1, 4))
        ]
        inputs.append(Input(name="w", dtype="float32", shape=["s0", "s1"]))
        self.values = len(inputs)
        ops = [self.op() for _ in range(choice.randrange(1, 4))]
        conditions = [["eq", ["mod", "s0", 2], 0], ["ne", "s1", 1], ["eq", "s0", "s1"], ["lt", "s0", ["mul", 2, "s1"]]]
        return graph_of(
            inputs,
            ops,
            [choice.randrange(max(self.values, 1)) for _ in range(choice.randrange(3))],
            symbols=[Symbol(name="s0", low=choice.choice([0, 1, 2])), Symbol(name="s1", high=choice.choice([None, 9]))],
            conditions=[one for one in [*conditions, self.expression()] if choice.random() < 0.2],
        )


@pytest.mark.parametrize("block", range(8))
def test_plans_made_at_random_are_judged(block: int) -> None:
    """Ops with arguments of all kinds, right and wrong ones, end in types or in a refusal; many do type."""
    typed = 0
    for seed in range(400 * block, 400 * (block + 1)):
        try:
            data = encode_graph(Maker(seed).graph())
        except (OverflowError, msgspec.MsgspecError):  # an integer that msgpack cannot hold
            continue
        typed += judged(data) is not None
    assert typed > 20


class Breaker:
    """Changes one thing in a graph with sub-graphs, at any depth."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.maker = Maker(seed)
        self.maker.values = 4

    def broken(self, graph: Graph) -> Graph:
        """The graph with one part of it, or of a sub-graph of it, changed."""
        choice = self.random
        holding = [place for place, one in enumerate(graph.ops) if subgraphs_of(one)]
        if holding and choice.random() < 0.7:
            place = choice.choice(holding)
            ops = list(graph.ops)
            args = list(ops[place].args)
            at = choice.choice([k for k, one in enumerate(args) if isinstance(one, Special) and one.g is not None])
            held = args[at]
            assert isinstance(held, Special)
            assert held.g is not None
            args[at] = Special(g=self.broken(held.g))
            ops[place] = msgspec.structs.replace(ops[place], args=args)
            return msgspec.structs.replace(graph, ops=ops)
        return choice.choice([self._inputs, self._ops, self._outputs, self._more])(graph)

    def _inputs(self, graph: Graph) -> Graph:
        inputs = list(graph.inputs)
        place = self.random.randrange(len(inputs) + 1)
        other = Input(
            name=self.random.choice(["x", "y", "", "z" * 300]),
            dtype=self.random.choice(DTYPES),
            shape=self.random.choice([[], [2], ["n"], ["m"], [-1], [["add", "n", 1]], self.maker.shape()]),
            kind=self.random.choice(["user", "user", "state", "random", "number", "other"]),
        )
        inputs[place : place + self.random.randrange(2)] = [other] * self.random.randrange(3)
        return msgspec.structs.replace(graph, inputs=inputs)

    def _ops(self, graph: Graph) -> Graph:
        ops = list(graph.ops)
        place = self.random.randrange(len(ops) + 1)
        if not ops or place == len(ops) or self.random.random() < 0.3:
            ops[place:place] = [self.maker.op()]
        elif self.random.random() < 0.3:
            del ops[place]
        elif self.random.random() < 0.3:  # the same, by name
            names = [parameter.name for parameter in REGISTRY[ops[place].name].parameters]
            kept = self.random.randrange(len(ops[place].args) + 1)
            named = dict(zip(names[kept:], ops[place].args[kept:], strict=False))
            ops[place] = msgspec.structs.replace(ops[place], args=ops[place].args[:kept], kwargs=named)
        else:
            one = ops[place]
            args = list(one.args) or [None]
            args[self.random.randrange(len(args))] = self.maker.argument(
                self.random.choice(["Tensor", "int", "Graph", "Tensor[]", "bool"])
            )
            names = [one.name, "aten.rand.default", "control.other.default", "control.scan.default"]
            changed = {"args": args, "outputs": self.random.choice([one.outputs, 0, 2, 1 << 40])}
            ops[place] = msgspec.structs.replace(one, **changed, name=self.random.choice(names))
        return msgspec.structs.replace(graph, ops=ops)

    def _outputs(self, graph: Graph) -> Graph:
        outputs = [self.random.choice([0, 1, 2, 3, 50, 1 << 60]) for _ in range(self.random.randrange(4))]
        return msgspec.structs.replace(graph, outputs=outputs)

    def _more(self, graph: Graph) -> Graph:
        changed: list[dict[str, Any]] = [
            {"signature": ["t", ["t"], ["d"]]},
            {"tree": 0},
            {"symbols": [Symbol(name="n")]},
            {"conditions": [["eq", "n", 2]]},
            {"name": "other"},
        ]
        return msgspec.structs.replace(graph, **self.random.choice(changed))


@pytest.mark.parametrize("whole", CONTROL, ids=lambda graph: graph.name)
def test_broken_sub_graphs_are_judged(whole: Graph) -> None:
    """Whatever is wrong, at whatever depth, ends in the designed error; what types can be read, and has a cost."""
    typed = refused = 0
    for seed in range(400):
        breaker = Breaker(seed)
        graph = whole
        for _ in range(1 + seed % 2):
            graph = breaker.broken(graph)
        try:
            data = encode_graph(graph)
        except (OverflowError, msgspec.MsgspecError):
            continue
        checked = judged(data)
        if checked is None:
            refused += 1
        else:
            typed += 1
            assert str(cost_of(checked))
    assert refused > 200
    assert typed > 5


def test_sub_graphs_by_the_thousand_end_soon() -> None:
    """Side by side, and one in the other deeper than anything nests: each is judged once."""
    side = CONTROL[0].ops[-1]
    many = msgspec.structs.replace(CONTROL[0], ops=[*CONTROL[0].ops[:-1], *[side] * 3000])
    soon(encode_graph(many))
    for deep in (8, 9, 30):
        soon(encode_graph(nested(deep)))
    level = b"\x95\x90\x91\x92\xb4control.cond.default\x91\x81\xa1g"
    soon(level * 5_000 + b"\x95\x90\x90\x90\xc0\xc0")


def test_costs_of_large_plans_end_soon() -> None:
    """Thousands of branches in a chain, and a condition of thousands of comparisons."""
    yes = taking("yes", "bool")
    same = inner([yes], [], [0])
    chain = [control("cond", value(place), same, same, listed(value(place))) for place in range(5_000)]
    graphs = [graph_of([yes], chain, [5_000])]
    count = taking("count", "int64")
    asked = [op("lt.Tensor", value(0), value(0))]
    for place in range(1, 10_000, 2):
        asked += [op("lt.Scalar", value(0), 3), op("logical_and.default", value(place), value(place + 1))]
    body = inner([count], [op("mul.Tensor", value(0), 2)], [1])
    loop = control("while_loop", inner([count], asked, [len(asked)]), body, listed(value(0)), listed())
    graphs.append(graph_of([count], [loop], [1]))
    for graph in graphs:
        checked = check_graph(graph)
        with within(5):
            cost_of(checked)


# ------------------------------------------------------------------------------------------------ size and time


def soon(data: bytes) -> None:
    """The bytes are judged within seconds."""
    with within(5):
        judged(data)


def test_deep_nests_end_soon() -> None:
    """Lists in lists, wherever a plan may have them, end in a refusal."""
    deep: Any = 0
    for _ in range(900):
        deep = ["neg", deep]
    one = double_abs()
    soon(encode_graph(msgspec.structs.replace(one, signature=deep)))
    soon(encode_graph(msgspec.structs.replace(one, tree=deep)))
    soon(encode_graph(msgspec.structs.replace(one, conditions=[deep])))
    nest: Any = value(0)
    for _ in range(200):
        nest = listed(nest)
    soon(encode_graph(msgspec.structs.replace(one, ops=[op("cat.default", nest)])))
    soon(b"\x91" * 100_000)


def test_dims_that_double_end_soon() -> None:
    """A hundred ops that each make a dim twice as long do not fill the memory."""
    inputs = [Input(name="x", dtype="float32", shape=["a"]), Input(name="y", dtype="float32", shape=["b"])]
    ops = []
    for place in range(100):
        last = 2 * place + 1
        ops += [
            op("slice.Tensor", value(last), 0, Special(s="a"), Special(s=["floordiv", "b", place + 2])),
            op("cat.default", listed(value(last), value(last + 1), value(0))),
        ]
    soon(encode_graph(graph_of(inputs, ops, [0], symbols=[Symbol(name="a"), Symbol(name="b")])))


def test_many_values_end_soon() -> None:
    """Ops that promise a million outputs, or take a million inputs, are refused at once."""
    inputs = [Input(name="x", dtype="float32", shape=["a"])]
    symbols = [Symbol(name="a")]
    many = [op("unbind.int", value(0), outputs=90_000) for _ in range(50)]
    soon(encode_graph(graph_of(inputs, many, [0], symbols=symbols)))
    soon(encode_graph(graph_of(inputs, [op("split.Tensor", value(0), 1, outputs=1 << 50)], [0], symbols=symbols)))
    wide = [Input(name=str(place), dtype="float32") for place in range(200_000)]
    soon(encode_graph(graph_of(wide, [], [0])))


def test_conditions_by_the_hundred_end_soon() -> None:
    """Equations between all pairs of many symbols are taken in, or refused, without a long wait."""
    names = [f"n{place}" for place in range(200)]
    inputs = [Input(name=name, dtype="float32", shape=[name]) for name in names]
    conditions: list[Any] = [["eq", ["mul", a, b], ["add", a, 3, b]] for a, b in itertools.pairwise(names)]
    conditions += [["eq", a, ["add", b, 1]] for a, b in itertools.pairwise(names)]
    conditions += [["eq", ["max", *names], ["min", *names]]] * 200
    soon(encode_graph(graph_of(inputs, [], [0], symbols=[Symbol(name=name) for name in names], conditions=conditions)))


def test_calls_of_a_checked_plan_end_soon() -> None:
    """Conditions of a plan that passed are computed for any sizes without large numbers."""
    condition = ["eq", ["pow", ["add", ["mul", *["a"] * 15], 1], 60], 3]
    graph = graph_of(
        [Input(name="x", dtype="float32", shape=["a"])], [], [0], symbols=[Symbol(name="a")], conditions=[condition]
    )
    checked = judged(encode_graph(graph))
    assert checked is not None
    with within(1), pytest.raises(PlanError):
        bind_sizes(checked.graph, [("float32", ((1 << 62),))])


def test_a_manifest_is_judged_too() -> None:
    """A manifest with fields of other kinds is refused."""
    data = bundle_of(double_abs()).manifest_bytes
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        with contextlib.suppress(PlanError):
            decode_manifest(bytes(changed))
