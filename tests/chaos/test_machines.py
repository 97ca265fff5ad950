"""Machines that lose their disk, have a double, or know the wrong time: over real processes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from broker.config import BrokerConfig
from broker.protocol.messages import ResultStatus
from coordinator import connect
from coordinator.errors import DeadlineExpired, LedgerLost, ResultLost, UnknownResult
from coordinator.fleet import Fleet
from edge_agent import Store
from tests.acceptance import plans
from tests.chaos.actors import Actor, Stage
from tests.waiting import PATIENCE

READY_WITHIN = 60.0
GRACE = BrokerConfig().restart_grace
YEARS = 365.25 * 24 * 3600
WRONG_CLOCK = Path(__file__).parent / "wrong_clock"


@contextlib.contextmanager
def broker_and_device(folder: Path) -> Iterator[tuple[Stage, Actor, Actor, Fleet]]:
    """A broker with a ledger on the disk, a device, and a session."""
    with Stage(folder) as stage:
        broker, device = stage.broker("--heartbeat-ms", "1000"), stage.agent("device_1")
        broker.start()
        stage.wait_for(broker, "broker_listening", READY_WITHIN)
        device.start()
        stage.wait_for(device, "agent_registered", READY_WITHIN)
        with connect(stage.endpoint, insecure=True, session="nightly") as fleet:
            yield stage, broker, device, fleet


def _pipes(folder: str, names: list[str]) -> list[str]:
    """What `shutil.copytree` can't copy: the pipe by which a store says that it has changed."""
    return [name for name in names if (Path(folder) / name).is_fifo()]


def test_a_lost_ledger(tmp_path: Path) -> None:
    """The broker's folder is gone: values on devices stay, what had not ended goes again, the rest says LedgerLost."""
    with broker_and_device(tmp_path) as (_stage, broker, device, fleet):
        on_device = plans.plus_one().send(fleet.device("device_1"))
        inline = on_device(torch.zeros(2))
        kept = on_device.options(inline=False, tags=["kept"])(torch.ones(2))
        assert torch.equal(inline.get(timeout=READY_WITHIN), torch.ones(2))
        assert kept.wait(PATIENCE)
        device.end()
        asked = [on_device(torch.full((2,), float(k))) for k in range(20)]
        fleet.flush(timeout=PATIENCE)

        broker.kill()
        shutil.rmtree(tmp_path / "broker")
        broker.start()
        device.start()

        for k, pointer in enumerate(asked):
            assert torch.equal(pointer.get(timeout=READY_WITHIN), torch.full((2,), float(k + 1)))
        assert torch.equal(kept.get(timeout=PATIENCE), torch.full((2,), 2.0))
        assert torch.equal(inline.get(timeout=PATIENCE), torch.ones(2))
        assert [found.id for found in fleet.device("device_1").search("kept")] == [kept.id]
        assert fleet.status(kept.id) == ResultStatus.DONE


@pytest.mark.long
def test_a_lost_ledger_and_a_session_that_is_gone(tmp_path: Path) -> None:
    """What a lost ledger knew, and nobody can send again, ends with an error that says so, after the grace period."""
    with broker_and_device(tmp_path) as (stage, broker, device, fleet):
        device.end()
        with connect(stage.endpoint, insecure=True) as other:
            gone = plans.plus_one().send(other.device("device_1"))(torch.zeros(2)).id
            other.flush(timeout=PATIENCE)
        watched = fleet.pointer(gone)
        broker.kill()
        shutil.rmtree(tmp_path / "broker")
        broker.start()
        device.start()
        with pytest.raises((LedgerLost, UnknownResult)):
            watched.get(timeout=GRACE + PATIENCE)


def test_a_lost_store(tmp_path: Path) -> None:
    """The device's folder is gone: what was recorded is lost, and says so; what had not ended is delivered again."""
    with broker_and_device(tmp_path) as (_stage, _broker, device, fleet):
        remote = fleet.device("device_1")
        kept = remote.send(torch.ones(2), tags=["kept"])
        assert kept.wait(READY_WITHIN)
        device.kill()
        asked = [remote.send(torch.full((2,), float(k))) for k in range(20)]
        fleet.flush(timeout=PATIENCE)

        shutil.rmtree(tmp_path / "device_1")
        device.start()

        for k, pointer in enumerate(asked):
            assert torch.equal(pointer.get(timeout=READY_WITHIN), torch.full((2,), float(k)))
        assert fleet.status(kept.id) == ResultStatus.LOST
        with pytest.raises(ResultLost):
            kept.get(timeout=PATIENCE)
        assert remote.search("kept") == []


def test_a_cloned_store(tmp_path: Path) -> None:
    """Two agents of one id, one with a copy of the other's store: the copy is quarantined, and the other works on."""
    with broker_and_device(tmp_path) as (stage, _broker, device, fleet):
        remote = fleet.device("device_1")
        kept = remote.send(torch.zeros(2))
        assert kept.wait(READY_WITHIN)
        device.end()
        shutil.copytree(tmp_path / "device_1", tmp_path / "copy", ignore=_pipes)
        device.start()
        stage.wait_for(device, "agent_registered", READY_WITHIN)
        assert remote.send(torch.ones(2)).wait(READY_WITHIN)
        device.end()
        asked = remote.send(torch.full((2,), 2.0))

        clone = stage.agent("device_1", name="clone", store="copy")
        clone.start()
        stage.wait_for(clone, "device_quarantined", READY_WITHIN)
        assert not asked.ready

        device.start()
        assert torch.equal(asked.get(timeout=READY_WITHIN), torch.full((2,), 2.0))
        assert torch.equal(kept.get(timeout=PATIENCE), torch.zeros(2))
        assert clone.running  # it waits for somebody to look, and does not flap


def test_a_device_whose_clock_is_wrong_by_years(tmp_path: Path) -> None:
    """A device ten years behind and one ten years ahead work as any; only the broker's clock lets commands expire."""
    with Stage(tmp_path) as stage:
        broker = stage.broker()
        broker.start()
        stage.wait_for(broker, "broker_listening", READY_WITHIN)
        devices = []
        for name, years in (("past", -10), ("future", 10)):
            with Store.open(tmp_path / name) as store:
                store.put(np.array([-1.0, 2.0], dtype=np.float32), tags=["input_data"])
            wrong = {"WRONG_BY": str(years * YEARS), "PYTHONPATH": str(WRONG_CLOCK)}
            devices.append(stage.agent(name, env=wrong))
            devices[-1].start()
        for device in devices:
            said = stage.wait_for(device, "agent_registered", READY_WITHIN)
            assert abs(int(str(said.record["timestamp"])[:4]) - 2000) < 100
        with connect(stage.endpoint, insecure=True) as fleet:
            kept = {}
            for device in devices:
                on_device = plans.double_abs().send(fleet.device(device.name)).options(deadline=60)
                assert torch.equal(on_device("input_data").get(timeout=READY_WITHIN), torch.tensor([2.0, 4.0]))
                kept[device.name] = on_device.options(inline=False)("input_data")
                assert kept[device.name].wait(PATIENCE)
                device.end()
                late = on_device.options(deadline=0.5)("input_data")
                early = on_device("input_data")
                with pytest.raises(DeadlineExpired):
                    late.get(timeout=PATIENCE)
                device.start()
                assert torch.equal(early.get(timeout=READY_WITHIN), torch.tensor([2.0, 4.0]))
                assert late.status() == ResultStatus.EXPIRED
            assert torch.equal(kept["past"].get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
            assert torch.equal(kept["future"].get(timeout=PATIENCE), torch.tensor([2.0, 4.0]))
