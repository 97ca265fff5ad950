"""The test of the test: code that is wrong on purpose is found out within a few seeds."""

from __future__ import annotations

import itertools

import pytest

from tests.simulation.fleet import run
from tests.simulation.mutants import MUTANTS, Mutant

SEARCH = 250
"""How many seeds are tried where those that are known to find a mutant don't any more: what a seed makes of a fleet
changes with the code.
"""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_broken_code_breaks_a_promise(mutant: Mutant) -> None:
    """Each mutant breaks a promise, or stops a core, under a seed that the right code stands."""
    for seed in itertools.chain(mutant.seeds, range(SEARCH)):
        if _breaks(mutant, seed):
            run(seed)
            return
    pytest.fail(f"{mutant.name} is not found by {SEARCH} seeds")


def _breaks(mutant: Mutant, seed: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        mutant.mutate(patch)
        try:
            run(seed)
        except TypeError:
            raise  # the mutant is not what it was: it does not fit what it takes the place of
        except Exception:  # noqa: BLE001 - a broken promise, or whatever a broken core raises
            return True
    return False
