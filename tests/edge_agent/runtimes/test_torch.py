"""The torch runtime: what it gives, what it leaves alone, and what it says when an op fails."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

from edge_agent.plan.calls import bind_sizes
from edge_agent.plan.checker import check_graph
from edge_agent.plan.errors import ConditionFailed, OpFailed
from edge_agent.plan.format import Graph, Input, Special, Symbol
from edge_agent.runtimes.torch import LoadedPlan, TorchRuntime
from tests.edge_agent.plan.agreement import loaded
from tests.edge_agent.plan.graphs import bundle_of, double_abs, graph_of, listed, net, op, value

X = Input(name="x", dtype="float32", shape=[2])
ROWS = Input(name="x", dtype="float32", shape=["n", 2])
N = [Symbol(name="n", low=1)]


def load(graph: Graph, state: list[torch.Tensor] | None = None) -> LoadedPlan:
    """The graph as a device loads it: whole, and verified."""
    return TorchRuntime().load(bundle_of(graph, state).verify(), state or [])


def test_the_tutorials_plan_runs() -> None:
    """Doubled, then positive."""
    plan = load(double_abs())
    assert TorchRuntime.name == "torch"
    assert torch.equal(plan.run([torch.tensor([-1.0, 2.0])], {})[0], torch.tensor([2.0, 4.0]))


def test_a_network_gives_what_its_module_gives() -> None:
    """The same ops on the same weights: equal to the bit, for any number of rows, as often as asked."""
    graph, state = net()
    plan = load(graph, state)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2), torch.nn.LogSoftmax(1))
    with torch.no_grad():
        for own, weight in zip(module.parameters(), state, strict=True):
            own.copy_(weight)
        for rows in (1, 4, 7):
            x = torch.randn(rows, 2)
            found = plan.run([x], bind_sizes(graph, [("float32", (rows, 2))]))
            assert torch.equal(found[0], module(x))


def test_symbolic_numbers_are_computed_for_each_run() -> None:
    """Sizes and numbers made of symbols follow the call."""
    graph = graph_of(
        [ROWS],
        [
            op("full.default", listed(Special(s=["mul", 2, "n"])), Special(s=["truediv", "n", 2])),
            op("view.default", value(0), listed(Special(s=["mul", 2, "n"]))),
            op("div.Tensor", value(2), Special(s="n")),
        ],
        [1, 3],
        symbols=N,
    )
    plan = load(graph)
    for rows in (3, 5):
        made, divided = plan.run([torch.ones(rows, 2)], {"n": rows})
        assert torch.equal(made, torch.full((2 * rows,), rows / 2))
        assert torch.equal(divided, torch.ones(2 * rows) / rows)


def test_a_symbolic_number_without_a_value_fails_as_a_condition() -> None:
    """A division by zero in a size is a size for which the plan was not made."""
    size = Special(s=["floordiv", 6, ["sub", "n", 3]])
    plan = loaded(check_graph(graph_of([ROWS], [op("full.default", listed(size), 1)], [1], symbols=N)))
    with pytest.raises(ConditionFailed) as caught:
        plan.run([torch.ones(3, 2)], {"n": 3})
    assert str(caught.value) == "expected sizes with 6 // (n - 3) defined and within 64 bits, got n = 3"


def test_several_outputs_and_lists() -> None:
    """Ops that give lists or tuples bind each element; lists of values are made for each run."""
    graph = graph_of(
        [ROWS],
        [
            op("split.Tensor", value(0), 1, 1, outputs=2),
            op("sort.stable", value(1), outputs=2, stable=True, dim=0, descending=True),
            op("cat.default", listed(value(3), value(2)), 1),
            op("stack.default", Special(t=[value(1), value(2)]), dim=0),
        ],
        [5, 6, 4],
        symbols=N,
    )
    x = torch.tensor([[1.0, 5.0], [3.0, 6.0], [2.0, 7.0]])
    joined, stacked, order = load(graph).run([x], {"n": 3})
    assert joined.tolist() == [[3.0, 5.0], [2.0, 6.0], [1.0, 7.0]]
    assert stacked.shape == (2, 3, 1)
    assert order.tolist() == [[1], [2], [0]]


def test_arguments_of_every_kind() -> None:
    """Names, dtypes, constants, complex numbers, and an integer in place of a list reach the op as they are."""
    cpu, strided = Special(o="device:cpu"), Special(o="layout:strided")
    graph = graph_of(
        [Input(name="x", dtype="float32", shape=[2, 3])],
        [
            op("sum.dim_IntList", value(0), dim=1, keepdim=True, dtype=Special(d="float64")),
            op("_to_copy.default", value(0), dtype=Special(d="int64"), device=cpu, layout=strided),
            op("clone.default", value(0), memory_format=Special(o="memory_format:contiguous_format")),
            op("full.default", listed(2), Special(c=(1.0, -2.0)), dtype=Special(d="complex64")),
            op("clamp.default", value(0), max=0.5),
            op("searchsorted.Tensor", value(0), value(0), right=True, sorter=None),
            op("view.default", value(0), listed(6)),
            op("roll.default", value(0), 1, 0),
        ],
        [1, 2, 3, 4, 5, 6, 7, 8],
    )
    x = torch.tensor([[0.1, 0.5, 1.7], [0.2, 2.0, 3.0]])
    found = load(graph).run([x], {})
    wanted = [
        x.sum(1, keepdim=True, dtype=torch.float64),
        x.long(),
        x,
        torch.full((2,), 1 - 2j),
        x.clamp(max=0.5),
        torch.searchsorted(x, x, right=True),
        x.view(6),
        x.roll(1, 0),
    ]
    assert all(own.dtype == other.dtype and torch.equal(own, other) for own, other in zip(found, wanted, strict=True))


# ------------------------------------------------------------------------------------------------ memory


def views() -> Graph:
    """A plan that gives back its input, its state, views of both, and two views of one result."""
    return graph_of(
        [X, Input(name="w", dtype="float32", shape=[2], kind="state")],
        [
            op("view.default", value(1), listed(2, 1)),
            op("abs.default", value(0)),
            op("unsqueeze.default", value(3), 0),
            op("detach.default", value(0)),
        ],
        [0, 1, 2, 3, 4, 5, 3],
    )


def test_results_share_no_memory() -> None:
    """Whoever writes into a result changes neither the arguments, nor the plan's weights, nor another result."""
    x, weight = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    plan = load(views(), [weight])
    for one in plan.run([x], {}):
        one.zero_()
    assert x.tolist() == [1.0, -2.0]
    assert weight.tolist() == [3.0, 4.0]
    found = plan.run([x], {})
    places = [one.untyped_storage().data_ptr() for one in (*found, x, weight)]
    assert len(set(places)) == len(places)
    assert [one.flatten().tolist() for one in found] == [[1, -2], [3, 4], [3, 4], [1, 2], [1, 2], [1, -2], [1, 2]]


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of large results keeps two of them at a time, not all."""
    plan = load(graph_of([X], [op("add.Tensor", value(place), value(place)) for place in range(4)], [4]))
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []
    original = plan._layout.steps[0].call

    def counted(*args: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = original(*args)
        alive.append(weakref.ref(result))
        counts.append(sum(one() is not None for one in alive))
        return result

    plan._layout.steps = [step._replace(call=counted) for step in plan._layout.steps]
    (result,) = plan.run([torch.ones(2)], {})
    assert counts == [1, 2, 2, 2]
    assert result.tolist() == [16.0, 16.0]


def test_no_gradient_is_recorded() -> None:
    """Arguments that need gradients give results that do not, and are not marked otherwise for later use."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (result,) = load(double_abs()).run([x], {})
    assert not result.requires_grad
    assert not result.is_inference()
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------ the process


@pytest.fixture
def other_default() -> Iterator[None]:
    """A process whose user has set another default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("other_default")
def test_a_plan_does_not_see_the_processs_default_dtype() -> None:
    """Integers divide to float32 as the checker says, and the process keeps what it has set."""
    graph = graph_of([Input(name="x", dtype="int64", shape=[2])], [op("div.Tensor", value(0), 2)], [1])
    assert check_graph(graph).output_types[0].dtype == "float32"
    (result,) = load(graph).run([torch.tensor([1, 2])], {})
    assert result.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float64


def test_a_plan_does_not_see_autocast() -> None:
    """What a process casts by itself, it does not cast inside a plan."""
    graph, state = net()
    plan = load(graph, state)
    x = torch.ones(2, 2)
    (wanted,) = plan.run([x], {"s0": 2})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = plan.run([x], {"s0": 2})
        assert torch.is_autocast_enabled("cpu")
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_adding_up_by_index_is_deterministic() -> None:
    """Many values added into few places give the same bits every time; the process keeps what it has set."""
    many = 1 << 16
    graph = graph_of(
        [Input(name="x", dtype="float32", shape=[many]), Input(name="at", dtype="int64", shape=[many])],
        [
            op("zeros.default", listed(8)),
            op("index_put.default", value(2), listed(value(1)), value(0), True),
        ],
        [3],
    )
    plan = load(graph)
    generator = torch.Generator().manual_seed(3)
    x, at = torch.randn(many, generator=generator), torch.randint(0, 8, (many,), generator=generator)
    first = plan.run([x, at], {})[0]
    assert all(torch.equal(plan.run([x, at], {})[0], first) for _ in range(20))
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_plan_runs_in_several_threads() -> None:
    """Runs of one loaded plan do not see each other's values."""
    graph, state = net()
    plan = load(graph, state)
    inputs = [torch.randn(4, 2) for _ in range(4)]
    wanted = [plan.run([x], {"n": 4, "s0": 4})[0] for x in inputs]
    wrong: list[int] = []

    def work(place: int) -> None:
        wrong.extend(
            place for _ in range(50) if not torch.equal(plan.run([inputs[place]], {"s0": 4})[0], wanted[place])
        )

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert wrong == []


# ------------------------------------------------------------------------------------------------ failures


def test_an_op_that_fails_is_told() -> None:
    """The error names the op, its place and the original error, and its note shows the step."""
    graph = graph_of(
        [X, Input(name="at", dtype="int64", shape=[1])],
        [op("abs.default", value(0)), op("index_select.default", value(2), 0, value(1))],
        [3],
    )
    with pytest.raises(OpFailed) as caught:
        load(graph).run([torch.ones(2), torch.tensor([5])], {})
    failed = caught.value
    assert (failed.op, failed.op_index, failed.error_type) == ("aten.index_select.default", 1, "IndexError")
    assert failed.message == "index out of range in self"
    assert str(failed) == (
        "op 1 of the plan, aten.index_select.default, failed with IndexError: index out of range in self"
    )
    assert failed.__notes__ == ["while running index_select = aten.index_select.default(abs, 0, at)"]
    assert isinstance(failed.__cause__, IndexError)
    assert torch.is_grad_enabled()


def test_a_list_of_another_length_is_told() -> None:
    """A plan that counted on three parts, and gets two, fails at that op and not later."""
    graph = graph_of([ROWS], [op("split.Tensor", value(0), 1, outputs=3)], [3], symbols=N)
    with pytest.raises(OpFailed) as caught:
        load(graph).run([torch.ones(2, 2)], {"n": 2})
    assert caught.value.message == "expected 3 results, as the plan says, got 2"
    assert caught.value.__notes__ == ["while running _, _, split = aten.split.Tensor(x, 1)"]


def test_between_ops_sees_every_op_and_can_end_the_run() -> None:
    """The hook gets each op's index before it runs, once, also where a list is made first; what it raises passes."""
    ops = [op("abs.default", value(0)), op("cat.default", listed(value(0), value(1))), op("neg.default", value(2))]
    plan = load(graph_of([X], ops, [3]))
    seen: list[int] = []
    plan.between_ops = seen.append
    assert plan.run([torch.tensor([1.0, -2.0])], {})[0].tolist() == [-1.0, 2.0, -1.0, -2.0]
    assert seen == [0, 1, 2]

    class Stopped(Exception):
        pass

    def stop(index: int) -> None:
        if index == 1:
            raise Stopped

    plan.between_ops = stop
    with pytest.raises(Stopped):
        plan.run([torch.ones(2)], {})
    assert torch.is_grad_enabled()
