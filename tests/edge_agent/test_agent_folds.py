"""Folds on the device: which tensors they run on, also when they go on after a crash."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from edge_agent.jobs import RunJob
from tests.edge_agent.device import DemoPlan, Device, own_value, result_id, tensor_frame

PLAN = DemoPlan(outputs=2)
FOLD = m.Fold(carry=1, batch_size=2)
X, Y, NEWER_X, NEWER_Y = (tensor_frame(n) for n in range(4))


@pytest.fixture
def device() -> Device:
    """A device that has run the plan, and has data of its own."""
    made = Device()
    for counter, tag, source in ((1, "x", X), (2, "y", Y)):
        held = own_value(counter, tag, source=source)
        made.shelf.values[held.id] = held
    made.ready(PLAN)
    return made


def begin(device: Device, fold: m.Fold | None = FOLD) -> RunJob:
    """One command by tags, as the worker gets it."""
    device.invoke(PLAN, None, ["x"], ["y"], 3, counter=5, frames=[tensor_frame(0)], fold=fold)
    [job] = device.jobs()
    return job


def grow(device: Device, *, forget: bool = False) -> None:
    """The tags are those of newer tensors now; what they were before is there still, or not."""
    for counter, tag, source in ((1, "x", NEWER_X), (2, "y", NEWER_Y)):
        old = own_value(counter, source=(X, Y)[counter - 1])
        if forget and tag == "y":
            del device.shelf.values[old.id]
        else:
            device.shelf.values[old.id] = old
        new = own_value(counter + 10, tag, source=source)
        device.shelf.values[new.id] = new


def after_a_crash(device: Device, job: RunJob) -> RunJob:
    """The worker has died of it once, and another one gets it."""
    device.kill_worker(doing=job)
    device.wait(1)
    device.start_worker()
    device.load()
    [again] = device.jobs()
    return again


def test_the_worker_is_told_which_tensors_a_fold_is_of(device: Device) -> None:
    """By argument; what came with the command itself needs no name."""
    job = begin(device)
    assert job.args[1:3] == [X, Y]
    assert job.names == [b"", own_value(1).id, own_value(2).id, b""]


def test_other_commands_need_no_names(device: Device) -> None:
    """They are not gone on with."""
    assert begin(device, fold=None).names == []


def test_a_fold_goes_on_with_the_tensors_it_began_with(device: Device) -> None:
    """Though the tags are those of others by then: a data set that has grown."""
    job = begin(device)
    device.shelf.foldings[result_id(5)] = job.names
    grow(device)
    again = after_a_crash(device, job)
    assert (again.args[1:3], again.names) == ([X, Y], job.names)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_one_that_begins_anew_takes_what_the_tags_say_by_then(device: Device, checkpoint: bool) -> None:
    """Without a checkpoint; or where one of its tensors is not there any more: then all of them are new ones."""
    job = begin(device)
    if checkpoint:
        device.shelf.foldings[result_id(5)] = job.names
    grow(device, forget=checkpoint)
    again = after_a_crash(device, job)
    assert again.args[1:3] == [NEWER_X, NEWER_Y]
    assert again.names == [b"", own_value(11).id, own_value(12).id, b""]
