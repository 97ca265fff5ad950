"""The pipe between the agent and its worker, and the few bytes of memory that both share.

What is said travels in batches: four bytes of length (little-endian), then a msgpack list of `edge_agent.jobs`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from edge_agent.jobs import Answer, Order

__all__ = ["Board", "Pipe", "agent_end", "worker_end"]

_Out = TypeVar("_Out")
_In = TypeVar("_In")
_encoder = msgspec.msgpack.Encoder()
_LENGTH = struct.Struct("<I")
_READ = 1 << 18


class Pipe(Generic[_Out, _In]):
    """One end of the pipe: says batches of one kind, hears batches of the other. Raises OSError when the other end is
    gone.
    """

    def __init__(self, end: socket.socket, decoder: msgspec.msgpack.Decoder[list[_In]]) -> None:
        self._socket = end
        self._decoder = decoder
        self._read = memoryview(bytearray(_READ))  # kept: as many bytes anew for each batch are pages from the kernel
        self._heard = bytearray()
        self._unsaid = bytearray()

    def fileno(self) -> int:
        """The file descriptor, to poll."""
        return self._socket.fileno()

    def say(self, batch: Sequence[_Out]) -> None:
        """Send a batch; in non-blocking mode what does not fit is kept for `flush`."""
        data = _encoder.encode(batch)
        if self._unsaid:
            self._unsaid += _LENGTH.pack(len(data))
            self._unsaid += data
            self.flush()
            return
        data = _LENGTH.pack(len(data)) + data
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        while sent < len(data):
            if not self._socket.getblocking():
                self._unsaid += memoryview(data)[sent:]
                return
            sent += self._socket.send(memoryview(data)[sent:])

    @property
    def clogged(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._unsaid)

    def flush(self) -> None:
        """Send on what did not fit; call it when the descriptor can be written to."""
        try:
            while self._unsaid:
                sent = self._socket.send(self._unsaid)
                del self._unsaid[:sent]
        except BlockingIOError:
            return

    def hear(self, *, wait: bool = True) -> list[_In] | None:
        """Read once, and return all that is whole by now; None: the other end is gone.

        That may be nothing: in non-blocking mode, or without ``wait``.
        """
        try:
            count = self._socket.recv_into(self._read, 0, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        if not count:
            return None
        data = self._read[:count]
        if not self._heard and count >= 4 and count == 4 + _LENGTH.unpack_from(data)[0]:
            return self._decoder.decode(data[4:])  # the common case: one batch, whole
        self._heard += data
        batches: list[_In] = []
        while len(self._heard) >= 4:
            end = 4 + _LENGTH.unpack_from(self._heard)[0]
            if len(self._heard) < end:
                break
            batches += self._decoder.decode(bytes(memoryview(self._heard)[4:end]))
            del self._heard[:end]
        return batches

    def close(self) -> None:
        """Close this end: the other hears None."""
        self._socket.close()


def agent_end(end: socket.socket) -> Pipe[Order, Answer]:
    """The agent's end of the pipe: never blocks."""
    end.setblocking(False)
    return Pipe(end, msgspec.msgpack.Decoder(list[Answer]))


def worker_end(end: socket.socket) -> Pipe[Answer, Order]:
    """The worker's end of the pipe."""
    end.setblocking(True)
    return Pipe(end, msgspec.msgpack.Decoder(list[Order]))


class Board:
    """A few bytes that agent and worker both see, also after the worker has died: which order it was at, and which to
    leave.

    ``page`` is a writable buffer of at least `Board.SIZE` bytes, shared by both. ``cells`` holds the numbers, for who
    looks at them between any two ops: `doing` is at `Board.DOING`, `leave` at `Board.LEAVE`.
    """

    SIZE = 16
    DOING, LEAVE = 0, 1
    ALL = (1 << 64) - 1
    """As the job to leave: whichever it is, since the worker shall end."""

    __slots__ = ("cells",)

    def __init__(self, page: memoryview) -> None:
        self.cells = page[: self.SIZE].cast("Q")

    @property
    def doing(self) -> int:
        """The number of the order that the worker is at; 0: none."""
        return self.cells[self.DOING]

    @doing.setter
    def doing(self, n: int) -> None:
        self.cells[self.DOING] = n

    @property
    def leave(self) -> int:
        """The number of the job that the worker should leave between two ops; `ALL`: each, and end."""
        return self.cells[self.LEAVE]

    @leave.setter
    def leave(self, n: int) -> None:
        self.cells[self.LEAVE] = n
