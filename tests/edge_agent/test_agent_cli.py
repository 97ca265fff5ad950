"""``edgeplan-agent`` as a user types it: run, put, list, delete; what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from safetensors.torch import save_file

from broker.protocol import messages as m
from broker.settings import ExitCode
from edge_agent import Store
from tests.edge_agent import small_plans
from tests.edge_agent.device import result_id
from tests.edge_agent.router_peer import RouterPeer
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
MOST_RESIDENT_KIB = 45_000_000 // 1024


class Running:
    """An agent as a process, with its log."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "edge_agent", "run", *map(str, arguments), "--log-format", "json"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment())

    def log(self, event: str) -> dict[str, Any]:
        """Wait for an event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            record: dict[str, Any] = json.loads(line)
            if record["event"] == event:
                return record
        raise AssertionError(f"the agent ended without {event}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it, and wait for its end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Be sure that it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def status(self, name: str) -> int:
        """A number of /proc/PID/status, in KiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def environment() -> dict[str, str]:
    """Without settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGEPLAN_")}


@pytest.fixture
def broker(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[RouterPeer]:
    """A broker by hand."""
    made = RouterPeer(context, small_plans.double_abs().parts)
    yield made
    made.close()


@pytest.fixture
def agent(broker: RouterPeer, tmp_path: Path) -> Iterator[Running]:
    """A running agent."""
    made = Running("--broker", broker.endpoint, "--id", "device_1", "--store", tmp_path / "store", "--insecure")
    yield made
    made.close()


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, "-m", "edge_agent", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False, env=environment()
    )


def test_an_agent_runs_and_ends_with_its_worker(agent: Running, broker: RouterPeer) -> None:
    """Registered, invoked, small and clean all the while; SIGTERM ends it and its worker: 0."""
    broker.wait_for(m.Register)
    assert agent.log("agent_registered")["device"] == "device_1"
    plan = small_plans.double_abs()
    broker.deliver(m.Invoke(id=result_id(1), plan=plan.id, args=[None]), small_frame())
    assert isinstance(broker.result(result_id(1))[0], m.ResultReady)
    watched = os.pidfd_open(agent.log("worker_started")["pid"])
    mapped = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "libtorch" not in mapped
    assert "numpy" not in mapped
    assert agent.status("VmRSS") < MOST_RESIDENT_KIB
    assert agent.end() == ExitCode.OK
    ended, _, _ = select.select([watched], [], [], PATIENCE)
    os.close(watched)
    assert ended
    broker.wait_for(m.Goodbye)


def small_frame() -> bytes:
    """A float32 vector."""
    from broker.protocol.tensors import encode_array

    return encode_array(np.array([-1, 2], dtype=np.float32))


def test_ctrl_c_ends_it_too(agent: Running, broker: RouterPeer) -> None:
    """Exit code 0, and goodbye to the broker."""
    broker.wait_for(m.Register)
    agent.log("agent_registered")
    assert agent.end(signal.SIGINT) == ExitCode.OK
    broker.wait_for(m.Goodbye)


def test_a_refused_agent_says_why(broker: RouterPeer, tmp_path: Path) -> None:
    """On stderr, with an exit code of its own."""
    broker.refuse = m.Refused(version=(9, 0), code=m.RefusalCode.VERSION, reason="this broker speaks 9.0")
    running = Running("--broker", broker.endpoint, "--id", "device_1", "--store", tmp_path, "--insecure")
    try:
        broker.wait_for(m.Register)
        _, said = running.process.communicate(timeout=PATIENCE)
        assert running.process.returncode == ExitCode.REFUSED
        assert "this broker speaks 9.0" in said
    finally:
        running.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--id", "a b"], ExitCode.USAGE, "expected a device id"),
        (["--id", "a", "--runtime", "tvm"], ExitCode.USAGE, "is not one of 'torch', 'onnx'"),
        (["--id", "a", "--label", "room"], ExitCode.USAGE, "expected KEY=VALUE"),
        (["--id", "a", "--label", "room=\udcff"], ExitCode.USAGE, r"expected KEY=VALUE, got 'room=\udcff'"),
        (["--id", "a", "--broker", "tcp://192.0.2.1:5750"], ExitCode.USAGE, "encryption"),
        (["--id", "a", "--broker", "somewhere"], ExitCode.USAGE, "expected an endpoint"),
        (["--id", "a", "--broker", "tcp://127.0.0.1:*"], ExitCode.USAGE, "expected an endpoint"),
        ([], ExitCode.USAGE, "--id"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, arguments: list[str], code: ExitCode, said: str) -> None:
    """Each with a sentence that says what was expected, before anything is started."""
    done = cli("run", "--store", tmp_path / "store", *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_a_store_in_use(agent: Running, broker: RouterPeer, tmp_path: Path) -> None:
    """A second agent on it is told so."""
    broker.wait_for(m.Register)
    agent.log("agent_registered")
    done = cli("run", "--broker", broker.endpoint, "--id", "b", "--store", tmp_path / "store", "--insecure")
    assert done.returncode == ExitCode.STORAGE
    assert "another agent runs on the store" in done.stderr


def test_an_owner_puts_a_tensor_while_the_agent_runs(agent: Running, broker: RouterPeer, tmp_path: Path) -> None:
    """The broker learns of it at once."""
    broker.wait_for(m.Register)
    broker.wait_for(m.Announce)
    np.save(tmp_path / "reading.npy", np.array([-1.0, 2.0], dtype=np.float32))
    done = cli(
        "put", tmp_path / "reading.npy", "--store", tmp_path / "store", "--tag", "input_data", "--description", "two"
    )
    assert done.returncode == ExitCode.OK, done.stderr
    announce, _ = broker.wait_for(m.Announce)
    assert isinstance(announce.event, m.TagsChanged)
    [entry] = announce.event.entries
    assert (entry.id.hex(), entry.tags, entry.description) == (done.stdout.strip(), ["input_data"], "two")
    assert agent.process.poll() is None


def test_put_list_and_delete(tmp_path: Path) -> None:
    """As text and as JSON; what is gone is not found."""
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    put = cli("put", tmp_path / "a.npy", "--store", tmp_path / "s", "--tag", "t", "--tag", "u", "--json")
    entry = json.loads(put.stdout)
    assert (entry["dtype"], entry["shape"], entry["tags"], entry["own"]) == ("int64", [2, 3], ["t", "u"], True)
    assert json.loads(cli("list", "--store", tmp_path / "s", "--json").stdout) == [entry]
    [line] = cli("list", "--store", tmp_path / "s").stdout.splitlines()
    assert line == f"{entry['id']}  own  int64[2, 3]  t,u"
    assert cli("delete", entry["id"], "--store", tmp_path / "s").returncode == ExitCode.OK
    again = cli("delete", entry["id"], "--store", tmp_path / "s")
    assert again.returncode == ExitCode.NOT_FOUND
    assert f"no tensor in this store has the id {entry['id']}" in again.stderr


def test_put_from_a_safetensors_file(tmp_path: Path) -> None:
    """bfloat16 too; of several tensors, one must be named."""
    one = torch.arange(3).to(torch.bfloat16)
    save_file({"x": one}, tmp_path / "one.safetensors")
    save_file({"x": one, "y": torch.zeros(2)}, tmp_path / "two.safetensors")
    put = cli("put", tmp_path / "one.safetensors", "--store", tmp_path / "s")
    with Store.open(tmp_path / "s") as store:
        assert store.entry(put.stdout.strip()).dtype == "bfloat16"
        assert torch.equal(torch.from_numpy(store.get(put.stdout.strip())).view(torch.bfloat16), one)
    unnamed = cli("put", tmp_path / "two.safetensors", "--store", tmp_path / "s")
    assert unnamed.returncode == ExitCode.FAILED
    assert "expected --name with one of the tensors in the file (x, y)" in unnamed.stderr
    named = cli("put", tmp_path / "two.safetensors", "--name", "y", "--store", tmp_path / "s")
    assert named.returncode == ExitCode.OK, named.stderr


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    """An object array in a .npy file is refused, unopened."""
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    np.save(tmp_path / "evil.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    done = cli("put", tmp_path / "evil.npy", "--store", tmp_path / "s")
    assert done.returncode == ExitCode.FAILED
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', "])
def test_a_file_that_is_no_npy(tmp_path: Path, content: bytes) -> None:
    """An empty file, another one, or one that was cut is not put, and nobody is told to load it by pickle."""
    (tmp_path / "a.npy").write_bytes(content)
    done = cli("put", tmp_path / "a.npy", "--store", tmp_path / "s")
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    assert done.stderr.startswith(f"Error: {tmp_path / 'a.npy'}: expected a .npy file with one array")
    assert "pickle" not in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["delete", "00" * 16], ["salvage", "--into", "new"]])
def test_a_store_that_is_not_there(tmp_path: Path, arguments: list[str]) -> None:
    """A mistyped folder is not made: only what adds to a store begins one."""
    done = cli(*arguments, "--store", tmp_path / "nowhere")
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stderr == f"Error: there is no store in {tmp_path / 'nowhere'}\n"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("arguments", [[], ["run"], ["put"], ["list"], ["delete"], ["salvage"]])
def test_help_shows_an_example(arguments: list[str]) -> None:
    """For the program and for each command."""
    done = cli(*arguments, "-h")
    assert done.stdout == cli(*arguments, "--help").stdout
    assert done.returncode == ExitCode.OK
    assert "Example: edgeplan-agent" in done.stdout


def test_version() -> None:
    """The package's and the protocol's."""
    assert "(protocol 1.1)" in cli("--version").stdout
