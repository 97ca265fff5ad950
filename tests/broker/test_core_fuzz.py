"""Any message from anybody, well-formed and without sense: the core never fails, and goes on for the others."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import BrokerConfig
from broker.protocol.messages import (
    PROTOCOL_VERSION,
    Announce,
    Goodbye,
    Message,
    OpenSession,
    Register,
    ResultStatus,
    Submit,
)
from tests.broker.bench import Bench, DevicePeer, SessionPeer
from tests.broker.protocol.message_strategies import any_message

LAST = b"\xff" * 7 + b"\xfe"

spoken = st.tuples(
    st.sampled_from(["session", "device", "other", "stranger"]),
    any_message(),
    st.randoms(use_true_random=False),
    st.lists(st.binary(max_size=3), max_size=3),
)


def sensible(value: Any, pools: dict[int, list[bytes]], choose: Any) -> Any:
    """``value`` with ids and names in it that mean something here, more often than not."""
    if isinstance(value, msgspec.Struct):
        changed = {}
        for name in value.__struct_fields__:
            changed[name] = sensible(getattr(value, name), pools, choose)
        return msgspec.structs.replace(value, **changed)
    if isinstance(value, bytes) and len(value) in pools and choose.random() < 0.8:
        return choose.choice(pools[len(value)])
    if isinstance(value, list):
        return [sensible(each, pools, choose) for each in value]
    if isinstance(value, dict):
        return {sensible(key, pools, choose): sensible(each, pools, choose) for key, each in value.items()}
    if isinstance(value, str) and type(value) is str and choose.random() < 0.5:
        return choose.choice(["device_1", "other", "nobody"])
    return value


def in_turn(message: Message, bench: Bench, speaker: Any) -> Message:
    """Under the next number, so that it is not dropped for its number alone; an introduction in a version that is
    spoken.
    """
    if isinstance(message, Submit) and isinstance(speaker, SessionPeer):
        session = bench.core.sessions.by_peer.get(speaker.id)
        return message if session is None else msgspec.structs.replace(message, n=session.inbox.taken + 1)
    if isinstance(message, Announce) and isinstance(speaker, DevicePeer):
        device = bench.core.devices.by_peer.get(speaker.id)
        return message if device is None else msgspec.structs.replace(message, n=device.inbox.taken + 1)
    if isinstance(message, Register | OpenSession):
        return msgspec.structs.replace(message, version=PROTOCOL_VERSION)
    return message


@settings(max_examples=200)
@given(st.lists(spoken, max_size=30))
def test_any_message_from_anybody(script: list[tuple[str, Message, Any, list[bytes]]]) -> None:
    """After whatever was said by a session, two devices and a stranger, one more invocation goes its way."""
    bench = Bench(BrokerConfig(log_level=10))
    session, device, other = bench.session(), bench.device(), bench.device("other")
    speakers = {"session": session, "device": device, "other": other, "stranger": bench.peer()}
    ids = [session.invoke(), session.invoke(outputs=3), session.invoke(device="other")]
    delivered = [*device.take_all(), *other.take_all()]
    device.ready(delivered[0], inline=False)
    ids += [session.incarnation + LAST, b"\0" * 16]
    pools = {
        16: ids + [deliver.digest for deliver in delivered],
        32: [session.plan, b"p" * 32],
        8: [session.incarnation],
    }
    for who, message, choose, frames in script:
        speaker = speakers[who]
        speaker.tell(in_turn(sensible(message, pools, choose), bench, speaker), *frames)
        bench.pass_time(choose.choice([0.0, 0.0, 0.3, 7.0]))
        bench.heard.clear()
    late_session, late_device = SessionPeer(bench), DevicePeer(bench, "late")
    late_session.open()
    late_device.register()
    result = late_session.invoke(device="late")
    late_device.ready(late_device.take_one())
    assert late_session.status(result) is ResultStatus.DONE
    for peer in speakers.values():
        peer.tell(Goodbye())
    bench.pass_time(100.0)
    bench.restart()
    assert bench.core.results.entry(result).status is ResultStatus.DONE
