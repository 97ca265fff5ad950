"""What a store of blobs does, whatever it keeps them in (see `broker.ledger.blobs` for what there is).

A blob is named by the SHA-256 of its bytes, and stored once, whole or not at all. A store keeps within a quota: the
blobs that were not read for longest go first, and never one that is pinned. A pin has a name (of the command that needs
the blob, say); the store does not remember pins, so whoever pins does it again at a start, before storing anything new.

Any thread may call. No lock is held while a file is written, so a command that asks `BlobStore.has` never waits for a
disk that syncs.

::

    EdgePlanError
    └── BlobError
        ├── BlobMissing      no such blob
        ├── BlobAltered      the bytes do not have the digest that names them
        └── BlobStoreFull    it does not fit, even after eviction of all that may go
"""

from __future__ import annotations

import abc
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from broker.protocol.errors import EdgePlanError
from broker.protocol.messages import Frame

__all__ = [
    "BlobAltered",
    "BlobError",
    "BlobMissing",
    "BlobStore",
    "BlobStoreFull",
    "Partial",
    "QUOTA_BYTES",
]

QUOTA_BYTES = 64 << 30
"""How much a store keeps by default: 64 GiB."""


class BlobError(EdgePlanError):
    """A blob cannot be had or kept. ``digest`` names it."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        super().__init__(digest)


class BlobMissing(BlobError):
    """There is no such blob, or no longer."""

    def __str__(self) -> str:
        return f"there is no blob {self.digest.hex()}"


class BlobAltered(BlobError):
    """The bytes do not have the digest that names them."""

    def __init__(self, digest: bytes, got: bytes) -> None:
        super().__init__(digest)
        self.got = got

    def __str__(self) -> str:
        return f"expected bytes with the SHA-256 {self.digest.hex()}, got {self.got.hex()}"


class BlobStoreFull(BlobError):
    """A blob of ``size`` bytes does not fit into ``quota`` bytes, of which ``held`` may not be evicted."""

    def __init__(self, digest: bytes, size: int, quota: int, held: int) -> None:
        super().__init__(digest)
        self.size = size
        self.quota = quota
        self.held = held

    def __str__(self) -> str:
        return (
            f"expected room for a blob of {self.size} bytes, got a quota of {self.quota} bytes "
            f"with {self.held} bytes pinned or coming in"
        )


class Partial(abc.ABC):
    """A blob that is coming in: its beginning. One thread at a time uses it.

    End it by `commit`, `abandon`, or `close`, which keeps what came for another time.
    """

    def __init__(self, store: BlobStore, digest: bytes, size: int) -> None:
        self.store = store
        self.digest = digest
        self.size = size
        self.offset = 0
        """How many bytes are there."""

    @abc.abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are there already."""

    @abc.abstractmethod
    def write(self, data: Frame) -> None:
        """Append. Raises OSError, when the disk is full, say."""

    @abc.abstractmethod
    def truncate(self) -> None:
        """Forget what came, and begin again at byte 0."""

    @abc.abstractmethod
    def _seal(self) -> None:
        """Make what came durable, under its final name."""

    @abc.abstractmethod
    def _leave(self, *, keep: bool) -> None:
        """Let go of files and memory."""

    def commit(self) -> None:
        """All bytes are there and verified: from here on the store has the blob, also after a power cut.

        Raises OSError when the disk does not take it; the partial is then still open.
        """
        if self.offset != self.size:
            raise ValueError(f"expected {self.size} bytes of blob {self.digest.hex()}, got {self.offset}")
        self._seal()
        self.store.settle(self.digest, self.size, self.digest)

    def close(self) -> None:
        """Keep what came, where the store can: a later `BlobStore.begin` goes on from there."""
        self._leave(keep=True)
        self.store.unreserve(self.digest, parked=self.offset)

    def abandon(self) -> None:
        """Drop what came."""
        self._leave(keep=False)
        self.store.unreserve(self.digest)


class BlobStore(abc.ABC):
    """What a store of blobs does, whatever it keeps them in. ``quota`` in bytes, what is coming in included."""

    def __init__(self, *, quota: int = QUOTA_BYTES) -> None:
        self.quota = quota
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._pins: dict[bytes, set[str]] = {}
        self._kept_for_now: set[bytes] = set()  # kept for a moment, for who decides whether to pin them
        self._reserved: dict[bytes, int] = {}  # what is coming in
        self._parked: OrderedDict[bytes, int] = OrderedDict()  # what came of some, kept for another time; oldest first
        self._used = 0  # of _sizes
        self.on_altered: Callable[[bytes], object] = lambda _: None
        """Called with the digest of a blob whose bytes were found altered; it is here no longer. From any thread."""

    # ------------------------------------------------------------------------------------------ asking

    def has(self, digest: bytes) -> bool:
        """Is this blob here, whole?"""
        with self._lock:
            return digest in self._sizes

    def size(self, digest: bytes) -> int | None:
        """Its size in bytes; None: it is not here."""
        with self._lock:
            return self._sizes.get(digest)

    def keep_for_now(self, digest: bytes) -> int | None:
        """As `size`; and the blob is not evicted before `let_go`, so that it is still here when it is pinned."""
        with self._lock:
            size = self._sizes.get(digest)
            if size is not None:
                self._kept_for_now.add(digest)
            return size

    def let_go(self) -> None:
        """What was kept for now is kept no longer, but for what has been pinned."""
        if self._kept_for_now:
            with self._lock:
                self._kept_for_now.clear()

    def lacking(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of ``digests`` that are not here, in their order, each once."""
        with self._lock:
            return [digest for digest in dict.fromkeys(digests) if digest not in self._sizes]

    @property
    def count(self) -> int:
        """How many blobs are here."""
        with self._lock:
            return len(self._sizes)

    @property
    def used(self) -> int:
        """The bytes of all blobs here, those that are coming in not counted."""
        with self._lock:
            return self._used

    def read(self, digest: bytes, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes from ``offset`` on, by default to the end. Raises `BlobMissing`; ValueError out of range.

        A blob whose bytes are not those that were stored is missing, and can be stored anew.
        """
        with self._lock:
            size = self._sizes.get(digest)
            if size is None:
                raise BlobMissing(digest)
            self._sizes.move_to_end(digest)
        if length is None:
            length = size - offset
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"expected a range within the blob's {size} bytes, got {offset} to {offset + length}")
        return self._read(digest, offset, length)

    # ------------------------------------------------------------------------------------------ keeping

    def put_bytes(self, data: Frame, digest: bytes | None = None) -> bytes:
        """Store a small blob, durably; its digest.

        Raises `BlobAltered` if ``digest`` is given and is not its digest, `BlobStoreFull`, OSError.
        """
        return self.put_many([data], None if digest is None else [digest])[0]

    def put_many(self, blobs: Sequence[Frame], digests: Sequence[bytes] | None = None) -> list[bytes]:
        """As `put_bytes`, with one sync of the folder for all. Every one is verified before any is stored."""
        found = [hashlib.sha256(data).digest() for data in blobs]
        for given, got in zip(digests if digests is not None else found, found, strict=True):
            if given != got:
                raise BlobAltered(given, got)
        new = {digest: data for digest, data in zip(found, blobs, strict=True) if not self.has(digest)}
        tickets: list[bytes] = []  # a reservation under a name of its own: the same blob may be coming in as a partial
        try:
            for digest, data in new.items():
                ticket = os.urandom(16)
                self._reserve(digest, len(data), ticket)
                tickets.append(ticket)
            if new:
                self._write(new)
            for ticket, (digest, data) in zip(tickets, new.items(), strict=True):
                self.settle(digest, len(data), ticket)
        finally:
            for ticket in tickets:
                self.unreserve(ticket)
        return found

    def begin(self, digest: bytes, size: int) -> Partial:
        """Take in a blob piece by piece: what came of it earlier, and where to go on.

        One at a time for each digest. Raises `BlobStoreFull`, OSError; ValueError when it is coming in already.
        """
        self._reserve(digest, size, digest)
        try:
            return self._begin(digest, size)
        except BaseException:
            self.unreserve(digest)
            raise

    def delete(self, digest: bytes) -> bool:
        """Drop a blob, pinned or not; False: it was not here."""
        with self._lock:
            return self._drop(digest)

    def pin(self, name: str, digests: Iterable[bytes]) -> list[bytes]:
        """Keep these from eviction, in the name of ``name``; those that are not here, and so not pinned. Idempotent."""
        missing = []
        with self._lock:
            for digest in digests:
                if digest in self._sizes:
                    self._pins.setdefault(digest, set()).add(name)
                else:
                    missing.append(digest)
        return missing

    def unpin(self, name: str, digests: Iterable[bytes] | None = None) -> None:
        """Take back the pins of ``name``: those on ``digests``, or all. Idempotent."""
        with self._lock:
            for digest in list(self._pins) if digests is None else digests:
                names = self._pins.get(digest)
                if names is not None:
                    names.discard(name)
                    if not names:
                        del self._pins[digest]

    def pins(self, digest: bytes) -> int:
        """In how many names the blob is pinned."""
        with self._lock:
            return len(self._pins.get(digest, ()))

    def close(self) -> None:  # noqa: B027  (a store may have nothing to close)
        """Let go of what a process holds. What is durable stays."""

    # ------------------------------------------------------------------------------------------ for the two kinds

    @abc.abstractmethod
    def _read(self, digest: bytes, offset: int, length: int) -> bytes: ...

    @abc.abstractmethod
    def _write(self, blobs: dict[bytes, Frame]) -> None: ...

    @abc.abstractmethod
    def _begin(self, digest: bytes, size: int) -> Partial: ...

    @abc.abstractmethod
    def _remove(self, digest: bytes) -> None:
        """Drop a blob; called with the lock held."""

    @abc.abstractmethod
    def _discard(self, digest: bytes) -> None:
        """Drop what `Partial.close` has kept of a blob; called with the lock held."""

    def _drop(self, digest: bytes) -> bool:
        size = self._sizes.pop(digest, None)
        if size is None:
            return False
        self._used -= size
        self._pins.pop(digest, None)
        self._kept_for_now.discard(digest)
        self._remove(digest)
        return True

    def _reserve(self, digest: bytes, size: int, ticket: bytes) -> None:
        with self._lock:
            if ticket in self._reserved:
                raise ValueError(f"expected one writer of blob {digest.hex()}, got a second")
            coming = sum(self._reserved.values())
            kept = self._kept_for_now.union(self._pins)
            held = sum(self._sizes[each] for each in kept) + coming
            if held + size > self.quota:
                raise BlobStoreFull(digest, size, self.quota, held)
            self._parked.pop(ticket, None)  # its bytes are among those reserved now
            while self._parked and self._used + sum(self._parked.values()) + coming + size > self.quota:
                self._discard(self._parked.popitem(last=False)[0])
            for each in [each for each in self._sizes if each not in kept]:
                if self._used + coming + size <= self.quota:
                    break
                self._drop(each)
            self._reserved[ticket] = size

    def unreserve(self, ticket: bytes, *, parked: int = 0) -> None:
        """For `Partial`: nothing comes in any longer, and ``parked`` bytes stay for another time."""
        with self._lock:
            if self._reserved.pop(ticket, None) is not None and parked:
                self._parked[ticket] = parked

    def settle(self, digest: bytes, size: int, ticket: bytes) -> None:
        """For `Partial`: the blob is durable, and here from now on."""
        with self._lock:
            self._reserved.pop(ticket, None)
            if digest not in self._sizes:
                self._sizes[digest] = size
                self._used += size
