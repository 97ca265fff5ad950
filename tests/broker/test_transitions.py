"""The machine of a result: every status against every input, as a table and through the core."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import BrokerConfig
from broker.protocol.messages import (
    AskStatus,
    Cancel,
    Cancelled,
    Deliver,
    Heartbeat,
    Invoke,
    Release,
    ResultStatus,
    StatusReport,
)
from broker.transitions import MEANINGS, TERMINAL, TRANSITIONS, UNENDED, Input, page
from tests.broker.bench import Bench, DevicePeer, SessionPeer

S = ResultStatus
RETENTION_SECONDS = 100.0
DEADLINE_SECONDS = 50.0

# One row a status, one column an input; "." changes nothing.
TABLE = """
            submit take      start   redeliver value failure cancel    deadline release  store_lost forget
unknown     queued .         .       .         done  failed  cancelled expired  .        .          .
queued      .      delivered running queued    done  failed  cancelled expired  .        .          .
delivered   .      delivered running queued    done  failed  cancelled expired  .        .          .
running     .      running   running queued    done  failed  cancelled expired  .        .          .
done        .      .         .       .         .     .       .         .        released lost       forgotten
failed      .      .         .       .         .     .       .         .        .        .          forgotten
expired     .      .         .       .         .     .       .         .        .        .          forgotten
cancelled   .      .         .       .         .     .       .         .        .        .          forgotten
released    .      .         .       .         .     .       .         .        .        .          forgotten
lost        .      .         .       .         .     .       .         .        .        .          forgotten
forgotten   .      .         .       .         .     .       .         .        .        .          .
"""


def cells() -> list[tuple[ResultStatus, Input, ResultStatus | None]]:
    """All pairs of the table."""
    header, *rows = TABLE.strip().splitlines()
    inputs = [Input(name) for name in header.split()]
    found = []
    for row in rows:
        start, *ends = row.split()
        found += [(S(start), given, None if end == "." else S(end)) for given, end in zip(inputs, ends, strict=True)]
    return found


@pytest.mark.parametrize(("start", "given", "end"), cells())
def test_table(start: ResultStatus, given: Input, end: ResultStatus | None) -> None:
    """Each pair leads where it should, and there is no pair beside them."""
    assert TRANSITIONS[start].get(given) is end


def test_table_is_whole() -> None:
    """Every status and every input has its place."""
    assert {start for start, _, _ in cells()} == set(S) == set(TRANSITIONS)
    assert {given for _, given, _ in cells()} == set(Input) == set(MEANINGS)
    assert {S.UNKNOWN, S.FORGOTTEN}.isdisjoint(TERMINAL | UNENDED)
    assert set(S) == {S.UNKNOWN, S.FORGOTTEN} | TERMINAL | UNENDED


def test_nothing_terminal_becomes_unended() -> None:
    """A result has one terminal record: only `done` may still become `released` or `lost`, until it is forgotten."""
    for status in TERMINAL:
        after = set(TRANSITIONS[status].values()) - {S.FORGOTTEN}
        assert after == ({S.RELEASED, S.LOST} if status is S.DONE else set())


def test_diagram_in_the_documentation_is_current() -> None:
    """docs/states.md is what the table says."""
    assert Path("docs/states.md").read_text(encoding="utf-8") == page()


class Scene:
    """One session, one device, one invocation, which is brought into any status and given any input."""

    def __init__(self) -> None:
        config = BrokerConfig(log_level=10, default_deadline_ms=50_000, retention_ms=100_000, heartbeat_ms=10_000)
        self.bench = Bench(config)
        self.session: SessionPeer = self.bench.session()
        self.device: DevicePeer = self.bench.device()
        self.id = self.session.id_of()
        self.command = Invoke(id=self.id, plan=self.session.plan, args=[])
        self.deliver = Deliver(n=1, digest=b"?" * 16, command=self.command)

    def submit(self) -> None:
        """The session sends the command."""
        self.session.submit(self.command)
        if not self.deliver.digest.strip(b"?"):
            self.deliver = self.device.all(Deliver)[0]

    def take(self) -> None:
        """The device acknowledges what has come."""
        self.device.take_all()

    def start(self) -> None:
        """The device says that it runs."""
        self.device.tell(Heartbeat(running={self.id: -1.0}))

    def redeliver(self) -> None:
        """The agent starts anew."""
        self.device.come_back(restarted=True)

    def value(self) -> None:
        """The device announces a value, which it keeps."""
        self.device.ready(self.deliver, inline=False)

    def failure(self) -> None:
        """The device announces a failure."""
        self.device.failed(self.deliver)

    def cancel(self) -> None:
        """The session cancels."""
        self.session.submit(Cancel(id=self.id))

    def deadline(self) -> None:
        """Its time is over."""
        self.bench.pass_time(DEADLINE_SECONDS)

    def release(self) -> None:
        """The session releases it."""
        self.session.submit(Release(ids=[self.id]))

    def store_lost(self) -> None:
        """The device comes back with another store."""
        self.device.store = b"another store..."
        self.device.token = b""
        self.device.come_back(restarted=True)

    def forget(self) -> None:
        """Its retention is over."""
        self.session.notified()
        self.bench.pass_time(DEADLINE_SECONDS + RETENTION_SECONDS)

    def give(self, given: Input) -> None:
        """The input by its name."""
        getattr(self, given.value)()

    @property
    def status(self) -> ResultStatus:
        """What a coordinator is told; one that has just come, since time may have passed."""
        self.session.connect()
        self.session.open()
        return self.session.status(self.id)


REACH: dict[ResultStatus, tuple[Input, ...]] = {
    S.QUEUED: (Input.SUBMIT,),
    S.DELIVERED: (Input.SUBMIT, Input.TAKE),
    S.RUNNING: (Input.SUBMIT, Input.TAKE, Input.START),
    S.DONE: (Input.SUBMIT, Input.TAKE, Input.VALUE),
    S.FAILED: (Input.SUBMIT, Input.TAKE, Input.FAILURE),
    S.EXPIRED: (Input.SUBMIT, Input.DEADLINE),
    S.CANCELLED: (Input.SUBMIT, Input.CANCEL),
    S.RELEASED: (Input.SUBMIT, Input.TAKE, Input.VALUE, Input.RELEASE),
    S.LOST: (Input.SUBMIT, Input.TAKE, Input.VALUE, Input.STORE_LOST),
    S.FORGOTTEN: (Input.SUBMIT, Input.TAKE, Input.VALUE, Input.FORGET),
}


def possible(cell: tuple[ResultStatus, Input, ResultStatus | None]) -> bool:
    """Whether the scene can play it: time that passes also ends what has not, so FORGET is for what has ended."""
    start, given, _ = cell
    if start is S.UNKNOWN:
        return False
    if given is Input.FORGET:
        return start in TERMINAL
    # The same command once more, under a new number, is taken up and changes nothing; but see test_core_submit.
    return not (given is Input.SUBMIT and start is S.FORGOTTEN)


@pytest.mark.parametrize(("start", "given", "end"), [cell for cell in cells() if possible(cell)])
def test_core_follows_the_table(start: ResultStatus, given: Input, end: ResultStatus | None) -> None:
    """What a coordinator is told about an id follows the table, whatever happens when."""
    scene = Scene()
    for step in REACH[start]:
        scene.give(step)
    assert scene.status is start
    scene.give(given)
    if given is Input.STORE_LOST and start in UNENDED:
        assert scene.status is S.QUEUED  # a new store comes with a new start of the agent
    else:
        assert scene.status is (end or start)


def test_device_may_cancel() -> None:
    """A device that was told to end a command says so, and that counts."""
    scene = Scene()
    scene.submit()
    scene.take()
    scene.device.announce(Cancelled(id=scene.id, digest=scene.deliver.digest))
    assert scene.status is S.CANCELLED


def test_unknown_is_unknown() -> None:
    """An id that nobody has made is unknown; one of a session's that was made and forgotten is not."""
    scene = Scene()
    scene.submit()
    stranger = scene.session.incarnation + (1 << 40).to_bytes(8, "big")
    scene.session.tell(AskStatus(r=7, ids=[stranger, scene.id, b"\0" * 16]))
    report = scene.session.take(StatusReport)
    assert [entry.status for entry in report.entries] == [S.UNKNOWN, S.QUEUED, S.UNKNOWN]
    assert report.r == 7
