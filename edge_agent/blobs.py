"""`BlobClient`: how an agent or a coordinator moves blobs to and from the broker, on a connection of its own.

The client has its own thread, so that nothing else waits while blobs move. It connects at the first use, comes back by
itself when the link breaks and goes on where it stood, and lets go of the connection when it has been idle: a device at
rest holds none.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from broker.protocol import messages as m
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode, encode
from edge_agent.blob_transfers import BlobEvent, BlobFailed, BlobFetched, BlobOffered, BlobSettings, BlobTransfers

__all__ = ["BlobClient", "BlobEvent", "BlobFailed", "BlobFetched", "BlobOffered", "BlobSettings"]

HIGH_WATER = 64
MESSAGES_A_ROUND = 256
CHUNKS_A_ROUND = 16
GOODBYE_MS = 200

Do: TypeAlias = Callable[[float], list[m.Message]]


class BlobClient:
    """Offers blobs to the broker at ``endpoint``, and fetches them from there.

    ``introduce`` is said at the start of each connection. ``on_event`` is called on the client's own thread, with
    `BlobOffered`, `BlobFetched` or `BlobFailed`, once for each request (but once for a blob offered twice at a time);
    it must return at once. A broker that can't be reached is no failure: what is asked for is done when it is back, or
    ends by `cancel`. Any thread may call.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        introduce: m.OpenBlobChannel,
        on_event: Callable[[BlobEvent], None],
        *,
        config: BlobSettings | None = None,
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._settings = config or BlobSettings()
        self._transfers = BlobTransfers(self._settings, introduce=introduce, on_event=on_event)
        self._todo: deque[Do] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.settimeout(0)
        self._wake_out.settimeout(0)
        # Of the thread alone:
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._up = False
        self._spoken = False  # has the broker said anything on this connection?
        self._connect_at = 0.0
        self._delay = self._settings.reconnect
        self._idle_since: float | None = None
        self._outbox: deque[bytes] = deque()  # control messages that the link has not taken yet
        self._connected_to = ""

    # ------------------------------------------------------------------------------------------ for its owner

    def offer(self, digest: bytes, source: bytes | Path) -> None:
        """Let the broker have a blob, from memory or from a file, which must stay as it is until the event."""
        self._submit(lambda now: self._transfers.offer(digest, source, now))

    def fetch(self, digest: bytes, size: int, into: Path | None = None) -> None:
        """Get a blob from the broker: into a file, whose folder exists; or into memory. A file that broke off earlier
        (``<name>.part`` beside it) is taken up where it ended.
        """
        self._submit(lambda now: self._transfers.fetch(digest, size, into, now))

    def cancel(self, digest: bytes) -> None:
        """Stop what is done about this blob; no event follows, unless it is on its way already."""
        self._submit(lambda now: self._transfers.cancel(digest, now))

    def retarget(self, endpoint: str) -> None:
        """The broker's blob channel is at ``endpoint`` now; a connection to another one is given up."""
        with self._lock:
            self._endpoint = endpoint
        self._wake()

    @property
    def connected(self) -> bool:
        """Does the client hold a connection just now? An idle one doesn't."""
        return self._dealer is not None

    def close(self, timeout: float = 10.0) -> None:
        """End everything, without further events. What came into files stays for another time. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            thread = self._thread
        self._wake()
        if thread is None:
            self._wake_in.close()
            self._wake_out.close()
        elif thread is not threading.current_thread():
            thread.join(timeout)

    def _submit(self, do: Do) -> None:
        with self._lock:
            if self._closing:
                raise RuntimeError("expected an open blob client, got a closed one")
            self._todo.append(do)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="blob-client", daemon=True)
                self._thread.start()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # as many wakes are waiting as fit, or the thread has ended
            self._wake_in.send(b"!")

    # ------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wait()
                self._round(time.monotonic())
        finally:
            self._transfers.close()
            self._disconnect(goodbye=True)
            with self._lock:  # nobody wakes us any more
                self._closing = True
                self._wake_in.close()
                self._wake_out.close()

    def _wait(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        if self._dealer is not None:
            blocked = self._up and (self._outbox or self._transfers.has_chunks)
            poller.register(self._dealer, zmq.POLLIN | (zmq.POLLOUT if blocked else 0))
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        if self._wake_out.fileno() in dict(poller.poll(self._timeout_ms(time.monotonic()))):
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)

    def _timeout_ms(self, now: float) -> int | None:
        if self._todo or (self._transfers.busy and not self._transfers.has_chunks):
            return 0
        due = [self._transfers.next_timer() if self._up else None]
        if self._dealer is None and self._transfers.wanted:
            due.append(self._connect_at)
        if self._idle_since is not None:
            due.append(self._idle_since + self._settings.idle)
        first = min((when for when in due if when is not None), default=None)
        return None if first is None else max(0, int((first - now) * 1000) + 1)

    def _round(self, now: float) -> None:
        transfers = self._transfers
        while self._todo:
            self._say(self._todo.popleft()(now))
        if self._dealer is not None and self._connected_to != self._endpoint:
            self._disconnect(goodbye=True)
            self._connect_at = now
        if self._dealer is None and transfers.wanted and now >= self._connect_at:
            self._connect()
        self._receive()
        self._watch(now)
        if transfers.refused and self._dealer is not None:
            self._reconnect_later(now, fruitless=True)
        self._say(transfers.work(now))
        timer = transfers.next_timer()
        if timer is not None and now >= timer:
            self._say(transfers.tick(now))
        self._send()
        if transfers.wanted or self._dealer is None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now >= self._idle_since + self._settings.idle:
            self._disconnect(goodbye=True)

    def _connect(self) -> None:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)  # and IPv4, whichever the host's name gives
        dealer.setsockopt(zmq.SNDHWM, HIGH_WATER)
        dealer.setsockopt(zmq.RCVHWM, HIGH_WATER)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 15_000)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 60_000)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, int(self._settings.reconnect_most * 1000))
        self._dealer = dealer
        self._connected_to = self._endpoint
        self._spoken = False
        if self._endpoint.startswith("inproc:"):  # such a link never breaks, and has no events
            dealer.connect(self._endpoint)
            self._link_up()
        else:
            self._monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            dealer.connect(self._endpoint)

    def _disconnect(self, *, goodbye: bool = False) -> None:
        dealer, self._dealer = self._dealer, None
        if dealer is None:
            return
        if goodbye and self._up:
            with contextlib.suppress(zmq.ZMQError):  # a courtesy: the broker finds out by itself
                dealer.send(encode(m.Goodbye()), zmq.NOBLOCK)
        if self._monitor is not None:
            dealer.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        dealer.close(linger=GOODBYE_MS if goodbye and self._up else 0)
        self._up = False
        self._outbox.clear()
        self._transfers.link_down()

    def _link_up(self) -> None:
        self._up = True
        self._outbox.clear()
        self._say(self._transfers.link_up())

    def _watch(self, now: float) -> None:
        """Look at what the connection did. One that broke is replaced by a new one, so that nothing stale is in it."""
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._link_up()
            elif self._up:
                self._receive()
                self._reconnect_later(now, fruitless=not self._spoken)

    def _reconnect_later(self, now: float, *, fruitless: bool) -> None:
        self._delay = min(self._delay * 2, self._settings.reconnect_most) if fruitless else self._settings.reconnect
        self._connect_at = now + self._delay * random.uniform(0.5, 1.0)
        self._disconnect()

    def _receive(self) -> None:
        if self._dealer is None:
            return
        for _ in range(MESSAGES_A_ROUND):
            try:
                header, *frames = self._dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._spoken = True
            try:
                message = decode(header)
            except ProtocolError:
                continue  # a broker of a newer minor version may say more than we know
            self._say(self._transfers.received(message, frames, time.monotonic()))

    def _say(self, messages: list[m.Message]) -> None:
        if self._up:
            self._outbox.extend(map(encode, messages))
            self._send_control()

    def _send_control(self) -> bool:
        if self._dealer is None or not self._up:
            return False
        try:
            while self._outbox:
                self._dealer.send(self._outbox[0], zmq.NOBLOCK)
                self._outbox.popleft()
        except zmq.Again:
            return False
        return True

    def _send(self) -> None:
        if not self._send_control() or self._dealer is None:
            return
        for _ in range(CHUNKS_A_ROUND):
            chunk = self._transfers.next_chunk(time.monotonic())
            if isinstance(chunk, list):
                self._say(chunk)
                return
            piece, data = chunk
            message = m.Chunk(digest=piece.digest, offset=piece.offset, size=piece.size)
            try:
                self._dealer.send_multipart((encode(message), data), zmq.NOBLOCK)
            except zmq.Again:
                self._transfers.give_back(piece)
                return
