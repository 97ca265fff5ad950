"""Settings: where they come from, what is refused, and how a program ends."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from broker import logs
from broker.protocol import messages as m
from broker.protocol.errors import ConnectionRefused, EdgePlanError
from broker.settings import (
    EndpointMalformed,
    ExitCode,
    InsecureEndpoint,
    NumberRange,
    ProgramFailed,
    check_insecure,
    config_option,
    insecure_option,
    is_local,
    log_options,
    run_program,
    setting,
    version_option,
)
from tests.processes import started


@click.group()
@version_option
def program() -> None:
    """A program as ours are."""


@program.command()
@setting("--listen", default="tcp://127.0.0.1:5750", help="Where peers connect.")
@setting("--max-message", type=int, default=100)
@setting("--id", "device", default="nameless")
@setting("--seconds", type=NumberRange(0), default=1.0)
@setting("--tag", multiple=True)
@insecure_option
@log_options
@config_option
def run(listen: str, max_message: int, device: str, seconds: float, tag: tuple[str, ...], insecure: bool) -> None:
    """Print the settings."""
    assert seconds >= 0
    click.echo(json.dumps([listen, max_message, list(tag), insecure, device]))
    logs.get_logger("x").debug("at_debug")


@program.command()
@setting("--store", type=click.Path(path_type=Path), default=Path("store"))
@config_option
def put(store: Path) -> None:
    """Another command, with a setting that the first lacks."""
    click.echo(store)


@pytest.fixture
def runner() -> CliRunner:
    """Runs the program without a process."""
    return CliRunner()


def settings_of(runner: CliRunner, *args: str, **environment: str) -> list[object]:
    """What `run` printed."""
    result = runner.invoke(program, ["run", *args], env=dict(environment), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed: list[object] = json.loads(result.stdout)
    return printed


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(runner: CliRunner, tmp_path: Path) -> None:
    """The order of strength, with the default below them all."""
    file = tmp_path / "settings.toml"
    file.write_text('max-message = 1\ntag = ["a", "b"]\ninsecure = true\n')
    config = ("--config", str(file))
    assert settings_of(runner) == ["tcp://127.0.0.1:5750", 100, [], False, "nameless"]
    assert settings_of(runner, *config) == ["tcp://127.0.0.1:5750", 1, ["a", "b"], True, "nameless"]
    assert settings_of(runner, *config, EDGEPLAN_MAX_MESSAGE="2")[1] == 2
    assert settings_of(runner, *config, "--max-message", "3", EDGEPLAN_MAX_MESSAGE="2")[1] == 3
    assert settings_of(runner, EDGEPLAN_CONFIG=str(file))[1] == 1
    assert settings_of(runner, EDGEPLAN_TAG="c d")[2] == ["c", "d"]
    assert settings_of(runner, EDGEPLAN_INSECURE="1")[3] is True


def test_a_key_may_be_written_with_either_dash(runner: CliRunner, tmp_path: Path) -> None:
    """As the flag or as Python has it."""
    file = tmp_path / "settings.toml"
    file.write_text("max_message = 7\n")
    assert settings_of(runner, "--config", str(file))[1] == 7


def test_a_setting_that_may_be_repeated_may_be_given_once(runner: CliRunner, tmp_path: Path) -> None:
    """A list, or the one value as it is."""
    file = tmp_path / "settings.toml"
    for written in ('"room=kitchen"', '["room=kitchen"]'):
        file.write_text(f"tag = {written}\n")
        assert settings_of(runner, "--config", str(file))[2] == ["room=kitchen"]


def test_a_key_has_the_flags_name_whatever_the_function_calls_it(runner: CliRunner, tmp_path: Path) -> None:
    """An operator reads --help, not the source."""
    file = tmp_path / "settings.toml"
    file.write_text('id = "pi"\n')
    assert settings_of(runner, "--config", str(file))[4] == "pi"
    assert settings_of(runner, EDGEPLAN_ID="pi")[4] == "pi"
    file.write_text('device = "pi"\n')
    assert runner.invoke(program, ["run", "--config", str(file)]).exit_code == ExitCode.USAGE


def test_one_file_may_serve_all_commands_of_a_program(runner: CliRunner, tmp_path: Path) -> None:
    """A key that only another command has is no mistake."""
    file = tmp_path / "settings.toml"
    file.write_text('max-message = 7\nstore = "elsewhere"\n')
    assert settings_of(runner, "--config", str(file))[1] == 7
    assert runner.invoke(program, ["put", "--config", str(file)]).stdout == "elsewhere\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'lisen = "tcp://127.0.0.1:1"\n', "got 'lisen' in"),
        (b"listen = \n", "expected a settings file in TOML"),
        (b"\xff\xfe\n", "expected a settings file in TOML"),
        (b"[listen]\n", "expected a value for 'listen'"),
        (b"max-message = [1, 2]\n", "expected a value for 'max-message' in"),
        (b"max-message = 2026-01-01\n", "got a date or time"),
        (b"tag = [[1]]\n", "expected a value for 'tag' in"),
        (b"seconds = nan\n", "expected a number, got nan"),
        (b'max-message = "many"\n', "'many' is not a valid integer"),
        (b'log-level = "loud"\n', "'loud' is not one of"),
        (None, "settings.toml: No such file or directory"),
    ],
)
def test_a_wrong_file_is_refused(runner: CliRunner, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """A mistyped key does not pass for a default; the sentence names it."""
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    result = runner.invoke(program, ["run", "--config", str(file)])
    assert result.exit_code == ExitCode.USAGE
    assert sentence in " ".join(result.stderr.split())


def test_help_names_the_variable_of_each_setting(runner: CliRunner) -> None:
    """An operator finds flag, variable and default in one place."""
    text = runner.invoke(program, ["run", "--help"]).output
    for name in ("LISTEN", "MAX_MESSAGE", "INSECURE", "LOG_LEVEL", "LOG_FORMAT", "CONFIG"):
        assert f"EDGEPLAN_{name}" in text


def test_log_options_configure_the_logs(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself does not hear of them."""
    result = runner.invoke(program, ["run", "--log-level", "debug", "--log-format", "json"], catch_exceptions=False)
    assert json.loads(result.stderr)["event"] == "at_debug"
    assert runner.invoke(program, ["run"]).stderr == ""
    text = runner.invoke(program, ["run", "--log-level", "DEBUG", "--log-format", "text"]).stderr
    assert "at_debug" in text
    assert not text.startswith("{")


def test_version_tells_the_protocol_too(runner: CliRunner) -> None:
    """Two programs that do not understand each other are compared by it."""
    output = runner.invoke(program, ["--version"], prog_name="edgeplan-x").output
    protocol = ".".join(map(str, m.PROTOCOL_VERSION))
    assert output.startswith("edgeplan-x ")
    assert output.endswith(f"(protocol {protocol})\n")


# ------------------------------------------------------------------------------------------------- encryption

LOCAL = [
    "tcp://127.0.0.1:5750",
    "tcp://127.5.5.5:*",
    "tcp://localhost:0",
    "tcp://[::1]:5750",
    "tcp://10.0.0.1:0;127.0.0.1:5750",
    "inproc://broker",
    "ipc:///run/edgeplan/broker",
]
REMOTE = [
    "tcp://0.0.0.0:5750",
    "tcp://*:5750",
    "tcp://[::]:5750",
    "tcp://10.0.0.1:5750",
    "tcp://broker.example:5750",
    "tcp://127.0.0.1.example:5750",
    "tcp://localhost.example:5750",
    "tcp://127.0.0.1:0;10.0.0.1:5750",
    "tcp://eth0:5750",
]


@pytest.mark.parametrize("endpoint", LOCAL)
def test_a_local_address_may_be_used(endpoint: str) -> None:
    """With or without --insecure."""
    assert is_local(endpoint)
    check_insecure(endpoint, insecure=True)
    check_insecure(endpoint, insecure=False)


@pytest.mark.parametrize("endpoint", REMOTE)
def test_any_other_address_needs_encryption(endpoint: str) -> None:
    """Nothing travels in the clear where others can read it, whoever asks for it."""
    assert not is_local(endpoint)
    with pytest.raises(InsecureEndpoint, match="--insecure is for loopback addresses only, and tcp://"):
        check_insecure(endpoint, insecure=True)
    with pytest.raises(
        InsecureEndpoint, match="can be reached from elsewhere and needs encryption; keys are not built"
    ):
        check_insecure(endpoint, insecure=False)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "127.0.0.1:5750",
        "tcp://",
        "http://127.0.0.1",
        "udp://127.0.0.1:1",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:many",
        "tcp://[::1]",
        "ipc://",
        "ipc://" + "x" * 108,
    ],
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    """With an example of what is expected. ZeroMQ would take port 99999 for another one."""
    with pytest.raises(EndpointMalformed, match=r"expected an endpoint such as tcp://127\.0\.0\.1:5750, got") as caught:
        check_insecure(endpoint, insecure=True)
    assert caught.value.endpoint == endpoint
    assert isinstance(caught.value, EdgePlanError)
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, InsecureEndpoint)


def test_any_free_port_is_for_those_who_listen() -> None:
    """Nobody can connect to one."""
    check_insecure("tcp://127.0.0.1:*", insecure=True)
    with pytest.raises(EndpointMalformed):
        check_insecure("tcp://127.0.0.1:*", insecure=True, connecting=True)


def test_missing_encryption_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless it was asked for; inside a machine's own process there is nothing to encrypt."""
    check_insecure("tcp://127.0.0.1:1", insecure=True)
    check_insecure("inproc://x", insecure=False)
    check_insecure("tcp://127.0.0.1:1", insecure=False, quiet=True)
    assert capsys.readouterr().err == ""
    check_insecure("tcp://127.0.0.1:1", insecure=False)
    assert json.loads(capsys.readouterr().err)["event"] == "encryption_missing"


def test_the_refusal_is_an_error_of_edgeplan_and_carries_its_endpoint() -> None:
    """`connect` raises the same error as the programs show."""
    with pytest.raises(EdgePlanError) as caught:
        check_insecure("tcp://*:1", insecure=True)
    assert isinstance(caught.value, InsecureEndpoint)
    assert caught.value.endpoint == "tcp://*:1"


# ------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, ExitCode.OK, ""),
        (ProgramFailed(ExitCode.UNREACHABLE, "no broker answers"), ExitCode.UNREACHABLE, "Error: no broker answers\n"),
        (ConnectionRefused("full", "no room"), ExitCode.REFUSED, "Error: the broker refused this connection (full)"),
        (EdgePlanError("broken"), ExitCode.FAILED, "Error: broken\n"),
        (InsecureEndpoint("tcp://*:1", "not there"), ExitCode.USAGE, "Error: not there"),
        (EndpointMalformed("here"), ExitCode.USAGE, "Error: expected an endpoint such as tcp://127.0.0.1:5750, got"),
        (click.BadParameter("odd"), ExitCode.USAGE, "odd"),
        (KeyboardInterrupt(), ExitCode.OK, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), ExitCode.OK, ""),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.STORAGE, "Error: cannot write: No space left on"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_end_has_its_exit_code(
    raised: BaseException | None,
    code: ExitCode,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And its sentence on stderr, not a traceback."""

    @click.command()
    def command() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["edgeplan-x"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of this process are pytest's
    with pytest.raises(SystemExit) as ended:
        run_program(command, "edgeplan-x")
    assert ended.value.code == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_program_that_is_told_to_end_ends_cleanly(number: signal.Signals) -> None:
    """SIGTERM and ctrl-C: exit code 0, and no word on stderr."""
    code = (
        "import click, signal\n"
        "from broker.settings import run_program\n"
        "@click.command()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    while True: signal.pause()\n"
        "run_program(wait, 'edgeplan-x')\n"
    )
    with started(sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error.strip()) == (ExitCode.OK, "")
