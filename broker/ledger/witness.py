"""A count of commits beside the ledger, by which a ledger that has lost its end is told from one that never had it.

SQLite takes a torn end of its write-ahead log for a crash in the middle of a commit, rightly, and one that was cut
or altered afterwards for the same, wrongly: it would open without a word, and without commands that were accepted. So
the number of the last commit is written to a file of its own once that commit is durable. It needs no sync: after a
crash of the machine it is behind, never ahead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from pathlib import Path
from typing import Protocol

from broker.ledger.errors import LedgerDamaged, LedgerInUse, LedgerUnusable

__all__ = ["FileWitness", "Witness"]

_SLOT = struct.Struct(">QI")
_SLOT_BYTES = 4096
"""Two slots, written in turn, on blocks of their own: a write that tears leaves the other."""


class Witness(Protocol):
    """What remembers how many commits a ledger has."""

    def open(self) -> int | None:
        """How many commits there were, at least; None: it is new. Idempotent.

        Raises `LedgerInUse`, `LedgerUnusable`, `LedgerDamaged`.
        """
        ...

    def made(self) -> None:
        """The ledger is new, with no commit so far: make this count durable, and the names of all files.

        Raises OSError.
        """
        ...

    def saw(self, commits: int) -> None:
        """So many commits are durable."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class FileWitness:
    """A file at ``path``, which is the lock of the ledger ``ledger``, too."""

    def __init__(self, path: Path, ledger: str) -> None:
        self.path = path
        self._ledger = ledger
        self._file: int | None = None

    def open(self) -> int | None:
        """See `Witness`. Makes the file, and its folder, where there is none."""
        if self._file is None:
            self._file = self._locked()
        if not os.fstat(self._file).st_size:
            return None
        counts = [count for slot in (0, 1) if (count := self._read(slot)) is not None]
        if not counts:
            self.close()
            raise LedgerDamaged(self._ledger, f"expected a count of commits in {self.path}, got other bytes")
        return max(counts)

    def _locked(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerUnusable(self._ledger, error.strerror or str(error)) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise LedgerInUse(self._ledger) from None
        return file

    def _read(self, slot: int) -> int | None:
        assert self._file is not None
        data = os.pread(self._file, _SLOT.size, slot * _SLOT_BYTES)
        if len(data) < _SLOT.size:
            return None
        count, checksum = _SLOT.unpack(data)
        return int(count) if checksum == zlib.crc32(data[:8]) else None

    def saw(self, commits: int) -> None:
        """See `Witness`."""
        assert self._file is not None
        with contextlib.suppress(OSError):  # behind, then: it is a full disk, say, and the ledger itself is well
            os.pwrite(
                self._file, _SLOT.pack(commits, zlib.crc32(commits.to_bytes(8, "big"))), commits % 2 * _SLOT_BYTES
            )

    def made(self) -> None:
        """See `Witness`."""
        assert self._file is not None
        for slot in (0, 1):  # both, so that no later write needs room on the disk
            os.pwrite(self._file, _slot(0), slot * _SLOT_BYTES)
        os.fsync(self._file)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """See `Witness`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _slot(commits: int) -> bytes:
    return _SLOT.pack(commits, zlib.crc32(commits.to_bytes(8, "big")))
