"""Where a blob comes from and where it goes, on this side of a blob channel: bytes in memory, or a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from broker.protocol.messages import Frame

__all__ = ["FileSink", "FileSource", "MemorySink", "MemorySource", "Sink", "Source", "open_source"]


class Source(Protocol):
    """A blob to read."""

    size: int

    def read(self, offset: int, length: int) -> Frame:
        """Raises OSError when the bytes are not there any longer."""

    def close(self) -> None:
        """Let go of it."""


class MemorySource:
    """A blob in memory."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._view = memoryview(data)

    def read(self, offset: int, length: int) -> Frame:
        """A view, not a copy."""
        return self._view[offset : offset + length]

    def close(self) -> None:
        """Nothing to close."""


class FileSource:
    """A blob in a file, held open, so that it can be read to the end even when it is deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, length: int) -> Frame:
        """Raises OSError when the file was cut."""
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) != length:
            raise OSError(f"expected {length} bytes at {offset}, got {len(data)}: the file was cut")
        return data

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def open_source(source: bytes | Path) -> Source:
    """What to read from. Raises OSError for a file that can't be opened."""
    return FileSource(source) if isinstance(source, Path) else MemorySource(source)


class Sink(Protocol):
    """Where a blob is written, from its beginning on. ``offset``: how many bytes are there."""

    offset: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are there."""

    def write(self, data: Frame) -> None:
        """Append. Raises OSError, when the disk is full, say."""

    def truncate(self) -> None:
        """Begin again at byte 0."""

    def finish(self) -> Path | bytes:
        """All is there and verified: make it durable. Raises OSError."""

    def close(self, *, keep: bool) -> None:
        """End without the whole blob; ``keep``: leave what came for another time, where that can be."""


class MemorySink:
    """A blob that comes into memory."""

    def __init__(self) -> None:
        self.offset = 0
        self._data = bytearray()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are there."""
        return bytes(self._data[offset : offset + length])

    def write(self, data: Frame) -> None:
        """Append."""
        self._data += data
        self.offset = len(self._data)

    def truncate(self) -> None:
        """Begin again at byte 0."""
        self._data.clear()
        self.offset = 0

    def finish(self) -> bytes:
        """The whole."""
        return bytes(self._data)

    def close(self, *, keep: bool) -> None:  # noqa: ARG002  (memory keeps nothing for another time)
        """Drop what came."""
        self._data.clear()


class FileSink:
    """A blob that comes into a file, ``<name>.part`` beside it until it is whole; what is in there is taken up."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("a+b", buffering=0)
        self.offset = os.fstat(self._file.fileno()).st_size
        if self.offset > size:
            self.truncate()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are there."""
        return os.pread(self._file.fileno(), length, offset)

    def write(self, data: Frame) -> None:
        """Append. Raises OSError; what was there before is good still."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError:
            self._file.truncate(self.offset)
            raise
        self.offset += len(data)

    def truncate(self) -> None:
        """Begin again at byte 0."""
        self._file.truncate(0)
        self.offset = 0

    def finish(self) -> Path:
        """Sync the file, give it its name, sync the folder."""
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._file.close()
        return self._path

    def close(self, *, keep: bool) -> None:
        """Let go of the file; drop it unless ``keep``."""
        self._file.close()
        if not keep:
            self._part.unlink(missing_ok=True)
