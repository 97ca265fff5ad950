"""Where the broker keeps blobs: `DirectoryBlobs`, a folder of files, and `MemoryBlobs`, for embedded brokers and tests.

Both are a `broker.ledger.blob_store.BlobStore`; its names can be had from here too.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from broker.ledger.blob_store import (
    QUOTA_BYTES,
    BlobAltered,
    BlobError,
    BlobMissing,
    BlobStore,
    BlobStoreFull,
    Partial,
)
from broker.protocol.ids import DIGEST_BYTES
from broker.protocol.messages import Frame

__all__ = [
    "BlobAltered",
    "BlobError",
    "BlobMissing",
    "BlobStore",
    "BlobStoreFull",
    "DirectoryBlobs",
    "MemoryBlobs",
    "Partial",
]

SPILL_BYTES = 1 << 20
"""`MemoryBlobs` keeps what is larger than this in files."""

PARTIAL_LIFE_SECONDS = 7 * 24 * 3600.0
"""What came of a blob and was not taken up again for so long is dropped at a start."""

_PROVE_BYTES = 1 << 20

_NAME = re.compile(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}")


class DirectoryBlobs(BlobStore):
    """Blobs as files in ``folder``, named by their digests in hex. What is coming in ends in ``.part`` until whole.

    A start takes up what is there, oldest first in line for eviction, and drops what a crash left half written. A file
    is read whole before anything of it is given away, once and whenever it was changed: altered bytes are never served.
    ``sync`` False leaves syncing to the system, and trusts it: for what need not survive.
    """

    def __init__(self, folder: Path | str, *, quota: int = QUOTA_BYTES, sync: bool = True) -> None:
        super().__init__(quota=quota)
        self.folder = Path(folder)
        new = not self.folder.is_dir()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sync = sync
        if new:
            self._sync_names(self.folder.parent)
        self._proven: dict[bytes, tuple[int, ...]] = {}  # the files that were read whole, as they were then
        self._count = itertools.count()
        self._scan()

    def path(self, digest: bytes) -> Path:
        """The file of a blob, there or not."""
        return self.folder / digest.hex()

    def _scan(self) -> None:
        found: list[tuple[int, bytes, int]] = []
        parts: list[tuple[int, bytes, int]] = []
        oldest = time.time() - PARTIAL_LIFE_SECONDS
        for path in self.folder.iterdir():
            stem, dot, ending = path.name.partition(".")
            if not _NAME.fullmatch(stem) or not path.is_file():
                continue
            stat = path.stat()
            if not dot:
                found.append((stat.st_mtime_ns, bytes.fromhex(stem), stat.st_size))
            elif ending == "part" and stat.st_mtime >= oldest:
                parts.append((stat.st_mtime_ns, bytes.fromhex(stem), stat.st_size))
            elif ending == "part" or ending.endswith("tmp"):
                path.unlink()
        self._sizes.update((digest, size) for _, digest, size in sorted(found))
        self._used = sum(self._sizes.values())
        self._parked.update((digest, size) for _, digest, size in sorted(parts))
        if found:  # a store that was killed may have given a name, and not have synced it: commits may name it now
            self.sync_folder()

    def sync_folder(self) -> None:
        """Make names durable that were given or taken in the folder."""
        self._sync_names(self.folder)

    def _sync_names(self, folder: Path) -> None:
        if self._sync:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def sync_file(self, descriptor: int) -> None:
        """Make a file's bytes durable."""
        if self._sync:
            os.fsync(descriptor)

    def _read(self, digest: bytes, offset: int, length: int) -> bytes:
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY)
        except FileNotFoundError:  # evicted a moment ago, or taken away under us
            with self._lock:
                self._drop(digest)
            raise BlobMissing(digest) from None
        try:
            if self._sync:
                self._prove(digest, descriptor)
            data = os.pread(descriptor, length, offset)
            while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
                data += more
        finally:
            os.close(descriptor)
        if len(data) < length:  # cut since the start
            with self._lock:
                self._drop(digest)
            raise BlobMissing(digest)
        return data

    def _prove(self, digest: bytes, descriptor: int) -> None:
        """Read all of a file, once and whenever it was written to: are these the bytes that it is named by?"""
        stat = os.fstat(descriptor)
        identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if self._proven.get(digest) == identity:
            return
        found = hashlib.sha256()
        offset = 0
        while data := os.pread(descriptor, _PROVE_BYTES, offset):
            found.update(data)
            offset += len(data)
        if found.digest() != digest:
            with self._lock:
                self._drop(digest)
            self.on_altered(digest)
            raise BlobMissing(digest)
        self._proven[digest] = identity

    def _write(self, blobs: dict[bytes, Frame]) -> None:
        written: list[tuple[Path, Path]] = []
        try:
            for digest, data in blobs.items():
                temporary = self.folder / f"{digest.hex()}.{next(self._count)}.tmp"
                written.append((temporary, self.path(digest)))
                with temporary.open("wb", buffering=0) as file:
                    _write_all(file.fileno(), data)
                    self.sync_file(file.fileno())
            for temporary, final in written:
                temporary.replace(final)
            self.sync_folder()
        except BaseException:
            for temporary, _ in written:
                temporary.unlink(missing_ok=True)
            raise

    def _begin(self, digest: bytes, size: int) -> Partial:
        return _PartialFile(self, digest, size)

    def _remove(self, digest: bytes) -> None:
        self._proven.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)

    def part(self, digest: bytes) -> Path:
        """The file of a blob that is coming in, there or not."""
        return self.folder / f"{digest.hex()}.part"

    def _discard(self, digest: bytes) -> None:
        self.part(digest).unlink(missing_ok=True)


class _PartialFile(Partial):
    def __init__(self, store: DirectoryBlobs, digest: bytes, size: int) -> None:
        super().__init__(store, digest, size)
        self._folder = store
        self._path = store.part(digest)
        self._file = self._path.open("a+b", buffering=0)
        self.offset = os.fstat(self._file.fileno()).st_size
        if self.offset > size:
            self.truncate()

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def write(self, data: Frame) -> None:
        try:
            _write_all(self._file.fileno(), data)
        except OSError:
            with contextlib.suppress(OSError):  # the beginning is good still; it is the first error that counts
                self._file.truncate(self.offset)
            raise
        self.offset += len(data)

    def truncate(self) -> None:
        self._file.truncate(0)
        self.offset = 0

    def _seal(self) -> None:
        self._folder.sync_file(self._file.fileno())
        self._path.replace(self._folder.path(self.digest))
        self._folder.sync_folder()
        self._file.close()

    def _leave(self, *, keep: bool) -> None:
        self._file.close()
        if not keep:
            self._path.unlink(missing_ok=True)


def _write_all(descriptor: int, data: Frame) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class MemoryBlobs(BlobStore):
    """Blobs in memory; those of more than ``spill`` bytes in a temporary folder that goes with the store."""

    def __init__(self, *, quota: int = QUOTA_BYTES, spill: int = SPILL_BYTES) -> None:
        super().__init__(quota=quota)
        self._spill_bytes = spill
        self._held: dict[bytes, bytes] = {}
        self._remove_folder: Callable[[], object] | None = None
        self._files: DirectoryBlobs | None = None

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._held.clear()
            self._sizes.clear()
            self._pins.clear()
            self._parked.clear()
            self._used = 0
            remove, self._remove_folder, self._files = self._remove_folder, None, None
        if remove is not None:
            remove()

    def _spilled(self) -> DirectoryBlobs:
        with self._lock:
            if self._files is None:
                folder = tempfile.mkdtemp(prefix="edgeplan-blobs-")
                self._remove_folder = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._files = DirectoryBlobs(folder, quota=1 << 62, sync=False)  # ours
            return self._files

    def _read(self, digest: bytes, offset: int, length: int) -> bytes:
        with self._lock:
            held, files = self._held.get(digest), self._files
        if held is not None:
            return held[offset : offset + length]
        if files is None:
            raise BlobMissing(digest)
        return files.read(digest, offset, length)

    def _write(self, blobs: dict[bytes, Frame]) -> None:
        large = {digest: data for digest, data in blobs.items() if len(data) > self._spill_bytes}
        if large:
            self._spilled().put_many(list(large.values()), list(large))
        with self._lock:
            self._held.update({digest: bytes(data) for digest, data in blobs.items() if digest not in large})

    def hold(self, digest: bytes, data: bytes) -> None:
        """For the partial of a small blob: keep its bytes."""
        with self._lock:
            self._held[digest] = data

    def _begin(self, digest: bytes, size: int) -> Partial:
        if size > self._spill_bytes:
            return _SpilledPartial(self, self._spilled().begin(digest, size))
        return _HeldPartial(self, digest, size)

    def _remove(self, digest: bytes) -> None:
        if self._held.pop(digest, None) is None and self._files is not None:
            self._files.delete(digest)

    def _discard(self, digest: bytes) -> None:
        if self._files is not None:
            self._files.part(digest).unlink(missing_ok=True)


class _HeldPartial(Partial):
    def __init__(self, store: MemoryBlobs, digest: bytes, size: int) -> None:
        super().__init__(store, digest, size)
        self._memory = store
        self._data = bytearray()

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def write(self, data: Frame) -> None:
        self._data += data
        self.offset = len(self._data)

    def truncate(self) -> None:
        self._data.clear()
        self.offset = 0

    def _seal(self) -> None:
        self._memory.hold(self.digest, bytes(self._data))
        self._data.clear()

    def _leave(self, *, keep: bool) -> None:  # noqa: ARG002  (memory keeps nothing for another time)
        self._data.clear()
        self.offset = 0


class _SpilledPartial(Partial):
    def __init__(self, store: MemoryBlobs, inner: Partial) -> None:
        super().__init__(store, inner.digest, inner.size)
        self._inner = inner
        self.offset = inner.offset

    def read(self, offset: int, length: int) -> bytes:
        return self._inner.read(offset, length)

    def write(self, data: Frame) -> None:
        self._inner.write(data)
        self.offset = self._inner.offset

    def truncate(self) -> None:
        self._inner.truncate()
        self.offset = 0

    def _seal(self) -> None:
        self._inner.commit()

    def _leave(self, *, keep: bool) -> None:
        if keep:
            self._inner.close()
        else:
            self._inner.abandon()
