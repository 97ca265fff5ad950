"""The checker against plans that are wrong: each refused, with a sentence that says why."""

from __future__ import annotations

import gc
import sys
from typing import Any

import msgspec
import pytest

from broker.protocol.tensors import TensorHeader, inspect
from edge_agent.plan.checker import MAX_CONDITIONS, MAX_SYMBOLS, MAX_VALUES, check_graph, check_plan
from edge_agent.plan.errors import PlanError, PlanMalformed, PlanTypeError, UnknownOp
from edge_agent.plan.format import (
    Graph,
    Input,
    Op,
    Special,
    Symbol,
    TensorType,
)
from edge_agent.runtimes.torch_tensors import encode_tensor
from tests.edge_agent.plan.graphs import bundle_of, double_abs, graph_of, listed, net, op, residual_blocks, value

X = Input(name="x", dtype="float32", shape=[2])


def test_every_value_has_a_type() -> None:
    """Inputs, then each op's outputs, in order; dims in normal form."""
    checked = check_graph(net()[0])
    assert [(one.dtype, one.shape) for one in checked.types[5:]] == [
        ("float32", ["s0", 3]),
        ("float32", ["s0", 3]),
        ("float32", ["s0", 2]),
        ("float32", ["s0", 2]),
    ]
    assert checked.output_types == [TensorType(dtype="float32", shape=["s0", 2])]
    assert [spec.name for spec in checked.specs] == [one.name for one in checked.graph.ops]


def test_conditions_make_sizes_equal() -> None:
    """Two symbols that a condition makes equal are one in every type."""
    inputs = [Input(name="x", dtype="float32", shape=["a"]), Input(name="y", dtype="float32", shape=["b"])]
    graph = graph_of(
        inputs,
        [op("add.Tensor", value(0), value(1)), op("cat.default", listed(value(0), value(1)))],
        [2, 3],
        symbols=[Symbol(name="a"), Symbol(name="b")],
        conditions=[["eq", "a", "b"]],
    )
    assert [one.shape for one in check_graph(graph).output_types] == [["a"], [["mul", 2, "a"]]]


def test_a_size_that_may_be_one_is_not_squeezed() -> None:
    """Whether a dim goes away must be known before the plan runs, since it decides the rank of what follows."""

    def squeezed(low: int, conditions: list[Any]) -> Graph:
        one = Input(name="x", dtype="float32", shape=["n", 1])
        ops = [op("squeeze.default", value(0))]
        return graph_of([one], ops, [1], symbols=[Symbol(name="n", low=low)], conditions=conditions)

    with pytest.raises(PlanTypeError) as caught:
        check_graph(squeezed(0, []))
    assert str(caught.value) == (
        "op 0 of the plan, aten.squeeze.default: expected a size to squeeze that is known to be 1, or not to be "
        "(a condition n != 1), got n"
    )
    assert check_graph(squeezed(2, [])).output_types[0].shape == ["n"]
    assert check_graph(squeezed(0, [["ne", "n", 1]])).output_types[0].shape == ["n"]
    assert check_graph(squeezed(0, [["eq", "n", 1]])).output_types[0].shape == []


def changed(graph: Graph, **fields: Any) -> Graph:
    """The graph with other fields."""
    return msgspec.structs.replace(graph, **fields)


def with_input(**fields: Any) -> Graph:
    """The two-op plan with another input."""
    return changed(double_abs(), inputs=[msgspec.structs.replace(X, **fields)])


def with_op(*args: Any, name: str = "aten.add.Tensor", outputs: int = 1, **kwargs: Any) -> Graph:
    """A plan of one op on one input."""
    return graph_of([X], [Op(name=name, args=list(args), kwargs=kwargs, outputs=outputs)], [1])


SYMBOL = [Symbol(name="n")]
BOTH = "expected a signature of a tuple of arguments and a dict of keyword arguments, got another tree"

WRONG: list[tuple[Graph, type[PlanError], str]] = [
    # ops
    (
        with_op(name="aten.add_.Tensor"),
        UnknownOp,
        "expected an op of the registry, got 'aten.add_.Tensor' (op 0 of the plan)",
    ),
    (with_op(name="os.system"), UnknownOp, "expected an op of the registry, got 'os.system' (op 0 of the plan)"),
    (
        with_op(name="aten.nonzero.default"),
        UnknownOp,
        "expected an op of the registry, got 'aten.nonzero.default' (op 0 of the plan)",
    ),
    (
        with_op(name="aten.rand.default"),
        UnknownOp,
        "expected an op of the registry, got 'aten.rand.default' (op 0 of the plan)",
    ),
    (with_op(name="aten.empty.memory_format"), UnknownOp, "got 'aten.empty.memory_format' (op 0 of the plan)"),
    (with_op(name="a" * 500), UnknownOp, f"expected an op of the registry, got '{'a' * 128}' (op 0 of the plan)"),
    # arguments
    (with_op(value(0)), PlanTypeError, "op 0 of the plan, aten.add.Tensor: expected an argument for other, got none"),
    (with_op(value(0), value(0), 1), PlanTypeError, "expected at most 2 arguments by position, got 3"),
    (with_op(value(0), value(0), other=1), PlanTypeError, "expected other once, got it by position and by name"),
    (with_op(value(0), value(0), beta=1), PlanTypeError, "expected arguments among self, other, alpha, got 'beta'"),
    (with_op(value(0), value(0), alpha="1"), PlanTypeError, "expected a number for alpha, got '1'"),
    (
        with_op(value(0), value(0), alpha=1 << 63),
        PlanTypeError,
        "expected an integer of 64 bits for alpha, got a larger one",
    ),
    (with_op(value(0), value(0), alpha=listed()), PlanTypeError, "expected a number for alpha, got a list"),
    (with_op(value(0), value(1)), PlanTypeError, "expected a value that is bound earlier, at most 0, got 1"),
    (with_op(value(0), value(1 << 62)), PlanTypeError, "expected a value that is bound earlier, at most 0, got"),
    (with_op(value(0), None), PlanTypeError, "expected a number for other, got None"),
    (with_op(value(0), "x" * 200), PlanTypeError, "expected a number for other, got 'xxxxx"),
    (with_op(value(0), Special(s="n")), PlanMalformed, "expected a declared symbol, got 'n'"),
    (with_op(value(0), Special(g=double_abs())), PlanTypeError, "expected a number for other, got a graph"),
    (with_op(value(0), Special(d="float32")), PlanTypeError, "expected a number for other, got the dtype float32"),
    (with_op(3, name="aten.abs.default"), PlanTypeError, "expected a tensor for self, got 3"),
    (with_op(value(0), 1.5, name="aten.sum.dim_IntList"), PlanTypeError, "expected an integer for dim, got 1.5"),
    (
        with_op(value(0), listed(*[0] * 65), name="aten.sum.dim_IntList"),
        PlanTypeError,
        "expected at most 64 elements of dim, got 65",
    ),
    (
        with_op(value(0), Special(s=["truediv", 1, 2]), name="aten.select.int"),
        PlanTypeError,
        "expected an integer for dim, got a float",
    ),
    (with_op(value(0), 1, 0, name="aten.prod.dim_int"), PlanTypeError, "expected True or False for keepdim, got 0"),
    (
        with_op(value(0), name="aten.gelu.default", approximate="x" * 300),
        PlanTypeError,
        "expected a string of at most 256 characters",
    ),
    (with_op(value(0), True, name="aten.logit.default"), PlanTypeError, "expected a float for eps, got True"),
    (with_op(value(0), name="aten._to_copy.default", dtype=Special(d="object")), PlanTypeError, "got the dtype object"),
    (
        with_op(value(0), name="aten._to_copy.default", device=Special(o="device:cuda")),
        PlanTypeError,
        "got the constant device:cuda",
    ),
    # results
    (with_op(value(0), value(0), outputs=2), PlanTypeError, "expected 1 outputs, got 2"),
    (with_op(value(0), value(0), outputs=0), PlanTypeError, "expected 1 outputs, got 0"),
    (
        with_op(value(0), 1, name="aten.split.Tensor", outputs=1 << 40),
        PlanTypeError,
        f"expected at most {MAX_VALUES} values in a graph",
    ),
    (
        with_op(value(0), listed(2, *[1] * 32), name="aten.view.default"),
        PlanTypeError,
        "expected a result of at most 32 dims, got 33",
    ),
    (with_op(value(0), listed(1 << 62), name="aten.repeat.default"), PlanTypeError, "expected sizes within 64 bits"),
    (with_op(float(1 << 60), name="aten.arange.default"), PlanTypeError, "expected a range of fewer elements"),
    (changed(double_abs(), outputs=[3]), PlanTypeError, "expected outputs among the 3 values of the graph, got 3"),
    # inputs
    (with_input(dtype="object"), PlanTypeError, "expected a dtype of bool, uint8"),
    (with_input(shape=[-1]), PlanMalformed, "expected sizes of 0 or more for the input x, got -1"),
    (with_input(shape=[1 << 63]), PlanMalformed, "expected a number within 64 bits in an expression, got a larger one"),
    (with_input(shape=["n"]), PlanMalformed, "expected a declared symbol, got 'n'"),
    (with_input(shape=[["truediv", 3, 2]]), PlanMalformed, "expected sizes of 0 or more for the input x, got 3 / 2"),
    (with_input(shape=[1] * 33), PlanTypeError, "expected at most 32 dims for the input x, got 33"),
    (with_input(kind="secret"), PlanMalformed, "expected an input of kind user, number, state, random, got 'secret'"),
    (with_input(kind="number"), PlanMalformed, "expected no dims for the number x, got 1"),
    (with_input(name=""), PlanMalformed, "expected a name of its own of at most 256 characters for each input, got ''"),
    (with_input(name="x" * 257), PlanMalformed, "expected a name of its own of at most 256 characters for each input"),
    (
        graph_of([X, X], [], [0]),
        PlanMalformed,
        "expected a name of its own of at most 256 characters for each input, got 'x'",
    ),
    (
        graph_of([Input(name="w", dtype="float32", kind="state"), X], [], [0]),
        PlanMalformed,
        "expected the user's inputs before the state, and what is drawn after it, got x after it",
    ),
    (
        graph_of([Input(name="w", dtype="float32", shape=["n"], kind="state")], [], [0], symbols=SYMBOL),
        PlanMalformed,
        "expected sizes of 0 or more for the input w, got n",
    ),
    # symbols and conditions
    (graph_of([X], [], [0], symbols=SYMBOL), PlanMalformed, "expected an input whose shape tells the size n, got none"),
    (
        graph_of([Input(name="x", dtype="float32", shape=[["mul", "n", "n"]])], [], [0], symbols=SYMBOL),
        PlanMalformed,
        "expected an input whose shape tells the size n, got none",
    ),
    (
        graph_of([X], [], [0], symbols=[Symbol(name="1")]),
        PlanMalformed,
        "expected an identifier as a symbol's name, got '1'",
    ),
    (
        graph_of([X], [], [0], symbols=[Symbol(name="add")]),
        PlanMalformed,
        "expected an identifier as a symbol's name, got 'add'",
    ),
    (graph_of([X], [], [0], symbols=SYMBOL * 2), PlanMalformed, "expected each symbol once, got n twice"),
    (
        graph_of([X], [], [0], symbols=[Symbol(name="n", low=3, high=2)]),
        PlanMalformed,
        "least to a greatest size for n, got 3 to 2",
    ),
    (
        graph_of([X], [], [0], symbols=[Symbol(name="n", high=-1)]),
        PlanMalformed,
        "least to a greatest size for n, got 0 to -1",
    ),
    (
        graph_of([X], [], [0], symbols=[Symbol(name=f"n{place}") for place in range(MAX_SYMBOLS + 1)]),
        PlanMalformed,
        f"expected at most {MAX_SYMBOLS} symbols, got {MAX_SYMBOLS + 1}",
    ),
    (
        graph_of([X], [], [0], conditions=[["add", 1, 2]]),
        PlanMalformed,
        "expected a condition that is true or false, got the int 1 + 2",
    ),
    (
        graph_of([X], [], [0], conditions=[["eq", 1, 1]] * (MAX_CONDITIONS + 1)),
        PlanMalformed,
        f"expected at most {MAX_CONDITIONS} conditions, got {MAX_CONDITIONS + 1}",
    ),
    # trees
    (changed(double_abs(), signature=0), PlanMalformed, BOTH),
    (changed(double_abs(), signature=["t", ["t", 0]]), PlanMalformed, BOTH),
    (changed(double_abs(), signature=["t", 0, ["d"]]), PlanMalformed, BOTH),
    (changed(double_abs(), signature=["t", ["d"], ["t", 0]]), PlanMalformed, BOTH),
    (changed(double_abs(), signature=["t", ["t"], ["d", 1, 0]]), PlanMalformed, BOTH),
    (changed(double_abs(), signature=["t", ["t", 0, 1], ["d"]]), PlanMalformed, "expected a signature with 1 leaves"),
    (changed(double_abs(), signature=["t", ["t"], ["d"]]), PlanMalformed, "expected a signature with 1 leaves"),
    (
        changed(double_abs(), tree=["t", 0, 1]),
        PlanMalformed,
        "expected an output tree with 1 leaves, as many as the outputs, got 2",
    ),
    (changed(double_abs(), tree="0"), PlanMalformed, "expected a tree, got a str"),
    (changed(double_abs(), name="n" * 257), PlanMalformed, "expected a name of at most 256 characters, got 257"),
]


@pytest.mark.parametrize(("graph", "error", "sentence"), WRONG, ids=[f"{place}" for place in range(len(WRONG))])
def test_what_is_wrong_is_refused_with_its_reason(graph: Graph, error: type[PlanError], sentence: str) -> None:
    """The error's type tells what kind of thing is wrong, its sentence what was expected and what came."""
    with pytest.raises(PlanError) as caught:
        check_graph(graph)
    assert type(caught.value) is error
    assert sentence in str(caught.value)


def test_an_error_carries_its_place() -> None:
    """Which op fails is an attribute, so that its source line can be found."""
    graph = graph_of([X], [op("abs.default", value(0)), op("mm.default", value(0), value(1))], [2])
    with pytest.raises(PlanTypeError) as caught:
        check_graph(graph)
    assert (caught.value.op, caught.value.index) == ("aten.mm.default", 1)
    assert caught.value.reason == "expected a matrix with 2 dims, got float32[2]"
    assert str(caught.value) == "op 1 of the plan, aten.mm.default: expected a matrix with 2 dims, got float32[2]"


# ------------------------------------------------------------------------------------------------ whole plans


def headers(state: list[Any]) -> list[TensorHeader]:
    """What the frames of these tensors say of themselves."""
    return [inspect(encode_tensor(one)) for one in state]


def test_state_must_be_what_the_graph_takes() -> None:
    """A weight that is missing, or of another dtype or shape, is refused with its name."""
    graph, state = net()
    manifest = bundle_of(graph, state).manifest
    assert check_plan(manifest, graph, headers(state)).manifest == manifest
    with pytest.raises(
        PlanMalformed, match="expected 4 tensors of state, as the graph has inputs for them, got 4 in the"
    ):
        check_plan(manifest, graph, headers(state[1:]))
    with pytest.raises(PlanMalformed, match="got 3 in the manifest and 4 tensors"):
        check_plan(msgspec.structs.replace(manifest, state=manifest.state[1:]), graph, headers(state))
    with pytest.raises(PlanTypeError) as caught:
        check_plan(manifest, graph, headers([state[0].double(), *state[1:]]))
    assert str(caught.value) == "expected float32[3, 2] for the state fc1.weight, got float64[3, 2]"
    with pytest.raises(PlanTypeError) as caught:
        check_plan(manifest, graph, headers([state[0], state[1][:2], *state[2:]]))
    assert str(caught.value) == "expected float32[3] for the state fc1.bias, got float32[2]"


@pytest.mark.parametrize(
    "promised",
    [
        [],
        [TensorType(dtype="float32", shape=["s0", 2])] * 2,
        [TensorType(dtype="float64", shape=["s0", 2])],
        [TensorType(dtype="float32", shape=["s0"])],
        [TensorType(dtype="float32", shape=["s0", 3])],
        [TensorType(dtype="float32", shape=[5, 2])],
        [TensorType(dtype="float32", shape=["s1", 2])],
        [TensorType(dtype="float32", shape=[["and", "s0", 1], 2])],
    ],
    ids=repr,
)
def test_a_manifest_promises_what_the_graph_gives(promised: list[TensorType]) -> None:
    """Results of another number, dtype or shape than the graph's are not announced."""
    graph, state = net()
    manifest = bundle_of(graph, state).manifest
    with pytest.raises(PlanError):
        check_plan(msgspec.structs.replace(manifest, outputs=promised), graph, headers(state))


def test_a_promise_may_be_written_otherwise() -> None:
    """What is equal is equal, also where an older version has written it in another way."""
    graph, state = net()
    manifest = bundle_of(graph, state).manifest
    other = [TensorType(dtype="float32", shape=[["sub", ["mul", 2, "s0"], "s0"], ["add", 1, 1]])]
    check_plan(msgspec.structs.replace(manifest, outputs=other), graph, headers(state))


def test_the_work_of_checking_grows_with_the_ops() -> None:
    """And not with their square: twice the ops take no more than twice the calls."""

    def calls(graph: Graph) -> int:
        """How many functions are called while it is checked."""
        made = 0

        def count(_frame: object, event: str, _called: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        gc.disable()  # a collection calls back whoever measures collections, which is no work of the checker
        sys.setprofile(count)
        try:
            check_graph(graph)
        finally:
            sys.setprofile(None)
            gc.enable()
        return made

    small, large = residual_blocks(100), residual_blocks(200)
    check_graph(large)  # what is remembered of any plan is no work of these
    assert calls(large) < 2.05 * calls(small)
