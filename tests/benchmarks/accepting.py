"""How many commands a broker accepts in a second: with a ledger on disk, each commit synced, and in memory.

The load is the same: one session sends invocations for a device that is away, as many under way as the broker lets it,
and counts what is accepted. Nothing is delivered, so that it is the accepting that is measured.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque

import zmq

from broker.protocol.framing import decode, encode
from broker.protocol.messages import (
    Accepted,
    Goodbye,
    Invoke,
    Message,
    OpenSession,
    Register,
    Registered,
    SessionOpened,
    StorePlan,
    Submit,
)

__all__ = ["accepted_per_second"]

MANIFEST = b"a plan that nobody runs"
PLAN = hashlib.sha256(MANIFEST).digest()
WINDOW = 1024
PATIENCE_SECONDS = 60.0
"""How long to wait for any one message, whatever else comes meanwhile."""


READS_NO_BUNDLES = (1, 0)
"""The version of the protocol that the peers here speak: they look at one message at a time."""


class _Peer:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.connect(endpoint)

    def say(self, message: Message, *frames: bytes) -> None:
        self.socket.send_multipart([encode(message), *frames])

    def hear(self, kind: type[Message]) -> Message:
        """The next message of that kind; others are dropped. Raises TimeoutError."""
        end = time.monotonic() + PATIENCE_SECONDS
        while (left := end - time.monotonic()) > 0:
            self.socket.setsockopt(zmq.RCVTIMEO, math.ceil(left * 1000))
            try:
                message = decode(self.socket.recv_multipart()[0])
            except zmq.Again:
                break
            if isinstance(message, kind):
                return message
        raise TimeoutError(f"heard no {kind.__name__} within {PATIENCE_SECONDS:g} s")


def accepted_per_second(endpoint: str, count: int) -> float:
    """``count`` invocations of one argument, from the first one sent to the last one accepted."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    name = f"away-{os.urandom(4).hex()}"
    incarnation = os.urandom(8)
    try:
        device = _Peer(context, endpoint)
        device.say(Register(version=READS_NO_BUNDLES, device=name, store=os.urandom(16), boot=os.urandom(16)))
        device.hear(Registered)
        device.say(Goodbye())
        device.socket.close()
        session = _Peer(context, endpoint)
        session.say(OpenSession(version=READS_NO_BUNDLES, incarnation=incarnation))
        session.hear(SessionOpened)
        session.say(Submit(n=1, devices=[], command=StorePlan(plan=PLAN, parts=[], attached=[PLAN])), MANIFEST)
        session.hear(Accepted)
        commands = deque(
            encode(Submit(n=n, devices=[name], command=_invoke(incarnation, n))) for n in range(2, count + 2)
        )
        start = time.perf_counter()
        accepted = sent = 1
        while accepted < count + 1:
            while commands and sent - accepted < WINDOW:
                session.socket.send(commands.popleft())
                sent += 1
            message = session.hear(Accepted)
            assert isinstance(message, Accepted)
            accepted = message.n
        return count / (time.perf_counter() - start)
    finally:
        context.destroy(linger=1000)


def _invoke(incarnation: bytes, n: int) -> Invoke:
    return Invoke(id=incarnation + n.to_bytes(8, "big"), plan=PLAN, args=[b"x" * 16])
