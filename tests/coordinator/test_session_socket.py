"""What a session's socket does not tell by itself: a message whose signal was swallowed while something was sent."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import pytest
import zmq

from broker.protocol import messages as m
from broker.protocol.effects import Send
from broker.protocol.framing import decode, encode
from coordinator.core import SessionConfig
from coordinator.core_events import SubmitCommand
from coordinator.core_tables import Link
from coordinator.driver import SessionDriver
from coordinator.session_socket import SessionSocket
from coordinator.wakeup import Wakeup
from tests.coordinator.test_reconnection import WITHIN, reach
from tests.waiting import wait_until

NEVER = 3600.0
"""Seconds: whatever would look by itself after so long does not look within the test."""


class Broker:
    """A ROUTER that one session is connected to."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.RCVTIMEO, int(WITHIN * 1000))
        self.endpoint = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self.peer = b""

    def hear(self) -> m.Message:
        """The next message."""
        self.peer, header, *_ = self.router.recv_multipart()
        return decode(header)

    def say(self, message: m.Message) -> None:
        """Answer whoever was heard last."""
        self.router.send_multipart([self.peer, encode(message)])


@pytest.fixture
def broker(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Broker]:
    """Who answers when the test says so."""
    made = Broker(context)
    yield made
    made.router.close(linger=0)


def swallow(socket: SessionSocket) -> None:
    """Wait until a message is there, by a look of the kind that ZeroMQ takes when it sends: its descriptor tells of the
    message no more.
    """
    wait_until(lambda: socket.more)


def test_a_message_whose_signal_is_gone_is_there_all_the_same(
    context: zmq.Context[zmq.Socket[bytes]], broker: Broker
) -> None:
    """The descriptor is silent about it; `more` is not, and `receive` gives it."""
    wakeup = Wakeup()
    socket = SessionSocket(broker.endpoint, context, wakeup)
    socket.open()
    try:
        assert socket.send_all(deque([Send(message=m.Goodbye())]))
        assert isinstance(broker.hear(), m.Goodbye)
        assert not list(socket.receive(10))
        broker.say(m.Stranger())
        swallow(socket)
        assert not socket.wait(0)
        assert not socket.heard
        assert socket.more
        assert [decode(header) for (header,) in socket.receive(10)] == [m.Stranger()]
        assert not socket.more
    finally:
        socket.close(linger=0)
        wakeup.close()


@pytest.mark.parametrize("who", ["the caller", "the thread"])
def test_what_comes_while_something_is_sent_is_taken_in(
    context: zmq.Context[zmq.Socket[bytes]], broker: Broker, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Whoever sends looks afterwards: nothing else would, before some timer is due."""
    monkeypatch.setattr("coordinator.driver.LOOK_MS", int(NEVER * 1000))
    config = SessionConfig(patience=NEVER, request_patience=NEVER, open_patience=NEVER)
    driver = SessionDriver(broker.endpoint, config=config, context=context)
    try:
        assert isinstance(broker.hear(), m.OpenSession)
        welcome = m.SessionOpened(
            version=m.PROTOCOL_VERSION, ledger=b"ledger-1", accepted=0, heartbeat_ms=3_600_000, max_message=1 << 20
        )
        broker.say(welcome)
        reach(driver, Link.OPEN)
        assert isinstance(broker.hear(), m.Seen)
        send_all = driver._socket.send_all
        answered = threading.Event()

        def and_is_answered_meanwhile(outgoing: deque[Send]) -> bool:
            sent = send_all(outgoing)
            if sent and not answered.is_set():
                answered.set()
                heard = broker.hear()
                if isinstance(heard, m.Submit):
                    broker.say(m.Accepted(n=heard.n))
                else:
                    assert isinstance(heard, m.ListDevices)
                    broker.say(m.DeviceList(r=heard.r, devices=[]))
                swallow(driver._socket)
            return sent

        monkeypatch.setattr(driver._socket, "send_all", and_is_answered_meanwhile)
        if who == "the caller":
            wait, about_to_sleep, asleep = driver._socket.wait, threading.Event(), threading.Event()

            def sleeps_later(timeout: int) -> bool:
                about_to_sleep.set()
                assert asleep.wait(WITHIN)
                return wait(timeout)

            monkeypatch.setattr(driver._socket, "wait", sleeps_later)
            driver.wake()
            assert about_to_sleep.wait(WITHIN)  # it has looked, and may be told of what comes now by nobody else
            with driver.lock:
                put = m.Put(id=driver.core.take_ids(1))
                driver.submit(SubmitCommand(devices=("d1",), command=put, frames=(b"value",)))
                driver.flush()
            asleep.set()
            wait_until(lambda: driver.core.unaccepted == 0)
        else:
            listed = threading.Event()
            driver.ask(lambda r: m.ListDevices(r=r), lambda _: listed.set())
            assert listed.wait(WITHIN)
    finally:
        driver.close(0.0)
