"""What a store wants of the disk below it, in one place: so that a test may put one there that forgets what was not
synced.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edge_agent.tensor_files import link, sync_folder, write_whole

__all__ = ["DISK", "Connection", "Disk", "Rows"]

_BUSY_SECONDS = 30.0


class Rows(Protocol):
    """What a statement has given."""

    def fetchone(self) -> Any:
        """The next row; None: there is none."""

    def fetchall(self) -> list[Any]:
        """All rows that are left."""


class Connection(Protocol):
    """A connection to the index, in autocommit mode: transactions are begun and ended by statements. Whatever fails
    raises `sqlite3.Error`.
    """

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Rows:
        """Run one statement."""

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> Rows:
        """Run one statement for each of ``values``."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and not ended."""

    def close(self) -> None:
        """Let go of it."""


class Disk(Protocol):
    """Connections, and the files that rows name. Files of workers and transfers are written by these themselves, with
    `edge_agent.tensor_files`, and are synced before the store hears of them.
    """

    def connect(self, path: Path) -> Connection:
        """A connection to the index at ``path``, made if it is not there; any thread may use it."""

    def write_whole(self, path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        """Write a file, whole or not at all; synced with its folder. Raises OSError."""

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which another file may have had; not synced: see `sync_folder`. Raises OSError."""

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""

    def sync_folder(self, folder: Path) -> None:
        """Make the names in ``folder`` reach the disk."""


class _RealDisk:
    """The one that is there."""

    def connect(self, path: Path) -> Connection:
        return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def write_whole(self, path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        write_whole(path, pieces)

    def link(self, source: Path, target: Path) -> None:
        link(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        sync_folder(folder)


DISK: Disk = _RealDisk()
"""The real one."""
