"""Failures that follow from others: each names its own argument, and all what began it. And long ones."""

from __future__ import annotations

from broker.protocol.failures import argument_failed, shortened
from broker.protocol.framing import HEADER_LIMIT, encode
from broker.protocol.messages import Announce, Failure, ResultFailed

FIRST = Failure(code="ExecutionFailed", message="it broke", details={"device": "device_1"})


def test_what_an_argument_ended_with_is_named() -> None:
    """Its id, its code and its sentence."""
    failure = argument_failed(b"a" * 16, FIRST)
    assert failure.code == "ArgumentFailed"
    assert failure.message == f"argument {(b'a' * 16).hex()} has ended without a value: it broke"
    assert failure.details == {"argument": (b"a" * 16).hex(), "code": "ExecutionFailed", "message": "it broke"}


def test_a_chain_names_what_began_it_at_any_length() -> None:
    """And its own argument; nothing grows."""
    failure = FIRST
    for k in range(10_000):
        failure = argument_failed(k.to_bytes(16, "big"), failure)
    argument = (9_999).to_bytes(16, "big").hex()
    assert failure.message == f"argument {argument} has ended without a value: it broke"
    assert failure.details == {"argument": argument, "code": "ExecutionFailed", "message": "it broke"}


def test_one_that_does_not_say_what_began_it_is_named_itself() -> None:
    """It may come from a device of another make."""
    before = Failure(code="ArgumentFailed", message="no argument", details={"code": 5})
    details = argument_failed(b"a" * 16, before).details
    assert (details["code"], details["message"]) == ("ArgumentFailed", "no argument")


def test_a_failure_of_some_length_stays_as_it_is() -> None:
    """Whatever is in its details."""
    failure = Failure(code="ExecutionFailed", message="m" * 4096, details={"op": "o" * 1024, "op_index": 3, "no": None})
    assert shortened(failure) is failure
    assert shortened(FIRST) is FIRST


def test_a_long_failure_is_shortened() -> None:
    """Its sentence, and its details; and their number."""
    failure = Failure(code="c" * 5000, message="m" * 10**6, details={"n" * 5000: 5, "tags": "t" * 10**6})
    assert shortened(failure) == Failure(
        code="c" * 4093 + "...", message="m" * 4093 + "...", details={"n" * 1021 + "...": 5, "tags": "t" * 1021 + "..."}
    )
    many = shortened(Failure(code="c", message="m", details={str(k): k for k in range(1000)}))
    assert many.details == {str(k): k for k in range(32)}


def test_the_longest_failure_leaves_room_in_a_header() -> None:
    """Whatever its characters take in UTF-8."""
    failure = Failure(code="\U0001f600" * 10**4, message="\U0001f600" * 10**6, details={})
    for k in range(100):
        failure.details[f"{k:03}" + "\U0001f600" * 10**4] = "\U0001f600" * 10**4
    event = ResultFailed(id=b"i" * 16, digest=b"d" * 16, failure=shortened(failure))
    assert len(encode(Announce(n=1, event=event))) < HEADER_LIMIT // 2
