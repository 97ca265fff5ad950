"""Hosts in network namespaces: a broker's, and others that reach it over links that lose, break and narrow.

Every host has only its loopback interface and one end of a link (a veth pair) to the broker's host, on addresses that
no other namespace sees. A broker without keys listens on loopback alone: so each host has a relay (see
`tests.network.relay`) from its own loopback to the link, and the broker's host one from the link to the broker.

Needs root, and the programs ``ip``, ``tc`` (Debian's iproute2) and ``nft`` (nftables): without them tests fail.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.processes import Program

__all__ = ["PORTS", "Host", "Network", "network"]

ROOT = Path(__file__).resolve().parents[2]
PORTS = (5750, 5751, 5752)
"""Of the broker: commands, logs, blobs."""
READY_WITHIN = 60.0
_numbers = itertools.count()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


class Host:
    """A namespace. ``link``: its end of the link to the broker's host, empty for that one."""

    def __init__(self, name: str, link: str = "", far: Host | None = None, far_link: str = "") -> None:
        self.name = name
        self.link = link
        self.far = far
        self.far_link = far_link

    @property
    def inside(self) -> tuple[str, ...]:
        """What to put before a command that is to run here."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str) -> None:
        """Run a command to its end. Raises RuntimeError when it fails."""
        _run(*self.inside, *command)

    # ------------------------------------------------------------------------------------------- what links do

    def cut(self) -> None:
        """Unplug the cable."""
        self.run("ip", "link", "set", self.link, "down")

    def mend(self) -> None:
        """Plug it in."""
        self.run("ip", "link", "set", self.link, "up")

    def lose(self, percent: int) -> None:
        """Of what arrives over the link, at both ends, lose so much at random; 100: everything."""
        assert self.far is not None
        self.deafen(percent)
        _drop(self.far, self.far_link, percent)

    def deafen(self, percent: int = 100) -> None:
        """Of what the broker's host sends here, lose so much: a partition in one direction."""
        _drop(self, self.link, percent)

    def mute(self, percent: int = 100) -> None:
        """Of what this host sends, lose so much: a partition in the other direction."""
        assert self.far is not None
        _drop(self.far, self.far_link, percent)

    def hear(self) -> None:
        """Lose nothing any more, in neither direction."""
        assert self.far is not None
        for host, link in ((self, self.link), (self.far, self.far_link)):
            host.run("nft", "flush", "chain", "inet", "links", f"in_{link}")

    def narrow(self, rate: str) -> None:
        """Let no more through, in either direction: ``2mbit``."""
        assert self.far is not None
        for host, link in ((self, self.link), (self.far, self.far_link)):
            host.run(
                "tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "32kb", "latency", "100ms"
            )

    def widen(self) -> None:
        """Let everything through again."""
        assert self.far is not None
        for host, link in ((self, self.link), (self.far, self.far_link)):
            host.run("tc", "qdisc", "del", "dev", link, "root")


def _drop(host: Host, link: str, percent: int) -> None:
    some = () if percent >= 100 else ("numgen", "random", "mod", "100", "<", str(percent))
    host.run("nft", "add", "rule", "inet", "links", f"in_{link}", *some, "drop")


def _filter(host: Host, link: str) -> None:
    """A chain for what arrives over a link."""
    host.run("nft", "add", "table", "inet", "links")
    chain = f"in_{link}"
    hook = "{ type filter hook input priority 0 ; policy accept ; }"
    host.run("nft", "add", "chain", "inet", "links", f"base_{link}", hook)
    host.run("nft", "add", "chain", "inet", "links", chain)
    host.run("nft", "add", "rule", "inet", "links", f"base_{link}", "iifname", link, "jump", chain)


class Network:
    """The broker's host, and others, made as they are asked for."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._prefix = f"ep{os.getpid() % 100_000}x{next(_numbers)}"
        self._links = 0
        self.broker_host = self._namespace("b")

    def _namespace(self, name: str) -> Host:
        full = f"{self._prefix}{name}"
        _run("ip", "netns", "add", full)
        self._stack.callback(_run, "ip", "netns", "del", full)
        _run("ip", "-n", full, "link", "set", "lo", "up")
        return Host(full)

    def broker(self, data: Path, *arguments: str) -> Program:
        """A broker on its host's loopback, with its ledger in ``data``."""
        listen = ("--listen", f"tcp://127.0.0.1:{PORTS[0]}", "--logs", f"tcp://127.0.0.1:{PORTS[1]}")
        program = Program(
            "broker",
            "broker",
            "run",
            *listen,
            "--data",
            str(data),
            "--insecure",
            *arguments,
            before=self.broker_host.inside,
        )
        self._stack.enter_context(program)
        program.wait_for("broker_listening", READY_WITHIN)
        return program

    def host(self, name: str, *, delay_ms: float = 0.0, cut_blobs_every: int | None = None) -> Host:
        """A host with a link to the broker's, which takes ``delay_ms`` each way; ``cut_blobs_every``: after how many
        bytes towards it each connection for blobs is cut.
        """
        k = self._links
        self._links += 1
        made = self._namespace(name)
        near, far = f"l{k}", f"b{k}"
        host = Host(made.name, near, self.broker_host, far)
        both = ("type", "veth", "peer", "name", far, "netns", self.broker_host.name)
        _run("ip", "link", "add", near, "netns", host.name, *both)
        for one, link, address in ((host, near, f"10.99.{k}.2"), (self.broker_host, far, f"10.99.{k}.1")):
            _run("ip", "-n", one.name, "address", "add", f"{address}/30", "dev", link)
            _run("ip", "-n", one.name, "link", "set", link, "up")
            _filter(one, link)
        for port in PORTS:
            cut = ("--cut-every", str(cut_blobs_every)) if cut_blobs_every and port == PORTS[2] else ()
            self._relay(self.broker_host, f"10.99.{k}.1:{port}", f"127.0.0.1:{port}")
            self._relay(host, f"127.0.0.1:{port}", f"10.99.{k}.1:{port}", "--delay-ms", str(delay_ms), *cut)
        return host

    def _relay(self, host: Host, *arguments: str) -> None:
        command = [*host.inside, sys.executable, "-m", "tests.network.relay", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self._stack.callback(_end, process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the relay did not start: {' '.join(command)}")

    def agent(self, host: Host, device: str, store: Path, *arguments: str) -> Program:
        """An agent on a host, registered."""
        where = ("--broker", f"tcp://127.0.0.1:{PORTS[0]}", "--id", device, "--store", str(store))
        program = Program(device, "edge_agent", "run", *where, "--insecure", *arguments, before=host.inside)
        self._stack.enter_context(program)
        program.wait_for("agent_registered", READY_WITHIN)
        return program

    def coordinator(self, host: Host, *arguments: str) -> subprocess.Popen[str]:
        """A process of `tests.network.load` on a host; it reads and writes lines."""
        command = [*host.inside, sys.executable, "-m", "tests.network.load", *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
        )
        self._stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network; all that runs on it and all its namespaces are gone afterwards."""
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            raise RuntimeError(f"these tests need the program {program}: apt-get install {package}")
    if os.geteuid() != 0:
        raise RuntimeError("these tests make network namespaces: run them as root")
    with contextlib.ExitStack() as stack:
        yield Network(stack)
