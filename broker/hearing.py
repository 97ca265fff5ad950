"""What a peer has said, as the events of the broker's core: for the driver, and for whoever simulates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.effects import Malformed
from broker.protocol.bundles import Unpacked
from broker.protocol.effects import Received
from broker.protocol.errors import ProtocolError
from broker.protocol.messages import Announce, Submit

__all__ = ["events_of"]

_NUMBERED = frozenset({Submit, Announce})
"""Of these many come in one bundle. Whatever else comes with them is answered after what the streams say by then."""

_NOTHING = (None, (), 0)


def events_of(peer: bytes, parts: Sequence[Unpacked]) -> Iterator[tuple[Received | Malformed, bool]]:
    """The event of each message that ``peer`` has sent in one, in their order; each with what to hand to
    `BrokerCore.handle` as ``more``.
    """
    for (message, frames, size), following in zip(parts, (*parts[1:], _NOTHING), strict=True):
        more = type(following[0]) in _NUMBERED
        if isinstance(message, ProtocolError):
            yield Malformed(peer=peer, reason=str(message), size=size), more
        else:
            yield Received(message=message, frames=frames, peer=peer, size=size), more
