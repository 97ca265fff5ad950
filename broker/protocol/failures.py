"""Failures that follow from other failures."""

from __future__ import annotations

from broker.protocol.messages import Failure

__all__ = ["argument_failed"]

_CODE = "ArgumentFailed"


def argument_failed(argument: bytes, why: Failure) -> Failure:
    """The failure of a command whose ``argument`` has ended without a value.

    Along a chain of commands, each names its own argument, and all name what began it. One that quoted the failure
    before it would be longer than that one, and the last of some thousands longer than a message may be.
    """
    code, message = why.code, why.message
    if code == _CODE:
        began, said = why.details.get("code"), why.details.get("message")
        if isinstance(began, str) and isinstance(said, str):
            code, message = began, said
    return Failure(
        code=_CODE,
        message=f"argument {argument.hex()} has ended without a value: {message}",
        details={"argument": argument.hex(), "code": code, "message": message},
    )
