"""Between the agent's driver and its blob client: connects at the first use, and turns its events into the core's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from broker.disk_space import is_full
from broker.protocol import messages as m
from edge_agent import effects as e
from edge_agent.blob_transfers import BlobEvent, BlobFailed, BlobFetched, BlobOffered

if TYPE_CHECKING:
    from edge_agent.blobs import BlobClient

__all__ = ["BlobDesk", "seen_from"]


class BlobDesk:
    """Fetches and offers blobs for one device. ``say`` gets the events, on the client's thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        device: str,
        folder: Path,
        endpoint: str,
        say: Callable[[e.AgentEvent], None],
    ) -> None:
        self._context = context
        self._device = device
        self._incoming = folder / "incoming"
        self._broker = endpoint
        self._say = say
        self._endpoint = ""
        self._client: BlobClient | None = None
        self._arrivals = itertools.count()

    def open(self, endpoint: str) -> None:
        """The broker has told where its blob channel is."""
        self._endpoint = seen_from(self._broker, endpoint)
        if self._client is not None:
            self._client.retarget(self._endpoint)

    def fetch(self, digest: bytes, size: int) -> None:
        """See `FetchBlob`."""
        client = self._connected()
        if client is None:
            self._say(e.BlobFailed(digest=digest, reason="the broker has no blob channel"))
        else:
            client.fetch(digest, size, self._incoming / digest.hex())

    def offer(self, digest: bytes, source: bytes | str) -> None:
        """See `OfferBlob`."""
        client = self._connected()
        if client is None:
            self._say(e.BlobFailed(digest=digest, reason="the broker has no blob channel"))
        else:
            client.offer(digest, Path(source) if isinstance(source, str) else source)

    def close(self) -> None:
        """End all transfers."""
        if self._client is not None:
            self._client.close()

    def _connected(self) -> BlobClient | None:
        if self._client is None and self._endpoint:
            from edge_agent.blobs import BlobClient  # most devices at rest never need it

            introduction = m.OpenBlobChannel(version=m.PROTOCOL_VERSION, role="device", name=self._device)
            self._client = BlobClient(self._context, self._endpoint, introduction, self._happened)
        return self._client

    def _happened(self, event: BlobEvent) -> None:
        if isinstance(event, BlobFetched):
            assert event.path is not None  # see `fetch`
            # A name of its own: the same blob may be fetched again before this file has been used and dropped.
            path = event.path.with_name(f"{event.path.name}.{next(self._arrivals)}")
            try:
                event.path.replace(path)
            except OSError as error:
                reason = f"it could not be kept: {error.strerror}"
                self._say(e.BlobFailed(digest=event.digest, reason=reason, full=is_full(error)))
            else:
                self._say(e.BlobArrived(digest=event.digest, path=str(path)))
        elif isinstance(event, BlobOffered):
            self._say(e.BlobOffered(digest=event.digest))
        elif isinstance(event, BlobFailed):
            self._say(e.BlobFailed(digest=event.digest, reason=event.reason, full=event.full))


def seen_from(connected: str, endpoint: str) -> str:
    """``endpoint``, as a peer reaches it that is connected to ``connected``: a wildcard host means that one's host."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or host not in ("*", "0.0.0.0", "[::]", "::"):  # noqa: S104 - read, not bound
        return endpoint
    return f"tcp://{connected.partition('://')[2].rpartition(':')[0]}:{port}"
