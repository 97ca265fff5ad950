"""Several small messages in one of ZeroMQ's.

To send, wake up for and receive a message costs more than most of ours cost by themselves. So whoever has several for
one peer, because it was busy when they came up, sends them in one `Bundle`. None waits for company: what has been
gathered goes out when its sender has nothing else to do. A bundle is on the wire only: `unpack` gives its messages one
by one, as if each had come alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from broker.protocol.errors import ProtocolError
from broker.protocol.framing import HEADER_LIMIT, NOT_A_MESSAGE, decode, decode_unjudged, encode, size_of
from broker.protocol.messages import Bundle, Frame, Message

__all__ = ["BUNDLED_BYTES", "BUNDLE_MESSAGES", "Bundler", "Unpacked", "bundled", "reads_bundles", "unpack"]

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


class Bundler:
    """What goes to one peer, in its order: small messages with the next `flush`, together, if ``bundling``; any other
    at once, after what was gathered before it.

    ``transmit`` sends messages, each given as its frames, in one of ZeroMQ's (see `bundled`): one at least. What it
    raises comes out of `send` and `flush`, and what it was given is gathered no longer.
    """

    __slots__ = ("_gathered", "_transmit", "bundling")

    def __init__(self, transmit: Callable[[Sequence[Sequence[Frame]]], None], *, bundling: bool = False) -> None:
        self._transmit = transmit
        self._gathered: list[Sequence[Frame]] = []
        self.bundling = bundling
        """Whether the peer reads bundles, as far as is known."""

    def __len__(self) -> int:
        """How many messages are gathered."""
        return len(self._gathered)

    def send(self, header: bytes, payload: Sequence[Frame] = ()) -> None:
        """Send a message, with the next `flush` at the latest."""
        frames = (header, *payload) if payload else (header,)
        if not self.bundling or (size_of(frames) if payload else len(header)) > BUNDLED_BYTES:
            self.flush()
            self._transmit((frames,))
            return
        self._gathered.append(frames)
        if len(self._gathered) == BUNDLE_MESSAGES:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._transmit(gathered)

    def clear(self) -> None:
        """Forget what was gathered."""
        self._gathered.clear()


def unpack(frames: Sequence[bytes], *, limit: int = HEADER_LIMIT) -> list[Unpacked]:
    """The messages in what ZeroMQ gave as one. ``limit``: as in `broker.protocol.framing.decode`.

    Whatever is wrong with one of a bundle, the others are as good as if they had come alone.
    """
    first = _judged(frames, limit)
    bundle = first[0]
    if type(bundle) is not Bundle:
        return [first]
    if len(frames) > 1:
        return [(ProtocolError(f"expected a bundle without payload, got {len(frames) - 1} frames of it"), (), first[2])]
    try:
        return _all_right(bundle)
    except (*NOT_A_MESSAGE, ProtocolError, IndexError):
        return [_judged_inside(each, limit) for each in bundle.messages]


def _all_right(bundle: Bundle) -> list[Unpacked]:
    """The messages of a bundle, if all are right. Nearly all messages come this way: nothing is done twice.

    Raises one of `NOT_A_MESSAGE`, `ProtocolError` or IndexError if any is wrong; to say what is wrong with which is for
    `_judged_inside`. None is longer than the bundle, which has kept to the limit.
    """
    unpacked: list[Unpacked] = []
    for frames in bundle.messages:
        header = frames[0]
        message, payload, size = decode_unjudged(header), _NONE, len(header)
        if len(frames) > 1:
            payload = tuple(frames[1:])
            size += size_of(payload)
        if type(message) is Bundle:
            raise _nested()
        unpacked.append((message, payload, size))
    return unpacked


def _judged_inside(frames: Sequence[bytes], limit: int) -> Unpacked:
    one = _judged(frames, limit)
    return one if type(one[0]) is not Bundle else (_nested(), (), one[2])


def _nested() -> ProtocolError:
    return ProtocolError("expected no bundle inside a bundle, got one")


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
