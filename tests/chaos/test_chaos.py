"""Chaos over real processes: whatever is killed, what was accepted ends once, with the right value or a good reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.monkey import Pace
from tests.chaos.run import Outcome, print_outcome, run_chaos

QUICK = Pace(between=(0.05, 0.6), down=(0.0, 0.3), asleep=(0.1, 1.5), early=0.4)
"""Many kills in little time: many hit who has just come back."""


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_doubled_by_20_kills(tmp_path: Path) -> None:
    """20 programs are killed under load: accepted = terminal, nothing doubled, every end is right or explained."""
    outcome = run_chaos(tmp_path, seed=20, kills=20, within=120, devices=2, pace=QUICK, load=("--outstanding", "40"))
    keeps_what_is_promised(outcome, kills=20)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_nothing_is_lost_or_doubled_by_500_kills(tmp_path: Path) -> None:
    """500 programs are killed under load: accepted = terminal, nothing doubled, every end is right or explained."""
    outcome = run_chaos(tmp_path, seed=500, kills=500, within=4800)
    keeps_what_is_promised(outcome, kills=500)


def keeps_what_is_promised(outcome: Outcome, *, kills: int) -> None:
    """Print the table, and fail if anything in it may not be."""
    print_outcome(outcome)
    found = outcome.audit
    assert found.complaints == []
    assert len(outcome.toll.kills) >= kills
    assert set(outcome.toll.by_kind) == {"broker", "agent", "worker", "coordinator"}
    assert found.accepted_terminal == found.accepted > kills
    assert found.values_checked > kills
