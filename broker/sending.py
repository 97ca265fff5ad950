"""How a broker's messages leave: at once, or, small ones to one peer, several in one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from broker.core import BrokerCore
from broker.effects import PeerBusy, PeerUnreachable
from broker.protocol.bundles import Bundler, bundled
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
        self._bundlers: dict[bytes, Bundler] = {}
        """Of those to whom something was sent since the last `flush`."""

    def send(self, peer: bytes, header: bytes, payload: Sequence[Frame] = ()) -> None:
        """Send a message: with the next `flush` at the latest."""
        bundler = self._bundlers.get(peer)
        if bundler is None:
            bundling = self._core.reads_bundles(peer)
            bundler = self._bundlers[peer] = Bundler(partial(self._transmit, peer), bundling=bundling)
        bundler.send(header, payload)

    def flush(self) -> None:
        """Send what was gathered."""
        if self._bundlers:
            bundlers, self._bundlers = self._bundlers, {}
            for bundler in bundlers.values():
                bundler.flush()

    def _transmit(self, peer: bytes, messages: Sequence[Sequence[Frame]]) -> None:
        try:
            self._send_now(peer, bundled(messages))
        except zmq.Again:
            self._failed(PeerBusy(peer=peer))
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._failed(PeerUnreachable(peer=peer))
        else:
            self._core.sent(peer, sum(map(size_of, messages)))
