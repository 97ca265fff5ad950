"""Frames in and out of a ZeroMQ socket, without waiting.

What ``send_multipart`` and ``recv_multipart`` do, at less than half their cost: those compute flags and options with
enums for every frame, and every message passes through here at each end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import zmq

from broker.protocol.messages import Frame

__all__ = ["free", "readable", "receive", "send", "waiting"]

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def send(socket: zmq.Socket[bytes], first: Frame, rest: Sequence[Frame] = ()) -> None:
    """Send a message of one or more frames. Raises `zmq.Again` when the socket would block, and other `zmq.ZMQError`.

    Only the first frame can be refused: ZeroMQ takes a message whole once it has taken its beginning.
    """
    frame = first
    for following in rest:
        socket.send(frame, _NOBLOCK_MORE)
        frame = following
    socket.send(frame, _NOBLOCK)


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits: cheaper to ask than to be told by `zmq.Again`."""
    return bool(int(socket.get(_EVENTS)) & _POLLIN)


def receive(socket: zmq.Socket[bytes], *, routed: bool = False) -> list[bytes]:
    """The next message. Raises `zmq.Again` when there is none.

    ``routed``: the socket is a ROUTER, which puts the peer's routing id in front, so that more is sure to follow. That
    frame comes as bytes: one that can be asked whether more follows costs twice as much.
    """
    frames: list[bytes] = [socket.recv(_NOBLOCK)] if routed else []
    frame: Any = socket.recv(_NOBLOCK, copy=False)
    frames.append(frame.bytes)
    while frame.more:
        frame = socket.recv(_NOBLOCK, copy=False)
        frames.append(frame.bytes)
    return frames


def waiting(
    socket: zmq.Socket[bytes], most: int, *, ready: bool = False, routed: bool = False
) -> Iterator[list[bytes]]:
    """The messages that wait, ``most`` of them at most. ``ready``: a poller has just said that there is one.
    ``routed``: see `receive`.

    To ask before each message costs less than one `zmq.Again`, but more than to be told by it at the end of many.
    """
    for taken in range(most):
        if (taken == 1 or not (taken or ready)) and not readable(socket):
            return
        try:
            message = receive(socket, routed=routed)
        except zmq.Again:
            return
        yield message


def free(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Let another socket of this process bind ``endpoint`` at once: call it before the one that is bound is closed.

    A closed socket gives back an ``inproc://`` endpoint when ZeroMQ's reaper thread comes to it, which may take long.
    """
    if endpoint.startswith("inproc:"):
        socket.unbind(endpoint)
