"""torch.cond, map, scan and loops with constant bounds in plans. See test_loops for those whose data decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._higher_order_ops as torchs_operators
from torch import cond as either
from torch._higher_order_ops.map import map as each_row
from torch._higher_order_ops.scan import scan as one_by_one
from torch._higher_order_ops.while_loop import while_loop as as_long_as

from coordinator.build_errors import BranchesDiffer, DataDependentBranch, LoopNotSupported
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.format import version_of
from tests.coordinator.capture.checks import assert_same, built, refused

operators: Any = torchs_operators


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_branch_on_data() -> None:
    """torch.cond takes either branch, by what the tensor holds, at any size; nested, and with values from around."""

    def function(x: torch.Tensor) -> Any:
        shift = x.mean()

        def negative(a: torch.Tensor) -> Any:
            return torch.cond(a.sum() < -10, lambda b: (b * 0, b.sum()), lambda b: (b - shift, b.sum()), (a,))

        return torch.cond(x.sum() > 0, lambda a: (a * 2, a.sum() + shift), negative, (x,))

    plan = built(function, _randn(5, 3), shape=[(-1, 3)])
    for x in (torch.ones(2, 3), -torch.ones(2, 3), -9 * torch.ones(4, 3)):
        wanted = (x * 2, x.sum() + x.mean()) if x.sum() > 0 else (x * 0 if x.sum() < -10 else x - x.mean(), x.sum())
        torch.testing.assert_close(plan(x), wanted)


def test_control_flow_imported_by_name() -> None:
    """Imported by name, and under another, torch's functions are the same ones; and torch's own again afterwards."""
    theirs: Any = (either, each_row, one_by_one, as_long_as)
    before = [(one.__code__, one.__defaults__, one.__kwdefaults__) for one in theirs]

    def function(x: torch.Tensor) -> Any:
        chosen: Any = either(x.sum() > 0, lambda a: a * 2, lambda a: a * 3, (x,))
        rows: Any = theirs[1](lambda row: row.cumsum(0), chosen)
        return theirs[2](lambda carry, column: (carry + column, carry), rows[:, 0] * 0, rows, dim=1)

    def loops(x: torch.Tensor) -> Any:
        return as_long_as(lambda a: a.norm() > 1, lambda a: (a / 2,), (x,))  # type: ignore[no-untyped-call]

    plan = built(function, _randn(5, 3), shape=[(-1, 3)])
    for x in (torch.ones(4, 3), -torch.ones(2, 3)):
        summed = (x * (2 if x.sum() > 0 else 3)).cumsum(1)
        carried = torch.stack([summed[:, 0] * 0, summed[:, 0], summed[:, 0] + summed[:, 1]])
        torch.testing.assert_close(plan.run_plan(x), (summed.sum(1), carried))
    (halved,) = built(loops, _randn(5)).run_plan(torch.full((5,), 2.0))
    torch.testing.assert_close(halved, torch.full((5,), 0.25))
    assert [(one.__code__, one.__defaults__, one.__kwdefaults__) for one in theirs] == before


def test_a_branch_that_costs_something() -> None:
    """One side runs: it is an op with sub-graphs, with what its functions find outside as operands; by keywords."""

    def function(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.cond(
            pred=x.sum() > 0,
            true_fn=lambda a, b: (a @ w + b, b),
            false_fn=lambda a, b: (torch.linalg.inv(w)[:1] * a, b * 2),
            operands=(x, x.t().contiguous().t()),
        )

    plan = built(function, _randn(5, 3), torch.eye(3), shape=[(-1, 3), (3, 3)])
    assert [op.name for op in plan.graph.ops if op.name.startswith("control.")] == ["control.cond.default"]
    singular = torch.zeros(3, 3)
    x = torch.ones(4, 3)
    torch.testing.assert_close(plan.run_plan(x, singular), (x, x))  # the side that would fail does not run
    with pytest.raises(OpFailed, match="singular") as caught:
        plan.run_plan(-x, singular)
    line = plan.source_table[caught.value.op_index]
    assert line is not None
    assert "false_fn=lambda a, b" in line.text
    torch.testing.assert_close(plan.run_plan(-x, 2 * torch.eye(3)), (-0.5 * torch.eye(3)[:1].expand(4, 3), -2 * x))


def test_a_cheap_branch_computes_both_sides() -> None:
    """And selects, so that devices with older ops run it; also where random numbers are drawn."""

    def cheap(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (x,))

    def drawn(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda a: a @ torch.rand(3, 3), lambda a: a, (x,))

    for function in (cheap, drawn):
        plan = built(function, _randn(5, 3), shape=[(-1, 3)])
        assert [op.name for op in plan.graph.ops][-1] == "aten.where.self"
        assert version_of(plan.graph) < 3


def test_operands_and_results_of_any_strides() -> None:
    """Turned and expanded ones, into a branch and out of it: both where it is an op and where a side is selected."""

    def cheap(x: torch.Tensor, _: torch.Tensor) -> Any:
        turned = torch.cond(
            x.sum() > 0, lambda a: (a.reshape(-1) * 2, a.t()), lambda a: (a.reshape(-1), a.t() * 3), (x.t(),)
        )
        return turned[0], turned[1].reshape(-1)

    def costly(x: torch.Tensor, w: torch.Tensor) -> Any:
        turned = torch.cond(
            x.sum() > 0, lambda a: ((w @ a).reshape(-1), (w @ a).t()), lambda a: (a.reshape(-1), a.t()), (x.t(),)
        )
        return turned[0], turned[1].reshape(-1)

    for function in (cheap, costly):
        plan = built(function, _randn(5, 3), 2 * torch.eye(3), shape=[(-1, 3), (3, 3)])
        assert ("control.cond.default" in {op.name for op in plan.graph.ops}) == (function is costly)
        for x in (torch.arange(6.0).reshape(2, 3), -torch.arange(12.0).reshape(4, 3)):
            positive = float(x.sum()) > 0
            first, second = plan.run_plan(x, 2 * torch.eye(3))
            factor = 2 if positive else 1
            torch.testing.assert_close(first, factor * x.t().reshape(-1))
            factor = (2 if function is costly else 1) if positive else (1 if function is costly else 3)
            torch.testing.assert_close(second, factor * x.reshape(-1))


def test_a_number_stays_one_inside_a_branch() -> None:
    """It takes the dtype of the tensors that it meets there, as Python's do."""

    def function(x: torch.Tensor, by: float) -> Any:
        return torch.cond(x.sum() > 0, lambda a, b: a * b, lambda a, b: a + b, (x, by))

    plan = built(function, torch.arange(4), 2.5)
    found = plan.run_plan(torch.arange(4), 1.5)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, torch.arange(4) * 1.5)


def test_a_gradient_through_a_branch() -> None:
    """The gradient is that of the branch taken."""

    def function(x: torch.Tensor) -> Any:
        def loss(a: torch.Tensor) -> Any:
            return torch.cond(a.sum() > 0, lambda b: (b**2).sum(), lambda b: b.sum(), (a,))

        return torch.func.grad(loss)(x)

    plan = built(function, _randn(5), shape=[(-1,)])
    torch.testing.assert_close(plan(torch.ones(3)), torch.full((3,), 2.0))
    torch.testing.assert_close(plan(-torch.ones(3)), torch.ones(3))


def test_map_over_rows() -> None:
    """map runs a function on each row, however many there are."""

    def function(x: torch.Tensor) -> Any:
        return operators.map(lambda row, offset: (row.cumsum(0) + offset, row.max()), x, x.sum())

    def rows(x: torch.Tensor) -> Any:
        return x.cumsum(1) + x.sum(), x.amax(1)

    plan = built(function, _randn(5, 3), shape=[(-1, 3)])
    for size in (2, 8):
        torch.testing.assert_close(plan(_randn(size, 3)), rows(_randn(size, 3)), rtol=1e-4, atol=1e-5)


def test_scan_over_a_fixed_size() -> None:
    """scan is unrolled over a size that is fixed, forwards and backwards, while the batch varies."""

    def step(carry: torch.Tensor, row: torch.Tensor) -> Any:
        carry = torch.tanh(carry + row)
        return carry, carry * 2

    def function(x: torch.Tensor) -> Any:
        forth = operators.scan(step, torch.zeros(x.shape[0]), x, dim=1)
        back = operators.scan(step, torch.zeros(x.shape[0]), x, dim=1, reverse=True)
        return forth, back

    plan = built(function, _randn(5, 4), shape=[(-1, 4)])
    x = _randn(7, 4)
    (last, each), (first, _) = plan(x)
    carry = torch.zeros(7)
    for k in range(4):
        carry = torch.tanh(carry + x[:, k])
        torch.testing.assert_close(each[k], carry * 2)
    torch.testing.assert_close(last, carry)
    carry = torch.zeros(7)
    for k in reversed(range(4)):
        carry = torch.tanh(carry + x[:, k])
    torch.testing.assert_close(first, carry)


def test_a_loop_with_a_constant_bound() -> None:
    """Python's own loop is unrolled, and may stop by torch.where."""

    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.where(x.norm() > 1, x / 2, x)
        return x

    plan = built(function, _randn(5) * 10, shape=[(-1,)])
    for size in (2, 9):
        assert_same(plan, function, _randn(size) * 10)


def test_a_loop_in_python_by_data() -> None:
    """Python's own while has no data to look at: the error names its line, and torch.while_loop."""

    def by_data(x: torch.Tensor) -> torch.Tensor:
        while x.norm() > 1:
            x = x / 2
        return x

    error = refused(DataDependentBranch, by_data, torch.randn(5), line="while x.norm() > 1:")
    assert "a while with torch.while_loop(condition, body, carried)" in str(error)


def test_an_associative_scan() -> None:
    """It is refused with its line, and what to write instead."""

    def function(x: torch.Tensor) -> Any:
        return operators.associative_scan(lambda a, b: a + b, x, 0)

    error = refused(LoopNotSupported, function, torch.randn(5), line="operators.associative_scan")
    assert str(error).startswith(
        "associative_scan does not work in plans; write it with torch's scan, or cumsum and cumprod"
    )


def test_branches_that_differ() -> None:
    """Branches must give the same types: which they give is said."""

    def function(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda a: a, lambda a: a.sum(), (x,))

    error = refused(BranchesDiffer, function, torch.randn(3), line="torch.cond")
    assert "give float32[3] and float32[]" in str(error)
