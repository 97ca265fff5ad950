"""Which commands are new, without asking the store's index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from broker.protocol.ids import INCARNATION_BYTES
from edge_agent.store_database import Database

__all__ = ["HighestIds"]

_SESSIONS = 1024


class HighestIds:
    """The highest id that an ended command of each session had: a session counts its ids upwards, so what is beyond is
    new. Ids of one session compare as their counters do, which are big-endian.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: OrderedDict[bytes, bytes] = OrderedDict()  # by incarnation, of those that were asked for

    def beyond(self, id: bytes) -> bool:
        """Whether no command of this id, or of a later one of its session, is in the index."""
        session = id[:INCARNATION_BYTES]
        highest = self._known.get(session)
        if highest is None:
            highest = self._known[session] = self._look_up(session)
            if len(self._known) > _SESSIONS:
                self._known.popitem(last=False)
        return id > highest

    def see(self, ids: Iterable[bytes]) -> None:
        """Commands of these ids have ended."""
        known = self._known
        for id in ids:
            session = id[:INCARNATION_BYTES]
            highest = known.get(session)
            if highest is not None and highest < id:
                known[session] = id

    def _look_up(self, session: bytes) -> bytes:
        with self._database.read() as connection:
            (last,) = connection.execute(
                "SELECT max(id) FROM commands WHERE id BETWEEN ? AND ?", (session + bytes(8), session + b"\xff" * 8)
            ).fetchone()
        return session if last is None else bytes(last)  # the session alone is less than any id of it
