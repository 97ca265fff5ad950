"""What a plan can't carry, each refused at build with its line and its sentence."""

from __future__ import annotations

import datetime
import gc
import logging
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

from coordinator.build_errors import (
    DataDependentBranch,
    DataDependentSize,
    DimPinned,
    LostSideEffect,
    MutatedInput,
    MutatedState,
    NumpyInPlan,
    OpNotSupported,
    OutputNotSupported,
    PlanBuildError,
    PythonRandomness,
    ResultDiffers,
)
from coordinator.function_plan import func2plan
from coordinator.plan import Plan
from edge_agent.plan.errors import UnknownOp
from tests.coordinator.capture.checks import assert_same, built, refused

OUTSIDE = torch.zeros(3)


def _branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x
    return -x


def _loop_until(x: torch.Tensor) -> torch.Tensor:
    while x.norm() > 1:
        x = x / 2
    return x


@pytest.mark.parametrize(("function", "line"), [(_branch, "if x.sum() > 0:"), (_loop_until, "while x.norm() > 1:")])
def test_a_branch_on_data_names_the_line_and_torch_cond(function: object, line: str) -> None:
    """A data-dependent `if` or `while` is refused, pointing to torch.cond."""
    error = refused(DataDependentBranch, function, torch.randn(3), line=line)  # type: ignore[arg-type]
    assert "write it with torch.cond(condition, if_true, if_false, operands)" in str(error)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x if torch.equal(x, x.flip(0)) else -x


def _close(x: torch.Tensor) -> torch.Tensor:
    return x * x.allclose(x.flip(0))


@pytest.mark.parametrize(
    ("function", "line", "asked"), [(_same, "torch.equal(x", "torch.equal"), (_close, "x.allclose(", "torch.allclose")]
)
def test_an_answer_in_pythons_bool_names_what_gives_a_tensor(function: object, line: str, asked: str) -> None:
    """torch.equal is torch's, and gives no tensor: the error says what does."""
    error = refused(DataDependentBranch, function, torch.randn(3), line=line)  # type: ignore[arg-type]
    assert error.function == asked
    assert "make the condition a tensor, such as (x == y).all()" in str(error)


def _caught(x: torch.Tensor) -> torch.Tensor:
    try:
        if x.sum() > 100:
            return x * 2
    except DataDependentBranch:
        pass
    return x


def _caught_gradient(x: torch.Tensor) -> torch.Tensor:
    gradient: torch.Tensor = torch.func.grad(lambda y: _caught(y).sum())(x)
    return gradient


@pytest.mark.parametrize("function", [_caught, _caught_gradient])
def test_a_branch_whose_refusal_the_code_catches(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """It is refused all the same, also where the result is that of the other side."""
    refused(DataDependentBranch, function, torch.ones(3), line="if x.sum() > 100:")
    with pytest.raises(DataDependentBranch):
        func2plan(args_shape=[(3,)])(function)


def _item(x: torch.Tensor) -> torch.Tensor:
    return x * x.sum().item()


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.sum())


def _mask(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0]


def _nonzero(x: torch.Tensor) -> torch.Tensor:
    return x.nonzero()


@pytest.mark.parametrize(
    ("function", "line", "op"),
    [
        (_item, "x.sum().item()", "Tensor.item"),
        (_to_float, "float(x.sum())", "Tensor.__float__"),
        (_mask, "x[x > 0]", "aten.index.Tensor"),
        (_nonzero, "x.nonzero()", "aten.nonzero.default"),
    ],
)
def test_a_size_or_number_made_of_data(function: object, line: str, op: str) -> None:
    """`.item()`, and shapes that depend on values, are refused with the line and the op."""
    error = refused(DataDependentSize, function, torch.randn(3), line=line)  # type: ignore[arg-type]
    assert error.op == op
    assert "not known when the plan is built" in str(error)


@pytest.mark.parametrize("example", [torch.tensor(2.5), torch.tensor([1, 2])])
def test_what_is_no_index_whatever_it_holds(example: torch.Tensor) -> None:
    """Python asks for an index where a list is multiplied: torch's error is told, with the line, as it is outside."""

    def repeated(x: torch.Tensor) -> object:
        return x * [1, 2]

    with pytest.raises(TypeError, match="only integer tensors of a single element") as caught:
        func2plan()(repeated).build(example)
    assert "x * [1, 2]" in caught.value.__notes__[0]


def test_a_number_that_decides_a_branch() -> None:
    """A number given to build is an argument, so that Python can't decide by it; the error says what to do."""

    def function(x: torch.Tensor, negate: bool) -> torch.Tensor:
        if negate:
            return -x
        return x

    error = refused(DataDependentBranch, function, torch.randn(3), True, line="if negate:")
    assert "to fix it, leave it at its default" in str(error)


def _draw(x: torch.Tensor) -> torch.Tensor:
    return x * random.random()


def _choose(x: torch.Tensor) -> torch.Tensor:
    return x * random.choice([1, 2, 3])


own_generator = random.Random(3)


def _own(x: torch.Tensor) -> torch.Tensor:
    return x * own_generator.uniform(0, 1)


def _numpys(x: torch.Tensor) -> torch.Tensor:
    factor = np.random.rand()  # noqa: NPY002 -- what is tested
    return x * factor


def _systems(x: torch.Tensor) -> torch.Tensor:
    return x * os.urandom(1)[0]


def _clock(x: torch.Tensor) -> torch.Tensor:
    return x * time.time()


def _today(x: torch.Tensor) -> torch.Tensor:
    return x * datetime.datetime.now(tz=datetime.UTC).microsecond


def _identifier(x: torch.Tensor) -> torch.Tensor:
    return x * float(uuid.uuid4().int % 7)


@pytest.mark.parametrize(
    ("function", "line", "name"),
    [
        (_draw, "random.random()", "random.random"),
        (_choose, "random.choice", "random.choice"),
        (_own, "own_generator.uniform", "random.uniform"),
        (_numpys, "factor = np.random.rand()", "numpy.random"),
        (_systems, "os.urandom(1)", "os.urandom"),
        (_clock, "time.time()", "time.time"),
        (_today, "datetime.datetime.now", "datetime.now"),
        (_identifier, "uuid.uuid4()", "uuid.uuid4"),
    ],
)
def test_pythons_own_randomness_and_clock(function: object, line: str, name: str) -> None:
    """What would be frozen into the plan is refused with its line, and named."""
    error = refused(PythonRandomness, function, torch.randn(3), line=line)  # type: ignore[arg-type]
    assert error.function == name
    assert str(error).startswith(f"{name} gives another value at each call, and a plan would freeze the one it gave")


def _log(x: torch.Tensor) -> torch.Tensor:
    logging.getLogger("edgeplan.tests").warning("now")
    return x * 2


@pytest.mark.parametrize(
    ("function", "error", "line"),
    [
        (_draw, PythonRandomness, "random.random()"),
        (_numpys, PythonRandomness, "factor = np.random.rand()"),
        (_clock, PythonRandomness, "time.time()"),
        (_log, LostSideEffect, 'warning("now")'),
    ],
)
def test_shapes_that_are_all_fixed_are_checked_without_an_example(
    function: Callable[..., Any], error: type[PlanBuildError], line: str
) -> None:
    """Values are made up then, and what a plan would freeze is refused as it is with an example."""
    with pytest.raises(error) as caught:
        func2plan(args_shape=[(3,)])(function)
    assert caught.value.where is not None
    assert line in caught.value.where.text


def test_shapes_that_are_all_fixed_are_compared_without_an_example() -> None:
    """torch's default dtype is found by the result."""

    def wider(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(3, dtype=torch.get_default_dtype()) * x

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert func2plan(args_shape=[(3,)])(wider).graph.inputs[0].dtype == "float64"
        with pytest.raises(ResultDiffers, match=r"torch\.float64 became torch\.float32"):
            func2plan(args_shape=[(3,)], args_dtype=[torch.float32])(lambda x: torch.ones(3) * x)
    finally:
        torch.set_default_dtype(before)


def test_what_the_function_raises_at_values_that_were_made_up() -> None:
    """It is told as it is, with its line, and that an example may help."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy(x, x)

    for size, what in ((3, "values"), ("n", "values and sizes")):
        with pytest.raises(RuntimeError, match="between 0 and 1") as caught:
            func2plan(args_shape=[(size,)])(loss)
        place, hint = caught.value.__notes__
        assert place.endswith("return F.binary_cross_entropy(x, x)")
        assert hint == f"the {what} were made up, since no example was given: build with one if they don't fit"
        assert built(loss, torch.tensor([0.0, 0.5, 1.0]), shape=[(size,)]).is_built


def test_what_the_function_raises_at_every_other_size() -> None:
    """It is the reason why the dim is pinned, and is told with its line."""
    table = torch.arange(6.0)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sum() + table[x.new_full((1,), x.shape[0]).long()]

    error = refused(DimPinned, function, torch.ones(5), shape=[(-1,)], line="table[x.new_full")
    assert "at the others that were tried it raises IndexError: index" in str(error)


def test_randomness_goes_before_what_the_function_raises() -> None:
    """A function that draws and then fails is told of the draw."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy(x + random.random(), x)

    refused(PythonRandomness, function, torch.ones(3), line="random.random()")


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda: time.clock_gettime(0), "time.clock_gettime"),
        (lambda: time.clock_gettime_ns(0), "time.clock_gettime_ns"),
        (time.localtime, "time.localtime"),
        (time.gmtime, "time.gmtime"),
        (lambda: time.strftime("%Y"), "time.strftime"),
        (time.ctime, "time.ctime"),
        (time.asctime, "time.asctime"),
        (time.thread_time, "time.thread_time"),
        (time.process_time_ns, "time.process_time_ns"),
        (os.times, "os.times"),
        (uuid.uuid1, "uuid.uuid1"),
    ],
)
def test_clocks_that_hardly_move(read: Callable[[], Any], name: str) -> None:
    """They are refused though what they gave was the same both times."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x if read() else x * 2

    error = refused(PythonRandomness, function, torch.randn(3), shape=[(-1,)])
    assert error.function == name


def test_randomness_that_nothing_tells_of_is_found_by_the_result() -> None:
    """A generator of numpy's own leaves no trace, but the plan and the function differ."""
    generator = np.random.default_rng(1)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * float(generator.random())

    with pytest.raises(
        ResultDiffers, match="its output differs from the function's: its values differ by up to"
    ) as caught:
        built(function, torch.ones(3))
    assert caught.value.output == "output"


def test_dropout_is_gone_in_eval_mode() -> None:
    """A module with dropout draws in train mode, and does not in eval mode."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    assert [one.kind for one in built(module, torch.randn(4, 3)).graph.inputs][-1] == "random"
    module.eval()
    assert_same(built(module, torch.randn(4, 3)), module, torch.randn(4, 3))


def _add_to_input(x: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x * 2


def _write_through_a_view(x: torch.Tensor) -> torch.Tensor:
    x.view(-1)[0] = 7
    return x * 2


@pytest.mark.parametrize(("function", "line"), [(_add_to_input, "x.add_(1)"), (_write_through_a_view, "[0] = 7")])
def test_a_written_input(function: object, line: str) -> None:
    """An argument written to in place is refused with the line; the example stays as it was."""
    example = torch.randn(3)
    before = example.clone()
    error = refused(MutatedInput, function, example, line=line)  # type: ignore[arg-type]
    assert error.argument == "x"
    assert "work on x.clone() and return it" in str(error)
    assert torch.equal(example, before)


def test_writes_to_what_the_function_made_are_fine() -> None:
    """In-place ops on intermediate values become ops that make new ones."""

    def function(x: torch.Tensor) -> torch.Tensor:
        made = torch.zeros_like(x)
        made[0] = 1
        made[:, 1] += x[:, 0]
        made.mul_(x)
        return made

    plan = built(function, torch.randn(4, 3), shape=[(-1, 3)])
    assert_same(plan, function, torch.randn(7, 3))


def _write_outside(x: torch.Tensor) -> torch.Tensor:
    OUTSIDE.add_(x)
    return x


def test_a_write_to_a_tensor_from_outside() -> None:
    """It would be lost: refused with the line, and not done either."""
    refused(MutatedState, _write_outside, torch.ones(3), line="OUTSIDE.add_(x)")
    assert not OUTSIDE.any()


class Normed(Plan):
    """A module with batch norm, to be built in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(x))


def test_a_buffer_written_in_train_mode() -> None:
    """BatchNorm in train mode writes its running statistics: refused with the user's line, pointing to eval()."""
    module = Normed()
    with pytest.raises(MutatedState, match=r"call eval\(\) on the module if this is batch norm") as caught:
        module.build(torch.randn(4, 3))
    assert caught.value.name == "norm.running_mean"
    assert caught.value.where is not None
    assert "self.norm(x)" in caught.value.where.text
    assert module.norm.num_batches_tracked == 0
    module.eval().build(torch.randn(4, 3))
    assert module.is_built


def _numpy_sum(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.sum(x))


def _numpy_array(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x) * 2)


def _numpy_method(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("function", "line"),
    [(_numpy_sum, "np.sum(x)"), (_numpy_array, "np.asarray(x)"), (_numpy_method, "x.numpy()")],
)
def test_numpy_in_a_plan(function: object, line: str) -> None:
    """numpy needs the values: refused with the line."""
    error = refused(NumpyInPlan, function, torch.randn(3), line=line)  # type: ignore[arg-type]
    assert str(error).startswith("numpy needs a tensor's values, which are not known when the plan is built")


def test_numpy_on_constants_is_fine() -> None:
    """What numpy makes without an argument of the plan is a constant that the plan carries."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(np.arange(3, dtype=np.float32))

    assert_same(built(function, torch.randn(3)), function, torch.randn(3))


def _outside_the_registry(x: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = torch.linalg.eigvals(x)
    return values


def test_an_op_that_no_registry_has() -> None:
    """An op that can't be expressed is named with its line; it is an `UnknownOp` as well."""
    error = refused(OpNotSupported, _outside_the_registry, torch.randn(3, 3), line="torch.linalg.eigvals")
    assert isinstance(error, UnknownOp)
    assert error.op == "aten.linalg_eig.default"
    assert str(error).startswith(f"{error.op} is not an op that plans can carry yet")


def _histogram(x: torch.Tensor) -> torch.Tensor:
    return torch.histogram(x, 4).hist


def test_ops_that_torch_can_not_trace_either() -> None:
    """They are named in the same way."""
    error = refused(OpNotSupported, _histogram, torch.randn(3), line="torch.histogram")
    assert error.op == "aten.histogram.bin_ct"


def test_memory_that_is_not_initialised() -> None:
    """What is made empty and then filled is right; the plan has zeros in between."""

    def function(x: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(x)
        result.copy_(x * 2)
        rows = torch.empty(3, dtype=torch.float64)
        rows[:] = 7
        return result + rows

    assert_same(built(function, torch.randn(3)), function, torch.randn(3))


def test_an_exception_of_the_users_code_stays_what_it_is() -> None:
    """It keeps its type and message, gains the line as a note, and its traceback shows the user's frames."""

    def function(x: torch.Tensor) -> torch.Tensor:
        table: dict[str, torch.Tensor] = {}
        return x + table["missing"]

    with pytest.raises(KeyError, match="missing") as caught:
        built(function, torch.randn(3))
    [note] = caught.value.__notes__
    assert note.startswith("while a plan was built, at ")
    assert note.endswith('return x + table["missing"]')
    files = [entry.path for entry in caught.traceback]
    assert str(files[-1]) == __file__
    assert not any("/torch/" in str(file) for file in files)


def test_an_error_of_torchs_own_keeps_its_message() -> None:
    """Shapes that don't fit raise torch's error, with the line as a note."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(5, 2)

    with pytest.raises(RuntimeError, match="5") as caught:
        built(function, torch.randn(4, 4))
    assert "return x @ torch.ones(5, 2)" in caught.value.__notes__[0]


def test_a_result_that_can_not_travel() -> None:
    """A result that is neither a tensor nor a number is named."""

    def function(x: torch.Tensor) -> dict[str, object]:
        return {"value": x, "unit": ["metres"]}

    with pytest.raises(OutputNotSupported) as caught:
        built(function, torch.randn(3))
    assert caught.value.output == "output['unit'][0]"
    assert str(caught.value) == (
        "output['unit'][0]: expected tensors and numbers in lists, tuples and dicts, got a str"
    )


def test_no_other_size_meets_the_conditions() -> None:
    """Conditions that only the example meets pin the dim, though torch has not said so."""

    def function(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] * x.shape[0] == 25
        return x * 2

    with pytest.raises(PlanBuildError, match="dim 0 of x was declared dynamic"):
        built(function, torch.randn(5), shape=[(-1,)])


def test_a_lost_side_effect_on_a_module() -> None:
    """A tensor that forward() keeps on the module would stay on the device: refused."""

    class Remembers(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x * 2
            return self.last + 1

    with pytest.raises(LostSideEffect, match=r"self\.last lives outside .*\n .*self\.last = x \* 2"):
        Remembers().build(torch.randn(3))


@pytest.fixture
def measured_collections() -> Iterator[list[str]]:
    """Somebody in this process is called back at each garbage collection, looks at the clock and tells it, as tools
    that measure do; and collections come all the time.
    """
    times: list[str] = []

    def tells(phase: str) -> None:
        print(phase, file=sys.stderr)
        times.append(f"{phase} {time.perf_counter()}")

    def measures(phase: str, _info: object) -> None:
        tells(phase)

    thresholds = gc.get_threshold()
    gc.callbacks.append(measures)
    gc.set_threshold(20)
    try:
        yield times
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(measures)


def test_whoever_measures_garbage_collections_may_look_at_the_clock(measured_collections: list[str]) -> None:
    """A collection may come in the middle of a build, and calls back into programs that have nothing to do with it."""

    def collects(x: torch.Tensor) -> torch.Tensor:
        gc.collect()
        return x * 2

    assert func2plan(args_shape=[(2,)])(collects).is_built
    assert measured_collections


def test_a_garbage_collection_is_not_the_users_line(measured_collections: list[str]) -> None:
    """Also where a collection comes in the middle of the line that has a side effect, the error names that line."""

    class Remembers(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.last: Any = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = [x * 2, *map(list, [()] * 100)]  # enough new lists for a collection in this very line
            return x + 1

    with pytest.raises(LostSideEffect, match=r"\n .*self\.last = \[x \* 2"):
        Remembers().build(torch.randn(3))
    with pytest.raises(PythonRandomness, match=r"\n .*factor = np\.random\.rand"):
        func2plan(args_shape=[(2,)])(_numpys)
    assert measured_collections
