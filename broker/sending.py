"""How a broker's messages leave: at once, or, small ones to one peer, several in one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import zmq

from broker.core import BrokerCore
from broker.effects import PeerBusy, PeerUnreachable
from broker.protocol.bundles import BUNDLE_MESSAGES, BUNDLED_BYTES, bundled
from broker.protocol.framing import size_of
from broker.protocol.messages import Frame
from broker.sockets import send

__all__ = ["Sending"]

Messages = list[Sequence[Frame]]


class Sending:
    """What goes to peers by ``router``. Messages to one of them keep their order; see `broker.protocol.bundles`.

    ``failed`` is called with the event that tells ``core`` that something did not go; ``core`` also counts what went.
    """

    def __init__(
        self, router: zmq.Socket[bytes], core: BrokerCore, failed: Callable[[PeerBusy | PeerUnreachable], None]
    ) -> None:
        self._router = router
        self._core = core
        self._failed = failed
        self._gathered: dict[bytes, Messages] = {}

    def send(self, peer: bytes, frames: Sequence[Frame]) -> None:
        """Send a message of these frames: with the next `flush` at the latest."""
        gathered = self._gathered.get(peer)
        if gathered is not None:
            if size_of(frames) <= BUNDLED_BYTES:
                gathered.append(frames)
                if len(gathered) < BUNDLE_MESSAGES:
                    return
                frames = ()
            del self._gathered[peer]
            self._transmit(peer, gathered)
        if frames:
            if size_of(frames) <= BUNDLED_BYTES and self._core.reads_bundles(peer):
                self._gathered[peer] = [frames]
            else:
                self._transmit(peer, [frames])

    def flush(self) -> None:
        """Send what was gathered."""
        while self._gathered:
            self._transmit(*self._gathered.popitem())

    def _transmit(self, peer: bytes, messages: Messages) -> None:
        try:
            send(self._router, peer, bundled(messages))
        except zmq.Again:
            self._failed(PeerBusy(peer=peer))
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._failed(PeerUnreachable(peer=peer))
        else:
            self._core.sent(peer, sum(map(size_of, messages)))
