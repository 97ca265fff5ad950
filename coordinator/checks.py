"""What users say that goes into messages as they said it, checked before anything is sent.

A broker refuses a message of another shape than the protocol's, and whatever its session sent behind it would wait.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from broker.protocol.framing import is_text

__all__ = [
    "checked_description",
    "checked_limit",
    "checked_result_id",
    "checked_seed",
    "checked_session_name",
    "checked_tags",
]

_TAG_LENGTH = 256
_SESSION_NAME_LENGTH = 256
_ID_BYTES = 16


def checked_tags(tags: Sequence[object]) -> tuple[str, ...]:
    """The tags, each once. Raises ValueError for what is no tag."""
    checked = [tag for tag in tags if is_text(tag) and 1 <= len(tag) <= _TAG_LENGTH]
    if len(checked) != len(tags):
        raise ValueError(f"expected tags of 1 to {_TAG_LENGTH} characters, got {list(tags)!r}")
    return tuple(dict.fromkeys(checked))


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
