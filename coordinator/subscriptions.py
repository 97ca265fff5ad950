"""A subscription to what the broker publishes: the base of `Notifications` and of `LogStream`. At best effort, as all
publishing is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import zmq

from coordinator.checks import checked_timeout
from coordinator.errors import FleetClosed

if TYPE_CHECKING:
    from types import TracebackType

    from coordinator.session_socket import Context

__all__ = ["Subscription"]

T = TypeVar("T")

_LOOK = 0.2
"""How often whoever waits looks whether it was closed, in seconds."""
_HIGH_WATER = 100_000
"""How many messages may wait here before new ones are dropped."""


class Subscription(ABC, Generic[T]):
    """Iterates over what is published under any of ``topics``: for ``for`` and ``async for``.

    Close it, or leave it by its ``with`` statement; it ends with its fleet as well. One thread at a time may wait.
    """

    def __init__(self, context: Context, endpoint: str, topics: Iterable[bytes]) -> None:
        self._lock = threading.Lock()  # held while the socket is used
        self._closed = False
        self._endpoint = endpoint
        self._socket = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, 1)  # and IPv4, whichever the host's name gives
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._socket.connect(endpoint)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self._endpoint}{', closed' if self._closed else ''}>"

    @abstractmethod
    def _parse(self, frames: Sequence[bytes]) -> T | None:
        """What a message says; None: nothing that is wanted."""

    def receive(self, timeout: float | None = None) -> T | None:
        """The next one; None, if there is none within ``timeout`` seconds. Raises `FleetClosed` once it was closed,
        ValueError for what is no timeout.
        """
        end = None if timeout is None else time.monotonic() + checked_timeout(timeout)
        while True:
            left = _LOOK if end is None else min(_LOOK, end - time.monotonic())
            with self._lock:
                if self._closed:
                    raise FleetClosed
                if self._socket.poll(max(0, int(left * 1000))):
                    parsed = self._parse(self._socket.recv_multipart())
                    if parsed is not None:
                        return parsed
            if end is not None and time.monotonic() >= end:
                return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            try:
                received = self.receive(_LOOK)
            except FleetClosed:
                raise StopIteration from None
            if received is not None:
                return received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            # A thread waits, for a short while each time: so that a cancelled coroutine leaves none behind.
            try:
                received = await asyncio.to_thread(self.receive, _LOOK)
            except FleetClosed:
                raise StopAsyncIteration from None
            if received is not None:
                return received

    def close(self) -> None:
        """End it. Idempotent."""
        self._closed = True
        with self._lock:
            self._socket.close(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self.close()
