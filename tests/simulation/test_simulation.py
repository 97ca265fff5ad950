"""A whole fleet under one seed, a thousand times: whatever the network and the machines do, the promises hold."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.fleet import Scenario, run
from tests.simulation.submitted import Kind
from tests.simulation.world import World

SEEDS = 2000
CHUNK = 50
MISHAPS = (
    "tight",
    "disconnections",
    "half_open",
    "partitions",
    "worker_deaths",
    "device_kills",
    "device_power_losses",
    "broker_kills",
    "broker_power_losses",
    "session_kills",
    "usurpations",
    "broker_crash_points",
    "device_crash_points",
    "full_disks",
    "large",
    "evictions",
)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_promises_hold_under_many_seeds(first: int) -> None:
    """Fifty fleets with faults of all kinds keep every promise; a broken one is reported with its seed and story."""
    outcomes = [run(seed) for seed in range(first, first + CHUNK)]
    assert sum(outcome.values for outcome in outcomes) > 5 * CHUNK, "fleets that compute nothing prove nothing"
    assert sum(outcome.bundles for outcome in outcomes) > 5 * CHUNK, "so do bundles that nobody sends"


def test_the_scenarios_have_every_kind_of_trouble() -> None:
    """Among the seeds of the suite, each fault and each mishap occurs, and so does a calm network."""
    drawn = [Scenario.draw(World(seed)) for seed in range(SEEDS)]
    assert {one.kind for one in drawn} == set(Kind)
    assert any(not one.faults.drop and not one.partitions for one in drawn)
    assert {one.gather for one in drawn} >= {0.0, 1.0}
    for fault in ("drop", "repeat", "reorder"):
        assert any(getattr(one.faults, fault) for one in drawn), fault
    for mishap in MISHAPS:
        assert any(getattr(one, mishap) for one in drawn), mishap


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same outcome in another process, whatever that one's hash seed."""
    program = "from tests.simulation.fleet import run; print([run(seed) for seed in (5, 12, 59)])"
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert "Outcome(seed=5," in said[0]
