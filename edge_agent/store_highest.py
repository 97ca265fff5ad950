"""Which commands are new, without asking the store's index."""

from __future__ import annotations

from collections import OrderedDict

from broker.protocol.ids import counter_of, incarnation_of
from edge_agent.store_database import Database

__all__ = ["HighestIds"]

_SESSIONS = 1024


class HighestIds:
    """The highest counter that an ended command of each session had: a session counts its ids upwards, so what is
    beyond is new.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[bytes, int] = OrderedDict()  # by incarnation, of those that were asked for

    def beyond(self, id: bytes) -> bool:
        """Whether no command of this id, or of a later one of its session, is in the index."""
        session = incarnation_of(id)
        highest = self._known.get(session)
        if highest is None:
            highest = self._known[session] = self._look_up(session)
            if len(self._known) > _SESSIONS:
                self._known.popitem(last=False)
        return counter_of(id) > highest

    def see(self, id: bytes) -> None:
        """A command of this id has ended."""
        session = incarnation_of(id)
        highest = self._known.get(session)
        if highest is not None and highest < counter_of(id):
            self._known[session] = counter_of(id)

    def _look_up(self, session: bytes) -> int:
        with self._database.read() as connection:
            (last,) = connection.execute(
                "SELECT max(id) FROM commands WHERE id BETWEEN ? AND ?", (session + bytes(8), session + b"\xff" * 8)
            ).fetchone()
        return -1 if last is None else counter_of(bytes(last))
