"""How a broker's messages leave: at once, or, small ones to one peer, several in one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from broker.core import BrokerCore
from broker.effects import PeerBusy, PeerUnreachable
from broker.protocol.bundles import Gathering, bundled
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
        self._gatherings: dict[bytes, Gathering] = {}
        """Of those to whom something was sent since the last `flush`."""

    def send(self, peer: bytes, header: bytes, payload: Sequence[Frame] = ()) -> None:
        """Send a message: with the next `flush` at the latest."""
        gathering = self._gatherings.get(peer)
        if gathering is None:
            bundling = self._core.reads_bundles(peer)
            gathering = self._gatherings[peer] = Gathering(partial(self._transmit, peer), bundling=bundling)
        gathering.send(header, payload)

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gatherings:
            gatherings, self._gatherings = self._gatherings, {}
            for gathering in gatherings.values():
                gathering.flush()

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
