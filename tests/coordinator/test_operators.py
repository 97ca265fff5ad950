"""Remote torch code on pointers: each op a plan of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

from coordinator import VirtualWorker, connect, func2plan
from coordinator.errors import (
    ArgumentFailed,
    DataDependentSize,
    ExecutionFailed,
    ForeignPointer,
    IndexMismatch,
    OperandsMismatch,
    PointerError,
)
from coordinator.fleet import Fleet
from coordinator.pointers import PointerTensor
from coordinator.tagging import tagged

WITHIN = 60.0
X = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
Y = torch.tensor([[2.0, 3.0, -1.0], [0.5, 2.0, 2.0]])


class Pair(NamedTuple):
    """A tuple of a kind of the user's own."""

    first: Any
    second: Any


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """With one device."""
    with connect() as fleet:
        VirtualWorker(fleet, id="one")
        yield fleet


@pytest.fixture(scope="module")
def pointers(fleet: Fleet) -> tuple[PointerTensor, PointerTensor]:
    """To X and Y."""
    device = fleet.device("one")
    return device.send(X), device.send(Y)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, y: x + y,
        lambda x, _: x - 1.5,
        lambda x, _: 1.5 - x,
        lambda x, y: x * y / 2,
        lambda x, y: x @ y.T,
        lambda x, y: x.mT.mH.mT @ y.t().H,
        lambda x, _: 2**x,
        lambda x, y: x % y,
        lambda x, y: x // y,
        lambda x, _: -x,
        lambda x, _: +x,
        lambda x, _: abs(x),
        lambda x, y: x > y,
        lambda x, y: x.eq(y),
        lambda x, _: x.ne(4.0),
        lambda x, _: x == 4.0,
        lambda x, _: 4 != x,  # noqa: SIM300 - this is what is tested
        lambda x, _: x == X,
        lambda x, _: x != X,
        lambda x, y: (x > 0) & (y > 0),
        lambda x, _: ~(x > 0),
        lambda x, _: torch.abs(x),
        torch.maximum,
        lambda x, y: torch.cat([x, y], dim=1),
        lambda x, y: torch.cat(Pair(x, y)),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, _: torch.nn.functional.softmax(x, dim=1),
        lambda x, _: x.sum(),
        lambda x, _: x.sum(dim=1, keepdim=True),
        lambda x, _: x.clamp(min=0.0),
        lambda x, _: x[0],
        lambda x, _: x[:, 1:],
        lambda x, y: (x + y).mean(),
    ],
)
def test_remote_code_gives_what_local_code_gives(
    pointers: tuple[PointerTensor, PointerTensor], compute: Callable[[Any, Any], Any]
) -> None:
    """Operators, functions, methods and indexing."""
    got = compute(*pointers)
    assert isinstance(got, PointerTensor)
    torch.testing.assert_close(got.get(WITHIN), compute(X, Y), rtol=0, atol=0)


def test_an_op_that_not_all_values_suit(fleet: Fleet) -> None:
    """It is built of dtypes and shapes alone, and no value but the pointer's is asked for."""
    pointer = fleet.device("one").send(4 * torch.eye(2))
    assert torch.equal(torch.linalg.cholesky(pointer).get(timeout=WITHIN), 2 * torch.eye(2))


def test_several_results_are_several_pointers(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """Nested as torch nests them."""
    values, indices = pointers[0].sort(dim=1)
    assert values.get(WITHIN).tolist() == X.sort(dim=1).values.tolist()
    assert indices.get(WITHIN).tolist() == X.sort(dim=1).indices.tolist()


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.max(x, 0),
        lambda x: x.sort(dim=1),
        lambda x: torch.topk(x, 2),
        lambda x: torch.linalg.svd(x, full_matrices=False),
    ],
)
def test_several_results_keep_their_names(
    fleet: Fleet, pointers: tuple[PointerTensor, PointerTensor], compute: Callable[[Any], Any]
) -> None:
    """In torch's own named tuple, also the second time, when the plan is there already."""
    expected = compute(X)
    for _ in range(2):
        got = compute(pointers[0])
        assert type(got) is type(expected)
        for value, wanted in zip(fleet.get(got, WITHIN), expected, strict=True):
            torch.testing.assert_close(value, wanted)
    if hasattr(expected, "values"):
        assert got.values == got[0]
        stacked: Any = torch.stack(compute(pointers[0])[:1])
        torch.testing.assert_close(stacked.get(WITHIN), torch.stack(expected[:1]))


def test_operands_that_torch_does_not_take(
    pointers: tuple[PointerTensor, PointerTensor], capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the operation, the operands and the reason, is of the kind that torch raises, has torch's own as
    its cause, and torch logs nothing.
    """
    x: Any = pointers[0]
    x_type = "float32[2, 3]"
    failures: list[tuple[Callable[[], Any], type[Exception], str, tuple[str, ...], str]] = [
        (lambda: x + torch.ones(7), RuntimeError, "add", (x_type, "float32[7]"), "broadcast"),
        (lambda: x @ x, RuntimeError, "matmul", (x_type, x_type), "must have same reduction dim"),
        (lambda: x + "a", TypeError, "add", (x_type, "'a'"), "for +: 'Tensor' and 'str'"),
        (lambda: "a" - x, TypeError, "sub", ("'a'", x_type), "for -: 'str' and 'Tensor'"),
        (lambda: x * [1, 2], TypeError, "mul", (x_type, "[1, 2]"), "only integer tensors of a single element"),
        (lambda: x & x, RuntimeError, "and", (x_type, x_type), "expected bools or integers, got float32"),
        (lambda: x[5], IndexError, "getitem", (x_type, "5"), "index 5 is out of bounds"),
        (lambda: torch.cat([x, x], dim=9), IndexError, "cat", (f"[{x_type}, {x_type}]", "dim=9"), "out of range"),
    ]
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[assignment,method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        for call, kind, operation, operands, reason in failures:
            with pytest.raises(OperandsMismatch) as caught:
                call()
            error = caught.value
            assert isinstance(error, kind)
            assert isinstance(error, IndexMismatch) is (kind is IndexError)
            assert (error.operation, error.operands) == (operation, operands)
            assert reason in error.reason
            assert str(error).startswith(
                f"{operation}: expected operands that it takes, got {' and '.join(operands)}: "
            )
            assert error.__cause__ is not None
    finally:
        logger.removeHandler(handler)
    assert not logged
    assert capfd.readouterr().err == ""


def test_what_no_plan_can_do_names_the_users_line(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """Not the one in this package that calls torch."""
    with pytest.raises(DataDependentSize) as caught:
        pointers[0].nonzero()
    assert caught.value.where is not None
    assert caught.value.where.file == __file__
    assert caught.value.where.text == "pointers[0].nonzero()"


def test_a_failure_on_the_device_names_the_users_line(
    fleet: Fleet, pointers: tuple[PointerTensor, PointerTensor]
) -> None:
    """That of each call, though one plan serves them all; of what is taken up after its end none is known."""
    x: Any = pointers[0]
    far: Any = fleet.device("one").send(torch.tensor([5]))
    failed = [
        x[far],
        x[far],  # a line of its own
        torch.index_select(x, 0, far).sum(),
        torch.index_select(x, 0, far),
        x.index_select(0, far),
    ]
    errors = fleet.get(failed, WITHIN, errors="return")
    assert isinstance(errors.pop(2), ArgumentFailed)
    assert all(isinstance(error, ExecutionFailed) for error in errors)
    assert [error.source.rpartition(": ")[2] for error in errors] == [
        "x[far],",
        "x[far],  # a line of its own",
        "torch.index_select(x, 0, far),",
        "x.index_select(0, far),",
    ]
    assert all(error.source.startswith(f"{__file__}:") for error in errors)
    with pytest.raises(ExecutionFailed) as caught:
        fleet.pointer(failed[0].id).get(WITHIN)
    assert caught.value.source == ""


def test_the_same_op_is_built_and_uploaded_once(fleet: Fleet, pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """Each further one is one command."""
    x, y = pointers
    (x * y * 0.25).get(WITHIN)
    before = fleet.stats().total
    (x * y * 0.25).get(WITHIN)
    after = fleet.stats().total
    assert after.commands - before.commands == 2
    assert after.blob_bytes_in == before.blob_bytes_in


def test_numbers_of_different_kinds_are_different_ops(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """1, 1.0 and True are equal to Python, and not to torch."""
    ints = pointers[0].to(torch.int64)
    dtypes = [(ints + number).get(WITHIN).dtype for number in (1, 1.0, True)]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda p: p.item(), "item"),
        (lambda p: p.tolist(), "tolist"),
        (lambda p: p.add_(1), "add_, which writes into its argument,"),
        (lambda p: torch.nn.functional.relu(p, inplace=True), "relu, which writes into its argument,"),
        (lambda p: bool(p > 1), "bool"),
        (lambda p: p.numpy(), "numpy"),
        (lambda p: bool(p == 1.0), "bool"),
        (lambda p: f"{p:.2f}", "formatting"),
    ],
)
def test_what_needs_the_value_here_is_refused(
    pointers: tuple[PointerTensor, PointerTensor], operation: Callable[[Any], Any], said: str
) -> None:
    """With the way to get it."""
    with pytest.raises(PointerError, match=said):
        operation(pointers[0])


def test_what_its_type_tells_is_told_here(fleet: Fleet, pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """Sizes are numbers, as of a local tensor, and cost no message."""
    x: Any = pointers[0]
    before = fleet.stats().total.commands
    assert (x.ndim, x.dim(), x.size(), x.size(0), x.size(dim=1)) == (2, 2, X.size(), 2, 3)
    assert (x.numel(), x.element_size(), x.nbytes) == (6, 4, 24)
    assert (x.is_floating_point(), x.is_complex(), x.is_signed()) == (True, False, True)
    assert (torch.numel(x), torch.is_floating_point(x), torch.is_complex(x)) == (6, True, False)
    assert (x.stride(), x.stride(0), x.is_contiguous(), x.storage_offset()) == ((3, 1), 3, True, 0)
    assert (x.is_same_size(pointers[1]), x.is_same_size(torch.ones(3))) == (True, False)
    assert fleet.stats().total.commands == before


def test_equal_pointers_point_to_the_same(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """So that they can be looked for in a list or a dict; what is neither a pointer nor a value is unequal."""
    x, y = pointers
    assert x in [y, x]
    assert x != y
    assert x != None  # noqa: E711 - this is what is tested
    assert x != "x"


def test_a_tensor_has_no_such_method(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """As of any object."""
    with pytest.raises(AttributeError, match="nonesuch"):
        pointers[0].nonesuch()
    assert not hasattr(pointers[0], "__array_interface__")


def test_a_type_that_is_not_known_yet_is_said_so(fleet: Fleet) -> None:
    """A result of a tagged tensor, whose size only the device knows, before it has run."""

    @func2plan(args_shape=[(-1,)])
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    worker = VirtualWorker(fleet, id="asleep", data=(tagged(torch.ones(3), "data"),))
    plan = twice.send(worker)
    plan("data").wait(WITHIN)
    worker.close()
    with pytest.raises(PointerError, match="before its dtype and shape are known"):
        plan("data") + 1
    with pytest.raises(PointerError, match="size before its dtype and shape are known"):
        plan("data").size()
    assert f"{plan('data')}".startswith("[PointerTensor | me:")


def test_pointers_of_two_fleets_do_not_mix(pointers: tuple[PointerTensor, PointerTensor]) -> None:
    """Named."""
    with connect() as other:
        VirtualWorker(other, id="two")
        foreign = other.device("two").send(X)
        with pytest.raises(ForeignPointer):
            pointers[0] + foreign
