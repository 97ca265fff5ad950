"""A session's socket to the broker.

A connection that was given up is followed by a new socket, so that no old message meets a new introduction.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from broker.protocol.bundles import Bundler, bundled
from broker.protocol.effects import LinkDown, LinkUp, Send
from broker.protocol.framing import encode
from broker.protocol.messages import Frame, Message
from broker.sockets import readable, send, waiting
from coordinator.wakeup import Wakeup

__all__ = ["Context", "SessionSocket"]

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"


class SessionSocket:
    """A DEALER and its monitor. Of one thread at a time, but for `wait`: that is for the thread that opens and closes
    it, which others end by ``wakeup``.
    """

    def __init__(self, endpoint: str, context: Context, wakeup: Wakeup) -> None:
        self._endpoint = endpoint
        self._context = context
        self._wakeup = wakeup
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poll = select.poll()
        self._dealer_fd = -1
        self.out = Bundler(self._transmit)
        """What goes to the broker, on this connection."""
        self.heard = False
        """Whether the last `wait` has said that something has happened there: mostly, that a message has come."""

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._dealer is not None

    def open(self) -> list[LinkUp]:
        """Connect, for ever if need be; what is to be told of it at once."""
        dealer = self._dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)  # and IPv4, whichever the host's name gives
        dealer.setsockopt(zmq.SNDHWM, 0)  # bounded by the core's windows
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, 10_000)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._dealer_fd = dealer.fileno()
        self._poll.register(self._dealer_fd, select.POLLIN)
        self.heard = False
        if self._endpoint.startswith("inproc:"):  # such a link never breaks, and has no events
            dealer.connect(self._endpoint)
            return [LinkUp()]
        self._monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._poll.register(self._monitor.fileno(), select.POLLIN)
        dealer.connect(self._endpoint)
        return []

    def close(self, *, linger: int) -> None:
        """Close both; what is still to be sent has ``linger`` milliseconds."""
        dealer, self._dealer = self._dealer, None
        self.out.clear()
        self.out.bundling = False
        if dealer is None:
            return
        if self._monitor is not None:
            with suppress(zmq.ContextTerminated):  # it ends with the dealer as well
                dealer.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        dealer.close(linger=linger)

    # --------------------------------------------------------------------------------------------- in

    def wait(self, timeout: int) -> bool:
        """Wait until there is something to do, for ``timeout`` milliseconds at most; whether somebody has woken us."""
        happened = [descriptor for descriptor, _ in self._poll.poll(timeout)]
        self.heard = self._dealer_fd in happened
        return self._wakeup.fileno() in happened

    def receive(self, most: int) -> Iterator[Sequence[bytes]]:
        """What the broker has sent: ``most`` of ZeroMQ's messages at most.

        When there are fewer, the next `wait` tells of what comes then; otherwise, and where something was sent after
        the last look, ask `more`.
        """
        ready, self.heard = self.heard, False
        return iter(()) if self._dealer is None else waiting(self._dealer, most, ready=ready)

    @property
    def more(self) -> bool:
        """Whether a message is there, of which the descriptor may not tell."""
        return self._dealer is not None and readable(self._dealer)

    def watch(self) -> Iterator[LinkUp | LinkDown]:
        """What the connection has done. All that waits came before that: take it in before you take the next."""
        while self._monitor is not None and readable(self._monitor):
            event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            yield LinkUp() if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else LinkDown()

    # --------------------------------------------------------------------------------------------- out

    def send_all(self, outgoing: deque[Send]) -> bool:
        """Send all these, in order, small ones together; whether there was anything. Without a socket they stay."""
        if self._dealer is None or not outgoing:
            return False
        out = self.out
        while outgoing:
            first = outgoing.popleft()
            out.send(encode(first.message), first.frames)
        out.flush()
        return True

    def send(self, message: Message) -> None:
        """Send a message of one frame, if there is a socket."""
        if self._dealer is not None:
            send(self._dealer, encode(message))

    def _transmit(self, messages: Sequence[Sequence[Frame]]) -> None:
        assert self._dealer is not None  # see `send_all`
        header, *payload = bundled(messages)
        send(self._dealer, header, payload)
