"""How long ended results are remembered: until their time is over, or until there are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from broker.context import Context
from broker.ledger.interface import DropResults
from broker.protocol.framing import size_of
from broker.protocol.ids import parts_of
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
        self.value_bytes += size_of(record.value)

    def drop_value(self, record: Record) -> None:
        """The inline value of a record is needed no more."""
        if record.value:
            self.value_bytes -= size_of(record.value)
            record.value = ()

    def settled(self, records: Iterable[Record]) -> None:
        """No notification of these is due any more: they may be forgotten when their time has come."""
        settled = self._settled
        most, most_bytes = self._context.config.ended_results, self._context.config.value_bytes
        gone: list[bytes] = []
        for record in records:
            if record.status is _RELEASED:
                self.drop_value(record)
            settled.append(record)
            while len(settled) - self._stale > most or (settled and self.value_bytes > most_bytes):
                self._forget_oldest(gone)
        self._write(gone)
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
        gone: list[bytes] = []
        while self._settled and self.over_at(self._settled[0]) <= now:
            self._forget_oldest(gone)
        self._write(gone)
        self._arm()

    def _write(self, gone: list[bytes]) -> None:
        if gone:
            self._context.writes.append(DropResults(ids=gone))

    def _forget_oldest(self, gone: list[bytes]) -> None:
        """Add to ``gone`` what is to be written, in one piece: a broker that is full forgets one for each that ends."""
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
        if session is not None:
            incarnation, first = parts_of(record.id)
            if session.incarnation == incarnation:
                session.forgotten.add(first, first + record.width - 1)
                self._context.forgetful[session] = None
        gone.append(record.id)
