"""What an op is: its name, its parameters as in torch's schema, and the rule that types it.

The families in `edge_agent.plan.ops` are tables made with `define`; `edge_agent.plan.registry` gathers them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.sizes import Sizes

__all__ = ["MISSING", "Number", "OpSpec", "Operand", "Parameter", "Rule", "Scope", "SubGraph", "define"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an op.

    ``kind`` is the schema's type, with ``int`` for SymInt and without the annotations of aliasing: ``Tensor``,
    ``Tensor?``, ``Tensor[]``, ``Tensor?[]``, ``Scalar``, ``int``, ``int[]``, ``float``, ``bool``, ``str``,
    ``ScalarType``, ``Layout``, ``Device``, ``MemoryFormat`` or ``Generator``, each also with ``?``; or ``Graph``, for a
    sub-graph. ``length``: how many elements a single int stands for (``int[2]``). ``default`` is `MISSING` where an
    argument is required.
    """

    name: str
    kind: str
    keyword_only: bool
    default: Any
    length: int = 0

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is MISSING


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()
"""The default of a parameter that has none."""


@dataclass(frozen=True, slots=True)
class Number:
    """A Python number among an op's arguments: ``kind`` is bool, int, float or complex; ``value`` is the number, or an
    expression.
    """

    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class SubGraph:
    """A sub-graph among an op's arguments, typed: the parameter that it is given for, and the types of its inputs and
    outputs.
    """

    name: str
    inputs: Sequence[TensorType]
    outputs: Sequence[TensorType]


Operand: TypeAlias = TensorType | Number
"""What an element-wise op computes with."""


@dataclass(slots=True)
class Scope:
    """What a type rule may look at besides its arguments: the algebra of dims, and how many outputs the plan says that
    the op has.
    """

    sizes: Sizes
    outputs: int = 1


Rule: TypeAlias = Callable[..., TensorType | Sequence[TensorType]]
"""``rule(scope, *arguments) -> types``: arguments in the order of the parameters, defaults filled in; a dim is a
`Dim`. Raises `PlanTypeError`."""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An op of the registry.

    ``name`` as in a plan: ``aten.add.Tensor``. ``schema``: torch's, without the namespace; of what takes sub-graphs
    (``control.cond.default``), ours. ``outputs``: how many it
    has; None for an op that gives a list. ``views``: an output may share memory with an input. ``numbers``: a Python
    number may stand for a tensor. ``family``: for the docs. ``since``: the version of the registry
    (`edge_agent.plan.format.OPS_VERSION`) that has it first.
    """

    name: str
    schema: str
    parameters: tuple[Parameter, ...]
    outputs: int | None
    rule: Rule
    views: bool
    numbers: bool
    family: str
    since: int = 1

    @property
    def positional(self) -> int:
        """How many arguments may be given by position."""
        return sum(not parameter.keyword_only for parameter in self.parameters)


_SCHEMA = re.compile(r"(\w+)(?:\.(\w+))?\((.*)\) -> (.*)")
_ALIAS = re.compile(r"\([a-z](?: -> \*)?\)")
_PARAMETER = re.compile(r"(\w+)(?:\[(\d+)\])?(\S*) (\w+)(?:=(.*))?")
# torch's list, should_allow_numbers_as_tensors in torch/csrc/utils/python_arg_parser.cpp
_NUMBERS_AS_TENSORS = frozenset({"add", "div", "floor_divide", "mul", "sub", "true_divide"})
_SCALAR_TYPES = {"4": "int64"}  # how a schema writes a default dtype: by its number in c10/core/ScalarType.h


def define(
    family: str, rule: Rule, schemas: str, *, views: bool | None = None, since: int = 1, namespace: str = "aten"
) -> list[OpSpec]:
    """The specs of ops that share a rule, from their schemas, each on a line of its own (and, indented, the next).

    ``views`` overrides what the schema says of aliasing: some composite ops return their input without saying so.
    ``since``: the version of the registry in which they come.
    """
    joined = re.sub(r"\n +", " ", textwrap.dedent(schemas).strip())  # what is indented goes on from the line before
    return [_parse(schema, family, rule, views, since, namespace) for schema in joined.splitlines()]


def _parse(schema: str, family: str, rule: Rule, views: bool | None, since: int, namespace: str) -> OpSpec:
    found = _SCHEMA.fullmatch(schema)
    if found is None:
        raise ValueError(f"expected a schema, got {schema!r}")
    name, overload, arguments, returns = found.groups()
    if "!" in schema:
        raise ValueError(f"expected an op that does not mutate, got {schema!r}")
    parameters = []
    keyword_only = False
    for text in _split(_ALIAS.sub("", arguments)):
        if text == "*":
            keyword_only = True
        else:
            parameters.append(_parameter(text, keyword_only))
    plain = _ALIAS.sub("", returns)
    return OpSpec(
        name=f"{namespace}.{name}.{overload or 'default'}",
        schema=schema,
        parameters=tuple(parameters),
        outputs=None if plain == "Tensor[]" else plain.count("Tensor"),
        rule=rule,
        views=bool(_ALIAS.search(returns)) if views is None else views,
        numbers=name in _NUMBERS_AS_TENSORS,
        family=family,
        since=since,
    )


def _split(arguments: str) -> list[str]:
    # commas also stand inside default lists
    parts = re.split(r", (?![^\[]*\])", arguments)
    return [part for part in parts if part]


def _parameter(text: str, keyword_only: bool) -> Parameter:
    found = _PARAMETER.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a parameter of a schema, got {text!r}")
    base, length, suffix, name, default = found.groups()
    kind = base + ("[]" if length else "") + suffix
    return Parameter(
        name=name,
        kind=kind,
        keyword_only=keyword_only,
        default=MISSING if default is None else _default(default, kind, int(length or 0)),
        length=int(length or 0),
    )


def _default(text: str, kind: str, length: int) -> Any:
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    if text.startswith("["):
        return [int(part) for part in text[1:-1].split(", ") if part]
    if text.startswith('"'):
        return text[1:-1]
    if kind.startswith("ScalarType"):
        return _SCALAR_TYPES[text]
    if kind.startswith("MemoryFormat"):
        return "contiguous_format"  # written as 0, its number in c10/core/MemoryFormat.h
    if kind.startswith("int"):
        return [int(text)] * length if length else int(text)
    number = float(text)
    if kind.startswith("Scalar"):
        return Number("float", number) if "." in text else Number("int", int(number))
    return number


def tensor(dtype: str, shape: Sequence[Dim]) -> TensorType:
    """A tensor type, for rules."""
    return TensorType(dtype=dtype, shape=list(shape))


def misfit(expected: str, got: str) -> PlanTypeError:
    """The error of a rule whose arguments do not fit."""
    return PlanTypeError(f"expected {expected}, got {got}")
