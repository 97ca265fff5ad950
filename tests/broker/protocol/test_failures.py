"""Failures that follow from others: each names its own argument, and all what began it."""

from __future__ import annotations

from broker.protocol.failures import argument_failed
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
