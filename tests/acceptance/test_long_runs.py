"""One run that takes long, on a device without torch: it is ended, and what ran it goes on."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from coordinator import Plan, connect, func2plan
from coordinator.errors import DeadlineExpired, PlanOverQuota
from coordinator.pointers import PointerTensor
from tests import processes
from tests.acceptance.kernel import children
from tests.processes import Program
from tests.waiting import PATIENCE

SIZE = 1200


@functools.cache
def busy() -> Plan:
    """Many products of a matrix with itself: a quarter of a minute, where it is large."""

    @func2plan(args_shape=[("n", "n")])
    def plan_busy(x: torch.Tensor) -> torch.Tensor:
        for _ in range(200):
            x = torch.tanh(x @ x)
        return x

    return plan_busy


def started(agent: Program) -> int:
    """The worker that the agent has started."""
    return int(str(agent.wait_for("worker_started", PATIENCE)["pid"]))


def test_a_run_is_cancelled_or_expires_between_two_ops(tmp_path: Path) -> None:
    """By whoever has sent it, or by its deadline: the same worker runs the next command."""
    with (
        processes.start_broker() as broker,
        processes.start_agent("light", tmp_path, broker, "--runtime", "onnx") as agent,
        connect(broker.endpoint, insecure=True) as fleet,
    ):
        device = fleet.device("light")
        plan = busy().send(device)
        large = device.send(torch.eye(SIZE))
        assert plan(torch.eye(2)).get(PATIENCE).shape == (2, 2)
        worker = started(agent)
        pointer = plan(large)
        wait_until_running(pointer)
        pointer.cancel()
        assert pointer.wait(PATIENCE)
        assert pointer.status() == "cancelled"
        late = plan.options(deadline=1.0)(large)
        with pytest.raises(DeadlineExpired):
            late.get(PATIENCE)
        assert plan(torch.eye(3)).get(PATIENCE).shape == (3, 3)
        assert children(agent.pid) == [worker]


def test_a_run_that_takes_too_long_is_ended_between_two_ops(tmp_path: Path) -> None:
    """The failure says what is allowed, and the same worker runs the next command."""
    limits = ("--runtime", "onnx", "--max-seconds", "1")
    with (
        processes.start_broker() as broker,
        processes.start_agent("light", tmp_path, broker, *limits) as agent,
        connect(broker.endpoint, insecure=True) as fleet,
    ):
        device = fleet.device("light")
        plan = busy().send(device)
        with pytest.raises(PlanOverQuota, match="this device allows 1 seconds"):
            plan(torch.eye(SIZE)).get(PATIENCE)
        worker = started(agent)
        assert plan(torch.eye(3)).get(PATIENCE).shape == (3, 3)
        assert children(agent.pid) == [worker]


def wait_until_running(pointer: PointerTensor) -> None:
    """Wait until the broker says so."""
    for _ in range(1000):
        if pointer.status() == "running":
            return
        assert not pointer.wait(0.02)
    raise AssertionError("it should be running")
