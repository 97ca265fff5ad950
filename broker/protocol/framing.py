"""Messages to frames and back.

The first frame is the message itself (msgpack); the others are payload, which only its last receiver looks into.
`decode` gives a message or `ProtocolError`, and nothing else, whatever the bytes: see tests/broker/protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeGuard

import msgspec

from broker.protocol import messages as m
from broker.protocol.errors import MessageTooLarge, ProtocolError
from broker.protocol.messages import Invoke

__all__ = [
    "ANSWER_LIMIT",
    "HEADER_LIMIT",
    "MESSAGE_LIMIT",
    "NOT_A_MESSAGE",
    "command_digest",
    "decode",
    "decode_unjudged",
    "encode",
    "is_text",
    "size_of",
]

HEADER_LIMIT = 1 << 20
"""The largest first frame, in bytes."""

ANSWER_LIMIT = 64 << 20
"""The largest first frame that a session takes from its broker, in bytes: what is known of 10,000 devices is long."""

MESSAGE_LIMIT = 4 << 20
"""The largest message by default, all frames, in bytes. What is larger moves as a blob, in chunks."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[m.Message] = msgspec.msgpack.Decoder(m.Message)

_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])
_natural = msgspec.msgpack.Decoder(m.Natural)

_NUMBERED = {kind.__struct_config__.tag: kind.__name__ for kind in (m.Submit, m.Deliver, m.Announce, m.Notify)}

_encode = _encoder.encode

encode: Callable[[m.Message], bytes] = _encode
"""The first frame of a message. What the library gives, as it is: a function of ours around it costs as much again."""

decode_unjudged: Callable[[bytes | memoryview], m.Message] = _decoder.decode
"""`decode` for whoever has looked at the length, and asks `decode` what is wrong when this raises `NOT_A_MESSAGE`."""

NOT_A_MESSAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What bytes that are no message raise in the decoder."""

_new_hash = hashlib.blake2b(digest_size=16).copy  # to copy one costs half of what it costs to make one
_BYTES = [bytes((number,)) for number in range(256)]


def decode(header: bytes | memoryview, *, limit: int = HEADER_LIMIT) -> m.Message:
    """The message whose first frame is ``header``, of at most ``limit`` bytes.

    Raises `ProtocolError` for anything that is not one.
    """
    if len(header) > limit:
        raise MessageTooLarge(len(header), limit)
    try:
        return decode_unjudged(header)
    except msgspec.ValidationError as error:
        major = m.PROTOCOL_VERSION[0]
        what = _told(header)
        raise ProtocolError(f"expected {what} of protocol {major}, got another shape: {error}") from None
    except NOT_A_MESSAGE as error:
        raise ProtocolError(f"expected msgpack, got {len(header)} bytes that are not: {error}") from None


def _told(header: bytes | memoryview) -> str:
    """What this was to be: of a numbered stream, which message. Its sender keeps it by that number, and can say what
    was in it.
    """
    try:
        tag, number, *_ = _parts.decode(header)
        kind, n = _NUMBERED.get(_natural.decode(tag)), _natural.decode(number)
    except (ValueError, *NOT_A_MESSAGE):
        kind = None
    return "a message" if kind is None else f"{kind} {n}"


def command_digest(command: m.Command, frames: Sequence[m.Frame] = ()) -> bytes:
    """16 bytes that tell this command from any other with the same id: BLAKE2b-128 of its encoding, then of each frame
    with its length in front (8 bytes, little-endian).

    What version 1.0 did not have is left out where it is nil: peers of all minor versions must find the same.
    """
    encoded = _encode(command)
    if type(command) is Invoke and command.variant is None:
        later = 1 if command.fold is not None else 2  # the array has fewer than 16 elements: one byte says how many
        encoded = _BYTES[encoded[0] - later] + encoded[1:-later]
    digest = _new_hash()
    digest.update(encoded)
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.digest()


def size_of(frames: Sequence[m.Frame]) -> int:
    """The bytes of all frames."""
    return len(frames[0]) if len(frames) == 1 else sum(map(len, frames))  # one, mostly


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a str that a message can carry, as UTF-8: half of a surrogate pair can't be."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
