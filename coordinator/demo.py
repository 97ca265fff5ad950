"""``edgeplan demo``: the main job on real input, with real processes, in less than a minute.

A broker and three agents start as processes of their own. Each agent owns a shard of the handwritten digits that
scikit-learn carries. The coordinator trains a small classifier on digits of its own, sends it as a plan, and has it
evaluated where the data is: only counts come back.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn import functional

from broker.logs import Record
from broker.protocol.errors import EdgePlanError
from coordinator.fleet import Fleet, connect
from coordinator.function_plan import func2plan
from coordinator.local_processes import start_agent, start_broker
from coordinator.log_stream import LogStream
from coordinator.plan import Plan
from coordinator.pointer_plan import PointerPlan
from coordinator.pointers import PointerTensor
from edge_agent import Store

__all__ = ["run"]

DEVICES = ("pi-attic", "pi-kitchen", "pi-workshop")
EPOCHS = 30
BATCH = 32
SHADES = " ░▒▓█"
PATIENCE = 30.0
"""Seconds that the demo waits for any one thing before it says that it did not come."""

STORY_SECONDS = 1.0
"""How long to wait for the log events of one invocation before trying with another one."""

LAST_EVENTS = frozenset({"invocation_submitted", "invocation_finished", "result_recorded", "result_received"})
"""Events that a whole story has, from all three programs."""

Shard = tuple[torch.Tensor, torch.Tensor]
"""Images, shape (n, 64), and labels, shape (n,)."""


class DemoFailed(EdgePlanError):
    """The demonstration did not show what it should."""


class Evaluate(Plan):
    """A classifier with its own evaluation: images and labels in, counts out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 48)
        self.logits = nn.Linear(48, 10)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, 10), of images of shape (n, 64) with values of 0 to 16."""
        logits: torch.Tensor = self.logits(torch.relu(self.hidden(images / 16.0)))
        return logits

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """How many there are, how many of them are right, and how many are right digit by digit."""
        right = self.classify(images).argmax(dim=1) == labels
        of_digit = labels.unsqueeze(1) == torch.arange(10)
        return {
            "seen": torch.ones_like(labels).sum(),
            "right": right.sum(),
            "right_of_digit": (of_digit & right.unsqueeze(1)).sum(dim=0),
            "seen_of_digit": of_digit.sum(dim=0),
        }


@func2plan(args_shape=[(-1, 64)])
def scale(images: torch.Tensor) -> torch.Tensor:
    """Pixels from 0..16 to 0..1: the first plan of the chain; its result stays on the device."""
    return images / 16.0


@func2plan(args_shape=[(-1, 64)])
def mean_image(scaled: torch.Tensor) -> torch.Tensor:
    """The second plan of the chain: the mean of all images, as 8 rows of 8."""
    return scaled.mean(dim=0).reshape(8, 8)


@func2plan()
def plan_double_abs(x: torch.Tensor) -> torch.Tensor:
    """The tutorial's plan of two ops."""
    x = x + x
    return torch.abs(x)


@func2plan()
def plan_double(x: torch.Tensor) -> torch.Tensor:
    """The first op of `plan_double_abs` alone."""
    return x + x


@func2plan()
def plan_abs(x: torch.Tensor) -> torch.Tensor:
    """The second op of `plan_double_abs` alone."""
    return torch.abs(x)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the broker has relayed: messages and bytes, from and to everybody."""

    commands: int
    notifications: int
    bytes: int

    def since(self, before: Traffic) -> Traffic:
        """The difference."""
        return Traffic(
            self.commands - before.commands, self.notifications - before.notifications, self.bytes - before.bytes
        )


def traffic(fleet: Fleet, device: str) -> Traffic:
    """The broker's counters for one device."""
    counters = fleet.stats().devices[device]
    return Traffic(counters.commands, counters.notifications, counters.bytes_in + counters.bytes_out)


def train(model: Evaluate, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train on the coordinator's own digits, eagerly: a plan class stays a live torch module."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for first in range(0, len(images), BATCH):
            batch = order[first : first + BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(model.classify(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


@contextlib.contextmanager
def running_fleet(folder: Path, shards: Sequence[Shard], progress: Progress) -> Iterator[Fleet]:
    """A broker and an agent for each shard, as processes; all ended on leaving."""
    with contextlib.ExitStack() as stack:
        with step(progress, "starting a broker and three agents, each with a shard of the digits"):
            broker, endpoint = start_broker(folder / "broker")
            stack.enter_context(broker)
            for device, (images, labels) in zip(DEVICES, shards, strict=True):
                with Store.open(folder / device) as store:
                    store.put(images, tags=["images"], description="handwritten digits, 8x8 pixels of 0 to 16")
                    store.put(labels, tags=["labels"], description="which digit each is")
                    store.put(torch.tensor([-1.0, 2.0]), tags=["input_data"], description="two readings")
            agents = [stack.enter_context(start_agent(each, folder / each, endpoint)) for each in DEVICES]
            for agent in agents:
                agent.wait_for("agent_registered")
        yield stack.enter_context(connect(endpoint, insecure=True))


@contextlib.contextmanager
def step(progress: Progress, name: str) -> Iterator[None]:
    """Show that something is under way, and then how long it took."""
    task = progress.add_task(name, total=1)
    yield
    progress.update(task, completed=1)


def device_table(counts: dict[str, dict[str, torch.Tensor]], spent: dict[str, Traffic]) -> Table:
    """A row a device: what came back, and what it took."""
    table = Table(title="The classifier, evaluated where the data is: only counts come back", title_justify="left")
    table.add_column("device", no_wrap=True)
    for heading in ("digits", "right", "accuracy", "hardest", "messages", "bytes"):
        table.add_column(heading, justify="right")
    for device, count in counts.items():
        rates = count["right_of_digit"] / count["seen_of_digit"]
        hardest = int(rates.argmin())
        table.add_row(
            device,
            str(int(count["seen"])),
            str(int(count["right"])),
            f"{int(count['right']) / int(count['seen']):.1%}",
            f"{hardest} ({float(rates[hardest]):.0%})",
            f"{spent[device].commands} + {spent[device].notifications}",
            f"{spent[device].bytes:,}",
        )
    return table


def cost_table(rows: Sequence[tuple[str, int, Traffic, Traffic, bool]]) -> Table:
    """Plans beside their ops sent one by one."""
    table = Table(title="One invocation and its value, beside sending op by op", title_justify="left")
    table.add_column("plan")
    for heading in ("ops", "messages", "bytes", "op by op: messages", "bytes"):
        table.add_column(heading, justify="right")
    for name, ops, plan, single, measured in rows:
        table.add_row(
            name,
            str(ops),
            str(plan.commands + plan.notifications),
            f"{plan.bytes:,}",
            f"{single.commands + single.notifications:,}{'' if measured else ' *'}",
            f"{single.bytes:,}{'' if measured else ' *'}",
        )
    return table


def story_table(records: Sequence[Record], result: PointerTensor) -> Table:
    """The log events that name one result id, in the order of their times."""
    table = Table(title=f"The log events of one invocation,\n{result.id}", title_justify="left")
    table.add_column("ms", justify="right")
    for heading in ("component", "event"):
        table.add_column(heading)
    ordered = sorted(records, key=lambda record: str(record["timestamp"]))
    start = _seconds(ordered[0]) if ordered else 0.0
    for record in ordered:
        table.add_row(f"{1e3 * (_seconds(record) - start):.2f}", str(record["component"]), str(record["event"]))
    return table


def _seconds(record: Record) -> float:
    return datetime.fromisoformat(str(record["timestamp"])).timestamp()


def digits() -> tuple[Shard, list[Shard]]:
    """The coordinator's own digits and a shard for each device, of the 1,797 that scikit-learn carries."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32)
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    own, *shards = ((images[part], labels[part]) for part in order.tensor_split(1 + len(DEVICES)))
    return own, shards


def evaluate(fleet: Fleet, own: Shard, progress: Progress) -> tuple[Table, Evaluate, Traffic]:
    """Train here, evaluate there."""
    model = Evaluate()
    with step(progress, f"training a classifier on the coordinator's own {len(own[0])} digits"):
        train(model, *own)
        model.build(*own, args_shape=[(-1, 64), (-1,)])
    with step(progress, "evaluating it on each device: one command for all three"):
        before = {device: traffic(fleet, device) for device in DEVICES}
        pointers = model.send(fleet)("images", "labels")
        counts = fleet.get(pointers, timeout=PATIENCE)
        spent = {device: traffic(fleet, device).since(before[device]) for device in DEVICES}
        # Once more, now that the plan is on the devices: what every further evaluation costs.
        before_again = traffic(fleet, DEVICES[0])
        fleet.get(model.send(fleet)("images", "labels"), timeout=PATIENCE)
        again = traffic(fleet, DEVICES[0]).since(before_again)
    return device_table(counts, spent), model, again


def chain(fleet: Fleet, progress: Progress) -> str:
    """Two plans, the second on the result of the first, which does not exist yet when the second is sent."""
    device = fleet.device(DEVICES[1])
    with step(progress, "a chain of two plans, both sent before the first has run"):
        scaled = scale.send(device)(device.search("images")[0])
        mean = mean_image.send(device)(scaled)
        waiting = not mean.ready
        picture = mean.get(timeout=PATIENCE)
        scaled.release()
    shades = (picture / picture.max() * (len(SHADES) - 1)).round().int().tolist()
    rows = ["".join(SHADES[shade] * 2 for shade in row) for row in shades]
    sent = "before the first ran" if waiting else "at once"
    return f"The mean digit of {device.id}: two plans, the second sent {sent}\n\n" + "\n".join(rows)


def op_by_op(fleet: Fleet, model: Evaluate, evaluation: Traffic, progress: Progress) -> tuple[Table, Table]:
    """The tutorial's plan: what it costs whole and op by op, and the story of one invocation."""
    device = fleet.device(DEVICES[0])
    data = device.search("input_data")[0]
    example = torch.tensor([1.0, -2.0])
    with step(progress, "the tutorial's plan of two ops, whole and op by op"):
        whole, double, absolute = (
            plan.build(example).send(device) for plan in (plan_double_abs, plan_double, plan_abs)
        )
        for plan in (whole, double, absolute):
            plan(data).get(
                timeout=PATIENCE
            )  # the device has the plans now: what follows is what each further call costs
        before = traffic(fleet, device.id)
        value = whole(data).get(timeout=PATIENCE)
        as_plan = traffic(fleet, device.id).since(before)
        before = traffic(fleet, device.id)
        same = absolute(double(data)).get(timeout=PATIENCE)
        as_ops = traffic(fleet, device.id).since(before)
        if not torch.equal(value, same):
            raise DemoFailed(f"the plan gave {value}, and its ops one by one gave {same}")
    with step(progress, "following one invocation through the log stream"), fleet.logs("debug") as stream:
        records, result = follow(stream, whole, data)
    ops = len(model.graph.ops)
    per_op = Traffic(*(ops * count // 2 for count in (as_ops.commands, as_ops.notifications, as_ops.bytes)))
    rows = [
        ("double_abs", 2, as_plan, as_ops, True),
        ("the classifier", ops, evaluation, per_op, False),
    ]
    return cost_table(rows), story_table(records, result)


def follow(stream: LogStream, plan: PointerPlan, data: PointerTensor) -> tuple[list[Record], PointerTensor]:
    """Invoke until the stream tells the whole story of an invocation: programs begin to send only when they hear that
    somebody follows.
    """
    for _ in range(20):
        result = plan(data)
        result.get(timeout=PATIENCE)
        records: list[Record] = []
        until = time.monotonic() + STORY_SECONDS
        while (record := stream.receive(max(0.0, until - time.monotonic()))) is not None:
            if result.id in record.values():
                records.append(record)
            if {str(one["event"]) for one in records} >= LAST_EVENTS:
                return records, result
    raise DemoFailed(f"expected the events {', '.join(sorted(LAST_EVENTS))} of an invocation, and they did not come")


def run(console: Console | None = None) -> None:
    """Run the demonstration, and print what it shows. Raises `EdgePlanError` when something does not work."""
    console = console or Console()
    start = time.monotonic()
    own, shards = digits()
    columns = (SpinnerColumn(finished_text="[green]✓[/green]"), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        tempfile.TemporaryDirectory() as folder,
        running_fleet(Path(folder), shards, progress) as fleet,
    ):
        devices, model, evaluation = evaluate(fleet, own, progress)
        picture = chain(fleet, progress)
        costs, story = op_by_op(fleet, model, evaluation, progress)
        total = fleet.stats().total
    console.print()
    console.print(devices)
    console.print(
        "messages: commands to it + notifications back; bytes: all frames to it and\n"
        "from it, the plan with its weights among them, which it gets once",
        highlight=False,
    )
    console.print()
    console.print(picture, highlight=False)
    console.print()
    console.print(costs)
    console.print(
        "messages: commands and notifications; bytes: all frames to and from a device\n"
        "* computed: the ops of the plan, at what an op of double_abs cost by itself",
        highlight=False,
    )
    console.print()
    console.print(story)
    console.print(
        f"\n{total.commands} commands and {total.notifications} notifications in all; "
        f"done in {time.monotonic() - start:.0f} s",
        highlight=False,
    )
