"""A whole fleet under one seed, a thousand times: whatever the network and the machines do, the promises hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable

import pytest

from broker.protocol.streams import Inbox, Outbox, Verdict
from coordinator.core_results import Result
from edge_agent.core_runs import Runs
from tests.simulation.fleet import Scenario, run
from tests.simulation.promises import BrokenPromise, Kind
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
)
MUTANT_SEEDS = 120


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_promises_hold_under_many_seeds(first: int) -> None:
    """Fifty fleets with faults of all kinds keep every promise; a broken one is reported with its seed and story."""
    outcomes = [run(seed) for seed in range(first, first + CHUNK)]
    assert sum(outcome.values for outcome in outcomes) > 5 * CHUNK, "fleets that compute nothing prove nothing"


def test_the_scenarios_have_every_kind_of_trouble() -> None:
    """Among the seeds of the suite, each fault and each mishap occurs, and so does a calm network."""
    drawn = [Scenario.draw(World(seed), everything=True) for seed in range(SEEDS)]
    assert {one.kind for one in drawn} == set(Kind)
    assert any(not one.faults.drop and not one.partitions for one in drawn)
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


# ------------------------------------------------------------------------------------------------- the test of the test


def _take_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that takes whatever number comes."""

    def offer(self: Inbox, n: int) -> Verdict:
        self.taken = max(n, self.taken)
        return Verdict.NEXT

    monkeypatch.setattr(Inbox, "offer", offer)


def _never_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that sends each message once on a connection."""
    monkeypatch.setattr(Outbox, "__init__", _impatient(Outbox.__init__))


def _impatient(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Outbox[object], **options: object) -> None:
        original(self, **{**options, "patience": 1e9})

    return init


def _forget_what_is_unacknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that counts as delivered what was under way when a connection broke."""

    def rewind(self: Outbox[object]) -> None:
        self._items.clear()
        self._sent = 0

    monkeypatch.setattr(Outbox, "rewind", rewind)


def _mix_up_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that gives a result the values of another one."""
    original = Result.end
    last: list[tuple[bytes, ...]] = []

    def end(self: Result, step: object, *, frames: tuple[bytes, ...] = (), **rest: object) -> None:
        mine, last[:] = (last[0] if last else frames), [frames] if len(frames) == 1 else last
        original(self, step, frames=mine if len(mine) == len(frames) else frames, **rest)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(Result, "end", end)


def _start_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that starts the youngest command first."""
    original = Runs.__init__

    def init(self: Runs, *args: object, **options: object) -> None:
        original(self, *args, **options)  # type: ignore[arg-type]  # passed on
        push = self._queue.push

        def push_reversed(command: object) -> None:
            command.order = -command.order  # type: ignore[attr-defined]  # a mutant
            push(command)  # type: ignore[arg-type]  # a mutant

        self._queue.push = push_reversed  # type: ignore[method-assign]  # a mutant

    monkeypatch.setattr(Runs, "__init__", init)


@pytest.mark.parametrize(
    "mutate",
    [_take_duplicates, _never_go_back, _forget_what_is_unacknowledged, _mix_up_values, _start_in_reverse],
)
def test_broken_code_breaks_a_promise(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that is wrong on purpose is found out within a few seeds: the checker can fail."""
    mutate(monkeypatch)
    with pytest.raises(BrokenPromise):
        deque(map(run, range(MUTANT_SEEDS)), maxlen=0)
