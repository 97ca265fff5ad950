"""``python -m tests.broker.protocol.make_vectors``: add golden vectors for what has none; change none that exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect

from broker.protocol import messages as m
from broker.protocol.framing import command_digest, encode
from broker.protocol.ids import nth
from broker.protocol.tensors import DTYPES, encode_array
from tests.broker.protocol.message_strategies import MESSAGE_TYPES, minimal
from tests.broker.protocol.vector_format import load, named, save

RESULT = bytes.fromhex("4f1d0b2277a0c3e9") + (7).to_bytes(8, "big")
PLAN = bytes(range(32))
DIGEST = bytes(range(64, 80))
INVOKE = m.Invoke(id=RESULT, plan=PLAN, args=[nth(RESULT, -1)])


class _Filler:
    """Fills every field of a message with a value of its own, the same at every run."""

    def __init__(self) -> None:
        self.count = 0

    def message(self, kind: type[Any]) -> Any:
        return self.value(inspect.type_info(kind))

    def value(self, type_: inspect.Type) -> Any:
        self.count += 1
        match type_:
            case inspect.StructType():
                return type_.cls(**{field.name: self.value(field.type) for field in type_.fields})
            case inspect.UnionType():
                present = [one for one in type_.types if not isinstance(one, inspect.NoneType)]
                return self.value(present[0])
            case inspect.IntType():
                return 1000 + self.count
            case inspect.FloatType():
                return self.count / 8
            case inspect.BoolType():
                return self.count % 2 == 0
            case inspect.BytesType():
                length = type_.min_length or 3
                return bytes((self.count + k) % 256 for k in range(length))
            case inspect.StrType():
                return f"text-{self.count}"
            case inspect.EnumType():
                return list(type_.cls)[self.count % len(type_.cls)]
            case inspect.ListType():
                return [self.value(type_.item_type), self.value(type_.item_type)]
            case inspect.TupleType():
                return tuple(self.value(one) for one in type_.item_types)
            case inspect.DictType():
                return {self.value(type_.key_type): self.value(type_.value_type)}
        raise NotImplementedError(type_)


def messages() -> Iterator[tuple[str, m.Message]]:
    """What the vectors of messages show, each under its name."""
    for kind in MESSAGE_TYPES:
        if kind.__struct_fields__:
            yield f"{kind.__name__}, required fields only", minimal(kind)
        yield f"{kind.__name__}, every field", _Filler().message(kind)
    commands: dict[str, m.Command] = {
        "Invoke on one pointer": INVOKE,
        "Invoke with every kind of argument": m.Invoke(
            id=RESULT, plan=PLAN, args=[RESULT, None, True, -3, 2.5, math.inf, ["input_data", "day-1"]], outputs=2
        ),
        "Invoke, every field": _Filler().message(m.Invoke),
        "Put of a tensor that rides along": m.Put(id=RESULT, tags=["input_data"], description="two readings"),
        "Put of a blob": m.Put(id=RESULT, blob=PLAN),
        "Release": m.Release(ids=[RESULT, nth(RESULT, 1)]),
        "Cancel": m.Cancel(id=RESULT),
        "StorePlan": m.StorePlan(plan=PLAN, parts=[PLAN, bytes(32)], attached=[PLAN], beside={"source": bytes(32)}),
    }
    for name, command in commands.items():
        yield f"Submit: {name}", m.Submit(n=1, devices=["pi-kitchen"], command=command)
        yield f"Deliver: {name}", m.Deliver(n=1, digest=DIGEST, command=command)
    several = m.Invoke(id=RESULT, plan=PLAN, args=[None, 1], each={0: RESULT + nth(RESULT, 5)})
    yield "Submit: Invoke on two devices, with an argument for each", m.Submit(n=2, devices=["a", "b"], command=several)
    failure = m.Failure(code="ExecutionFailed", message="boom", details={"device": "pi", "op_index": 3, "retry": False})
    info = m.ResultInfo(dtype="float32", shape=[2, 0], nbytes=0)
    entry = m.TagEntry(id=RESULT, tags=["input_data"], description="", info=info)
    events: dict[str, m.Event] = {
        "ResultReady, inline": m.ResultReady(id=RESULT, digest=DIGEST, inline=True),
        "ResultReady, not inline": m.ResultReady(id=RESULT, digest=DIGEST, infos=[info]),
        "ResultFailed": m.ResultFailed(id=RESULT, digest=DIGEST, failure=failure),
        "Cancelled": m.Cancelled(id=RESULT, digest=DIGEST),
        "Expired": m.Expired(id=RESULT, digest=DIGEST),
        "TagsChanged": m.TagsChanged(entries=[entry], gone=[nth(RESULT, 1)], whole=True),
    }
    for name, event in events.items():
        yield f"Announce: {name}", m.Announce(n=1, event=event)
        yield f"Notify: {name}", m.Notify(n=1, device="pi-kitchen", event=event)
    taken, ready = m.Taken(n=2), m.Announce(n=1, event=events["ResultReady, inline"])
    value = encode_array(np.array([2.0, 4.0], dtype=np.float32))
    yield "Bundle: Taken, and a result with its value", m.Bundle(messages=[[encode(taken)], [encode(ready), value]])


def tensors() -> Iterator[dict[str, Any]]:
    """One tensor of each dtype, and the shapes that are easily got wrong."""
    shaped: dict[str, tuple[str, tuple[int, ...]]] = {f"{name}[2]": (name, (2,)) for name in DTYPES}
    shaped |= {"0-d": ("float32", ()), "empty": ("int64", (0,)), "empty with dims": ("float64", (2, 0, 3))}
    shaped |= {"8 dims": ("uint8", (1, 2, 1, 1, 2, 1, 1, 1))}
    for name, (dtype, shape) in shaped.items():
        kind, size = DTYPES[dtype]
        count = math.prod(shape)
        raw = bytes([k % 2 for k in range(count)]) if dtype == "bool" else bytes(range(16, 16 + count * size))
        array = np.frombuffer(raw, dtype=kind).reshape(shape)
        frame = encode_array(array, bfloat16_bits=dtype == "bfloat16")
        yield {"name": name, "dtype": dtype, "shape": list(shape), "data": raw.hex(), "frame": frame.hex()}


def digests() -> Iterator[dict[str, Any]]:
    """Digests of commands with and without payload frames."""
    cases: list[tuple[str, m.Command, list[bytes]]] = [
        ("Invoke", INVOKE, []),
        ("Put with one frame", m.Put(id=RESULT), [b"abc"]),
        ("StorePlan with two frames", m.StorePlan(plan=PLAN, parts=[PLAN]), [b"", b"x" * 300]),
    ]
    for name, command, frames in cases:
        yield {
            "name": name,
            "command": msgspec.msgpack.encode(command).hex(),
            "frames": [frame.hex() for frame in frames],
            "digest": command_digest(command, frames).hex(),
        }


def main() -> None:
    """Append what is missing to each file, by name."""
    found = {
        "messages.json": [
            {"name": name, **named(message), "header": encode(message).hex()} for name, message in messages()
        ],
        "tensors.json": list(tensors()),
        "digests.json": list(digests()),
    }
    for file, vectors in found.items():
        kept = load(file)
        names = {vector["name"] for vector in kept}
        added = [vector for vector in vectors if vector["name"] not in names]
        if added:
            save(file, kept + added)
        print(f"{file}: {len(kept)} kept, {len(added)} added")


if __name__ == "__main__":
    main()
