"""The processes that the acceptance tests share, and the fleets that they run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import zmq

from broker.protocol.messages import Goodbye
from coordinator import VirtualWorker, connect
from tests import processes
from tests.acceptance.wire import RawSession, Tap, tap
from tests.acceptance.worlds import KINDS, World
from tests.processes import Program

DEVICES = ("device_1", "device_2")


@pytest.fixture(scope="session")
def broker() -> Iterator[Program]:
    """A broker process for the whole session."""
    with processes.start_broker() as process:
        yield process


@pytest.fixture(scope="session")
def device_tap(broker: Program) -> Iterator[Tap]:
    """What passes between the broker and the agents of ``agents``."""
    with tap(broker.endpoint) as made:
        yield made


@pytest.fixture(scope="session")
def agents(broker: Program, device_tap: Tap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two agent processes for the whole session."""
    with contextlib.ExitStack() as stack:
        for device in DEVICES:
            stack.enter_context(processes.start_agent(device, tmp_path_factory.mktemp(device), device_tap))
        yield


@pytest.fixture
def tcp(broker: Program, agents: None) -> Iterator[World]:
    """Two agents as processes of their own, behind a broker process."""
    with connect(broker.endpoint, insecure=True) as fleet:
        made = World("tcp", fleet, (fleet.device(DEVICES[0]), fleet.device(DEVICES[1])))
        with made.without_repetition():
            yield made


@pytest.fixture
def embedded() -> Iterator[World]:
    """Two virtual devices and an embedded broker, in this process."""
    with connect() as fleet:
        first, second = (VirtualWorker(fleet, id=device) for device in DEVICES)
        made = World("embedded", fleet, (first, second))
        with made.without_repetition():
            yield made


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    """Both kinds of fleets, one after the other."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, World)
    return made


@pytest.fixture
def raw(broker: Program, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[RawSession]:
    """A session with the shared broker, spoken by hand."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(broker.endpoint)
    session = RawSession(socket)
    session.open()
    yield session
    session.say(Goodbye())  # else the broker says again what we have not acknowledged
    socket.close()
