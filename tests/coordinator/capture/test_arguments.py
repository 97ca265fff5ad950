"""What can be said about example arguments: nests, shapes, dtypes, names of dims."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coordinator.build_errors import ArgumentNotSupported, ExampleMismatch
from coordinator.capture.arguments import arguments_from_example, arguments_from_shapes
from coordinator.function_plan import func2plan
from edge_agent.runtimes.torch_tensors import TORCH_DTYPES
from tests.coordinator.capture.checks import built


def _two(x: Any, y: Any = None, *, z: Any = None) -> Any:
    return x, y, z


def _many(first: Any, *rest: Any) -> Any:
    return first, rest


def test_all_that_can_be_named_is() -> None:
    """Arguments given by position are remembered by name, so that a plan takes both."""
    arguments = arguments_from_example(_two, (torch.ones(2), torch.ones(3)), {"z": 4})
    assert arguments.tree == ["t", ["t"], ["d", "x", 0, "y", 1, "z", 2]]
    assert [leaf.path for leaf in arguments.leaves] == ["x", "y", "z"]


def test_variadic_arguments_stay_positional() -> None:
    """Where a function takes any number of arguments, they are told by position."""
    arguments = arguments_from_example(_many, (torch.ones(2), torch.ones(3), [torch.ones(4)]), {})
    assert arguments.tree == ["t", ["t", 0, 1, ["l", 2]], ["d"]]
    assert [leaf.path for leaf in arguments.leaves] == ["first", "rest[0]", "rest[1][0]"]
    values = [leaf.example for leaf in arguments.leaves]
    positional, named = arguments.call(values)
    assert [positional[0] is values[0], positional[2][0] is values[2], named] == [True, True, {}]


def test_a_builtin_that_does_not_tell_its_parameters() -> None:
    """torch's own functions can be plans; their arguments have numbers for names."""
    arguments = arguments_from_example(torch.add, (torch.ones(2), torch.ones(2)), {})
    assert [leaf.path for leaf in arguments.leaves] == ["args[0]", "args[1]"]


def test_shapes_follow_the_nest_of_the_arguments() -> None:
    """args_shape nests as the argument does, with -1 or a name for each dim that may vary."""
    example = {"readings": torch.ones(5, 2), "marks": [torch.ones(5), torch.ones(3)], "none": None}
    arguments = arguments_from_example(
        _two, (example, 3), {}, args_shape=[{"readings": ("n", 2), "marks": [(-1,), (3,)]}]
    )
    assert [dict(leaf.dynamic) for leaf in arguments.leaves] == [{0: "n"}, {0: ""}, {}, {}]
    assert arguments.leaves[0].path == "x['readings']"


def test_shapes_by_name() -> None:
    """args_shape may map argument names to shapes."""
    arguments = arguments_from_example(_two, (torch.ones(2), torch.ones(3)), {}, args_shape={"y": (-1,)})
    assert [dict(leaf.dynamic) for leaf in arguments.leaves] == [{}, {0: ""}]


def test_arguments_of_shapes_alone() -> None:
    """Without an example, values are made up: floats drawn at random, integers that may be indices."""
    arguments = arguments_from_shapes(_two, [(-1, 3), (4,)], [torch.float64, "int64"])
    x, y = (leaf.example for leaf in arguments.leaves)
    assert (x.dtype, x.shape[1], bool(x.std() > 0)) == (torch.float64, 3, True)
    assert (y.dtype, set(y.tolist()) <= {0, 1}) == (torch.int64, True)
    assert arguments.given is False
    again = arguments_from_shapes(_two, [(-1, 3), (4,)], [torch.float64, "int64"])
    assert torch.equal(again.leaves[0].example, x)


def test_making_values_up_leaves_the_users_generator_alone() -> None:
    """torch's own random state is the same before and after."""
    before = torch.get_rng_state()
    arguments_from_shapes(_two, [(-1, 3), (4,)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("args", "options", "sentence"),
    [
        (("text",), {}, "x: expected a tensor or a number, in lists, tuples and dicts, got a str"),
        (
            ([torch.ones(2), object()],),
            {},
            "x[1]: expected a tensor or a number, in lists, tuples and dicts, got a object",
        ),
        (({1.5: torch.ones(2)},), {}, "x: expected a dict whose keys are strings or integers, got the key 1.5"),
        ((torch.ones(2).to_sparse(),), {}, "torch.sparse_coo of torch.float32"),
        ((1 << 63,), {}, "x: expected an integer of 64 bits, got 9223372036854775808"),
        ((torch.ones(2, 3),), {"args_shape": [(-1,)]}, "x: expected an entry of args_shape with 2 dims, got (-1,)"),
        ((torch.ones(2, 3),), {"args_shape": [(-1, 4)]}, "x: expected dim 1 of size 4 as args_shape says, got size 3"),
        ((torch.ones(2),), {"args_shape": [("not a name",)]}, "x: expected a dim name that is an identifier"),
        (
            (torch.ones(2),),
            {"args_shape": [(2,), (3,)]},
            "args_shape: expected a list of at most 1, one entry an argument",
        ),
        ((torch.ones(2),), {"args_shape": {"q": (2,)}}, "args_shape: expected entries for x, got one for q"),
        (
            (torch.ones(2),),
            {"args_dtype": [torch.int64]},
            "x: expected torch.int64 as args_dtype says, got torch.float32",
        ),
        (
            (torch.ones(2), torch.ones(3)),
            {"args_shape": [("n",), ("n",)]},
            "y: expected dim 0 of size 2, as 'n' before, got size 3",
        ),
        ((3,), {"args_shape": [(-1,)]}, "x: expected a tensor of shape (-1,), got the number 3"),
    ],
)
def test_what_can_not_be_an_argument(args: tuple[Any, ...], options: dict[str, Any], sentence: str) -> None:
    """Each is refused by name, with what was expected and what came."""
    with pytest.raises(ArgumentNotSupported) as caught:
        arguments_from_example(_two, args, {}, **options)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "dtype", "sentence"),
    [
        (
            [3],
            None,
            "x: expected a shape in args_shape: a tuple of sizes, with -1 or a name for a dim that may vary, got 3",
        ),
        ([(2,), ((2,), 3)], None, "y[1]: expected a shape in args_shape: a tuple of sizes"),
        (
            [(2,), (-2, 3)],
            None,
            "y: expected sizes of 0 or more in args_shape, or -1 for a dim that may vary, got (-2, 3)",
        ),
        ([(2,)], ["float7"], "x: expected a dtype of"),
        (3, None, "args_shape: expected a list with the shape of each argument, or a dict of them by name, got 3"),
        (
            "xy",
            None,
            "args_shape: expected a list with the shape of each argument, or a dict of them by name, got 'xy'",
        ),
    ],
)
def test_what_can_not_be_a_shape(shape: Any, dtype: Any, sentence: str) -> None:
    """A shape or dtype that means nothing is refused."""
    with pytest.raises(ArgumentNotSupported) as caught:
        arguments_from_shapes(_two, shape, dtype)
    assert str(caught.value).startswith(sentence)


NEEDED = "expected an example of each argument, or args_shape with an entry for each"


@pytest.mark.parametrize(
    ("args", "kwargs", "mismatch"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"w": 2}, "got an unexpected keyword argument 'w'"),
    ],
)
def test_a_call_that_the_function_does_not_take(args: tuple[Any, ...], kwargs: dict[str, Any], mismatch: str) -> None:
    """It is a TypeError, as in Python, that says what building needs."""
    with pytest.raises(ExampleMismatch) as caught:
        arguments_from_example(_two, args, kwargs)
    assert isinstance(caught.value, TypeError)
    assert str(caught.value) == f"to build _two(x, y=None, *, z=None), {NEEDED}: {mismatch}"


def test_shapes_that_the_function_does_not_take() -> None:
    """One too many; and none at all, by name, where the state is no argument."""
    with pytest.raises(ExampleMismatch, match="too many positional arguments"):
        arguments_from_shapes(_two, [(2,), (2,), (2,)])
    with pytest.raises(
        ExampleMismatch, match=r"^to build _two\(x, \*, z=None\), expected .*: missing a required argument"
    ):
        arguments_from_shapes(_two, {"z": ()}, skip=frozenset({"y"}))


def test_strided_and_conjugated_examples_are_traced_as_devices_hold_them() -> None:
    """Dense, in C order, without gradients: so is every tensor on a device."""
    given = torch.randn(4, 3, dtype=torch.complex64).T.conj().requires_grad_()
    [leaf] = arguments_from_example(_two, (given,), {}).leaves
    assert leaf.example.is_contiguous()
    assert not leaf.example.is_conj()
    assert not leaf.example.requires_grad
    assert torch.equal(leaf.example, given.detach().resolve_conj())


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=TORCH_DTYPES)
def test_a_dim_varies_whatever_the_dtype(dtype: torch.dtype) -> None:
    """A tensor of each dtype that travels can have a dim that varies, with an example and without."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x.clone()])

    given = (torch.arange(5) % 2).to(dtype)
    for plan in (
        func2plan(args_shape=[(-1,)], args_dtype=[dtype])(function),
        built(function, torch.zeros(3, dtype=dtype), shape=[(-1,)]),
        built(function, torch.zeros(1, dtype=dtype), shape=[(-1,)]),
    ):
        assert torch.equal(plan.run_plan(given), function(given))
