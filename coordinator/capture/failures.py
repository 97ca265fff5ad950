"""What came out of torch.export, said in the words of the user's code."""

from __future__ import annotations

import re

from torch._dynamo.exc import UncapturedHigherOrderOpError
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from coordinator.capture import places
from coordinator.errors import (
    DataDependentBranch,
    DataDependentSize,
    GradientsNotSupported,
    MutatedState,
    NumpyInPlan,
    OpNotSupported,
    PlanBuildError,
    SourceLine,
)

__all__ = ["explained_failure"]

_ASSIGNED = re.compile(r"The tensor attributes? (?:self\.user\.|self\.)?(\S+?),? .*assigned during export")
_ANSWERS = {"torch.equal", "torch.allclose", "torch.is_nonzero"}
"""What gives a bool of Python's, and not a tensor."""
_CONTROL_FLOW = re.compile(r"Higher Order Operator: (\S+)")


def explained_failure(error: Exception, program: ExportedProgram | None) -> Exception:
    """The error to raise: one of ours, or the user's own, with the line as a note. ``program``: the graph, if it came
    so far.
    """
    if isinstance(error, PlanBuildError):
        return error
    where, through_numpy = places.of_exception(error)
    text = str(error)
    known = _known(error, text, where, through_numpy=through_numpy)
    if known is not None:
        return known
    if program is not None and "is mutated in the forward method" in text:
        return MutatedState("a tensor from outside the function", where=_first_write_to_constant(program))
    if where is not None:
        error.add_note(f"while a plan was built, at {where}")
        return error
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    failure = PlanBuildError(f"torch.export can't capture this function: {first}")
    failure.__cause__ = error
    return failure


def _known(error: Exception, text: str, where: SourceLine | None, *, through_numpy: bool) -> PlanBuildError | None:
    if through_numpy or ".numpy() is not supported" in text:
        return NumpyInPlan("numpy", where=where)
    if isinstance(error, DataDependentOutputException):
        function = f"torch.{text.split('.')[1]}"
        return (DataDependentBranch if function in _ANSWERS else NumpyInPlan)(function, where=where)
    if isinstance(error, DynamicOutputShapeException):
        return DataDependentSize(text, where=where)
    if isinstance(error, GuardOnDataDependentSymNode):
        return DataDependentSize(where=where)
    if isinstance(error, UnsupportedOperatorException):
        return OpNotSupported(text.split(maxsplit=1)[0], where=where)
    if isinstance(error, UncapturedHigherOrderOpError):
        operator = _CONTROL_FLOW.search(text)
        return OpNotSupported(operator[1] if operator else "control flow", where=where)
    if isinstance(error, UserWarning) and (assigned := _ASSIGNED.match(text)):
        return MutatedState(assigned[1])
    if "does not require grad" in text or (isinstance(error, UserWarning) and "requires gradient" in text):
        return GradientsNotSupported(where=where)
    return None


def _first_write_to_constant(program: ExportedProgram) -> SourceLine | None:
    signature = program.graph_signature
    constants = {spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.CONSTANT_TENSOR}
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        written = node.args[0]
        while isinstance(written, Node) and written.op == "call_function":
            written = written.args[0]  # through the views of it
        if isinstance(written, Node) and written.name in constants:
            return places.of_stack_trace(node.meta.get("stack_trace"))
    return None
