"""Several messages in one, and each of them as if it had come alone."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.bundles import bundled, reads_bundles, unpack
from broker.protocol.errors import MessageTooLarge, ProtocolError
from broker.protocol.framing import HEADER_LIMIT, decode, encode

TAKEN = m.Taken(n=3)
ANNOUNCE = m.Announce(n=1, event=m.ResultReady(id=bytes(16), digest=bytes(16), inline=True))


def test_messages_come_out_as_they_went_in() -> None:
    """In their order, with their payload, which may be views of other memory; the size is that of each."""
    value = b"one value"
    frames = bundled([(encode(TAKEN),), (encode(ANNOUNCE), memoryview(value), b""), (encode(TAKEN),)])
    assert len(frames) == 1
    size = len(encode(ANNOUNCE)) + len(value)
    taken = (TAKEN, (), len(encode(TAKEN)))
    assert list(unpack([bytes(frame) for frame in frames])) == [taken, (ANNOUNCE, (value, b""), size), taken]


def test_one_message_is_no_bundle() -> None:
    """It is sent as it is, and a peer of any version reads it."""
    frames = [encode(ANNOUNCE), b"value"]
    assert bundled([frames]) == frames
    assert list(unpack(frames)) == [(ANNOUNCE, (b"value",), len(frames[0]) + 5)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([b"\xc1"], "expected msgpack"),
        ([], "expected a message, got none"),
        ([encode(m.Bundle(messages=[[encode(TAKEN)]]))], "no bundle inside a bundle"),
        ([b"\x92\x7f\x01"], "another shape"),
    ],
)
def test_a_wrong_message_is_wrong_alone(wrong: list[bytes], words: str) -> None:
    """The others of its bundle are as good as if they had come by themselves."""
    bundle = encode(m.Bundle(messages=[[encode(TAKEN)], wrong, [encode(ANNOUNCE), b"value"]]))
    first, (error, frames, size), last = unpack([bundle])
    assert first[0] == TAKEN
    assert isinstance(error, ProtocolError)
    assert words in str(error)
    assert (frames, size) == ((), sum(map(len, wrong)))
    assert last[:2] == (ANNOUNCE, (b"value",))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "expected a message, got none"),
        ([encode(m.Bundle(messages=[[encode(TAKEN)]])), b"x", b"y"], "without payload, got 2 frames"),
        ([encode(m.Bundle(messages=[[encode(TAKEN)]] * 257))], "length <= 256"),
    ],
)
def test_a_wrong_bundle_is_one_error(frames: list[bytes], words: str) -> None:
    """Nothing of it counts."""
    [(error, _, _)] = unpack(frames)
    assert isinstance(error, ProtocolError)
    assert words in str(error)


def test_the_limit_is_for_the_bundle_too() -> None:
    """A header is a header."""
    frames = [encode(m.Bundle(messages=[[encode(TAKEN), bytes(HEADER_LIMIT)]]))]
    [(error, _, _)] = unpack(frames)
    assert isinstance(error, MessageTooLarge)
    [(message, _, _)] = unpack(frames, limit=2 * HEADER_LIMIT)
    assert message == TAKEN


def test_an_empty_bundle_is_nothing() -> None:
    """And no error."""
    assert list(unpack([encode(m.Bundle(messages=[]))])) == []


def test_who_reads_bundles() -> None:
    """Version 1.1 on."""
    assert not reads_bundles((1, 0))
    assert reads_bundles((1, 1))
    assert reads_bundles((1, 12))
    assert reads_bundles(m.PROTOCOL_VERSION)
    assert type(decode(encode(m.Bundle(messages=[])))) is m.Bundle
