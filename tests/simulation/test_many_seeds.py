"""The long search: 20,000 fleets (`make sims`, and a part of `make long`)."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import search

SEEDS = 20_000


@pytest.mark.long
def test_promises_hold_under_twenty_thousand_seeds() -> None:
    """No seed breaks a promise; the table says what they went through, and each that does is replayed by its number."""
    assert search(0, SEEDS, processes=2) == 0
