"""Waking the session's thread."""

from __future__ import annotations

import select
import socket
from typing import Any

import pytest

from coordinator.wakeup import Wakeup


def awake(wakeup: Wakeup) -> bool:
    """Whether a thread that polls would go on."""
    return bool(select.select([wakeup], [], [], 0)[0])


@pytest.fixture
def wakeup() -> Any:
    """One, let go of afterwards."""
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


def test_a_wake_is_seen_once(wakeup: Wakeup) -> None:
    """However often it was said before it was taken."""
    assert not awake(wakeup)
    wakeup.wake()
    wakeup.wake()
    assert awake(wakeup)
    wakeup.take()
    assert not awake(wakeup)
    wakeup.wake()
    assert awake(wakeup)


class _Racing:
    """The reading end, with another thread's wake in the middle of `Wakeup.take`."""

    def __init__(self, wakeup: Wakeup, end: socket.socket, *, before: bool) -> None:
        self.wakeup, self.end, self.before = wakeup, end, before

    def recv(self, count: int) -> bytes:
        """What the socket holds, with a wake before or after."""
        if self.before:
            self.wakeup.wake()
        got = self.end.recv(count)
        if not self.before:
            self.wakeup.wake()
        return got

    def fileno(self) -> int:
        """The socket's."""
        return self.end.fileno()

    def close(self) -> None:
        """The socket's."""
        self.end.close()


@pytest.mark.parametrize("before", [True, False])
def test_a_wake_while_one_is_taken_does_not_end_all_wakes(wakeup: Wakeup, before: bool) -> None:
    """Its byte may be taken with the other, since the thread looks only afterwards; the next one must wake again."""
    wakeup._out = _Racing(wakeup, wakeup._out, before=before)  # type: ignore[assignment]
    wakeup.wake()
    wakeup.take()
    wakeup.wake()
    assert awake(wakeup)


def test_after_the_end_a_wake_does_nothing() -> None:
    """A caller may come late."""
    wakeup = Wakeup()
    wakeup.close()
    wakeup.wake()
