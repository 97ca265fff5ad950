"""A device that sleeps while it is sent commands, over real processes: it wakes and works them off, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coordinator import connect
from coordinator.fleet import Fleet
from tests.acceptance import plans
from tests.chaos.actors import Actor, Stage

READY_WITHIN = 60.0
BASE = 1_000_000


def test_a_sleeping_device_works_off_its_first_commands_in_order(tmp_path: Path) -> None:
    """600 commands to a device that is off, then killed brokers, then the device: each runs once, in the order sent."""
    works_off_in_order(tmp_path, commands=600, within=60)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_device_works_off_what_came_meanwhile_in_order(tmp_path: Path) -> None:
    """The same with a device that is stopped in the middle of its work, and goes on."""
    works_off_in_order(tmp_path, commands=10_000, within=600, stopped=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_device_asleep_for_its_first_10000_commands_works_them_off_in_order(tmp_path: Path) -> None:
    """10,000 commands to a device that is off, a killed broker, then the device: each runs once, in the order sent."""
    works_off_in_order(tmp_path, commands=10_000, within=600)


def works_off_in_order(folder: Path, *, commands: int, within: float, stopped: bool = False) -> None:
    """Send so many commands to a device that sleeps; wake it, and compare what it starts with what was sent."""
    with Stage(folder) as stage:
        broker = stage.broker()
        broker.start()
        stage.wait_for(broker, "broker_listening", READY_WITHIN)
        device = stage.agent("sleeper", "--log-level", "debug")
        device.start()
        stage.wait_for(device, "agent_registered", READY_WITHIN)
        with connect(stage.endpoint, insecure=True) as fleet:
            on_device = plans.plus_one().send(fleet.device("sleeper"))
            if stopped:
                assert on_device(torch.zeros(1)).wait(READY_WITHIN)  # its worker is there
                device.sleep()
            else:
                assert device.end() == 0
            began = time.monotonic()
            pointers = [on_device(torch.tensor([float(BASE + k)])) for k in range(commands)]
            until(fleet, lambda: not fleet.driver.core.unaccepted, within)
            accepted = time.monotonic()
            for _ in range(2):
                broker.kill()
                broker.start()
                stage.wait_for(broker, "broker_listening", READY_WITHIN)
            assert not any(pointer.ready for pointer in pointers)
            if stopped:
                device.wake()
            else:
                device.start()
            values = fleet.get(pointers, timeout=within)
            ended = time.monotonic()
            assert [int(value) for value in values] == [BASE + k + 1 for k in range(commands)]
            started = started_by(stage, device, commands, within)
            assert started == [pointer.id for pointer in pointers]
        print(
            f"\n{commands} commands to a sleeping device: accepted within {accepted - began:.1f} s, "
            f"worked off within {ended - accepted:.1f} s of its waking"
        )


def started_by(stage: Stage, device: Actor, count: int, within: float) -> list[str]:
    """The results that the device has logged to start, the warming one left out, until so many have ended."""
    started: list[str] = []
    finished = 0
    for heard in stage.hear(time.monotonic() + within):
        if heard.event == "invocation_started" and heard.actor is device:
            started.append(str(heard.record["result"]))
        finished += heard.event == "invocation_finished"
        if finished >= count and len(started) >= count:
            break
    return started[-count:] if len(started) == count + 1 else started


def until(fleet: Fleet, true: Callable[[], bool], within: float) -> None:
    """Wait until something is true; each look costs the broker a question, so that nobody spins."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        fleet.stats()
