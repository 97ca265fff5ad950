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

__all__ = ["Sending"]


class Sending:
    """What goes to peers. Messages to one of them keep their order; see `broker.protocol.bundles`.

    ``transmit`` sends frames to a peer by a ROUTER, and raises what that does. ``failed`` is called with the event that
    tells ``core`` that something did not go; ``core`` also counts what went.
    """

    def __init__(
        self,
        transmit: Callable[[bytes, Sequence[Frame]], None],
        core: BrokerCore,
        failed: Callable[[PeerBusy | PeerUnreachable], None],
    ) -> None:
        self._send_now = transmit
        self._core = core
        self._failed = failed
        self._gathered: dict[bytes, list[Sequence[Frame]]] = {}
        """What will go to each peer together: messages as their frames."""

    def send(self, peer: bytes, header: bytes, payload: Sequence[Frame] = ()) -> None:
        """Send a message: with the next `flush` at the latest."""
        frames = (header, *payload)
        size = size_of(frames)
        gathered = self._gathered.get(peer)
        if size > BUNDLED_BYTES or (gathered is None and not self._core.reads_bundles(peer)):
            if gathered is not None:
                self._send_gathered(peer)
            self._transmit(peer, frames, size)
        elif gathered is None:
            self._gathered[peer] = [frames]
        else:
            gathered.append(frames)
            if len(gathered) == BUNDLE_MESSAGES:
                self._send_gathered(peer)

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gathered:
            for peer in list(self._gathered):
                self._send_gathered(peer)

    def _send_gathered(self, peer: bytes) -> None:
        messages = self._gathered.pop(peer)
        self._transmit(peer, bundled(messages), sum(map(size_of, messages)))

    def _transmit(self, peer: bytes, frames: Sequence[Frame], size: int) -> None:
        try:
            self._send_now(peer, frames)
        except zmq.Again:
            self._failed(PeerBusy(peer=peer))
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._failed(PeerUnreachable(peer=peer))
        else:
            self._core.sent(peer, size)
