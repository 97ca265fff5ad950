"""The operator's program: what it prints, as tables and as JSON, and how it exits."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import zmq
from click.testing import CliRunner, Result

from broker.config import BrokerConfig
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Announce,
    Deliver,
    Failure,
    Invoke,
    Register,
    Registered,
    ResultFailed,
)
from broker.server import BrokerServer
from broker.settings import ExitCode
from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.cli import cli
from coordinator.fleet import Fleet
from tests.broker.raw_peer import RawPeer
from tests.processes import started

WITHIN = 60.0


@func2plan(args_shape=[(2,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@pytest.fixture(scope="module")
def server() -> Iterator[BrokerServer]:
    """A broker over TCP in this process."""
    with BrokerServer("tcp://127.0.0.1:*") as made:
        assert made.wait_until_listening(WITHIN)
        yield made


@pytest.fixture(scope="module")
def fleet(server: BrokerServer) -> Iterator[Fleet]:
    """A fleet with one device, to ask about."""
    with connect(server.endpoints.listen, insecure=True) as made:
        VirtualWorker(made, "pi-attic", data=[tagged(torch.ones(2), "input", "[bold]", description="two")])
        yield made


@contextlib.contextmanager
def device_of(server: BrokerServer, name: str) -> Iterator[RawPeer]:
    """A device that has registered, does nothing by itself, and goes without a word."""
    with zmq.Context() as context:
        device = RawPeer(context, server.endpoints.listen)
        try:
            device.say(Register(version=PROTOCOL_VERSION, device=name, store=os.urandom(16), boot=os.urandom(16)))
            device.hear(Registered)
            yield device
        finally:
            device.close()


def run(server: BrokerServer, *arguments: str) -> Result:
    """Run the program against the broker."""
    command, *rest = arguments
    return CliRunner().invoke(cli, [command, "--broker", server.endpoints.listen, "--insecure", *rest])


def printed(server: BrokerServer, *arguments: str) -> Any:
    """What it printed as JSON."""
    result = run(server, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_devices(server: BrokerServer, fleet: Fleet) -> None:
    """A row a device, or all that is known as JSON."""
    table = run(server, "devices").stdout.splitlines()
    assert table[0].split()[:2] == ["device", "online"]
    assert table[1].split()[:2] == ["pi-attic", "yes"]
    (device,) = printed(server, "devices")
    assert (device["device"], device["online"], device["runtimes"]) == ("pi-attic", True, ["torch"])
    assert device["last_seen"].endswith("Z")


def test_search(server: BrokerServer, fleet: Fleet) -> None:
    """By tags and device; markup in what devices say is printed as it is; no match is no error."""
    (found,) = printed(server, "search", "input", "[bold]")
    assert found["device"] == "pi-attic"
    assert (found["dtype"], found["shape"], found["description"]) == ("float32", [2], "two")
    text = run(server, "search", "--device", "pi-attic").stdout
    assert found["id"] in text
    assert "[bold]" in text
    assert " [2] " in text
    nothing = run(server, "search", "input", "no such tag")
    assert (nothing.exit_code, nothing.stdout) == (0, "no tensor carries the tags 'input', 'no such tag'\n")
    unknown = run(server, "search", "input", "--device", "nobody", "--json")
    assert (unknown.exit_code, unknown.stdout) == (ExitCode.NOT_FOUND, "")
    assert unknown.stderr == "Error: this broker knows no device 'nobody'\n"
    assert run(server, "search", "--device", "pi-attic", "--device", "nobody").exit_code == ExitCode.NOT_FOUND
    wrong = run(server, "search", "input", "--device", "no name")
    assert wrong.exit_code == ExitCode.USAGE
    assert "expected a device id of 1 to 64 letters" in wrong.stderr


def test_status(server: BrokerServer, fleet: Fleet) -> None:
    """What became of an id; an unknown one exits with 5, what is no id with 2."""
    pointer = double.send(fleet.device("pi-attic"))("input")
    assert pointer.wait(WITHIN)
    known = printed(server, "status", pointer.id)
    assert (known["status"], known["device"], known["id"]) == ("done", "pi-attic", pointer.id)
    assert "done" in run(server, "status", pointer.id).stdout
    unknown = run(server, "status", "00" * 16)
    assert (unknown.exit_code, unknown.stdout.split()) == (ExitCode.NOT_FOUND, ["id", "00" * 16, "status", "unknown"])
    wrong = run(server, "status", "zz")
    assert wrong.exit_code == ExitCode.USAGE
    assert "expected a result id of 32 hex digits" in wrong.stderr


def test_stats(server: BrokerServer, fleet: Fleet) -> None:
    """The counters, in all and by device."""
    counted = printed(server, "stats")
    assert counted["total"]["commands"] == counted["devices"]["pi-attic"]["commands"]
    assert counted["gauges"]["devices_online"] == 1
    header, *rows = run(server, "stats").stdout.splitlines()
    assert header.split()[:2] == ["commands", "notifications"]
    assert [row.split()[0] for row in rows[:2]] == ["in", "pi-attic"]


def test_dead_letters(server: BrokerServer) -> None:
    """The commands that were given up, the last first, with the reason; or that there is none."""
    assert run(server, "dead-letters").stdout == "no command was given up\n"
    with BrokerServer("tcp://127.0.0.1:*") as broken, device_of(broken, "pi-cellar") as device:
        with connect(broken.endpoints.listen, insecure=True) as fleet:
            pointers = [double.send(fleet.device("pi-cellar"))(torch.ones(2)) for _ in range(2)]
            for n in (1, 2):
                deliver = device.hear(Deliver)
                assert isinstance(deliver.command, Invoke)
                why = Failure(code="WorkerDied", message=f"the worker died twice of [it] {n}")
                event = ResultFailed(id=deliver.command.id, digest=deliver.digest, failure=why)
                device.say(Announce(n=n, event=event))
            assert all(pointer.wait(WITHIN) for pointer in pointers)
            assert [entry.id.hex() for entry in fleet.dead_letters(1).entries] == [pointers[1].id]
            with pytest.raises(ValueError, match="expected a limit of at least 0, got -1"):
                fleet.dead_letters(-1)
        found = printed(broken, "dead-letters")
        assert (found["total"], [entry["id"] for entry in found["entries"]]) == (2, [p.id for p in pointers[::-1]])
        assert found["entries"][0]["failure"]["code"] == "WorkerDied"
        last = run(broken, "dead-letters", "--limit", "1")
        assert pointers[1].id in last.stdout
        assert "pi-cellar" in last.stdout
        assert "the worker died twice of [it] 2" in last.stdout
        assert pointers[0].id not in last.stdout
        assert last.stderr == "and 1 more, given up earlier\n"


@contextlib.contextmanager
def meanwhile(do: Callable[[], object]) -> Iterator[None]:
    """Another thread does this again and again as long as the block lasts."""
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(0.05):  # whoever follows has to read it all
            do()

    doing = threading.Thread(target=go_on)
    doing.start()
    try:
        yield
    finally:
        stop.set()
        doing.join(WITHIN)


@contextlib.contextmanager
def followed(server: BrokerServer, *arguments: str) -> Iterator[Iterator[Any]]:
    """What the program prints of the log as JSON, as it comes. The test's timeout bounds the wait."""
    asked = [sys.executable, "-m", "coordinator", "logs", "--follow", "--json", *arguments]
    with started(*asked, "--broker", server.endpoints.listen, "--insecure", stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        yield map(json.loads, following.stdout)


def test_logs_tell_of_devices_that_are_lost_and_return() -> None:
    """Whoever follows the stream sees a device join, and go without a word."""
    joined, lost, count = set[str](), set[str](), itertools.count()
    with BrokerServer("tcp://127.0.0.1:*", config=BrokerConfig(heartbeat_ms=200)) as server:

        def flap() -> None:
            with device_of(server, f"pi-{next(count)}"):
                pass

        with followed(server) as records, meanwhile(flap):
            for record in records:
                if record["event"] == "device_joined":
                    joined.add(record["device"])
                elif record["event"] == "device_lost":
                    assert record["level"] == "warning"
                    lost.add(record["device"])
                if joined & lost:
                    break
    assert joined & lost


def test_logs_tell_the_way_of_one_result(server: BrokerServer, fleet: Fleet) -> None:
    """With debug events, all hops of an invocation in all three programs, as JSON lines; none of a device that there is
    not.
    """
    plan = double.send(fleet.device("pi-attic"))
    hops = {
        "invocation_submitted",
        "invocation_accepted",
        "invocation_relayed",
        "invocation_taken",
        "invocation_started",
        "invocation_finished",
        "result_announced",
        "result_recorded",
        "result_notified",
        "result_received",
    }
    by_result: dict[str, set[str]] = {}
    components = set[str]()
    with meanwhile(lambda: plan("input").wait(WITHIN)):
        with followed(server, "--level", "debug") as records:
            for record in records:
                components.add(record["component"])
                events = by_result.setdefault(str(record.get("result")), set())
                events.add(record["event"])
                if hops <= events:
                    break
        attic = run(server, "logs", "--level", "DEBUG", "--seconds", "0.5", "--device", "nobody", "--json")
    assert any(hops <= events for events in by_result.values())
    assert components >= {"broker", "agent", "session"}
    assert attic.stdout == ""


def test_logs_filter_by_result_and_level(server: BrokerServer, fleet: Fleet) -> None:
    """Debug events are not sent where nobody wants them; a result's prefix picks out its events."""
    plan = double.send(fleet.device("pi-attic"))
    with fleet.logs("warning") as warnings, fleet.logs("debug", result=fleet.session_id) as ours:
        while ours.receive(0.02) is None:  # subscribing takes a moment that nobody tells
            plan("input").wait(WITHIN)
        failing: set[object] = set()
        while (record := warnings.receive(0.02)) is None:  # and another one, for another subscription
            failing.add(plan("no such tag").id)
        assert (record["level"], record["event"]) == ("warning", "invocation_failed")
        assert record["result"] in failing
        each: Mapping[str, object] | None = {}
        while each is not None and each.get("result") != record["result"]:
            each = ours.receive(WITHIN)
            assert each is not None
            assert any(str(value).startswith(fleet.session_id) for value in each.values())
    with pytest.raises(ValueError, match="expected a level of debug, info"):
        fleet.logs("chatty")


@pytest.mark.parametrize("command", ["devices", "search", "stats"])
def test_a_narrow_terminal(server: BrokerServer, fleet: Fleet, command: str) -> None:
    """It breaks the lines by itself: ids, times and numbers stay whole."""
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 40))
    asked = [sys.executable, "-m", "coordinator", command, "--broker", server.endpoints.listen, "--insecure"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen(asked, stdout=terminal, env=environment) as running:
        os.close(terminal)
        told = b""
        with contextlib.suppress(OSError):  # the terminal has no other end any more
            while read := os.read(reader, 4096):
                told += read
    os.close(reader)
    assert running.returncode == 0
    wanted = {
        "devices": r"pi-attic +yes +\S+Z +",
        "search": r"pi-attic +[0-9a-f]{32} ",
        "stats": r"pi-attic( +[0-9,]+){10}",
    }
    assert re.search(wanted[command], re.sub(r"\x1b\[[0-9;]*m", "", told.decode()))


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(("full", "code", "said"), [(False, 0, ""), (True, 8, "Error: cannot write: No space left")])
def test_output_that_nobody_takes(
    server: BrokerServer, fleet: Fleet, form: list[str], full: bool, code: int, said: str
) -> None:
    """Whoever reads it has read enough, which is no failure; a full disk is one, in a sentence."""
    asked = [sys.executable, "-m", "coordinator", "devices", "--broker", server.endpoints.listen, "--insecure", *form]
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(asked, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(output)
    assert (done.returncode, done.stderr[: len(said) or None]) == (code, said)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_logs_where_the_output_is_said_to_be_ascii(server: BrokerServer, fleet: Fleet, form: list[str]) -> None:
    """An event may have a user's words in it: they are printed as UTF-8, as in tables."""
    plan = double.send(fleet.device("pi-attic"))
    asked = ["logs", "--follow", "--level", "warning", "--broker", server.endpoints.listen, "--insecure", *form]
    ascii_ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "coordinator", *asked]
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ascii_, encoding="utf-8") as following:
        assert following.stdout is not None
        with meanwhile(lambda: plan("grün").wait(WITHIN)):
            assert any("carries grün" in line for line in following.stdout)
        following.send_signal(signal.SIGTERM)
        _, errors = following.communicate(timeout=WITHIN)
    assert (following.returncode, errors.strip()) == (0, "")  # click ends the line of ^C


def test_an_operator_needs_no_torch() -> None:
    """The base install has none: with torch out of reach the program asks its broker all the same (none is there)."""
    without = "import sys; sys.modules['torch'] = None; from coordinator.cli import main; main()"
    asked = ["devices", "--broker", "tcp://127.0.0.1:9", "--insecure", "--timeout", "0.1"]
    done = subprocess.run(
        [sys.executable, "-c", without, *asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr


def test_no_broker_there() -> None:
    """Exits with 3 and names the endpoint."""
    result = CliRunner().invoke(cli, ["devices", "--broker", "tcp://127.0.0.1:9", "--timeout", "0.2", "--insecure"])
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "no broker answers at tcp://127.0.0.1:9" in result.stderr


def test_an_address_that_needs_keys() -> None:
    """Exits with 2."""
    result = CliRunner().invoke(cli, ["devices", "--broker", "tcp://192.0.2.1:5750", "--insecure"])
    assert result.exit_code == ExitCode.USAGE
    assert "loopback" in result.stderr


def test_settings_from_environment_and_file(server: BrokerServer, fleet: Fleet, tmp_path: Path) -> None:
    """The flag is stronger than the environment, and that than the file."""
    right, wrong = server.endpoints.listen, "tcp://127.0.0.1:9"
    file = tmp_path / "edgeplan.toml"
    file.write_text(f'broker = "{right}"\ninsecure = true\ntimeout = {WITHIN}\n')

    def exit_code(*arguments: str, **environment: str) -> int:
        return CliRunner().invoke(cli, ["devices", "--config", str(file), *arguments], env=environment).exit_code

    assert exit_code() == 0
    assert exit_code(EDGEPLAN_BROKER=wrong, EDGEPLAN_TIMEOUT="0.2") == ExitCode.UNREACHABLE
    assert exit_code("--broker", right, EDGEPLAN_BROKER=wrong) == 0


def test_every_command_has_help_with_an_example() -> None:
    """--help of the program and of each command, and --version."""
    runner = CliRunner()
    names = cli.list_commands(click.Context(cli))
    assert set(names) == {"dead-letters", "demo", "devices", "logs", "search", "stats", "status"}
    for name in names:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert "Example" in result.output, name
    assert "protocol 1." in runner.invoke(cli, ["--version"]).output


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--session", "pi-attic", "expected a session id of 16 hex digits, got 'pi-attic'"),
        ("--session", "73d1cf9d", "expected a session id of 16 hex digits, got '73d1cf9d'"),
        ("--result", "pi-attic", "expected a prefix of up to 32 hex digits, got 'pi-attic'"),
        ("--device", "no name", "expected a device id of 1 to 64 letters"),
    ],
)
def test_what_no_event_names(server: BrokerServer, flag: str, value: str, expected: str) -> None:
    """It is refused, rather than waited for in vain."""
    result = run(server, "logs", "--seconds", "0", flag, value)
    assert result.exit_code == ExitCode.USAGE
    assert f"Invalid value for '{flag}': {expected}" in result.stderr


def test_the_demo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base install has neither torch nor the digits: that is a sentence, and no traceback."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr == (
        "Error: the demo needs torch and scikit-learn, not installed here; "
        "install what it needs with: pip install 'edgeplan[torch]' scikit-learn\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_following_ends_in_order(server: BrokerServer, fleet: Fleet, number: signal.Signals) -> None:
    """SIGTERM and ctrl-C end `logs --follow` with 0, after it has printed what happened."""
    arguments = ["-m", "coordinator", "logs", "--follow", "--level", "debug", "--json"]
    plan = double.send(fleet.device("pi-attic"))
    arguments += ["--broker", server.endpoints.listen, "--insecure"]
    with started(sys.executable, "-u", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        with meanwhile(lambda: plan("input").wait(WITHIN)):
            assert "event" in json.loads(following.stdout.readline())
        following.send_signal(number)
        _, errors = following.communicate(timeout=WITHIN)
    assert (following.returncode, errors.strip()) == (0, "")  # click ends the line of ^C
