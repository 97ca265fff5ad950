"""What the benchmarks print: quantiles and one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "print_rows", "quantile"]


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which the fraction ``q`` of ``values`` lies, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement, by round: ``ours`` and ``floor`` in ``unit``. The target is on the ratio of their medians."""

    name: str
    unit: str
    ours: Sequence[float]
    floor: Sequence[float] = ()
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ratio(self) -> float:
        """Median of ours over the median of the floor's."""
        return statistics.median(self.ours) / statistics.median(self.floor)

    def verdict(self) -> str:
        """``met``, ``missed``, or nothing where there is no target."""
        value = self.ratio if self.floor else statistics.median(self.ours)
        if self.at_most is not None:
            return f"{'met' if value <= self.at_most else 'missed'} (at most {self.at_most:g})"
        if self.at_least is not None:
            return f"{'met' if value >= self.at_least else 'missed'} (at least {self.at_least:g})"
        return ""


def print_rows(rows: Sequence[Row], console: Console, title: str) -> None:
    """The table: medians over the rounds, their spread, the ratio, and whether its target is met."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "unit"):
        table.add_column(heading)
    for heading in ("edgeplan", "range", "floor", "range", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("target")
    for row in rows:
        table.add_row(
            row.name,
            row.unit,
            *_median_and_range(row.ours),
            *(_median_and_range(row.floor) if row.floor else ("", "")),
            f"{row.ratio:.2f}" if row.floor else "",
            row.verdict(),
        )
    console.print(table)


def _median_and_range(values: Sequence[float]) -> tuple[str, str]:
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 1 else 2
    return f"{statistics.median(values):,.1f}", f"{min(values):,.{digits}f}–{max(values):,.{digits}f}"
