"""What a session does when its broker goes away, comes back empty, or is replaced: over TCP, with a broker that is
stopped and started.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import zmq
from torch import nn

from broker.config import BrokerConfig
from broker.protocol import messages as m
from broker.protocol.bundles import unpack
from broker.protocol.errors import ProtocolError
from broker.protocol.framing import decode, encode
from broker.server import BrokerServer
from broker.sockets import send
from coordinator import Plan, VirtualWorker, connect, func2plan
from coordinator.core import SessionConfig
from coordinator.core_events import SubmitCommand
from coordinator.core_tables import Link
from coordinator.driver import MESSAGES_A_ROUND, SessionDriver
from coordinator.fleet import Fleet
from tests.chaos.actors import free_ports
from tests.processes import start_agent, start_broker
from tests.waiting import wait_until

WITHIN = 60.0


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@func2plan(args_shape=[(400, 400)])
def slow(x: torch.Tensor) -> torch.Tensor:
    """A plan that takes a while."""
    for _ in range(20):
        x = torch.tanh(x @ x)
    return x


class Wide(Plan):
    """A plan with a tensor too large for a message."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(300, 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One layer."""
        out: torch.Tensor = self.layer(x)
        return out


class Restarting:
    """A broker on a fixed port that forgets everything when it is started again."""

    def __init__(self) -> None:
        # While it is away nobody else's connection may take its port.
        self.server = BrokerServer(*(f"tcp://127.0.0.1:{port}" for port in free_ports(3)))
        self.server.start()
        assert self.server.wait_until_listening(WITHIN)
        self.endpoints = self.server.endpoints

    def stop(self) -> None:
        """Gone, with its ledger."""
        self.server.stop()

    def start(self, *, first: VirtualWorker | None = None) -> None:
        """A new one in its place. Sessions are told that it is full until the device ``first`` is back.

        A command for a device that a new ledger has not met yet would fail.
        """
        config = BrokerConfig(sessions=0 if first else 100)
        self.server = BrokerServer(self.endpoints.listen, self.endpoints.logs, self.endpoints.blobs, config=config)
        self.server.start()
        if first:
            wait_until(lambda: first.registered)
            object.__setattr__(config, "sessions", 100)  # frozen for all but this test


@pytest.fixture
def restarting() -> Iterator[Restarting]:
    """A broker that can be stopped and started."""
    made = Restarting()
    yield made
    made.stop()


def reach(driver: SessionDriver, link: Link) -> None:
    """Wait until the session's link is in that state."""
    wait_until(lambda: driver.core.link is link)


def test_a_broker_that_comes_back_empty(restarting: Restarting, gate: threading.Event) -> None:
    """What was sent before, while and after it was away ends with its value; plans and large tensors are uploaded
    again.
    """
    gate.set()
    with connect(restarting.endpoints.listen, insecure=True) as fleet:
        device = VirtualWorker(fleet, "d1")
        run = double.send(device)
        wide = Wide()
        wide.build(torch.ones(1, 300))
        run_wide = wide.send(device)
        assert torch.equal(run(torch.ones(2)).get(WITHIN), torch.full((2,), 2.0))
        long = slow.send(device)
        gate.clear()
        before = [long(torch.eye(400))]
        for _ in range(5):
            before.append(long(before[-1]))
        wait_until(lambda: fleet.driver.core.unaccepted == 0)
        restarting.stop()
        reach(fleet.driver, Link.DOWN)
        assert not before[-1].ready
        gate.set()
        while_away = run(torch.ones(3))
        large_while_away = run(torch.ones(100_000))
        wide_while_away = run_wide(torch.ones(1, 300))
        restarting.start(first=device)
        values = fleet.get([before[-1], while_away, large_while_away, wide_while_away], timeout=WITHIN)
        assert values[0].shape == (400, 400)
        assert torch.equal(values[1], torch.full((3,), 2.0))
        assert torch.equal(values[2], torch.full((100_000,), 2.0))
        assert torch.allclose(values[3], wide(torch.ones(1, 300)).detach(), atol=1e-5)
        assert torch.equal(run(torch.ones(2)).get(WITHIN), torch.full((2,), 2.0))


def test_questions_wait_for_the_broker_to_come_back(restarting: Restarting) -> None:
    """A search that is asked while the broker is away is answered when it is there again."""
    with connect(restarting.endpoints.listen, insecure=True) as fleet:
        restarting.stop()
        reach(fleet.driver, Link.DOWN)
        restarting.start()
        assert fleet.search("anything") == {}


def test_what_the_old_connection_brought_is_taken_in_before_the_next_one() -> None:
    """However much of it waits: the introduction to the broker that comes next names all that has come."""
    count = 4 * MESSAGES_A_ROUND
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.SNDHWM, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    driver = SessionDriver(f"tcp://127.0.0.1:{port}", config=SessionConfig(), context=context)
    try:
        welcome = m.SessionOpened(
            version=m.PROTOCOL_VERSION, ledger=b"ledger-1", accepted=0, heartbeat_ms=5000, max_message=1 << 20
        )
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, encode(welcome)])
        reach(driver, Link.OPEN)
        with driver.lock:  # the thread takes in nothing meanwhile
            event = m.Cancelled(id=bytes(16), digest=bytes(16))
            for n in range(1, count + 1):
                router.send_multipart([peer, encode(m.Notify(n=n, device="d1", event=event))])
            router.close(linger=int(WITHIN * 1000))
            router = next_broker(context, port)
        while not isinstance(hello := decode(router.recv_multipart()[1]), m.OpenSession):
            pass
        assert hello.seen == count
    finally:
        driver.close(0.0)
        router.close(linger=0)
        context.term()


@pytest.mark.parametrize("version", [(1, 0), (1, 1)])
def test_what_is_called_while_the_broker_has_yet_to_accept_goes_in_one(version: tuple[int, int]) -> None:
    """In its order, and at once where nothing is under way; to a broker that does not read bundles, each alone."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, int(WITHIN * 1000))
    port = router.bind_to_random_port("tcp://127.0.0.1")
    driver = SessionDriver(f"tcp://127.0.0.1:{port}", config=SessionConfig(), context=context)
    try:
        welcome = m.SessionOpened(
            version=version, ledger=b"ledger-1", accepted=0, heartbeat_ms=60_000, max_message=1 << 20
        )
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, encode(welcome)])
        reach(driver, Link.OPEN)
        with driver.lock:  # the thread sends nothing meanwhile
            for _ in range(5):
                put = m.Put(id=driver.core.take_ids(1))
                driver.submit(SubmitCommand(devices=("d1",), command=put, frames=(b"value",)))
                driver.flush()
        came: list[list[int]] = []
        while sum(map(len, came)) < 5:
            _, *frames = router.recv_multipart()
            came.append([message.n for message, _, _ in unpack(frames) if isinstance(message, m.Submit)])
        assert [n for ns in came for n in ns] == [1, 2, 3, 4, 5]
        most = max(map(len, came))
        assert most >= 4 if version == (1, 1) else most == 1
    finally:
        driver.close(0.0)
        router.close(linger=0)
        context.term()


@pytest.mark.parametrize("who_hangs_up", ["the broker", "the session"])
def test_a_broker_that_has_not_answered_gets_no_bundles(who_hangs_up: str) -> None:
    """What was left over when a connection ended, to a broker that read them, goes each alone on the next one."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    driver = SessionDriver(f"tcp://127.0.0.1:{port}", config=SessionConfig(), context=context)
    peer = b""

    def answer(version: tuple[int, int]) -> None:
        opened = m.SessionOpened(
            version=version, ledger=b"ledger-1", accepted=0, heartbeat_ms=60_000, max_message=1 << 20
        )
        router.send_multipart([peer, encode(opened)])

    def submit(count: int) -> None:
        for _ in range(count):
            put = m.Put(id=driver.core.take_ids(1))
            driver.submit(SubmitCommand(devices=("d1",), command=put, frames=(b"value",)))
            driver.flush()

    def hear() -> m.Message:
        nonlocal peer
        assert router.poll(int(WITHIN * 1000))
        peer, *frames = router.recv_multipart()
        heard = [message for message, _, _ in unpack(frames)]
        assert len(heard) == 1
        assert not isinstance(heard[0], ProtocolError)
        return heard[0]

    try:
        assert isinstance(hear(), m.OpenSession)
        answer((1, 1))
        assert isinstance(hear(), m.Seen)
        with contextlib.ExitStack() as held:
            with driver._io:
                held.enter_context(driver.lock)  # the thread neither sends nor looks at the connection meanwhile
                submit(1)
                if who_hangs_up == "the broker":
                    router.close(linger=0)
                    router = next_broker(context, port)
                else:
                    driver._reopen = True
            if who_hangs_up == "the session":
                wait_until(lambda: not driver._outgoing)  # of what is left over this is dropped
            submit(4)
        left_over: list[m.Message] = []
        while not isinstance(message := hear(), m.OpenSession):
            left_over.append(message)
        assert len(left_over) == (5 if who_hangs_up == "the broker" else 4)
        answer((1, 0))
        for n in range(1, 6):
            again = hear()
            assert isinstance(again, m.Submit)
            assert again.n == n
    finally:
        driver.close(0.0)
        router.close(linger=0)
        context.term()


def next_broker(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    """A ROUTER in the place of one that was closed, once somebody has connected to it."""
    router = context.socket(zmq.ROUTER)
    monitor = router.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    came = 0
    try:
        wait_until(lambda: bound(router, port))
        came = monitor.poll(int(WITHIN * 1000))
    finally:
        router.disable_monitor()
        monitor.close(linger=0)
        if not came:
            router.close(linger=0)
    assert came
    return router


def bound(router: zmq.Socket[bytes], port: int) -> bool:
    """Whether the port is ours now: another socket that had it may not have let go of it yet."""
    try:
        router.bind(f"tcp://127.0.0.1:{port}")
    except zmq.ZMQError:
        return False
    return True


def test_an_interrupted_call_does_not_spoil_the_connection(
    restarting: Restarting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two frames of a message: the connection is made anew, and that command and later ones are done."""
    with connect(restarting.endpoints.listen, insecure=True) as fleet:
        device = VirtualWorker(fleet, "d1")
        run = double.send(device)
        assert run(torch.ones(1)).wait(WITHIN)
        left = [1]

        def interrupted(socket: zmq.Socket[bytes], first: bytes, rest: Sequence[bytes] = ()) -> None:
            if left and threading.current_thread() is threading.main_thread():
                left.pop()
                socket.send(first, zmq.SNDMORE)
                raise KeyboardInterrupt
            send(socket, first, rest)

        monkeypatch.setattr("coordinator.session_socket.send", interrupted)

        def call_until_interrupted() -> None:
            while left:  # another thread may be at the socket: then that one sends
                run(torch.tensor([1.0]))

        with pytest.raises(KeyboardInterrupt):
            call_until_interrupted()
        assert torch.equal(run(torch.tensor([2.0])).get(WITHIN), torch.tensor([4.0]))
        wait_until(lambda: fleet.driver.core.pending == 0)


def test_an_agent_process_that_is_killed(tmp_path: Path) -> None:
    """Commands for a killed agent wait for it, and end when it has been started again; its tensors are still there."""
    with start_broker() as broker, connect(broker.endpoint, insecure=True) as fleet:
        agent = start_agent("d1", tmp_path / "d1", broker)
        device = fleet.device("d1")
        kept = device.send(torch.arange(100_000), tags=["kept"])
        assert kept.wait(WITHIN)
        run = double.send(device)
        assert run(torch.ones(1)).wait(WITHIN)
        agent.kill()
        waiting = run(torch.tensor([21.0]))
        with start_agent("d1", tmp_path / "d1", broker):
            assert torch.equal(waiting.get(WITHIN), torch.tensor([42.0]))
            assert torch.equal(device.search("kept")[0].get(WITHIN), torch.arange(100_000))


def test_a_hundred_megabytes(tmp_path: Path) -> None:
    """A large tensor goes to a device process and comes back equal, while small commands pass it by."""
    with (
        start_broker() as broker,
        start_agent("d1", tmp_path / "d1", broker),
        connect(broker.endpoint, insecure=True) as fleet,
    ):
        device = fleet.device("d1")
        run = double.send(device)
        assert run(torch.ones(1)).wait(WITHIN)
        tensor = torch.arange(25_000_000, dtype=torch.float32)
        large = device.send(tensor)
        assert torch.equal(run(torch.ones(2)).get(WITHIN), torch.full((2,), 2.0))
        assert not large.ready
        assert torch.equal(large.get(WITHIN), tensor)


def test_a_fleet_is_usable_from_many_threads(restarting: Restarting) -> None:
    """Questions, sends and values from several threads at once."""

    def work(fleet: Fleet, k: int, done: list[int]) -> None:
        device = fleet.device("d1")
        for n in range(20):
            value = float(100 * k + n)
            assert device.send(torch.tensor([value])).get(WITHIN).item() == value
            assert [each.id for each in fleet.devices()] == ["d1"]
        done.append(k)

    with connect(restarting.endpoints.listen, insecure=True) as fleet:
        VirtualWorker(fleet, "d1")
        done: list[int] = []
        threads = [threading.Thread(target=work, args=(fleet, k, done)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WITHIN)
        assert sorted(done) == [0, 1, 2, 3]
