"""Frames in and out of a ZeroMQ socket, without waiting.

What ``send_multipart``, ``recv_multipart`` and ``Poller.poll`` do, at less than half their cost: those compute flags
and options with enums for every frame, and every message passes through here at each end. Where processes wake each
other the caches are cold, and all that is called in vain costs five times what it costs in a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import zmq
from zmq.backend import Socket as _Socket
from zmq.backend import zmq_poll

from broker.protocol.messages import Frame

__all__ = ["AT_ONCE_SECONDS", "free", "poll", "readable", "receive", "send", "waiting"]

AT_ONCE_SECONDS: Final = 50e-6
"""Whoever waits for a message, and has it within this time, finds others behind it: only then it is worth asking for
them before anything else is done.
"""

_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)

_send = _Socket.send  # which ``zmq.Socket.send`` calls, after a look at options that are not used here


def send(socket: zmq.Socket[bytes], first: Frame, rest: Sequence[Frame] = ()) -> None:
    """Send a message of one or more frames. Raises `zmq.Again` when the socket would block, and other `zmq.ZMQError`.

    Only the first frame can be refused: ZeroMQ takes a message whole once it has taken its beginning.
    """
    frame = first
    for following in rest:
        _send(socket, frame, _NOBLOCK_MORE)
        frame = following
    _send(socket, frame, _NOBLOCK)


def readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits: cheaper to ask than to be told by `zmq.Again`."""
    return bool(zmq_poll([(socket, _POLLIN)], 0))


def poll(poller: zmq.Poller, timeout: int) -> list[tuple[Any, int]]:
    """What ``poller`` waits for and is there, after ``timeout`` milliseconds at most; -1: without end."""
    return zmq_poll(poller.sockets, timeout)


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
    """The messages that wait, ``most`` of them at most. ``ready``: a poller has just said that there is one; or the
    socket's descriptor, by which ZeroMQ says no more than that something has happened.
    ``routed``: see `receive`.

    Whether there is a second is asked before the first is handed out: what that brings about must not wait for it. To
    ask before each would cost less than one `zmq.Again`, but more than to be told by it at the end of many.
    """
    if not (ready or readable(socket)):
        return
    more = True
    for taken in range(most):
        try:
            message = receive(socket, routed=routed)
        except zmq.Again:
            return
        if not taken:
            more = most > 1 and readable(socket)
        yield message
        if not more:
            return


def free(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Let another socket of this process bind ``endpoint`` at once: call it before the one that is bound is closed.

    A closed socket gives back an ``inproc://`` endpoint when ZeroMQ's reaper thread comes to it, which may take long.
    """
    if endpoint.startswith("inproc:"):
        socket.unbind(endpoint)
