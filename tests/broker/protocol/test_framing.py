"""Decoding gives a message or `ProtocolError`, and nothing else, whatever the bytes."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from broker.protocol import messages as m
from broker.protocol.errors import MessageTooLarge, ProtocolError
from broker.protocol.framing import HEADER_LIMIT, command_digest, decode, encode, size_of
from tests.broker.protocol.message_strategies import MESSAGE_TYPES, any_message, message_of, minimal, tag_of

SLACK = 3_000_000
"""Bytes of nesting that a decoder must survive without exhausting its stack: far beyond `HEADER_LIMIT`."""


def decode_or_refuse(header: bytes) -> Any:
    """The message, or None where the documented error was raised. Any other error ends the test."""
    try:
        return decode(header)
    except ProtocolError:
        return None


# ------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_every_message_round_trips(kind: type[Any]) -> None:
    """Encoded and decoded again, each message is what it was, whichever of its fields are set."""

    @settings(max_examples=25)
    @given(message_of(kind))
    def round_trip(message: m.Message) -> None:
        again = decode(encode(message))
        assert type(again) is kind
        assert again == message
        assert encode(again) == encode(message)

    round_trip()


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_fields_at_the_end_may_be_missing_where_they_have_defaults(kind: type[Any]) -> None:
    """A peer of a smaller minor version does not know them; what is required must be there."""
    required = [field.name for field in fields(kind) if field.required]
    assert required == list(kind.__struct_fields__[: len(required)]), "a required field stands after one with a default"
    message = minimal(kind)
    elements = [tag_of(kind), *[getattr(message, name) for name in required]]
    assert decode(msgspec.msgpack.encode(elements)) == message
    if required:
        with pytest.raises(ProtocolError):
            decode(msgspec.msgpack.encode(elements[:-1]))


@pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)
def test_a_field_more_is_ignored(kind: type[Any]) -> None:
    """A peer of a larger minor version may add fields; this one reads what it knows."""

    @settings(max_examples=5)
    @given(message_of(kind))
    def with_another_field(message: m.Message) -> None:
        full = [tag_of(kind), *[getattr(message, name) for name in message.__struct_fields__]]
        assert decode(msgspec.msgpack.encode([*full, "a field of tomorrow", {"x": [1]}])) == message

    with_another_field()


def test_tags_are_unique_among_messages_commands_and_events() -> None:
    """One integer means one type, wherever it stands."""
    kinds = [*MESSAGE_TYPES, *get_args(m.Command), *get_args(m.Event)]
    tags = [tag_of(kind) for kind in kinds]
    assert len(set(tags)) == len(tags)


def test_a_message_cannot_be_changed() -> None:
    """The same object may be on its way to several peers."""
    with pytest.raises(AttributeError):
        m.Accepted(n=1).n = 2  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- whatever the bytes


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_message_or_the_error(header: bytes) -> None:
    """Noise at the port is refused."""
    decode_or_refuse(header)


@settings(max_examples=1000)
@given(any_message(), st.data())
def test_altered_messages_give_a_message_or_the_error(message: m.Message, data: st.DataObject) -> None:
    """Bytes changed, cut out, put in or doubled: still a message, or the error."""
    header = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4), label="alterations")):
        at = data.draw(st.integers(0, max(len(header) - 1, 0)), label="at")
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"]), label="how"):
            case "flip" if header:
                header[at] ^= data.draw(st.integers(1, 255), label="bits")
            case "cut":
                del header[at : at + data.draw(st.integers(1, 8), label="length")]
            case "insert":
                header[at:at] = data.draw(st.binary(min_size=1, max_size=8), label="bytes")
            case "double":
                header[at:at] = header[at : at + 8]
    decode_or_refuse(bytes(header))


@settings(max_examples=100)
@given(any_message())
def test_a_message_cut_short_is_refused_at_every_length(message: m.Message) -> None:
    """No beginning of a message is a message."""
    header = encode(message)
    for length in range(len(header)):
        with pytest.raises(ProtocolError):
            decode(header[:length])


@given(any_message(), st.binary(min_size=1, max_size=4))
def test_bytes_after_the_message_are_refused(message: m.Message, more: bytes) -> None:
    """A first frame is one message, and nothing else."""
    with pytest.raises(ProtocolError):
        decode(encode(message) + more)


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=3),
    max_leaves=15,
)
TAGS = [tag_of(kind) for kind in [*MESSAGE_TYPES, *get_args(m.Command), *get_args(m.Event)]]


@settings(max_examples=300)
@given(st.sampled_from(TAGS), st.lists(SHAPES, max_size=9))
def test_well_formed_msgpack_under_a_known_tag_gives_a_message_or_the_error(tag: int, fields: list[Any]) -> None:
    """A tag that we know, with anything behind it."""
    decode_or_refuse(msgspec.msgpack.encode([tag, *fields]))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x91\xc0",
        b"\x91\x18",  # a tag that nobody has
        b"\x91\xa7Invoke1",
        b"\xdd\xff\xff\xff\xff",  # 4 billion elements announced, none there
        b"\xdf\xff\xff\xff\xff",
        b"\x92\x2a\xdd\xff\xff\xff\xff",
        b"\x93\x52\x01\xdd\xff\xff\xff\xff",
        b"\x92\x31\xcf\xff\xff\xff\xff\xff\xff\xff\xff",  # a number above the limit of its field
        b"\x92\x31\xff",  # ... and one below
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x93\x22\x92\x01\x00\xc4\x00",  # an incarnation of no bytes
    ],
    ids=bytes.hex,
)
def test_chosen_bytes_are_refused(header: bytes) -> None:
    """Shapes that have broken decoders before."""
    with pytest.raises(ProtocolError):
        decode(header)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa0", b"\x92\x43"], ids=bytes.hex)
def test_deep_nesting_is_refused(opening: bytes) -> None:
    """A header of nothing but openings does not exhaust the stack."""
    with pytest.raises(ProtocolError):
        decode(opening * ((HEADER_LIMIT - 1) // len(opening)))


def test_a_header_over_the_limit_is_refused_unread() -> None:
    """The sentence names both sizes."""
    with pytest.raises(MessageTooLarge, match=f"at most {HEADER_LIMIT} bytes, got {SLACK} bytes"):
        decode(bytes(SLACK))


def test_the_refusal_names_the_place() -> None:
    """Whoever writes an agent in another language learns which element was wrong."""
    with pytest.raises(ProtocolError, match=r"Expected `int`, got `str` - at `\$\[1\]`"):
        decode(msgspec.msgpack.encode([tag_of(m.Accepted), "seven"]))


# ------------------------------------------------------------------------------------------------- digests


@pytest.mark.parametrize(
    ("fields", "which"),
    [
        ([48, 7, "no list", None], "Submit 7"),
        ([55, 8, None], "Announce 8"),
        ([48, "x", []], "a message"),
        ([48], "a message"),
        ([127, 7, None], "a message"),
    ],
)
def test_the_refusal_names_the_number(fields: list[Any], which: str) -> None:
    """Of a message in a numbered stream, so that its sender can look up what was in it."""
    with pytest.raises(ProtocolError, match=f"^expected {which} of protocol 1, got another shape: "):
        decode(msgspec.msgpack.encode(fields))


def test_a_commands_digest_depends_on_its_fields_and_on_each_frame() -> None:
    """Same id with anything else different is another command; where a frame ends counts as well."""
    put = m.Put(id=bytes(16))
    digests = [
        command_digest(put),
        command_digest(m.Put(id=bytes(15) + b"\x01")),
        command_digest(m.Put(id=bytes(16), tags=["a"])),
        command_digest(put, [b"ab"]),
        command_digest(put, [b"a", b"b"]),
        command_digest(put, [b"b", b"a"]),
        command_digest(put, [b"ab", b""]),
    ]
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {16}
    assert command_digest(put, [b"ab"]) == command_digest(m.Put(id=bytes(16)), [memoryview(b"ab")])


def test_sizes_count_all_frames() -> None:
    """Counters and limits speak of bytes, header and payload alike."""
    assert size_of([b"abc", memoryview(b"de"), b""]) == 5
