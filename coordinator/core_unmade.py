"""What ended here and the broker never knew: its upload failed, or the broker rejected its command.

Whoever asks the broker for such an id is told that it is unknown; a command that names one ends here, by the reason.
"""

from __future__ import annotations

from collections import OrderedDict

from broker.protocol.failures import argument_failed
from broker.protocol.messages import Failure, Invoke
from coordinator.core_results import Result

__all__ = ["Unmade"]

_MOST = 10_000
"""How many ids are remembered: of those before, a command hears no more than that they are unknown."""


class Unmade:
    """The last of these ids, each with why it has no value."""

    def __init__(self) -> None:
        self._failures: OrderedDict[bytes, Failure] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._failures)

    def add(self, result: Result, failure: Failure) -> None:
        """``result`` has ended so."""
        for id in result.ids:
            self._failures[id] = failure
        while len(self._failures) > _MOST:
            self._failures.popitem(last=False)

    def failure_of(self, command: Invoke, k: int) -> Failure | None:
        """Why the command's part on its ``k``-th device can't run, if one of its arguments there is among these."""
        shared = [argument for place, argument in enumerate(command.args) if place not in command.each]
        for argument in [*shared, *(ids[16 * k : 16 * k + 16] for ids in command.each.values())]:
            if isinstance(argument, bytes) and (why := self._failures.get(argument)) is not None:
                return argument_failed(argument, why)
        return None
