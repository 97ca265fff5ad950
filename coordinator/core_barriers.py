"""Whoever waits until the broker has accepted all that was sent so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from coordinator.core_events import AllAccepted

if TYPE_CHECKING:
    from coordinator.core_outgoing import Outgoing

__all__ = ["Barriers"]


class Barriers:
    """Barriers by key, each with the commands that it waits for, in the order of their submission.

    ``kept`` holds every command that has not come to its end: what has left it is waited for no more.
    """

    def __init__(self, kept: Container[Outgoing]) -> None:
        self._kept = kept
        self._waiting: dict[int, deque[Outgoing]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def raise_(self, key: int, commands: Iterable[Outgoing], out: list[object]) -> None:
        """Say `AllAccepted` when none of ``commands`` is on its way any more: at once, perhaps."""
        self._waiting[key] = deque(command for command in commands if not command.accepted)
        self.look(out)

    def give_up(self, key: int) -> None:
        """Nobody waits any more."""
        self._waiting.pop(key, None)

    def look(self, out: list[object]) -> None:
        """Some commands were accepted, or have come to their end otherwise."""
        for key, commands in list(self._waiting.items()):
            while commands and (commands[0].accepted or commands[0] not in self._kept):
                commands.popleft()
            if not commands:
                del self._waiting[key]
                out.append(AllAccepted(key))

    def start_over(self, commands: Iterable[Outgoing]) -> None:
        """A new ledger, which has none of them."""
        unaccepted = [command for command in commands if not command.accepted]
        for key in self._waiting:
            self._waiting[key] = deque(unaccepted)
