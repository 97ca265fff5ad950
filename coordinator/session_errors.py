"""What can go wrong with a session itself: no broker, no room, closed, taken over. Exported by `coordinator.errors`."""

from __future__ import annotations

from broker.protocol.errors import ConnectionRefused, EdgePlanError, VersionRefused
from broker.protocol.messages import Failure, RefusalCode

__all__ = [
    "BrokerUnreachable",
    "FleetClosed",
    "LedgerLost",
    "NotAccepted",
    "OutboxFull",
    "SessionTakenOver",
    "session_error",
]


class BrokerUnreachable(EdgePlanError, TimeoutError):
    """No broker at ``endpoint`` has answered within ``timeout`` seconds."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        super().__init__(endpoint, timeout)

    def __str__(self) -> str:
        return f"no broker answers at {self.endpoint} (waited {self.timeout:g} s): is one running there?"


class NotAccepted(EdgePlanError, TimeoutError):
    """The broker has not accepted all that was sent within ``timeout`` seconds: ``unaccepted`` commands are here only.

    They are sent again until it does. ``reason`` is what the broker says, where it is busy.
    """

    def __init__(self, unaccepted: int, timeout: float, reason: str = "") -> None:
        self.unaccepted = unaccepted
        self.timeout = timeout
        self.reason = reason
        super().__init__(unaccepted, timeout, reason)

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"the broker has not accepted {self.unaccepted} commands within {self.timeout:g} s{why}; they may still go"
        )


class OutboxFull(EdgePlanError):
    """Too much waits here for the broker to accept it, so nothing was sent: see `Fleet.flush`.

    ``unaccepted`` commands of ``size`` bytes wait, and ``limit`` of the one and ``limit_bytes`` of the other are what
    `connect` was given. ``reason`` is what the broker says, where it is busy; empty where it can't be reached.
    """

    def __init__(self, *, unaccepted: int, size: int, limit: int, limit_bytes: int, reason: str = "") -> None:
        self.unaccepted = unaccepted
        self.size = size
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.reason = reason
        super().__init__(unaccepted, size, limit, limit_bytes, reason)

    def __str__(self) -> str:
        why = f", which is busy: {self.reason}" if self.reason else ""
        return (
            f"{self.unaccepted} commands of {self.size} bytes wait for the broker{why}; at most {self.limit} commands "
            f"or {self.limit_bytes} bytes may: wait with fleet.flush(timeout), then call again"
        )


class FleetClosed(EdgePlanError):
    """The fleet was closed: nothing can be sent or waited for any more."""

    def __str__(self) -> str:
        return "this fleet was closed: connect again"


class SessionTakenOver(EdgePlanError):
    """A newer incarnation of this named session has connected, and this one may not speak any more."""

    def __init__(self, session: str = "", reason: str = "") -> None:
        self.session = session
        self.reason = reason
        super().__init__(session, reason)

    def __str__(self) -> str:
        return f"session {self.session!r} was taken over by a newer process of that name"


class LedgerLost(EdgePlanError):
    """The broker came back with a new ledger, and what this id names can't be sent again."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(id)

    def __str__(self) -> str:
        return f"the broker lost its ledger, and with it result {self.id}, whose command can't be sent again"


def session_error(failure: Failure) -> EdgePlanError:
    """The error to raise when the session is over, for the failure with which everything in it ended."""
    if failure.code == "FleetClosed":
        return FleetClosed()
    code = str(failure.details.get("refusal", ""))
    if code == RefusalCode.VERSION:
        return VersionRefused(code, failure.message)
    if code == RefusalCode.FENCED:
        return SessionTakenOver(str(failure.details.get("session", "")), failure.message)
    return ConnectionRefused(code, failure.message)
