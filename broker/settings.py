"""What the command line programs have in common: settings, their sources, exit codes, and how a program ends.

Each setting has a flag, an environment variable (``EDGEPLAN_`` and the flag's name) and a key in a TOML file (the
flag's name, with ``-`` or ``_``), in that order of strength::

    @click.group()
    @version_option
    def cli() -> None: ...

    @cli.command()
    @setting("--listen", default="tcp://127.0.0.1:5750", help="Where peers connect.")
    @insecure_option
    @log_options                      # --log-level, --log-format: configures broker.logs before the command runs
    @config_option                    # --config FILE, EDGEPLAN_CONFIG
    def run(listen: str, insecure: bool) -> None:
        check_insecure(listen, insecure=insecure)

    def main() -> NoReturn:
        run_program(cli, "edgeplan-broker")

The file is flat, and one file may serve several commands of a program; a key that none of them has is an error.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from broker import logs
from broker.disk_space import is_full
from broker.protocol.errors import ConnectionRefused, EdgePlanError
from broker.protocol.messages import PROTOCOL_VERSION

__all__ = [
    "EndpointMalformed",
    "ExitCode",
    "InsecureEndpoint",
    "NumberRange",
    "ProgramFailed",
    "check_insecure",
    "config_option",
    "insecure_option",
    "is_local",
    "log_options",
    "package_version",
    "run_program",
    "setting",
    "version_option",
]

Function = TypeVar("Function", bound=Callable[..., Any])
ENVIRONMENT_PREFIX = "EDGEPLAN_"
_LONGEST_PATH = 107
"""The longest path of a socket, in bytes: what ``struct sockaddr_un`` has room for."""


class ExitCode(enum.IntEnum):
    """How a program ended. docs/operations.md has the same list."""

    OK = 0
    """It did what it was asked, or was ended by SIGTERM or ctrl-C."""
    FAILED = 1
    """Something that has no number of its own went wrong; the message says what."""
    USAGE = 2
    """A flag, an environment variable or a settings file is wrong, or what they ask for is refused."""
    UNREACHABLE = 3
    """No broker answers."""
    REFUSED = 4
    """The broker refused this peer: another version, a device id already connected, a stale token."""
    NOT_FOUND = 5
    """What was asked for does not exist."""
    TIMED_OUT = 6
    """It did not happen in the time given."""
    CANNOT_LISTEN = 7
    """An address is in use, or not of this machine."""
    STORAGE = 8
    """A folder or file cannot be used: not writable, in use by another process, damaged, or full."""
    DAMAGED = 9
    """The broker's ledger is cut or altered, or a later version wrote it: somebody must look at it."""


class ProgramFailed(click.ClickException):
    """Ends the program with ``code``, and ``message`` on stderr."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = int(code)  # type: ignore[misc]  # click declares a class variable and reads the instance


class InsecureEndpoint(EdgePlanError, click.UsageError):
    """An address that may not be used without encryption. Ends a program with `ExitCode.USAGE`."""

    def __init__(self, endpoint: str, reason: str) -> None:
        click.UsageError.__init__(self, reason)
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class EndpointMalformed(EdgePlanError, click.UsageError, ValueError):
    """What is no address at all. Ends a program with `ExitCode.USAGE`."""

    def __init__(self, endpoint: object) -> None:
        self.endpoint = endpoint
        click.UsageError.__init__(self, str(self))

    def __str__(self) -> str:
        return f"expected an endpoint such as tcp://127.0.0.1:5750, got {self.endpoint!r}"


# ------------------------------------------------------------------------------------------------- settings


def setting(*declarations: str, **attributes: Any) -> Callable[[Function], Function]:
    """A `click.option` that an environment variable sets, too: ``--log-level`` and ``EDGEPLAN_LOG_LEVEL``."""
    flag = next(declaration.partition("/")[0] for declaration in declarations if declaration.startswith("--"))
    attributes.setdefault("envvar", ENVIRONMENT_PREFIX + flag.removeprefix("--").replace("-", "_").upper())
    attributes.setdefault("show_envvar", True)
    attributes.setdefault("show_default", True)
    return click.option(*declarations, **attributes)


class NumberRange(click.FloatRange):
    """A number within bounds. To click, what is not a number (``nan``) lies within any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"expected a number, got {value}", param, ctx)
        return number


def _load_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    import tomllib  # only a program with a settings file pays for it

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"cannot read the settings file {path}: {error.strerror}", context) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.UsageError(f"expected a settings file in TOML, got {path}: {error}", context) from None
    known = dict(_settings(context.find_root().command))
    mine = dict(_settings(context.command))
    repeated = {parameter.name for parameter in context.command.params if getattr(parameter, "multiple", False)}
    defaults: dict[str, Any] = {}
    for written, value in table.items():
        key = written.replace("_", "-")
        if key not in known and key not in mine:
            names = ", ".join(sorted(known | mine))
            raise click.UsageError(f"expected settings of {names}, got {written!r} in {path}", context)
        # Of a setting that may be repeated, one value may stand as it is.
        values = value if isinstance(value, list) and mine.get(key) in repeated | {None} else [value]
        for one in values:
            if not isinstance(one, str | int | float):
                raise click.UsageError(f"expected a value for {written!r} in {path}, got {_kind(one)}", context)
        if key in mine:
            defaults[mine[key]] = values if mine[key] in repeated else value
    context.default_map = {**(context.default_map or {}), **defaults}


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else "a table" if isinstance(value, dict) else "a date or time"


def _settings(command: click.Command) -> Iterator[tuple[str, str]]:
    """The settings of a command and of those below it: the flag without its dashes, and what the function calls it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in {None, "config", "version"}:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("--"):
                    yield flag.removeprefix("--"), str(parameter.name)
    if isinstance(command, click.Group):
        for below in command.commands.values():
            yield from _settings(below)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=ENVIRONMENT_PREFIX + "CONFIG",
    show_envvar=True,
    is_eager=True,  # it says what the others default to
    expose_value=False,
    callback=_load_config,
    metavar="FILE",
    help="Settings in TOML. Flags and environment variables are stronger.",
)
"""Adds ``--config FILE``. The command gets no argument for it."""

insecure_option = setting(
    "--insecure",
    is_flag=True,
    help="Use no encryption and no keys. Refused on any address but loopback.",
)
"""Adds ``--insecure``; the command gets ``insecure: bool`` for `check_insecure`."""


def log_options(function: Function) -> Function:
    """Adds ``--log-level`` and ``--log-format`` and configures `broker.logs` by them; the command does not get them."""

    @functools.wraps(function)
    def configured(*args: Any, log_level: str, log_format: str, **kwargs: Any) -> Any:
        logs.configure(level=logs.LEVELS[log_level], json={"auto": None, "json": True, "text": False}[log_format])
        return function(*args, **kwargs)

    with_format = setting(
        "--log-format",
        type=click.Choice(["auto", "json", "text"]),
        default="auto",
        help="JSON lines, or text for people; auto: text on a terminal.",
    )(configured)
    return setting(
        "--log-level",
        type=click.Choice(list(logs.LEVELS), case_sensitive=False),
        default="info",
        help="The lowest level of events to write to stderr.",
    )(with_format)  # type: ignore[return-value]  # click keeps the function; only its options are new


def package_version() -> str:
    """The version of the installed package; ``0+source`` where it runs from its source without being installed."""
    from importlib import metadata  # slow to import, and seldom asked for

    try:
        return metadata.version("edgeplan")
    except metadata.PackageNotFoundError:
        return "0+source"


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        protocol = ".".join(map(str, PROTOCOL_VERSION))
        click.echo(f"{context.find_root().info_name} {package_version()} (protocol {protocol})")
        context.exit()


version_option = click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
"""Adds ``--version``, for a group or a command."""

# ------------------------------------------------------------------------------------------------- encryption


def is_local(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint can be reached from this machine only: loopback, ``ipc://`` or ``inproc://``."""
    scheme, _, address = endpoint.partition("://")
    if scheme in {"inproc", "ipc"}:
        return True
    host = address.rpartition(";")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_endpoint(endpoint: object, *, connecting: bool) -> bool:
    """Whether it is one of ours: ``tcp://`` with a port, ``ipc://`` or ``inproc://``. ZeroMQ takes port 65537 for 1."""
    if not isinstance(endpoint, str):
        return False
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp":
        host, _, port = address.rpartition(":")
        any_free = port == "*" and not connecting
        return bool(host) and (any_free or (port.isascii() and port.isdecimal() and int(port) < 1 << 16))
    if scheme == "ipc" and len(address.encode(errors="replace")) > _LONGEST_PATH:
        return False
    return scheme in {"ipc", "inproc"} and bool(address)


def check_insecure(endpoint: str, *, insecure: bool, quiet: bool = False, connecting: bool = False) -> None:
    """Refuse to use ``endpoint`` without encryption unless it is local; warn if nobody said ``insecure``.

    There are no keys yet, so nothing but a local address may be used at all. Raises `InsecureEndpoint`, and
    `EndpointMalformed` for what is no endpoint. The warning is the event ``encryption_missing``; ``quiet``: for an
    address beside one that was warned of. ``connecting``: to an address that a broker listens on, so not to any port.
    """
    if not _is_endpoint(endpoint, connecting=connecting):
        raise EndpointMalformed(endpoint)
    if is_local(endpoint):
        if endpoint.startswith("tcp:") and not insecure and not quiet:
            logs.get_logger("settings").warning("encryption_missing", endpoint=endpoint)
        return
    if insecure:
        raise InsecureEndpoint(
            endpoint, f"--insecure is for loopback addresses only, and {endpoint} can be reached from elsewhere"
        )
    raise InsecureEndpoint(
        endpoint,
        f"{endpoint} can be reached from elsewhere and needs encryption; keys are not built yet in this version, "
        "so use a loopback address",
    )


# ------------------------------------------------------------------------------------------------- the end of a program


def run_program(command: click.Command, name: str) -> NoReturn:
    """Run a click command as the program ``name``, and exit with an `ExitCode`.

    SIGTERM and ctrl-C arrive as KeyboardInterrupt, unless the command sets handlers of its own, and end the program
    with `ExitCode.OK`. Errors of edgeplan become one sentence on stderr; a bug of ours keeps its traceback.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stdout = sys.stdout
    try:
        returned = command.main(prog_name=name, standalone_mode=False)
    except SystemExit:
        # Whoever read our output may have read enough: click puts something else into its place, and means a failure.
        if sys.stdout is stdout:
            raise
        sys.exit(ExitCode.OK)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(ExitCode.OK)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConnectionRefused as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ExitCode.REFUSED)
    except EdgePlanError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(ExitCode.FAILED)
    except OSError as error:
        if not is_full(error):
            raise
        click.echo(f"Error: cannot write: {error.strerror}", err=True)
        sys.stdout = sys.stderr  # the interpreter would complain once more when it flushes
        sys.exit(ExitCode.STORAGE)
    sys.exit(returned if isinstance(returned, int) else ExitCode.OK)
