"""Ctrl-C in the middle of a call: it strikes before or after what the call does to the session, never within."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import torch

from broker.server import BrokerServer
from coordinator import VirtualWorker, connect, func2plan
from coordinator.fleet import Fleet
from coordinator.guard import Guard
from coordinator.pointers import PointerTensor
from tests.coordinator.conftest import WITHIN


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """SIGINT as Python sets it, whatever the test runner does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_under_the_guard_strikes_when_it_is_left() -> None:
    """KeyboardInterrupt comes out of the ``with`` statement, all of which has been done; the lock is free then."""
    guard = Guard()
    done: list[int] = []

    def work() -> None:
        with guard:
            done.append(1)
            signal.raise_signal(signal.SIGINT)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert guard.enter(blocking=False)
    assert not guard.enter(blocking=False)
    guard.leave()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_guards_nest_and_the_users_own_handler_is_called_once() -> None:
    """A handler of the user's, such as asyncio's, is called when the outermost guard is left, with a frame."""
    called: list[object] = []
    signal.signal(signal.SIGINT, lambda _signal, frame: called.append(frame))
    outer, inner = Guard(), Guard()
    with outer:
        with inner:
            signal.raise_signal(signal.SIGINT)
        assert not called
    assert len(called) == 1
    assert called[0] is not None


def test_handlers_that_raise_nothing_stay() -> None:
    """With SIGINT ignored nothing is put in its place."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Guard():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)


def test_a_guard_in_another_thread_is_a_lock() -> None:
    """No handler is touched there, since none runs there."""
    guard = Guard()
    handlers: list[object] = []

    def work() -> None:
        with guard:
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(WITHIN)
    assert handlers == [signal.default_int_handler]


def interrupted(call: Callable[[], object]) -> bool:
    """Whether ctrl-C came out of the call."""
    try:
        call()
    except KeyboardInterrupt:
        return True
    return False


def test_a_command_that_ctrl_c_strikes_is_sent_whole(fleet: Fleet, device_1: VirtualWorker) -> None:
    """In the middle of the core's work, and of the sending: the command is there, and the session goes on."""
    core, driver = fleet.driver.core, fleet.driver
    on_device = double.send(device_1)
    taken: list[object] = []
    admit, send_all = core._commands._admit, driver._send_all

    def strike_admit(outgoing: object, out: list[object]) -> None:
        signal.raise_signal(signal.SIGINT)
        taken.append(outgoing)
        admit(outgoing, out)  # type: ignore[arg-type]

    def strike_send() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        send_all()

    for target, name, strike in ((core._commands, "_admit", strike_admit), (driver, "_send_all", strike_send)):
        before = core._commands._outbox.last
        setattr(target, name, strike)
        try:
            struck = interrupted(lambda: on_device(torch.ones(2)))
        finally:
            delattr(target, name)
        assert struck or name == "_send_all"  # the thread may have had the sockets: then it sends
        assert core._commands._outbox.last == before + 1
        fleet.flush(WITHIN)
        assert torch.equal(on_device(torch.ones(2)).get(WITHIN), torch.full((2,), 2.0))
    assert len(taken) == 1


def test_a_storm_of_ctrl_c_breaks_nothing(fleet: Fleet, device_1: VirtualWorker) -> None:
    """With SIGINT at random moments, every call that returned has its value, and the session works on."""
    on_device = double.send(device_1)
    main = threading.main_thread().ident
    assert main is not None
    over = threading.Event()
    pointers: list[PointerTensor] = []
    strikes = 0

    def call() -> None:
        pointers.append(on_device(torch.ones(2)))
        pointers[-1].wait(0)

    def strike(number: int, frame: FrameType | None) -> None:
        """Strikes inside of `call` alone: anywhere else it would end the tests, and leave the storm behind."""
        running: FrameType | None = sys._getframe()
        while running is not None and running.f_code is not call.__code__:
            running = running.f_back
        if running is not None:
            signal.default_int_handler(number, frame)

    def storm() -> None:
        while not over.wait(0.0007):
            signal.pthread_kill(main, signal.SIGINT)

    signal.signal(signal.SIGINT, strike)
    storming = threading.Thread(target=storm)
    gc.disable()  # whoever is called back by a collection swallows what strikes meanwhile
    try:
        storming.start()
        while len(pointers) < 300 or strikes < 20:
            try:
                call()
            except KeyboardInterrupt:
                strikes += 1
    finally:
        over.set()
        storming.join(WITHIN)
        gc.enable()
    fleet.flush(WITHIN)
    assert all(torch.equal(value, torch.full((2,), 2.0)) for value in fleet.get(pointers, timeout=WITHIN))
    assert fleet.driver.core.unaccepted == 0


def test_a_broker_on_ipv6() -> None:
    """A session, its blobs and what it subscribes to reach a broker at an IPv6 address."""
    with (
        BrokerServer("tcp://[::1]:*") as server,
        connect(_listening(server), insecure=True) as fleet,
        fleet.notifications() as notifications,
    ):
        device = VirtualWorker(fleet, "d1")
        large = device.send(torch.arange(50_000))
        assert torch.equal(large.get(WITHIN), torch.arange(50_000))
        ended = None
        while ended is None:  # a subscription takes a moment to reach the broker
            device.send(torch.ones(1))
            ended = notifications.receive(0.2)
        assert ended.device == "d1"


def _listening(server: BrokerServer) -> str:
    assert server.wait_until_listening(WITHIN)
    return server.endpoints.listen
