"""The broker's blob channel: a thread with a ROUTER of its own, so that commands never wait behind blobs.

The thread moves bytes; what they mean is decided in `broker.blob_exchange`. What is under way to a peer is bounded by
what the peer has asked for, and by the socket's high-water mark, so a slow receiver takes no memory.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import zmq

from broker.blob_effects import (
    BlobArrived,
    BlobCounts,
    BlobDelivered,
    BlobEvent,
    BlobLimits,
    BlobPeerRefused,
    Commit,
    Instruction,
    OutgoingChunk,
)
from broker.blob_exchange import BlobExchange
from broker.ledger.blob_store import BlobStore, Partial
from broker.protocol.effects import Send
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode, encode
from broker.sockets import free

__all__ = ["BlobArrived", "BlobCounts", "BlobDelivered", "BlobEvent", "BlobLimits", "BlobPeerRefused", "BlobServer"]

HIGH_WATER = 64
"""Messages that wait for one peer, in either direction, before its link counts as full."""

MESSAGES_A_ROUND = 256
CHUNKS_A_ROUND = 16
FULL_LINK_SECONDS = 0.01
"""How often a full link is tried again: a ROUTER can't tell when one of its peers takes more."""

CONTROL_MESSAGES_HELD = 1024


class BlobServer:
    """Serves the blobs of ``store`` at ``endpoint``, and takes in new ones.

    ``on_event`` is called on the server's own thread, and must return at once. Bind by `start`; `endpoint` is then the
    real one, where the port was a wildcard.
    """

    def __init__(
        self,
        endpoint: str,
        store: BlobStore,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        limits: BlobLimits | None = None,
        on_event: Callable[[BlobEvent], None],
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits or BlobLimits()
        self._context = context
        self._exchange = BlobExchange(store, limits=self.limits, on_event=on_event)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="blob-commit")
        self._done: deque[tuple[bytes, OSError | None]] = deque()
        self._held: dict[bytes, deque[bytes]] = {}  # control messages for peers whose link is full
        self._retry_at: float | None = None

    # ------------------------------------------------------------------------------------------ for its owner

    def start(self) -> None:
        """Bind, and serve from now on. Raises `zmq.ZMQError` when the endpoint can't be had."""
        router = self._context.socket(zmq.ROUTER)
        try:
            router.setsockopt(zmq.LINGER, 0)
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.IPV6, int("[" in self.endpoint or "://*" in self.endpoint))
            router.setsockopt(zmq.MAXMSGSIZE, self.limits.chunk + 1024)
            router.setsockopt(zmq.SNDHWM, HIGH_WATER)
            router.setsockopt(zmq.RCVHWM, HIGH_WATER)
            router.setsockopt(zmq.HEARTBEAT_IVL, 15_000)
            router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
            router.bind(self.endpoint)
            self.endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
        except zmq.ZMQError:
            router.close()
            raise
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.settimeout(0)
        self._wake_out.settimeout(0)
        self._thread = threading.Thread(target=self._run, args=(router,), name="blob-server", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End in order: what has come of each blob is kept. Idempotent."""
        if self._thread is None:
            return
        self._stopping.set()
        self._wake()
        self._thread.join(timeout)
        self._thread = None

    def counts(self) -> dict[tuple[str, str], BlobCounts]:
        """What moved, by the peer's role and name; any thread may ask."""
        return self._exchange.counts()

    def total(self) -> BlobCounts:
        """What moved in all; any thread may ask."""
        return self._exchange.total()

    # ------------------------------------------------------------------------------------------ the thread

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # as many wakes are waiting as fit: it will wake
            self._wake_in.send(b"!")

    def _run(self, router: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                ready = dict(poller.poll(self._timeout_ms(time.monotonic())))
                if self._wake_out.fileno() in ready:
                    self._wake_out.recv(4096)
                self._round(router)
        finally:
            self._committer.shutdown(wait=True)
            while self._done:
                self._exchange.committed(*self._done.popleft(), time.monotonic())
            self._exchange.close()
            free(router, self.endpoint)
            router.close()
            self._wake_in.close()
            self._wake_out.close()

    def _timeout_ms(self, now: float) -> int | None:
        if self._exchange.busy or self._done:
            return 0
        due = [when for when in (self._exchange.next_timer(), self._retry_at) if when is not None]
        return max(0, int((min(due) - now) * 1000) + 1) if due else None

    def _round(self, router: zmq.Socket[bytes]) -> None:
        exchange = self._exchange
        for _ in range(MESSAGES_A_ROUND):
            try:
                peer, *frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            now = time.monotonic()
            try:
                message = decode(frames[0] if frames else b"")
            except ProtocolError as error:
                instructions = exchange.malformed(peer, error, now)
            else:
                instructions = exchange.received(peer, message, frames[1:], now)
            self._execute(router, instructions)
        now = time.monotonic()
        while self._done:
            self._execute(router, exchange.committed(*self._done.popleft(), now))
        self._execute(router, exchange.work(now))
        timer = exchange.next_timer()
        if timer is not None and now >= timer:
            self._execute(router, exchange.tick(now))
        if self._retry_at is not None and now >= self._retry_at:
            self._retry(router)
        for _ in range(CHUNKS_A_ROUND):
            chunk = exchange.next_chunk()
            if chunk is None:
                break
            if isinstance(chunk, Send):
                self._execute(router, [chunk])
            else:
                self._send_chunk(router, chunk)

    def _execute(self, router: zmq.Socket[bytes], instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Commit):
                try:
                    self._committer.submit(self._commit, instruction.partial)
                except RuntimeError:  # the program is ending, and an executor takes nothing more: do it here
                    self._commit(instruction.partial)
            else:
                self._send_control(router, instruction.peer, encode(instruction.message))

    def _commit(self, partial: Partial) -> None:
        error: OSError | None = None
        try:
            partial.commit()
        except OSError as failure:
            error = failure
        self._done.append((partial.digest, error))
        self._wake()

    def _send_control(self, router: zmq.Socket[bytes], peer: bytes, header: bytes) -> None:
        held = self._held.get(peer)
        if held is None:
            try:
                router.send_multipart((peer, header), zmq.NOBLOCK)
                return
            except zmq.Again:
                held = self._held[peer] = deque()
                self._retry_soon()
            except zmq.ZMQError as error:
                self._lost(router, peer, error)
                return
        if len(held) >= CONTROL_MESSAGES_HELD:  # it asks without listening
            del self._held[peer]
            self._execute(router, self._exchange.gone(peer, time.monotonic()))
            return
        held.append(header)

    def _send_chunk(self, router: zmq.Socket[bytes], chunk: OutgoingChunk) -> None:
        try:
            router.send_multipart((chunk.peer, encode(chunk.message), chunk.data), zmq.NOBLOCK)
        except zmq.Again:
            self._exchange.give_back(chunk)
            self._retry_soon()
        except zmq.ZMQError as error:
            self._lost(router, chunk.peer, error)

    def _lost(self, router: zmq.Socket[bytes], peer: bytes, error: zmq.ZMQError) -> None:
        if error.errno != zmq.EHOSTUNREACH:
            raise error
        self._held.pop(peer, None)
        self._execute(router, self._exchange.gone(peer, time.monotonic()))

    def _retry_soon(self) -> None:
        if self._retry_at is None:
            self._retry_at = time.monotonic() + FULL_LINK_SECONDS

    def _retry(self, router: zmq.Socket[bytes]) -> None:
        self._retry_at = None
        held, self._held = self._held, {}
        for peer, headers in held.items():
            for header in headers:
                self._send_control(router, peer, header)
        self._exchange.unblock()
