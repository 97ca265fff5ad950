"""The golden vectors: what peers of this major version send, decoded and encoded again."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest

from broker.protocol import messages as m
from broker.protocol.framing import command_digest, decode, encode
from broker.protocol.tensors import DTYPES, decode_array, encode_array, inspect
from tests.broker.protocol.message_strategies import MESSAGE_TYPES
from tests.broker.protocol.vector_format import load, named

MESSAGES = load("messages.json")
TENSORS = load("tensors.json")
DIGESTS = load("digests.json")


def names(vectors: list[dict[str, Any]]) -> list[str]:
    """What to call the cases."""
    return [vector["name"] for vector in vectors]


def without(known: Any, found: Any) -> Any:
    """``found`` without the fields that ``known`` does not have: those that a later minor version added."""
    if isinstance(known, dict) and isinstance(found, dict):
        return {name: without(value, found[name]) for name, value in known.items() if name in found}
    if isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        return [without(one, other) for one, other in zip(known, found, strict=True)]
    return found


@pytest.mark.parametrize("vector", MESSAGES, ids=names(MESSAGES))
def test_a_message_means_what_its_vector_says(vector: dict[str, Any]) -> None:
    """The bytes decode to these fields; encoded again, they decode to the same message."""
    message = decode(bytes.fromhex(vector["header"]))
    expected = {key: vector[key] for key in ("type", "tag", "fields")}
    assert json.loads(json.dumps(without(expected, named(message)))) == expected
    assert decode(encode(message)) == message


@pytest.mark.parametrize("vector", MESSAGES, ids=names(MESSAGES))
def test_a_message_is_encoded_as_its_vector_says(vector: dict[str, Any]) -> None:
    """We still send the same elements in the same order; a later minor version may only have added to the end."""
    known = msgspec.msgpack.decode(bytes.fromhex(vector["header"]))
    sent = msgspec.msgpack.decode(encode(decode(bytes.fromhex(vector["header"]))))
    assert begins_with(sent, known)


def begins_with(sent: Any, known: Any) -> bool:
    """Whether ``sent`` is ``known``, but for elements more at the end of arrays."""
    if isinstance(known, list):
        return (
            isinstance(sent, list)
            and len(sent) >= len(known)
            and all(begins_with(a, b) for a, b in zip(sent, known, strict=False))
        )
    if isinstance(known, dict):
        return sent.keys() == known.keys() and all(begins_with(sent[key], known[key]) for key in known)
    return type(sent) is type(known) and bool(sent == known)


def test_every_message_command_and_event_has_a_vector() -> None:
    """After adding one, run ``python -m tests.broker.protocol.make_vectors``."""
    shown = {vector["type"] for vector in MESSAGES}
    for vector in MESSAGES:
        shown |= {part["type"] for part in vector["fields"].values() if isinstance(part, dict) and "type" in part}
    kinds = {kind.__name__ for kind in [*MESSAGE_TYPES, *get_args(m.Command), *get_args(m.Event)]}
    assert kinds - shown == set()


@pytest.mark.parametrize("vector", TENSORS, ids=names(TENSORS))
def test_a_tensor_is_framed_as_its_vector_says(vector: dict[str, Any]) -> None:
    """The frame holds these bits under this dtype and shape; encoded again, it is the same frame."""
    frame = bytes.fromhex(vector["frame"])
    header = inspect(frame)
    assert (header.dtype, list(header.shape)) == (vector["dtype"], vector["shape"])
    assert bytes(header.data).hex() == vector["data"]
    assert encode_array(decode_array(frame), bfloat16_bits=vector["dtype"] == "bfloat16") == frame


def test_every_dtype_has_a_vector() -> None:
    """The allow-list is part of the protocol."""
    assert {vector["dtype"] for vector in TENSORS} == set(DTYPES)


@pytest.mark.parametrize("vector", DIGESTS, ids=names(DIGESTS))
def test_a_commands_digest_is_what_its_vector_says(vector: dict[str, Any]) -> None:
    """BLAKE2b-128 of the command's bytes, then of each frame with its length in front."""
    command = msgspec.msgpack.decode(bytes.fromhex(vector["command"]), type=m.Command)
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    assert command_digest(command, frames).hex() == vector["digest"]
