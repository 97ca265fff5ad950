"""The machine of a result id, as data: which input leads from which status to which.

A pair that the table does not have changes nothing: what was asked for comes too late, and is dropped and logged. So "at
most one terminal record" is a property of this table: no input but the last four leads out of a terminal status.
The diagram in docs/states.md is made from it: ``python -m broker.transitions``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from broker.protocol.messages import ResultStatus

__all__ = ["TERMINAL", "TRANSITIONS", "UNENDED", "Input", "diagram"]


class Input(enum.Enum):
    """What may happen to a result."""

    SUBMIT = "submit"
    """A session has sent its command."""
    TAKE = "take"
    """The device has acknowledged the command."""
    START = "start"
    """The device says in its heartbeat that it runs."""
    REDELIVER = "redeliver"
    """The device's agent has started anew: the command goes to it again."""
    VALUE = "value"
    """The device announces a value."""
    FAILURE = "failure"
    """The device announces a failure, or the broker finds that there can be no value."""
    CANCEL = "cancel"
    """The session, or the device, ends it."""
    DEADLINE = "deadline"
    """Its time is over."""
    RELEASE = "release"
    """The session needs it no more. For one that has not ended this is kept as a wish, and acts at the end."""
    STORE_LOST = "store_lost"
    """Its device has come back with another store."""
    FORGET = "forget"
    """Its retention is over."""


_S = ResultStatus
_I = Input

_ENDINGS: Final = {
    _I.VALUE: _S.DONE,
    _I.FAILURE: _S.FAILED,
    _I.CANCEL: _S.CANCELLED,
    _I.DEADLINE: _S.EXPIRED,
}

TRANSITIONS: Final[Mapping[ResultStatus, Mapping[Input, ResultStatus]]] = {
    # Without a command: a device announces what an earlier ledger knew.
    _S.UNKNOWN: {_I.SUBMIT: _S.QUEUED, **_ENDINGS},
    # A value may overtake the acknowledgement of its command.
    _S.QUEUED: {_I.TAKE: _S.DELIVERED, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDINGS},
    _S.DELIVERED: {_I.TAKE: _S.DELIVERED, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDINGS},
    _S.RUNNING: {_I.TAKE: _S.RUNNING, _I.START: _S.RUNNING, _I.REDELIVER: _S.QUEUED, **_ENDINGS},
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
        "What `status(id)` answers, and what leads from one answer to the next. The broker alone decides it. This page is made from\n"
        "`broker/transitions.py` by `python -m broker.transitions > docs/states.md`; a test compares the two.\n\n"
        f"```mermaid\n{diagram()}```\n\n"
        "An input that has no arrow from a status changes nothing there: it comes too late, and is dropped and logged.\n\n"
        "| input | what it is |\n|---|---|\n"
        + "".join(f"| {each.value} | {_documentation(each)} |\n" for each in Input)
    )


def _documentation(given: Input) -> str:
    return {
        _I.SUBMIT: "a session has sent its command",
        _I.TAKE: "the device has acknowledged the command",
        _I.START: "the device says in its heartbeat that it runs",
        _I.REDELIVER: "the device's agent has started anew: the command goes to it again",
        _I.VALUE: "the device announces a value",
        _I.FAILURE: "the device announces a failure, or the broker finds that there can be no value",
        _I.CANCEL: "the session, or the device, ends it",
        _I.DEADLINE: "its time is over",
        _I.RELEASE: "the session needs it no more; before the end a wish, which acts at the end",
        _I.STORE_LOST: "the device has come back with another store",
        _I.FORGET: "its retention is over",
    }[given]


if __name__ == "__main__":
    print(page(), end="")
