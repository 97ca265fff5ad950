"""Folding a plan over data on a device: one command, whatever the number of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from coordinator import VirtualWorker, connect, func2plan
from coordinator.errors import TagNotFound
from coordinator.fleet import Fleet
from coordinator.tagging import tagged
from edge_agent.plan.errors import ArgumentMismatch

WITHIN = 60.0


@func2plan(args_shape=[{"sum": (2,), "count": ()}, (-1, 2), (-1,)])
def running(carry: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> Any:
    """A carry that comes back with its keys in another order, and two outputs."""
    total = (x * y[:, None]).sum(0)
    kept = {"count": carry["count"] + y.sum() * 0 + x.shape[0], "sum": carry["sum"] * 0.5 + total}
    return kept, {"mean": x.mean(), "total": total}


def expected(carry: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int) -> Any:
    """The same, step by step, here."""
    outs = []
    for _ in range(epochs):
        for at in range(0, len(x), batch):
            carry, out = running(carry, x[at : at + batch], y[at : at + batch])
            outs.append(out)
    return carry, {name: torch.stack([out[name] for out in outs]) for name in ("mean", "total")}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """With two devices that have data."""
    with connect() as fleet:
        for n, name in enumerate(("one", "two")):
            x, y = data(5 + n)
            VirtualWorker(fleet, id=name, data=(tagged(x, "x"), tagged(y, "y")))
        yield fleet


def data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As each device has it."""
    torch.manual_seed(rows)
    return torch.randn(rows, 2), torch.randn(rows)


def start() -> dict[str, torch.Tensor]:
    """The carry at the beginning."""
    return {"sum": torch.ones(2), "count": torch.zeros(())}


def test_one_command_folds_over_a_devices_data(fleet: Fleet) -> None:
    """Equal to the same steps done here, to the bit; the last batch is smaller; one message each way."""
    device = fleet.device("one")
    plan = running.send(device)
    plan.fold(start(), over=("x", "y"), batch_size=5)[1]["mean"].get(WITHIN)  # the plan is there now
    before = fleet.stats().devices["one"]
    final, outs = plan.fold(start(), over=("x", "y"), batch_size=2, epochs=3)
    got = fleet.get((final, outs), timeout=WITHIN)
    after = fleet.stats().devices["one"]
    want = expected(start(), *data(5), 2, 3)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got[1]["total"].shape == (9, 2)
    assert (after.commands - before.commands, after.notifications - before.notifications) == (1, 1)


def test_pointers_and_local_tensors_may_be_the_data(fleet: Fleet) -> None:
    """Shapes of the results are known at once where the data's are."""
    x, y = data(5)
    device = fleet.device("one")
    final, outs = running.send(device).fold(start(), over=(device.search("x")[0], y), batch_size=2)
    assert (outs["total"].shape, outs["mean"].shape, final["sum"].shape) == ((3, 2), (3,), (2,))
    torch.testing.assert_close(fleet.get(outs, timeout=WITHIN)["total"], expected(start(), x, y, 2, 1)[1]["total"])


def test_a_fold_goes_on_from_the_carry_of_another(fleet: Fleet) -> None:
    """Pointers all the way: nothing comes here in between."""
    plan = running.send(fleet.device("one"))
    first, _ = plan.fold(start(), over=("x", "y"), batch_size=2)
    final, _ = plan.fold(first, over=("x", "y"), batch_size=2)
    want, _ = expected(start(), *data(5), 2, 2)
    torch.testing.assert_close(fleet.get(final, timeout=WITHIN), want)


def test_many_devices_fold_by_one_command(fleet: Fleet) -> None:
    """Each over its own data."""
    before = fleet.stats().devices
    folded = running.send(fleet).fold(start(), over=("x", "y"), batch_size=4, shuffle=1)
    assert set(folded) == {"one", "two"}
    counts = {name: final["count"].get(WITHIN).item() for name, (final, _) in folded.items()}
    assert counts == {"one": 5, "two": 6}
    after = fleet.stats().devices
    assert [after[name].commands - before[name].commands for name in ("one", "two")] == [1, 1]


def test_shuffled_rows_are_all_seen(fleet: Fleet) -> None:
    """In batches of one row, the outputs are the rows in another order."""
    x, y = data(5)
    _, outs = running.send(fleet.device("one")).fold(start(), over=("x", "y"), batch_size=1, shuffle=2)
    totals = outs["total"].get(WITHIN)
    rows = x * y[:, None]
    assert sorted(totals.tolist()) == sorted(rows.tolist())
    assert totals.tolist() != rows.tolist()


def test_a_fold_is_cancelled(fleet: Fleet) -> None:
    """Between two steps, however many there are left."""
    final, _ = running.send(fleet.device("one")).fold(start(), over=("x", "y"), batch_size=1, epochs=10_000_000)
    final["sum"].cancel()
    assert final["sum"].wait(WITHIN)
    assert final["sum"].status() == "cancelled"
    assert running.send(fleet.device("one")).fold(start(), over=("x", "y"), batch_size=5)[0]["sum"].wait(WITHIN)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"over": ("x", "y"), "batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"over": ("x", "y"), "batch_size": 2, "epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"over": (torch.zeros(3, 2), torch.zeros(4)), "batch_size": 2}, "expected 3 rows, got the shape"),
        ({"over": (torch.zeros(0, 2), torch.zeros(0)), "batch_size": 2}, "expected rows, one at least"),
        ({"over": (torch.zeros(4, 3), torch.zeros(4)), "batch_size": 2}, r"x: expected float32\[.*, 2\]"),
        ({"over": ("x",), "batch_size": 2}, "y: expected a value, got nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_sent(
    fleet: Fleet, arguments: dict[str, Any], said: str
) -> None:
    """Named, with what was expected and what came."""
    plan = running.send(fleet.device("one"))
    with pytest.raises(ArgumentMismatch, match=said):
        plan.fold(start(), **arguments)


def test_a_plan_that_does_not_fold_says_why(fleet: Fleet) -> None:
    """Wrong form, another carry, outputs that cannot be stacked."""

    @func2plan(args_shape=[(2,)])
    def alone(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @func2plan(args_shape=[(2,), (-1, 2)])
    def grows(carry: torch.Tensor, x: torch.Tensor) -> Any:
        return torch.cat([carry, carry]), x.sum()

    @func2plan(args_shape=[(2,), (-1, 2)])
    def uneven(carry: torch.Tensor, x: torch.Tensor) -> Any:
        return carry + x.sum(0), x * 2

    device = fleet.device("one")
    with pytest.raises(ArgumentMismatch, match=r"the form \(carry, \*batch\) -> \(carry, out\)"):
        alone.send(device).fold(torch.zeros(2), over=(), batch_size=1)
    with pytest.raises(ArgumentMismatch, match=r"float32\[2\], as it takes, got float32\[4\]"):
        grows.send(device).fold(torch.zeros(2), over="x", batch_size=1)
    with pytest.raises(ArgumentMismatch, match="one shape whatever the batch"):
        uneven.send(device).fold(torch.zeros(2), over=torch.zeros(3, 2), batch_size=2)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_data_set_is_folded_by_its_name(fleet: Fleet, runtime: str) -> None:
    """As much of it as there is when the command starts; its columns are what the plan takes, in order."""
    device = VirtualWorker(fleet, id="learner", runtime=runtime)
    x, y = data(7)
    plan = running.send(device)
    assert device.store.append("train", x[:3], y[:3]) == 3
    first = plan.fold(start(), over="train", batch_size=2)
    assert fleet.get(first, timeout=WITHIN)[0]["count"] == 3
    assert device.store.append("train", x[3:], y[3:], max_rows=6) == 6
    got = fleet.get(plan.fold(start(), over="train", batch_size=2, epochs=2), timeout=WITHIN)
    torch.testing.assert_close(got, expected(start(), x[1:], y[1:], 2, 2))
    assert torch.equal(device.search("train#1")[0].get(WITHIN), y[1:])
    with pytest.raises(TagNotFound, match="no tensor on this device carries other#0"):
        fleet.get(plan.fold(start(), over="other", batch_size=2), timeout=WITHIN)
