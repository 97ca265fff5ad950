"""What Python does besides computing, which a device would not do: refused, with the line, and undone."""

from __future__ import annotations

import functools
import io
import logging
import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coordinator.build_errors import LostSideEffect
from coordinator.function_plan import FunctionPlan
from coordinator.plan import Plan
from tests.coordinator.capture.checks import assert_same, built, refused

SEEN: list[Any] = []
NESTED: dict[str, list[Any]] = {"losses": []}
NAMES: set[str] = {"first"}
COUNTS: defaultdict[str, int] = defaultdict(int)
RECENT: deque[Any] = deque(maxlen=3)
calls = 0
latest: Any = None


@dataclass
class Meter:
    """An object of the user's that counts."""

    total: Any = 0
    all: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Count."""
        self.total = self.total + value


METER = Meter()


class Config:
    """Numbers that belong to no object."""

    steps = 0


def _print(x: torch.Tensor) -> torch.Tensor:
    print("now", x.shape)
    return x * 2


def _print_value(x: torch.Tensor) -> torch.Tensor:
    print(x.sum())
    return x * 2


def _print_with_gradient(x: torch.Tensor) -> torch.Tensor:
    def loss(y: torch.Tensor) -> torch.Tensor:
        print("loss")
        return (y * y).sum()

    gradient: torch.Tensor = torch.func.grad(loss)(x)
    return gradient


def _print_to_stderr(x: torch.Tensor) -> torch.Tensor:
    print("now", file=sys.stderr)
    return x * 2


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (_print, 'print("now", x.shape)'),
        (_print_value, "print(x.sum())"),
        (_print_with_gradient, 'print("loss")'),
        (_print_to_stderr, "file=sys.stderr"),
    ],
)
def test_a_print(function: Any, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused with the line, prints nothing, and is told where to go."""
    error = refused(LostSideEffect, function, torch.ones(3), line=line)
    assert error.name == "print"
    assert str(error).startswith(
        "print writes while the plan is built, and would write nothing on a device: return the value, and print or "
        "log it outside, where the result arrives\n"
    )
    assert capsys.readouterr() == ("", "")


def test_writing_to_standard_output() -> None:
    """`sys.stdout.write` is found as well, and the streams are the process's own again afterwards."""

    def function(x: torch.Tensor) -> torch.Tensor:
        sys.stdout.write("now")
        return x * 2

    before = sys.stdout, sys.stderr, print
    assert refused(LostSideEffect, function, torch.ones(3), line='write("now")').name == "sys.stdout.write"
    assert (sys.stdout, sys.stderr, print) == before


def test_writing_to_a_file(tmp_path: Path) -> None:
    """A file that is opened to be written is refused, and is not made; one that is read is not."""
    path = tmp_path / "log"

    def write(x: torch.Tensor) -> torch.Tensor:
        with open(path, "a") as file:  # noqa: PTH123 -- what is tested
            file.write("now")
        return x * 2

    assert refused(LostSideEffect, write, torch.ones(3), line='open(path, "a")').name == "open"
    assert not path.exists()

    def read(x: torch.Tensor) -> torch.Tensor:
        return x * len(Path(__file__).read_text())

    assert_same(built(read, torch.ones(3)), read, torch.ones(3))


def test_logging() -> None:
    """A record that the function logs is lost on a device: refused; one below the logger's level is none."""
    log = logging.getLogger("somewhere")
    log.setLevel(logging.INFO)  # pytest lets everything through

    def logs(x: torch.Tensor) -> torch.Tensor:
        log.warning("now")
        return x * 2

    assert refused(LostSideEffect, logs, torch.ones(3), line='log.warning("now")').name == "logging.warning"

    def says_nothing(x: torch.Tensor) -> torch.Tensor:
        log.debug("now")
        return x * 2

    assert_same(built(says_nothing, torch.ones(3)), says_nothing, torch.ones(3))


def test_printing_into_a_string_is_fine() -> None:
    """What is printed into a string of the function's own is part of what it computes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        text = io.StringIO()
        print("now", file=text)
        return x * len(text.getvalue())

    assert_same(built(function, torch.ones(3)), function, torch.ones(3))


def _append(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    SEEN.append(y)
    return y


def _extend(x: torch.Tensor) -> torch.Tensor:
    SEEN.extend([x, x])
    return x


def _nested(x: torch.Tensor) -> torch.Tensor:
    NESTED["losses"].append(x.sum())
    return x


def _in_a_dict(x: torch.Tensor) -> torch.Tensor:
    NESTED["last"] = [x]
    return x


def _in_a_set(x: torch.Tensor) -> torch.Tensor:
    NAMES.add("second")
    return x


def _counted(x: torch.Tensor) -> torch.Tensor:
    COUNTS["calls"] += 1
    return x


def _kept(x: torch.Tensor) -> torch.Tensor:
    RECENT.append(x)
    return x


def _global(x: torch.Tensor) -> torch.Tensor:
    global calls  # noqa: PLW0603 -- what is tested
    calls += 1
    return x


def _last(x: torch.Tensor) -> torch.Tensor:
    global latest  # noqa: PLW0603 -- what is tested
    latest = x
    return x


def _attribute(x: torch.Tensor) -> torch.Tensor:
    METER.total = x
    return x


def _method(x: torch.Tensor) -> torch.Tensor:
    METER.add(x)
    return x


def _of_a_class(x: torch.Tensor) -> torch.Tensor:
    Config.steps += 1
    return x


def _default(x: torch.Tensor, *, history: list[Any] = SEEN) -> torch.Tensor:
    history.append(x)
    return x


def _helper(x: torch.Tensor) -> None:
    SEEN.append(x)


def _through_a_helper(x: torch.Tensor) -> torch.Tensor:
    _helper(x)
    return x


def _with_gradient(x: torch.Tensor) -> torch.Tensor:
    def loss(y: torch.Tensor) -> torch.Tensor:
        SEEN.append(y)
        return (y * y).sum()

    gradient: torch.Tensor = torch.func.grad(loss)(x)
    return gradient


@pytest.mark.parametrize(
    ("function", "line", "name"),
    [
        (_append, "SEEN.append(y)", "SEEN"),
        (_extend, "SEEN.extend([x, x])", "SEEN"),
        (_nested, 'NESTED["losses"].append', "NESTED['losses']"),
        (_in_a_dict, 'NESTED["last"] = [x]', "NESTED"),
        (_in_a_set, 'NAMES.add("second")', "NAMES"),
        (_counted, 'COUNTS["calls"] += 1', "COUNTS"),
        (_kept, "RECENT.append(x)", "RECENT"),
        (_global, "calls += 1", "calls"),
        (_last, "latest = x", "latest"),
        (_attribute, "METER.total = x", "METER.total"),
        (_method, "self.total = self.total + value", "METER.total"),
        (_of_a_class, "Config.steps += 1", "Config.steps"),
        (_default, "history.append(x)", "SEEN"),
        (_through_a_helper, "SEEN.append(x)", "SEEN"),
        (_with_gradient, "SEEN.append(y)", "SEEN"),
    ],
)
def test_a_change_outside_the_function(function: Any, line: str, name: str) -> None:
    """It is refused with the line and what it changes, which is as it was afterwards."""
    error = refused(LostSideEffect, function, torch.ones(3), line=line)
    assert error.name in (name, "a default of _default")
    assert str(error).startswith(
        f"{error.name} lives outside the function and is changed here, which would be lost on a device: return the "
        f"value, and change {error.name} (or use logging) outside, where the result arrives; if it is a cache, fill it "
        "before build\n"
    )
    assert not SEEN
    assert NESTED == {"losses": []}
    assert sorted(NAMES) == ["first"]
    assert not COUNTS
    assert not RECENT
    assert (calls, latest, METER.total, Config.steps) == (0, None, 0, 0)


def test_a_variable_of_the_function_around() -> None:
    """A nonlocal that is assigned, and a list of the function around, are found."""
    count = 0
    history: list[Any] = []

    def counts(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return x

    def keeps(x: torch.Tensor) -> torch.Tensor:
        history.append(x)
        return x

    assert refused(LostSideEffect, counts, torch.ones(3), line="count += 1").name == "count"
    assert refused(LostSideEffect, keeps, torch.ones(3), line="history.append(x)").name == "history"
    assert (count, history) == (0, [])


class Counting(Plan):
    """A module that keeps what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls = 0
        self.history: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count, and compute."""
        self.calls += 1
        result: torch.Tensor = self.layer(x)
        return result


class Keeping(Counting):
    """A module that keeps its results."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, and keep."""
        result: torch.Tensor = self.layer(x)
        self.history.append(result)
        return result


class Growing(Counting):
    """A module that gains an attribute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute, and remember the size."""
        self.rows = x.shape[0]
        result: torch.Tensor = self.layer(x)
        return result


@pytest.mark.parametrize(
    ("kind", "line", "name"),
    [
        (Counting, "self.calls += 1", "self.calls"),
        (Keeping, "self.history.append(result)", "self.history"),
        (Growing, "self.rows = x.shape[0]", "self.rows"),
    ],
)
def test_an_attribute_of_a_module(kind: type[Counting], line: str, name: str) -> None:
    """What forward() keeps on its module, or on one inside it, is refused with its line and stays as it was."""
    own, inner = kind(), kind()
    for module, called in ((own, name), (nn.Sequential(inner), name.replace("self", "self.0"))):
        with pytest.raises(LostSideEffect) as caught:
            FunctionPlan(module).build(torch.ones(4, 3))
        assert caught.value.name == called
        assert caught.value.where is not None
        assert line in caught.value.where.text
    for module in (own, inner):
        assert (module.calls, module.history, hasattr(module, "rows")) == (0, [], False)


@functools.lru_cache
def _scale_of(size: int) -> float:
    return 1 / size


class Cached(nn.Module):
    """A module with a cached property."""

    @functools.cached_property
    def scale(self) -> float:
        """What it multiplies with."""
        return 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x * self.scale


def test_what_is_made_inside_and_what_caches_is_fine() -> None:
    """Lists of the function's own, lru_cache, cached_property and torch's own caches are no side effects."""
    module = Cached()
    attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval()
    recurrent = nn.LSTM(4, 4, batch_first=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        meter = Meter()
        parts = []
        for k in range(3):
            parts.append(x * k)
            meter.add(x)
            meter.all.append(k)
        x = attention(torch.stack(parts).sum(0) + meter.total)
        made: torch.Tensor = module(recurrent(x)[0]) * _scale_of(4)
        return made

    plan = built(function, torch.randn(2, 3, 4), shape=[(-1, 3, 4)])
    assert_same(plan, function, torch.randn(5, 3, 4))


def test_an_exception_leaves_nothing_behind() -> None:
    """What was changed before a line failed is put back, and the error is the line's own."""

    def function(x: torch.Tensor) -> torch.Tensor:
        SEEN.append(x)
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        built(function, torch.ones(3))
    assert not SEEN
