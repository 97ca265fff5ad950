"""Writes the table of networks and runtimes into docs/coverage.md: ``python -m tests.coordinator.coverage_table``."""

from __future__ import annotations

from pathlib import Path

from tests.coordinator.coverage import COLUMNS, Cell, Coverage, covering
from tests.coordinator.networks import NETWORKS

__all__ = ["DOCUMENT", "main", "read_table", "written"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
_BEGIN, _END = "<!-- table -->\n", "<!-- end -->"


def written(coverage: Coverage) -> str:
    """The table in Markdown."""
    lines = [["network", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    lines += [[row, *(str(coverage.cell(row, column)) for column in COLUMNS)] for row in NETWORKS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_table(text: str) -> dict[str, dict[str, Cell]]:
    """Rows of the table in a document, by column. Raises ValueError where there is none."""
    table = text.partition(_BEGIN)[2].partition(_END)[0]
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line]
    if len(lines) < 3:
        raise ValueError("expected a table between its marks, got none")
    return {
        line[0]: {column: _cell(text) for column, text in zip(lines[0][1:], line[1:], strict=True)}
        for line in lines[2:]
    }


def _cell(text: str) -> Cell:
    if text == "equal":
        return Cell()
    try:
        return Cell(float(text))
    except ValueError:
        return Cell(reason=text)


def main() -> None:
    """Write it anew."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_BEGIN)
    with covering() as coverage:
        table = written(coverage)
    DOCUMENT.write_text(f"{before}{_BEGIN}{table}{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    main()
