"""What variants of int8 gain and cost: ``python -m tests.coordinator.translation.int8_table`` writes the table into
docs/runtimes.md.

Networks with the weights that torch gives them, and inputs of normal distribution. Sizes are those of the state on its
way to a device; times are of one run by onnxruntime on one thread, each network's two variants in turn.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from broker.protocol.tensors import decode_array
from coordinator.function_plan import FunctionPlan
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.quantised import decode_packed
from edge_agent.runtimes.onnx import OnnxPlan, OnnxRuntime

__all__ = ["DOCUMENT", "ROWS", "Measured", "main", "read_table", "size"]

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "runtimes.md"
_BEGIN, _END = "<!-- int8 -->\n", "<!-- end of int8 -->"
_HEAD = ("network", "state, float32", "state, int8", "largest error", "time, 1 row", "time, 32 rows")
_ROUNDS = 15
_ROUND_SECONDS = 0.02


class _Last(nn.Module):
    """The last step of a recurrent layer, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(64, 256, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of [batch, time, 64]."""
        scores: torch.Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


class _Words(nn.Module):
    """The mean of a table's rows, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20_000, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Of [batch, words]."""
        scores: torch.Tensor = self.head(self.table(words).mean(1))
        return scores


def _mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "MLP 64-128-10": (lambda: _mlp(64, 128, 10), lambda n: torch.randn(n, 64)),
    "MLP 512-1024-1024-10": (lambda: _mlp(512, 1024, 1024, 10), lambda n: torch.randn(n, 512)),
    "LSTM 64-256, 10 steps": (_Last, lambda n: torch.randn(n, 10, 64)),
    "CNN, 28x28, 2 convolutions": (_cnn, lambda n: torch.randn(n, 1, 28, 28)),
    "TransformerEncoder, 2 layers of 128, 16 steps": (_transformer, lambda n: torch.randn(n, 16, 128)),
    "Embedding 20,000 x 64": (_Words, lambda n: torch.randint(0, 20_000, (n, 12))),
}


@dataclass
class Measured:
    """One network in both precisions."""

    name: str

    @cached_property
    def plan(self) -> FunctionPlan:
        """Captured with a batch of any size."""
        torch.manual_seed(0)
        make, draw = ROWS[self.name]
        plan = FunctionPlan(make().eval())
        x = draw(4)
        plan.build(x, args_shape=[("batch", *x.shape[1:])])
        return plan

    @cached_property
    def bundle(self) -> PlanBundle:
        """With its weights."""
        return self.plan.bundle()

    @cached_property
    def packed(self) -> list[bytes]:
        """The frames of its state, as its variant of int8 takes it."""
        beside = self.plan.variant_parts(self.bundle, "int8")
        packed = decode_packed(list(beside.values())[-1])
        assert packed is not None
        frames = {_digest(frame): frame for frame in (*beside.values(), *self.bundle.state.values())}
        return [frames[digest] for digest in packed.state]

    @property
    def nbytes(self) -> tuple[int, int]:
        """The bytes of its state as it travels, float32 and int8."""
        return sum(map(len, set(self.bundle.state.values()))), sum(map(len, set(self.packed)))

    def loaded(self, precision: str) -> OnnxPlan:
        """By onnxruntime, as a device has it."""
        frames = self.packed if precision else [self.bundle.state[digest] for digest in self.bundle.manifest.state]
        variant = self.plan.variant(self.bundle, precision)
        return OnnxRuntime().load(self.bundle.verify(), [decode_array(frame) for frame in frames], variant)

    def error(self) -> float:
        """The largest difference of int8 to torch on 32 rows, as a part of the largest element."""
        torch.manual_seed(1)
        x = ROWS[self.name][1](32)
        wanted = self.plan.run_plan(x).numpy()
        [got] = self.loaded("int8").run([x.numpy()], {})
        assert isinstance(got, np.ndarray)
        return float(np.abs(got - wanted).max() / np.abs(wanted).max())

    def seconds(self, rows: int) -> tuple[float, float]:
        """How long a run takes, float32 and int8: medians of rounds in turn."""
        x = ROWS[self.name][1](rows).numpy()
        plans = [self.loaded(precision) for precision in ("", "int8")]
        took: list[list[float]] = [[], []]
        for _ in range(_ROUNDS):
            for plan, times in zip(plans, took, strict=True):
                plan.run([x], {})
                count, started = 0, time.perf_counter()
                while (now := time.perf_counter() - started) < _ROUND_SECONDS:
                    plan.run([x], {})
                    count += 1
                times.append(now / count)
        return statistics.median(took[0]), statistics.median(took[1])


def _digest(frame: bytes) -> bytes:
    from edge_agent.plan.format import digest_of

    return digest_of(frame)


# ------------------------------------------------------------------------------------------------ the document


def size(nbytes: int) -> str:
    """As the table has it."""
    return f"{nbytes / 1000:,.0f} KB"


def _time(pair: tuple[float, float]) -> str:
    plain, int8 = pair
    return f"{plain * 1e6:,.0f} us, {int8 * 1e6:,.0f} us: {int8 / plain:.2f}"


def written() -> str:
    """The table in Markdown."""
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    for name in ROWS:
        one = Measured(name)
        plain, int8 = one.nbytes
        lines.append(
            [name, size(plain), size(int8), f"{one.error():.1%}", _time(one.seconds(1)), _time(one.seconds(32))]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_table(text: str) -> dict[str, list[str]]:
    """Rows of the table in a document. Raises ValueError where there is none."""
    table = text.partition(_BEGIN)[2].partition(_END)[0]
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line]
    if len(lines) < 3 or lines[0] != list(_HEAD):
        raise ValueError("expected the table of int8 between its marks, got none")
    return {line[0]: line[1:] for line in lines[2:]}


def main() -> None:
    """Write it anew; and say what memory the worker's share of a larger network takes, in processes of their own."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_BEGIN)
    DOCUMENT.write_text(f"{before}{_BEGIN}{written()}{_END}{rest.partition(_END)[2]}")
    for precision in ("", "int8"):
        subprocess.run([sys.executable, "-m", __spec__.name, "memory", precision], check=True)


def memory(precision: str) -> None:
    """What 32 layers of 1024 x 1024 take of memory: printed, in MiB."""
    ROWS["large"] = (lambda: _mlp(*[1024] * 33), lambda n: torch.randn(n, 1024))
    one = Measured("large")
    frames = one.packed if precision else [one.bundle.state[digest] for digest in one.bundle.manifest.state]
    arrays = [np.array(decode_array(frame)) for frame in frames]
    nbytes = sum(array.nbytes for array in arrays)
    plan, variant = one.bundle.verify(), one.plan.variant(one.bundle, precision)
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    start = _unshared()
    loaded = OnnxRuntime().load(plan, arrays, variant)
    loaded.run([ROWS["large"][1](1).numpy()], {})
    trim(0)
    state = nbytes / (1 << 20)
    print(
        f"{precision or 'float32'}: state {state:.0f} MiB, with its plan loaded {state + _unshared() - start:.0f} MiB"
    )


def _unshared() -> float:
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123
        lines = dict(line.split(":", 1) for line in file if ":" in line.split()[0])
    return int(lines["Private_Dirty"].split()[0]) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(*sys.argv[2:])
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        main()
