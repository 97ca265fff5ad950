"""The machine of a result id, as data: which input leads from which status to which.

A pair that the table does not have changes nothing: what was asked for comes too late, and is dropped and logged. So
"at most one terminal record" is a property of this table: `done` may become `released` or `lost`, and all else stays.
The diagram in docs/states.md is made from it: ``python -m broker.transitions``.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from typing import Final

from broker.protocol.messages import Cancelled, Expired, ResultFailed, ResultReady, ResultStatus

__all__ = ["ENDINGS", "MEANINGS", "TERMINAL", "TRANSITIONS", "UNENDED", "Input", "diagram", "page"]


class Input(enum.StrEnum):
    """What may happen to a result: see `MEANINGS`. A str, since these are looked up at each step of each command, and
    other members of enums are hashed in Python.
    """

    SUBMIT = "submit"
    TAKE = "take"
    START = "start"
    REDELIVER = "redeliver"
    VALUE = "value"
    FAILURE = "failure"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    RELEASE = "release"
    STORE_LOST = "store_lost"
    FORGET = "forget"


MEANINGS: Final[Mapping[Input, str]] = {
    Input.SUBMIT: "a session has sent its command",
    Input.TAKE: "the device has acknowledged the command",
    Input.START: "the device says in its heartbeat that it runs",
    Input.REDELIVER: "the device's agent has started anew: the command goes to it again",
    Input.VALUE: "the device announces a value",
    Input.FAILURE: "the device announces a failure, or the broker finds that there can be no value",
    Input.CANCEL: "the session, or the device, ends it; what is unknown, a device that announces it",
    Input.DEADLINE: "its time is over",
    Input.RELEASE: "the session needs it no more; before the end a wish, which acts at the end",
    Input.STORE_LOST: "the device has come back with another store",
    Input.FORGET: "its retention is over",
}

ENDINGS: Final[Mapping[type, Input]] = {
    ResultReady: Input.VALUE,
    ResultFailed: Input.FAILURE,
    Cancelled: Input.CANCEL,
    Expired: Input.DEADLINE,
}
"""Which input an event is that ends a result."""

_S = ResultStatus
_I = Input

_ENDS: Final = {
    _I.VALUE: _S.DONE,
    _I.FAILURE: _S.FAILED,
    _I.CANCEL: _S.CANCELLED,
    _I.DEADLINE: _S.EXPIRED,
}

TRANSITIONS: Final[Mapping[ResultStatus, Mapping[Input, ResultStatus]]] = {
    # Without a command: a device announces what an earlier ledger knew.
    _S.UNKNOWN: {_I.SUBMIT: _S.QUEUED, **_ENDS},
    # A value may overtake the acknowledgement of its command.
    _S.QUEUED: {_I.TAKE: _S.DELIVERED, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDS},
    _S.DELIVERED: {_I.TAKE: _S.DELIVERED, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDS},
    _S.RUNNING: {_I.TAKE: _S.RUNNING, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDS},
    _S.DONE: {_I.RELEASE: _S.RELEASED, _I.STORE_LOST: _S.LOST, _I.FORGET: _S.FORGOTTEN},
    _S.FAILED: {_I.FORGET: _S.FORGOTTEN},
    _S.EXPIRED: {_I.FORGET: _S.FORGOTTEN},
    _S.CANCELLED: {_I.FORGET: _S.FORGOTTEN},
    _S.RELEASED: {_I.FORGET: _S.FORGOTTEN},
    _S.LOST: {_I.FORGET: _S.FORGOTTEN},
    _S.FORGOTTEN: {},
}

UNENDED: Final = frozenset({_S.QUEUED, _S.DELIVERED, _S.RUNNING})
"""The statuses of a command that has not ended."""

TERMINAL: Final = frozenset({_S.DONE, _S.FAILED, _S.EXPIRED, _S.CANCELLED, _S.RELEASED, _S.LOST})
"""The statuses of one that has."""


def diagram() -> str:
    """The table as a Mermaid state diagram; inputs that leave a status as it is are left out."""
    lines = ["stateDiagram-v2", f"    [*] --> {_S.UNKNOWN.value}"]
    for start, inputs in TRANSITIONS.items():
        by_finish: dict[ResultStatus, list[str]] = {}
        for given, finish in inputs.items():
            if finish is not start:
                by_finish.setdefault(finish, []).append(given.value)
        lines += [f"    {start.value} --> {finish.value}: {', '.join(names)}" for finish, names in by_finish.items()]
    lines.append(f"    {_S.FORGOTTEN.value} --> [*]")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/states.md."""
    return (
        "# The states of a result\n\n"
        "What `status(id)` answers, and what leads from one answer to the next. The broker alone decides it.\n"
        "This page is made by `python -m broker.transitions > docs/states.md`; a test compares the two.\n\n"
        f"```mermaid\n{diagram()}```\n\n"
        "An input that has no arrow from a status changes nothing there: it comes too late, is dropped, and logged.\n\n"
        "| input | what it is |\n|---|---|\n"
        + "".join(f"| {given.value} | {meaning} |\n" for given, meaning in MEANINGS.items())
    )


if __name__ == "__main__":
    sys.stdout.write(page())
