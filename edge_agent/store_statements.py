"""Statements that take many rows at once.

To hand SQLite one row takes longer than to write it; and each call lets go of Python's lock and asks for it again,
which the agent's driver wants, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from edge_agent.store_disk import Connection

__all__ = ["Statement"]

_AT_ONCE = 32
"""How many rows a statement takes; what is left of a batch goes one by one. SQLite before 3.32 takes 999 values."""


class Statement:
    """``text`` with ``{}`` where the rows go. Each has ``own`` values of its own; in front of them stand as many as
    ``shared`` says that all rows have in common, and that are given once.
    """

    def __init__(self, text: str, *, own: int, shared: int = 0) -> None:
        marks = ", ".join([*(f"?{k}" for k in range(1, shared + 1)), *("?" * own)])
        row = f"({marks})" if own + shared > 1 else marks
        self._one = text.format(row)
        self._many = text.format(", ".join([row] * _AT_ONCE))

    def run(self, connection: Connection, rows: Sequence[Sequence[object]], shared: Sequence[object] = ()) -> None:
        """Run it for all ``rows``, in order."""
        whole = len(rows) - len(rows) % _AT_ONCE
        for start in range(0, whole, _AT_ONCE):
            connection.execute(self._many, [*shared, *chain.from_iterable(rows[start : start + _AT_ONCE])])
        if whole < len(rows):
            connection.executemany(self._one, [(*shared, *row) for row in rows[whole:]])
