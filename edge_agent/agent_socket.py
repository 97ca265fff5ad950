"""The agent's socket to its broker: a new one for every connection, so that no old message meets a new registration."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from broker.protocol.bundles import Bundler, Unpacked, bundled, unpack
from broker.protocol.effects import LinkDown, LinkUp
from broker.protocol.framing import MESSAGE_LIMIT, encode
from broker.protocol.messages import Frame, Message
from broker.sockets import readable, send, waiting

__all__ = ["BATCH", "BrokerSocket"]

BATCH = 256
"""How many messages are taken in before anything is acknowledged."""

_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 10_000
_PAUSE_SECONDS = 0.05
"""How long to wait after a connection broke, doubled (up to 256 times) while nothing comes of the next ones."""


class BrokerSocket:
    """A DEALER and its monitor, in the driver's ``poller``. Until it is opened, and between two connections, there is
    neither.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, poller: zmq.Poller) -> None:
        self._context = context
        self._endpoint = endpoint
        self._poller = poller
        self._fruitless = 0
        self.out = Bundler(self._transmit)
        """What goes to the broker at the other end; nothing does while there is none."""
        self.dealer: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.open_at = math.inf
        """When `open` is due."""
        self.monitored = -1
        """The monitor's descriptor: when it can be read, `watch` is due."""

    def open(self) -> list[LinkUp | LinkDown]:
        """Connect, for ever if need be; what is to be told of it at once."""
        self.open_at = math.inf
        dealer = self.dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)  # and IPv4, whichever the host's name gives
        dealer.setsockopt(zmq.SNDHWM, 0)  # the streams' windows bound what is under way
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, MESSAGE_LIMIT)
        dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        self._poller.register(dealer, zmq.POLLIN)
        if self._endpoint.startswith("inproc:"):
            dealer.connect(self._endpoint)
            return [LinkUp()]  # such a connection has no events
        self.monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        # By its descriptor, which costs the poller less than a socket. It tells of what comes after the last look that
        # found nothing: here is the first, and `watch` ends with one.
        readable(self.monitor)
        self.monitored = self.monitor.fileno()
        self._poller.register(self.monitored, zmq.POLLIN)
        dealer.connect(self._endpoint)
        return []

    def watch(self, *, registered: bool, now: float) -> list[LinkUp | LinkDown]:
        """What the connection has done. ``registered``: whether anything came of it."""
        happened: list[LinkUp | LinkDown] = []
        while self.monitor is not None:
            try:
                event = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            except zmq.Again:
                break
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                happened.append(LinkUp())
            else:
                happened.append(self.drop(registered=registered, now=now))
        return happened

    def drop(self, *, registered: bool, now: float) -> LinkDown:
        """Give the connection up, with all that is in it; another is due after a pause."""
        self._fruitless = 0 if registered else self._fruitless + 1
        self.close()
        # A crowd of devices that lost the same broker must not come back in the same instant.
        self.open_at = now + random.uniform(0.5, 1.5) * _PAUSE_SECONDS * (1 << min(self._fruitless, 8))
        return LinkDown()

    def close(self, linger: int = 0) -> None:
        """Close both sockets; what is still to be sent has ``linger`` milliseconds."""
        self.out.clear()
        self.out.bundling = False
        dealer, self.dealer = self.dealer, None
        monitor, self.monitor = self.monitor, None
        if dealer is None:
            return
        self._poller.unregister(dealer)
        if monitor is not None:
            self._poller.unregister(self.monitored)
            self.monitored = -1
            dealer.disable_monitor()
            monitor.close(linger=0)
        dealer.close(linger=linger)

    def receive(self, most: int = BATCH) -> Iterator[Unpacked]:
        """The messages that are waiting, now that the poller has said that there are some: ``most`` of ZeroMQ's, and
        `BATCH` and a bundle at most; and no more once the connection was dropped.
        """
        dealer, taken = self.dealer, 0
        if dealer is None:
            return
        for frames in waiting(dealer, most, ready=True):
            for unpacked in unpack(frames):
                yield unpacked
                if dealer is not self.dealer:
                    return
                taken += 1
            if taken >= BATCH:
                return

    def send(self, message: Message, frames: tuple[Frame, ...]) -> None:
        """Send, if there is a connection, with the next ``out.flush()`` at the latest: the streams send again what
        matters. Both raise `zmq.Again`.
        """
        if self.dealer is not None:
            self.out.send(encode(message), frames)

    def _transmit(self, messages: Sequence[Sequence[Frame]]) -> None:
        assert self.dealer is not None  # nothing is gathered for none
        header, *payload = bundled(messages)
        send(self.dealer, header, payload)
