"""What a function is traced with: its example arguments as a flat list of leaves, with the dims that may vary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from broker.protocol.tensors import DTYPES
from coordinator.capture.python_numbers import NUMBER_DTYPES, kind_of_number
from coordinator.errors import ArgumentNotSupported, ExampleMismatch
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.expressions import is_symbol_name
from edge_agent.plan.format import Tree
from edge_agent.plan.trees import leaf_paths, spec_of, unflatten
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, TORCH_DTYPES

__all__ = ["Arguments", "Leaf", "arguments_from_example", "arguments_from_shapes"]

ANY_SIZE = -1
"""In ``args_shape``: a dim that may vary, under a name of ours."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One input of the plan.

    ``path`` names it in errors; ``example`` is a dense CPU tensor; ``number`` is the Python number that it stands
    for, or None. ``dims`` has, for each dim that may vary, the name that the user gave it, or an empty one.
    """

    path: str
    example: torch.Tensor
    number: bool | int | float | complex | None = None
    dims: Mapping[int, str] | None = None

    @property
    def dynamic(self) -> Mapping[int, str]:
        """The dims that may vary."""
        return self.dims or {}

    def value(self) -> Any:
        """What eager code gets: a copy of its own, or the Python number."""
        return self.example.clone() if self.number is None else self.number


@dataclass(frozen=True, slots=True)
class Arguments:
    """A call, flattened: ``tree`` is ``["t", positional tree, named tree]`` over ``leaves``. ``given`` is False where
    the user gave only shapes, so that sizes and values are ours to choose.
    """

    tree: Tree
    leaves: tuple[Leaf, ...]
    given: bool = True

    def call(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the user's function, with ``values`` as leaves."""
        positional, named = unflatten(self.tree, values)
        return positional, named

    def with_examples(self, examples: Sequence[torch.Tensor]) -> Arguments:
        """The same call with other example tensors."""
        return replace(
            self,
            leaves=tuple(replace(leaf, example=tensor) for leaf, tensor in zip(self.leaves, examples, strict=True)),
        )


def arguments_from_example(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    args_shape: Sequence[Any] | Mapping[str, Any] | None = None,
    args_dtype: Sequence[Any] | Mapping[str, Any] | None = None,
    skip: frozenset[str] = frozenset(),
) -> Arguments:
    """The leaves of an example call. ``args_shape`` says which dims may vary; ``skip`` names parameters that are not
    arguments.

    Raises `ArgumentNotSupported`, or `ExampleMismatch` (a TypeError) where the function does not take such a call.
    """
    positional, named = _bind(function, args, kwargs, skip)
    return _flatten(positional, named, args_shape, args_dtype, given=True)


def arguments_from_shapes(
    function: Callable[..., Any],
    args_shape: Sequence[Any] | Mapping[str, Any],
    args_dtype: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    skip: frozenset[str] = frozenset(),
) -> Arguments:
    """The leaves of a call of which only shapes are known, and dtypes (float32 if not): values are drawn under a
    fixed seed. Raises as `arguments_from_example`.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Any, dtype: Any, path: str) -> Any:
        if _is_shape(shape):
            return _draw(
                [2 if dim == ANY_SIZE or isinstance(dim, str) else dim for dim in shape], dtype, generator, path
            )
        if isinstance(shape, Mapping):
            return {key: draw(part, _part_of(dtype, key), f"{path}[{key!r}]") for key, part in shape.items()}
        if isinstance(shape, list | tuple):
            parts = (draw(part, _part_of(dtype, k), f"{path}[{k}]") for k, part in enumerate(shape))
            return list(parts) if isinstance(shape, list) else tuple(parts)
        raise ArgumentNotSupported(
            path, "a shape in args_shape: a tuple of sizes, with -1 or a name for a dim that may vary", repr(shape)
        )

    if isinstance(args_shape, Mapping):
        args: list[Any] = []
        kwargs = {key: draw(shape, _part_of(args_dtype, key), key) for key, shape in args_shape.items()}
    elif isinstance(args_shape, list | tuple):
        names = _names(function, len(args_shape), skip)
        args = [draw(shape, _part_of(args_dtype, k), names[k]) for k, shape in enumerate(args_shape)]
        kwargs = {}
    else:
        expected = "a list with the shape of each argument, or a dict of them by name"
        raise ArgumentNotSupported("args_shape", expected, repr(args_shape))
    positional, named = _bind(function, args, kwargs, skip)
    return _flatten(positional, named, args_shape, args_dtype, given=False)


# ------------------------------------------------------------------------------------------------- binding


def _signature(function: Callable[..., Any], skip: frozenset[str]) -> inspect.Signature | None:
    """The parameters, without annotations; None of a builtin that does not tell them."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    empty = inspect.Parameter.empty
    return inspect.Signature([p.replace(annotation=empty) for name, p in parameters.items() if name not in skip])


def _names(function: Callable[..., Any], count: int, skip: frozenset[str]) -> list[str]:
    """What errors call the first ``count`` arguments."""
    signature = _signature(function, skip)
    plain = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    known = [] if signature is None else [name for name, p in signature.parameters.items() if p.kind in plain]
    return [*known[:count], *(f"args[{k}]" for k in range(len(known), count))]


def _bind(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], skip: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The call as (positional, named), each by the name that errors use. What can be passed by name is, so that one
    plan takes both ways of calling.
    """
    signature = _signature(function, skip)
    if signature is None:
        return {f"args[{k}]": value for k, value in enumerate(args)}, dict(kwargs)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExampleMismatch(f"{getattr(function, '__name__', 'it')}{signature}", str(error)) from None
    variadic = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    by_position = bool(variadic and bound.arguments.get(variadic))
    positional: dict[str, Any] = {}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            positional.update({f"{name}[{k}]": item for k, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.POSITIONAL_ONLY or (
            by_position and kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ):
            positional[name] = value
        else:
            named[name] = value
    return positional, named


def _flatten(
    positional: Mapping[str, Any], named: Mapping[str, Any], shapes: Any, dtypes: Any, *, given: bool
) -> Arguments:
    names = [*positional, *named]
    shape_of = _by_name(shapes, names, "args_shape")
    dtype_of = _by_name(dtypes, names, "args_dtype")
    leaves: list[Leaf] = []
    trees: list[Tree] = []
    for name, value in (*positional.items(), *named.items()):
        try:
            tree, found = spec_of(value, name=name)
        except ArgumentMismatch as error:
            raise ArgumentNotSupported(error.argument, error.expected, error.got) from None
        shapes_here = _along(tree, shape_of.get(name), _is_shape)
        dtypes_here = _along(tree, dtype_of.get(name), lambda _: False)
        leaves += map(_leaf, leaf_paths(tree, name), found, shapes_here, dtypes_here)
        trees.append(_shifted(tree, len(leaves) - len(found)))
    _check_names(leaves)
    count = len(positional)
    keyed = [part for name, tree in zip(named, trees[count:], strict=True) for part in (name, tree)]
    return Arguments(["t", ["t", *trees[:count]], ["d", *keyed]], tuple(leaves), given)


def _check_names(leaves: Sequence[Leaf]) -> None:
    sizes: dict[str, int] = {}
    for leaf in leaves:
        for dim, name in leaf.dynamic.items():
            size = leaf.example.shape[dim]
            if name and sizes.setdefault(name, size) != size:
                raise ArgumentNotSupported(
                    leaf.path, f"dim {dim} of size {sizes[name]}, as {name!r} before", f"size {size}"
                )


def _by_name(given: Any, names: Sequence[str], option: str) -> dict[str, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ArgumentNotSupported(
                option, f"entries for {', '.join(names) or 'no argument'}", f"one for {unknown[0]}"
            )
        return dict(given)
    if not isinstance(given, list | tuple) or len(given) > len(names):
        raise ArgumentNotSupported(option, f"a list of at most {len(names)}, one entry an argument", repr(given))
    return dict(zip(names, given, strict=False))


def _shifted(tree: Tree, by: int) -> Tree:
    if isinstance(tree, int):
        return tree + by
    if isinstance(tree, list):
        step, first = (2, 2) if tree[0] == "d" else (1, 1)
        return [part if k < first or (k - first) % step else _shifted(part, by) for k, part in enumerate(tree)]
    return tree


# ------------------------------------------------------------------------------------------------- shapes and dtypes


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and all(
        isinstance(dim, int | str) and not isinstance(dim, bool) for dim in shape
    )


def _part_of(nest: Any, key: Any) -> Any:
    if isinstance(nest, Mapping):
        return nest.get(key)
    if isinstance(nest, list | tuple):
        return nest[key] if isinstance(key, int) and key < len(nest) else None
    return nest


def _along(tree: Tree, nest: Any, is_entry: Callable[[Any], bool]) -> list[Any]:
    """The entry of a nest of shapes or dtypes for each leaf of a tree; None where it has none. One dtype serves for
    all below it.
    """
    if tree is None:
        return []
    if not isinstance(tree, list):
        return [nest]
    pairs = zip(tree[1::2], tree[2::2], strict=True) if tree[0] == "d" else enumerate(tree[1:])
    inner = None if is_entry(nest) else nest
    return [entry for key, subtree in pairs for entry in _along(subtree, _part_of(inner, key), is_entry)]


def _leaf(path: str, value: Any, shape: Any, dtype: Any) -> Leaf:
    kind = kind_of_number(value)
    if kind is not None:
        if shape is not None and tuple(shape) != ():
            raise ArgumentNotSupported(path, f"a tensor of shape {tuple(shape)}", f"the number {value!r}")
        if kind is int and not -(1 << 63) <= value < 1 << 63:
            raise ArgumentNotSupported(path, "an integer of 64 bits", f"{value}")
        return Leaf(path, torch.tensor(value, dtype=NUMBER_DTYPES[kind]), number=value)
    if not isinstance(value, torch.Tensor):
        raise ArgumentNotSupported(
            path, "a tensor or a number, in lists, tuples and dicts", f"a {type(value).__name__}"
        )
    if value.layout is not torch.strided or value.is_quantized or value.dtype not in DTYPE_NAMES:
        raise ArgumentNotSupported(path, f"a dense tensor of {', '.join(DTYPES)}", f"{value.layout} of {value.dtype}")
    if dtype is not None and value.dtype != _dtype(dtype, path):
        raise ArgumentNotSupported(path, f"{_dtype(dtype, path)} as args_dtype says", f"{value.dtype}")
    dims: dict[int, str] = {}
    if shape is not None:
        if not _is_shape(shape) or len(shape) != value.ndim:
            raise ArgumentNotSupported(path, f"an entry of args_shape with {value.ndim} dims", repr(shape))
        for k, dim in enumerate(shape):
            if isinstance(dim, str):
                if not is_symbol_name(dim):
                    raise ArgumentNotSupported(path, "a dim name that is an identifier", repr(dim))
                dims[k] = dim
            elif dim == ANY_SIZE:
                dims[k] = ""
            elif dim != value.shape[k]:
                raise ArgumentNotSupported(path, f"dim {k} of size {dim} as args_shape says", f"size {value.shape[k]}")
    # devices hold dense tensors in C order, so that is what is traced
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return Leaf(path, plain, dims=dims)


def _dtype(dtype: Any, path: str) -> torch.dtype:
    found = TORCH_DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPE_NAMES:
        raise ArgumentNotSupported(path, f"a dtype of {', '.join(DTYPES)} in args_dtype", repr(dtype))
    return found


def _draw(shape: Sequence[int], dtype: Any, generator: torch.Generator, path: str) -> torch.Tensor:
    wanted = torch.get_default_dtype() if dtype is None else _dtype(dtype, path)
    if any(dim < 0 for dim in shape):
        expected = "sizes of 0 or more in args_shape, or -1 for a dim that may vary"
        raise ArgumentNotSupported(path, expected, repr(tuple(shape)))
    return draw(shape, wanted, generator)


def draw(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Values to try a plan with: normal ones, or 0 and 1 where those of an integer or bool may be indices."""
    if dtype.is_floating_point or dtype.is_complex:
        base = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(list(shape), generator=generator, dtype=base).to(dtype)
    return torch.randint(0, 2, list(shape), generator=generator).to(dtype)
