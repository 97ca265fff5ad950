"""How many bytes the messages take that every invocation sends."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from broker.protocol.framing import encode, size_of
from broker.protocol.ids import nth

RESULT = bytes(range(16))
PLAN = bytes(range(32))
DIGEST = bytes(range(16))
LATE = 1 << 40
"""A number that a stream reaches after ages."""


def invoke(arguments: list[m.Argument]) -> m.Invoke:
    """An invocation with a deadline set."""
    return m.Invoke(id=RESULT, plan=PLAN, args=arguments, deadline_ms=m.DEFAULT_DEADLINE_MS)


@pytest.mark.parametrize(
    "message",
    [
        m.Submit(n=LATE, devices=["pi-in-the-kitchen"], command=invoke([RESULT])),
        m.Deliver(n=LATE, digest=DIGEST, command=invoke([RESULT])),
        m.Deliver(n=LATE, digest=DIGEST, command=invoke([RESULT, nth(RESULT, 1), 0.5])),
        m.Deliver(n=LATE, digest=DIGEST, command=invoke([["input_data"], None])),
    ],
    ids=["submit", "deliver", "deliver-three-arguments", "deliver-by-tag"],
)
def test_an_invocation_is_at_most_160_bytes(message: m.Message) -> None:
    """All frames counted, the value of an argument not."""
    assert size_of([encode(message)]) <= 160


@pytest.mark.parametrize(
    "event",
    [
        m.ResultReady(id=RESULT, digest=DIGEST, inline=True),
        m.ResultReady(
            id=RESULT, digest=DIGEST, infos=[m.ResultInfo(dtype="bfloat16", shape=[64, 3, 224, 224], nbytes=19267584)]
        ),
        m.Cancelled(id=RESULT, digest=DIGEST),
        m.Expired(id=RESULT, digest=DIGEST),
    ],
    ids=["inline", "not-inline", "cancelled", "expired"],
)
def test_a_notification_is_at_most_120_bytes(event: m.Event) -> None:
    """All frames counted, the value not; from the device, and to the session."""
    assert size_of([encode(m.Announce(n=LATE, event=event))]) <= 120
    assert size_of([encode(m.Notify(n=LATE, device="pi-in-the-kitchen", event=event))]) <= 120


def test_an_invocation_on_many_devices_grows_by_their_names_and_ids_alone() -> None:
    """One command for a thousand devices is one message."""
    devices = [f"device-{k:04}" for k in range(1000)]
    each = {0: b"".join(nth(RESULT, k) for k in range(1000))}
    alone = m.Submit(n=LATE, devices=devices[:1], command=invoke([RESULT]))
    many = m.Submit(
        n=LATE, devices=devices, command=m.Invoke(id=RESULT, plan=PLAN, args=[None], deadline_ms=1000, each=each)
    )
    assert len(encode(many)) <= len(encode(alone)) + 1000 * (16 + 1 + len("device-0000")) + 20
