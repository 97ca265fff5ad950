"""From a call's arguments to one leaf an input: what a pointer plan uses before it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.signature import Signature
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.format import Graph, Input, Symbol


def _signature(tree: Any, *inputs: Input, symbols: tuple[Symbol, ...] = ()) -> Signature:
    return Signature(Graph(inputs=list(inputs), ops=[], outputs=[], signature=tree, tree=None, symbols=list(symbols)))


def _tensor(name: str, *shape: Any, dtype: str = "float32") -> Input:
    return Input(name=name, dtype=dtype, shape=list(shape))


@dataclass
class Pointer:
    """As a pointer to a result that is not ready looks."""

    dtype: str | torch.dtype | None
    shape: tuple[int, ...] | None


def test_positional_and_named() -> None:
    """Named arguments are taken by position too, in their order."""
    signature = _signature(["t", ["t"], ["d", "x", 0, "y", 1]], _tensor("x", 2), _tensor("y", 3))
    assert signature.bind(("a", "b"), {}) == ["a", "b"]
    assert signature.bind((), {"y": "b", "x": "a"}) == ["a", "b"]
    assert signature.bind(("a",), {"y": "b"}) == ["a", "b"]
    assert signature.names == ["x", "y"]


def test_arguments_that_have_no_name() -> None:
    """Those stay positional; what is missing is named as in the build."""
    signature = _signature(
        ["t", ["t", 0, ["l", 1, 2]], ["d", "z", 3]],
        _tensor("first", 2),
        _tensor("rest[0][0]", 2),
        _tensor("rest[0][1]", 2),
        _tensor("z", 1),
    )
    assert signature.bind((1.5, ["a", "b"], "c"), {}) == [1.5, "a", "b", "c"]
    with pytest.raises(ArgumentMismatch, match=r"^rest\[0\]: expected a value, got nothing$"):
        signature.bind((1.5,), {"z": "c"})
    with pytest.raises(
        ArgumentMismatch, match=r"^rest\[0\]: expected a list of 2, got a list of 1$|of 2, got one of 1"
    ):
        signature.bind((1.5, ["a"]), {"z": "c"})


def test_nests_are_compared_with_the_plans() -> None:
    """A wrong nest is named by its path."""
    signature = _signature(
        ["t", ["t"], ["d", "batch", ["d", "x", 0, "y", ["t", 1, None]]]],
        _tensor("batch['x']"),
        _tensor("batch['y'][0]"),
    )
    assert signature.bind(({"y": ("b", None), "x": "a"},), {}) == ["a", "b"]
    for nest, sentence in (
        ([1, 2], r"^batch: expected a dict, got a list of 2$"),
        ({"x": 1}, r"^batch: expected a dict with the keys 'x', 'y', got one with 'x'$"),
        ({"x": 1, "y": 2}, r"^batch\['y'\]: expected a tuple of 2, got a int$"),
        ({"x": 1, "y": (1, 2)}, r"^batch\['y'\]\[1\]: expected None, got a int$"),
    ):
        with pytest.raises(ArgumentMismatch, match=sentence):
            signature.bind((nest,), {})


def test_arguments_that_were_none_may_be_left_out() -> None:
    """An argument without tensors in it needs not be given again."""
    signature = _signature(["t", ["t"], ["d", "x", 0, "mask", None]], _tensor("x", 2))
    assert signature.bind(("a",), {}) == ["a"]
    assert signature.bind(("a", None), {}) == ["a"]
    with pytest.raises(ArgumentMismatch, match="mask: expected None, got a str"):
        signature.bind(("a", "b"), {})


def test_a_call_without_arguments() -> None:
    """A plan of none takes none."""
    signature = _signature(["t", ["t"], ["d"]])
    assert signature.bind((), {}) == []
    with pytest.raises(ArgumentMismatch, match=r"^arguments: expected at most 0, got 1$"):
        signature.bind((1,), {})
    with pytest.raises(ArgumentMismatch, match=r"^x: expected one of the arguments \(none\), got this keyword$"):
        signature.bind((), {"x": 1})


def test_sizes_of_tensors_and_pointers() -> None:
    """Sizes are learnt from what is known, and pointers that do not know their shape are let through."""
    signature = _signature(
        ["t", ["t"], ["d", "x", 0, "y", 1]],
        _tensor("x", "n", 2),
        _tensor("y", "n"),
        symbols=(Symbol(name="n", low=1),),
    )
    assert signature.sizes([torch.ones(3, 2), Pointer("float32", (3,))]) == {"n": 3}
    assert signature.sizes([Pointer(torch.float32, (4, 2)), Pointer(None, None)]) == {"n": 4}
    assert signature.sizes([None, Pointer("float32", None)]) == {}
    with pytest.raises(ArgumentMismatch, match=r"^y: "):
        signature.sizes([torch.ones(3, 2), Pointer("float32", (4,))])
    with pytest.raises(ArgumentMismatch, match=r"x: expected .* got float64"):
        signature.sizes([Pointer(torch.float64, (4, 2)), None])
    with pytest.raises(ArgumentMismatch, match="x: expected a tensor of float32, got a object"):
        signature.sizes([object(), None])


def test_numbers_become_what_the_plan_has() -> None:
    """An int for a float is made a float; a complex one a tensor, since commands have no complex numbers."""
    numbers = [
        Input(name=name, dtype=dtype, kind="number")
        for name, dtype in (("f", "float64"), ("i", "int64"), ("b", "bool"), ("c", "complex128"))
    ]
    signature = _signature(["t", ["t"], ["d", "f", 0, "i", 1, "b", 2, "c", 3]], *numbers)
    leaves = signature.bind((2, True, False, 3), {})
    assert [repr(leaf) for leaf in leaves[:3]] == ["2.0", "1", "False"]
    assert torch.equal(leaves[3], torch.tensor(3 + 0j, dtype=torch.complex128))
    assert [tensor.dtype for tensor in signature.tensors(leaves)] == [
        torch.float64,
        torch.int64,
        torch.bool,
        torch.complex128,
    ]
    assert signature.sizes(leaves) == {}
    assert signature.types([torch.tensor(1.0).double(), None, None, None])[0] == ("float64", ())
    with pytest.raises(ArgumentMismatch, match="b: expected a bool, got 1"):
        signature.bind((2, 1, 1, 3), {})


def test_numpy_arrays_are_tensors() -> None:
    """Arrays and numpy's scalars become tensors of their dtype."""
    signature = _signature(["t", ["t"], ["d", "x", 0]], _tensor("x", 2, dtype="float64"))
    [leaf] = signature.bind((np.ones(2),), {})
    assert torch.equal(leaf, torch.ones(2, dtype=torch.float64))
    assert signature.bind((np.float32(3),), {})[0].shape == ()
    [swapped] = signature.bind((np.arange(2, dtype=">f8"),), {})
    assert torch.equal(swapped, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "array", [np.array([object()], dtype=object), np.array(["a", "b"])], ids=["objects", "strings"]
)
def test_arrays_that_are_no_tensors_are_refused_by_name(array: Any) -> None:
    """What numpy holds and torch does not ends in an error that names the argument."""
    signature = _signature(["t", ["t"], ["d", "x", 0]], _tensor("x", 2, dtype="float64"))
    with pytest.raises(ArgumentMismatch, match="x: expected a tensor of float64, got an array of "):
        signature.bind((array,), {})


def test_tensors_as_a_runtime_takes_them() -> None:
    """Views, conjugates and tensors with gradients become plain ones in C order."""
    signature = _signature(["t", ["t"], ["d", "x", 0]], _tensor("x", 3, 2))
    given = torch.randn(2, 3).T.requires_grad_()
    [tensor] = signature.tensors([given])
    assert tensor.is_contiguous()
    assert not tensor.requires_grad
    assert torch.equal(tensor, given.detach())
