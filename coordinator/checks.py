"""What users say that goes into messages as they said it, checked before anything is sent.

A broker refuses a message of another shape than the protocol's, and whatever its session sent behind it would wait.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TypeVar

from broker.protocol.framing import is_text
from broker.protocol.ids import check_device_id

__all__ = [
    "checked_description",
    "checked_devices",
    "checked_limit",
    "checked_outbox",
    "checked_prefix",
    "checked_result_id",
    "checked_seed",
    "checked_session_id",
    "checked_session_name",
    "checked_tags",
    "checked_timeout",
    "not_a_timeout",
]

_TAG_LENGTH = 256
_SESSION_NAME_LENGTH = 256
_ID_BYTES = 16
_HEX_DIGITS = frozenset("0123456789abcdef")

Timeout = TypeVar("Timeout", bound=float | None)


def checked_tags(tags: object) -> tuple[str, ...]:
    """The tags, each once; a string is one. Raises ValueError for what is no tag."""
    if not isinstance(tags, Iterable):
        raise ValueError(f"expected tags of 1 to {_TAG_LENGTH} characters, got {tags!r}")
    given = [tags] if isinstance(tags, str) else list(tags)
    checked = [tag for tag in given if is_text(tag) and 1 <= len(tag) <= _TAG_LENGTH]
    if len(checked) != len(given):
        raise ValueError(f"expected tags of 1 to {_TAG_LENGTH} characters, got {given!r}")
    return tuple(dict.fromkeys(checked))


def checked_devices(devices: object) -> list[str]:
    """The devices' names; a string is one. Raises ValueError for what is none."""
    if not isinstance(devices, Iterable):
        raise ValueError(f"expected devices to be a list of device ids, got {devices!r}")
    return [check_device_id(device) for device in ([devices] if isinstance(devices, str) else devices)]


def checked_description(description: object) -> str:
    """The description. Raises ValueError for what is no text."""
    if not is_text(description):
        raise ValueError(f"expected a description in words, got {description!r}")
    return description


def checked_seed(seed: object, name: str = "seed") -> int:
    """The seed, as torch takes it: any whole number of 64 bits. Raises ValueError for what is none."""
    try:
        number = operator.index(seed)  # type: ignore[arg-type]  # users pass what they like
    except TypeError:
        number = 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"expected {name} to be a whole number of 64 bits, got {seed!r}")
    return number


def checked_limit(limit: object) -> int:
    """The limit: how many of something are wanted. Raises ValueError for what is no whole number of at least 0."""
    if not isinstance(limit, int) or limit < 0:
        raise ValueError(f"expected a limit of at least 0, got {limit!r}")
    return limit


def checked_outbox(commands: object, size: object) -> None:
    """How much may wait to be accepted. Raises ValueError for what are no whole numbers of at least 1."""
    for name, limit in (("max_unaccepted", commands), ("max_unaccepted_bytes", size)):
        if not isinstance(limit, int) or limit < 1:
            raise ValueError(f"expected {name} to be a whole number of at least 1, got {limit!r}")


def checked_timeout(timeout: Timeout) -> Timeout:
    """The timeout, in seconds; None: without end. Raises ValueError for what is no number."""
    try:
        good = not math.isnan(0.0 if timeout is None else timeout)
    except (TypeError, OverflowError):
        good = False
    if not good:
        raise not_a_timeout(timeout)
    return timeout


def not_a_timeout(timeout: object) -> ValueError:
    """The error for ``timeout``, which is none."""
    return ValueError(f"expected a timeout in seconds, got {timeout!r}")


def checked_prefix(prefix: object) -> str:
    """What ids begin with, in small letters. Raises ValueError for what is no hex."""
    small = prefix.lower() if isinstance(prefix, str) else "none"
    if not set(small) <= _HEX_DIGITS or len(small) > 2 * _ID_BYTES:
        raise ValueError(f"expected a prefix of up to {2 * _ID_BYTES} hex digits, got {prefix!r}")
    return small


def checked_session_id(id: object) -> str:
    """The session's id, in small letters. Raises ValueError for what is none: half of the digits of a result's id."""
    small = id.lower() if isinstance(id, str) else ""
    if not set(small) <= _HEX_DIGITS or len(small) != _ID_BYTES:
        raise ValueError(f"expected a session id of {_ID_BYTES} hex digits, got {id!r}")
    return small


def checked_session_name(name: object) -> str:
    """The name; empty: there is none. Raises ValueError for what is no text, or too long."""
    if not is_text(name):
        raise ValueError(f"expected a session name in words, got {name!r}")
    if len(name) > _SESSION_NAME_LENGTH:
        raise ValueError(f"expected a session name of at most {_SESSION_NAME_LENGTH} characters, got {len(name)}")
    return name


def checked_result_id(id: bytes) -> bytes:
    """The raw id. Raises ValueError unless it is of 16 bytes."""
    if len(id) != _ID_BYTES:
        raise ValueError(f"expected a result id of {_ID_BYTES} bytes, got {len(id)}")
    return id
