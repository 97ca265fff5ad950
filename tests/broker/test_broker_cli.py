"""The program `edgeplan-broker`, as an operator runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from broker.protocol.framing import decode, encode
from broker.protocol.messages import PROTOCOL_VERSION, OpenSession, SessionOpened
from broker.server import BrokerServer
from tests.processes import started

WITHIN = 60.0
RUN = [sys.executable, "-m", "broker", "run"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program until it ends by itself."""
    command = [sys.executable, "-m", "broker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_run_and_end(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, how: signal.Signals) -> None:
    """It says when it can be connected to, keeps its blobs where it is told, and ends with 0 when it is asked to."""
    data = tmp_path / "data"
    settings = tmp_path / "broker.toml"
    settings.write_text('heartbeat-ms = 1500\nlog-format = "json"\n')
    arguments = ["--listen", "tcp://127.0.0.1:*", "--data", str(data), "--config", str(settings), "--insecure"]
    environment = os.environ | {"EDGEPLAN_MAX_MESSAGE": "70000"}
    with started(*RUN, *arguments, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        event = json.loads(process.stderr.readline())
        assert event["event"] == "broker_listening"
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, int(WITHIN * 1000))
        dealer.connect(event["listen"])
        dealer.send(encode(OpenSession(version=PROTOCOL_VERSION, incarnation=b"12345678")))
        opened = decode(dealer.recv())
        dealer.close()
        assert isinstance(opened, SessionOpened)
        assert (opened.heartbeat_ms, opened.max_message) == (1500, 70_000)
        assert (opened.logs, opened.blobs) == (event["logs"], event["blobs"])
        assert (data / "blobs").is_dir()
        process.send_signal(how)
        assert process.wait(WITHIN) == 0
        assert json.loads(process.stderr.read().splitlines()[-1])["event"] == "broker_stopped"


@pytest.mark.parametrize("arguments", [(), ("run",), ("renew",)])
def test_help_shows_an_example(arguments: tuple[str, ...]) -> None:
    """For the program and for each command, as one can type it."""
    text = " ".join(run(*arguments, "-h").stdout.split())
    assert "Example: edgeplan-broker " in text
    assert "\\" not in text


def test_a_shell_can_complete_its_commands() -> None:
    """As with any program of click's; see https://click.palletsprojects.com/en/stable/shell-completion/."""
    asked = {"_EDGEPLAN_BROKER_COMPLETE": "bash_complete", "COMP_WORDS": "edgeplan-broker ru", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "broker"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,run\n", "")


def test_it_warns_once_of_missing_encryption() -> None:
    """It listens on three addresses, which are one matter."""
    finished = run("run", "--listen", "tcp://127.0.0.1:*", "--data", "/dev/null/x")
    assert finished.stderr.count("encryption_missing") == 1


def test_help() -> None:
    """The help has an example, and every setting with its environment variable."""
    finished = run("run", "--help")
    assert finished.returncode == 0
    assert "edgeplan-broker run --listen tcp://127.0.0.1:5750" in finished.stdout
    for name in ("LISTEN", "LOGS", "BLOBS", "DATA", "MAX_MESSAGE", "HEARTBEAT_MS", "BUSY_POLL", "INSECURE"):
        assert f"EDGEPLAN_{name}" in finished.stdout.replace("\n", "").replace(" ", "")


def test_address_in_use(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """An address that is taken is an error with a number of its own, in one sentence."""
    with BrokerServer("tcp://127.0.0.1:*", context=context) as server:
        endpoint = server.endpoints.listen
        finished = run("run", "--listen", endpoint, "--logs", "tcp://127.0.0.1:*", "--blobs", "tcp://127.0.0.1:*")
    assert finished.returncode == 7
    assert finished.stderr.splitlines()[-1] == f"Error: cannot listen on {endpoint}: Address already in use"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--listen", "tcp://0.0.0.0:5750"), 2, "needs encryption"),
        (("--listen", "tcp://127.0.0.1:*", "--blobs", "tcp://10.0.0.1:7", "--insecure"), 2, "loopback"),
        (("--listen", "somewhere"), 2, "expected an endpoint"),
        (("--listen", "tcp://127.0.0.1:99999"), 2, "expected an endpoint"),
        (("--listen", "tcp://127.0.0.1:65535"), 2, "got 'tcp://127.0.0.1:65536'"),
        (("--listen", "tcp://127.0.0.1:*", "--data", "/dev/null/x"), 8, "cannot be opened"),
        (("--max-message", str(1 << 63)), 2, "is not in the range"),
        (("--heartbeat-ms", str(1 << 64)), 2, "is not in the range"),
    ],
)
def test_settings_that_are_refused(arguments: tuple[str, ...], code: int, words: str) -> None:
    """What can't be used safely, or at all, is refused before anything listens."""
    finished = run("run", *arguments)
    assert finished.returncode == code
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
