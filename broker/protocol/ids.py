"""Ids: how results, sessions, stores and plans are named.

A *result id* is 16 bytes: an 8-byte incarnation, random at every start of a session, and an 8-byte
big-endian counter. An invocation with n outputs takes n consecutive ids, so the id of its k-th output
is `nth(id, k)`, known before the command leaves.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from broker.protocol.errors import ProtocolError

__all__ = [
    "COUNTER_END",
    "DIGEST_BYTES",
    "INCARNATION_BYTES",
    "RESULT_ID_BYTES",
    "ResultIds",
    "check_device_id",
    "counter_of",
    "incarnation_of",
    "is_device_id",
    "not_a_device_id",
    "nth",
    "parse_result_id",
    "parts_of",
    "short",
]

RESULT_ID_BYTES = 16
INCARNATION_BYTES = 8
DIGEST_BYTES = 32
COUNTER_END = 1 << 64
"""One more than the largest counter."""

_PARTS = struct.Struct(f">{INCARNATION_BYTES}sQ")
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ResultIds:
    """Hands out the result ids of one incarnation, in order.

    ``random_bytes`` is called once; hand in ``os.urandom``, or a seeded source in a simulation.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self.incarnation = random_bytes(INCARNATION_BYTES)
        self._next = 1

    def take(self, count: int = 1) -> bytes:
        """The first of ``count`` consecutive ids, all taken by this call."""
        if count < 0:
            raise ValueError(f"expected a count of 0 or more, got {count}")
        first = self._next
        self._next += max(count, 1)
        return self.incarnation + first.to_bytes(8, "big")


def nth(result_id: bytes, k: int) -> bytes:
    """The id that lies ``k`` places after ``result_id`` in its incarnation.

    Raises `ProtocolError` when the counter would leave its 8 bytes.
    """
    if k == 0:
        return result_id
    counter = int.from_bytes(result_id[INCARNATION_BYTES:], "big") + k
    if not 0 <= counter < COUNTER_END:
        raise ProtocolError(f"expected a result id with room for {k} more, got {result_id.hex()}")
    return result_id[:INCARNATION_BYTES] + counter.to_bytes(8, "big")


def parts_of(result_id: bytes) -> tuple[bytes, int]:
    """The incarnation and the counter at once, of what certainly has 16 bytes: for whoever needs both."""
    incarnation, counter = _PARTS.unpack(result_id)
    return incarnation, counter


def incarnation_of(result_id: bytes) -> bytes:
    """The 8 bytes that name the session's incarnation."""
    return result_id[:INCARNATION_BYTES]


def counter_of(result_id: bytes) -> int:
    """The counter within the incarnation."""
    return int.from_bytes(result_id[INCARNATION_BYTES:], "big")


def short(result_id: bytes) -> str:
    """Eight hex digits for people: four of the incarnation, then the counter's last four (more, if it needs them)."""
    return f"{result_id[:2].hex()}{counter_of(result_id):04x}"


def parse_result_id(text: str) -> bytes:
    """The id that 32 hex digits name. Raises ValueError, naming what came, for anything else."""
    try:
        raw = bytes.fromhex(text)
    except (ValueError, TypeError):
        raw = b""
    if len(raw) != RESULT_ID_BYTES or len(text) != 2 * RESULT_ID_BYTES:
        raise ValueError(f"expected a result id of 32 hex digits, got {text!r}")
    return raw


def is_device_id(device: str) -> bool:
    """Whether it is 1 to 64 of ``A-Z a-z 0-9 _ . -`` and starts with a letter or digit."""
    return _DEVICE_ID.fullmatch(device) is not None


def not_a_device_id(device: object) -> str:
    """What to say of ``device``, which is no device id."""
    return (
        "expected a device id of 1 to 64 letters, digits, '_', '.' or '-', starting with a letter or digit, "
        f"got {device[:100] if isinstance(device, str) else device!r}"
    )


def check_device_id(device: object) -> str:
    """``device`` itself, if it is a device id. Raises ValueError otherwise."""
    if not isinstance(device, str) or not is_device_id(device):
        raise ValueError(not_a_device_id(device))
    return device
