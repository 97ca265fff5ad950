"""Follows every notification that the broker publishes: how each result ended, and whether another end followed."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode
from broker.protocol.messages import Cancelled, Event, Expired, Notify, ResultFailed, ResultReady

__all__ = ["End", "Observer"]

LOOK_MS = 100


@dataclass(frozen=True, slots=True)
class End:
    """How a result ended: ``code`` is empty for a value; ``value`` is a digest of what can be seen of it."""

    code: str
    value: str = ""


def end_of(event: Event, frames: list[bytes]) -> End | None:
    """What an event says."""
    if isinstance(event, ResultReady):
        seen = b"".join(frames) if event.inline else repr(event.infos).encode()
        return End("", hashlib.blake2b(seen, digest_size=8).hexdigest())
    if isinstance(event, ResultFailed):
        return End(event.failure.code)
    if isinstance(event, Cancelled):
        return End("InvocationCancelled")
    if isinstance(event, Expired):
        return End("DeadlineExpired")
    return None


class Observer:
    """Listens on a thread of its own, at best effort as all publishing is. Use it in a ``with`` statement."""

    def __init__(self, endpoint: str) -> None:
        self.ends: dict[str, dict[End, float]] = {}
        """All ends of each id that were published, with when each was heard first."""
        self.last = 0.0
        """When a result ended last (`time.monotonic`)."""
        self.count = 0
        self._endpoint = endpoint
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.subscribe(b"n.")
        socket.connect(self._endpoint)
        try:
            while not self._stopping.is_set():
                if socket.poll(LOOK_MS):
                    self._take(socket.recv_multipart())
        finally:
            socket.close(linger=0)
            context.term()

    def _take(self, parts: list[bytes]) -> None:
        try:
            message = decode(parts[1])
        except (ProtocolError, IndexError):
            return
        if not isinstance(message, Notify):
            return
        end = end_of(message.event, parts[2:])
        if end is not None:
            self.last = time.monotonic()
            self.count += 1
            self.ends.setdefault(parts[0].decode()[2:], {}).setdefault(end, self.last)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(10)
