"""Ends that the broker would decide by itself, and may not yet.

A broker that starts over a ledger may have told a session of an end that did not get into it: its device has that end,
and announces it again. So for as long as a device has not caught up (all that it has is announced), and at most for a
grace after the start, nothing of it is cancelled or expires. A command that was delivered too often waits in the same
way: the agent that comes back may have ended it.

A cancel that is held is in the ledger, as the errand that it will be.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.context import Context
from broker.devices import Device
from broker.ledger.interface import DropErrand, Ending, RecordErrand
from broker.protocol.messages import Cancel, Cancelled
from broker.records import Record

__all__ = ["HeldEnds"]


class HeldEnds:
    """See the module. ``end``: ends a record, unless it has ended."""

    def __init__(self, context: Context, end: Callable[[Record, Ending], object]) -> None:
        self._context = context
        self._end = end
        self._held: dict[Device, dict[Record, tuple[Ending, int]]] = {}  # and the number of its errand; 0: none
        self._timer_set = False

    def must_wait(self, record: Record) -> bool:
        """Whether the device of ``record`` may have ended it, and told a broker that is gone."""
        device = record.device
        return device is not None and not device.caught_up and self._context.unsure

    def hold(self, record: Record, event: Ending, seq: int = 0) -> None:
        """End ``record`` by ``event`` when its device has caught up, or the grace is over; the first counts."""
        assert record.device is not None
        held = self._held.setdefault(record.device, {})
        if record in held:
            return
        if isinstance(event, Cancelled) and not seq:
            seq = self._context.next_seq()
            self._context.writes.append(
                RecordErrand(seq=seq, device=record.device_name, digest=record.digest, command=Cancel(id=record.id))
            )
        held[record] = (event, seq)
        if not self._timer_set and self._context.unsure:
            self._timer_set = True
            self._context.at(self._context.unsure_until, self._grace_over)

    def hold_for(self, record: Record, event: Ending, seconds: float) -> None:
        """The same, and also when ``seconds`` are over."""
        self.hold(record, event)
        until = max(self._context.now + seconds, self._context.unsure_until)
        self._context.at(until, lambda _: self._decide(record))

    def caught_up(self, device: Device) -> None:
        """The device has announced all that it has."""
        for record in list(self._held.get(device, ())):
            self._decide(record)

    def _grace_over(self, _now: float) -> None:
        for device in list(self._held):
            self.caught_up(device)

    def _decide(self, record: Record) -> None:
        assert record.device is not None
        held = self._held.get(record.device, {})
        if record not in held:
            return
        event, seq = held.pop(record)
        if not held:
            del self._held[record.device]
        if seq:
            self._context.writes.append(DropErrand(seq=seq))
        if record.unended:
            self._end(record, event)
