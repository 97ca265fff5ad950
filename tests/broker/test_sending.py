"""Small messages to one peer travel together, where it reads them so; nothing else about them changes."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence

import msgspec
import pytest
import zmq

from broker import logs
from broker.protocol.bundles import BUNDLE_MESSAGES, BUNDLED_BYTES
from broker.protocol.framing import decode, encode
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AskStats,
    Bundle,
    Deliver,
    DeviceList,
    Frame,
    Goodbye,
    ListDevices,
    Put,
    Refused,
    Register,
    Registered,
    Stats,
    Submit,
)
from tests.broker.raw_peer import WITHIN_MS, RawPeer
from tests.broker.served import Served

COUNT = BUNDLE_MESSAGES + 8


def put(incarnation: bytes, n: int) -> Submit:
    """The ``n``-th command of a session: numbers begin at 2, after its plan."""
    return Submit(n=n + 1, devices=["device_1"], command=Put(id=incarnation + n.to_bytes(8, "big")))


def say_together(session: RawPeer, incarnation: bytes, sizes: list[int]) -> None:
    """Submit tensors of these sizes, all in one bundle."""
    session.say(Bundle(messages=[[encode(put(incarnation, n)), bytes(size)] for n, size in enumerate(sizes, 1)]))


def device_of(served: Served, version: tuple[int, int]) -> RawPeer:
    """A registered device that speaks this version. It asks again while its last connection may be alive."""
    device, boot = served.peer(), os.urandom(16)
    end = time.monotonic() + WITHIN_MS / 1000
    while True:
        device.say(Register(version=version, device="device_1", store=b"store" * 3, boot=boot))
        if device.socket.poll(200):
            device.hear(Registered)
            return device
        assert time.monotonic() < end


def heard_together(device: RawPeer, sizes: list[int]) -> list[int]:
    """Hear these tensors, in order; how many messages came as one, each time."""
    came: list[int] = []
    while sum(came) < len(sizes):
        came.append(device.receive())
    hear_all(device, sizes)
    return came


def hear_all(device: RawPeer, sizes: list[int], *, first: int = 1) -> None:
    """Hear these tensors, in order, under numbers from ``first`` on."""
    for k, size in enumerate(sizes):
        deliver = device.hear(Deliver)
        assert isinstance(deliver.command, Put)
        assert (deliver.n, int.from_bytes(deliver.command.id[8:], "big")) == (first + k, 1 + k)
        assert device.frames == [bytes(size)]


def test_what_is_to_go_at_one_moment_goes_in_one(served: Served) -> None:
    """Up to so many messages; and what was accepted is said once for all."""
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    say_together(session, incarnation, [4] * COUNT)
    assert heard_together(device, [4] * COUNT) == [BUNDLE_MESSAGES, 8]
    assert session.hear(Accepted).n == COUNT + 1


def test_a_peer_of_an_older_version_gets_each_alone(served: Served) -> None:
    """It would not know what a bundle is."""
    device = device_of(served, (1, 0))
    session, incarnation = served.session()
    say_together(session, incarnation, [4] * COUNT)
    assert heard_together(device, [4] * COUNT) == [1] * COUNT


def test_a_large_message_goes_alone_and_in_its_turn(served: Served) -> None:
    """What came before it goes before it."""
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    sizes = [4, 4, BUNDLED_BYTES, 4, 4, 4, 9 * BUNDLED_BYTES, 4]
    say_together(session, incarnation, sizes)
    assert heard_together(device, sizes) == [2, 1, 3, 1, 1]


def test_one_message_alone_is_sent_as_it_is(served: Served) -> None:
    """There is no bundle of one."""
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    session.say(put(incarnation, 1), b"abcd")
    header, frame = device.socket.recv_multipart()
    assert msgspec.msgpack.decode(header)[0] == Deliver.__struct_config__.tag
    assert frame == b"abcd"


def test_a_question_is_answered_after_what_came_before_it(served: Served) -> None:
    """What was submitted before it in the same bundle has left for its device by then."""
    device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    commands = [[encode(put(incarnation, n)), b"abcd"] for n in (1, 2, 3)]
    session.say(Bundle(messages=[*commands[:2], [encode(AskStats(r=1))], commands[2], [encode(AskStats(r=2))]]))
    assert [session.hear(Stats).total.commands for _ in range(2)] == [2, 3]


@pytest.mark.parametrize("wrong", [[b"\xff\xff"], [], [encode(Bundle(messages=[]))]])
def test_what_means_nothing_is_refused_alone(served: Served, wrong: list[bytes]) -> None:
    """The others of its bundle are taken."""
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    first, second = [encode(put(incarnation, 1)), b"1234"], [encode(put(incarnation, 2)), b"5678"]
    session.say(Bundle(messages=[first, wrong, second]))
    assert session.hear(Refused).code == "malformed"
    assert session.hear(Accepted).n == 3
    assert [device.hear(Deliver).n, device.hear(Deliver).n] == [1, 2]


def test_what_was_gathered_for_a_device_that_has_gone_comes_when_it_is_back(served: Served) -> None:
    """All of it, in order."""
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()
    say_together(session, incarnation, [4] * 3)
    heard_together(device, [4] * 3)
    device.close()
    session.say(Bundle(messages=[[encode(put(incarnation, n)), bytes(4)] for n in range(4, 9)]))
    while session.hear(Accepted).n < 9:
        pass
    back = device_of(served, PROTOCOL_VERSION)
    hear_all(back, [4] * 8, first=9)


@pytest.mark.parametrize("goodbye", [True, False])
def test_who_has_gone_is_heard_before_that_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], goodbye: bool
) -> None:
    """A device that has said goodbye has left, also where the broker finds it gone before it comes to that word."""
    logs.configure(level=logs.INFO, json=True)
    device = device_of(served, PROTOCOL_VERSION)
    session, incarnation = served.session()

    found_gone = threading.Event()
    sending = served.server._sending
    send_now = sending._send_now

    def leaves_now(peer: bytes, frames: Sequence[Frame]) -> None:
        if isinstance(decode(bytes(frames[0])), Deliver):
            if goodbye:
                device.say(Goodbye())
                assert served.server._router.poll(WITHIN_MS)  # that is it: nobody else says anything meanwhile
            found_gone.set()
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        send_now(peer, frames)

    monkeypatch.setattr(sending, "_send_now", leaves_now)
    session.say(put(incarnation, 1), b"abcd")
    assert found_gone.wait(WITHIN_MS / 1000)
    session.say(ListDevices(r=1))
    while session.hear(DeviceList).devices[0].online:
        session.say(ListDevices(r=1))
    events = {record["event"] for record in map(msgspec.json.decode, capsys.readouterr().err.splitlines())}
    assert events & {"device_left", "device_lost"} == {"device_left" if goodbye else "device_lost"}
