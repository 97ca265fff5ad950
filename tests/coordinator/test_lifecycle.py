"""How fleets begin and end: refused and missing brokers, close, fork, forgotten fleets, running event loops."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import zmq

from broker.protocol.errors import ConnectionRefused, VersionRefused
from broker.protocol.framing import decode, encode
from broker.protocol.messages import PROTOCOL_VERSION, AskStats, OpenSession, Refused
from broker.server import BrokerServer
from broker.settings import EndpointMalformed, InsecureEndpoint
from coordinator import VirtualWorker, connect, func2plan, tagged
from coordinator.core import SessionConfig
from coordinator.driver import SessionDriver
from coordinator.errors import BrokerUnreachable, FleetClosed, SessionTakenOver
from tests.waiting import wait_until

WITHIN = 60.0


@pytest.fixture
def broker() -> Iterator[BrokerServer]:
    """A broker of this process, over TCP."""
    with BrokerServer("tcp://127.0.0.1:*") as server:
        yield server


def url_of(server: BrokerServer) -> str:
    """Where it listens."""
    assert server.wait_until_listening(WITHIN)
    return server.endpoints.listen


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_fleet_is_not_copied(duplicate: Callable[[object], object]) -> None:
    """Nor pickled, as for a process of its own; of what belongs to one that is said, too."""
    with connect() as fleet:
        plan = func2plan(args_shape=[(2,)])(torch.abs).send(fleet.device("device_1"))
        for whole in (fleet, {"fleet": fleet}, fleet.device("device_1"), plan):
            if duplicate is copy.copy and whole is not fleet:
                continue  # it goes no deeper
            with pytest.raises(TypeError, match="a fleet, and what belongs to one, can't be pickled or copied"):
                duplicate(whole)
        assert fleet.devices() == []


def test_what_a_person_sees() -> None:
    """In a notebook, or where something is printed: what it is, where, and how far it is."""
    with connect() as fleet:
        VirtualWorker(fleet, "asleep").close()  # what is sent to a device that nobody knows ends at once
        device = fleet.device("asleep")
        ended = VirtualWorker(fleet, "device_1").send(torch.ones(2))
        assert ended.wait(WITHIN)
        waiting = fleet.as_completed([ended, {"a": device.send(torch.ones(2))}])
        assert repr(waiting) == "<AsCompleted, 1 ended, 1 to come>"
        with fleet.scope() as scope:
            device.send(torch.ones(2))
            assert repr(scope) == f"<Scope of {fleet!r}, 1 made inside>"
        assert repr(scope) == f"<Scope of {fleet!r}, left>"
        with fleet.logs() as logs:
            assert repr(logs) == f"<LogStream at {fleet.endpoint}-logs>"
        assert repr(logs) == f"<LogStream at {fleet.endpoint}-logs, closed>"


def test_nobody_listens() -> None:
    """Without a broker, connect says so after its timeout, and names the endpoint."""
    with pytest.raises(BrokerUnreachable, match=r"no broker answers at tcp://127\.0\.0\.1:9 \(waited 0\.2 s\)"):
        connect("tcp://127.0.0.1:9", insecure=True, timeout=0.2)


def test_an_address_that_may_not_be_used() -> None:
    """Any address but a local one needs keys."""
    with pytest.raises(InsecureEndpoint, match="--insecure is for loopback addresses only"):
        connect("tcp://192.0.2.1:5750", insecure=True)


@pytest.mark.parametrize("url", ["127.0.0.1:5750", "http://127.0.0.1", "tcp://127.0.0.1:*", "foo", "", 3])
def test_what_is_no_address(url: Any) -> None:
    """It is not said to be insecure."""
    with pytest.raises(EndpointMalformed) as caught:
        connect(url, insecure=True)
    assert str(caught.value) == f"expected an endpoint such as tcp://127.0.0.1:5750, got {url!r}"


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_timeout_without_end(broker: BrokerServer, timeout: float) -> None:
    """Whoever connects may wait for ever, or for longer than a thread can."""
    with connect(url_of(broker), insecure=True, timeout=timeout) as fleet:
        assert VirtualWorker(fleet, "patient", timeout=timeout).registered
        fleet.flush(timeout)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("version", VersionRefused), ("fenced", SessionTakenOver), ("not_allowed", ConnectionRefused)],
)
def test_a_refusal_comes_out_of_connect(
    context: zmq.Context[zmq.Socket[bytes]], code: str, kind: type[Exception]
) -> None:
    """What the broker refuses at the introduction is raised at once, as the error that it is."""
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def refuse() -> None:
        peer, header = router.recv_multipart()
        assert isinstance(decode(header), OpenSession)
        router.send_multipart([peer, encode(Refused(version=(9, 0), code=code, reason="because"))])

    refusing = threading.Thread(target=refuse)
    refusing.start()
    try:
        with pytest.raises(kind) as caught:
            connect(f"tcp://127.0.0.1:{port}", insecure=True, timeout=WITHIN)
    finally:
        refusing.join(WITHIN)
        router.close(linger=0)
    assert isinstance(caught.value, ConnectionRefused | SessionTakenOver)
    assert caught.value.reason == "because"


def test_a_closed_fleet_says_so(broker: BrokerServer) -> None:
    """After close everything raises FleetClosed, at once; closing again does nothing; no thread is left."""
    before = {thread.name for thread in threading.enumerate()}
    fleet = connect(url_of(broker), insecure=True)
    device = fleet.device("nobody")
    with fleet.notifications() as notifications:
        fleet.close()
        fleet.close()
        assert list(notifications) == []
    assert fleet.closed
    for call in (
        fleet.devices,
        fleet.stats,
        lambda: device.send(torch.ones(1)),
        lambda: fleet.notifications("00"),
        lambda: VirtualWorker(fleet, "late", data=[torch.ones(1)]),
    ):
        with pytest.raises(FleetClosed, match="was closed"):
            call()
    assert {thread.name for thread in threading.enumerate()} <= before


def test_what_waits_ends_when_the_fleet_is_closed(broker: BrokerServer) -> None:
    """A get that waits in another thread ends with FleetClosed."""
    fleet = connect(url_of(broker), insecure=True)
    with connect(url_of(broker), insecure=True) as other:
        device = VirtualWorker(other, "sleeper")
        device.close()
    pointer = fleet.device("sleeper").send(torch.ones(1))
    raised: list[BaseException] = []

    def get() -> None:
        try:
            pointer.get(WITHIN)
        except FleetClosed as error:
            raised.append(error)

    waiting = threading.Thread(target=get)
    waiting.start()
    fleet.close()
    waiting.join(WITHIN)
    assert len(raised) == 1
    with pytest.raises(FleetClosed):
        pointer.get()


def test_closing_waits_for_what_was_sent(broker: BrokerServer) -> None:
    """A command sent right before close is with the broker, and done once the device is there."""
    with connect(url_of(broker), insecure=True) as owner:
        VirtualWorker(owner, "late").close()
        with connect(url_of(broker), insecure=True) as fleet:
            sent = fleet.device("late").send(torch.tensor([7.0]), tags=["sent before close"])
        VirtualWorker(owner, "late")
        pointer = owner.pointer(sent.id)
        assert torch.equal(pointer.get(WITHIN), torch.tensor([7.0]))


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:9", "inproc://nobody"])
def test_a_context_that_ends_first(endpoint: str) -> None:
    """A second ctrl-C interrupts the closing of a fleet that nobody answers, and its context is ended with the thread
    still there: the thread gives back its sockets, or the context would never end, and says nothing.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    driver = SessionDriver(endpoint, config=SessionConfig(), context=context)
    assert not driver.wait_settled(0.2)
    ending = threading.Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(WITHIN)
    assert not ending.is_alive()
    driver.close()
    with pytest.raises(FleetClosed):
        driver.check()


def test_synchronous_calls_work_inside_a_running_event_loop() -> None:
    """As in a notebook: get, search and send inside a coroutine, beside await."""

    async def notebook() -> torch.Tensor:
        with connect() as fleet:
            device = VirtualWorker(fleet, "d1", data=[tagged(torch.tensor([3.0]), "x")])
            (pointer,) = device.search("x")
            assert torch.equal(pointer.get(WITHIN), torch.tensor([3.0]))
            sent = device.send(torch.tensor([4.0]))
            async with asyncio.timeout(WITHIN):
                return await sent

    assert torch.equal(asyncio.run(notebook()), torch.tensor([4.0]))


def test_many_coroutines_wait_at_once() -> None:
    """await, as_completed and cancellation, all in one loop."""

    async def wait() -> None:
        with connect() as fleet:
            device = VirtualWorker(fleet, "d1")
            pointers = [device.send(torch.tensor([float(k)])) for k in range(50)]
            values = await asyncio.gather(*pointers)
            assert [float(value) for value in values] == [float(k) for k in range(50)]
            ended = [pointer async for pointer in fleet.as_completed(pointers)]
            assert set(ended) == set(pointers)
            device.close()
            never = device.send(torch.ones(1))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await never
            assert not never.ready

    asyncio.run(wait())


def test_a_fork_can_not_use_the_fleet(broker: BrokerServer) -> None:
    """The child of a fork is told to connect again, and its end leaves the parent's fleet alone."""
    with connect(url_of(broker), insecure=True) as fleet:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                fleet.devices()
            except FleetClosed:
                fleet.close()
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert fleet.devices() == []


FORGOTTEN = """
import torch
from coordinator import VirtualWorker, connect, func2plan, tagged
fleet = connect()
device = VirtualWorker(fleet, "d1", data=[tagged(torch.tensor([1.0]), "x")])
stream = fleet.notifications()
assert device.search("x")[0].get(60).item() == 1.0
device.send(torch.ones(200_000))
print("done")
"""


def test_a_forgotten_fleet_does_not_keep_the_program() -> None:
    """A program that never closes its embedded fleet ends by itself, in order, and says nothing more."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGOTTEN], capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_dropped_fleet_is_closed(broker: BrokerServer) -> None:
    """A fleet that nobody refers to closes itself: its thread ends."""
    fleet = connect(url_of(broker), insecure=True)
    driver = fleet.driver
    del fleet
    assert driver.closed


def test_the_protocol_version_is_said(broker: BrokerServer) -> None:
    """The session speaks the version of this package, and the broker answers with its own."""
    with connect(url_of(broker), insecure=True) as fleet:
        assert fleet.driver.opened is not None
        assert fleet.driver.opened.version == PROTOCOL_VERSION


def test_nothing_is_kept_of_what_has_ended(broker: BrokerServer) -> None:
    """After thousands of results, the session's own tables are empty: what ended lives in its pointers alone."""
    with connect(url_of(broker), insecure=True) as fleet:
        device = VirtualWorker(fleet, "d1")
        for _ in range(5):
            pointers = [device.send(torch.ones(1)) for _ in range(400)]
            assert len(fleet.get(pointers, timeout=WITHIN)) == 400
        wait_until(lambda: fleet.driver.core.unaccepted == 0)  # the acknowledgement may come after the value
        assert fleet.driver.core.pending == 0
        assert not fleet.driver.core._commands._kept


def test_a_fleet_whose_last_reference_is_in_an_answer(broker: BrokerServer) -> None:
    """When the driver's own thread drops the fleet, it closes all the same."""
    fleet = connect(url_of(broker), insecure=True)
    driver = fleet.driver
    holding: list[object] = [fleet]
    driver.ask(lambda r: AskStats(r=r), lambda _answered: holding.clear())
    del fleet
    driver._thread.join(WITHIN)
    assert not driver._thread.is_alive()
