"""A plan's id and its size: the same in every process, and small on the wire."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from broker.protocol import messages as m
from coordinator import Plan, connect, func2plan
from edge_agent.plan.format import digest_of
from tests.acceptance import plans
from tests.acceptance.wire import Tap, tap
from tests.acceptance.worlds import World
from tests.processes import Program
from tests.waiting import PATIENCE

OTHER_PROCESS = textwrap.dedent(
    """
    from tests.acceptance import plans
    print(plans.double_abs().id, plans.net().id)
    """
)


def test_a_plans_id_is_the_same_in_two_processes() -> None:
    """What another process, with another hash seed, builds from the same code and weights has the same id."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [plans.double_abs().id, plans.net().id]
    assert len(plans.net().id) == 64


def tutorial_double_abs() -> Plan:
    """The plan as the tutorial builds it."""

    @func2plan()
    def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
        x = x + x
        return torch.abs(x)

    plan_double_abs.build(torch.tensor([1.0, -2.0]))
    return plan_double_abs


class TutorialNet(Plan):
    """The tutorial's net once more, with a graph of its own name: no device has any part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.fc2 = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of two classes."""
        x = functional.relu(self.fc1(x))
        return functional.log_softmax(self.fc2(x), dim=0)


def tutorial_net() -> Plan:
    """The net, built."""
    made = TutorialNet()
    made.build(torch.tensor([1.0, 2.0]))
    return made


@pytest.mark.parametrize(("make", "limit"), [(tutorial_double_abs, 400), (tutorial_net, 1000)])
def test_a_plan_is_small_on_the_wire(
    tcp: World, broker: Program, device_tap: Tap, make: Callable[[], Plan], limit: int
) -> None:
    """The tutorial's plan is at most 400 bytes on the wire, and its net with weights at most 1,000, on both hops."""
    plan = make()
    device_id = tcp.devices[0].id
    with tap(broker.endpoint) as session_tap, connect(session_tap.endpoint, insecure=True) as fleet:
        device = fleet.device(device_id)
        pointer = device.send(torch.tensor([-1.0, 2.0]))
        device_tap.clear()
        plan.send(device)(pointer).get(timeout=PATIENCE)
        submitted = session_tap.seen(up=True, kind=m.Submit)
        pulled = device_tap.seen(up=False, kind=m.Blobs)
    [(upload, command)] = [
        (each, each.message.command)
        for each in submitted
        if isinstance(each.message, m.Submit) and isinstance(each.message.command, m.StorePlan)
    ]
    beside = set(command.beside.values())
    of_the_plan = [frame for frame in upload.frames[1:] if digest_of(frame) not in beside]
    parts = plan.bundle().parts
    assert {digest_of(frame) for frame in of_the_plan} == set(parts)
    assert len(upload.frames[0]) + sum(map(len, of_the_plan)) <= limit
    assert {digest_of(frame) for each in pulled for frame in each.frames[1:]} == set(parts)
    assert sum(each.size for each in pulled) <= limit
