"""Named sessions: a coordinator that starts again under the name takes up what the one before it has left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from broker.config import BrokerConfig
from broker.protocol.ids import nth
from broker.protocol.messages import ResultStatus
from broker.server import BrokerServer
from coordinator import VirtualWorker, connect, func2plan
from coordinator.errors import NotAccepted, OutboxFull, SessionTakenOver, UnknownResult
from tests.processes import start_agent, start_broker, started
from tests.waiting import wait_until

WITHIN = 60.0


@func2plan(args_shape=[(-1,)])
def double(x: torch.Tensor) -> torch.Tensor:
    """A plan to run."""
    return x + x


@func2plan(args_shape=[(-1,)])
def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A plan with two results."""
    return x + x, x


@pytest.fixture
def broker() -> Iterator[BrokerServer]:
    """A broker of this process, over TCP."""
    with BrokerServer("tcp://127.0.0.1:*") as server:
        assert server.wait_until_listening(WITHIN)
        yield server


def test_a_newer_incarnation_takes_over(broker: BrokerServer) -> None:
    """The newest process of a name has its pointers, by hex digits or bytes; every call of the older one says so."""
    url = broker.endpoints.listen
    with connect(url, insecure=True) as other:
        device = VirtualWorker(other, "d1")
        with connect(url, insecure=True, session="nightly") as older:
            on_device = double.send(older.device("d1"))
            inline = on_device(torch.ones(2))
            remote = on_device.options(inline=False)(inline)
            asleep = older.device("d1")
            assert remote.wait(WITHIN)
            with connect(url, insecure=True, session="nightly") as newer:
                assert (newer.session, older.session, other.session) == ("nightly", "nightly", "")
                pointer = newer.pointer(inline.id)
                assert (pointer.device.id, pointer.dtype, pointer.shape) == ("d1", torch.float32, (2,))
                assert torch.equal(pointer.get(WITHIN), torch.full((2,), 2.0))
                assert torch.equal(newer.pointer(remote.result_id).get(WITHIN), torch.full((2,), 4.0))
                assert newer.status(remote.id) is other.status(remote.id) is ResultStatus.DONE
                again = double.send(newer.device("d1"))(newer.pointer(remote.id))
                assert torch.equal(again.get(WITHIN), torch.full((2,), 8.0))
                newer.flush(WITHIN)
                assert [each.id for each in newer.pointers()] == [inline.id, remote.id, again.id]
                pair = both.send(newer.device("d1"))(again)
                inline_again, *_ = newer.pointers()
                inline_again.release()
                newer.flush(WITHIN)
                listed = newer.pointers()
                assert [each.id for each in listed] == [each.id for each in (remote, again, *pair)]
                values = newer.get(listed, timeout=WITHIN)
                assert torch.equal(values[2] + values[3], torch.full((2,), 24.0))
                assert other.pointers() == []
                calls = (
                    older.devices,
                    older.flush,
                    lambda: on_device(torch.ones(2)),
                    lambda: asleep.send(torch.ones(1)),
                    lambda: older.status(inline.id),
                    remote.release,
                    remote.get,
                )
                for call in calls:
                    with pytest.raises(SessionTakenOver, match="session 'nightly' was taken over by a newer process"):
                        call()
                assert torch.equal(inline.get(), torch.full((2,), 2.0))  # it is here
        device.close()


def test_what_waits_in_the_older_one_ends(broker: BrokerServer) -> None:
    """A pointer whose result has not ended raises in the process that was taken over, and ends in the newer."""
    url = broker.endpoints.listen
    with connect(url, insecure=True) as other:
        device = VirtualWorker(other, "d1")
        device.close()
        with connect(url, insecure=True, session="nightly") as older:
            waiting = double.send(older.device("d1"))(torch.ones(2))
            older.flush(WITHIN)
            with connect(url, insecure=True, session="nightly") as newer:
                taken_up = newer.pointer(waiting.id)
                assert not taken_up.ready
                with pytest.raises(SessionTakenOver):
                    waiting.get(WITHIN)
                VirtualWorker(other, "d1")
                assert torch.equal(taken_up.get(WITHIN), torch.full((2,), 2.0))
                assert taken_up.status() is ResultStatus.DONE


COORDINATOR = """
import signal, sys
import torch
from coordinator import connect, func2plan

@func2plan(args_shape=[(300, 300)])
def slow(x):
    for _ in range(40):
        x = torch.tanh(x @ x)
    return x

@func2plan(args_shape=[(-1,)])
def double(x):
    return x + x

with connect(sys.argv[1], insecure=True, session="nightly") as fleet:
    on_device = slow.send(fleet.device("d1"))
    large = fleet.device("d1").send(torch.arange(90_000.0).reshape(300, 300) / 90_000)
    results = [on_device(large)]
    for _ in range(4):
        results.append(on_device(results[-1]))
    small = double.send(fleet.device("d1"))(torch.ones(2))
    fleet.flush(60)
    print(large.id, *[each.id for each in results], small.id, flush=True)
    signal.pause()
"""


def test_a_coordinator_that_is_killed_gets_its_values_after_a_restart(tmp_path: Path) -> None:
    """Killed as soon as all was accepted: the next process of the name has every value, also after the broker's own
    restart; what was never sent is unknown.
    """
    with (
        start_broker(tmp_path / "broker") as broker,
        start_agent("d1", tmp_path / "d1", broker),
    ):
        with started(sys.executable, "-c", COORDINATOR, broker.endpoint, stdout=subprocess.PIPE) as killed:
            assert killed.stdout is not None
            ids = killed.stdout.readline().split()
            killed.kill()
        assert len(ids) == 7
        with connect(broker.endpoint, insecure=True, session="nightly") as fleet:
            pointers = [fleet.pointer(each) for each in ids]
            values = fleet.get(pointers, timeout=WITHIN)
            with pytest.raises(UnknownResult):
                fleet.pointer(nth(bytes.fromhex(ids[-1]), 1))
            assert fleet.status(nth(bytes.fromhex(ids[-1]), 1)) is ResultStatus.UNKNOWN
        broker.kill()
        with (
            start_broker(tmp_path / "broker") as restarted,
            connect(restarted.endpoint, insecure=True, session="nightly") as fleet,
        ):
            assert {fleet.status(each) for each in ids} == {ResultStatus.DONE}
            assert [pointer.id for pointer in fleet.pointers()] == ids
            assert torch.equal(fleet.pointer(ids[-1]).get(WITHIN), values[6])
    expected = torch.arange(90_000.0).reshape(300, 300) / 90_000
    assert torch.equal(values[0], expected)
    for value in values[1:6]:
        for _ in range(40):
            expected = torch.tanh(expected @ expected)
        torch.testing.assert_close(value, expected)
    assert torch.equal(values[6], torch.full((2,), 2.0))


def test_a_call_is_refused_when_too_much_waits() -> None:
    """A broker that takes nothing more is felt by the caller, at once and with its reason; after a flush it goes on."""
    config = BrokerConfig(mailbox_commands=2, busy_ms=20)
    with BrokerServer("tcp://127.0.0.1:*", config=config) as server:
        assert server.wait_until_listening(WITHIN)
        with (
            connect(server.endpoints.listen, insecure=True) as other,
            connect(server.endpoints.listen, insecure=True, max_unaccepted=4, max_unaccepted_bytes=1000) as fleet,
        ):
            VirtualWorker(other, "d1").close()
            device = fleet.device("d1")
            sent = [device.send(torch.ones(2)) for _ in range(2)]
            fleet.flush(WITHIN)
            sent += [device.send(torch.ones(2)) for _ in range(4)]
            wait_until(lambda: fleet.driver.core.busy_reason != "")
            with pytest.raises(
                NotAccepted, match=r"has not accepted 4 commands within 0\.2 s.*the mailbox of d1 is full"
            ):
                fleet.flush(0.2)
            with pytest.raises(OutboxFull, match=r"4 commands of .* wait for the broker, which is busy: the mailbox"):
                device.send(torch.ones(2))
            VirtualWorker(other, "d1")
            fleet.flush(WITHIN)
            sent.append(device.send(torch.ones(500)))  # larger than all that may wait: one always may
            with pytest.raises(OutboxFull) as caught:
                sent += [device.send(torch.ones(500)) for _ in range(1000)]
            assert (caught.value.limit, caught.value.limit_bytes) == (4, 1000)
            assert caught.value.size >= 2000
            assert all(value.numel() in {2, 500} for value in fleet.get(sent, timeout=WITHIN))


@pytest.mark.parametrize(("limits", "said"), [({"max_unaccepted": 0}, "at least 1"), ({"session": "x" * 257}, "257")])
def test_limits_that_mean_nothing(limits: dict[str, object], said: str) -> None:
    """A limit of nothing and a name that is too long are refused before anything starts."""
    with pytest.raises(ValueError, match=said):
        connect(**limits)  # type: ignore[arg-type]
