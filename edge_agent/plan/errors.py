"""What can be wrong with a plan, wherever it is checked.

::

    PlanError
    ├── PlanMalformed      the bytes are not a plan of this format
    ├── UnknownOp          an op that the registry does not have
    ├── PlanTypeError      arity, dtype or shape that does not fit, inside the plan
    ├── ArgumentMismatch   an argument of a call that the plan's signature does not take
    ├── ConditionFailed    sizes for which the plan was not made
    ├── OpFailed           an op of a checked plan that failed while it ran
    ├── PlanOverQuota      a run that takes more memory, operations or time than this device allows
    └── VariantRefused     a plan's translation that this device does not run
"""

from __future__ import annotations

from broker.protocol.errors import EdgePlanError

__all__ = [
    "ArgumentMismatch",
    "ConditionFailed",
    "OpFailed",
    "PlanError",
    "PlanMalformed",
    "PlanOverQuota",
    "PlanTypeError",
    "UnknownOp",
    "VariantRefused",
]


def _inside(inside: str) -> str:
    return f", in {inside}" if inside else ""


class PlanError(EdgePlanError):
    """A plan, or a call of one, is not what it should be."""


class PlanMalformed(PlanError):
    """The bytes are not a plan of this format, are cut, or do not have the digest that names them."""


class UnknownOp(PlanError):
    """The plan has an op outside the registry. ``index`` is its number, as `edge_agent.plan.nesting.all_ops` counts;
    ``inside`` says in which sub-graph it is: ``the body of op 3``; empty for none.
    """

    def __init__(self, op: str, index: int | None = None, inside: str = "") -> None:
        self.op = op
        self.index = index
        self.inside = inside
        super().__init__(op, index, inside)

    def __str__(self) -> str:
        where = "" if self.index is None else f" (op {self.index} of the plan{_inside(self.inside)})"
        return f"expected an op of the registry, got {self.op!r}{where}"


class PlanTypeError(PlanError):
    """Inside the plan, an op gets what it does not take: wrong arity, dtype or shape, or a value not yet bound.
    ``index`` and ``inside`` as for `UnknownOp`.
    """

    def __init__(self, reason: str, *, op: str = "", index: int | None = None, inside: str = "") -> None:
        self.reason = reason
        self.op = op
        self.index = index
        self.inside = inside
        super().__init__(reason)

    def __str__(self) -> str:
        if self.index is None:
            return self.reason
        return f"op {self.index} of the plan{_inside(self.inside)}, {self.op}: {self.reason}"


class ArgumentMismatch(PlanError, TypeError):
    """A call's argument does not fit the plan's signature."""

    def __init__(self, argument: str, expected: str, got: str) -> None:
        self.argument = argument
        self.expected = expected
        self.got = got
        super().__init__(argument, expected, got)

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {self.got}"


class ConditionFailed(PlanError, ValueError):
    """The sizes of the arguments are outside what the plan was made for. ``sizes`` maps each symbol to its value."""

    def __init__(self, condition: str, sizes: dict[str, int]) -> None:
        self.condition = condition
        self.sizes = dict(sizes)
        super().__init__(condition, sizes)

    def __str__(self) -> str:
        got = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        return f"expected sizes with {self.condition}, got {got}"


class OpFailed(PlanError):
    """An op failed while the plan ran. ``error_type`` is the name of the class that the runtime raised, ``message``
    what it said.
    """

    def __init__(self, op: str, op_index: int, error_type: str, message: str) -> None:
        self.op = op
        self.op_index = op_index
        self.error_type = error_type
        self.message = message
        super().__init__(op, op_index, error_type, message)

    def __str__(self) -> str:
        return f"op {self.op_index} of the plan, {self.op}, failed with {self.error_type}: {self.message}"


class PlanOverQuota(PlanError):
    """A run needs more than the device's owner allows.

    ``what``: ``memory`` (in bytes), ``operations`` or ``time`` (in seconds). ``at_least``: ``needed`` is not all that
    the run needs, but what it had come to when it was ended.
    """

    def __init__(self, what: str, needed: float, allowed: float, *, at_least: bool = False) -> None:
        self.what = what
        self.needed = needed
        self.allowed = allowed
        self.at_least = at_least
        super().__init__(what, needed, allowed, at_least)

    def __str__(self) -> str:
        more = " or more" if self.at_least else ""
        needed, allowed = self._amount(self.needed), self._amount(self.allowed)
        return f"a run of the plan needs {needed}{more}, and this device allows {allowed}"

    def _amount(self, number: float) -> str:
        if self.what == "memory":
            return f"{int(number):,} bytes of memory"
        return f"{number:.3g} seconds" if self.what == "time" else f"{int(number):,} operations"


class VariantRefused(PlanError):
    """A variant of a plan is not to be run here. ``error`` is the largest difference to what its golden outputs say,
    None where it did not come to that; ``tolerance`` is what they allow, ``output`` which result it was.
    """

    def __init__(
        self, reason: str, *, error: float | None = None, tolerance: float | None = None, output: int | None = None
    ) -> None:
        self.reason = reason
        self.error = error
        self.tolerance = tolerance
        self.output = output
        super().__init__(reason, error, tolerance, output)

    def __str__(self) -> str:
        return f"the plan's variant is refused: {self.reason}"
