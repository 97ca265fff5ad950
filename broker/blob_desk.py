"""Between the broker's driver, its store of blobs and the server of the blob channel: carries out what the core says
about blobs, and turns what happens there into the core's events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from broker.blob_effects import BlobArrived, BlobCounts, BlobEvent, BlobPeerRefused
from broker.blob_server import BlobServer
from broker.effects import (
    BlobMoved,
    BlobStored,
    BlobsUnwritable,
    BlobsWritable,
    BlobUnavailable,
    DropBlobs,
    Event,
    PinBlobs,
    SendBlobs,
    StoreAgain,
    StoreBlobs,
    UnpinBlobs,
)
from broker.ledger.blob_store import BlobError, BlobMissing, BlobStore
from broker.logs import Logger
from broker.protocol.messages import Blobs, Frame

__all__ = ["BlobDesk"]


class BlobDesk:
    """``follow_up`` is handed what comes of an instruction, on the driver's thread; ``post`` what happens on any
    other. ``log`` is of the driver's thread too, ``local_log`` of any.
    """

    def __init__(
        self,
        store: BlobStore,
        log: Logger,
        local_log: Logger,
        *,
        follow_up: Callable[[Event], None],
        post: Callable[[Event], None],
    ) -> None:
        self.store = store
        store.on_altered = self._on_altered
        self._log = log
        self._local_log = local_log
        self._follow_up = follow_up
        self._post = post
        self._unstored: StoreBlobs | None = None  # the last that the disk did not take
        self._server: BlobServer | None = None
        self._counts: dict[tuple[str, str], BlobCounts] = {}
        self.instructions: dict[type, Callable[[Any], object]] = {
            StoreBlobs: self._store_blobs,
            StoreAgain: self._store_again,
            PinBlobs: self._pin,
            UnpinBlobs: lambda pin: store.unpin(pin.name, pin.digests),
            DropBlobs: self._drop,
        }
        """What to do about each instruction of the core, but for `SendBlobs`: see `answer`."""

    def serve(self, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> str:
        """Serve the blob channel, on a thread of its own; where it listens. Raises `zmq.ZMQError`."""
        self._server = BlobServer(endpoint, self.store, context=context, on_event=self._on_event)
        self._server.start()
        return self._server.endpoint

    def stop(self) -> None:
        """End the blob channel."""
        if self._server is not None:
            self._server.stop()

    # ------------------------------------------------------------------------------------------ on the driver's thread

    def size(self, digest: bytes) -> int | None:
        """For the core, which decides by it: the size of a blob; None: it is not here. The channel's thread makes room
        by eviction, but not of what was asked for here, until `decided`.
        """
        return self.store.keep_for_now(digest)

    def decided(self) -> None:
        """What the core has decided by sizes is carried out."""
        self.store.let_go()

    def answer(self, blobs: SendBlobs) -> tuple[Blobs, list[Frame]]:
        """The message that answers who asked for blobs, and its payload."""
        attached: list[bytes] = []
        frames: list[Frame] = []
        none = list(blobs.none)
        for digest in blobs.attached:
            try:
                frames.append(self.store.read(digest))
            except BlobMissing:
                none.append(digest)
            else:
                attached.append(digest)
        return Blobs(attached=attached, pull=blobs.pull, none=none), frames

    def moved(self) -> Iterator[BlobMoved]:
        """What has moved on the blob channel since the last time."""
        counts = {} if self._server is None else self._server.counts()
        for (role, name), after in counts.items():
            before = self._counts.get((role, name), BlobCounts())
            if after != before:
                yield BlobMoved(
                    device=name if role == "device" else "",
                    bytes_in=after.bytes_in - before.bytes_in,
                    bytes_out=after.bytes_out - before.bytes_out,
                    whole_in=after.blobs_in - before.blobs_in,
                    whole_out=after.blobs_out - before.blobs_out,
                )
        self._counts = counts

    def _store_blobs(self, blobs: StoreBlobs) -> None:
        try:
            self.store.put_many(blobs.frames, blobs.digests)
        except (BlobError, OSError) as error:
            self._log.error("blobs_not_stored", blobs=len(blobs.digests), reason=str(error))
            self._unstored = blobs
            for digest in blobs.digests:
                self._follow_up(BlobUnavailable(digest=digest, reason=str(error)))
            self._follow_up(BlobsUnwritable(reason=str(error)))

    def _store_again(self, _again: StoreAgain) -> None:
        assert self._unstored is not None
        with contextlib.suppress(BlobError, OSError):  # it was said when it failed first, and is tried again
            self.store.put_many(self._unstored.frames, self._unstored.digests)
            self._unstored = None
            self._follow_up(BlobsWritable())

    def _pin(self, pin: PinBlobs) -> None:
        """A blob that was found altered since the core has asked for it is here no longer. A plan has to come again
        then; a command that names such a blob itself ends on its device as `ResultLost`.
        """
        for digest in self.store.pin(pin.name, pin.digests):
            self._follow_up(BlobUnavailable(digest=digest, reason="it was gone before it was pinned"))

    def _drop(self, drop: DropBlobs) -> None:
        for digest in drop.digests:
            self.store.delete(digest)

    # ------------------------------------------------------------------------------------------ on any thread

    def _on_event(self, event: BlobEvent) -> None:
        """On the blob server's thread."""
        if type(event) is BlobArrived:
            self._post(BlobStored(digest=event.digest))
        elif type(event) is BlobPeerRefused:
            device = event.name if event.role == "device" else ""
            self._local_log.warning(
                "blob_refused", device=device, reason=event.reason, blob=event.digest.hex(), unreported=event.unreported
            )

    def _on_altered(self, digest: bytes) -> None:
        """A file is not what was stored. It is dropped, and whoever needs it has to send it again."""
        self._local_log.error("blob_altered", blob=digest.hex())
        self._post(BlobUnavailable(digest=digest, reason="its bytes were altered on the broker's disk"))
