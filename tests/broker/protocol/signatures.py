"""Every message as docs/protocol.md writes it down, read off the types.

``python -m tests.broker.protocol.signatures`` prints all of them, to be pasted into the document after a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec
from msgspec import inspect

from broker.protocol import messages as m
from tests.broker.protocol.message_strategies import MESSAGE_TYPES, tag_of

__all__ = ["PARTS", "TAGGED", "signature", "signatures"]

TAGGED: tuple[type[Any], ...] = (*MESSAGE_TYPES, *get_args(m.Command), *get_args(m.Event))
"""Everything that has a tag."""

PARTS: tuple[type[Any], ...] = (
    m.Failure,
    m.ResultInfo,
    m.TagEntry,
    m.StatusEntry,
    m.DeviceInfo,
    m.Counters,
    m.Outcome,
)
"""The structures inside messages."""

_UNIONS = {frozenset(get_args(m.Command)): "command", frozenset(get_args(m.Event)): "event"}


def signatures() -> Iterator[str]:
    """One line for each message, command, event and part."""
    for kind in (*TAGGED, *PARTS):
        yield signature(kind)


def signature(kind: type[Any]) -> str:
    """``Name = [tag, field: type, field: type = default, ...]``."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    tag = [] if info.tag is None else [str(tag_of(kind))]
    return f"{kind.__name__} = [{', '.join([*tag, *map(_field, info.fields)])}]"


def _field(field: inspect.Field) -> str:
    written = f"{field.name}: {_type(field.type)}"
    if field.required:
        return written
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return f"{written} = {_default(default)}"


def _default(value: Any) -> str:
    names = {None: "nil", True: "true", False: "false", "": '""', b"": "empty"}
    return str(value) if isinstance(value, (list, dict)) or value not in names or type(value) is int else names[value]


def _type(type_: inspect.Type) -> str:
    match type_:
        case inspect.UnionType():
            kinds = frozenset(one.cls for one in type_.types if isinstance(one, inspect.StructType))
            known = _UNIONS.get(kinds)
            return known or " | ".join(sorted(map(_type, type_.types), key=lambda name: name == "nil"))
        case inspect.StructType():
            return type_.cls.__name__
        case inspect.IntType():
            return "int" if type_.ge is None else "nat"
        case inspect.BytesType():
            low, high = type_.min_length, type_.max_length
            return "bytes" if high is None else f"bytes{low}" if low == high else f"bytes{low}..{high}"
        case inspect.StrType():
            return "device" if type_.pattern else "str" if type_.max_length is None else "tag"
        case inspect.ListType():
            return f"[{_type(type_.item_type)}]"
        case inspect.DictType():
            return f"{{{_type(type_.key_type)}: {_type(type_.value_type)}}}"
        case inspect.TupleType():
            return f"({', '.join(map(_type, type_.item_types))})"
        case inspect.EnumType():
            return "status"
        case inspect.BoolType():
            return "bool"
        case inspect.FloatType():
            return "float"
        case inspect.NoneType():
            return "nil"
    raise NotImplementedError(type_)


if __name__ == "__main__":
    print("\n".join(signatures()))
