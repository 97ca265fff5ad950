"""A disk that forgets what was not synced: under the real ledger and the real store.

SIGKILL leaves the kernel's page cache as it is, so it can never find a missing fsync. Here SQLite's files go through a
VFS (by apsw) that remembers, for each file, what it held at its last sync and every write since. A power cut leaves the
former, and of the latter some: a file system may bring any of them to the disk, in any order, by sectors, and none is
sure. Files that are written whole, linked and removed are told by `edge_agent.store_disk.Disk`, and are sure when
their folder was synced.

    disk = ForgetfulDisk(random.Random(seed), folder)
    ... use disk.connect(path), until disk.power_left writes have been made ...
    disk.power_cut(to=another_folder)
"""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import apsw

from edge_agent.tensor_files import link, sync_folder, write_whole

__all__ = ["Connection", "ForgetfulDisk"]

_SECTOR = 512
_GONE = "the power is gone"
_names = itertools.count()


class _File:
    """What a file held when it was last synced (None: nobody knows it yet), and the writes since."""

    def __init__(self, durable: bytes | None) -> None:
        self.durable = durable
        self.since: list[tuple[int, bytes] | int] = []  # an offset and bytes, or the size to which it was cut

    def synced(self, content: bytes) -> None:
        self.durable = content
        self.since.clear()

    def after_power_cut(self, chance: random.Random) -> bytes | None:
        if self.durable is None and chance.random() < 0.5:
            return None  # its name was not sure
        content = bytearray(self.durable or b"")
        for change in self._left(chance):
            if isinstance(change, int):
                del content[change:]
            else:
                offset, data = change
                content += bytes(max(0, offset + len(data) - len(content)))
                content[offset : offset + len(data)] = data
        return bytes(content)

    def _left(self, chance: random.Random) -> list[tuple[int, bytes] | int]:
        """Of what was written since: nothing, all, the beginning, or any sectors of any writes."""
        kind = chance.choice(["nothing", "all", "beginning", "any", "any"])
        if kind == "nothing":
            return []
        if kind == "all":
            return self.since
        if kind == "beginning":
            return self.since[: chance.randint(0, len(self.since))]
        left: list[tuple[int, bytes] | int] = []
        for change in self.since:
            if isinstance(change, int):
                if chance.random() < 0.5:
                    left.append(change)
                continue
            offset, data = change
            starts = [start for start in range(0, len(data), _SECTOR) if chance.random() < 0.5]
            left += [(offset + start, data[start : start + _SECTOR]) for start in starts]
        return left


class _Vfs(apsw.VFS):
    def __init__(self, disk: ForgetfulDisk) -> None:
        self.disk = disk
        self.name = f"forgetful-{next(_names)}"
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _VfsFile(self.disk, name, flags)

    def xDelete(self, name: str, syncdir: bool) -> None:  # noqa: N802
        if self.disk.dead:
            return
        self.disk.spend()
        super().xDelete(name, syncdir)
        self.disk.files.pop(Path(name), None)


class _VfsFile(apsw.VFSFile):
    def __init__(self, disk: ForgetfulDisk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self.disk = disk
        self.path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        self.log = disk.file(self.path)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.disk.dead:
            return
        self.disk.spend()
        super().xWrite(data, offset)
        self.log.since.append((offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self.disk.dead:
            return
        self.disk.spend()
        super().xTruncate(size)
        self.log.since.append(size)

    def xSync(self, flags: int) -> None:  # noqa: ARG002, N802
        if self.disk.dead:
            return
        self.disk.spend()
        if not self.disk.lies:
            self.log.synced(self.path.read_bytes())


class ForgetfulDisk:
    """See the module; an `edge_agent.store_disk.Disk`. ``power_left``: after how many writes and syncs the power goes;
    then everything raises. With ``lies`` it says that it has synced, and has not: a program that does not sync.
    """

    def __init__(self, chance: random.Random, folder: Path, *, power_left: float = float("inf")) -> None:
        self.chance = chance
        self.folder = folder
        self.power_left = power_left
        self.lies = False
        self.files: dict[Path, _File] = {}
        self._unsure: list[tuple[Path, Path | None, bytes]] = []  # old name, new name, content: until a folder sync
        self._vfs = _Vfs(self)

    @property
    def dead(self) -> bool:
        """Whether the power is gone."""
        return self.power_left <= 0

    def spend(self) -> None:
        """One write more. Raises OSError when the power is gone."""
        self.power_left -= 1
        if self.power_left <= 0:
            raise OSError(5, _GONE)

    def file(self, path: Path) -> _File:
        """What is known of a file."""
        found = self.files.get(path)
        if found is None:
            # What was there before this disk was used is as sure as can be.
            held = path.read_bytes() if path.exists() else b""
            found = self.files[path] = _File(held or None)
        return found

    # ------------------------------------------------------------------------------------------- as a Disk

    def connect(self, path: Path | str) -> Connection:
        """A connection through this disk."""
        return Connection(apsw.Connection(str(path), vfs=self._vfs.name), self)

    def write_whole(self, path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        """Sure when it returns, as the real one syncs file and folder; with ``lies``, a file that may be empty."""
        self.spend()
        write_whole(path, pieces)
        if self.lies:
            self._unsure.append((path, None, path.read_bytes()))

    def link(self, source: Path, target: Path) -> None:
        """Not sure before `sync_folder`."""
        self.spend()
        content = source.read_bytes()
        link(source, target)
        self._unsure.append((source, target, content))

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there. Whether it comes back after a power cut matters to nobody."""
        self.spend()
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Names in ``folder`` are sure now."""
        self.spend()
        if not self.lies:
            sync_folder(folder)
            self._unsure = [one for one in self._unsure if (one[1] or one[0]).parent != folder]

    # ------------------------------------------------------------------------------------------- the cut

    def power_cut(self, to: Path) -> Path:
        """What is found on the disk afterwards, as a copy in ``to``."""
        self.power_left = 0
        shutil.copytree(self.folder, to, ignore=lambda _, names: [name for name in names if name == "changed"])
        for path, file in self.files.items():
            copy = to / path.relative_to(self.folder)
            if path.name.endswith("-shm"):
                copy.unlink(missing_ok=True)  # memory, in truth
                continue
            content = file.after_power_cut(self.chance)
            if content is None:
                copy.unlink(missing_ok=True)
            elif copy.parent.exists():
                copy.write_bytes(content)
        for source, target, content in self._unsure:
            if self.chance.random() < 0.5:
                continue
            if target is None:
                (to / source.relative_to(self.folder)).write_bytes(b"")  # the name, without the content
            else:
                (to / target.relative_to(self.folder)).unlink(missing_ok=True)
                (to / source.relative_to(self.folder)).write_bytes(content)
        return to


class Connection:
    """As those of `sqlite3` in autocommit mode, with its errors: what ledger and store need of one."""

    def __init__(self, connection: apsw.Connection, disk: ForgetfulDisk) -> None:
        self._connection = connection
        self._disk = disk

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> _Cursor:
        """Run one statement."""
        return self._run(lambda cursor: cursor.execute(statement, tuple(values)))

    def executemany(self, statement: str, values: Iterable[Sequence[Any]], /) -> _Cursor:
        """Run one statement for each of ``values``."""
        return self._run(lambda cursor: cursor.executemany(statement, [tuple(one) for one in values]))

    def _run(self, run: Callable[[apsw.Cursor], apsw.Cursor]) -> _Cursor:
        try:
            cursor = run(self._connection.cursor())
        except (apsw.Error, OSError) as error:
            raise _as_sqlite3(error) from error
        if self._disk.dead:  # whatever a dead machine believes
            raise _as_sqlite3(OSError(5, _GONE))
        return _Cursor(cursor)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return bool(self._connection.in_transaction)

    def close(self) -> None:
        """Close it. A machine without power does not tidy up: nothing of it reaches the disk."""
        self._connection.close()


class _Cursor:
    def __init__(self, cursor: apsw.Cursor) -> None:
        self._cursor = cursor

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return list(self._cursor.fetchall())

    def __iter__(self) -> Any:
        return iter(self._cursor)


def _as_sqlite3(error: Exception) -> sqlite3.Error:
    code = getattr(error, "extendedresult", 0) or 10
    made: sqlite3.Error = (
        sqlite3.DatabaseError(str(error)) if code & 0xFF in (11, 26) else sqlite3.OperationalError(str(error))
    )
    made.sqlite_errorcode = code
    return made
