"""The program ``edgeplan-broker``."""

from __future__ import annotations

import gc
import signal
from pathlib import Path
from typing import NoReturn

import click

from broker.config import GROUP_COMMIT, BrokerConfig
from broker.ledger.blobs import BlobStore, DirectoryBlobs
from broker.ledger.errors import LedgerDamaged, LedgerError, LedgerTooNew
from broker.ledger.interface import Ledger
from broker.ledger.sqlite import SqliteLedger
from broker.logs import get_logger
from broker.server import BrokerServer, CannotListen, neighbours
from broker.settings import (
    ExitCode,
    ProgramFailed,
    check_insecure,
    config_option,
    insecure_option,
    log_options,
    run_program,
    setting,
    version_option,
)

__all__ = ["cli", "main"]

_DEFAULTS = BrokerConfig()
_HELP = {"help_option_names": ["-h", "--help"]}
_RUN_EXAMPLE = "edgeplan-broker run --listen tcp://127.0.0.1:5750 --data ./broker --insecure"


@click.group(context_settings=_HELP, epilog=f"Example: {_RUN_EXAMPLE}")
@version_option
def cli() -> None:
    """The broker of an edgeplan fleet: mailboxes for devices, and a record of every result."""


@cli.command(context_settings=_HELP, epilog=f"Example: {_RUN_EXAMPLE}")
@setting("--listen", default="tcp://127.0.0.1:5750", metavar="ENDPOINT", help="Where devices and coordinators connect.")
@setting(
    "--logs",
    default=None,
    metavar="ENDPOINT",
    help="Where logs and notifications are published.  [default: the port after --listen]",
)
@setting("--blobs", default=None, metavar="ENDPOINT", help="Where blobs move.  [default: the port after that]")
@setting(
    "--data",
    default=None,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="A folder for the ledger and for blobs, made if need be. Without it all is lost when the broker ends.",
)
@setting(
    "--max-message",
    default=_DEFAULTS.max_message,
    type=click.IntRange(min=1 << 16, max=1 << 40),
    help="The largest message, in bytes.",
)
@setting(
    "--heartbeat-ms",
    default=_DEFAULTS.heartbeat_ms,
    type=click.IntRange(min=100, max=86_400_000),
    help="How often peers say that they live.",
)
@setting(
    "--ended-results",
    default=_DEFAULTS.ended_results,
    type=click.IntRange(min=1),
    help="How many results that have ended are remembered at most.",
)
@setting(
    "--busy-poll",
    default=500,
    type=click.IntRange(min=0, max=10_000),
    metavar="MICROSECONDS",
    help="For how long the broker looks for the next message before it sleeps, while one comes soon after another.",
)
@insecure_option
@log_options
@config_option
def run(
    listen: str,
    logs: str | None,
    blobs: str | None,
    data: Path | None,
    max_message: int,
    heartbeat_ms: int,
    ended_results: int,
    busy_poll: int,
    insecure: bool,
) -> None:
    """Run a broker until SIGTERM or ctrl-C. Logs broker_listening when it can be connected to."""
    beside = neighbours(listen)
    check_insecure(listen, insecure=insecure)
    for endpoint in (logs or beside[0], blobs or beside[1]):
        check_insecure(endpoint, insecure=insecure, quiet=True)
    _allow_many_connections()
    ledger: Ledger | None = None
    store: BlobStore | None = None
    try:
        if data is None:
            get_logger("broker").warning("ledger_in_memory")
        else:
            ledger = SqliteLedger(data / "ledger.sqlite")
            ledger.reserve()  # before the store tidies up: the folder may be that of a broker that runs
            store = DirectoryBlobs(data / "blobs")
    except LedgerError as error:
        raise _ledger_failed(error) from None
    except OSError as error:
        raise ProgramFailed(ExitCode.STORAGE, f"cannot use the folder {data}: {error.strerror}") from None
    config = BrokerConfig(
        max_message=max_message, heartbeat_ms=heartbeat_ms, ended_results=ended_results, commit_within=GROUP_COMMIT
    )
    server = BrokerServer(listen, logs, blobs, ledger=ledger, store=store, config=config, busy_poll=busy_poll / 1e6)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    _collect_seldom()
    try:
        server.run()
    except CannotListen as error:
        raise ProgramFailed(ExitCode.CANNOT_LISTEN, str(error)) from None
    except LedgerError as error:
        raise _ledger_failed(error) from None


@cli.command(context_settings=_HELP, epilog="Example: edgeplan-broker renew --data ./broker")
@setting(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="The folder of a broker that does not run.",
)
@config_option
def renew(data: Path) -> None:
    """Make a backup that was put back into DIR one that a broker may serve.

    Devices and sessions are told by a new id that it is not the ledger that they knew.
    """
    path = data / "ledger.sqlite"
    if not path.exists():
        raise ProgramFailed(ExitCode.NOT_FOUND, f"there is no ledger in {data}")
    ledger = SqliteLedger(path)
    try:
        click.echo(f"the ledger {path} has the id {ledger.renew().hex()} now")
    except LedgerError as error:
        raise _ledger_failed(error) from None
    finally:
        ledger.close()


def _ledger_failed(error: LedgerError) -> ProgramFailed:
    harmed = isinstance(error, LedgerDamaged | LedgerTooNew)
    return ProgramFailed(ExitCode.DAMAGED if harmed else ExitCode.STORAGE, str(error))


def _collect_seldom() -> None:
    """Results live long, and are no garbage: going through all of them would stop a large broker for a good part of a
    second, for nothing, since no message leaves a cycle behind.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _allow_many_connections() -> None:
    """Each peer takes a file descriptor or two: raise the soft limit as far as we may."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> NoReturn:
    """The program."""
    run_program(cli, "edgeplan-broker")
