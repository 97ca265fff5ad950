"""A broker written by hand, for tests of the agent's driver over real sockets: one ROUTER, one device, no ledger."""

from __future__ import annotations

import time
from typing import TypeVar

import zmq

from broker.protocol import messages as m
from broker.protocol.bundles import unpack
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import command_digest, encode
from tests.waiting import PATIENCE

__all__ = ["RouterPeer"]

T = TypeVar("T")


class RouterPeer:
    """Answers registrations, heartbeats and questions for plans by itself; the rest is the test's."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], parts: dict[bytes, bytes], endpoint: str = "") -> None:
        self._context = context
        self.parts = parts
        self._socket = self._bound(endpoint or "tcp://127.0.0.1:*")
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.peer = b""
        self.delivered = 0
        self.epoch = 1
        self.refuse: m.Refused | None = None
        self.heartbeat_ms = 60_000
        self.blobs = ""
        self.version = m.PROTOCOL_VERSION
        self.came: list[list[type]] = []
        """Which messages came as one, each time."""
        self._got: list[tuple[m.Message, list[bytes]]] = []

    def _bound(self, endpoint: str) -> zmq.Socket[bytes]:
        bound = self._context.socket(zmq.ROUTER)
        bound.setsockopt(zmq.LINGER, 0)
        try:
            bound.bind(endpoint)
        except BaseException:
            bound.close()
            raise
        return bound

    def restart(self) -> None:
        """Go, with all connections and all that was not read, and come back at the same address."""
        self._socket.close()
        self._got.clear()
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._socket = self._bound(self.endpoint)
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() > end:
                    raise  # else: ZeroMQ closes on a thread of its own, and does not say when it has
            else:
                return

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def send(self, message: m.Message, *frames: bytes) -> None:
        """To the device."""
        self._socket.send_multipart([self.peer, encode(message), *frames])

    def deliver(self, command: m.Command, *frames: bytes) -> None:
        """A command to the device."""
        self.delivered += 1
        self.send(m.Deliver(n=self.delivered, digest=command_digest(command, frames), command=command), *frames)

    def wait_for(self, kind: type[T]) -> tuple[T, list[bytes]]:
        """The next message of this kind, with its frames; others that came before it stay for later."""
        end = time.monotonic() + PATIENCE
        while True:
            for place, (message, frames) in enumerate(self._got):
                if isinstance(message, kind):
                    del self._got[place]
                    return message, frames
            left = end - time.monotonic()
            assert left > 0, (
                f"no {kind.__name__} within {PATIENCE} s, but {[type(one).__name__ for one, _ in self._got]}"
            )
            if self._socket.poll(int(left * 1000) + 1):
                self._receive()

    def result(self, id: bytes) -> tuple[m.Event, list[bytes]]:
        """How a command has ended."""
        while True:
            announce, frames = self.wait_for(m.Announce)
            if not isinstance(announce.event, m.TagsChanged) and announce.event.id == id:
                return announce.event, frames

    def _receive(self) -> None:
        peer, *parts = self._socket.recv_multipart()
        self.came.append([])
        for message, frames, _ in unpack(parts):
            assert not isinstance(message, ProtocolError), message
            self.came[-1].append(type(message))
            self._take(peer, message, [bytes(frame) for frame in frames])

    def _take(self, peer: bytes, message: m.Message, frames: list[bytes]) -> None:
        if isinstance(message, m.Register):
            self.peer = peer
            self.delivered = 0
            self._welcome()
        if isinstance(message, m.Heartbeat):
            self.send(m.HeartbeatSeen(heartbeat_ms=self.heartbeat_ms))
        elif isinstance(message, m.NeedBlobs):
            here = [digest for digest in message.digests if digest in self.parts]
            none = [digest for digest in message.digests if digest not in self.parts]
            self.send(m.Blobs(attached=here, none=none), *(self.parts[digest] for digest in here))
        elif isinstance(message, m.Announce):
            self.send(m.Recorded(n=message.n))
        self._got.append((message, frames))

    def _welcome(self) -> None:
        if self.refuse is not None:
            self.send(self.refuse)
            return
        self.send(
            m.Registered(
                version=self.version,
                ledger=b"ledger-1",
                epoch=self.epoch,
                token=b"token-01",
                first=1,
                heartbeat_ms=self.heartbeat_ms,
                max_message=4 << 20,
                blobs=self.blobs,
            )
        )
