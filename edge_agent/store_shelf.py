"""The store as the agent uses it: `edge_agent.catalog.Shelf` on disk.

Writes are gathered and committed together. What the agent asks for is answered from the gathered writes and a cache of
what was lately used, so the fast path seldom reaches SQLite; what must survive is committed with a sync before it is
announced, the rest a little later (an inline result is on record at the broker anyway).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from broker.protocol.ids import counter_of, incarnation_of
from broker.protocol.messages import INLINE_TENSORS_BYTES, Event, Failure, ResultInfo, TagEntry
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import Database, StoreInUse
from edge_agent.tensor_files import header_of, read_header, sync_folder, tensor_path, write_whole

__all__ = ["Committed", "StoreShelf"]

_CACHE_VALUES = 4096
_CACHE_BYTES = 4 << 20
_CACHE_SESSIONS = 1024
_ORPHAN_SECONDS = 3600.0
_TAGGED = "id, tags, description, dtype, shape, nbytes"
_VALUE = "id, own, dtype, shape, nbytes, frame, file, tags, description, blob"

_encode = msgspec.msgpack.Encoder().encode
_shapes = msgspec.msgpack.Decoder(tuple[int, ...])
_texts = msgspec.msgpack.Decoder(tuple[str, ...])
_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a `StoreShelf.commit` has done with the commands that had to reach the disk."""

    kept: tuple[bytes, ...] = ()
    failed: tuple[bytes, ...] = ()
    failure: Failure | None = None


class StoreShelf:
    """A `Shelf` on the store in ``folder``. Of one thread. Raises `StoreInUse` if another agent has it, and what `Database` raises."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._database = Database(folder, durable=durable)
        self.folder = folder
        self._lock = (folder / "agent.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._database.close()
            raise StoreInUse(folder) from None
        self.changed = os.open(folder / "changed", os.O_RDWR | os.O_NONBLOCK)
        """A descriptor that can be read when another program has put or deleted something: see `look`."""
        self.store_id = self._database.meta("store_id")
        self._version = self._database.data_version()
        self._values: dict[bytes, Held] = {}
        self._ended: dict[bytes, Ended] = {}
        self._durable: list[bytes] = []
        self._tags_changed = False
        self._recorded: list[bytes] = []
        self._dropped: dict[bytes, None] = {}
        self._kept: list[bytes] = []  # by a commit that a question made necessary
        self._cache: OrderedDict[bytes, Held] = OrderedDict()
        self._cache_bytes = 0
        self._highest: OrderedDict[bytes, int] = (
            OrderedDict()
        )  # incarnation to the highest counter of its ended commands
        self._remove_orphans()

    # ------------------------------------------------------------------------------------------- questions

    def find(self, id: bytes) -> Held | None:
        """As `Catalog.find`."""
        held = self._values.get(id)
        if held is not None:
            return held
        held = self._cache.get(id)
        if held is not None:
            self._cache.move_to_end(id)
            return held
        if id in self._dropped:
            return None
        with self._database.read() as connection:
            row = connection.execute(f"SELECT {_VALUE} FROM tensors WHERE id = ?", (id,)).fetchone()  # noqa: S608
        if row is None:
            return None
        held = self._held(row)
        self._remember(held)
        return held

    def ended(self, id: bytes) -> Ended | None:
        """As `Catalog.ended`."""
        waiting = self._ended.get(id)
        if waiting is not None:
            return waiting
        # A session counts its ids upwards: what is beyond the highest one seen is new, and costs no question.
        if counter_of(id) > self._highest_of(incarnation_of(id)):
            return None
        with self._database.read() as connection:
            row = connection.execute("SELECT id, event, outputs, recorded FROM commands WHERE id = ?", (id,)).fetchone()
        return None if row is None else _ended(row)

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """As `Catalog.with_tags`; at most two are returned, which is enough to know that it is not one."""
        self._write_tags()
        marks = ", ".join("?" * len(tags))
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_VALUE} FROM tensors WHERE id IN"  # noqa: S608 - marks and names of columns only
                f" (SELECT id FROM tags WHERE tag IN ({marks}) GROUP BY id HAVING count(*) = ?) LIMIT 2",
                (*tags, len(set(tags))),
            ).fetchall()
        return [self._held(row) for row in rows]

    def tagged(self) -> list[TagEntry]:
        """As `Catalog.tagged`."""
        self._write_tags()
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_TAGGED} FROM tensors WHERE id IN (SELECT id FROM tags) ORDER BY rowid"  # noqa: S608
            ).fetchall()
        return [_tag_entry(row) for row in rows]

    def unrecorded(self) -> list[Ended]:
        """As `Catalog.unrecorded`."""
        self._write()
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, event, outputs, recorded FROM commands WHERE recorded = 0 ORDER BY n"
            ).fetchall()
        return [_ended(row) for row in rows]

    def blob(self, digest: bytes) -> bytes | str | None:
        """As `Catalog.blob`."""
        with self._database.read() as connection:
            row = connection.execute("SELECT data FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        return bytes(row[0]) if row[0] is not None else str(self._blob_path(digest))

    def plans(self) -> list[tuple[bytes, bytes]]:
        """As `Catalog.plans`."""
        with self._database.read() as connection:
            return connection.execute("SELECT digest, data FROM blobs WHERE manifest = 1 ORDER BY n").fetchall()

    def blob_size(self, digest: bytes) -> int:
        """As `Catalog.blob_size`."""
        with self._database.read() as connection:
            row = connection.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        return 0 if row is None else int(row[0])

    def registration(self) -> tuple[bytes, bytes]:
        """The token and the ledger id of the last registration; empty where there was none."""
        return self._database.meta("token"), self._database.meta("ledger")

    def look(self) -> bool:
        """Whether another program has written since the last look."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.changed, 1 << 16)
        version = self._database.data_version()
        if version == self._version:
            return False
        self._version = version
        for id in [held.id for held in self._cache.values() if held.own]:  # noqa: A001
            self._forget(id)
        return True

    # ------------------------------------------------------------------------------------------- writes

    def keep(self, ended: Ended | None, values: Sequence[Held], *, durable: bool) -> None:
        """As `Shelf.keep`."""
        for held in values:
            self._values[held.id] = held
            if held.tags:
                self._tags_changed = True
        if ended is not None:
            self._ended[ended.id] = ended
            if durable:
                self._durable.append(ended.id)

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        for id in ids:  # noqa: A001
            waiting = self._ended.get(id)
            if waiting is None:
                self._recorded.append(id)
            else:
                self._ended[id] = Ended(id=id, event=waiting.event, outputs=waiting.outputs, recorded=True)

    def mark_unrecorded(self) -> None:
        """As `Shelf.mark_unrecorded`."""
        self._write()
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE commands SET recorded = 0")

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        for id in ids:  # noqa: A001
            held = self.find(id)
            if held is None or held.own:
                continue
            self._tags_changed = self._tags_changed or bool(held.tags)
            self._forget(id)
            if self._values.pop(id, None) is None:
                self._dropped[id] = None
            elif isinstance(held.source, str):
                Path(held.source).unlink(missing_ok=True)

    def keep_blob(self, digest: bytes, source: bytes | str, *, manifest: bool) -> None:
        """As `Shelf.keep_blob`."""
        data, size = None, 0
        if isinstance(source, str):
            path = Path(source)
            if path != self._blob_path(digest):
                if not path.exists():
                    return  # two plans have wanted it, and the other was first
                path.replace(self._blob_path(digest))
                self._sync(self.folder / "blobs")
            size = self._blob_path(digest).stat().st_size
        elif len(source) > INLINE_TENSORS_BYTES and not manifest:
            write_whole(self._blob_path(digest), [source])
            size = len(source)
        else:
            data, size = source, len(source)
        with self._database.transaction(durable=False) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO blobs (digest, data, size, manifest) VALUES (?, ?, ?, ?)",
                (digest, data, size, manifest),
            )

    def drop_blobs(self, digests: Iterable[bytes]) -> None:
        """As `Shelf.drop_blobs`."""
        digests = list(digests)
        with self._database.transaction(durable=False) as connection:
            connection.executemany("DELETE FROM blobs WHERE digest = ?", [(digest,) for digest in digests])
        for digest in digests:
            self._blob_path(digest).unlink(missing_ok=True)

    def save_registration(self, token: bytes, ledger: bytes) -> None:
        """Keep what the broker gave at registration. On the disk when this returns."""
        with self._database.transaction(durable=True) as connection:
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("token", token), ("ledger", ledger)])

    def adopt(self, id: bytes, source: bytes | str) -> Held:
        """Make the content of a tensor file the value ``id``, without writing the row yet: hand the result to `keep`.

        Another thread may call this. Raises `TensorRefused`, or OSError.
        """
        path = tensor_path(self.folder, id)
        if isinstance(source, bytes):
            found = header_of(source[: 1 << 17], len(source))
            write_whole(path, [source])
        else:
            found = read_header(source)
            # A link and not a move: the same blob may have been put under several ids at once.
            path.unlink(missing_ok=True)
            path.hardlink_to(source)
            self._sync(path.parent)
        return Held(id=id, dtype=found.dtype, shape=found.shape, nbytes=found.nbytes, source=str(path))

    def drop_files(self, paths: Iterable[str]) -> None:
        """Remove files that no row names."""
        for path in paths:
            Path(path).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------- commits

    @property
    def waiting(self) -> int:
        """How many writes are gathered."""
        return len(self._values) + len(self._ended) + len(self._recorded) + len(self._dropped)

    @property
    def must_commit(self) -> bool:
        """Whether something waits that must reach the disk before it is announced."""
        return bool(self._durable or self._kept)

    def commit(self) -> Committed:
        """Write what is gathered. Commands that could not be kept are forgotten; the rest is kept for the next time."""
        failed: tuple[bytes, ...] = ()
        failure = None
        if self.waiting:
            durable = list(self._durable)
            try:
                self._write()
            except (sqlite3.Error, OSError) as error:
                failed, failure = (
                    tuple(durable),
                    Failure(code="StoreFull", message=f"the store could not be written: {error}"),
                )
                self._durable.clear()
                for id in failed:  # noqa: A001
                    self._forget_pending(id)
        kept, self._kept = tuple(self._kept), []
        return Committed(kept, failed, failure)

    def _write_tags(self) -> None:
        if self._tags_changed:
            self._write()

    def _write(self) -> None:
        """Write all that is gathered; raises sqlite3.Error, and then all is as before."""
        if not self.waiting:
            return
        now = time.time()
        values = [held for held in self._values.values()]
        # The index names no file that is not there: results are synced by the worker, adopted files by `adopt`.
        with self._database.transaction(durable=bool(self._durable)) as connection:
            if values:
                connection.executemany(
                    "INSERT INTO tensors (id, own, dtype, shape, nbytes, frame, file, tags, description, blob, created)"
                    " VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET dtype = excluded.dtype,"
                    " shape = excluded.shape, nbytes = excluded.nbytes, frame = excluded.frame, file = excluded.file,"
                    " tags = excluded.tags, description = excluded.description, blob = excluded.blob WHERE own = 0",
                    [_row(held, now) for held in values],
                )
                tags = [(tag, held.id) for held in values for tag in set(held.tags)]
                if tags:
                    connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)
            if self._ended:
                connection.executemany(
                    "INSERT OR REPLACE INTO commands (id, event, outputs, recorded, ended) VALUES (?, ?, ?, ?, ?)",
                    [(one.id, _encode(one.event), one.outputs, one.recorded, now) for one in self._ended.values()],
                )
            if self._recorded:
                ids = [(id,) for id in self._recorded]  # noqa: A001
                connection.executemany("UPDATE commands SET recorded = 1 WHERE id = ?", ids)
            files = self._delete(connection)
        self.drop_files(files)
        for held in values:
            self._remember(held)
        for one in self._ended.values():
            self._see(one.id)
        self._kept += self._durable
        self._durable.clear()
        self._values.clear()
        self._ended.clear()
        self._recorded.clear()
        self._dropped.clear()
        self._tags_changed = False

    def _delete(self, connection: sqlite3.Connection) -> list[str]:
        if not self._dropped:
            return []
        ids = [(id,) for id in self._dropped]  # noqa: A001
        connection.executemany("DELETE FROM tensors WHERE id = ? AND own = 0", ids)
        connection.executemany("DELETE FROM tags WHERE id = ?", ids)
        return [str(tensor_path(self.folder, id)) for id in self._dropped]  # noqa: A001

    def _forget_pending(self, command: bytes) -> None:
        ended = self._ended.pop(command, None)
        if ended is None:
            return
        first = counter_of(command)
        session = incarnation_of(command)
        for held in list(self._values.values()):
            if incarnation_of(held.id) == session and first <= counter_of(held.id) < first + ended.outputs:
                del self._values[held.id]
                if isinstance(held.source, str):
                    Path(held.source).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------- the cache

    def _remember(self, held: Held) -> None:
        if held.id in self._cache:
            self._forget(held.id)
        self._cache[held.id] = held
        self._cache_bytes += _weight(held)
        while len(self._cache) > _CACHE_VALUES or self._cache_bytes > _CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= _weight(oldest)

    def _forget(self, id: bytes) -> None:
        held = self._cache.pop(id, None)
        if held is not None:
            self._cache_bytes -= _weight(held)

    def _see(self, id: bytes) -> None:
        session = incarnation_of(id)
        highest = self._highest.get(session)
        if highest is not None and highest < counter_of(id):
            self._highest[session] = counter_of(id)

    def _highest_of(self, session: bytes) -> int:
        highest = self._highest.get(session)
        if highest is None:
            with self._database.read() as connection:
                (last,) = connection.execute(
                    "SELECT max(id) FROM commands WHERE id BETWEEN ? AND ?", (session + bytes(8), session + b"\xff" * 8)
                ).fetchone()
            highest = self._highest[session] = -1 if last is None else counter_of(bytes(last))
            if len(self._highest) > _CACHE_SESSIONS:
                self._highest.popitem(last=False)
        return highest

    # ------------------------------------------------------------------------------------------- files

    def _held(self, row: tuple[Any, ...]) -> Held:
        id, own, dtype, shape, nbytes, frame, _file, tags, description, blob = row  # noqa: A001
        source = str(tensor_path(self.folder, id)) if frame is None else bytes(frame)
        return Held(
            id=bytes(id),
            dtype=dtype,
            shape=_shapes.decode(shape),
            nbytes=nbytes,
            source=source,
            tags=_texts.decode(tags),
            description=description,
            own=bool(own),
            blob=blob,
        )

    def _blob_path(self, digest: bytes) -> Path:
        return self.folder / "blobs" / digest.hex()

    def _sync(self, folder: Path) -> None:
        if self._database.durable:
            sync_folder(folder)

    def _remove_orphans(self) -> None:
        """Remove files that no row names: of writes that a crash has cut off. Young ones may be somebody's who is just writing."""
        before = time.time() - _ORPHAN_SECONDS
        with self._database.read() as connection:
            named = {
                tensor_path(self.folder, id).name for (id,) in connection.execute("SELECT id FROM tensors WHERE file")
            }  # noqa: A001
            named |= {digest.hex() for (digest,) in connection.execute("SELECT digest FROM blobs WHERE data IS NULL")}
        for folder in (self.folder / "tensors", self.folder / "blobs"):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.name not in named and path.stat().st_mtime < before:
                        path.unlink()

    def close(self) -> None:
        """Write what is gathered, and let go of the store."""
        with contextlib.suppress(sqlite3.Error):  # what was not announced as kept may be lost
            self._write()
        os.close(self.changed)
        self._database.close()
        self._lock.close()


def _weight(held: Held) -> int:
    return len(held.source) + 256


def _row(held: Held, now: float) -> tuple[object, ...]:
    frame = held.source if isinstance(held.source, bytes) else None
    shape, tags = _encode(held.shape), _encode(held.tags)
    return held.id, held.dtype, shape, held.nbytes, frame, frame is None, tags, held.description, held.blob, now


def _ended(row: tuple[Any, ...]) -> Ended:
    id, event, outputs, recorded = row  # noqa: A001
    return Ended(id=bytes(id), event=_events.decode(event), outputs=outputs, recorded=bool(recorded))


def _tag_entry(row: tuple[Any, ...]) -> TagEntry:
    id, tags, description, dtype, shape, nbytes = row  # noqa: A001
    info = ResultInfo(dtype=dtype, shape=list(_shapes.decode(shape)), nbytes=nbytes)
    return TagEntry(id=bytes(id), tags=list(_texts.decode(tags)), description=description, info=info)
