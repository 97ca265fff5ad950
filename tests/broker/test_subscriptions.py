"""What followers subscribe to, and what that asks for."""

from __future__ import annotations

import pytest

from broker.effects import Subscriptions
from broker.subscriptions import Topics


@pytest.mark.parametrize(
    ("topics", "level", "notifications"),
    [
        ([], 0, False),
        ([b""], 10, True),
        ([b"l."], 10, False),
        ([b"l"], 10, False),
        ([b"l.20."], 20, False),
        ([b"l.2"], 20, False),
        ([b"l.30.broker.", b"l.40."], 30, False),
        ([b"l.10.agent.pi-kitchen"], 10, False),
        ([b"n."], 0, True),
        ([b"n.0123"], 0, True),
        ([b"n.0123", b"l.40."], 40, True),
        ([b"x", b"l.99."], 0, False),
    ],
)
def test_demand(topics: list[bytes], level: int, *, notifications: bool) -> None:
    """The lowest level that anybody asks for, and whether anybody asks for notifications."""
    heard = Topics()
    for topic in topics:
        assert heard.heard(b"\x01" + topic)
    assert heard.demand() == Subscriptions(log_level=level, notifications=notifications)
    for topic in topics:
        assert heard.heard(b"\x00" + topic)
    assert heard.demand() == Subscriptions()


@pytest.mark.parametrize("message", [b"", b"\x00never", b"\x02topic", b"\xff"])
def test_what_is_no_subscription(message: bytes) -> None:
    """Other messages, and ends of what never began, change nothing."""
    heard = Topics()
    heard.heard(b"\x01l.20.")
    assert not heard.heard(message)
    assert heard.demand().log_level == 20
