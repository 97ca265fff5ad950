"""torch.while_loop and scan as loops of the plan: what becomes of them, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._higher_order_ops as torchs_operators
from torch import nn

from coordinator.build_errors import (
    GradientThroughLoop,
    LoopEndless,
    LoopMismatch,
    LoopNotSupported,
    RandomInLoop,
    ValueLeftLoop,
)
from coordinator.capture import patience
from coordinator.plan import Plan
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.format import Graph
from edge_agent.plan.nesting import all_ops
from edge_agent.runtimes import torch_control
from tests.coordinator.capture.checks import built, refused

operators: Any = torchs_operators
while_loop: Any = torchs_operators.while_loop


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _control(graph: Graph) -> list[str]:
    names = [own.ops[place].name for own, place in all_ops(graph)]
    return [name.split(".")[1] for name in names if name.startswith("control.")]


# ------------------------------------------------------------------------------------------------- while_loop


def newton(a: torch.Tensor) -> Any:
    """Square roots, and how many steps they took."""

    def going(x: torch.Tensor, steps: torch.Tensor) -> Any:
        return ((x * x - a).abs().max() > 1e-5) & (steps < 60)

    def better(x: torch.Tensor, steps: torch.Tensor) -> Any:
        return 0.5 * (x + a / x), steps + 1

    return while_loop(going, better, (torch.ones_like(a), 0))


def test_a_loop_until_it_converges() -> None:
    """Newton's iteration, over any number of elements; what the functions find outside becomes an operand."""
    plan = built(newton, _randn(5).abs() + 1, shape=[(-1,)])
    for x in (torch.tensor([4.0]), torch.tensor([9.0, 16.0, 2.25])):
        roots, steps = plan.run_plan(x)
        torch.testing.assert_close(roots, x.sqrt())
        assert 3 < int(steps) < 10
    assert int(plan.run_plan(torch.ones(3))[1]) == 0
    assert plan.cost(s0=3).bounded  # by the count that it carries
    for line in (
        "while_loop_0, while_loop_1 = control.while_loop.default(condition, body, [ones_like, full], [a]):",
        "        condition(x: float32[s0], steps: int64[], a: float32[s0]) -> bool[]:",
        "        body(x: float32[s0], steps: int64[], a: float32[s0]) -> (float32[s0], int64[]):",
        "            return (mul, add_1)",
    ):
        assert line in plan.readable_plan


def test_what_a_loop_may_carry() -> None:
    """Nests of tensors, numbers and views; a condition of any dtype; a body that passes things on."""

    def function(x: torch.Tensor) -> Any:
        def body(state: dict[str, Any], kept: torch.Tensor) -> Any:
            turned = state["x"][0].t().contiguous().t()  # of other strides than what it is given
            return {"x": [turned / 2], "n": state["n"] + 1}, kept

        state = {"x": [x.t()], "n": torch.tensor(0)}
        return while_loop(lambda state, kept: state["x"][0].abs().sum() > kept, body, (state, torch.tensor(1.0)))

    plan = built(function, _randn(5, 3), shape=[(-1, 3)])
    x = torch.full((2, 3), 8.0)
    state, kept = plan.run_plan(x)
    torch.testing.assert_close(state["x"][0], torch.full((3, 2), 8.0 / 64))
    assert int(state["n"]) == 6
    assert float(kept) == 1.0
    torch.testing.assert_close(plan.run_plan(x / 64)[0]["x"][0], x.t() / 64)  # it need not run at all


def test_sizes_may_be_carried() -> None:
    """And a limit may be one: then the bound is a size, too."""

    def function(x: torch.Tensor) -> Any:
        def body(left: torch.Tensor, done: torch.Tensor, y: torch.Tensor) -> Any:
            return left - 1, done + 1, y * 2

        return while_loop(lambda left, done, _: (left > 1) & (done < x.shape[0]), body, (x.shape[0], 0, x))

    plan = built(function, _randn(5, 2), shape=[("n", 2)])
    for size in (2, 7):
        left, done, y = plan.run_plan(torch.ones(size, 2))
        assert (int(left), int(done)) == (1, size - 1)
        torch.testing.assert_close(y, torch.full((size, 2), 2.0 ** (size - 1)))
    assert plan.cost(n=10).bounded
    assert plan.cost(n=10).flops < plan.cost(n=100).flops / 50


def test_a_cheap_branch_in_a_loop_that_gives_what_lies_outside() -> None:
    """What only a result of the branch refers to is an operand of the loop; from two loops around it, too."""

    def function(x: torch.Tensor, least: torch.Tensor) -> Any:
        def body(y: torch.Tensor) -> Any:
            def inner(z: torch.Tensor) -> Any:
                return (torch.cond(z.sum() <= 1, lambda _: least, lambda z: z / 2, (z,)),)

            return while_loop(lambda z: z.sum() > 0.5, inner, (y,))

        return while_loop(lambda y: y.sum() > 0.5, body, (x,))[0]

    plan = built(function, _randn(4).abs(), torch.zeros(4), shape=[("n",), ("n",)])
    least = torch.tensor([0.1, 0.2])
    torch.testing.assert_close(plan.run_plan(torch.tensor([4.0, 4.0]), least), least)
    assert [own.ops[place].name for own, place in all_ops(plan.graph)][-1] == "aten.where.self"


def test_a_plan_in_the_body_of_a_loop() -> None:
    """It becomes a part of the body."""
    half = built(lambda x: x / 2, _randn(5), shape=[(-1,)])
    plan = built(lambda x: while_loop(lambda y: y.norm() > 1, lambda y: (half(y),), (x,)), _randn(5), shape=[(-1,)])
    assert [own.ops[place].name for own, place in all_ops(plan.graph)][-1] == "aten.div.Tensor"
    torch.testing.assert_close(plan.run_plan(torch.tensor([4.0]))[0], torch.tensor([1.0]))


class Polished(Plan):
    """A module whose loop uses its parameters, and a loop in a loop."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """Layers until small; each then halved until smaller."""

        def halve(y: torch.Tensor, steps: torch.Tensor) -> Any:
            (z,) = while_loop(lambda z: z.abs().max() > 0.25, lambda z: (z / 2,), (torch.tanh(self.layer(y)),))
            return z, steps + 1

        return while_loop(lambda y, steps: (y.norm() > 0.5) & (steps < 5), halve, (x, 0))


def test_a_loop_in_a_loop_of_a_module() -> None:
    """The inner one is a sub-graph of the outer one's body; parameters are operands: new weights need no new graph."""
    net = Polished()
    net.build(_randn(5, 3), args_shape=[(-1, 3)])
    assert _control(net.graph) == ["while_loop", "while_loop"]
    graph = net.graph
    for _ in range(2):
        for size in (2, 7):
            x = _randn(size, 3)
            y, steps = x, 0
            while float(y.norm()) > 0.5 and steps < 5:
                y, steps = torch.tanh(net.layer(y)).detach(), steps + 1
                while float(y.abs().max()) > 0.25:
                    y = y / 2
            found = net.run_plan(x)
            torch.testing.assert_close(found[0], y)
            assert int(found[1]) == steps
        with torch.no_grad():
            net.layer.weight *= 0.5
    assert net.graph == graph


def test_a_plan_with_loops_as_a_file_and_in_a_plan(tmp_path: Path) -> None:
    """Saved and loaded, and called in another plan's code, it gives the same; its id does not change."""
    plan = built(newton, _randn(5).abs() + 1, shape=[(-1,)])
    plan.save(tmp_path / "newton.plan")
    loaded = Plan.load(tmp_path / "newton.plan")
    assert loaded.id == plan.id == built(newton, _randn(4).abs() + 1, shape=[(-1,)]).id
    outer = built(lambda x: plan(x * x)[0] + 1, _randn(5).abs() + 1, shape=[(-1,)])
    assert _control(outer.graph) == ["while_loop"]
    x = torch.tensor([2.0, 3.0])
    torch.testing.assert_close(loaded(x * x)[0], x)
    torch.testing.assert_close(outer.run_plan(x), x + 1)


def test_the_line_of_an_op_inside() -> None:
    """What fails inside a loop names the user's line there."""

    def function(x: torch.Tensor, index: torch.Tensor) -> Any:
        def body(y: torch.Tensor, at: torch.Tensor) -> Any:
            taken = y.index_select(0, at)
            return taken / 2, at + 1

        return while_loop(lambda y, _: y.norm() > 1e-3, body, (x, index))

    # at build, it ends before an index is too large
    plan = built(function, torch.full((4,), 1e-3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(OpFailed, match="index_select") as caught:
        plan.run_plan(torch.ones(4), torch.arange(4))
    line = plan.source_table[caught.value.op_index]
    assert line is not None
    assert line.text == "taken = y.index_select(0, at)"
    assert len(plan.source_table) == len(list(all_ops(plan.graph)))


def test_gradients_beside_a_loop() -> None:
    """A loop without gradients may stand in a function that computes some: of what it gives, or of other things."""

    def function(x: torch.Tensor) -> Any:
        def loss(a: torch.Tensor) -> Any:
            with torch.no_grad():
                (scale,) = while_loop(lambda b: b > 1, lambda b: (b / 2,), (a.norm(),))
            return (a**2).sum() * scale

        return torch.func.grad(loss)(x), while_loop(lambda b: b.norm() > 1, lambda b: (b / 2,), (x,))[0]

    plan = built(function, _randn(5, 3), shape=[(-1, 3)])
    x = torch.full((2, 3), 2.0)
    scale = x.norm() / 8
    torch.testing.assert_close(plan.run_plan(x), (2 * x * scale, x / 8))


# ------------------------------------------------------------------------------------------------- scan


class Recurrent(nn.Module):
    """A recurrent layer over any number of rows, from either end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.take = nn.Linear(3, 4)
        self.keep = nn.Linear(4, 4)

    def step(self, h: torch.Tensor, row: torch.Tensor) -> Any:
        """The next hidden state, and its sum."""
        h = torch.tanh(self.take(row) + self.keep(h))
        return h, {"h": h, "sum": h.sum(1)}

    def forward(self, x: torch.Tensor) -> Any:
        """Forth along the middle dim, and back along the first."""
        zeros = torch.zeros(x.shape[0], 4)
        forth = operators.scan(self.step, zeros, x, dim=1)
        back = operators.scan(self.step, zeros, x.transpose(0, 1), reverse=True)
        return forth, back


def test_a_recurrent_layer_over_a_varying_length() -> None:
    """Batch and length vary: one step of it is in the plan, however many there are."""
    module = Recurrent()
    plan = built(module, _randn(3, 6, 3), shape=[("batch", "length", 3)])
    assert _control(plan.graph) == ["scan", "scan"]
    assert plan.cost(batch=2, length=10).flops == pytest.approx(10 * plan.cost(batch=2, length=1).flops, rel=0.05)
    for batch, length in ((2, 1), (5, 9)):
        x = _randn(batch, length, 3)
        h, outs = torch.zeros(batch, 4), []
        for k in range(length):
            h, out = module.step(h, x[:, k])
            outs.append(out)
        (last, each), (first, _) = plan.run_plan(x)
        torch.testing.assert_close(last, h.detach())
        torch.testing.assert_close(each["h"], torch.stack([out["h"] for out in outs]).detach())
        torch.testing.assert_close(each["sum"], torch.stack([out["sum"] for out in outs]).detach())
        h = torch.zeros(batch, 4)
        for k in reversed(range(length)):
            h, _ = module.step(h, x[:, k])
        torch.testing.assert_close(first, h.detach())


def test_which_scans_are_unrolled() -> None:
    """Those over few rows of a fixed size, and all of a fixed size through which a gradient may go."""

    def function(x: torch.Tensor) -> Any:
        return operators.scan(lambda carry, row: (carry + row, carry * 2), x[0] * 0, x)

    def gradient(x: torch.Tensor) -> Any:
        return torch.func.grad(lambda a: function(a)[1].sum())(x)

    assert _control(built(function, _randn(8, 2)).graph) == []
    assert _control(built(function, _randn(100, 2)).graph) == ["scan"]
    plan = built(gradient, _randn(100, 2))
    assert _control(plan.graph) == []
    torch.testing.assert_close(plan.run_plan(_randn(100, 2))[:, 0], 2 * torch.arange(99.0, -1, -1))


def test_random_rows() -> None:
    """What is drawn before a loop is scanned over; a loop may start from what was drawn."""

    def function(x: torch.Tensor) -> Any:
        noise = torch.rand(x.shape[0], 2)
        total, _ = operators.scan(lambda carry, rows: (carry + rows[0] * rows[1], carry), x[0] * 0, (x, noise))
        return total, noise, while_loop(lambda b: b.sum() > 0.1, lambda b: (b / 2,), (noise,))[0]

    plan = built(function, _randn(5, 2), shape=[(-1, 2)])
    x = _randn(4, 2)
    total, noise, less = plan.options(seed=3)(x)
    torch.testing.assert_close(total, (x * noise).sum(0))
    assert 0.05 < float(less.sum()) <= 0.1


def test_map_in_and_around_branches() -> None:
    """map runs a branch with a costly side on each row, by both sides; and stands inside a loop."""

    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        rows = operators.map(lambda row: torch.cond(row.sum() > 0, lambda r: r @ w, lambda r: r * 2, (row,)), x)
        return while_loop(lambda y: y.norm() > 1, lambda y: (operators.map(lambda row: row / 2, y),), (rows,))[0]

    plan = built(function, _randn(5, 3), torch.eye(3), shape=[(-1, 3), (3, 3)])
    for size in (2, 6):
        x, w = _randn(size, 3), _randn(3, 3)
        wanted = torch.where(x.sum(1, keepdim=True) > 0, x @ w, x * 2)
        while float(wanted.norm()) > 1:
            wanted = wanted / 2
        torch.testing.assert_close(plan.run_plan(x, w), wanted)


# ------------------------------------------------------------------------------------------------- refusals


def test_steps_that_do_not_fit_each_other() -> None:
    """A body that gives another shape, dtype or nesting, a condition of many bools, something that is no tensor."""

    def shape(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a.norm() > 1, lambda a: (torch.cat([a, a]),), (x,))

    def dtype(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a.norm() > 1, lambda a: (a.to(torch.float64),), (x,))

    def nest(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a.norm() > 1, lambda a: a / 2, (x,))

    def many(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a > 1, lambda a: (a / 2,), (x,))

    def text(x: torch.Tensor) -> Any:
        return while_loop(lambda a, _: a.norm() > 1, lambda a, b: (a / 2, b), (x, "b"))

    def nothing(x: torch.Tensor) -> Any:
        return while_loop(lambda: x.norm() > 1, lambda: (), ())

    def carry(x: torch.Tensor) -> Any:
        return operators.scan(lambda total, row: (total + row, row), x.sum(), x)

    def rows(x: torch.Tensor, y: torch.Tensor) -> Any:
        return operators.scan(lambda total, row: (total + row[0], row[1]), x[0] * 0, (x, y))

    same = (
        "torch.while_loop: expected each step to give what the next one takes, in the same dtypes, shapes and nesting: "
    )
    for function, sentence in (
        (shape, f"{same}(float32[3],), got (float32[6],)"),
        (dtype, f"{same}(float32[3],), got (float64[3],)"),
        (nest, f"{same}(float32[3],), got float32[3]"),
        (many, "torch.while_loop: expected a condition that gives one bool, got bool[3]"),
        (nothing, "torch.while_loop: expected something to carry, got nothing"),
        (text, "torch.while_loop: expected tensors and numbers to carry, got a str"),
    ):
        error = refused(LoopMismatch, function, torch.randn(3), line="while_loop(")
        assert str(error).splitlines()[0] == sentence
    error = refused(LoopMismatch, carry, torch.randn(4, 2), shape=[(-1, 2)], line="operators.scan")
    assert "float32[], got float32[2]" in str(error)
    error = refused(
        LoopMismatch, rows, torch.randn(4, 2), torch.randn(3, 2), shape=[(-1, 2), (3, 2)], line="operators.scan"
    )
    assert str(error).startswith("torch.scan: expected rows of one number, got float32[")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch itself, where it first needs a jvp
def test_a_gradient_through_a_loop() -> None:
    """By torch.func and by backward, of what is carried or found outside; of a scan whose size varies."""

    def of_carried(x: torch.Tensor) -> Any:
        return torch.func.grad(lambda a: while_loop(lambda b: b.norm() > 1, lambda b: (b / 2,), (a,))[0].sum())(x)

    def of_outside(x: torch.Tensor) -> Any:
        w = x.clone().requires_grad_()
        (y,) = while_loop(lambda b: b.norm() > 1, lambda b: (b * w.sigmoid() / 2,), (x,))
        y.sum().backward()
        return w.grad

    def of_a_direction(x: torch.Tensor) -> Any:
        return torch.func.jvp(lambda a: while_loop(lambda b: b.norm() > 1, lambda b: (b / 2,), (a,))[0], (x,), (x,))[1]

    def of_scan(x: torch.Tensor) -> Any:
        return torch.func.grad(lambda a: operators.scan(lambda c, r: (c + r, c), a[0] * 0, a)[0].sum())(x)

    error = refused(GradientThroughLoop, of_carried, torch.randn(3), line="while_loop(")
    assert str(error).startswith(
        "a gradient goes through this torch.while_loop, which plans can't: for a fixed number of steps, write a "
        "loop with a bound, for _ in range(n): state = torch.where(going, after(state), state), or scan over a fixed "
        "size; if no gradient is wanted, run the loop under torch.no_grad()\n"
    )
    refused(GradientThroughLoop, of_a_direction, torch.randn(3), line="while_loop(")
    refused(GradientThroughLoop, of_outside, torch.randn(3), line="(y,) = while_loop(")
    refused(GradientThroughLoop, of_scan, torch.randn(4, 2), shape=[(-1, 2)], line="operators.scan")


def test_random_numbers_inside_a_loop() -> None:
    """They are refused with their line: a plan draws once a run."""

    def function(x: torch.Tensor) -> Any:
        def body(a: torch.Tensor) -> Any:
            return (a * torch.rand(3),)

        return while_loop(lambda a: a.norm() > 1, body, (x,))

    def over_rows(x: torch.Tensor) -> Any:
        return operators.scan(lambda c, r: (c + torch.dropout(r, 0.5, train=True), c), x[0] * 0, x)

    error = refused(RandomInLoop, function, torch.randn(3), line="return (a * torch.rand(3),)")
    assert str(error).startswith(
        "this line draws random numbers inside torch.while_loop, as often as that runs, which plans can't: draw them "
        "before the loop, in one tensor with a row for each step, and scan over that, or take its rows by index\n"
    )
    refused(RandomInLoop, over_rows, torch.randn(4, 2), shape=[(-1, 2)], line="torch.dropout")


def test_a_loop_inside_vmap() -> None:
    """Each row would run as often as it likes."""

    def function(x: torch.Tensor) -> Any:
        return operators.map(lambda row: while_loop(lambda a: a.norm() > 1, lambda a: (a / 2,), (row,))[0], x)

    error = refused(LoopNotSupported, function, torch.randn(5, 3), shape=[(-1, 3)], line="while_loop(")
    assert str(error).startswith(
        "torch.while_loop does not work inside torch.func.vmap, or torch's map: each row would go round as often as it "
        "likes; write the loop for all rows at once, around what is done to each, and go on as long as any row needs it"
    )


def test_what_leaves_a_loop_by_another_way() -> None:
    """A value that the body hands out past its results, and a tensor outside that it writes to."""

    def handed(x: torch.Tensor) -> Any:
        kept: list[torch.Tensor] = []

        def body(a: torch.Tensor) -> Any:
            kept.append(a * 2)
            return (a / 2,)

        (y,) = while_loop(lambda a: a.norm() > 1, body, (x,))
        return y + kept[0]

    def written(x: torch.Tensor) -> Any:
        count = torch.zeros(())

        def body(a: torch.Tensor) -> Any:
            count.add_(1)
            return (a / 2,)

        return while_loop(lambda a: a.norm() > 1, body, (x,))[0], count

    error = refused(ValueLeftLoop, handed, torch.randn(3), line="kept.append(a * 2)")
    assert str(error).startswith(
        "what this line makes inside torch.while_loop is used outside of it: return it from the function that the loop "
        "or branch runs\n"
    )
    refused(ValueLeftLoop, written, torch.randn(3), line="count.add_(1)")


def test_a_loop_that_does_not_end_at_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left after many steps and a while, with what to write."""
    monkeypatch.setattr(patience.Patience.__init__, "__kwdefaults__", {"steps": 50, "seconds": 0.0})

    def function(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a.norm() >= 0, lambda a: (a / 2,), (x,))

    def ends(x: torch.Tensor) -> Any:
        return while_loop(lambda a: a.norm() > 1, lambda a: (a / 2,), (x,))

    error = refused(LoopEndless, function, torch.randn(3), line="while_loop(")
    assert error.steps == 51
    assert str(error).startswith(
        "torch.while_loop had not ended after 51 steps while the plan was built, which tries it with other values and "
        "sizes too: give it a bound as well, such as a carried count and (count < 1000) & going\n"
    )

    def forever(condition: Any, body: Any, carried: Any, operands: Any) -> Any:
        while True:
            condition([*carried, *operands])
            body([*carried, *operands])

    # the same of the plan beside it
    monkeypatch.setitem(torch_control.CONTROL, "control.while_loop.default", forever)
    with pytest.raises(LoopEndless):
        built(ends, torch.randn(3))
