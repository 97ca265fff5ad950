"""``edgeplan-agent``: run a device, and look after what is in its store."""

from __future__ import annotations

import gc
import importlib.util
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec

from broker.protocol.errors import TensorRefused
from broker.protocol.framing import is_text
from broker.protocol.ids import check_device_id
from broker.settings import (
    ExitCode,
    NumberRange,
    ProgramFailed,
    check_insecure,
    config_option,
    insecure_option,
    log_options,
    run_program,
    setting,
    version_option,
)

if TYPE_CHECKING:
    from edge_agent.store import Entry, Store

__all__ = ["cli", "main"]

Function = TypeVar("Function", bound=Callable[..., Any])

_RUN_EXAMPLE = "edgeplan-agent run --broker tcp://127.0.0.1:5750 --id pi-kitchen --store ~/edgeplan --insecure"
_PUT_EXAMPLE = 'edgeplan-agent put reading.npy --store ~/edgeplan --tag input_data --description "two readings"'

_HELP = {"help_option_names": ["-h", "--help"]}

_SWITCH_SECONDS = 0.0005
"""How long one thread may keep the others from running. The threads beside the driver's (disk, blobs) have no hurry."""

_COLLECTED_AFTER = (10_000, 20, 50)
"""How many objects more than before make Python look for cycles among them, and how much more seldom among those that
are older. By default it does at 700, which are what a hundred commands under way are made of, and finds nothing.
"""

_RUNTIMES = {"torch": "torch", "onnx": "onnxruntime"}
"""The runtimes, the one to prefer first, and the package that each needs."""


def _store_option(help: str) -> Callable[[Function], Function]:
    return setting("--store", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR", help=help)


store_option = _store_option("The folder of the device's store; made if it is not there.")
present_store_option = _store_option("The folder of the device's store.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings=_HELP, epilog=f"Example: {_RUN_EXAMPLE}")
@version_option
def cli() -> None:
    """A device of edgeplan: runs the plans that coordinators send, on the tensors that live here."""


@cli.command(context_settings=_HELP, epilog=f"Example: {_RUN_EXAMPLE}")
@setting("--broker", default="tcp://127.0.0.1:5750", metavar="ENDPOINT", help="Where the broker listens.")
@setting("--id", "device", required=True, metavar="NAME", help="The device's id: letters, digits, '_', '.', '-'.")
@store_option
@setting(
    "--runtime",
    type=click.Choice(["torch", "onnx"]),
    default=None,
    help="What runs the plans.  [default: torch where it is installed, else onnx]",
)
@setting("--threads", type=click.IntRange(0), default=0, help="Threads that a plan may use; 0: half of the cores.")
@setting("--idle", type=NumberRange(0), default=60.0, help="Seconds without work after which the worker ends.")
@setting(
    "--store-quota",
    type=click.IntRange(0),
    default=4 << 30,
    metavar="BYTES",
    help="How much coordinators' plans and results may take of the disk; 0: all of it. Your own data does not count.",
)
@setting(
    "--checkpoint-seconds",
    type=NumberRange(0),
    default=30.0,
    help="How much work of a long fold a crash costs at most; each checkpoint is written to the disk.",
)
@setting(
    "--max-memory",
    type=click.IntRange(0),
    default=0,
    metavar="BYTES",
    help="How much memory a run of a plan may take for its values; 0: no limit.",
)
@setting(
    "--max-ops",
    type=click.IntRange(0),
    default=0,
    metavar="COUNT",
    help="How many operations on numbers a run of a plan may take; 0: no limit.",
)
@setting(
    "--max-seconds",
    type=NumberRange(0),
    default=0.0,
    help="How long a run of a plan, or one step of a fold, may take; 0: no limit.",
)
@setting("--label", multiple=True, metavar="KEY=VALUE", help="What you want to say of the device. May be repeated.")
@insecure_option
@log_options
@config_option
def run(
    broker: str,
    device: str,
    store: Path,
    runtime: str | None,
    threads: int,
    idle: float,
    store_quota: int,
    checkpoint_seconds: float,
    max_memory: int,
    max_ops: int,
    max_seconds: float,
    label: tuple[str, ...],
    insecure: bool,
) -> None:
    """Run a device until SIGTERM or ctrl-C. Logs agent_registered when the broker knows it."""
    from edge_agent.agent import Agent, AgentConfig
    from edge_agent.store_database import StoreError

    check_insecure(broker, insecure=insecure, connecting=True)
    try:
        check_device_id(device)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--id") from None
    name = _runtime(runtime)
    config = AgentConfig(
        runtimes=(name,),
        labels=_labels(label),
        idle_seconds=idle,
        store_quota=store_quota,
        checkpoint_seconds=checkpoint_seconds,
        max_memory=max_memory,
        max_ops=max_ops,
        max_seconds=max_seconds,
    )
    agent = Agent(broker, device, store, runtime=name, threads=threads, config=config)
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # what is loaded by now stays: don't look through it again and again
    gc.set_threshold(*_COLLECTED_AFTER)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.request_stop())
    try:
        agent.run()
    except (StoreError, OSError, sqlite3.Error) as error:
        raise ProgramFailed(ExitCode.STORAGE, str(error)) from error


def _runtime(chosen: str | None) -> str:
    """The runtime to use. It is found without being imported: the agent's own process never loads it."""
    for name, module in _RUNTIMES.items():
        if chosen in (None, name) and importlib.util.find_spec(module) is not None:
            return name
    what, extra = ("neither torch nor onnxruntime", "onnx") if chosen is None else (_RUNTIMES[chosen], chosen)
    verb = "is" if chosen is None else "is not"
    raise ProgramFailed(
        ExitCode.USAGE, f"{what} {verb} installed here; install it with: pip install 'edgeplan[{extra}]'"
    )


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for label in given:
        key, separator, value = label.partition("=")
        if not separator or not key or not is_text(label):
            raise click.BadParameter(f"expected KEY=VALUE, got {label!r}", param_hint="--label")
        labels[key] = value
    return labels


@cli.command(context_settings=_HELP, epilog=f"Example: {_PUT_EXAMPLE}")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@store_option
@click.option("--tag", "tags", multiple=True, help="A tag to find it by. May be repeated.")
@click.option("--description", default="", help="What it is, for people.")
@click.option("--name", default=None, help="Which tensor of a .safetensors file, where it has several.")
@json_option
@config_option
def put(file: Path, store: Path, tags: tuple[str, ...], description: str, name: str | None, as_json: bool) -> None:
    """Add the tensor in FILE (.npy or .safetensors) to the store, also while the agent runs. Prints its id."""
    with _opened(store) as opened:
        try:
            if file.suffix == ".safetensors":
                id = _put_safetensors(opened, file, name, tags, description)
            else:
                id = _put_npy(opened, file, tags, description)
        except (TensorRefused, ValueError) as error:
            raise ProgramFailed(ExitCode.FAILED, f"{file}: {error}") from error
        except (OSError, sqlite3.Error) as error:
            raise ProgramFailed(ExitCode.STORAGE, str(error)) from error
        _print([opened.entry(id)], as_json=as_json, brief=True)


def _put_npy(store: Store, file: Path, tags: tuple[str, ...], description: str) -> str:
    import numpy  # only this needs it

    try:
        with file.open("rb") as opened:  # not numpy.load, which takes other files for pickles or archives
            array = numpy.lib.format.read_array(opened, allow_pickle=False)
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise TensorRefused(f"expected a .npy file with one array of numbers, got another ({reason})") from None
    return store.put(array, tags, description)


def _put_safetensors(store: Store, file: Path, name: str | None, tags: tuple[str, ...], description: str) -> str:
    from edge_agent.tensor_files import tensors_in

    found = tensors_in(file)
    if name is None and len(found) == 1:
        (name,) = found
    if name is None or name not in found:
        names = ", ".join(sorted(found)) or "none"
        raise TensorRefused(f"expected --name with one of the tensors in the file ({names})")
    tensor = found[name]
    with file.open("rb") as opened:
        opened.seek(tensor.offset)
        data = opened.read(tensor.nbytes)
    return store.put_elements(tensor.dtype, tensor.shape, memoryview(data), tags, description)


@cli.command("list", context_settings=_HELP, epilog="Example: edgeplan-agent list --store ~/edgeplan")
@present_store_option
@json_option
@config_option
def list_(store: Path, as_json: bool) -> None:
    """List what is in the store."""
    _check_present(store)
    with _opened(store) as opened:
        _print(opened.entries(), as_json=as_json)


@cli.command(
    context_settings=_HELP, epilog="Example: edgeplan-agent delete 4f2a91c0d7e3b8150000000000000001 --store ~/edgeplan"
)
@click.argument("id")
@present_store_option
@config_option
def delete(id: str, store: Path) -> None:
    """Remove a tensor that was put here, by its ID."""
    from edge_agent.store import NoSuchTensor, NotTheOwner

    _check_present(store)
    with _opened(store) as opened:
        try:
            opened.delete(id)
        except NoSuchTensor as error:
            raise ProgramFailed(ExitCode.NOT_FOUND, str(error)) from error
        except NotTheOwner as error:
            raise ProgramFailed(ExitCode.FAILED, str(error)) from error


@cli.command(context_settings=_HELP, epilog="Example: edgeplan-agent salvage --store ~/edgeplan --into ~/edgeplan-new")
@present_store_option
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="The store to save to; made if it is not there.",
)
@json_option
@config_option
def salvage(store: Path, into: Path, as_json: bool) -> None:
    """Save what is whole of your own data in a damaged store. Prints the old and the new id of each tensor."""
    from edge_agent.store import StoreError
    from edge_agent.store_salvage import salvage as save

    _check_present(store)
    try:
        found = save(store, into)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--into") from None
    except (StoreError, OSError, sqlite3.Error) as error:
        raise ProgramFailed(ExitCode.STORAGE, str(error)) from error
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for old, new in found.saved.items():
        click.echo(f"{old}  {new}")
    for lost in found.lost:
        click.echo(f"lost: {lost}", err=True)


def _check_present(folder: Path) -> None:
    """A mistyped folder is not made a store by a command that only looks into one."""
    if not folder.is_dir():
        raise ProgramFailed(ExitCode.NOT_FOUND, f"there is no store in {folder}")


def _opened(folder: Path) -> Store:
    from edge_agent.store import Store, StoreError

    try:
        return Store.open(folder)
    except (StoreError, OSError, sqlite3.Error) as error:
        raise ProgramFailed(ExitCode.STORAGE, str(error)) from error


def _print(entries: list[Entry], *, as_json: bool, brief: bool = False) -> None:
    if as_json:
        found = [msgspec.to_builtins(entry) for entry in entries]
        click.echo(msgspec.json.encode(found[0] if brief else found).decode())
        return
    for entry in entries:
        if brief:
            click.echo(entry.id)
        else:
            owner = "own" if entry.own else "result"
            kind = f"{entry.dtype}{list(entry.shape)}"
            click.echo("  ".join(filter(None, [entry.id, owner, kind, ",".join(entry.tags), entry.description])))


def main() -> NoReturn:
    """The program."""
    run_program(cli, "edgeplan-agent")
