"""Every error that edgeplan raises derives from `EdgePlanError`.

The tree, and where each branch lives::

    EdgePlanError
    ├── ProtocolError              a peer sent bytes that mean nothing          (here)
    │   ├── MessageTooLarge        ... more of them than the limit allows       (here)
    │   └── TensorRefused          ... as a tensor that the codec does not take (here)
    ├── ConnectionRefused          the broker refused this peer, with a code    (here)
    │   └── VersionRefused         ... because it speaks another major version  (here)
    ├── InvalidTransition          our own fault: a machine left its table      (here)
    ├── PlanError                  a plan is not what it should be              (edge_agent.plan.errors)
    └── ...                        pointers, results, capture                   (coordinator.errors)

Each error carries its data as attributes; the sentence is made in ``__str__`` from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "ConnectionRefused",
    "EdgePlanError",
    "InvalidTransition",
    "MessageTooLarge",
    "ProtocolError",
    "TensorRefused",
    "VersionRefused",
]


class EdgePlanError(Exception):
    """The base of every error that edgeplan raises on purpose. It can be copied and pickled: a pool of processes hands
    on what was raised in one of them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[EdgePlanError], args: tuple[Any, ...]) -> EdgePlanError:
    """An error without its attributes. Not by its ``__init__``, which may be given something else than ``args``."""
    error = kind.__new__(kind)
    error.args = args
    return error


class ProtocolError(EdgePlanError):
    """A peer sent something that is not a message of this protocol.

    Decoding raises this, or one of its subclasses, and nothing else, whatever the bytes.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class MessageTooLarge(ProtocolError):
    """A message has more bytes than the limit allows; sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"expected a message of at most {limit} bytes, got {size} bytes")


class TensorRefused(ProtocolError):
    """A tensor frame is malformed, or of a dtype outside the allow-list."""


class ConnectionRefused(EdgePlanError):
    """The broker refused the connection. ``code`` is one of `messages.RefusalCode`."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the broker refused this connection ({self.code}): {self.reason}"


class VersionRefused(ConnectionRefused):
    """The broker speaks another major version of the protocol."""


class InvalidTransition(EdgePlanError):
    """A state machine was asked for a step that its table does not have: a bug of ours, not of a peer.

    ``story`` holds the last events of the machine concerned, oldest first.
    """

    def __init__(self, subject: str, start: str, finish: str, story: Sequence[str]) -> None:
        self.subject = subject
        self.start = start
        self.finish = finish
        self.story = tuple(story)
        super().__init__(subject)

    def __str__(self) -> str:
        told = "; ".join(self.story) or "nothing"
        return f"{self.subject} cannot go from {self.start} to {self.finish}; before it: {told}"
