"""The coordinator's errors: their sentences, their data, and what reported failures become."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

from broker.protocol.errors import ConnectionRefused, EdgePlanError, TensorRefused
from broker.protocol.messages import Failure, LogValue
from broker.settings import InsecureEndpoint
from coordinator import build_errors, errors
from coordinator.errors import SourceLine, error_from_failure
from coordinator.translation.errors import TranslationUnsupported
from edge_agent.plan.errors import ArgumentMismatch, ConditionFailed, PlanError, PlanMalformed, PlanTypeError, UnknownOp

LINE = SourceLine("model.py", 7, "return x.sum()")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.PlanNotBuilt(), "A plan needs to be built before being sent to a worker."),
        (errors.PlanNotBuilt("f", "being run"), "A plan needs to be built before being run."),
        (errors.PlanStale("Net", ["a", "b"]), "Net has changed since it was built, build it again: a; b"),
        (
            errors.ProtectedName("Net", "id"),
            "Net can't have an attribute 'id' of its own: a plan uses that name; choose another",
        ),
        (errors.PlanBuildError("no", where=LINE), "no\n    model.py:7: return x.sum()"),
        (
            errors.DimPinned("x", 0, 5, hint="a loop"),
            "dim 0 of x was declared dynamic, but this code is right only at the size 5: a loop",
        ),
        (
            errors.ExampleMismatch("score(x)", "missing a required argument: 'x'"),
            (
                "to build score(x), expected an example of each argument, or args_shape with an entry for each: "
                "missing a required argument: 'x'"
            ),
        ),
        (
            errors.ResultDiffers("output['a']", "it is smaller", {"n": 3}),
            "the captured plan is not right: at n = 3, its output['a'] differs from the function's: it is smaller",
        ),
        (
            errors.PointerError("bool()", "ab"),
            (
                "bool() needs a value, and this is a pointer to one: fetch it with .get(), "
                "or keep its id, ab, for fleet.pointer(id)"
            ),
        ),
        (
            errors.OperandsMismatch("add", ["float32[2]", "'a'"], "unsupported"),
            "add: expected operands that it takes, got float32[2] and 'a': unsupported",
        ),
        (errors.ForeignPointer("a pointer", "x"), "x: expected something of this fleet, got a pointer of another"),
        (
            errors.ResultTimeout("ab", 2.5, "pi"),
            "no result ab from pi within 2.5 s; it may still come: ask again",
        ),
        (errors.FleetClosed(), "this fleet was closed: connect again"),
        (errors.SessionTakenOver("nightly"), "session 'nightly' was taken over by a newer process of that name"),
        (
            errors.LedgerLost("ab"),
            "the broker lost its ledger, and with it result ab, whose command can't be sent again",
        ),
    ],
)
def test_sentences(error: EdgePlanError, sentence: str) -> None:
    """Each error says what happened, and what to do, from its attributes."""
    assert str(error) == sentence


def _pickled(error: EdgePlanError) -> EdgePlanError:
    again: EdgePlanError = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own
    return again


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, _pickled])
def test_errors_come_out_of_a_copy_whole(duplicate: Callable[[EdgePlanError], EdgePlanError]) -> None:
    """And through a pickle, as out of a pool of processes, whatever their classes are made from."""
    details: dict[str, LogValue] = {"device": "pi", "op": "aten.index.Tensor", "op_index": 1, "error": "IndexError"}
    given = [
        errors.PlanBuildError("no", where=LINE),
        build_errors.DataDependentBranch(where=LINE),
        build_errors.DataDependentBranch("torch.equal", where=LINE),
        errors.ResultTimeout("ab", 2.5, "pi"),
        ConnectionRefused("full", "no room"),
        InsecureEndpoint("tcp://*:1", "not there"),
        TranslationUnsupported("no", op="aten.strange.default", where=LINE),
        error_from_failure(Failure(code="ExecutionFailed", message="no", details=details), device="pi", asked_at=LINE),
        *(
            error_from_failure(Failure(code=code, message="told so"), id="ab")
            for code in ("TagNotFound", "PlanOverQuota")
        ),
    ]
    for error in given:
        error.add_note("at a line")
        copied = duplicate(error)
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
        assert copied.args == error.args


def test_the_kinds_that_python_knows() -> None:
    """Where Python has a class for it, the error is of that class as well."""
    assert isinstance(errors.PlanNotBuilt(), RuntimeError)
    assert isinstance(errors.PointerError("float()", "ab"), TypeError)
    for kind in (TypeError, ValueError, RuntimeError):
        assert isinstance(errors.OperandsMismatch("add", [], "no"), kind)
    assert isinstance(errors.IndexMismatch("getitem", [], "no"), IndexError)
    assert isinstance(errors.ResultTimeout("ab", 1.0), TimeoutError)
    assert isinstance(errors.ProtectedName("Net", "id"), AttributeError)
    assert isinstance(errors.ExampleMismatch("f(x)", "too many positional arguments"), TypeError)
    assert isinstance(errors.OpNotSupported("aten.strange.default"), UnknownOp)


def test_every_error_is_in_the_tree() -> None:
    """All errors of the coordinator derive from EdgePlanError, and the module's docstring shows each."""
    for module in (errors, build_errors):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) and issubclass(found, Exception):
                assert issubclass(found, EdgePlanError), name
                assert name in str(errors.__doc__) or name.startswith("Remote"), name


def test_a_failed_execution_is_told_with_its_place() -> None:
    """Device, plan, op and the user's line are attributes, and in the sentence."""
    failure = Failure(
        code="ExecutionFailed",
        message="index 7 is out of bounds",
        details={"device": "pi", "plan": "ab" * 32, "op": "aten.index.Tensor", "op_index": 1, "error": "IndexError"},
    )
    error = error_from_failure(failure, id=bytes(15) + b"\x05", source_table=[None, ("model.py", 7, "return x[7]")])
    assert type(error) is errors.ExecutionFailed
    assert (error.device, error.plan, error.op, error.op_index) == ("pi", "ab" * 32, "aten.index.Tensor", 1)
    assert error.source == "model.py:7: return x[7]"
    assert error.message == "index 7 is out of bounds"
    assert error.id == "00" * 15 + "05"
    assert str(error) == (
        "plan abababab failed on pi at op 1 (aten.index.Tensor): IndexError: index 7 is out of bounds\n"
        "    model.py:7: return x[7]"
    )


def test_a_failed_execution_without_a_place() -> None:
    """What is not known is left out of the sentence."""
    error = error_from_failure(Failure(code="ExecutionFailed", message="out of memory"), device="pi")
    assert str(error) == "a plan failed on pi: out of memory"
    assert isinstance(error, errors.ExecutionFailed)
    assert (error.op_index, error.source) == (None, "")


def test_a_failed_argument_says_why() -> None:
    """The argument's id, and the code and message it ended with."""
    failure = Failure(
        code="ArgumentFailed", message="", details={"argument": "ab" * 16, "code": "ExecutionFailed", "message": "no"}
    )
    error = error_from_failure(failure)
    assert isinstance(error, errors.ArgumentFailed)
    assert (error.argument, error.argument_code, error.argument_message) == ("ab" * 16, "ExecutionFailed", "no")
    assert str(error) == f"argument {'ab' * 16} ended without a value (ExecutionFailed: no)"


@pytest.mark.parametrize(
    "code",
    [
        "InvocationCancelled",
        "DeadlineExpired",
        "ResultReleased",
        "ResultLost",
        "UnknownResult",
        "UnknownDevice",
        "TagNotFound",
        "TagAmbiguous",
        "PlanNotFound",
        "IdConflict",
        "StoreFull",
        "WorkerDied",
        "QueueFull",
        "NotAllowed",
        "PlanOverQuota",
    ],
)
def test_codes_name_their_classes(code: str) -> None:
    """Each code becomes the error of its name, with where and what of."""
    error = error_from_failure(Failure(code=code, message="told so"), device="pi", id="ab")
    assert type(error).__name__ == code
    assert isinstance(error, errors.RemoteError)
    assert (error.code, error.device, error.id, str(error)) == (code, "pi", "ab", "pi, result ab: told so")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ArgumentMismatch", ArgumentMismatch),
        ("ConditionFailed", ConditionFailed),
        ("UnknownOp", UnknownOp),
        ("PlanTypeError", PlanTypeError),
        ("PlanMalformed", PlanMalformed),
        ("TensorRefused", TensorRefused),
    ],
)
def test_refusals_of_a_devices_own_check(code: str, kind: type[PlanError]) -> None:
    """A device's refusal is a RemoteError, and what the same check here would raise."""
    details: dict[str, str | int | float | bool | None] = {"argument": "x", "expected": "a", "got": "b", "op": "aten.q"}
    error = error_from_failure(Failure(code=code, message="told so", details=details), device="pi")
    assert isinstance(error, kind)
    assert isinstance(error, errors.RemoteError)
    assert str(error) == "pi: told so"
    if isinstance(error, ArgumentMismatch):
        assert (error.argument, error.expected, error.got) == ("x", "a", "b")
    if isinstance(error, UnknownOp):
        assert error.op == "aten.q"


def test_an_unknown_code_is_kept() -> None:
    """A later broker's code becomes a plain RemoteError that keeps it."""
    error = error_from_failure(Failure(code="SomethingNew", message="", details={"n": 1}))
    assert type(error) is errors.RemoteError
    assert (error.code, error.details, str(error)) == ("SomethingNew", {"n": 1}, "SomethingNew")
