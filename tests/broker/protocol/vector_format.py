"""How the golden vectors write a message down in JSON; see vectors/README.md."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import Any

import msgspec

from broker.protocol import messages as m
from tests.broker.protocol.message_strategies import tag_of

__all__ = ["FOLDER", "load", "named", "plain", "save"]

FOLDER = Path(__file__).parent / "vectors" / f"v{m.PROTOCOL_VERSION[0]}"
"""The vectors of this major version."""


def plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    match value:
        case enum.Enum():
            return value.value
        case bytes():
            return {"bytes": value.hex()}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
        case msgspec.Struct() if type(value).__struct_config__.tag is not None:
            return named(value)
        case msgspec.Struct():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case list() | tuple():
            return [plain(one) for one in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {key: plain(one) for key, one in value.items()}
        case dict():
            return {"pairs": [[plain(key), plain(one)] for key, one in value.items()]}
    return value


def named(message: Any) -> dict[str, Any]:
    """A message, command or event by name, tag and fields."""
    fields = {name: plain(getattr(message, name)) for name in message.__struct_fields__}
    return {"type": type(message).__name__, "tag": tag_of(type(message)), "fields": fields}


def load(name: str) -> list[dict[str, Any]]:
    """The vectors of one file; none where it does not exist yet."""
    path = FOLDER / name
    vectors: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return vectors


def save(name: str, vectors: list[dict[str, Any]]) -> None:
    """Write one file, a vector a line, so that a new one is one line of a diff."""
    lines = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
    (FOLDER / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
