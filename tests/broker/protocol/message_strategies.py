"""Hypothesis strategies for every message, read off the types, so that a new message is tested as soon as it exists."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st
from msgspec import inspect

from broker.protocol import messages as m

__all__ = ["MESSAGE_TYPES", "any_message", "message_of", "minimal", "tag_of"]

MESSAGE_TYPES: tuple[type[Any], ...] = get_args(m.Message)
"""All messages, in the order of the vocabulary."""


def tag_of(message: type[Any]) -> int:
    """The integer that stands first in the message's array."""
    tag: int = message.__struct_config__.tag
    return tag


def message_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Messages of one type: each field is left at its default or drawn."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return _struct(info)


def any_message() -> st.SearchStrategy[Any]:
    """Messages of every type."""
    return st.one_of([message_of(kind) for kind in MESSAGE_TYPES])


def minimal(kind: type[Any]) -> Any:
    """A message of one type with only its required fields, each as small as it may be."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return _smallest(info)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    required = {field.name: _of(field.type) for field in info.fields if field.required}
    optional = {field.name: _of(field.type) for field in info.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: info.cls(**fields))


def _of(type_: inspect.Type) -> st.SearchStrategy[Any]:
    match type_:
        case inspect.StructType():
            return _struct(type_)
        case inspect.UnionType():
            return st.one_of([_of(one) for one in type_.types])
        case inspect.IntType():
            return st.integers(type_.ge if type_.ge is not None else -(1 << 63), type_.le or (1 << 64) - 1)
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.BytesType():
            return st.binary(min_size=type_.min_length or 0, max_size=type_.max_length or 40)
        case inspect.StrType():
            if type_.pattern is not None:
                return st.from_regex(type_.pattern)
            return st.text(min_size=type_.min_length or 0, max_size=type_.max_length or 20)
        case inspect.EnumType():
            return st.sampled_from(type_.cls)
        case inspect.ListType():
            return st.lists(_of(type_.item_type), max_size=4)
        case inspect.TupleType():
            return st.tuples(*[_of(one) for one in type_.item_types])
        case inspect.DictType():
            return st.dictionaries(_of(type_.key_type), _of(type_.value_type), max_size=3)
    raise NotImplementedError(type_)


def _smallest(type_: inspect.Type) -> Any:
    match type_:
        case inspect.StructType():
            return type_.cls(**{field.name: _smallest(field.type) for field in type_.fields if field.required})
        case inspect.UnionType():
            return _smallest(type_.types[0])
        case inspect.IntType():
            return 0
        case inspect.BytesType():
            return bytes(type_.min_length or 0)
        case inspect.StrType():
            return "a"
        case inspect.EnumType():
            return next(iter(type_.cls))
        case inspect.ListType():
            return []
        case inspect.TupleType():
            return tuple(_smallest(one) for one in type_.item_types)
        case inspect.DictType():
            return {}
    raise NotImplementedError(type_)
