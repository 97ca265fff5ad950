"""Why a plan has no variant for a runtime.

``EdgePlanError``
    ``TranslationUnsupported``: an op, or what it does here, cannot be written in the other runtime's ops
    ``VariantUnsound``: what was written does not give what torch gives
    ``NothingToQuantise``: the plan has no weight that a variant of int8 would round
    ``WeightNotFinite``: a weight that can't be rounded to int8
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.protocol.errors import EdgePlanError

if TYPE_CHECKING:
    from coordinator.errors import SourceLine

__all__ = ["NothingToQuantise", "TranslationUnsupported", "VariantUnsound", "WeightNotFinite"]


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


class NothingToQuantise(EdgePlanError):
    """A variant of int8 was asked for, of a plan that has no weight to round. ``given``: the plan's weights are
    arguments, as those of a training step are.
    """

    def __init__(self, *, given: bool) -> None:
        super().__init__(given)
        self.given = given

    def __str__(self) -> str:
        if self.given:
            return (
                "there is nothing to quantise: the plan's weights are arguments, as those of a training step are, and "
                "a step that small is lost in int8; only weights that the plan carries are rounded"
            )
        return (
            "there is nothing to quantise: expected a float32 weight that the plan carries and a linear layer, "
            "a convolution or an embedding uses outside of loops and branches, got none; send it without variant='int8'"
        )


class WeightNotFinite(EdgePlanError):
    """A weight that has elements which int8 can't stand for. ``weight`` is its name in the plan."""

    def __init__(self, weight: str) -> None:
        super().__init__(weight)
        self.weight = weight

    def __str__(self) -> str:
        return f"expected finite elements in {self.weight}, to be rounded to int8, got infinite ones or nan"
