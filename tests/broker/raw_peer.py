"""A peer of a real broker that says whatever a test wants, and hears what comes."""

from __future__ import annotations

import time
from collections import deque
from typing import TypeAlias, TypeVar

import zmq

from broker.protocol.bundles import unpack
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import encode
from broker.protocol.messages import Frame, Message

__all__ = ["WITHIN_MS", "RawPeer"]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"
M = TypeVar("M")

WITHIN_MS = 60_000


class RawPeer:
    """A DEALER that says what a test wants."""

    def __init__(self, context: Context, endpoint: str) -> None:
        self.socket: Socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.connect(endpoint)
        self.frames: list[Frame] = []
        self._unheard: deque[tuple[Message, list[Frame]]] = deque()

    def say(self, message: Message, *frames: Frame) -> None:
        """Send a message."""
        self.socket.send_multipart([encode(message), *frames])

    def hear(self, kind: type[M]) -> M:
        """The next message of a kind; others are dropped. Its frames are in `frames`."""
        end = time.monotonic() + WITHIN_MS / 1000
        while time.monotonic() < end:
            if not self._unheard:
                self.receive()
            message, self.frames = self._unheard.popleft()
            if isinstance(message, kind):
                return message
        raise AssertionError(f"heard no {kind.__name__}")

    def receive(self) -> int:
        """Take in what comes next, and is not heard yet; how many messages came as one."""
        came = 0
        for message, frames, _ in unpack(self.socket.recv_multipart()):
            assert not isinstance(message, ProtocolError), message
            self._unheard.append((message, list(frames)))
            came += 1
        return came

    def close(self) -> None:
        """Vanish, without a word."""
        self.socket.close()
