"""What can go wrong on the coordinator's side, and what comes back from devices.

::

    EdgePlanError
    ├── PlanNotBuilt (RuntimeError)         sent, or run, before `build`
    ├── PlanStale                           the module has changed since `build`: build it again
    ├── ProtectedName (AttributeError)      an attribute that a plan needs for itself was set
    ├── PlanBuildError                      the function can't become a plan; `where` is the line
    │   ├── ArgumentNotSupported            an example argument that can't travel, or doesn't fit args_shape
    │   ├── ExampleMismatch (TypeError)     an example call, or args_shape, that the function does not take
    │   ├── OutputNotSupported              a result that is neither a tensor nor a number nor a nest of them
    │   ├── BranchesDiffer                  a torch.cond whose branches give different dtypes or shapes
    │   ├── LoopNotSupported                a loop where plans can have none: inside torch.func.vmap
    │   ├── LoopMismatch                    a loop whose step gives other types than the next one takes
    │   ├── GradientThroughLoop             a gradient of what a while_loop, or a scan over a varying size, gives
    │   ├── RandomInLoop                    random numbers drawn inside such a loop
    │   ├── LoopEndless                     a loop that did not end while the plan was built
    │   ├── ValueLeftLoop                   what a loop makes, used outside without being returned
    │   ├── LostSideEffect                  a print, or a change to a list, a global, an attribute outside
    │   ├── DataDependentBranch             an `if` or `while` on what a tensor holds
    │   ├── DataDependentSize               a shape, or a Python number, made of what a tensor holds
    │   ├── DimPinned                       a dim declared dynamic for which the code works at one size only
    │   ├── PythonRandomness                random, numpy.random, os.urandom, time, uuid, ...
    │   ├── RandomOpNotSupported            torch.rand, dropout in train mode, ...
    │   ├── MutatedInput                    an argument written to in place
    │   ├── MutatedState                    a buffer, parameter or outer tensor written to in place
    │   ├── NumpyInPlan                     numpy, or another library that needs the values themselves
    │   ├── GradientsNotSupported           a gradient of what does not require one
    │   ├── OpNotSupported (UnknownOp)      an op that the registry doesn't have
    │   ├── OptimizerNotSupported           an optimiser whose step can't be made a plan
    │   └── ResultDiffers                   the plan gives something else than the function does
    ├── PointerError (TypeError)            a pointer used as if it were its value
    ├── ForeignPointer                      a pointer of another fleet
    ├── OperandsMismatch (TypeError, ...)   an operator or a function of torch on pointers that it does not take
    │   └── IndexMismatch (IndexError)      ... since an index, or a dim, is out of range
    ├── BrokerUnreachable (TimeoutError)    no broker answers
    ├── ResultTimeout (TimeoutError)        nothing came in time; the invocation goes on
    ├── NotAccepted (TimeoutError)          the broker has not accepted in time all that was sent
    ├── OutboxFull                          too much waits for the broker to accept it
    ├── FleetClosed                         the fleet was closed
    ├── SessionTakenOver                    a newer incarnation of this named session has connected
    ├── LedgerLost                          the broker has lost its ledger, and the command can't be sent again
    └── RemoteError                         a failure that the broker or a device reports, by its code
        ├── ExecutionFailed                 an op of the plan failed: device, plan, op, source line, message
        ├── ArgumentFailed                  an argument ended without a value
        ├── InvocationCancelled, DeadlineExpired
        ├── ResultReleased, ResultLost, UnknownResult, UnknownDevice
        ├── TagNotFound, TagAmbiguous, PlanNotFound
        ├── PlanOverQuota                   a run takes more memory, operations or time than its device allows
        ├── IdConflict, StoreFull, WorkerDied, QueueFull, NotAllowed
        └── Remote...                       what a device's own check refused: also an `ArgumentMismatch`,
                                            a `ConditionFailed`, an `UnknownOp`, a `PlanMalformed`,
                                            a `PlanTypeError`, a `TensorRefused`
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.errors import EdgePlanError, TensorRefused
from broker.protocol.messages import Failure
from coordinator.build_errors import (
    ArgumentNotSupported,
    BranchesDiffer,
    DataDependentBranch,
    DataDependentSize,
    DimPinned,
    ExampleMismatch,
    GradientsNotSupported,
    GradientThroughLoop,
    LoopEndless,
    LoopMismatch,
    LoopNotSupported,
    LostSideEffect,
    MutatedInput,
    MutatedState,
    NumpyInPlan,
    OpNotSupported,
    OptimizerNotSupported,
    OutputNotSupported,
    PlanBuildError,
    PythonRandomness,
    RandomInLoop,
    RandomOpNotSupported,
    ResultDiffers,
    SourceLine,
    ValueLeftLoop,
)
from coordinator.pointer_errors import ForeignPointer, IndexMismatch, OperandsMismatch, PointerError, ResultTimeout
from coordinator.session_errors import (
    BrokerUnreachable,
    FleetClosed,
    LedgerLost,
    NotAccepted,
    OutboxFull,
    SessionTakenOver,
)
from edge_agent.plan.errors import (
    ArgumentMismatch,
    ConditionFailed,
    PlanMalformed,
    PlanTypeError,
    UnknownOp,
    VariantRefused,
)

__all__ = [
    "ArgumentFailed",
    "ArgumentNotSupported",
    "BranchesDiffer",
    "BrokerUnreachable",
    "DataDependentBranch",
    "DataDependentSize",
    "DeadlineExpired",
    "DimPinned",
    "ExampleMismatch",
    "ExecutionFailed",
    "FleetClosed",
    "ForeignPointer",
    "GradientThroughLoop",
    "GradientsNotSupported",
    "IdConflict",
    "IndexMismatch",
    "InvocationCancelled",
    "LedgerLost",
    "LoopEndless",
    "LoopMismatch",
    "LoopNotSupported",
    "LostSideEffect",
    "MutatedInput",
    "MutatedState",
    "NotAccepted",
    "NotAllowed",
    "NumpyInPlan",
    "OpNotSupported",
    "OperandsMismatch",
    "OptimizerNotSupported",
    "OutboxFull",
    "OutputNotSupported",
    "PlanBuildError",
    "PlanNotBuilt",
    "PlanNotFound",
    "PlanOverQuota",
    "PlanStale",
    "PointerError",
    "ProtectedName",
    "PythonRandomness",
    "QueueFull",
    "RandomInLoop",
    "RandomOpNotSupported",
    "RemoteArgumentMismatch",
    "RemoteConditionFailed",
    "RemoteError",
    "RemotePlanMalformed",
    "RemotePlanTypeError",
    "RemoteTensorRefused",
    "RemoteUnknownOp",
    "RemoteVariantRefused",
    "ResultDiffers",
    "ResultLost",
    "ResultReleased",
    "ResultTimeout",
    "SessionTakenOver",
    "SourceLine",
    "StoreFull",
    "TagAmbiguous",
    "TagNotFound",
    "UnknownDevice",
    "UnknownResult",
    "ValueLeftLoop",
    "WorkerDied",
    "error_from_failure",
]


# ------------------------------------------------------------------------------------------------- plans


class PlanNotBuilt(EdgePlanError, RuntimeError):
    """The plan has no graph yet: call `Plan.build` with example arguments first."""

    def __init__(self, plan: str = "", action: str = "being sent to a worker") -> None:
        self.plan = plan
        self.action = action
        super().__init__(plan, action)

    def __str__(self) -> str:
        return f"A plan needs to be built before {self.action}."


class PlanStale(EdgePlanError):
    """The module is not the one that was built: its mode or its parameters' names, shapes or dtypes differ, tied
    weights came apart, or an attribute or a hook that its code read when it was built is another.

    ``changes`` says what. Build it again, then send it.
    """

    def __init__(self, plan: str, changes: Sequence[str]) -> None:
        self.plan = plan
        self.changes = tuple(changes)
        super().__init__(plan, self.changes)

    def __str__(self) -> str:
        return f"{self.plan} has changed since it was built, build it again: {'; '.join(self.changes)}"


class ProtectedName(EdgePlanError, AttributeError):
    """A plan needs this attribute for itself."""

    def __init__(self, plan: str, attribute: str) -> None:
        self.plan = plan
        self.attribute = attribute
        super().__init__(plan, attribute)

    def __str__(self) -> str:
        return (
            f"{self.plan} can't have an attribute {self.attribute!r} of its own: a plan uses that name; choose another"
        )


# ------------------------------------------------------------------------------------------------- failures from afar


class RemoteError(EdgePlanError):
    """A failure that the broker or a device has reported.

    ``code``, ``message`` and ``details`` are as reported; ``device`` and ``id`` (32 hex digits) say where and of
    what; empty: not known.
    """

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        self.failure = failure
        self.code = failure.code
        self.message = failure.message
        self.details = dict(failure.details)
        self.device = device or str(failure.details.get("device") or "")
        self.id = id
        self.source = "" if source is None else str(source)
        Exception.__init__(self, failure.code, failure.message)

    def _text(self, key: str) -> str:
        value = self.details.get(key)
        return "" if value is None else str(value)

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.device, self.id and f"result {self.id}")))
        return f"{where}: {self.message or self.code}" if where else self.message or self.code


class ExecutionFailed(RemoteError):
    """An op of the plan failed on the device.

    ``plan`` (64 hex digits), ``op`` and ``op_index`` name it, ``error`` is the type of the original error,
    ``message`` its text, and ``source`` the user's line, ``file:line: text``, where the coordinator knows it.
    """

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        super().__init__(failure, device=device, id=id, source=source)
        self.plan = self._text("plan")
        self.op = self._text("op")
        index = self.details.get("op_index")
        self.op_index = int(index) if isinstance(index, int) else None
        self.error = self._text("error")

    def __str__(self) -> str:
        at = "" if self.op_index is None else f" at op {self.op_index}"
        op = f" ({self.op})" if self.op else ""
        kind = f"{self.error}: " if self.error else ""
        line = f"\n    {self.source}" if self.source else ""
        plan = f"plan {self.plan[:8]}" if self.plan else "a plan"
        return f"{plan} failed on {self.device or 'a device'}{at}{op}: {kind}{self.message}{line}"


class ArgumentFailed(RemoteError):
    """An argument of the command ended without a value: ``argument`` is its id, ``argument_code`` and
    ``argument_message`` say why.
    """

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        super().__init__(failure, device=device, id=id, source=source)
        self.argument = self._text("argument")
        self.argument_code = self._text("code")
        self.argument_message = self._text("message")

    def __str__(self) -> str:
        if not self.argument:
            return super().__str__()
        why = ": ".join(part for part in (self.argument_code, self.argument_message) if part)
        return f"argument {self.argument} ended without a value" + (f" ({why})" if why else "")


class InvocationCancelled(RemoteError):
    """The invocation was cancelled before it ended."""


class DeadlineExpired(RemoteError):
    """The invocation's deadline passed before it ended."""


class ResultReleased(RemoteError):
    """The result was released, and its value is gone."""


class ResultLost(RemoteError):
    """The device has lost the value."""


class UnknownResult(RemoteError, LookupError):
    """Nobody knows a result of this id."""


class UnknownDevice(RemoteError, LookupError):
    """The broker has never met a device of this name."""


class TagNotFound(RemoteError, LookupError):
    """No tensor on the device carries all the tags of an argument."""


class TagAmbiguous(RemoteError, LookupError):
    """More than one tensor on the device carries all the tags of an argument."""


class PlanNotFound(RemoteError, LookupError):
    """The broker does not have the plan, or not all of it."""


class IdConflict(RemoteError):
    """The id names another command already."""


class StoreFull(RemoteError):
    """The device, or the broker, has no room left."""


class WorkerDied(RemoteError):
    """The device's worker process died while it ran this command, more than once."""


class QueueFull(RemoteError):
    """The device's mailbox is full."""


class NotAllowed(RemoteError):
    """A policy forbids it."""


class PlanOverQuota(RemoteError):
    """A run takes more than the device's owner allows: ``what`` is ``memory`` (in bytes), ``operations`` or ``time``
    (in seconds); ``needed`` (None: not known, but more than that) and ``allowed`` say how much.
    """

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        super().__init__(failure, device=device, id=id, source=source)
        self.what = self._text("what")
        needed, allowed = self.details.get("needed"), self.details.get("allowed")
        self.needed = needed if isinstance(needed, int | float) else None
        self.allowed = allowed if isinstance(allowed, int | float) else None


class RemoteArgumentMismatch(RemoteError, ArgumentMismatch):
    """A device's check refused an argument."""

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.argument, self.expected, self.got = self._text("argument"), self._text("expected"), self._text("got")

    __str__ = RemoteError.__str__


class RemoteConditionFailed(RemoteError, ConditionFailed):
    """A device's check refused the sizes of the arguments."""

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.condition = self._text("condition")
        self.sizes = {}

    __str__ = RemoteError.__str__


class RemoteUnknownOp(RemoteError, UnknownOp):
    """A device's registry does not have an op of the plan."""

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.op = self._text("op")
        index = self.details.get("op_index")
        self.index = index if isinstance(index, int) else None

    __str__ = RemoteError.__str__


class RemotePlanTypeError(RemoteError, PlanTypeError):
    """A device's check refused the plan."""

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.reason = failure.message
        self.op = self._text("op")
        index = self.details.get("op_index")
        self.index = index if isinstance(index, int) else None

    __str__ = RemoteError.__str__


class RemotePlanMalformed(RemoteError, PlanMalformed):
    """A device got bytes that are not the plan they should be."""

    __str__ = RemoteError.__str__


class RemoteVariantRefused(RemoteError, VariantRefused):
    """A device does not run the plan's variant. ``error``: how far its results lie from what torch gave, None where it
    did not come to that; ``tolerance``: how far they may.
    """

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.reason = self._text("reason")
        error, tolerance = self.details.get("error"), self.details.get("tolerance")
        self.error = error if isinstance(error, float) else None
        self.tolerance = tolerance if isinstance(tolerance, float) else None
        output = self.details.get("output")
        self.output = output if isinstance(output, int) else None

    __str__ = RemoteError.__str__


class RemoteTensorRefused(RemoteError, TensorRefused):
    """A device got a tensor that the codec does not take."""

    def __init__(self, failure: Failure, *, device: str = "", id: str = "", source: SourceLine | None = None) -> None:
        RemoteError.__init__(self, failure, device=device, id=id, source=source)
        self.reason = failure.message

    __str__ = RemoteError.__str__


_BY_CODE: dict[str, type[RemoteError]] = {
    kind.__name__: kind
    for kind in (
        ExecutionFailed,
        ArgumentFailed,
        InvocationCancelled,
        DeadlineExpired,
        ResultReleased,
        ResultLost,
        UnknownResult,
        UnknownDevice,
        TagNotFound,
        TagAmbiguous,
        PlanNotFound,
        IdConflict,
        StoreFull,
        WorkerDied,
        QueueFull,
        NotAllowed,
        PlanOverQuota,
    )
} | {
    "ArgumentMismatch": RemoteArgumentMismatch,
    "ConditionFailed": RemoteConditionFailed,
    "UnknownOp": RemoteUnknownOp,
    "PlanTypeError": RemotePlanTypeError,
    "PlanMalformed": RemotePlanMalformed,
    "TensorRefused": RemoteTensorRefused,
    "VariantRefused": RemoteVariantRefused,
}


def error_from_failure(
    failure: Failure,
    *,
    device: str = "",
    id: str | bytes = "",
    source_table: Sequence[tuple[str, int, str] | None] | None = None,
    asked_at: SourceLine | None = None,
) -> RemoteError:
    """The error to raise for a failure: of the class that its code names, or a plain `RemoteError` that keeps the code.

    ``device`` and ``id`` say where and of which result; ``source_table`` is the plan's (see
    `coordinator.plan.Plan.source_table`), from which ``source`` is found by the failing op's index, unless all its ops
    come from the line ``asked_at``.
    """
    index = failure.details.get("op_index")
    source = None if index is None else asked_at
    if source is None and source_table is not None and isinstance(index, int) and 0 <= index < len(source_table):
        entry = source_table[index]
        source = None if entry is None else SourceLine(*entry)
    kind = _BY_CODE.get(failure.code, RemoteError)
    return kind(failure, device=device, id=id.hex() if isinstance(id, bytes) else id, source=source)
