"""Plans on the coordinator's side: building, running here, changing weights, saving, and the names that they
protect.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.build_errors import MutatedState
from coordinator.errors import ArgumentNotSupported, PlanNotBuilt, PlanStale, ProtectedName
from coordinator.function_plan import FunctionPlan, func2plan
from coordinator.plan import Plan
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed, OpFailed, PlanMalformed


def _double_abs() -> FunctionPlan:
    @func2plan()
    def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
        x = x + x
        return torch.abs(x)

    return plan_double_abs


class Net(Plan):
    """The tutorial's network."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=0)


# ------------------------------------------------------------------------------------------------- the tutorial, locall


def test_a_function_becomes_a_plan() -> None:
    """The name shows a plan: its name, id, owner, and that it is not built."""
    plan = _double_abs()
    assert isinstance(plan, Plan)
    assert repr(plan) == "<Plan plan_double_abs id:- owner:me not built>"
    assert plan.name == "plan_double_abs"
    assert plan.owner == "me"
    assert not plan.is_built


def test_sending_before_building() -> None:
    """It raises a RuntimeError that says so; so does all else that needs a graph."""
    plan = _double_abs()
    with pytest.raises(RuntimeError, match=r"^A plan needs to be built before being sent to a worker\.$"):
        plan.send()
    with pytest.raises(PlanNotBuilt, match="before being run"):
        plan(torch.ones(2))
    with pytest.raises(PlanNotBuilt, match="before it can be read"):
        _ = plan.readable_plan
    with pytest.raises(PlanNotBuilt, match="before it has an id"):
        _ = plan.id
    with pytest.raises(PlanNotBuilt, match="before being saved"):
        plan.save("nowhere")


def test_building_and_reading() -> None:
    """Built from an example, the plan has an id, and its ops can be read with their types."""
    plan = _double_abs()
    assert plan.build(torch.tensor([1.0, -2.0])) is plan
    assert plan.is_built
    assert len(plan.id) == 64
    assert repr(plan) == f"<Plan plan_double_abs id:{plan.id[:8]} owner:me built>"
    lines = plan.readable_plan.splitlines()
    assert lines[0] == "plan_double_abs(x: float32[2]) -> float32[2]:"
    assert [line.split(" = ")[1] for line in lines[1:3]] == ["aten.add.Tensor(x, x)", "aten.abs.default(add)"]


def test_running_here() -> None:
    """A function plan called locally runs what was built."""
    plan = _double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    assert torch.equal(plan(torch.tensor([-1.0, 2.0])), torch.tensor([2.0, 4.0]))
    assert torch.equal(plan(x=torch.tensor([-1.0, 3.0])), torch.tensor([2.0, 6.0]))


def test_a_module_plan() -> None:
    """A `Plan` class stays a live module when called; `run_plan` runs what was built, to the same value."""
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    example = torch.tensor([-1.0, 2.0])
    live = net(example)
    assert live.requires_grad
    torch.testing.assert_close(net.run_plan(example), live.detach())
    assert not net.run_plan(example).requires_grad
    assert set(net.state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_shapes_build_at_once() -> None:
    """`args_shape` builds when decorated; -1 is a dim that may vary, and not 1."""

    @func2plan(args_shape=[(-1, 1)])
    def one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    @func2plan(args_shape=[(1, 2), (-1, 2)], args_dtype=[torch.float32, torch.float64])
    def two(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum() + y.sum(0)

    assert one.is_built
    assert two.is_built
    assert one(torch.ones(7, 1)).shape == (7, 1)
    assert torch.equal(two(torch.ones(1, 2), torch.ones(3, 2).double()), torch.full((2,), 5.0).double())
    with pytest.raises(ArgumentMismatch):
        one(torch.ones(7, 2))


def test_a_plan_with_state() -> None:
    """The function reads its state and adds it; a changed state makes another plan with another value."""

    @func2plan(args_shape=[(1,)], state=(torch.tensor([1]),))
    def plan_abs(x: torch.Tensor, state: Any) -> torch.Tensor:
        (bias,) = state.read()
        result: torch.Tensor = x.abs() + bias
        return result

    assert plan_abs.is_built
    assert torch.equal(plan_abs(torch.tensor([-3.0])), torch.tensor([4.0]))
    first = plan_abs.id
    plan_abs.state.write(torch.tensor([5]))
    assert torch.equal(plan_abs(torch.tensor([-3.0])), torch.tensor([8.0]))
    assert plan_abs.id != first
    plan_abs.state.read()[0].fill_(1)
    assert plan_abs.id == first


def test_decorating_without_parentheses() -> None:
    """`@func2plan` is as good as `@func2plan()`."""

    @func2plan
    def plan(x: torch.Tensor) -> torch.Tensor:
        """Doubles."""
        return x * 2

    assert isinstance(plan, FunctionPlan)
    assert plan.__doc__ == "Doubles."
    assert plan.__name__ == "plan"
    plan.build(torch.ones(2))
    assert torch.equal(plan(torch.ones(2)), torch.full((2,), 2.0))


# ------------------------------------------------------------------------------------------------- sizes on the wire


def test_plans_are_small() -> None:
    """plan_double_abs takes at most 400 bytes, and the tutorial's network 1,000 with its weights."""
    plan = _double_abs()
    plan.build(torch.tensor([1.0, -2.0]))
    assert plan.bundle().wire_size <= 400
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    assert net.bundle().wire_size <= 1000


# ------------------------------------------------------------------------------------------------- weights that change


def test_a_changed_weight_changes_one_part() -> None:
    """After one weight changed, the graph and the other tensors keep their digests; also by a write that leaves no
    version.
    """
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    before = net.bundle()
    net.fc1.weight.data[0, 0] += 1
    after = net.bundle()
    assert after.plan_id != before.plan_id
    assert after.manifest.graph == before.manifest.graph
    changed = [
        k for k, (old, new) in enumerate(zip(before.manifest.state, after.manifest.state, strict=True)) if old != new
    ]
    assert [net.graph.inputs[1 + k].name for k in changed] == ["fc1.weight"]
    example = torch.tensor([0.5, -1.0])
    torch.testing.assert_close(net.run_plan(example), net(example).detach())


def test_an_optimizers_step_is_sent() -> None:
    """Training between two sends changes the id, and the plan computes with the new weights."""
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    before = net.id
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    example = torch.tensor([1.0, 2.0])
    net(example)[0].backward()
    optimizer.step()
    assert net.id != before
    torch.testing.assert_close(net.run_plan(example), net(example).detach())


def test_tied_weights_travel_once() -> None:
    """Two layers that share a weight make one part."""

    class Tied(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.two(torch.relu(self.one(x)))
            return result

    tied = Tied()
    tied.build(torch.ones(3))
    assert len(tied.bundle().state) == 1
    torch.testing.assert_close(tied.run_plan(torch.ones(3)), tied(torch.ones(3)).detach())


def test_a_changed_mode_or_structure_is_stale() -> None:
    """A module that is not what was built is refused, and the error says what changed; built again, it is fine."""
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    net.eval()
    with pytest.raises(PlanStale, match="mode of fc1: Linear, train became Linear, eval") as caught:
        net.bundle()
    assert len(caught.value.changes) == 3
    assert repr(net) == "<Plan Net id:- owner:me changed since it was built>"
    net.train()
    assert net.bundle().plan_id
    net.fc2 = nn.Linear(3, 4)
    with pytest.raises(PlanStale, match=r"parameter fc2.bias: float32\[2\] became float32\[4\]"):
        net.send()
    net.build(torch.tensor([1.0, 2.0]))
    assert net.run_plan(torch.ones(2)).shape == (4,)
    del net.fc2.bias
    with pytest.raises(PlanStale, match=r"parameter fc2.bias: float32\[4\] became none"):
        net.run_plan(torch.ones(2))


def test_a_state_of_another_shape_is_stale() -> None:
    """A function plan's state may get other values, but not another shape without another build."""

    @func2plan(args_shape=[(3,)], state=(torch.tensor([1.0]),))
    def plan(x: torch.Tensor, state: Any) -> torch.Tensor:
        result: torch.Tensor = x + state.read()[0]
        return result

    plan.state.write(torch.ones(3))
    with pytest.raises(PlanStale, match=r"state\[0\]: float32\[1\] became float32\[3\]"):
        plan(torch.ones(3))
    plan.build(args_shape=[(3,)])
    assert torch.equal(plan(torch.ones(3)), torch.full((3,), 2.0))
    with pytest.raises(ArgumentNotSupported, match="state: expected 1 tensors, got 2"):
        plan.state.write(torch.ones(3), torch.ones(3))


def test_state_is_the_plans_own() -> None:
    """Writing to the state does not change the tensor it was made of, and the function can't write to it."""
    mine = torch.tensor([1.0])

    @func2plan(state=(mine,))
    def plan(x: torch.Tensor, state: Any) -> torch.Tensor:
        state.write(x)
        return x

    plan.state.write(torch.tensor([7.0]))
    assert mine.item() == 1
    with pytest.raises(MutatedState, match="state is written to in place"):
        plan.build(torch.ones(1))
    with pytest.raises(TypeError, match="no parameter 'state'"):
        func2plan(state=(mine,))(lambda x: x)
    with pytest.raises(ArgumentNotSupported, match=r"state\[0\]: expected a tensor, got a int"):
        FunctionPlan(lambda state: state, state=(3,))  # type: ignore[arg-type]
    with pytest.raises(ArgumentNotSupported, match=r"state: expected a list or tuple of tensors, got a Tensor"):
        FunctionPlan(lambda state: state, state=mine)  # type: ignore[arg-type]


def test_what_is_no_function() -> None:
    """It is said when the plan is made, not when it is built."""
    with pytest.raises(TypeError, match=r"^expected a function to make a plan of, got a int$"):
        func2plan()(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- as a torch module


def test_protected_names() -> None:
    """What a plan needs for itself can't be set, as an attribute, a parameter, a buffer or a method; the error says
    so.
    """
    net = Net()
    for name in ("id", "state", "send", "build"):
        with pytest.raises(
            ProtectedName, match=f"Net can't have an attribute '{name}' of its own: a plan uses that name"
        ):
            setattr(net, name, 3)
    with pytest.raises(AttributeError):
        net.register_buffer("state", torch.ones(1))
    with pytest.raises(ProtectedName):
        net.register_parameter("id", nn.Parameter(torch.ones(1)))
    with pytest.raises(ProtectedName):
        net.add_module("send", nn.ReLU())
    with pytest.raises(ProtectedName, match="Bad can't have an attribute 'send'"):
        type("Bad", (Plan,), {"send": lambda _self: None})


def test_copies_are_plans_of_their_own() -> None:
    """A deep copy is built as well, and has weights of its own."""
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    other = copy.deepcopy(net)
    assert other.id == net.id
    with torch.no_grad():
        other.fc1.weight.add_(1)
    assert other.id != net.id
    example = torch.tensor([0.5, -1.0])
    torch.testing.assert_close(other.run_plan(example), other(example).detach())
    torch.testing.assert_close(net.run_plan(example), net(example).detach())


@pytest.mark.parametrize("stored", [False, True])
def test_a_plan_that_has_run_is_pickled(stored: bool, tmp_path: Path) -> None:
    """As any module is, by torch.save too: what was loaded to run it here does not go with it."""
    plan: Plan = Net()
    plan.build(torch.tensor([1.0, 2.0]))
    if stored:
        plan.save(tmp_path / "net.plan")
        plan = Plan.load(tmp_path / "net.plan")
    example = torch.tensor([0.5, -1.0])
    expected = plan.run_plan(example)
    torch.save(plan, tmp_path / "net.pt")
    other = torch.load(tmp_path / "net.pt", weights_only=False)
    assert other.id == plan.id
    assert torch.equal(other.run_plan(example), expected)


def test_module_habits() -> None:
    """state_dict, load_state_dict, to, eval and parameters work as on any module."""
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    net.build(torch.tensor([1.0, 2.0]))
    other.build(torch.tensor([1.0, 2.0]))
    assert net.id == other.id
    assert len(list(net.parameters())) == 4
    assert net.double().fc1.weight.dtype is torch.float64
    with pytest.raises(PlanStale, match=r"parameter fc1.weight: float32\[3, 2\] became float64\[3, 2\]"):
        net.bundle()
    assert not net.eval().training
    assert bool(net)
    assert [tensor.shape for tensor in net.state.read()] == [tensor.shape for tensor in net.parameters()]


def test_a_plan_of_double_weights() -> None:
    """Buffers, non-persistent ones among them, and other dtypes are carried."""

    class Scaled(Plan):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0]).double())
            self.register_buffer("shift", torch.tensor([1]), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + self.shift

    plan = Scaled()
    plan.build(torch.ones(2).double())
    assert torch.equal(plan.run_plan(torch.ones(2).double()), torch.full((2,), 3.0).double())
    plan.shift = torch.tensor([5])
    assert torch.equal(plan.run_plan(torch.ones(2).double()), torch.full((2,), 7.0).double())


# ------------------------------------------------------------------------------------------------- calls and results


def test_results_nest_as_the_function_nests_them() -> None:
    """A dict comes back as a dict, with numbers as tensors; an argument may be a result."""

    @func2plan(args_shape=[("n",), ("n",)])
    def plan(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"sum": x + y, "rest": [(x, None), y.shape[0]], "seven": 7}

    x, y = torch.ones(3), torch.arange(3.0)
    result = plan(x, y=y)
    assert list(result) == ["sum", "rest", "seven"]
    assert torch.equal(result["sum"], x + y)
    assert torch.equal(result["rest"][0][0], x)
    assert result["rest"][0][1] is None
    assert torch.equal(result["rest"][1], torch.tensor(3))
    assert torch.equal(result["seven"], torch.tensor(7))
    result["rest"][0][0].fill_(9)
    assert torch.equal(x, torch.ones(3))


def test_several_results() -> None:
    """A plan of several results has as many output types."""

    @func2plan(args_shape=[(-1, 2)])
    def plan(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(0), (x > 0).all()

    assert [(kind.dtype, kind.shape) for kind in plan.output_types] == [("float32", [2]), ("bool", [])]
    assert plan.output_tree == ["t", 0, 1]
    assert plan.bundle().manifest.outputs == list(plan.output_types)


def test_a_plan_without_arguments_or_results() -> None:
    """A plan may make something of nothing, and nothing of something."""

    @func2plan()
    def makes() -> torch.Tensor:
        return torch.arange(3)

    @func2plan()
    def drops(x: torch.Tensor) -> None:
        del x

    makes.build()
    drops.build(torch.ones(2))
    assert torch.equal(makes(), torch.arange(3))
    assert drops(torch.ones(2)) is None


def test_a_call_that_does_not_fit_names_the_argument() -> None:
    """Arity, keyword, dtype, rank and dims are checked before anything runs."""

    @func2plan(args_shape=[("n", 2), (3,)])
    def plan(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] % 2 == 0
        return x.sum() + y

    x, y = torch.ones(4, 2), torch.ones(3)
    for args, kwargs, sentence in (
        ((x,), {}, "y: expected a value, got nothing"),
        ((x, y, y), {}, "arguments: expected at most 2 (x, y), got 3"),
        ((x,), {"z": y}, "z: expected one of the arguments x, y, got this keyword"),
        ((x, y), {"y": y}, "y: expected one value, got two, by position and by keyword"),
        ((x, y.double()), {}, "y: expected float32[3], got float64[3]"),
        ((x, torch.ones(4)), {}, "y: expected float32[3], got float32[4]"),
        ((torch.ones(4), y), {}, "x: expected float32[n, 2], got float32[4]"),
        ((x, "y"), {}, "y: expected a tensor of float32, got a str"),
    ):
        with pytest.raises(ArgumentMismatch) as caught:
            plan(*args, **kwargs)
        assert str(caught.value) == sentence
        assert isinstance(caught.value, TypeError)
    with pytest.raises(ConditionFailed, match="n % 2 == 0, got n = 3"):
        plan(torch.ones(3, 2), y)


# ------------------------------------------------------------------------------------------------- plans inside plans


@func2plan()
def scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    """Never built: only part of others."""
    return x * factor


@func2plan(args_shape=[(3,)])
def shift(x: torch.Tensor) -> torch.Tensor:
    """Built on its own, for another size than it is used with."""
    return x + 1


def test_plans_inside_plans_are_inlined() -> None:
    """A plan that calls others, built or not, has their ops."""

    @func2plan()
    def outer(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = scale(shift(scale(x)), factor=3.0)
        return result

    outer.build(torch.ones(5), args_shape=[(-1,)])
    assert [op.name for op in outer.graph.ops] == ["aten.mul.Tensor", "aten.add.Tensor", "aten.mul.Tensor"]
    assert torch.equal(outer(torch.ones(2)), torch.full((2,), 9.0))
    assert [line and line.text for line in outer.source_table][1] == "return x + 1"


def test_a_plan_with_state_inside_another() -> None:
    """The inner plan's state is carried, and a change of it reaches the outer plan."""

    @func2plan(state=(torch.tensor([10.0]),))
    def inner(x: torch.Tensor, state: Any) -> torch.Tensor:
        result: torch.Tensor = x + state.read()[0]
        return result

    @func2plan()
    def outer(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = inner(x) * 2
        return result

    outer.build(torch.ones(1))
    assert torch.equal(outer(torch.ones(1)), torch.tensor([22.0]))
    inner.state.write(torch.tensor([20.0]))
    assert torch.equal(outer(torch.ones(1)), torch.tensor([42.0]))


def test_a_module_plan_as_a_part() -> None:
    """A `Plan` class inside another one has its weights there."""

    class Twice(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.net(self.net(x))
            return result

    plan = Twice()
    plan.build(torch.ones(2))
    assert plan.graph.inputs[1].name == "net.fc1.weight"
    torch.testing.assert_close(plan.run_plan(torch.ones(2)), plan(torch.ones(2)).detach())


# ------------------------------------------------------------------------------------------------- files


def test_saving_and_loading(tmp_path: Path) -> None:
    """A plan file holds the plan with its weights: loaded, it has the same id, runs, and knows its lines."""
    net = Net()
    net.build(torch.tensor([1.0, 2.0]))
    net.save(tmp_path / "net.plan")
    loaded = Plan.load(tmp_path / "net.plan")
    assert (loaded.id, loaded.name, loaded.is_built) == (net.id, "Net", True)
    example = torch.tensor([0.5, -1.0])
    assert torch.equal(loaded(example), net.run_plan(example))
    assert loaded.readable_plan == net.readable_plan
    assert loaded.source_table == net.source_table
    assert [tensor.shape for tensor in loaded.state.read()] == [(3, 2), (3,), (2, 3), (2,)]
    assert Net.load(tmp_path / "net.plan").id == net.id
    with pytest.raises(TypeError, match="was loaded from a file"):
        loaded.build(example)


def test_what_is_loaded_is_called_by_name_and_keeps_its_variants(tmp_path: Path) -> None:
    """Names, defaults and ranges are those of the function; a variant that was made is not made again."""

    @func2plan(args_shape=[("batch", 2), (2,)])
    def plan_scaled(x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scaled": x * scale}

    made = plan_scaled.variant(plan_scaled.bundle())
    plan_scaled.save(tmp_path / "scaled.plan")
    loaded = Plan.load(tmp_path / "scaled.plan")
    x, scale = torch.ones(3, 2), torch.tensor([2.0, 3.0])
    assert torch.equal(loaded(scale=scale, x=x)["scaled"], x * scale)
    with pytest.raises(ArgumentMismatch, match=r"scale: expected float32\[2\], got float32\[4\]"):
        loaded(x, torch.ones(4))
    assert loaded.cost(batch=3) == plan_scaled.cost(batch=3)
    assert loaded.variant(loaded.bundle()) is loaded.bundle().beside["onnx"]
    assert loaded.bundle().beside["onnx"] == made
    assert loaded.id == plan_scaled.id


def test_a_plan_file_cut_or_altered(tmp_path: Path) -> None:
    """It is told, and not loaded."""
    plan = _double_abs()
    plan.build(torch.ones(2))
    plan.save(tmp_path / "a.plan")
    content = (tmp_path / "a.plan").read_bytes()
    for broken in (content[:-5], content[: len(content) // 2], content.replace(b"abs", b"neg"), b""):
        (tmp_path / "broken.plan").write_bytes(broken)
        with pytest.raises(PlanMalformed):
            Plan.load(tmp_path / "broken.plan")


def test_every_op_has_its_line() -> None:
    """The source table names the line of each op, also through helper functions."""

    def helper(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    @func2plan()
    def plan(x: torch.Tensor) -> torch.Tensor:
        y = helper(x)
        return y.softmax(0)

    plan.build(torch.ones(3))
    lines = plan.source_table
    assert [line and (Path(line.file).name, line.text) for line in lines] == [
        (Path(__file__).name, "return torch.relu(x)"),
        (Path(__file__).name, "return y.softmax(0)"),
    ]
    assert len(lines) == len(plan.graph.ops)


def test_an_op_that_fails_here_is_told_with_its_line() -> None:
    """As one on a device is."""

    @func2plan()
    def pick(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return x[at]

    pick.build(torch.arange(5.0), torch.tensor([1, 2]))
    with pytest.raises(OpFailed, match="index 9 is out of bounds") as failed:
        pick(torch.arange(5.0), torch.tensor([1, 9]))
    note = failed.value.__notes__[-1]
    assert note.startswith(f"at {__file__}:")
    assert note.endswith(": return x[at]")
