"""The tag index: what devices have, as they last said it, also while they sleep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import BrokerConfig
from broker.protocol.messages import (
    AskStatus,
    Found,
    Goodbye,
    Heartbeat,
    ResultInfo,
    ResultStatus,
    Search,
    StatusReport,
    TagEntry,
    TagsChanged,
)
from broker.tags import TagIndex
from tests.broker.bench import WALL, Bench, SessionPeer

INFO = ResultInfo(dtype="float32", shape=[2], nbytes=8)


def entry(number: int, *tags: str) -> TagEntry:
    """A tagged tensor."""
    return TagEntry(id=bytes([number]) * 16, tags=list(tags), description=f"number {number}", info=INFO)


@pytest.fixture
def bench() -> Bench:
    """A broker."""
    return Bench()


def search(session: SessionPeer, *tags: str, devices: tuple[str, ...] = ()) -> Found:
    """Ask the index."""
    session.tell(Search(r=6, tags=list(tags), devices=list(devices)))
    found = session.take(Found)
    assert found.r == 6
    return found


def test_search(bench: Bench) -> None:
    """All tags must match; without any, everything tagged is found; no match is an empty list."""
    session, device = bench.session(), bench.device()
    entries = [entry(1, "x", "train"), entry(2, "x"), entry(3, "y")]
    device.announce(TagsChanged(entries=entries, whole=True))
    assert search(session, "x", devices=("device_1",)).entries == {"device_1": entries[:2]}
    assert search(session, "x", "train", devices=("device_1",)).entries == {"device_1": entries[:1]}
    assert search(session, devices=("device_1",)).entries == {"device_1": entries}
    assert search(session, "z", devices=("device_1",)).entries == {"device_1": []}
    assert search(session, "x", devices=("nobody",)).entries == {}


def test_search_everywhere(bench: Bench) -> None:
    """Without devices, all that have a match answer, each with its own time."""
    session, one, two = bench.session(), bench.device("one"), bench.device("two")
    bench.device("three")
    one.announce(TagsChanged(entries=[entry(1, "x")]))
    bench.pass_time(4.0)
    two.announce(TagsChanged(entries=[entry(2, "x"), entry(3, "y")]))
    found = search(session, "x")
    assert found.entries == {"one": [entry(1, "x")], "two": [entry(2, "x")]}
    assert found.as_of == {"one": WALL * 1000, "two": (WALL + 4.0) * 1000}
    assert set(search(session).entries) == {"one", "two"}
    assert search(session, "z").entries == {}


def test_search_while_the_device_sleeps(bench: Bench) -> None:
    """The index answers for a device that is away, and says as of when."""
    session, device = bench.session(), bench.device()
    device.announce(TagsChanged(entries=[entry(1, "x")]))
    bench.pass_time(3.0)
    device.tell(Heartbeat())
    device.tell(Goodbye())
    bench.pass_time(1000.0)
    session.connect()
    session.open()
    found = search(session, "x", devices=("device_1",))
    assert found.entries == {"device_1": [entry(1, "x")]}
    assert found.as_of == {"device_1": (WALL + 3.0) * 1000}


def test_changes(bench: Bench) -> None:
    """Entries come, change and go; `whole` replaces all."""
    session, device = bench.session(), bench.device()
    device.announce(TagsChanged(entries=[entry(1, "x"), entry(2, "x")]))
    device.announce(TagsChanged(entries=[entry(1, "y")], gone=[entry(2).id]))
    assert search(session, "x").entries == {}
    assert search(session, "y").entries == {"device_1": [entry(1, "y")]}
    device.announce(TagsChanged(entries=[entry(3, "z")], whole=True))
    assert search(session).entries == {"device_1": [entry(3, "z")]}


def test_status_of_a_tagged_tensor(bench: Bench) -> None:
    """A device's own tensor has no record, and yet a status: the index knows it."""
    session, device = bench.session(), bench.device()
    device.announce(TagsChanged(entries=[entry(1, "x")]))
    session.tell(AskStatus(r=1, ids=[entry(1).id]))
    (found,) = session.take(StatusReport).entries
    assert (found.status, found.device, found.info) == (ResultStatus.DONE, "device_1", INFO)
    assert (found.tags, found.description) == (["x"], "number 1")


def test_too_many_tags(bench: Bench) -> None:
    """A device's entries beyond the limit are not indexed, which is logged."""
    bench.config = BrokerConfig(log_level=10, tags_per_device=2)
    bench.restart()
    session, device = bench.session(), bench.device()
    device.announce(TagsChanged(entries=[entry(k, "x") for k in range(1, 5)]))
    assert search(session, "x").entries == {"device_1": [entry(1, "x"), entry(2, "x")]}
    (event,) = bench.events("tags_dropped")
    assert event.fields == {"device": "device_1", "dropped": 2, "limit": 2}


tag_lists = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
changes = st.tuples(
    st.sampled_from(["one", "two"]),
    st.lists(st.tuples(st.integers(1, 4), tag_lists), max_size=3),
    st.lists(st.integers(1, 4), max_size=2),
    st.booleans(),
)


@given(st.lists(changes, max_size=12), st.lists(st.sampled_from("abc"), max_size=3))
def test_index_equals_a_search_of_everything(
    steps: list[tuple[str, list[tuple[int, list[str]]], list[int], bool]], wanted: list[str]
) -> None:
    """Whatever changed in whatever order, the index finds what going through all entries finds, and keeps nothing
    else.
    """
    index = TagIndex(limit=100)
    model: dict[str, dict[bytes, TagEntry]] = {"one": {}, "two": {}}
    for device, entries, gone, whole in steps:
        made = [entry(number, *tags) for number, tags in entries]
        index.change(device, made, [entry(number).id for number in gone], whole=whole)
        if whole:
            model[device].clear()
        for number in gone:
            model[device].pop(entry(number).id, None)
        for each in made:
            model[device][each.id] = each

    def matches(device: str) -> list[TagEntry]:
        return [each for each in model[device].values() if set(wanted) <= set(each.tags)]

    def by_id(found: dict[str, list[TagEntry]]) -> dict[str, list[TagEntry]]:
        return {device: sorted(entries, key=lambda each: each.id) for device, entries in found.items()}

    everywhere = {device: matches(device) for device in model if matches(device)}
    assert by_id(index.search(wanted, None)) == by_id(everywhere)
    named = index.search(wanted, ["one", "nobody"])
    assert by_id(named) == by_id({"one": matches("one"), "nobody": []})
    for number in range(1, 5):
        owners = [device for device in model if entry(number).id in model[device]]
        assert (index.owner(entry(number).id) in owners) if owners else index.owner(entry(number).id) is None
    for device in model:
        index.forget(device)
    assert (index._devices, index._by_tag, index._owners) == ({}, {}, {})
