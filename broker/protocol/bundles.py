"""Several small messages in one of ZeroMQ's.

To send, wake up for and receive a message costs more than most of ours cost by themselves. So whoever has several for
one peer, because it was busy when they came up, sends them in one `Bundle`. None waits for company: what has been
gathered goes out when its sender has nothing else to do. A bundle is on the wire only: `unpack` gives its messages one
by one, as if each had come alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from broker.protocol.errors import ProtocolError
from broker.protocol.framing import HEADER_LIMIT, decode, encode, size_of
from broker.protocol.messages import Bundle, Frame, Message

__all__ = ["BUNDLED_BYTES", "BUNDLE_MESSAGES", "Unpacked", "bundled", "reads_bundles", "unpack"]

BUNDLED_BYTES = 2048
"""The largest message, of all its frames, that goes into a bundle: to copy more costs more than it saves."""

BUNDLE_MESSAGES = 64
"""How many messages of ours go into a bundle at most: more save little, and whoever gets them may as well begin."""

Unpacked: TypeAlias = tuple[Message | ProtocolError, tuple[Frame, ...], int]
"""A message, or what is wrong with it; its payload frames; the bytes of all its frames."""

_NONE: tuple[Frame, ...] = ()


def reads_bundles(version: tuple[int, int]) -> bool:
    """Whether a peer of that version of the protocol does."""
    return version >= (1, 1)


def bundled(messages: Sequence[Sequence[Frame]]) -> Sequence[Frame]:
    """The frames to send for these messages, each given as its frames; there is one at least."""
    return messages[0] if len(messages) == 1 else (encode(Bundle(messages=messages)),)  # type: ignore[arg-type]  # sent, not read: any buffers do


def unpack(frames: Sequence[bytes], *, limit: int = HEADER_LIMIT) -> Iterator[Unpacked]:
    """The messages in what ZeroMQ gave as one. ``limit``: as in `broker.protocol.framing.decode`.

    Whatever is wrong with one of a bundle, the others are as good as if they had come alone.
    """
    first = _judged(frames, limit)
    if type(first[0]) is not Bundle:
        yield first
    elif len(frames) > 1:
        yield ProtocolError(f"expected a bundle without payload, got {len(frames) - 1} frames of it"), (), first[2]
    else:
        for message in first[0].messages:
            one = _judged(message, limit)
            if type(one[0]) is Bundle:
                yield ProtocolError("expected no bundle inside a bundle, got one"), (), one[2]
            else:
                yield one


def _judged(frames: Sequence[bytes], limit: int) -> Unpacked:
    if not frames:
        return ProtocolError("expected a message, got none"), (), 0
    header = frames[0]
    payload, size = _NONE, len(header)
    if len(frames) > 1:
        payload = tuple(frames[1:])
        size += size_of(payload)
    try:
        return decode(header, limit=limit), payload, size
    except ProtocolError as error:
        return error, (), size
