"""Large values on their way: uploads that the core asks for, and values fetched from devices.

A large tensor is a tensor file (`edge_agent.tensor_files`), moved on the blob channel. What the user sends is copied
at once, and written, hashed and uploaded on threads of their own: the caller never waits.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from broker.protocol.errors import EdgePlanError
from broker.protocol.messages import PROTOCOL_VERSION, Failure, OpenBlobChannel, SessionOpened
from coordinator.core_events import Upload, Uploaded, UploadEnded, UploadFailed
from coordinator.errors import FleetClosed
from edge_agent.blobs import BlobClient, BlobEvent, BlobFailed, BlobFetched

if TYPE_CHECKING:
    from coordinator.driver import SessionDriver

__all__ = ["Blobs", "Source", "endpoint_beside"]

_READ = 1 << 20

Source: TypeAlias = "Callable[[Path], None]"
"""Writes a tensor file to the path. Called once, on a thread of its own."""


def endpoint_beside(endpoint: str, of: str) -> str:
    """``of``, an endpoint that the broker at ``endpoint`` has named: a host of ``*`` or ``0.0.0.0`` is that
    broker's.
    """
    host, _, port = of.removeprefix("tcp://").rpartition(":")
    if not of.startswith("tcp://") or host not in {"*", "0.0.0.0", "[::]", "::"}:  # noqa: S104  (read, not bound)
        return of
    return f"tcp://{endpoint.removeprefix('tcp://').rpartition(':')[0]}:{port}"


class Blobs:
    """The blobs of one session. Any thread may call; nothing here waits."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._client: BlobClient | None = None
        self._folder: Path | None = None
        self._sources: dict[bytes, Source] = {}  # not written yet
        self._files: dict[bytes, tuple[bytes, Path]] = {}  # written: digest and file by key
        self._wanted: dict[bytes, dict[bytes, bytes]] = {}  # ledgers by key, by digest: uploads under way
        self._fetching: dict[bytes, list[Callable[[Path | Failure], None]]] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._count = 0
        driver.on_upload = self._upload
        driver.on_upload_ended = self._upload_ended
        driver.on_opened = self._opened

    # --------------------------------------------------------------------------------------------- uploads

    def keep(self, key: bytes, source: Source) -> None:
        """What the core will ask for under ``key``."""
        with self._lock:
            self._sources[key] = source

    def discard(self, key: bytes) -> None:
        """The core will not ask for it after all."""
        with self._lock:
            self._sources.pop(key, None)

    def _upload(self, upload: Upload) -> None:
        content = upload.content
        if content is not None:
            self._offer(upload.key, upload.key, bytes(content), upload.ledger)
        else:
            self._do(lambda: self._prepare(upload))

    def _prepare(self, upload: Upload) -> None:
        """On the thread of jobs: write the file, unless that was done, and offer it."""
        key = upload.key
        with self._lock:
            source = self._sources.pop(key, None)
            written = self._files.get(key)
        try:
            if written is None:
                if source is None:
                    raise OSError("the tensor was released before it was sent")
                path = self._new_path()
                source(path)
                written = (_digest_of(path), path)
                with self._lock:
                    self._files[key] = written
        except OSError as error:
            failure = Failure(code="StoreFull", message=f"the tensor could not be written to a temporary file: {error}")
            self._report(UploadFailed(key=key, failure=failure, ledger=upload.ledger))
            return
        digest, path = written
        with suppress(FleetClosed):
            self._offer(key, digest, path, upload.ledger)

    def _offer(self, key: bytes, digest: bytes, source: bytes | Path, ledger: bytes) -> None:
        with self._lock:
            if self._closed:
                return
            under_way = self._wanted.setdefault(digest, {})
            first = not under_way
            under_way[key] = ledger
        if first:
            self._open_client().offer(digest, source)

    def _upload_ended(self, ended: UploadEnded) -> None:
        with self._lock:
            self._sources.pop(ended.key, None)
            _, path = self._files.pop(ended.key, (b"", None))
        if path is not None:
            self._do(lambda: path.unlink(missing_ok=True))

    # --------------------------------------------------------------------------------------------- fetches

    def fetch(self, digest: bytes, size: int, on_file: Callable[[Path | Failure], None]) -> None:
        """Get a tensor file; ``on_file`` is called with its path, once, on some thread. The file is the receiver's."""
        with self._lock:
            if self._closed:
                raise FleetClosed
            waiting = self._fetching.setdefault(digest, [])
            waiting.append(on_file)
            first = len(waiting) == 1
        if first:
            self._open_client().fetch(digest, size, self._new_path())

    # --------------------------------------------------------------------------------------------- the client

    def _opened(self, opened: SessionOpened) -> None:
        with self._lock:
            client = self._client
        if client is not None and opened.blobs:
            client.retarget(endpoint_beside(self._driver.endpoint, opened.blobs))

    def _open_client(self) -> BlobClient:
        with self._lock:
            if self._client is None:
                opened = self._driver.opened
                if opened is None or self._closed:
                    raise FleetClosed
                self._client = BlobClient(
                    self._driver.context,
                    endpoint_beside(self._driver.endpoint, opened.blobs),
                    OpenBlobChannel(version=PROTOCOL_VERSION, role="session", name=self._driver.core.incarnation.hex()),
                    self._on_event,
                )
            return self._client

    def _on_event(self, event: BlobEvent) -> None:
        """On the client's thread."""
        failure = None
        if isinstance(event, BlobFailed):
            failure = Failure(code="StoreFull" if event.full else "ResultLost", message=event.reason)
        if isinstance(event, BlobFetched) or (isinstance(event, BlobFailed) and event.fetching):
            with self._lock:
                waiting = self._fetching.pop(event.digest, [])
            path = event.path if isinstance(event, BlobFetched) else None
            for k, on_file in enumerate(waiting):
                if path is not None and k:
                    # Each receiver deletes its file when it has read it.
                    copy = self._new_path()
                    copy.hardlink_to(path)
                    on_file(copy)
                else:
                    on_file(path or failure or Failure(code="ResultLost", message="the value did not come"))
            return
        with self._lock:
            under_way = self._wanted.pop(event.digest, {})
        for key, ledger in under_way.items():
            if failure is None:
                self._report(Uploaded(key=key, digest=event.digest, ledger=ledger))
            else:
                self._report(UploadFailed(key=key, failure=failure, ledger=ledger))

    def _report(self, event: Uploaded | UploadFailed) -> None:
        with suppress(EdgePlanError):  # the session is over, and nobody waits for it
            self._driver.feed(event)

    # --------------------------------------------------------------------------------------------- files and the thread

    def _new_path(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="edgeplan-"))
            self._count += 1
            return self._folder / f"{self._count}.safetensors"

    def _do(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="edgeplan-uploads", daemon=True)
                self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def close(self) -> None:
        """End all transfers and delete all files. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            client, thread, folder = self._client, self._thread, self._folder
            waiting: Sequence[Callable[[Path | Failure], None]] = [f for each in self._fetching.values() for f in each]
            self._fetching.clear()
        self._jobs.put(None)
        if client is not None:
            client.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(10.0)
        for on_file in waiting:
            on_file(Failure(code="FleetClosed", message="the fleet was closed"))
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _digest_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.digest()
