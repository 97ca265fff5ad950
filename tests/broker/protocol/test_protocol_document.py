"""docs/protocol.md says what the code does: somebody writes an agent from it alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from broker.protocol import messages as m
from broker.protocol import tensors
from broker.protocol.framing import HEADER_LIMIT, MESSAGE_LIMIT
from tests.broker.protocol.message_strategies import tag_of
from tests.broker.protocol.signatures import PARTS, TAGGED, signature
from tests.broker.protocol.vector_format import load

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
WRITTEN = re.findall(r"^(\w+) = \[.*\]$", DOCUMENT, flags=re.MULTILINE)


@pytest.mark.parametrize("kind", [*TAGGED, *PARTS], ids=lambda kind: kind.__name__)
def test_each_signature_stands_in_the_document(kind: type[object]) -> None:
    """After a change: ``python -m tests.broker.protocol.signatures``, and say what it means."""
    assert signature(kind) in DOCUMENT.splitlines()


def test_the_document_has_no_signature_of_its_own() -> None:
    """A message that is gone from the code is gone from the document, and none is listed twice."""
    assert sorted(WRITTEN) == sorted(kind.__name__ for kind in (*TAGGED, *PARTS))


@pytest.mark.parametrize("kind", TAGGED, ids=lambda kind: kind.__name__)
def test_each_message_is_explained(kind: type[object]) -> None:
    """A signature alone says nothing of who sends it when."""
    prose = "\n".join(line for line in DOCUMENT.splitlines() if not re.match(r"\w+ = \[", line))
    assert f"`{kind.__name__}`" in prose


def test_the_documents_version_is_the_codes() -> None:
    """Vectors and version are of the same major version."""
    major, minor = m.PROTOCOL_VERSION
    assert f"The\nprotocol is version **{major}.{minor}**" in DOCUMENT
    assert f"vectors/v{major}/" in DOCUMENT


@pytest.mark.parametrize("code", list(m.RefusalCode))
def test_each_refusal_is_listed(code: m.RefusalCode) -> None:
    """With what a peer should do about it."""
    assert f"| `{code.value}` |" in DOCUMENT


def test_each_failure_is_listed() -> None:
    """Every code that a broker or a device sends: a coordinator in another language must know what it gets."""
    root = Path(__file__).parents[3]
    sources = [
        path.read_text(encoding="utf-8") for part in ("broker", "edge_agent") for path in (root / part).rglob("*.py")
    ]
    sent = {code for text in sources for code in re.findall(r'(?:Failure\(\s*code=|\bfailure\(\s*)"(\w+)"', text)}
    assert len(sent) > 10
    listed = set(re.findall(r"`(\w+)`", DOCUMENT.partition("### Failures")[2]))
    assert sent - listed == set()


def test_each_status_is_listed() -> None:
    """In the table of types."""
    listed = ", ".join(f"`{status.value}`" for status in m.ResultStatus)
    assert listed.replace(", `forgotten`", " or `forgotten`") in DOCUMENT


@pytest.mark.parametrize("dtype", tensors.DTYPES)
def test_each_dtype_is_listed(dtype: str) -> None:
    """With its type string and the bytes of an element."""
    type_string, size = tensors.DTYPES[dtype]
    written = type_string.replace("|", "\\|")
    assert f"| `{dtype}` | `{written}` | {size} |" in DOCUMENT


def test_the_limits_are_the_codes() -> None:
    """Each number of the document that the code has, too."""
    assert (HEADER_LIMIT, MESSAGE_LIMIT) == (1 << 20, 4 << 20)
    assert "at most 1 MiB" in DOCUMENT
    assert "(4 MiB by default)" in DOCUMENT
    assert f"at most {m.INLINE_RESULT_BYTES} bytes in all" in DOCUMENT
    assert f"at most {m.INLINE_TENSORS_BYTES // 1024} KiB in all" in DOCUMENT
    assert f"at most {tensors.MAX_DIMS};" in DOCUMENT
    assert m.DEFAULT_DEADLINE_MS == 7 * 24 * 3600 * 1000
    assert "default (7 days)" in DOCUMENT


EXAMPLES = re.findall(r"<!-- (header|frame) of: ([^\n]+) -->\n```text\n(.+?)```", DOCUMENT, flags=re.DOTALL)


@pytest.mark.parametrize(("part", "name", "text"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
def test_each_example_is_a_golden_vector(part: str, name: str, text: str) -> None:
    """The hex digits of an example, put together, are the bytes of the vector that it names."""
    vectors = {vector["name"]: vector for vector in [*load("messages.json"), *load("tensors.json")]}
    columns = [line[:37] for line in text.splitlines()]
    assert "".join("".join(columns).split()) == vectors[name][part]


def test_there_are_examples() -> None:
    """The pattern above still finds them."""
    assert len(EXAMPLES) == 3


def test_tags_are_where_their_kind_is() -> None:
    """Commands below 16, events below 32, the rest above: a reader of a dump sees at once what it is."""
    assert all(tag_of(kind) < 16 for kind in get_args(m.Command))
    assert all(16 <= tag_of(kind) < 32 for kind in get_args(m.Event))
    assert all(tag_of(kind) >= 32 for kind in get_args(m.Message))
