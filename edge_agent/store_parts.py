"""Parts of plans in the store: small ones in its index, large ones as files, each named by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from broker.protocol.messages import INLINE_TENSORS_BYTES
from edge_agent.store_database import Database
from edge_agent.store_writes import Batch, Blob

__all__ = ["Parts"]


class Parts:
    """What the index and the gathered ``batches`` have of them, the youngest of these first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def path(self, digest: bytes) -> Path:
        """Where the file of a large one is."""
        return self._database.folder / "blobs" / digest.hex()

    def find(self, digest: bytes, batches: Iterable[Batch]) -> tuple[bytes | str | None, bool]:
        """Its bytes, or the path of its file; and whether the index has something else in its place."""
        for batch in batches:
            if (waiting := batch.blobs.get(digest)) is not None:
                return (waiting.data if waiting.data is not None else str(self.path(digest))), False
            if digest in batch.dropped_blobs:
                return None, False
        with self._database.read() as connection, self._database.whole():
            row = connection.execute("SELECT data FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None, False
        if row[0] is None:
            return str(self.path(digest)), False
        if hashlib.sha256(row[0]).digest() == digest:
            return bytes(row[0]), False
        return None, True

    def manifests(self) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
        """All manifests in the index, in the order in which they came; and the digests of those that are damaged."""
        with self._database.read() as connection, self._database.whole():
            rows = connection.execute("SELECT digest, data FROM blobs WHERE manifest = 1 ORDER BY n").fetchall()
        found: list[tuple[bytes, bytes]] = []
        damaged: list[bytes] = []
        for digest, data in rows:
            if data is not None and hashlib.sha256(data).digest() == digest:
                found.append((bytes(digest), bytes(data)))
            else:
                damaged.append(bytes(digest))
        return found, damaged

    def others(self) -> list[bytes]:
        """The digests of all parts in the index that are no manifests, in the order in which they came."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT digest FROM blobs WHERE manifest = 0 ORDER BY n").fetchall()
        return [bytes(digest) for (digest,) in rows]

    def size(self, digest: bytes, batches: Iterable[Batch]) -> int:
        """How large it is; 0 if it is not there."""
        for batch in batches:
            if (waiting := batch.blobs.get(digest)) is not None:
                return waiting.size
            if digest in batch.dropped_blobs:
                return 0
        with self._database.read() as connection:
            row = connection.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        return 0 if row is None else int(row[0])

    def take(self, digest: bytes, source: bytes | str, *, manifest: bool) -> Blob:
        """Make a part ready to be written. A file gets a second name here: it may be wanted as a tensor as well. Raises
        OSError.
        """
        if isinstance(source, bytes):
            inline = manifest or len(source) <= INLINE_TENSORS_BYTES
            return Blob(source, len(source), manifest, inline=inline)
        path, target = Path(source), self.path(digest)
        if path != target:
            self._database.disk.link(path, target)
        return Blob(None, target.stat().st_size, manifest, inline=False)
