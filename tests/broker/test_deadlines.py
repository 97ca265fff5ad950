"""Deadlines pass in order, whatever the order in which they were set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.config import BrokerConfig
from broker.context import Context
from broker.deadlines import Deadlines
from broker.protocol.messages import ResultStatus
from broker.records import Record


def record(seq: int, deadline: float) -> Record:
    """A record of a command that has not ended."""
    return Record(
        seq=seq,
        id=seq.to_bytes(16, "big"),
        outputs=1,
        device=None,
        device_name="",
        session=None,
        n=0,
        digest=b"",
        command=None,
        frames=(),
        size=0,
        submitted=0.0,
        deadline=deadline,
    )


STEPS = st.lists(st.tuples(st.sampled_from(["set", "end", "wait"]), st.integers(0, 9)), max_size=60)


@given(STEPS)
def test_each_expires_at_its_time_unless_it_has_ended(steps: list[tuple[str, int]]) -> None:
    """Of all that are due at once the one with the earlier deadline is first, then the one that came first."""
    context = Context(BrokerConfig(), wall_offset=0.0)
    expired: list[Record] = []

    def expire(each: Record) -> None:
        expired.append(each)
        each.status = ResultStatus.EXPIRED
        deadlines.ended()

    deadlines = Deadlines(context, expire)
    unended: list[Record] = []
    for seq, (what, number) in enumerate([*steps, ("wait", 10)]):
        if what == "set":
            unended.append(record(seq, context.now + number))
            deadlines.add(unended[-1])
        elif what == "end" and unended:
            unended.pop(number % len(unended)).status = ResultStatus.DONE
            deadlines.ended()
        elif what == "wait":
            context.now += number
            context.run_timers()
            due = sorted((each for each in unended if each.deadline <= context.now), key=lambda r: (r.deadline, r.seq))
            assert expired == due
            expired.clear()
            unended = [each for each in unended if each.unended]
    assert not unended
    assert len(deadlines) == 0
