"""``edgeplan``: what an operator asks a fleet."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker import logs as log_output
from broker.logs import LEVELS, render_text
from broker.protocol.ids import check_device_id
from broker.protocol.messages import ResultStatus
from broker.settings import (
    ExitCode,
    NumberRange,
    ProgramFailed,
    config_option,
    insecure_option,
    run_program,
    setting,
    version_option,
)
from coordinator.checks import checked_prefix, checked_session_id

if TYPE_CHECKING:
    from coordinator.fleet import Fleet

__all__ = ["cli", "main"]

_WIDTH = 160
"""The width of tables where the output is no terminal, in characters; on a terminal, how wide whole words make them."""
_OF_WORDS = frozenset({"description", "labels", "reason", "tags"})
"""The columns of tables that may take several lines where the others leave them no room."""
_DEMO_NEEDS = {"torch": "torch", "sklearn": "scikit-learn"}
"""The modules that the demonstration imports beyond the base install, and the packages that have them."""
_LOOK = 0.2
"""How long to wait for a log event before looking whether it is time to end, in seconds."""


def _fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of everything that asks a broker; the command gets ``fleet`` and ``as_json``."""

    @setting("--broker", default="tcp://127.0.0.1:5750", metavar="ENDPOINT", help="Where the broker listens.")
    @setting("--timeout", default=5.0, type=NumberRange(min=0, min_open=True), help="Seconds to wait for it.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @insecure_option
    @config_option
    @functools.wraps(command)
    def with_fleet(*args: Any, broker: str, timeout: float, insecure: bool, **kwargs: Any) -> Any:
        log_output.configure(level=log_output.ERROR if insecure else log_output.WARNING)
        with _connected(broker, insecure=insecure, timeout=timeout) as fleet:
            return command(*args, fleet=fleet, **kwargs)

    return with_fleet


@contextlib.contextmanager
def _connected(broker: str, *, insecure: bool, timeout: float) -> Iterator[Fleet]:
    from coordinator.errors import BrokerUnreachable  # after --help and --version, which needn't wait for it
    from coordinator.fleet import connect

    try:
        with connect(broker, insecure=insecure, timeout=timeout) as fleet:
            yield fleet
    except BrokerUnreachable as error:
        raise ProgramFailed(ExitCode.UNREACHABLE, str(error)) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: edgeplan devices --insecure")
@version_option
def cli() -> None:
    """Ask a fleet: which devices there are, what they have, what became of a result, what happens right now."""


# ------------------------------------------------------------------------------------------------- questions


@cli.command(epilog="Example: edgeplan devices --broker tcp://127.0.0.1:5750 --insecure")
@_fleet_options
def devices(fleet: Fleet, *, as_json: bool) -> None:
    """List the devices that the broker knows."""
    infos = fleet.device_infos()
    if as_json:
        _print_json([_fields(info) | {"last_seen": _time(info.last_seen)} for info in infos])
        return
    table = _table("device", "online", "last seen", "runtimes", "protocol", "tensors", "queued", "running", "labels")
    for info in infos:
        _row(
            table,
            info.device,
            Text("yes", "green") if info.online else Text("no", "red"),
            _time(info.last_seen),
            ", ".join(info.runtimes),
            ".".join(map(str, info.version)),
            str(info.tensors),
            str(info.queued),
            str(info.running),
            ", ".join(f"{key}={value}" for key, value in info.labels.items()),
        )
    _print(table, empty="this broker knows no device yet")


@cli.command(epilog="Example: edgeplan search input_data --device pi-kitchen --insecure")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--device", "on", multiple=True, metavar="NAME", help="On this device only. May be repeated.")
@_fleet_options
def search(fleet: Fleet, tags: tuple[str, ...], on: tuple[str, ...], *, as_json: bool) -> None:
    """List the tensors that carry all TAGs; without any, everything that is tagged. Exits with 5 for a device that the
    broker does not know.
    """
    try:
        by_device = fleet.search(*tags, devices=on)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if set(on) - by_device.keys():
        known = {info.device for info in fleet.device_infos()}
        for device in on:
            if device not in known:
                raise ProgramFailed(ExitCode.NOT_FOUND, f"this broker knows no device {device!r}")
    found = [pointer for pointers in by_device.values() for pointer in pointers]
    types = [pointer.known_type or ("", ()) for pointer in found]
    rows: list[dict[str, Any]] = [
        {
            "device": pointer.result.device,
            "id": pointer.id,
            "tags": list(pointer.tags),
            "dtype": dtype,
            "shape": list(shape),
            "description": pointer.description,
        }
        for pointer, (dtype, shape) in zip(found, types, strict=True)
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("device", "id", "tags", "dtype", "shape", "description")
    for row in rows:
        _row(table, *(" ".join(value) if name == "tags" else str(value) for name, value in row.items()))
    wanted = f"the tag{'s' if len(tags) > 1 else ''} {', '.join(map(repr, tags))}"
    _print(table, empty=f"no tensor carries {wanted}" if tags else "no tensor is tagged")


@cli.command(epilog="Example: edgeplan status 4f2a91c0d7e3b8150000000000000001 --insecure")
@click.argument("id", metavar="ID")
@_fleet_options
def status(fleet: Fleet, id: str, *, as_json: bool) -> None:
    """Say what became of the result ID (32 hex digits). Exits with 5 if nobody knows it."""
    try:
        entry = fleet.status_entry(id)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ID") from None
    unknown = entry.status is ResultStatus.UNKNOWN
    fields = _fields(entry) | {"until": _time(entry.until) if entry.until else None}
    if as_json:
        _print_json(fields)
    else:
        table = _table("", "", header=False)
        for name, value in fields.items():
            if value not in ("", None, [], {}) and not (unknown and name == "outputs"):
                _row(table, name, _text(value))
        _print(table, empty="")
    if unknown:
        sys.exit(ExitCode.NOT_FOUND)


@cli.command(epilog="Example: edgeplan stats --json --insecure")
@_fleet_options
def stats(fleet: Fleet, *, as_json: bool) -> None:
    """Show what the broker has counted since it started, in all and device by device."""
    counted = fleet.stats()
    by_device = {name: _fields(counters) for name, counters in counted.devices.items()}
    if as_json:
        _print_json({"total": _fields(counted.total), "devices": by_device, "gauges": counted.gauges})
        return
    total = _fields(counted.total)
    table = _table("", *total)
    for name, counters in {"in all": total, **by_device}.items():
        _row(table, name, *(f"{value:,}" for value in counters.values()))
    _print(table, empty="")
    gauges = _table("now", "")
    for name, value in counted.gauges.items():
        _row(gauges, name, f"{value:,}")
    _print(gauges, empty="")


@cli.command("dead-letters", epilog="Example: edgeplan dead-letters --limit 10 --insecure")
@click.option("--limit", default=100, type=click.IntRange(1, 1000), show_default=True, help="List the last ones only.")
@_fleet_options
def dead_letters(fleet: Fleet, *, limit: int, as_json: bool) -> None:
    """List the commands that were given up, the last first: workers died of them, or they never ended."""
    found = fleet.dead_letters(limit)
    if as_json:
        _print_json({"total": found.total, "entries": [_fields(entry) for entry in found.entries]})
        return
    table = _table("id", "device", "reason", "plan")
    for entry in found.entries:
        reason = "" if entry.failure is None else entry.failure.message
        _row(table, entry.id.hex(), entry.device, reason, "" if entry.plan is None else entry.plan.hex())
    _print(table, empty="no command was given up")
    if found.total > len(found.entries):
        click.echo(f"and {found.total - len(found.entries):,} more, given up earlier", err=True)


# ------------------------------------------------------------------------------------------------- the log stream


def _checked(check: Callable[[object], str]) -> Callable[[click.Context, click.Parameter, str], str]:
    """A callback for an option whose value, if there is one, must pass ``check``."""

    def callback(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
        try:
            return check(value) if value else value
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


@cli.command(epilog="Example: edgeplan logs --follow --level debug --device pi-kitchen --insecure")
@click.option("--follow", "-f", is_flag=True, help="Go on until ctrl-C; without it, for --seconds.")
@click.option("--seconds", default=5.0, type=NumberRange(min=0), show_default=True, help="How long, without --follow.")
@click.option(
    "--level",
    default="info",
    type=click.Choice(list(LEVELS), case_sensitive=False),
    show_default=True,
    help="From this level on.",
)
@click.option(
    "--device", default="", callback=_checked(check_device_id), metavar="NAME", help="Events that name this device."
)
@click.option("--component", default="", metavar="NAME", help="Events of the broker, of agents, of sessions, ...")
@click.option(
    "--session",
    default="",
    callback=_checked(checked_session_id),
    metavar="ID",
    help="Events of this session (16 hex digits).",
)
@click.option(
    "--result",
    default="",
    callback=_checked(checked_prefix),
    metavar="ID",
    help="Events that name a result whose id begins so.",
)
@_fleet_options
def logs(
    fleet: Fleet,
    *,
    follow: bool,
    seconds: float,
    level: str,
    device: str,
    component: str,
    session: str,
    result: str,
    as_json: bool,
) -> None:
    """Print log events of all programs of the fleet as they happen. What happened before is not told.

    A result's id alone (--level debug --result ID) tells its way hop by hop.
    """
    end = None if follow else time.monotonic() + seconds
    colours = sys.stdout.isatty()
    with fleet.logs(level, device=device, component=component, session=session, result=result) as stream:
        while end is None or time.monotonic() < end:
            record = stream.receive(_LOOK if end is None else min(_LOOK, max(0.0, end - time.monotonic())))
            if record is None:
                continue
            line = msgspec.json.encode(record).decode() + "\n" if as_json else render_text(record, colours=colours)
            click.echo(line, nl=False)


# ------------------------------------------------------------------------------------------------- the demonstration


@cli.command(epilog="Example: edgeplan demo")
def demo() -> None:
    """Run a broker and three devices on this machine, and show what they can do: about half a minute."""
    missing = [name for module, name in _DEMO_NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ProgramFailed(
            ExitCode.USAGE,
            f"the demo needs {' and '.join(missing)}, not installed here; "
            "install what it needs with: pip install 'edgeplan[torch]' scikit-learn",
        )
    from coordinator.demo import run

    run()


# ------------------------------------------------------------------------------------------------- printing


def _fields(value: Any) -> dict[str, Any]:
    """A message's part as plain data: bytes as hex."""
    return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return _fields(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _text(value: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())


def _table(*columns: str, header: bool = True) -> Table:
    table = Table(show_header=header, box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in _OF_WORDS, overflow="fold")
    return table


def _row(table: Table, *cells: str | Text) -> None:
    # A device's words are no markup of ours.
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _print(table: Table, *, empty: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    if console.width < _WIDTH:  # rather a line that the terminal breaks than a column of single letters
        console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDTH)).minimum)
    with console.capture() as printed:  # by itself it would end the program where nobody reads on
        if table.row_count or not empty:
            console.print(table)
        else:
            console.print(empty, markup=False)
    click.echo(printed.get(), nl=False)


def main() -> NoReturn:
    """The program."""
    run_program(cli, "edgeplan")
