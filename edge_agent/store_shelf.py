"""The store as the agent uses it: `edge_agent.catalog.Shelf` on disk.

Writes are gathered, and written together by a thread of their own (`edge_agent.store_writes`). What the agent asks
for is answered from the gathered writes and a cache of what was lately used, so the fast path seldom reaches SQLite.
What must survive is on the disk before it is announced, the rest a little later (an inline result is on record at the
broker anyway).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from broker.protocol.ids import counter_of, incarnation_of
from broker.protocol.messages import INLINE_TENSORS_BYTES, Event, ResultInfo, TagEntry
from edge_agent.catalog import Ended, Held
from edge_agent.store_database import Database, StoreInUse
from edge_agent.store_writes import Batch, Writer, Written, written
from edge_agent.tensor_files import read_header, sync_folder, tensor_path, write_whole
from edge_agent.tensor_format import header_of

__all__ = ["StoreShelf"]

_CACHE_VALUES = 4096
_CACHE_BYTES = 4 << 20
_CACHE_SESSIONS = 1024
_ORPHAN_SECONDS = 3600.0
_TAGGED = "id, tags, description, dtype, shape, nbytes"
_VALUE = "id, own, dtype, shape, nbytes, frame, file, tags, description, blob"

_shapes = msgspec.msgpack.Decoder(tuple[int, ...])
_texts = msgspec.msgpack.Decoder(tuple[str, ...])
_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class StoreShelf:
    """A `Shelf` on the store in ``folder``. Of one thread.

    ``wake`` is called, on another thread, when a batch is over: time for `commit`. Raises `StoreInUse` if another
    agent has the store, and what `Database` raises.
    """

    def __init__(self, folder: Path, *, durable: bool = True, wake: Callable[[], None] | None = None) -> None:
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
        self._changes = self._database.changes()
        self._pending = Batch()
        self._writing: Batch | None = None  # on its way to the disk, by the writer
        self._written: queue.SimpleQueue[Written] = queue.SimpleQueue()
        self._ends: list[Written] = []  # of batches that are over, and that `commit` has not told of yet
        self._writer = Writer(folder, durable=durable, done=self._batch_written)
        self._wake = wake
        self._cache: OrderedDict[bytes, Held] = OrderedDict()
        self._cache_bytes = 0
        self._highest: OrderedDict[bytes, int] = (
            OrderedDict()
        )  # incarnation to the highest counter of its ended commands
        self._remove_orphans()

    # ------------------------------------------------------------------------------------------- questions

    def find(self, id: bytes) -> Held | None:
        """As `Catalog.find`."""
        held = self._pending.values.get(id)
        if held is not None:
            return held
        held = self._cache.get(id)
        if held is not None:
            self._cache.move_to_end(id)
            return held
        writing = self._writing
        if id in self._pending.dropped:
            return None
        if writing is not None:
            if (held := writing.values.get(id)) is not None:
                return held
            if id in writing.dropped:
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
        for batch in (self._pending, self._writing):
            if batch is not None and (waiting := batch.ended.get(id)) is not None:
                return waiting
        # A session counts its ids upwards: what is beyond the highest one seen is new, and costs no question.
        if counter_of(id) > self._highest_of(incarnation_of(id)):
            return None
        with self._database.read() as connection:
            row = connection.execute("SELECT id, event, outputs, recorded FROM commands WHERE id = ?", (id,)).fetchone()
        return None if row is None else _ended(row)

    def with_tags(self, tags: Sequence[str]) -> list[Held]:
        """As `Catalog.with_tags`; at most two are returned, which is enough to know that it is not one."""
        self._settle_tags()
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
        self._settle_tags()
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_TAGGED} FROM tensors WHERE id IN (SELECT id FROM tags) ORDER BY rowid"  # noqa: S608
            ).fetchall()
        return [_tag_entry(row) for row in rows]

    def unrecorded(self) -> list[Ended]:
        """As `Catalog.unrecorded`."""
        self._settle()
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
        """Whether another program has put or deleted something since the last look."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.changed, 1 << 16)
        version = self._database.data_version()
        if version == self._version:
            return False
        self._version = version
        changes = self._database.changes()
        if changes == self._changes:
            return False  # it was our own writer
        self._changes = changes
        for id in [held.id for held in self._cache.values() if held.own]:
            self._forget(id)
        return True

    # ------------------------------------------------------------------------------------------- writes

    def keep(self, ended: Ended | None, values: Sequence[Held], *, durable: bool) -> None:
        """As `Shelf.keep`."""
        pending = self._pending
        for held in values:
            pending.values[held.id] = held
            if held.tags:
                pending.tags_changed = True
        if ended is not None:
            pending.ended[ended.id] = ended
            if durable:
                pending.durable.append(ended.id)

    def mark_recorded(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.mark_recorded`."""
        ended = self._pending.ended
        for command in ids:
            waiting = ended.get(command)
            if waiting is None:
                self._pending.recorded.append(command)
            else:
                ended[command] = Ended(id=command, event=waiting.event, outputs=waiting.outputs, recorded=True)

    def mark_unrecorded(self) -> None:
        """As `Shelf.mark_unrecorded`."""
        self._settle()
        with self._database.transaction(durable=True) as connection:
            connection.execute("UPDATE commands SET recorded = 0")

    def drop(self, ids: Iterable[bytes]) -> None:
        """As `Shelf.drop`."""
        pending = self._pending
        for value in ids:
            held = self.find(value)
            if held is None or held.own:
                continue
            pending.tags_changed = pending.tags_changed or bool(held.tags)
            self._forget(value)
            if pending.values.pop(value, None) is None:
                pending.dropped[value] = None
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
        """How many writes are gathered, and not handed to the writer yet."""
        return len(self._pending)

    @property
    def must_commit(self) -> bool:
        """Whether `commit` has something to do that must not be put off."""
        return bool(self._pending.durable) or not self._written.empty() or bool(self._ends)

    def commit(self) -> list[Written]:
        """Hand what is gathered to the writer, unless it is busy; and tell what it has finished since the last time."""
        self._collect()
        if self._writing is None and len(self._pending):
            self._writing, self._pending = self._pending, Batch()
            self._writer.write(self._writing)
        ends, self._ends = self._ends, []
        return ends

    def _batch_written(self, end: Written) -> None:
        """Called by the writer, on its thread."""
        self._written.put(end)
        if self._wake is not None:
            self._wake()

    def _collect(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._over(self._written.get_nowait())

    def _over(self, end: Written) -> None:
        """A batch is over: what it wrote may be forgotten, or must be."""
        self._writing = None
        self._ends.append(end)
        if end.failure is None:
            for held in end.batch.values.values():
                if held.id not in self._pending.dropped:
                    self._remember(held)
            for command in end.batch.ended:
                self._see(command)
            return
        # What was announced without waiting stays on record at the broker; what was to be on the disk first has failed.
        for held in end.batch.values.values():
            if isinstance(held.source, str):
                Path(held.source).unlink(missing_ok=True)

    def _settle(self) -> None:
        """Wait until all that is gathered is written: for a question that only the index can answer."""
        if self._writing is not None:
            self._over(self._written.get())
        if len(self._pending):
            batch, self._pending = self._pending, Batch()
            self._over(written(batch, self._database))

    def _settle_tags(self) -> None:
        if self._pending.tags_changed or (self._writing is not None and self._writing.tags_changed):
            self._settle()

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
        id, own, dtype, shape, nbytes, frame, _file, tags, description, blob = row
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
        """Remove files that no row names: of writes that a crash has cut off. Young ones may be somebody's who is
        just writing.
        """
        before = time.time() - _ORPHAN_SECONDS
        with self._database.read() as connection:
            named = {
                tensor_path(self.folder, id).name for (id,) in connection.execute("SELECT id FROM tensors WHERE file")
            }
            named |= {digest.hex() for (digest,) in connection.execute("SELECT digest FROM blobs WHERE data IS NULL")}
        for folder in (self.folder / "tensors", self.folder / "blobs"):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.name not in named and path.stat().st_mtime < before:
                        path.unlink()

    def close(self) -> None:
        """Write what is gathered, and let go of the store."""
        self._settle()
        self._writer.close()
        os.close(self.changed)
        self._database.close()
        self._lock.close()


def _weight(held: Held) -> int:
    return len(held.source) + 256


def _ended(row: tuple[Any, ...]) -> Ended:
    id, event, outputs, recorded = row
    return Ended(id=bytes(id), event=_events.decode(event), outputs=outputs, recorded=bool(recorded))


def _tag_entry(row: tuple[Any, ...]) -> TagEntry:
    id, tags, description, dtype, shape, nbytes = row
    info = ResultInfo(dtype=dtype, shape=list(_shapes.decode(shape)), nbytes=nbytes)
    return TagEntry(id=bytes(id), tags=list(_texts.decode(tags)), description=description, info=info)
