"""A real broker on a real disk: what it accepted survives a kill, a full disk is told, and what is synced when."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import zmq

from broker.protocol.framing import encode
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Announce,
    AskStatus,
    Busy,
    Deliver,
    DeviceList,
    Invoke,
    ListDevices,
    Notify,
    OpenBlobChannel,
    OpenSession,
    Put,
    Register,
    Registered,
    ResultReady,
    ResultStatus,
    SessionOpened,
    StatusReport,
    StorePlan,
    Submit,
    Taken,
)
from coordinator.local_processes import LocalProcess
from tests.broker.raw_peer import RawPeer
from tests.broker.served import MANIFEST, PLAN
from tests.waiting import wait_until

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

INCARNATION = b"session1"
RUN = ("broker", "run", "--listen", "tcp://127.0.0.1:*", "--insecure")
WITHIN = 60.0


def nth_id(n: int) -> bytes:
    """The id of the n-th command."""
    return INCARNATION + n.to_bytes(8, "big")


class Peers:
    """A session and a device of one broker."""

    def __init__(self, context: Context, endpoint: str) -> None:
        self.session = RawPeer(context, endpoint)
        self.device = RawPeer(context, endpoint)

    def introduce(self) -> None:
        """Both tell the broker who they are."""
        self.device.say(Register(version=PROTOCOL_VERSION, device="pi", store=b"store" * 3, boot=b"boot" * 4))
        self.device.hear(Registered)
        self.session.say(OpenSession(version=PROTOCOL_VERSION, incarnation=INCARNATION))
        self.accepted = self.session.hear(SessionOpened).accepted

    def store_plan(self) -> None:
        """The session's first command."""
        self.session.say(Submit(n=1, devices=[], command=StorePlan(plan=PLAN, parts=[], attached=[PLAN])), MANIFEST)
        assert self.session.hear(Accepted).n == 1

    def submit(self, n: int, frame: bytes = b"tensor") -> None:
        """A session's command."""
        self.session.say(Submit(n=n, devices=["pi"], command=Invoke(id=nth_id(n), plan=PLAN, args=[None])), frame)

    def finish(self, n: int) -> None:
        """The device ends the command that it gets next as the ``n``-th, the first of all being 1."""
        deliver = self.device.hear(Deliver)
        assert isinstance(deliver.command, Invoke)
        self.device.say(Taken(n=deliver.n))
        ended = ResultReady(id=deliver.command.id, digest=deliver.digest, inline=True)
        self.device.say(Announce(n=n, event=ended), b"value")

    def status(self, n: int) -> ResultStatus:
        """What the broker says of the n-th command."""
        self.session.say(AskStatus(r=n, ids=[nth_id(n)]))
        return self.session.hear(StatusReport).entries[0].status

    def close(self) -> None:
        """Both vanish."""
        self.session.close()
        self.device.close()


Meet = Callable[[str], Peers]


@pytest.fixture
def meet(context: Context) -> Iterator[Meet]:
    """Makes peers, which leave in the end."""
    with contextlib.ExitStack() as stack:

        def build(endpoint: str) -> Peers:
            peers = Peers(context, endpoint)
            stack.callback(peers.close)
            peers.introduce()
            return peers

        yield build


def test_what_was_accepted_is_there_after_a_kill(meet: Meet, tmp_path: Path) -> None:
    """SIGKILL right after `Accepted`: another broker over the same folder delivers the commands, and knows the ends."""
    arguments = (*RUN, "--data", str(tmp_path / "data"))
    with LocalProcess("first", *arguments) as broker:
        listening = broker.wait_for("broker_listening")
        peers = meet(listening["listen"])
        peers.store_plan()
        for n in range(2, 30):
            peers.submit(n)
            if n == 2:
                peers.finish(1)
                peers.session.hear(Notify)
        while peers.session.hear(Accepted).n < 29:
            pass
        os.kill(broker.pid, signal.SIGKILL)
    with LocalProcess("second", *arguments) as broker:
        again = broker.wait_for("broker_listening")
        assert (again["ledger"], again["epoch"]) == (listening["ledger"], listening["epoch"] + 1)
        peers = meet(again["listen"])
        assert peers.accepted == 29
        assert peers.status(2) is ResultStatus.DONE
        for n in range(3, 30):
            deliver = peers.device.hear(Deliver)
            assert isinstance(deliver.command, Invoke)
            assert (deliver.command.id, peers.device.frames) == (nth_id(n), [b"tensor"])
        assert broker.stop() == 0


def test_a_clean_end_leaves_one_file(meet: Meet, tmp_path: Path) -> None:
    """What waits is written, the log is merged, and nothing else is left but the witness and the blobs."""
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        peers = meet(broker.wait_for("broker_listening")["listen"])
        peers.store_plan()
        peers.submit(2)
        peers.device.hear(Deliver)
        assert broker.stop() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "ledger.sqlite", "ledger.sqlite-witness"]
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        peers = meet(broker.wait_for("broker_listening")["listen"])
        assert peers.accepted == 2


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a broker that does not start."""
    command = [sys.executable, "-m", *RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)


def test_a_damaged_ledger_is_not_served(tmp_path: Path) -> None:
    """A broker names what is wrong, ends with a code of its own, and leaves the files as they are."""
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        broker.wait_for("broker_listening")
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[:-4096])
    before = path.read_bytes()
    finished = refused("--data", str(tmp_path))
    assert finished.returncode == 9
    assert f"Error: the ledger {path} is damaged: " in finished.stderr
    assert "Traceback" not in finished.stderr
    assert path.read_bytes() == before


def test_a_backup_is_renewed(tmp_path: Path) -> None:
    """The command gives a ledger a new id, with which a broker then starts; a folder without one is an error."""
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        before = broker.wait_for("broker_listening")
    renew = [sys.executable, "-m", "broker", "renew", "--data", str(tmp_path)]
    finished = subprocess.run(renew, capture_output=True, text=True, timeout=WITHIN, check=True)
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        after = broker.wait_for("broker_listening")
    assert after["ledger"] != before["ledger"]
    assert finished.stdout == f"the ledger {tmp_path}/ledger.sqlite has the id {after['ledger']} now\n"
    (tmp_path / "ledger.sqlite").rename(tmp_path / "elsewhere")
    missing = subprocess.run(renew, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert (missing.returncode, missing.stderr) == (5, f"Error: there is no ledger in {tmp_path}\n")


def test_a_folder_has_one_broker(tmp_path: Path) -> None:
    """The second one is told that the ledger is in use, and touches nothing."""
    with LocalProcess("broker", *RUN, "--data", str(tmp_path)) as broker:
        broker.wait_for("broker_listening")
        half = tmp_path / "blobs" / f"{bytes(32).hex()}.1.tmp"
        half.write_bytes(b"what the first one is about to store")
        finished = refused("--data", str(tmp_path))
        assert half.exists()
    assert finished.returncode == 8
    assert finished.stderr.splitlines()[-1] == f"Error: the ledger {tmp_path}/ledger.sqlite is in use by another broker"


def test_without_a_folder_it_says_so() -> None:
    """A broker in memory warns, once, that nothing will survive it."""
    with LocalProcess("broker", *RUN) as broker:
        assert broker.wait_for("ledger_in_memory")["level"] == "warning"


# ------------------------------------------------------------------------------------------------ a full disk


class SmallDisk(LocalProcess):
    """A broker whose folder is a file system of a few megabytes, in a mount namespace of its own."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir()
        self._inner = folder
        mount = f'mount -t tmpfs -o size={megabytes}m none {folder} && exec "$@"'
        self._command = ["unshare", "--mount", "sh", "-ec", mount, "sh"]
        super().__init__("broker", *RUN, "--data", str(folder), before=self._command)

    @property
    def folder(self) -> Path:
        """The folder as it can be seen from here."""
        return Path(f"/proc/{self.pid}/root{self._inner}")

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                file.write(b"x" * 4096)


def test_a_full_disk(meet: Meet, tmp_path: Path) -> None:
    """New commands are refused with the reason, what was accepted stays, and with room again all goes on by itself."""
    assert shutil.which("unshare"), "this test needs unshare, of util-linux"
    with SmallDisk(tmp_path / "small", megabytes=4) as broker:
        peers = meet(broker.wait_for("broker_listening")["listen"])
        peers.store_plan()
        peers.submit(2)
        assert peers.session.hear(Accepted).n == 2
        broker.fill()
        peers.submit(3, bytes(20_000))
        full = broker.wait_for("ledger_full")
        assert full["level"] == "error"
        assert "full" in full["reason"]
        peers.submit(4)
        busy = peers.session.hear(Busy)
        assert busy.n == 4
        assert busy.reason == f"the broker's ledger cannot be written: {full['reason']}"
        # It goes on: what it had accepted is with its device, and ends.
        peers.finish(1)
        peers.session.say(ListDevices(r=9))
        assert peers.session.hear(DeviceList).r == 9
        (broker.folder / "filler").unlink()
        broker.wait_for("ledger_recovered")
        assert peers.session.hear(Accepted).n == 3
        peers.submit(4)
        assert peers.session.hear(Accepted).n == 4
        assert [peers.status(n) for n in (2, 3)] == [ResultStatus.DONE, ResultStatus.QUEUED]
        assert broker.stop() == 0


# ------------------------------------------------------------------------------------------------ what is synced when


class Traced:
    """The system calls of a broker, in the order in which they were done, one a line: `fsync /path` and the like."""

    def __init__(self, path: Path) -> None:
        self.calls: list[tuple[str, str, str]] = []
        """Name, path or socket, and the bytes in hex."""
        begun: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            thread, _, text = line.partition(" ")
            text = text.strip()
            if text.endswith("<unfinished ...>"):
                begun[thread] = text.removesuffix("<unfinished ...>")
                continue
            resumed = re.match(r"<\.\.\. \w+ resumed>", text)
            if resumed:
                text = begun.pop(thread) + text[resumed.end() :]
            called = re.match(r"(\w+)\((?:AT_FDCWD<[^>]*>, )?(?:\d+<([^>]*)>)?(.*)\)\s+= (-?\d+)", text)
            if called and not called[4].startswith("-"):
                where, data = ("".join(re.findall(r"\\x([0-9a-f]{2})", part or "")) for part in called.group(2, 3))
                self.calls.append((called[1], bytes.fromhex(where).decode("ascii", "replace"), data))

    def find(self, names: Sequence[str], what: str, after: int = -1) -> int:
        """Where the first of these calls is, past ``after``, whose path or bytes contain ``what``."""
        for k in range(after + 1, len(self.calls)):
            name, path, data = self.calls[k]
            if name in names and (what in path or what in data):
                return k
        candidates = [(name, path, data[:200]) for name, path, data in self.calls if name in names]
        raise AssertionError(f"no {names} with {what!r} after call {after}, but {candidates}")


RECEIVE = ("recvfrom", "recvmsg")
SEND = ("sendto", "sendmsg")
SYNC = ("fsync", "fdatasync")


def test_what_is_accepted_is_synced_before(meet: Meet, context: Context, tmp_path: Path) -> None:
    """Between a command's bytes and those of its `Accepted` the disk syncs: its blob, the blob's name, the ledger."""
    from edge_agent.blobs import BlobClient, BlobOffered

    assert shutil.which("strace"), "this test needs strace"
    data, trace = tmp_path / "data", tmp_path / "trace"
    calls = ",".join((*RECEIVE, *SEND, *SYNC, "rename"))
    before = [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-xx",
        "-s",
        "100000",
        "-o",
        str(trace),
        "-e",
        f"trace={calls}",
    ]
    content = os.urandom(200_000)
    offered = threading.Event()

    def on_event(event: object) -> None:
        if isinstance(event, BlobOffered):
            offered.set()

    digest = hashlib.sha256(content).digest()
    with LocalProcess("broker", *RUN, "--data", str(data), before=before) as broker:
        listening = broker.wait_for("broker_listening")
        peers = meet(listening["listen"])
        peers.store_plan()
        opening = OpenBlobChannel(version=PROTOCOL_VERSION, role="session", name=INCARNATION.hex())
        client = BlobClient(context, listening["blobs"], opening, on_event)
        try:
            client.offer(digest, content)
            assert offered.wait(WITHIN)
        finally:
            client.close()
        peers.session.say(Submit(n=2, devices=["pi"], command=Put(id=nth_id(2), blob=digest)))
        while peers.session.hear(Accepted).n < 2:
            pass
    wait_until(lambda: trace.read_bytes().endswith(b" +++\n"))  # the tracer ends after its broker
    traced = Traced(trace)
    log = str(data / "ledger.sqlite-wal")
    for n, blob, command in ((1, PLAN, MANIFEST.hex()), (2, digest, nth_id(2).hex())):
        accepted = traced.find(SEND, encode(Accepted(n=n)).hex())
        came = traced.find(RECEIVE, command)
        file = traced.find(SYNC, str(data / "blobs" / blob.hex()))
        named = traced.find(["rename"], str(data / "blobs" / blob.hex()).encode().hex(), file)
        folder = traced.find(SYNC, str(data / "blobs"), named)
        assert traced.calls[folder][1] == str(data / "blobs")
        synced = traced.find(SYNC, log, max(came, folder))
        assert file < named < folder < synced < accepted
        assert came < synced
