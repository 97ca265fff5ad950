"""Failures that follow from other failures, and failures that are too long."""

from __future__ import annotations

from itertools import islice

from broker.protocol.messages import Failure

__all__ = ["argument_failed", "shortened"]

_CODE = "ArgumentFailed"

_TEXT = 4096
"""How many characters a failure's sentence may have, ..."""

_DETAIL = 1024
"""... how many the name and the text of a detail, ..."""

_DETAILS = 32
"""... and how many details there may be."""


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


def shortened(why: Failure) -> Failure:
    """The same, but that it fits into a header with all that may be added to it. What an op says may be long, or the
    tags that nothing carries; and a device of another make may say what it likes.
    """
    texts = [*why.details, *(one for one in why.details.values() if isinstance(one, str))]
    long = len(why.code) > _TEXT or len(why.message) > _TEXT or max(map(len, texts), default=0) > _DETAIL
    if not long and len(why.details) <= _DETAILS:
        return why
    details = islice(why.details.items(), _DETAILS)
    return Failure(
        code=_short(why.code, _TEXT),
        message=_short(why.message, _TEXT),
        details={_short(name, _DETAIL): _short(one, _DETAIL) if isinstance(one, str) else one for name, one in details},
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
