"""How long ended results are remembered: until their time is over, or until there are too many."""

from __future__ import annotations

from collections import deque

from broker.context import Context
from broker.ledger.interface import DropResults
from broker.protocol.ids import counter_of, incarnation_of
from broker.protocol.messages import ResultStatus
from broker.records import Record

__all__ = ["Retention"]

_RELEASED = ResultStatus.RELEASED


class Retention:
    """Drops records from ``by_id`` in the order in which their sessions have seen them.

    So one with a long deadline may keep others a little longer than promised, and nothing is ever searched.
    """

    def __init__(self, context: Context, by_id: dict[bytes, Record]) -> None:
        self._context = context
        self._by_id = by_id
        self._settled: deque[Record] = deque()
        self._stale = 0  # how many of its places are void: the record was not settled any more; see `Record.resumed`
        self._timer_set = False
        self.value_bytes = 0
        """The inline values of all ended results."""

    def keep_value(self, record: Record) -> None:
        """A record has ended with an inline value."""
        self.value_bytes += sum(map(len, record.value))

    def drop_value(self, record: Record) -> None:
        """The inline value of a record is needed no more."""
        if record.value:
            self.value_bytes -= sum(map(len, record.value))
            record.value = ()

    def settled(self, record: Record) -> None:
        """No notification of this record is due any more: it may be forgotten when its time has come."""
        if record.status is _RELEASED:
            self.drop_value(record)
        settled, config = self._settled, self._context.config
        settled.append(record)
        while len(settled) - self._stale > config.ended_results or (settled and self.value_bytes > config.value_bytes):
            self._forget_oldest()
        if not self._timer_set:
            self._arm()

    def unsettled(self, record: Record) -> None:
        """A notification of this record is due again."""
        record.resumed += 1
        self._stale += 1

    def over_at(self, record: Record) -> float:
        """When the time of a record, and the lease of its value, is over."""
        return record.deadline + self._context.config.retention_ms / 1000

    def _arm(self) -> None:
        if self._settled and not self._timer_set:
            self._timer_set = True
            self._context.at(self.over_at(self._settled[0]), self._wake)

    def _wake(self, now: float) -> None:
        self._timer_set = False
        while self._settled and self.over_at(self._settled[0]) <= now:
            self._forget_oldest()
        self._arm()

    def _forget_oldest(self) -> None:
        record = self._settled.popleft()
        if record.resumed:  # its oldest places are the void ones
            record.resumed -= 1
            self._stale -= 1
            return
        for each in record.ids():
            del self._by_id[each]
        self.drop_value(record)
        if record.device is not None:
            record.device.kept.pop(record.id, None)
        session = record.session
        if session is not None and session.incarnation == incarnation_of(record.id):
            first = counter_of(record.id)
            session.forgotten.add(first, first + record.width - 1)
            self._context.forgetful[session] = None
        self._context.writes.append(DropResults(ids=[record.id]))
