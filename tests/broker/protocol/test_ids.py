"""Ids: taken in order, never twice, and refused when they are not ids."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import messages as m
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode, encode
from broker.protocol.ids import (
    ResultIds,
    check_device_id,
    counter_of,
    incarnation_of,
    nth,
    parse_result_id,
    parts_of,
    short,
)

INCARNATION = bytes.fromhex("4f1d0b2277a0c3e9")


def ids() -> ResultIds:
    """Ids of a known incarnation."""
    return ResultIds(lambda count: INCARNATION[:count])


@given(st.lists(st.integers(0, 50), max_size=20))
def test_an_incarnation_never_hands_out_an_id_twice(counts: list[int]) -> None:
    """Whatever counts are asked for, no two takes overlap, and each lies after the one before."""
    source = ids()
    seen: list[bytes] = []
    for count in counts:
        first = source.take(count)
        seen += [nth(first, k) for k in range(max(count, 1))]
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)
    assert all(incarnation_of(one) == INCARNATION for one in seen)


def test_the_first_id_of_an_incarnation_has_counter_one() -> None:
    """The counter starts at 1, so that 0 can never be a result's."""
    assert ids().take() == INCARNATION + bytes(7) + b"\x01"


def test_a_count_below_zero_is_refused() -> None:
    """Nobody can take a negative number of ids."""
    with pytest.raises(ValueError, match="expected a count of 0 or more, got -1"):
        ids().take(-1)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40))
def test_nth_adds_to_the_counter_alone(counter: int, k: int) -> None:
    """`nth` moves the counter by k and keeps the incarnation, or refuses to leave the counter's 8 bytes."""
    start = INCARNATION + counter.to_bytes(8, "big")
    if counter + k < 1 << 64:
        moved = nth(start, k)
        assert (incarnation_of(moved), counter_of(moved)) == parts_of(moved) == (INCARNATION, counter + k)
        assert nth(moved, -k) == start
    else:
        with pytest.raises(ProtocolError, match="with room for"):
            nth(start, k)


def test_nth_refuses_to_go_below_zero() -> None:
    """An id before the incarnation's first is none."""
    with pytest.raises(ProtocolError, match="expected a result id with room for -2 more"):
        nth(INCARNATION + bytes(7) + b"\x01", -2)


def test_short_is_eight_hex_digits_and_more_for_large_counters() -> None:
    """The short form shows the incarnation's start and the whole counter."""
    assert short(INCARNATION + (7).to_bytes(8, "big")) == "4f1d0007"
    assert short(INCARNATION + (0x12345).to_bytes(8, "big")) == "4f1d12345"


@given(st.binary(min_size=16, max_size=16))
def test_an_id_survives_its_hex_form(result_id: bytes) -> None:
    """What `hex` writes, `parse_result_id` reads."""
    assert parse_result_id(result_id.hex()) == result_id


@pytest.mark.parametrize("text", ["", "00", "zz" * 16, "0" * 31, "0" * 33, " " + "0" * 32, "00 " * 15 + "00", "0" * 64])
def test_anything_but_32_hex_digits_is_refused(text: str) -> None:
    """The sentence says what was expected and what came."""
    with pytest.raises(ValueError, match="expected a result id of 32 hex digits, got"):
        parse_result_id(text)


GOOD_DEVICE_IDS = ["a", "pi-kitchen", "0", "A.b_c-9", "x" * 64]
BAD_DEVICE_IDS = ["", "-pi", ".", "pi kitchen", "pi/kitchen", "x" * 65, "pi\n", "pï", "pi\0"]


@pytest.mark.parametrize("device", GOOD_DEVICE_IDS)
def test_a_device_id_is_taken_alike_by_the_check_and_in_messages(device: str) -> None:
    """What `check_device_id` takes, travels."""
    assert check_device_id(device) == device
    message = m.Register(version=(1, 1), device=device, store=bytes(8), boot=bytes(8))
    assert decode(encode(message)) == message


@pytest.mark.parametrize("device", BAD_DEVICE_IDS)
def test_no_device_id_is_refused_alike_by_the_check_and_in_messages(device: str) -> None:
    """What `check_device_id` refuses, a peer cannot smuggle in either."""
    with pytest.raises(ValueError, match="expected a device id of 1 to 64 letters"):
        check_device_id(device)
    message = m.Register(version=(1, 1), device=device, store=bytes(8), boot=bytes(8))
    with pytest.raises(ProtocolError, match="got another shape"):
        decode(msgspec.msgpack.encode(message))
