"""What the demonstration prints fits a terminal of 80 columns: nothing is cut, and no heading is wrapped."""

from __future__ import annotations

import io

import torch
from rich.console import Console
from rich.table import Table

from coordinator.demo import DEVICES, Traffic, cost_table, device_table

SPENT = Traffic(commands=1, notifications=1, bytes=16_450)


def printed(table: Table) -> list[str]:
    """Its lines, title and frame left out."""
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line for line in console.file.getvalue().splitlines()[1:] if line.strip(" ─━┏┳┓┡╇┩└┴┘")]


def test_a_row_a_device() -> None:
    """With how many messages went there and came back."""
    of_digit = torch.full((10,), 40)
    count = {
        "seen": torch.tensor(400),
        "right": torch.tensor(390),
        "right_of_digit": of_digit,
        "seen_of_digit": of_digit,
    }
    lines = printed(device_table(dict.fromkeys(DEVICES, count), dict.fromkeys(DEVICES, SPENT)))
    assert len(lines) == 1 + len(DEVICES)
    assert lines[0].replace("┃", " ").split() == [
        "device",
        "digits",
        "right",
        "accuracy",
        "hardest",
        "messages",
        "bytes",
    ]
    assert all("1 + 1" in line and "16,450" in line and "97.5%" in line for line in lines[1:])


def test_a_row_a_plan() -> None:
    """Beside its ops sent one by one; what was computed is marked."""
    lines = printed(cost_table([("the classifier", 16, SPENT, Traffic(16, 16, 3_144), False)]))
    assert len(lines) == 2
    assert [cell.strip() for cell in lines[1].strip("│").split("│")] == [
        "the classifier",
        "16",
        "2",
        "16,450",
        "32 *",
        "3,144 *",
    ]
