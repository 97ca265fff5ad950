"""Blobs that the core wants: parts of plans, large tensors. Asked for, fetched, and asked for again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

from broker.protocol import messages as m
from broker.protocol.batches import batches
from edge_agent.catalog import Catalog
from edge_agent.core_desk import WARNING, AgentConfig, Desk, failure
from edge_agent.core_quota import Quota
from edge_agent.effects import BlobArrived, BlobFailed, DropFiles, FetchBlob

__all__ = ["BlobWants", "Receiver"]

Receiver: TypeAlias = Callable[[bytes, "bytes | str | m.Failure"], None]
"""Called with a blob's digest and its bytes, or the path of its file, or why it cannot be had."""

_FETCHES = 8
"""How many fetches of one blob may fail before it counts as not to be had."""


class _Wanted:
    __slots__ = ("again_at", "apart", "asked", "failures", "fetching", "receivers", "size")

    def __init__(self) -> None:
        self.apart = b""
        self.receivers: list[Receiver] = []
        self.again_at = 0.0
        self.asked = 0
        self.failures = 0
        self.fetching = False
        self.size: int | None = None


class BlobWants:
    """Who waits for which blob. Small ones come in `Blobs`; large ones are fetched by the driver, on the blob
    channel.
    """

    def __init__(self, desk: Desk, catalog: Catalog, quota: Quota, config: AgentConfig) -> None:
        self._desk = desk
        self._quota = quota
        self._catalog = catalog
        self._config = config
        self._wanted: dict[bytes, _Wanted] = {}

    def want(
        self, digest: bytes, receiver: Receiver, *, size: int | None = None, anew: bool = False, apart: bytes = b""
    ) -> None:
        """Get a blob. ``size``, where it is known, saves the question to the broker. ``anew``: what is in the store is
        damaged, and about to be dropped. ``apart``: those under one such name are asked for in a message of their own,
        so that no other takes the room that small blobs have in the answer.
        """
        here = None if anew else self._catalog.blob(digest)
        if here is not None:
            receiver(digest, here)
            return
        wanted = self._wanted.get(digest)
        if wanted is None:
            wanted = self._wanted[digest] = _Wanted()
            wanted.again_at = self._desk.now
        wanted.receivers.append(receiver)
        wanted.apart = wanted.apart or apart
        if size is not None and not wanted.fetching:
            self._fetch(digest, wanted, size)

    def registered(self) -> None:
        """There is a broker to be asked (again): at once."""
        for wanted in self._wanted.values():
            wanted.again_at, wanted.asked = self._desk.now, 0

    def flush(self, *, registered: bool) -> None:
        """Ask for what is due."""
        now = self._desk.now
        if not self._wanted or not registered:
            return
        due = [digest for digest, wanted in self._wanted.items() if not wanted.fetching and now >= wanted.again_at]
        lacking: dict[bytes, list[bytes]] = {}
        for digest in due:
            wanted = self._wanted[digest]
            if wanted.size is not None:
                self._fetch(digest, wanted, wanted.size)
                continue
            wanted.again_at = now + self._config.retry_seconds * (1 << min(wanted.asked, 4))
            wanted.asked += 1
            lacking.setdefault(wanted.apart, []).append(digest)
        for digests in lacking.values():
            for some in batches(digests):
                self._desk.send(m.NeedBlobs(digests=some))

    def next_timer(self) -> float | None:
        """When something is due to be asked for again."""
        return min((wanted.again_at for wanted in self._wanted.values() if not wanted.fetching), default=None)

    def answered(self, message: m.Blobs, frames: tuple[m.Frame, ...]) -> None:
        """The broker's answer: some are here, some are to be fetched, some do not exist."""
        for digest, frame in zip(message.attached, frames, strict=False):
            if digest not in self._wanted:
                continue
            if hashlib.sha256(frame).digest() != digest:
                self._desk.log(WARNING, "blob_altered", blob=digest.hex(), bytes=len(frame))
                continue
            self._give(digest, bytes(frame))
        for digest, size in message.pull.items():
            wanted = self._wanted.get(digest)
            if wanted is not None and not wanted.fetching:
                self._fetch(digest, wanted, size)
        for digest in message.none:
            if digest in self._wanted:
                self._give(
                    digest, failure("ResultLost", f"the broker does not have blob {digest.hex()}", blob=digest.hex())
                )

    def arrived(self, event: BlobArrived) -> None:
        """A fetched blob is whole."""
        if event.digest in self._wanted:
            self._give(event.digest, event.path)
        self._desk.do(DropFiles(paths=[event.path]))

    def failed(self, event: BlobFailed) -> bool:
        """A fetch has failed: try again a few times. False: it was none of these blobs."""
        wanted = self._wanted.get(event.digest)
        if wanted is None or not wanted.fetching:
            return False
        wanted.fetching, wanted.size = False, None  # the broker may have dropped it since: ask
        wanted.failures += 1
        self._desk.log(
            WARNING, "blob_fetch_failed", blob=event.digest.hex(), reason=event.reason, failures=wanted.failures
        )
        if wanted.failures >= _FETCHES:
            said = f"blob {event.digest.hex()} could not be fetched: {event.reason}"
            code = "StoreFull" if event.full else "ResultLost"
            self._give(event.digest, failure(code, said, blob=event.digest.hex()))
        else:
            wanted.again_at = self._desk.now + self._config.retry_seconds * (1 << min(wanted.failures - 1, 4))
        return True

    def _fetch(self, digest: bytes, wanted: _Wanted, size: int) -> None:
        wanted.fetching, wanted.size = True, size
        why = self._quota.room_for(size)
        if why is not None:
            self._give(digest, why)
            return
        self._desk.do(FetchBlob(digest=digest, size=size))

    def _give(self, digest: bytes, result: bytes | str | m.Failure) -> None:
        for receiver in self._wanted.pop(digest).receivers:
            receiver(digest, result)
