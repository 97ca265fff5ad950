"""The agent's driver over real sockets, real processes and a real store, against a broker written by hand."""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from broker.protocol import messages as m
from broker.protocol.errors import ConnectionRefused, VersionRefused
from broker.protocol.framing import command_digest, encode
from broker.protocol.tensors import decode_array, encode_array
from edge_agent import Store
from edge_agent.agent import Agent, AgentConfig
from edge_agent.core_commands import Command
from edge_agent.store_database import StoreInUse
from edge_agent.store_shelf import StoreShelf
from edge_agent.worker_hosts import ProcessWorker
from tests.edge_agent import small_plans
from tests.edge_agent.device import result_id
from tests.edge_agent.router_peer import RouterPeer
from tests.waiting import PATIENCE

PLAN = small_plans.double_abs()
LONG = small_plans.long()
CONFIG = AgentConfig(runtimes=("torch",), idle_seconds=60)


@pytest.fixture
def broker(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[RouterPeer]:
    """A broker that has the plans of these tests."""
    made = RouterPeer(context, PLAN.parts | LONG.parts)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with two readings, tagged."""
    with Store.open(tmp_path / "store") as made:
        made.put(np.array([-1, 2], dtype=np.float32), tags=["input_data"])
        yield made


@pytest.fixture(params=["process", "thread"])
def agent(request: pytest.FixtureRequest, broker: RouterPeer, store: Store) -> Iterator[Agent]:
    """A registered agent with either kind of worker."""
    yield from running(Agent(broker.endpoint, "device_1", store, worker=request.param, config=CONFIG), broker)


@pytest.fixture
def process_agent(broker: RouterPeer, store: Store) -> Iterator[Agent]:
    """A registered agent whose plans run in a process, ended after half a second without work."""
    config = AgentConfig(runtimes=("torch",), idle_seconds=0.5)
    yield from running(Agent(broker.endpoint, "device_1", store, config=config), broker)


def running(agent: Agent, broker: RouterPeer) -> Iterator[Agent]:
    """Start an agent, and end it whatever happens."""
    agent.start()
    try:
        broker.wait_for(m.Register)
        agent.wait_until_registered(PATIENCE)
        yield agent
    finally:
        agent.stop()


def invoke(plan: small_plans.HandMade, counter: int, *args: m.Argument, inline: bool = True) -> m.Invoke:
    """An invocation."""
    return m.Invoke(id=result_id(counter), plan=plan.id, args=list(args), inline=inline)


def tagged(broker: RouterPeer) -> list[m.TagEntry]:
    """What the device has just announced of its tags."""
    announce, _ = broker.wait_for(m.Announce)
    assert isinstance(announce.event, m.TagsChanged)
    return announce.event.entries


def test_the_main_job(agent: Agent, broker: RouterPeer) -> None:
    """Register, be found by tag, be invoked, answer with the value; a chain sent whole follows."""
    [entry] = tagged(broker)
    assert entry.tags == ["input_data"]
    broker.deliver(invoke(PLAN, 1, entry.id))
    for counter in range(2, 11):
        broker.deliver(invoke(PLAN, counter, result_id(counter - 1)))
    event, frames = broker.result(result_id(10))
    assert isinstance(event, m.ResultReady)
    assert event.inline
    assert decode_array(frames[0]).tolist() == [2.0**10, 2.0**11]
    taken, _ = broker.wait_for(m.Taken)
    while taken.n < 10:
        taken, _ = broker.wait_for(m.Taken)
    assert agent.registered


@pytest.mark.parametrize("version", [(1, 0), (1, 1)])
def test_what_is_said_at_one_moment_is_said_in_one(broker: RouterPeer, version: tuple[int, int]) -> None:
    """To a broker that reads bundles; what it sends so is taken one by one, and what is none of it is left out."""
    broker.version = version
    value = encode_array(np.array([1.5], dtype=np.float32))
    puts = [m.Put(id=result_id(counter)) for counter in range(1, 6)]
    with Store.temporary() as store:
        for _ in running(Agent(broker.endpoint, "device_1", store, config=CONFIG), broker):
            together = [
                [encode(m.Deliver(n=n, digest=command_digest(put, [value]), command=put)), value]
                for n, put in enumerate(puts, 1)
            ]
            broker.send(m.Bundle(messages=[*together[:2], [b"\xff"], *together[2:]]))
            for put in puts:
                event, _ = broker.result(put.id)
                assert isinstance(event, m.ResultReady)
    results = [[kind for kind in came if kind is m.Announce] for came in broker.came]
    assert max(map(len, broker.came)) == (1 if version == (1, 0) else max(map(len, results)))
    assert sum(map(len, results)) >= 5
    if version == (1, 1):
        assert max(map(len, results)) == 5


def test_small_values_are_put_and_fetched(agent: Agent, broker: RouterPeer, store: Store) -> None:
    """Announced when on the disk, fetched in one message, released for good."""
    value = encode_array(np.array([1.5, -2.5], dtype=np.float32))
    broker.deliver(m.Put(id=result_id(1), tags=["sent"]), value)
    event, _ = broker.result(result_id(1))
    assert isinstance(event, m.ResultReady)
    assert [entry.tags for entry in store.search("sent")] == [("sent",)]
    broker.send(m.Fetch(r=5, ids=[result_id(1)]))
    values, frames = broker.wait_for(m.Values)
    assert (values.r, frames) == (5, [value])
    broker.deliver(m.Release(ids=[result_id(1)]))
    broker.send(m.Fetch(r=6, ids=[result_id(1)]))
    values, _ = broker.wait_for(m.Values)
    assert values.outcomes[0].failure is not None
    assert values.outcomes[0].failure.code == "ResultReleased"
    assert agent.registered


def test_what_another_program_puts_is_announced_at_once(agent: Agent, broker: RouterPeer, store: Store) -> None:
    """And used by tag."""
    tagged(broker)
    store.put(np.array([3], dtype=np.float32), tags=["new"])
    assert [entry.tags for entry in tagged(broker)] == [["new"]]
    broker.deliver(invoke(PLAN, 1, ["new"]))
    _, frames = broker.result(result_id(1))
    assert decode_array(frames[0]).tolist() == [6]
    assert agent.registered


def test_large_results_are_files(agent: Agent, broker: RouterPeer, store: Store) -> None:
    """Announced without their value once they are on the disk, and an argument like any other."""
    big = store.put(np.ones(100_000, dtype=np.float32))
    broker.deliver(invoke(PLAN, 1, bytes.fromhex(big)))
    broker.deliver(invoke(PLAN, 2, result_id(1)))
    event, frames = broker.result(result_id(2))
    assert isinstance(event, m.ResultReady)
    assert (event.inline, event.infos, frames) == (
        False,
        [m.ResultInfo(dtype="float32", shape=[100_000], nbytes=400_000)],
        [],
    )
    assert store.get(result_id(2).hex()).tolist() == [4.0] * 100_000
    assert agent.registered


def test_a_plan_that_nobody_has(agent: Agent, broker: RouterPeer) -> None:
    """PlanNotFound; the agent goes on."""
    broker.deliver(m.Invoke(id=result_id(1), plan=bytes(32), args=[]))
    event, _ = broker.result(result_id(1))
    assert isinstance(event, m.ResultFailed)
    assert event.failure.code == "PlanNotFound"
    assert agent.registered


def test_bytes_that_are_no_message_are_left(agent: Agent, broker: RouterPeer) -> None:
    """The agent goes on."""
    broker._socket.send_multipart([broker.peer, b"\xc1 junk"])
    broker._socket.send_multipart([broker.peer, b""])
    broker.deliver(invoke(PLAN, 1, ["input_data"]))
    assert isinstance(broker.result(result_id(1))[0], m.ResultReady)
    assert agent.registered


def test_a_killed_worker_is_replaced_and_its_command_tried_once_more(process_agent: Agent, broker: RouterPeer) -> None:
    """SIGKILL in the middle of a job, twice: the first time it is run again, the second time it has failed."""
    broker.deliver(invoke(LONG, 1, None, inline=False), small_plans.square())
    broker.deliver(invoke(PLAN, 2, ["input_data"]))
    killed: set[int] = set()
    while len(killed) < 2:
        pid = working(process_agent, broker, result_id(1))
        if pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    event, _ = broker.result(result_id(1))
    assert isinstance(event, m.ResultFailed)
    assert (event.failure.code, event.failure.details["reason"]) == ("WorkerDied", "SIGKILL")
    assert isinstance(broker.result(result_id(2))[0], m.ResultReady)


def working(agent: Agent, broker: RouterPeer, id: bytes) -> int:
    """Wait until a worker is at this command itself, not just at loading its plan; the worker's pid.

    Heartbeats are what is waited for. They name a command from when the worker is given it, and may have been under way
    for a while: which order the worker is at, the board in shared memory says.
    """
    broker.heartbeat_ms = 20
    broker.send(m.HeartbeatSeen(heartbeat_ms=20))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        broker.wait_for(m.Heartbeat)
        pid = agent.worker_pid  # before its board: the next worker has its board before its pid
        host, under_way = agent._host, agent._core._runs.worker.under_way
        assert isinstance(host, ProcessWorker)
        board = host._board
        at = under_way.get(board.doing) if board is not None else None
        if pid is not None and isinstance(at, Command) and at.id == id:
            return pid
    pytest.fail(f"no worker came to command {id.hex()} within {PATIENCE} s")


def test_an_idle_worker_ends_and_comes_back(
    process_agent: Agent, broker: RouterPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is gone after the idle time, and another one runs the next command."""
    watched = queue.SimpleQueue[tuple[int, int]]()
    start = ProcessWorker.start

    def start_and_watch(worker: ProcessWorker) -> None:
        start(worker)
        assert worker.pid is not None
        watched.put((worker.pid, os.pidfd_open(worker.pid)))  # while it is there for certain: it does not idle for long

    monkeypatch.setattr(ProcessWorker, "start", start_and_watch)
    pids = []
    for counter in (1, 2):
        broker.deliver(invoke(PLAN, counter, ["input_data"]))
        assert isinstance(broker.result(result_id(counter))[0], m.ResultReady)
        pid, process = watched.get(timeout=PATIENCE)
        pids.append(pid)
        try:
            poller = zmq.Poller()
            poller.register(process, zmq.POLLIN)
            assert poller.poll(int(PATIENCE * 1000))
        finally:
            os.close(process)
    assert pids[0] != pids[1]


def test_a_broker_that_comes_back_finds_the_device_again(agent: Agent, broker: RouterPeer) -> None:
    """Gone and back at the same address: registered again, with the token, and what ended meanwhile is announced."""
    broker.deliver(invoke(LONG, 1, None), encode_array(np.eye(16, dtype=np.float32)))
    broker.wait_for(m.Taken)
    broker.restart()
    register, _ = broker.wait_for(m.Register)
    assert (register.token, register.device) == (b"token-01", "device_1")
    assert isinstance(broker.result(result_id(1))[0], m.ResultReady)
    agent.wait_until_registered(PATIENCE)


def test_an_agent_restarts_on_its_store(broker: RouterPeer, store: Store) -> None:
    """The same store id and token, another boot; a result that was kept is fetched from the new one."""
    registers = []
    for counter in (1, 2):
        agent = Agent(broker.endpoint, "device_1", store, worker="thread", config=CONFIG)
        agent.start()
        try:
            registers.append(broker.wait_for(m.Register)[0])
            broker.deliver(invoke(PLAN, counter, ["input_data"], inline=False))
            assert isinstance(broker.result(result_id(counter))[0], m.ResultReady)
            broker.send(m.Fetch(r=counter, ids=[result_id(1)]))
            _, frames = broker.wait_for(m.Values)
            assert decode_array(frames[0]).tolist() == [2, 4]
        finally:
            agent.stop()
        broker.wait_for(m.Goodbye)
    first, second = registers
    assert first.store == second.store == store.id
    assert (first.token, second.token) == (b"", b"token-01")
    assert first.boot != second.boot


def test_a_registration_that_cannot_be_written_is_not_confirmed(
    broker: RouterPeer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the agent comes again as it was before, until the broker's answer is on the disk."""
    save = StoreShelf.save_registration
    full = [1, 2]

    def save_unless_full(self: StoreShelf, token: bytes, ledger: bytes, *, other: bool = False) -> None:
        if full:
            full.pop()
            raise sqlite3.OperationalError("database or disk is full")
        save(self, token, ledger, other=other)

    monkeypatch.setattr(StoreShelf, "save_registration", save_unless_full)
    agent = Agent(broker.endpoint, "device_1", store, worker="thread", config=CONFIG)
    agent.start()
    try:
        presented = [broker.wait_for(m.Register)[0].token for _ in range(3)]
        agent.wait_until_registered(PATIENCE)
    finally:
        agent.stop()
    assert presented == [b"", b"", b""]


@pytest.mark.parametrize(
    ("code", "error"), [(m.RefusalCode.VERSION, VersionRefused), (m.RefusalCode.DUPLICATE_DEVICE, ConnectionRefused)]
)
def test_a_refused_agent_ends_with_the_reason(
    broker: RouterPeer, store: Store, code: m.RefusalCode, error: type[ConnectionRefused]
) -> None:
    """In the foreground it raises, and whoever waits for its registration is told the same."""
    broker.refuse = m.Refused(version=(9, 0), code=code, reason="not you")
    agent = Agent(broker.endpoint, "device_1", store, worker="thread", config=CONFIG)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            agent.run()
        except ConnectionRefused as refusal:
            caught.append(refusal)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        broker.wait_for(m.Register)
        with pytest.raises(error, match="not you"):
            agent.wait_until_registered(PATIENCE)
    finally:
        agent.request_stop()
        thread.join(PATIENCE)
    assert [type(one) for one in caught] == [error]


def test_waiting_for_a_broker_that_is_not_there(store: Store) -> None:
    """TimeoutError, and the agent goes on trying until it is stopped."""
    agent = Agent("tcp://127.0.0.1:9", "device_1", store, worker="thread", config=CONFIG)
    agent.start()
    try:
        with pytest.raises(TimeoutError, match="device_1 was not registered at"):
            agent.wait_until_registered(0.05)
    finally:
        agent.stop()


def test_two_agents_on_one_store(broker: RouterPeer, store: Store) -> None:
    """The second one is told so when it starts; the first one goes on."""
    first = Agent(broker.endpoint, "device_1", store, worker="thread", config=CONFIG)
    second = Agent(broker.endpoint, "device_2", store, worker="thread", config=CONFIG)
    first.start()
    try:
        with pytest.raises(StoreInUse):
            second.start()
        broker.wait_for(m.Register)
        first.wait_until_registered(PATIENCE)
    finally:
        second.stop()
        first.stop()


def test_a_device_id_that_is_none(store: Store) -> None:
    """Refused when it is made."""
    with pytest.raises(ValueError, match="expected a device id"):
        Agent("tcp://127.0.0.1:9", "no spaces", store)


def test_an_agent_inside_this_process(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """A virtual device: inproc, a thread for plans, a store that is temporary; no port and no process."""
    broker = RouterPeer(context, PLAN.parts, "inproc://broker")
    try:
        with Store.temporary() as store:
            store.put(np.array([-1, 2], dtype=np.float32), tags=["input_data"])
            agent = Agent(broker.endpoint, "device_1", store, context=context, worker="thread", config=CONFIG)
            for _ in running(agent, broker):
                broker.deliver(invoke(PLAN, 1, ["input_data"]))
                _, frames = broker.result(result_id(1))
                assert decode_array(frames[0]).tolist() == [2, 4]
                assert agent.worker_pid is None
    finally:
        broker.close()
