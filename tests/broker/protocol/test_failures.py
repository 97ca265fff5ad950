"""Failures that follow from others: each names its own argument, and all what began it. And long ones."""

from __future__ import annotations

from broker.protocol.failures import argument_failed, shortened
from broker.protocol.messages import Failure

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
    failure = Failure(code="ExecutionFailed", message="m" * 4096, details={"op": "o" * 4096, "op_index": 3, "no": None})
    assert shortened(failure) is failure
    assert shortened(FIRST) is FIRST


def test_a_long_failure_is_shortened() -> None:
    """Its sentence, and its details; and their number."""
    failure = Failure(code="c" * 5000, message="m" * 10**6, details={"n" * 5000: 5, "tags": "t" * 10**6})
    assert shortened(failure) == Failure(
        code="c" * 4093 + "...", message="m" * 4093 + "...", details={"n" * 4093 + "...": 5, "tags": "t" * 4093 + "..."}
    )
    many = shortened(Failure(code="c", message="m", details={str(k): k for k in range(1000)}))
    assert many.details == {str(k): k for k in range(32)}
