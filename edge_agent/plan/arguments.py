"""Binds what a plan gives to an op with what the op's schema asks for: names, order, kinds.

What comes out is what type rules take: a `TensorType` for a value, a `Number` for a Python number, a `Dim` in normal
form for an integer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from broker.protocol.tensors import DTYPES, MAX_DIMS
from edge_agent.plan.errors import PlanTypeError
from edge_agent.plan.expressions import INT_LIMIT, check_expression
from edge_agent.plan.format import Argument, Graph, Special, TensorType
from edge_agent.plan.sizes import Sizes
from edge_agent.plan.spec import Number, OpSpec, Parameter, SubGraph

__all__ = ["MEMORY_FORMATS", "Binder", "brief"]

MEMORY_FORMATS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
"""The memory formats that a plan may name."""

_CONSTANTS = {
    "MemoryFormat": {f"memory_format:{name}": name for name in MEMORY_FORMATS},
    "Layout": {"layout:strided": "strided"},
    "Device": {"device:cpu": "cpu"},
}
_MAX_TEXT = 256


class Binder:
    """Binds the arguments of a graph's ops. ``types`` are the values bound so far, by reference: it grows as the
    checker goes on. ``nested(name, graph)`` types a sub-graph that is given for the parameter ``name``.
    """

    def __init__(
        self,
        types: list[TensorType],
        sizes: Sizes,
        symbols: Mapping[str, object],
        nested: Callable[[str, Graph], SubGraph],
    ) -> None:
        self._types = types
        self._nested = nested
        self._sizes = sizes
        self._symbols = symbols
        self._one: dict[str, Callable[[str, Argument], Any]] = {
            "Tensor": self._tensor,
            "Scalar": self._number,
            "int": self._int,
            "float": self._float,
            "bool": self._bool,
            "str": self._str,
            "ScalarType": self._dtype,
            "MemoryFormat": lambda name, argument: _constant("MemoryFormat", name, argument),
            "Layout": lambda name, argument: _constant("Layout", name, argument),
            "Device": lambda name, argument: _constant("Device", name, argument),
            "Graph": self._graph,
        }

    def bind(self, spec: OpSpec, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> list[Any]:
        """One argument a parameter, in the schema's order, defaults filled in. Raises `PlanTypeError` or
        `PlanMalformed`.
        """
        if len(args) > spec.positional:
            raise PlanTypeError(f"expected at most {spec.positional} arguments by position, got {len(args)}")
        bound = []
        given = len(args)
        left = len(kwargs)
        for place, parameter in enumerate(spec.parameters):
            if place < given:
                if parameter.name in kwargs:
                    raise PlanTypeError(f"expected {parameter.name} once, got it by position and by name")
                bound.append(self._argument(parameter, args[place], numbers=spec.numbers))
            elif parameter.name in kwargs:
                left -= 1
                if parameter.kind == "Graph":  # so that there is one order in which they come
                    raise PlanTypeError(f"expected the sub-graph {parameter.name} by position, got it by name")
                bound.append(self._argument(parameter, kwargs[parameter.name], numbers=spec.numbers))
            elif parameter.required:
                raise PlanTypeError(f"expected an argument for {parameter.name}, got none")
            else:
                bound.append(parameter.default)
        if left:
            known = {parameter.name for parameter in spec.parameters}
            unknown = next(name for name in kwargs if name not in known)
            names = ", ".join(parameter.name for parameter in spec.parameters)
            raise PlanTypeError(f"expected arguments among {names}, got {unknown[:_MAX_TEXT]!r}")
        return bound

    def _argument(self, parameter: Parameter, argument: Argument, *, numbers: bool) -> Any:
        kind = parameter.kind
        if kind == "Tensor" and type(argument) is Special and argument.v is not None:  # by far the most common
            return self._value(argument.v)
        if kind.endswith("?"):
            if argument is None:
                return None
            kind = kind[:-1]
        if kind.endswith("[]"):
            return self._list(parameter, kind[:-2], argument)
        if kind == "Tensor" and numbers and not (type(argument) is Special and argument.v is not None):
            return self._number(parameter.name, argument)
        return self._one[kind](parameter.name, argument)

    def _list(self, parameter: Parameter, kind: str, argument: Argument) -> list[Any]:
        if type(argument) is Special and (argument.l is not None or argument.t is not None):
            elements = argument.l if argument.l is not None else argument.t
            assert elements is not None  # one of them is given
            if kind == "int" and len(elements) > 2 * MAX_DIMS and parameter.name != "split_sizes":
                raise PlanTypeError(
                    f"expected at most {2 * MAX_DIMS} elements of {parameter.name}, got {len(elements)}"
                )
            optional, kind = kind.endswith("?"), kind.removesuffix("?")
            one = self._one[kind]
            return [None if optional and element is None else one(parameter.name, element) for element in elements]
        if parameter.length and kind == "int":
            return [self._int(parameter.name, argument)] * parameter.length
        raise PlanTypeError(f"expected a list for {parameter.name}, got {brief(argument)}")

    def _value(self, number: int) -> TensorType:
        if number >= len(self._types):
            raise PlanTypeError(f"expected a value that is bound earlier, at most {len(self._types) - 1}, got {number}")
        return self._types[number]

    def _tensor(self, name: str, argument: Argument) -> TensorType:
        if type(argument) is Special and argument.v is not None:
            return self._value(argument.v)
        raise PlanTypeError(f"expected a tensor for {name}, got {brief(argument)}")

    def _number(self, name: str, argument: Argument) -> Number:
        if isinstance(argument, bool):
            return Number("bool", argument)
        if isinstance(argument, int):
            return Number("int", _int64(name, argument))
        if isinstance(argument, float):
            return Number("float", argument)
        if type(argument) is Special:
            if argument.s is not None:
                kind = check_expression(argument.s, self._symbols)
                return Number(kind, self._sizes.normal(argument.s) if kind == "int" else argument.s)
            if argument.c is not None:
                return Number("complex", complex(*argument.c))
        raise PlanTypeError(f"expected a number for {name}, got {brief(argument)}")

    def _int(self, name: str, argument: Argument) -> Any:
        if type(argument) is int:
            return _int64(name, argument)
        if type(argument) is Special and argument.s is not None:
            kind = check_expression(argument.s, self._symbols)
            if kind == "int":
                return self._sizes.normal(argument.s)
            raise PlanTypeError(f"expected an integer for {name}, got a {kind}")
        raise PlanTypeError(f"expected an integer for {name}, got {brief(argument)}")

    def _float(self, name: str, argument: Argument) -> Any:
        if type(argument) is float:
            return argument
        number = self._number(name, argument)
        if number.kind not in ("int", "float"):
            raise PlanTypeError(f"expected a float for {name}, got {brief(argument)}")
        return number.value

    def _bool(self, name: str, argument: Argument) -> bool:
        if isinstance(argument, bool):
            return argument
        raise PlanTypeError(f"expected True or False for {name}, got {brief(argument)}")

    def _str(self, name: str, argument: Argument) -> str:
        if isinstance(argument, str) and len(argument) <= _MAX_TEXT:
            return argument
        raise PlanTypeError(f"expected a string of at most {_MAX_TEXT} characters for {name}, got {brief(argument)}")

    def _graph(self, name: str, argument: Argument) -> SubGraph:
        if type(argument) is Special and argument.g is not None:
            return self._nested(name, argument.g)
        raise PlanTypeError(f"expected a sub-graph for {name}, got {brief(argument)}")

    def _dtype(self, name: str, argument: Argument) -> str:
        if type(argument) is Special and argument.d is not None and argument.d in DTYPES:
            return argument.d
        raise PlanTypeError(f"expected a dtype of {', '.join(DTYPES)} for {name}, got {brief(argument)}")


def _constant(kind: str, name: str, argument: Argument) -> str:
    if type(argument) is Special and argument.o is not None and argument.o in _CONSTANTS[kind]:
        return _CONSTANTS[kind][argument.o]
    raise PlanTypeError(f"expected one of {', '.join(_CONSTANTS[kind])} for {name}, got {brief(argument)}")


def _int64(name: str, number: int) -> int:
    if not -INT_LIMIT <= number < INT_LIMIT:
        raise PlanTypeError(f"expected an integer of 64 bits for {name}, got a larger one")
    return number


def brief(argument: Argument) -> str:
    """An argument as a word or two, for an error."""
    if argument is None or isinstance(argument, bool | int | float | str):
        text = repr(argument)
        return text if len(text) <= 64 else text[:61] + "..."
    if argument.v is not None:
        return "a tensor"
    if argument.s is not None:
        return "a symbolic number"
    if argument.d is not None:
        return f"the dtype {argument.d[:64]}"
    if argument.l is not None or argument.t is not None:
        return "a list"
    if argument.c is not None:
        return "a complex number"
    return f"the constant {argument.o[:64]}" if argument.o is not None else "a graph"
