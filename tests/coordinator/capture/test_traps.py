"""Where tracing freezes what it should not: right at every size that the plan takes, or refused with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coordinator.build_errors import DimPinned
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed
from tests.coordinator.capture.checks import assert_same, built, refused


def test_a_branch_on_a_size_holds_for_the_sizes_of_its_side_only() -> None:
    """`if x.shape[0] > 3`, traced at 5, makes a plan for 4 and more; 2 is refused before anything runs."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 3:
            return x * 2
        return x * 3

    plan = built(function, torch.randn(5, 4), shape=[(-1, 4)])
    assert [(symbol.low, symbol.high) for symbol in plan.graph.symbols] == [(4, None)]
    for size in (4, 5, 50):
        assert_same(plan, function, torch.randn(size, 4))
    with pytest.raises(ArgumentMismatch, match="4 or more"):
        plan(torch.randn(2, 4))


def test_the_other_side_of_a_branch_makes_another_plan() -> None:
    """The same function, traced at 2, makes a plan for up to 3."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 3:
            return x * 2
        return x * 3

    plan = built(function, torch.randn(2, 4), shape=[(-1, 4)])
    for size in (0, 1, 2, 3):
        assert_same(plan, function, torch.randn(size, 4))
    with pytest.raises(ArgumentMismatch):
        plan(torch.randn(4, 4))


def test_len_of_a_dynamic_dim_is_not_frozen() -> None:
    """A sum divided by `len(x)` is right at other lengths, none among them."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sum() / len(x)

    plan = built(function, torch.randn(5, 4), shape=[(-1, 4)])
    for size in (0, 1, 2, 7):
        assert_same(plan, function, torch.randn(size, 4))


def test_inputs_of_equal_size_in_the_example_stay_independent() -> None:
    """Two inputs that happen to be equally long may differ, since nothing in the function asks that they be equal."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(0) - y.mean(0)

    plan = built(function, torch.randn(5, 4), torch.randn(5, 4), shape=[(-1, 4), (-1, 4)])
    assert_same(plan, function, torch.randn(2, 4), torch.randn(9, 4))
    assert_same(plan, function, torch.randn(1, 4), torch.randn(3, 4))


def test_inputs_that_an_op_needs_equal_share_their_size() -> None:
    """`x + y` makes one size of two: unequal arguments are refused, and the argument is named."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    plan = built(function, torch.randn(5, 4), torch.randn(5, 4), shape=[(-1, 4), (-1, 4)])
    assert_same(plan, function, torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(ArgumentMismatch, match=r"^y: expected .* got float32\[3, 4\]$"):
        plan(torch.randn(2, 4), torch.randn(3, 4))


def test_a_remainder_becomes_a_condition() -> None:
    """`x.size(0) % 2 == 0`, traced at 6, makes a plan for even sizes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.size(0) % 2 == 0:
            return x * 2
        return x

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    for size in (0, 2, 8):
        assert_same(plan, function, torch.randn(size, 4))
    for size in (1, 7):
        with pytest.raises(ConditionFailed, match=rf"s0 % 2 == 0, got s0 = {size}"):
            plan(torch.randn(size, 4))


def test_a_branch_on_a_single_row_is_left_out() -> None:
    """torch assumes sizes of 2 or more, so that `x.shape[0] == 1` asks nothing; the run side by side finds it."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return x * 3
        return x * 2

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    for size in (2, 6):
        assert_same(plan, function, torch.randn(size, 4))
    for size in (0, 1):
        with pytest.raises(ArgumentMismatch, match="2 or more"):
            plan(torch.randn(size, 4))


def test_a_branch_on_no_rows_is_left_out() -> None:
    """The size 1 is right and let in; the size 0 takes another branch, and is not."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 0:
            return x.sum() + 5
        return x.sum()

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    assert_same(plan, function, torch.randn(1, 4))
    with pytest.raises(ArgumentMismatch, match="1 or more"):
        plan(torch.randn(0, 4))


def test_a_squeeze_is_not_frozen() -> None:
    """`x.squeeze()` has another rank at size 1, which the plan does not take."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.squeeze()

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    assert_same(plan, function, torch.randn(2, 4))
    with pytest.raises(ArgumentMismatch):
        plan(torch.randn(1, 4))


def test_an_unequal_branch_becomes_a_condition() -> None:
    """`if x.shape[0] == 5`, traced at 4, makes a plan for all sizes but 5."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 5:
            return x
        return -x

    plan = built(function, torch.randn(4, 2), shape=[(-1, 2)])
    for size in (1, 4, 6):
        assert_same(plan, function, torch.randn(size, 2))
    with pytest.raises(ConditionFailed, match="s0 != 5"):
        plan(torch.randn(5, 2))


def test_an_equal_branch_pins_the_dim() -> None:
    """`if x.shape[0] == 5`, traced at 5, is right at 5 only: an error of the build, with the line."""

    def function(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 5:
            return x
        return -x

    error = refused(DimPinned, function, torch.randn(5, 2), shape=[(-1, 2)], line="if x.shape[0] == 5:")
    assert (error.argument, error.dim, error.size) == ("x", 0, 5)


def test_a_size_that_is_a_multiple_of_another() -> None:
    """A relation between two sizes becomes a condition, and both stay dynamic."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert y.shape[0] == 2 * x.shape[0]
        return torch.cat([x, x]) + y

    plan = built(function, torch.randn(5, 4), torch.randn(10, 4), shape=[(-1, 4), (-1, 4)])
    for size in (0, 1, 2, 3):
        assert_same(plan, function, torch.randn(size, 4), torch.randn(2 * size, 4))
    with pytest.raises(ConditionFailed, match="s1 == s0 \\* 2"):
        plan(torch.randn(3, 4), torch.randn(5, 4))


def test_a_view_that_needs_a_divisible_size() -> None:
    """What torch assumes on its way to a view is boiled down to the one condition that matters."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 3)

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    assert len(plan.graph.conditions) == 1
    for size in (0, 3, 9):
        assert_same(plan, function, torch.randn(size, 4))
    with pytest.raises(ConditionFailed):
        plan(torch.randn(4, 4))


def test_a_slice_that_torch_takes_for_more_than_one_row() -> None:
    """torch assumes that half of the rows are not one row; the plan is right there too, and takes it."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x[x.shape[0] // 2 :] * 2

    plan = built(function, torch.randn(6, 4), shape=[(-1, 4)])
    assert not plan.graph.conditions
    for size in (2, 3, 10):
        assert_same(plan, function, torch.randn(size, 4))


def _loop_over_rows(x: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(2)
    for row in x:
        total = total + row
    return total


def _loop_over_indices(x: torch.Tensor) -> torch.Tensor:
    for index in range(x.shape[0]):
        x = x + index
    return x


def _loop_over_len(x: torch.Tensor) -> torch.Tensor:
    for index in range(len(x)):
        x = x + index
    return x


def _int_of_a_size(x: torch.Tensor) -> torch.Tensor:
    return x * int(x.shape[0])


def _inner(x: torch.Tensor) -> torch.Tensor:
    return x[1:-1]


def _half(x: torch.Tensor) -> torch.Tensor:
    return x[: len(x) // 2]


def _average(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool1d(x[None], 2)


def _largest(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool1d(x[None], 3, stride=2, padding=1)


def _largest_of_module(x: torch.Tensor) -> Any:
    return torch.nn.MaxPool1d(2, dilation=2, ceil_mode=True)(x[None])


@pytest.mark.parametrize("function", [_inner, _half, _average, _largest, _largest_of_module])
@pytest.mark.parametrize("size", [3, 4, 9])
def test_what_is_left_of_a_small_example_does_not_pin_the_dim(
    function: Callable[[torch.Tensor], torch.Tensor], size: int
) -> None:
    """torch takes a size of 1 for a constant, also one on the way: larger ones are traced then, and the plan is right
    at the example's, too.
    """
    plan = built(function, torch.randn(size), shape=[(-1,)])
    [symbol] = plan.graph.symbols
    assert symbol.low <= size
    assert symbol.high is None
    for other in (size, size + 1, 10, 37):
        assert_same(plan, function, torch.randn(other))


def test_a_small_example_stays_on_its_side_of_a_branch() -> None:
    """What the user's own lines ask of a size is not lowered to reach it, though the plan would be right there."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) if x.shape[0] > 3 else x.abs()

    plan = built(function, torch.ones(3), shape=[(-1,)])
    assert [(one.low, one.high) for one in plan.graph.symbols] == [(0, 3)]
    assert_same(plan, function, -torch.ones(2))


def test_for_which_sizes_a_plan_would_be_right() -> None:
    """Where these are others than the example's, the error says so."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x[2:5]

    with pytest.raises(DimPinned) as caught:
        built(function, torch.ones(3), shape=[("n",)])
    assert caught.value.others == "n of 5 or more"
    assert str(caught.value) == (
        "dim 0 of x was declared dynamic, but a plan of this code is right only for n of 5 or more: "
        "the example has n = 3; build with one that has other sizes, or leave them fixed"
    )
    assert built(function, torch.ones(5), shape=[("n",)]).is_built


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (_loop_over_rows, "for row in x:"),
        (_loop_over_indices, "range(x.shape[0])"),
        (_loop_over_len, "range(len(x))"),
        (_int_of_a_size, "int(x.shape[0])"),
    ],
)
def test_python_that_needs_the_size_pins_the_dim(function: object, line: str) -> None:
    """A Python loop over a symbolic dim, or an int of it, is refused at build with its line."""
    error = refused(DimPinned, function, torch.randn(5, 2), shape=[(-1, 2)], line=line)  # type: ignore[arg-type]
    assert error.size == 5
    assert "dim 0 of x was declared dynamic, but this code is right only at the size 5" in str(error)


def test_a_loop_over_a_fixed_dim_is_unrolled() -> None:
    """The same loop is fine over a dim that may not vary."""
    plan = built(_loop_over_indices, torch.randn(3, 2))
    assert_same(plan, _loop_over_indices, torch.randn(3, 2))


def test_a_size_equal_to_a_fixed_one_in_the_example_is_not_taken_for_it() -> None:
    """The example's batch of 4 equals the features; the plan takes other batches."""
    weight = torch.randn(4, 4)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x @ weight + x

    plan = built(function, torch.randn(4, 4), shape=[(-1, 4)])
    for size in (1, 3, 4, 8):
        assert_same(plan, function, torch.randn(size, 4))


def test_an_example_of_one_row_is_no_constant() -> None:
    """An example with a batch of 1, which torch takes for a constant, makes a plan for any batch."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).sum(1)

    plan = built(function, torch.randn(1, 4), shape=[(-1, 4)])
    for size in (0, 1, 2, 6):
        assert_same(plan, function, torch.randn(size, 4))


def test_what_the_user_checks_of_sizes_is_a_condition() -> None:
    """`torch._check` and assert, on one size and on two, are what the plan asks of its arguments."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch._check(x.shape[0] < 50)  # type: ignore[no-untyped-call]
        assert x.shape[0] + y.shape[0] > 6
        return x.sum() + y.sum()

    plan = built(function, torch.randn(4), torch.randn(5), shape=[("n",), ("m",)])
    assert [(symbol.name, symbol.high) for symbol in plan.graph.symbols] == [("n", 49), ("m", None)]
    assert_same(plan, function, torch.randn(1), torch.randn(9))
    for size in (0, 1):
        assert_same(plan, function, torch.randn(7), torch.randn(size))
    with pytest.raises(ConditionFailed, match=r"m \+ n > 6, got n = 3, m = 2|got m = 2, n = 3"):
        plan(torch.randn(3), torch.randn(2))
    with pytest.raises(ArgumentMismatch, match="49"):
        plan(torch.randn(50), torch.randn(2))


def test_a_number_of_the_sizes_is_computed_on_the_device() -> None:
    """Sizes in arithmetic become expressions: integers, floats, and roots of them."""

    def function(x: torch.Tensor) -> dict[str, object]:
        rows = x.shape[0]
        return {"rows": rows, "half": rows // 2, "share": 1 / rows, "scaled": x * rows**0.5, "shifted": (rows - 1) * x}

    plan = built(function, torch.randn(6, 2), shape=[(-1, 2)])
    for size in (1, 2, 9):
        assert_same(plan, function, torch.randn(size, 2))
