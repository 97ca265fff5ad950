"""A fold that takes long, on a real device: it says how far it is, goes on after crashes, and can be ended."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.protocol import messages as m
from coordinator import Plan, connect, func2plan
from coordinator.fleet import Fleet
from edge_agent import Store
from tests import processes
from tests.acceptance.kernel import children, wait_until_gone
from tests.acceptance.wire import Passed, Tap, tap
from tests.processes import Program
from tests.waiting import PATIENCE

ROWS = 50
SIZE = 160
EAGER = ("--runtime", "onnx", "--checkpoint-seconds", "0")
"""A checkpoint after each step: wherever it is killed, there is one."""


@functools.cache
def counting() -> Plan:
    """Counts its steps and sums up its rows, and takes some milliseconds for each."""

    @func2plan(
        args_shape=[{"count": (), "sum": ()}, ("batch",)],
        args_dtype=[{"count": torch.int64, "sum": torch.float64}, torch.float64],
    )
    def plan_counting(carry: dict[str, torch.Tensor], x: torch.Tensor) -> Any:
        busy = torch.zeros(SIZE, SIZE, dtype=torch.float64) + x.sum()
        for _ in range(8):
            busy = torch.tanh(busy @ busy)
        total = carry["sum"] + x.sum() + 0 * busy.sum()
        return {"count": carry["count"] + 1, "sum": total}, carry["count"] + 0

    return plan_counting


def nothing() -> dict[str, torch.Tensor]:
    """What a fold begins with."""
    return {"count": torch.tensor(0), "sum": torch.tensor(0.0, dtype=torch.float64)}


@pytest.fixture
def broker() -> Iterator[Program]:
    """One that wants to hear of its devices often."""
    with processes.start_broker(None, "--heartbeat-ms", "200") as process:
        yield process


@pytest.fixture
def wire(broker: Program) -> Iterator[Tap]:
    """What passes between the broker and the device."""
    with tap(broker.endpoint) as made:
        yield made


@pytest.fixture
def fleet(broker: Program) -> Iterator[Fleet]:
    """A fleet with that broker."""
    with connect(broker.endpoint, insecure=True) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A device's store, with rows to count."""
    with Store.open(tmp_path / "store") as opened:
        opened.put(torch.arange(ROWS, dtype=torch.float64), tags=["rows"])
    return tmp_path / "store"


def progress_beyond(wire: Tap, least: float) -> float:
    """Wait until the device says that it is further than that with what it runs; how far it is then."""

    def found(passed: list[Passed]) -> float | None:
        said = (
            done
            for each in passed
            if each.up and isinstance(each.message, m.Heartbeat)
            for done in each.message.running.values()
        )
        return next((done for done in said if done > least), None)

    return wire.wait_until(found)


def test_a_fold_goes_on_where_it_was_when_worker_and_agent_are_killed(wire: Tap, fleet: Fleet, store: Path) -> None:
    """SIGKILL of the worker, then of the agent: each step is done once, as the stacked outputs show, and none again
    from the beginning, as the log says.
    """
    epochs = 10
    device = fleet.device("counter")
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        final, counts = counting().send(device).fold(nothing(), over="rows", batch_size=1, epochs=epochs)
        worker = agent.wait_for("worker_started", PATIENCE)["pid"]
        done = progress_beyond(wire, 0.0)
        assert done < 1
        os.kill(int(worker), signal.SIGKILL)
        worker = agent.wait_for("worker_started", PATIENCE)["pid"]
        first = agent.wait_for("fold_resumed", PATIENCE)
        assert first["result"] == final["count"].id
        # Beyond what was done when the worker was killed, which may be more than it had told.
        progress_beyond(wire, max(done, int(str(first["steps"])) / (ROWS * epochs)))
        agent.kill()
        wait_until_gone(int(worker))
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        second = agent.wait_for("fold_resumed", PATIENCE)
        assert 0 < int(str(first["steps"])) < int(str(second["steps"])) < ROWS * epochs
        assert fleet.get(counts, timeout=PATIENCE).tolist() == list(range(ROWS * epochs))
        got = fleet.get(final, timeout=PATIENCE)
        assert (got["count"].item(), got["sum"].item()) == (ROWS * epochs, epochs * ROWS * (ROWS - 1) / 2)
        assert not list((store / "checkpoints").iterdir())


def test_a_fold_goes_on_with_the_rows_that_it_began_with(wire: Tap, fleet: Fleet, store: Path) -> None:
    """What the device's programs append meanwhile is for the next fold: this one goes on where it was when its agent is
    killed.
    """
    epochs = 10
    with Store.open(store) as opened:
        opened.append("growing", torch.arange(ROWS, dtype=torch.float64))
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        plan = counting().send(fleet.device("counter"))
        final, counts = plan.fold(nothing(), over="growing", batch_size=1, epochs=epochs)
        worker = agent.wait_for("worker_started", PATIENCE)["pid"]
        progress_beyond(wire, 0.0)
        with Store.open(store) as opened:
            assert opened.append("growing", torch.ones(3, dtype=torch.float64)) == ROWS + 3
        agent.kill()
        wait_until_gone(int(worker))
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        assert agent.wait_for("fold_resumed", PATIENCE)["result"] == final["count"].id
        assert fleet.get(counts, timeout=PATIENCE).tolist() == list(range(ROWS * epochs))
        assert fleet.get(final, timeout=PATIENCE)["sum"].item() == epochs * ROWS * (ROWS - 1) / 2
        later, _ = plan.fold(nothing(), over="growing", batch_size=ROWS)
        assert later["sum"].get(PATIENCE).item() == ROWS * (ROWS - 1) / 2 + 3


def test_a_fold_whose_rows_are_gone_begins_anew(wire: Tap, fleet: Fleet, store: Path) -> None:
    """With as many others: no step of the old ones is in its result."""
    epochs = 10
    with Store.open(store) as opened:
        opened.append("moving", torch.arange(ROWS, dtype=torch.float64), max_rows=ROWS)
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        plan = counting().send(fleet.device("counter"))
        final, counts = plan.fold(nothing(), over="moving", batch_size=1, epochs=epochs)
        worker = agent.wait_for("worker_started", PATIENCE)["pid"]
        progress_beyond(wire, 0.0)
        agent.kill()
        wait_until_gone(int(worker))
    with Store.open(store) as opened:
        assert opened.append("moving", torch.ones(ROWS, dtype=torch.float64), max_rows=ROWS) == ROWS
    with processes.start_agent("counter", store, wire, *EAGER):
        assert fleet.get(final, timeout=PATIENCE)["sum"].item() == epochs * ROWS
        assert fleet.get(counts, timeout=PATIENCE).tolist() == list(range(ROWS * epochs))


def test_a_fold_is_cancelled_between_two_steps(wire: Tap, fleet: Fleet, store: Path) -> None:
    """Its worker goes on with the next command, and nothing is left of the fold."""
    device = fleet.device("counter")
    with processes.start_agent("counter", store, wire, *EAGER) as agent:
        plan = counting().send(device)
        final, _ = plan.fold(nothing(), over="rows", batch_size=1, epochs=1_000_000)
        progress_beyond(wire, 0.0)
        final["count"].cancel()
        assert final["count"].wait(PATIENCE)
        assert final["count"].status() == "cancelled"
        other, _ = plan.fold(nothing(), over="rows", batch_size=ROWS)
        assert other["count"].get(PATIENCE).item() == 1
        assert children(agent.pid) == [agent.wait_for("worker_started", PATIENCE)["pid"]]
        assert not list((store / "checkpoints").iterdir())
