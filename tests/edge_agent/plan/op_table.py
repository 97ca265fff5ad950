"""The lists of ops, operators and limits as docs/plan-format.md shows them, read off the code.

``python -m tests.edge_agent.plan.op_table`` writes them into the document, between its ``generated`` marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from broker.protocol.tensors import MAX_DIMS
from edge_agent.plan import checker, expressions, nesting, polynomials, trees
from edge_agent.plan.registry import FAMILIES, REGISTRY

__all__ = ["DOCUMENT", "PARTS", "current", "limits", "operators", "ops"]

DOCUMENT = Path(__file__).parents[3] / "docs" / "plan-format.md"


def ops() -> str:
    """Every op of the registry, family by family."""
    parts = [f"{len(REGISTRY)} ops.\n"]
    for family in FAMILIES:
        name = family.__name__.rpartition(".")[2]
        sentence = (family.__doc__ or "").strip().replace("\n", " ")
        parts.append(f"### {name.capitalize()}\n\n{sentence}\n\n| op | arguments and results |\n|---|---|")
        for spec in sorted(family.OPS, key=lambda spec: spec.name):
            arguments = spec.schema[spec.schema.index("(") :]
            parts.append(f"| `{spec.name}` | `{arguments}` |")
        parts.append("")
    return "\n".join(parts).strip()


def operators() -> str:
    """Every operator of expressions."""
    lines = ["| operator | operands | of kind | gives | written |", "|---|---|---|---|---|"]
    for name, operator in expressions.OPERATORS.items():
        count = str(operator.fewest) if operator.fewest == operator.most else f"{operator.fewest} or more"
        letters: tuple[str, ...] = ("a", "b")[: operator.fewest]
        if name == "where":
            letters = ("condition", "a", "b")
        if operator.sign and operator.fewest == 1:
            written = f"{operator.sign}a"
        elif operator.sign:
            written = f" {operator.sign} ".join(letters)
        else:
            written = f"{name}({', '.join(letters)})"
        gives = {"numeric": "int, or float if an operand is", "choice": "the kind of a and b"}
        takes = {"number": "int or float", "choice": "bool, then two of one kind"}
        kind, taken = gives.get(operator.kind, operator.kind), takes.get(operator.operands, operator.operands)
        lines.append(f"| `{name}` | {count} | {taken} | {kind} | `{written}` |")
    return "\n".join(lines)


def limits() -> str:
    """What a plan may have at most."""
    rows = [
        ("values of a graph: its inputs, and the outputs of its ops; those of sub-graphs included", checker.MAX_VALUES),
        ("symbols", checker.MAX_SYMBOLS),
        ("conditions", checker.MAX_CONDITIONS),
        ("dims of a value", MAX_DIMS),
        ("operators and operands of an expression", expressions.MAX_NODES),
        ("operators and operands of a dim that the checker works out", polynomials.MAX_WEIGHT),
        ("nesting of an expression", expressions.MAX_DEPTH),
        ("nesting of a tree", trees.MAX_DEPTH),
        ("nesting of sub-graphs", nesting.MAX_NESTING),
    ]
    return "\n".join(["| of | at most |", "|---|---|", *(f"| {what} | {most:,} |" for what, most in rows)])


PARTS: dict[str, Callable[[], str]] = {"operators": operators, "limits": limits, "ops": ops}
"""What is generated, by the name in its marks."""


def current(text: str) -> str:
    """The document with its generated parts as the code has them now."""
    for name, part in PARTS.items():
        mark = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        generated = f"\n{part()}\n\n".replace("\\", r"\\")
        text = mark.sub(rf"\1{generated}\2", text)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(current(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
