"""`LogStream`: the log events of all programs of a fleet, as they happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from broker.logs import DEBUG, LEVELS, Record
from coordinator.subscriptions import Subscription

if TYPE_CHECKING:
    from coordinator.session_socket import Context

__all__ = ["LogStream"]

_decoder = msgspec.msgpack.Decoder(Record)


class LogStream(Subscription[Record]):
    """Iterates over log events of ``level`` (a number of `broker.logs.LEVELS`) and above. See `Fleet.logs`.

    ``device``, ``component``, ``session`` (16 hex digits): only events that name these. ``result``: only events in
    which any field names a result id that begins with these hex digits. Both in small letters. Programs begin to send
    when somebody follows; what happened before is not told.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        *,
        level: int = DEBUG,
        device: str = "",
        component: str = "",
        session: str = "",
        result: str = "",
    ) -> None:
        super().__init__(context, endpoint, [b"l.%d." % number for number in LEVELS.values() if number >= level])
        self._wanted = {name: value for name, value in (("component", component), ("session", session)) if value}
        self._device = device
        self._result = result

    def _parse(self, frames: Sequence[bytes]) -> Record | None:
        try:
            record = _decoder.decode(frames[1])
        except (msgspec.MsgspecError, UnicodeDecodeError, IndexError):
            return None
        if any(record.get(name) != value for name, value in self._wanted.items()):
            return None
        if self._device and self._device not in _devices_of(record):
            return None
        if self._result and not any(
            isinstance(value, str) and value.startswith(self._result) for value in record.values()
        ):
            return None
        return record


def _devices_of(record: Record) -> list[str]:
    """The devices that an event names: a session's events may be about several."""
    return [str(record.get("device", "")), *str(record.get("devices", "")).split(",")]
