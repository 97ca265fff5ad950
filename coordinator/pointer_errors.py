"""What can go wrong with a pointer in the user's hands. Exported by `coordinator.errors`."""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.errors import EdgePlanError

__all__ = ["ForeignPointer", "IndexMismatch", "OperandsMismatch", "PointerError", "ResultTimeout"]


class PointerError(EdgePlanError, TypeError):
    """A pointer was used as if it were its value. ``id`` names the result, as 32 hex digits."""

    def __init__(self, operation: str, id: str) -> None:
        self.operation = operation
        self.id = id
        super().__init__(operation, id)

    def __str__(self) -> str:
        return (
            f"{self.operation} needs a value, and this is a pointer to one: fetch it with .get(), "
            f"or keep its id, {self.id}, for fleet.pointer(id)"
        )


class OperandsMismatch(EdgePlanError, TypeError, ValueError, RuntimeError):
    """An operator, or a function of torch, does not take such pointers, so nothing was sent. Torch raises any of the
    kinds that it is of, and ``reason`` is what it says. ``operands`` has each, as it is or by its type.
    """

    def __init__(self, operation: str, operands: Sequence[str], reason: str) -> None:
        self.operation = operation
        self.operands = tuple(operands)
        self.reason = reason
        super().__init__(operation, self.operands, reason)

    def __str__(self) -> str:
        return f"{self.operation}: expected operands that it takes, got {' and '.join(self.operands)}: {self.reason}"


class IndexMismatch(OperandsMismatch, IndexError):
    """... since an index, or a dim, is out of range."""


class ForeignPointer(EdgePlanError):
    """A pointer, device or plan pointer of another fleet."""

    def __init__(self, what: str, argument: str = "") -> None:
        self.what = what
        self.argument = argument
        super().__init__(what, argument)

    def __str__(self) -> str:
        where = f"{self.argument}: " if self.argument else ""
        return f"{where}expected something of this fleet, got {self.what} of another"


class ResultTimeout(EdgePlanError, TimeoutError):
    """No result in time. The invocation goes on, and the pointer stays good."""

    def __init__(self, id: str, timeout: float, device: str = "") -> None:
        self.id = id
        self.timeout = timeout
        self.device = device
        super().__init__(id, timeout, device)

    def __str__(self) -> str:
        of = f" from {self.device}" if self.device else ""
        return f"no result {self.id}{of} within {self.timeout:g} s; it may still come: ask again"
