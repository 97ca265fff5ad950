"""Runs that cannot look up by themselves are ended by another thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edge_agent.runtimes.lookout import Lookout
from tests.waiting import PATIENCE, wait_until

QUICKLY = 0.001


@dataclass(eq=False)
class Options:
    """As those of onnxruntime."""

    terminate: bool = False


class Reason(BaseException):
    """Why a run is ended."""


class Look:
    """Is called on another thread, and raises when it is told to."""

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self.threads: list[str] = []

    def __call__(self) -> None:
        self.threads.append(threading.current_thread().name)
        if self.reason is not None:
            raise self.reason


def test_a_run_is_ended_by_what_is_raised() -> None:
    """The flag is set for that run alone, and the reason is kept for the run's own thread."""
    lookout, look, other = Lookout(QUICKLY), Look(), Look()
    options, spared = Options(), Options()
    with lookout.over(options, look) as run, lookout.over(spared, other) as untouched:
        wait_until(lambda: len(look.threads) > 1)
        assert (options.terminate, run.reason) == (False, None)
        look.reason = Reason()
        wait_until(lambda: options.terminate)
        assert run.reason is look.reason
        called = len(look.threads)
        wait_until(lambda: len(other.threads) > called + 3)
        assert len(look.threads) == called
    assert (spared.terminate, untouched.reason) == (False, None)
    assert set(look.threads) == {"plan-lookout"}


def test_a_run_that_is_over_is_not_looked_after() -> None:
    """Nor ended, whatever is raised later."""
    lookout, look, other, options = Lookout(QUICKLY), Look(), Look(), Options()
    with lookout.over(options, look):
        wait_until(lambda: bool(look.threads))
    with lookout.over(Options(), other):
        wait_until(lambda: bool(other.threads))  # one look of before may still be under way
        look.reason = Reason()
        called = len(look.threads)
        wait_until(lambda: len(other.threads) > 3)
        assert len(look.threads) == called
    assert not options.terminate


def test_without_runs_there_is_no_thread() -> None:
    """It ends when there was nothing to do for a while, and begins again with the next run."""
    lookout, look = Lookout(QUICKLY), Look()
    for _ in range(3):
        look.threads.clear()
        with lookout.over(Options(), look):
            wait_until(lambda: bool(look.threads))
            thread = lookout._thread
        assert thread is not None
        thread.join(PATIENCE)
        assert not thread.is_alive()
