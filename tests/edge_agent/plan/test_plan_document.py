"""docs/plan-format.md says what the code does: somebody reads and writes plans from it alone."""

from __future__ import annotations

import re

import msgspec
import pytest

from broker.protocol.tensors import DTYPES
from edge_agent.plan import errors
from edge_agent.plan import format as plan_format
from edge_agent.plan.arguments import MEMORY_FORMATS
from tests.edge_agent.plan.op_table import DOCUMENT, PARTS, current

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_the_generated_parts_are_current() -> None:
    """Ops, operators and limits are those of the code; `python -m tests.edge_agent.plan.op_table` writes them."""
    assert all(f"<!-- generated: {name} -->" in TEXT for name in PARTS)
    assert current(TEXT) == TEXT


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("manifest", plan_format.Manifest),
        ("graph", plan_format.Graph),
        ("input", plan_format.Input),
        ("symbol", plan_format.Symbol),
        ("op", plan_format.Op),
        ("tensor type", plan_format.TensorType),
    ],
)
def test_structures_have_the_fields_that_are_shown(title: str, kind: type[msgspec.Struct]) -> None:
    """In that order, with those defaults."""
    shown = re.search(rf"^{title} +\[(.+)\]$", TEXT, re.MULTILINE)
    assert shown is not None
    fields = []
    for one in msgspec.structs.fields(kind):
        default = one.default if one.default_factory is msgspec.NODEFAULT else one.default_factory()
        text = {"None": "nil", "''": '""', "'user'": '"user"'}.get(repr(default), repr(default))
        fields.append(one.name if one.required else f"{one.name} = {text}")
    assert shown[1] == ", ".join(fields)


def test_kinds_of_arguments_are_described() -> None:
    """Every key of a special has its row, every constant and dtype is named."""
    rows = re.findall(r"^\| `(\w)` \|", TEXT, re.MULTILINE)
    assert rows == [one.name for one in msgspec.structs.fields(plan_format.Special)]
    assert all(f"`{name}`" in TEXT for name in DTYPES)
    assert all(name in TEXT for name in MEMORY_FORMATS)


def test_errors_are_described() -> None:
    """Every error that has a name of its own has its row."""
    rows = set(re.findall(r"^\| `([A-Z]\w+)` \|", TEXT, re.MULTILINE))
    assert rows == set(errors.__all__) - {"PlanError"}


def test_the_version_is_named() -> None:
    """The document is that of the version that the code writes."""
    assert f"This is version {plan_format.FORMAT_VERSION} of the format." in TEXT
