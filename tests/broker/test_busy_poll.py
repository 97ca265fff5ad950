"""When the broker looks for the next message, and when it sleeps: on a clock that the looking moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.busy_poll import BusyPoll

LONGEST = 0.001
LOOK = 0.000_01
"""Seconds that one look takes."""

MESSAGE: list[tuple[Any, int]] = [("router", 1)]


class Traffic:
    """A poller whose messages come at their times; ``sleeps`` are the timeouts with which it was told to wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self.comes_at = float("inf")
        self.sleeps: list[int] = []

    def poll(self, timeout: int) -> list[tuple[Any, int]]:
        """As `broker.sockets.poll` does."""
        if timeout:
            self.sleeps.append(timeout)
            until = float("inf") if timeout < 0 else self.now + timeout / 1000
            self.now = max(self.now, min(until, self.comes_at))
        else:
            self.now += LOOK
        if self.now < self.comes_at:
            return []
        self.comes_at = float("inf")
        return MESSAGE

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def after(self, seconds: float, wait: Callable[[int], list[tuple[Any, int]]], timeout: int = -1) -> bool:
        """Whether it was slept until the next message, which comes in ``seconds``."""
        self.comes_at, slept = self.now + seconds, len(self.sleeps)
        assert wait(timeout) == MESSAGE
        return len(self.sleeps) > slept


@pytest.fixture
def traffic() -> Traffic:
    """At rest."""
    return Traffic()


@pytest.fixture
def wait(traffic: Traffic) -> Callable[[int], list[tuple[Any, int]]]:
    """What is tested."""
    return BusyPoll(traffic.poll, LONGEST, clock=traffic.clock).wait


def test_close_messages_are_looked_for(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """After a few of them it sleeps no more, however long they go on."""
    slept = [traffic.after(0.8 * LONGEST, wait) for _ in range(50)]
    assert slept[0]
    assert not any(slept[5:])


def test_a_few_messages_are_no_traffic(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """What two of them make it spend, before a pause, is a part of the longest window."""
    traffic.after(0.5 * LONGEST, wait)
    traffic.after(0.5 * LONGEST, wait)
    began = traffic.now
    assert wait(100) == []
    assert traffic.sleeps[-1] == 100
    assert traffic.now - began - 0.1 < 0.3 * LONGEST


def test_a_pause_ends_it(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """One message after a long wait was slept for, and so is the next."""
    for _ in range(10):
        traffic.after(0.5 * LONGEST, wait)
    assert traffic.after(3 * LONGEST, wait)
    assert traffic.after(0.5 * LONGEST, wait)


def test_little_traffic_costs_no_look(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """The clock stands still but for the waits: nothing was spent."""
    for number in range(1, 20):
        assert traffic.after(2 * LONGEST, wait)
        assert traffic.now == pytest.approx(number * 2 * LONGEST)


def test_a_timer_is_kept(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """Where nothing comes, it ends after the timeout, and the window at most."""
    for _ in range(10):
        traffic.after(0.5 * LONGEST, wait)
    began = traffic.now
    assert wait(5) == []
    assert traffic.now - began <= 0.005 + LONGEST + 2 * LOOK


def test_no_timeout_is_one_look(traffic: Traffic, wait: Callable[[int], list[tuple[Any, int]]]) -> None:
    """What is waiting is all that is asked for."""
    for _ in range(10):
        traffic.after(0.5 * LONGEST, wait)
    began = traffic.now
    assert wait(0) == []
    assert traffic.now - began == pytest.approx(LOOK)


def test_it_can_be_turned_off(traffic: Traffic) -> None:
    """Then it sleeps at once, however close the messages are."""
    off = BusyPoll(traffic.poll, 0.0, clock=traffic.clock)
    assert all(traffic.after(0.1 * LONGEST, off.wait) for _ in range(10))
