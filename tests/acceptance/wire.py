"""What the acceptance tests see and say on the wire itself: a tap that records, a cable to be cut, a bare peer."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import zmq

from broker.protocol import messages as m
from broker.protocol.bundles import unpack
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode, encode, size_of
from tests.waiting import PATIENCE

__all__ = ["Cable", "Passed", "RawSession", "Tap", "cable", "tap"]

LAST_WORDS_MS = 100
"""For how long nothing may come before a tap that is to end does: a session's farewell must not be lost with it."""

T = TypeVar("T")
Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Passed:
    """A message that has passed a tap: ``up``, towards the broker, or down."""

    up: bool
    frames: tuple[bytes, ...]

    @property
    def message(self) -> m.Message:
        """What the first frame says."""
        return decode(self.frames[0])

    @property
    def size(self) -> int:
        """The bytes of all frames."""
        return size_of(self.frames)


class Tap:
    """A ROUTER in front of a broker that passes each message on as it is, and remembers it. Connect to ``endpoint``."""

    def __init__(self, endpoint: str) -> None:
        self._behind = endpoint
        self._context: zmq.Context[Socket] = zmq.Context()
        self._front = self._socket(zmq.ROUTER)
        self._front.bind("tcp://127.0.0.1:*")
        self.endpoint = self._front.getsockopt_string(zmq.LAST_ENDPOINT)
        self._passed: list[Passed] = []
        self._news = threading.Condition()
        self._stop_in, self._stop_out = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="tap")
        self._thread.start()

    def _socket(self, kind: int) -> Socket:
        made = self._context.socket(kind)
        made.set_hwm(0)
        made.setsockopt(zmq.LINGER, 1000)
        return made

    def _run(self) -> None:
        peers: dict[bytes, Socket] = {}
        names: dict[Socket, bytes] = {}
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._stop_out, zmq.POLLIN)
        stopping = False
        while True:
            arrived = poller.poll(LAST_WORDS_MS if stopping else None)
            if not arrived:
                break
            for ready, _ in arrived:
                if ready is self._front:
                    peer, *frames = self._front.recv_multipart()
                    if peer not in peers:
                        behind = peers[peer] = self._socket(zmq.DEALER)
                        names[behind] = peer
                        behind.connect(self._behind)
                        poller.register(behind, zmq.POLLIN)
                    self._remember(True, frames)
                    peers[peer].send_multipart(frames)
                elif ready in names:
                    frames = ready.recv_multipart()
                    self._remember(False, frames)
                    self._front.send_multipart([names[ready], *frames])
                else:
                    stopping = True
                    poller.unregister(self._stop_out)
        for end in (self._front, *names):
            end.close()

    def _remember(self, up: bool, frames: list[bytes]) -> None:
        messages = [frames]
        with contextlib.suppress(ProtocolError):  # of a test that says what is no message
            message = decode(frames[0])
            if isinstance(message, m.Bundle):
                messages = message.messages
        with self._news:
            self._passed += [Passed(up, tuple(one)) for one in messages]
            self._news.notify_all()

    def clear(self) -> None:
        """Forget all that has passed."""
        with self._news:
            self._passed.clear()

    def seen(self, *, up: bool, kind: type[m.Message]) -> list[Passed]:
        """All messages of one type that have passed in one direction, oldest first."""
        with self._news:
            passed = list(self._passed)
        return [each for each in passed if each.up is up and isinstance(each.message, kind)]

    def everything(self) -> list[Passed]:
        """All that has passed, oldest first."""
        with self._news:
            return list(self._passed)

    def wait_until(self, such_that: Callable[[list[Passed]], T | None]) -> T:
        """Wait until ``such_that`` finds something in all that has passed, and return it. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        with self._news:
            while (found := such_that(self._passed)) is None:
                if not self._news.wait(end - time.monotonic()):
                    raise TimeoutError(f"what was waited for did not pass within {PATIENCE:g} s")
            return found

    def wait_for(self, *, up: bool, kind: type[m.Message], count: int = 1) -> None:
        """Wait until so many messages of one type have passed. Raises TimeoutError."""

        def enough(passed: list[Passed]) -> bool | None:
            return sum(each.up is up and isinstance(each.message, kind) for each in passed) >= count or None

        self.wait_until(enough)

    def wait_for_tag(self, tag: str) -> None:
        """Wait until the broker knows that a device has a tensor of this tag. For a tap with one device behind it."""

        def recorded(passed: list[Passed]) -> bool | None:
            numbers = [
                each.message.n
                for each in passed
                if isinstance(each.message, m.Announce)
                and isinstance(each.message.event, m.TagsChanged)
                and any(tag in entry.tags for entry in each.message.event.entries)
            ]
            return (
                any(
                    isinstance(each.message, m.Recorded) and each.message.n >= min(numbers, default=1 << 62)
                    for each in passed
                )
                or None
            )

        self.wait_until(recorded)

    def close(self) -> None:
        """End it; both sides lose their connection."""
        self._stop_in.send(b"!")
        self._thread.join(PATIENCE)
        self._context.term()
        self._stop_in.close()
        self._stop_out.close()


@contextlib.contextmanager
def tap(endpoint: str) -> Iterator[Tap]:
    """A `Tap` in front of ``endpoint``."""
    made = Tap(endpoint)
    try:
        yield made
    finally:
        made.close()


class Cable:
    """A plain TCP relay in front of a broker, to be cut and mended. Connect to ``endpoint``."""

    def __init__(self, endpoint: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._behind: tuple[str, int] | None = None
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._over = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="cable")
        self._thread.start()
        self.lead_to(endpoint)

    def lead_to(self, endpoint: str) -> None:
        """Let connections come about again, to there."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")

        def mend() -> None:
            self._behind = (host, int(port))

        self._order(mend)

    def cut(self) -> None:
        """Break all connections, and let none come about."""

        def cut() -> None:
            self._behind = None
            self._hang_up(list(self._pairs))

        self._order(cut)

    def close(self) -> None:
        """End it."""

        def end() -> None:
            self._over = True

        self._order(end)
        self._thread.join(PATIENCE)

    def _order(self, order: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            order()
            done.set()

        self._orders.put(do)
        self._wake_in.send(b"!")
        assert done.wait(PATIENCE)

    def _run(self) -> None:
        while not self._over:
            ready, _, _ = select.select([self._listener, self._wake_out, *self._pairs], [], [])
            for end in ready:
                if end is self._listener:
                    self._accept()
                elif end is self._wake_out:
                    end.recv(1)
                    self._orders.get()()
                elif end in self._pairs:
                    self._pass_on(end)
        self._hang_up([*self._pairs, self._listener, self._wake_in, self._wake_out])

    def _hang_up(self, ends: Sequence[socket.socket]) -> None:
        for end in ends:
            self._pairs.pop(end, None)
            end.close()

    def _accept(self) -> None:
        front, _ = self._listener.accept()
        try:
            if self._behind is None:
                raise ConnectionRefusedError
            behind = socket.create_connection(self._behind)
        except OSError:
            front.close()
            return
        self._pairs[front], self._pairs[behind] = behind, front

    def _pass_on(self, end: socket.socket) -> None:
        other = self._pairs[end]
        try:
            data = end.recv(1 << 16)
            if data:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._hang_up([end, other])


@contextlib.contextmanager
def cable(endpoint: str) -> Iterator[Cable]:
    """A `Cable` in front of ``endpoint``."""
    made = Cable(endpoint)
    try:
        yield made
    finally:
        made.close()


class RawSession:
    """A session spoken by hand: says what no coordinator of ours would say."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self.incarnation = os.urandom(8)
        self._n = 0
        self._ids = 0
        self._unheard: deque[m.Message | ProtocolError] = deque()

    def open(self) -> m.SessionOpened:
        """Introduce ourselves."""
        self.say(m.OpenSession(version=m.PROTOCOL_VERSION, incarnation=self.incarnation))
        return self.hear(m.SessionOpened)

    def take_id(self) -> bytes:
        """A result id of our own."""
        self._ids += 1
        return self.incarnation + self._ids.to_bytes(8, "big")

    def say(self, message: m.Message, *frames: bytes) -> None:
        """Send a message."""
        self._socket.send_multipart([encode(message), *frames])

    def say_bytes(self, *frames: bytes) -> None:
        """Send anything."""
        self._socket.send_multipart(frames)

    def submit(self, command: m.Command, *frames: bytes, devices: Sequence[str] = ()) -> int:
        """Send the next command; returns its number."""
        self._n += 1
        self.say(m.Submit(n=self._n, devices=list(devices), command=command), *frames)
        return self._n

    def hear(self, kind: type[T], such_that: Callable[[T], bool] = lambda _: True) -> T:
        """The next message of that type for which ``such_that`` holds; others are passed over. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while self._socket.poll(max(0, int(1000 * (end - time.monotonic())))):
            self._unheard += [message for message, _, _ in unpack(self._socket.recv_multipart())]
            while self._unheard:
                message = self._unheard.popleft()
                if isinstance(message, kind) and such_that(message):
                    return message
        raise TimeoutError(f"expected {kind.__name__} from the broker within {PATIENCE:g} s")
