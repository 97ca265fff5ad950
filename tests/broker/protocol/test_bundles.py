"""Several messages in one, and each of them as if it had come alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import zmq

from broker.protocol import messages as m
from broker.protocol.bundles import BUNDLE_MESSAGES, BUNDLED_BYTES, Bundler, bundled, reads_bundles, unpack
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


class Wire:
    """Where a `Bundler` sends: each transmission as its messages. ``full``: it takes nothing."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[m.Frame, ...]]] = []
        self.full = False

    def transmit(self, messages: Sequence[Sequence[m.Frame]]) -> None:
        """Take messages that go in one."""
        if self.full:
            raise zmq.Again
        self.sent.append([tuple(frames) for frames in messages])


def test_small_messages_go_together_and_none_overtakes_another() -> None:
    """A large one goes at once, behind those before it."""
    wire = Wire()
    out = Bundler(wire.transmit, bundling=True)
    out.flush()
    out.send(b"1")
    out.send(b"2", [b"value", b""])
    assert (wire.sent, len(out)) == ([], 2)
    large = bytes(BUNDLED_BYTES)
    out.send(b"3", [large])
    out.send(large)  # as large as a small one may be
    out.flush()
    out.flush()
    assert wire.sent == [[(b"1",), (b"2", b"value", b"")], [(b"3", large)], [(large,)]]


def test_as_many_as_go_into_one_are_not_kept_back() -> None:
    """They leave without a flush."""
    wire = Wire()
    out = Bundler(wire.transmit, bundling=True)
    for n in range(BUNDLE_MESSAGES + 1):
        out.send(bytes([n]))
    assert [len(messages) for messages in wire.sent] == [BUNDLE_MESSAGES]
    assert len(out) == 1


def test_a_peer_that_reads_no_bundles_gets_each_message_at_once() -> None:
    """Also once it is known that it does not, behind what was gathered before."""
    wire = Wire()
    out = Bundler(wire.transmit)
    out.send(b"1")
    out.bundling = True
    out.send(b"2")
    out.send(b"3")
    out.bundling = False
    out.send(b"4")
    assert wire.sent == [[(b"1",)], [(b"2",), (b"3",)], [(b"4",)]]


def test_what_could_not_be_sent_is_said_once_and_not_gathered_any_more() -> None:
    """Nor is what was forgotten."""
    wire = Wire()
    out = Bundler(wire.transmit, bundling=True)
    out.send(b"1")
    wire.full = True
    with pytest.raises(zmq.Again):
        out.flush()
    out.flush()
    out.send(b"2")
    out.clear()
    wire.full = False
    out.flush()
    assert (wire.sent, len(out)) == ([], 0)


def test_who_reads_bundles() -> None:
    """Version 1.1 on."""
    assert not reads_bundles((1, 0))
    assert reads_bundles((1, 1))
    assert reads_bundles((1, 12))
    assert reads_bundles(m.PROTOCOL_VERSION)
    assert type(decode(encode(m.Bundle(messages=[])))) is m.Bundle
