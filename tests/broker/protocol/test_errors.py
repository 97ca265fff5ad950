"""Errors say what was expected and what came, and carry it as data."""

from __future__ import annotations

import pytest

from broker.protocol.errors import (
    ConnectionRefused,
    EdgePlanError,
    InvalidTransition,
    MessageTooLarge,
    ProtocolError,
    TensorRefused,
    VersionRefused,
)

SENTENCES: list[tuple[EdgePlanError, str]] = [
    (ProtocolError("expected a message, got 3 bytes"), "expected a message, got 3 bytes"),
    (MessageTooLarge(20, 10), "expected a message of at most 10 bytes, got 20 bytes"),
    (TensorRefused("expected an array, got a scalar"), "expected an array, got a scalar"),
    (
        ConnectionRefused("duplicate_device", "pi is connected"),
        "the broker refused this connection (duplicate_device): pi is connected",
    ),
    (
        VersionRefused("version", "expected protocol 1.x, got 2.0"),
        "the broker refused this connection (version): expected protocol 1.x, got 2.0",
    ),
    (
        InvalidTransition("invocation 4f1d0007", "done", "running", ["taken", "finished"]),
        "invocation 4f1d0007 cannot go from done to running; before it: taken; finished",
    ),
    (
        InvalidTransition("device pi", "lost", "lost", []),
        "device pi cannot go from lost to lost; before it: nothing",
    ),
]


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_each_error_has_its_sentence(error: EdgePlanError, sentence: str) -> None:
    """`str` of an error is the whole sentence."""
    assert str(error) == sentence


def test_errors_carry_their_data() -> None:
    """A program reads attributes, and never parses a sentence."""
    large = MessageTooLarge(20, 10)
    assert (large.size, large.limit) == (20, 10)
    refused = ConnectionRefused("full", "no room")
    assert (refused.code, refused.reason) == ("full", "no room")
    broken = InvalidTransition("x", "a", "b", ["one"])
    assert (broken.subject, broken.start, broken.finish, broken.story) == ("x", "a", "b", ("one",))


def test_our_fault_and_the_peers_are_told_apart() -> None:
    """Who catches a peer's errors does not hide our own."""
    assert issubclass(MessageTooLarge, ProtocolError)
    assert issubclass(TensorRefused, ProtocolError)
    assert issubclass(VersionRefused, ConnectionRefused)
    assert not issubclass(InvalidTransition, ProtocolError)
    assert not issubclass(ConnectionRefused, ProtocolError)
