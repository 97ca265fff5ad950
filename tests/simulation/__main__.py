"""Replay a seed, or search many.

``python -m tests.simulation 17`` or ``python -m tests.simulation --from 0 --count 20000``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.progress import track

from tests.simulation.fleet import Outcome, run

__all__ = ["main", "search"]


def attempt(seed: int) -> Outcome | str:
    """The outcome of a seed, or what went wrong."""
    try:
        return run(seed)
    except Exception as error:  # noqa: BLE001 - whatever a core raises is a finding, and is printed
        return "\n".join([f"seed {seed}: {type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def outcomes(first: int, count: int, processes: int) -> Iterator[Outcome | str]:
    """The outcomes of ``count`` seeds, in any order that keeps the processes busy."""
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(attempt, range(first, first + count), chunksize=10)


def search(first: int, count: int, processes: int) -> int:
    """Simulate ``count`` seeds from ``first`` on, and print what came of them: 0, or 1 if any broke a promise."""
    console = Console()
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    failed: list[str] = []
    found = outcomes(first, count, processes)
    for outcome in track(found, "simulating", total=count, console=console):
        if isinstance(outcome, str):
            failed.append(outcome)
            console.print(outcome.partition("\n")[0], markup=False, highlight=False)
            continue
        total.update(
            commands=outcome.commands,
            accepted=outcome.accepted,
            values=outcome.values,
            failures=outcome.failures,
            messages=outcome.messages,
            lost=outcome.lost,
            bundles=outcome.bundles,
            crashes=outcome.crashes,
            unwritten=outcome.unwritten,
        )
        kinds[outcome.scenario.kind] += 1
    console.print(
        f"{count:,} seeds, {len(failed)} with a broken promise; " + ", ".join(f"{n:,} {k}" for k, n in total.items())
    )
    console.print("; ".join(f"{n:,} {kind}" for kind, n in kinds.most_common()))
    if failed:
        console.print(failed[0], markup=False, highlight=False, soft_wrap=True)
    return int(bool(failed))


def main() -> int:
    """0: every promise was kept; 1: one was not, and its seed is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="replay this one seed, and print its outcome or its story")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds (default: 1000)")
    parser.add_argument("--processes", type=int, default=2, help="how many processes (default: 2)")
    options = parser.parse_args()
    console = Console()
    if options.seed is not None:
        outcome = attempt(options.seed)
        console.print(outcome, markup=False, highlight=False, soft_wrap=True)
        return int(isinstance(outcome, str))
    return search(options.first, options.count, options.processes)


if __name__ == "__main__":
    sys.exit(main())
