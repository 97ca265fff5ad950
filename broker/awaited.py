"""Commands for devices that are not known yet, while their broker may have lost what it knew.

A session that finds another ledger sends again all that has not ended, perhaps before the device has registered. So for
a grace such a command waits for the device to appear; then it fails as any other for an unknown device does.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.context import Context
from broker.devices import Device
from broker.records import Record

__all__ = ["Awaited"]


class Awaited:
    """See the module. ``fail``: the device of a record did not appear."""

    def __init__(self, context: Context, fail: Callable[[Record], None]) -> None:
        self._context = context
        self._fail = fail
        self._waiting: dict[str, list[Record]] = {}

    def put(self, record: Record) -> None:
        """Take in a command."""
        if not self._waiting:
            self._context.at(self._context.unsure_until, self._give_up)
        self._waiting.setdefault(record.device_name, []).append(record)

    def appeared(self, device: Device) -> None:
        """A device has registered for the first time."""
        for record in self._waiting.pop(device.name, ()):
            if record.unended:
                record.device = device
                device.mailbox.put(record)

    def _give_up(self, now: float) -> None:
        if now < self._context.unsure_until:
            return  # of an earlier grace; the later one has its own
        waiting, self._waiting = self._waiting, {}
        for records in waiting.values():
            for record in records:
                if record.unended:
                    self._fail(record)
