"""Why a plan has no variant for a runtime.

``EdgePlanError``
    ``TranslationUnsupported``: an op, or what it does here, cannot be written in the other runtime's ops
    ``VariantUnsound``: what was written does not give what torch gives
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.protocol.errors import EdgePlanError

if TYPE_CHECKING:
    from coordinator.errors import SourceLine

__all__ = ["TranslationUnsupported", "VariantUnsound"]


class TranslationUnsupported(EdgePlanError):
    """An op of the plan can't be translated: the plan runs on torch devices only.

    ``op`` is its name, ``index`` its place in the graph, ``where`` the user's line; each None where it is not one op.
    """

    def __init__(
        self, reason: str, *, op: str | None = None, index: int | None = None, where: SourceLine | None = None
    ) -> None:
        super().__init__(reason, op, index, where)
        self.reason = reason
        self.op = op
        self.index = index
        self.where = where

    def __str__(self) -> str:
        what = "the plan" if self.op is None else self.op
        at = "" if self.where is None else f", at {self.where}"
        return f"{what} can't be translated to onnx{at}: {self.reason}; the plan runs on torch devices only"


class VariantUnsound(EdgePlanError):
    """A translated plan gave something else than torch, here, before it was stored: ``error`` is the largest
    difference, ``tolerance`` what was allowed, ``output`` which result it was.
    """

    def __init__(self, output: int, error: float, tolerance: float) -> None:
        super().__init__(output, error, tolerance)
        self.output = output
        self.error = error
        self.tolerance = tolerance

    def __str__(self) -> str:
        return (
            f"expected the onnx variant to give what torch gives, within {self.tolerance:g}, "
            f"got a difference of {self.error:g} in result {self.output}; the plan runs on torch devices only"
        )
