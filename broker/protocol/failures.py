"""Failures that more than one program makes."""

from __future__ import annotations

from broker.protocol.messages import Failure

__all__ = ["argument_failed"]


def argument_failed(argument: bytes, why: Failure) -> Failure:
    """The failure of a command whose ``argument`` (an id) has ended without a value."""
    name = argument.hex()
    return Failure(
        code="ArgumentFailed",
        message=f"argument {name} has ended without a value: {why.message}",
        details={**why.details, "argument": name, "code": why.code, "message": why.message},
    )
