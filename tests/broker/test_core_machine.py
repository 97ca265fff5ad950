"""Anything in any order: hypothesis drives a core with peers that lose messages, come back and start anew, and brokers
that are killed; the promises are checked all the way, and at the end everything must come to its end.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from broker.config import BrokerConfig
from broker.protocol.ids import nth
from broker.protocol.messages import (
    Accepted,
    Announce,
    AskStatus,
    Cancel,
    Deliver,
    Fetch,
    Frame,
    Goodbye,
    Heartbeat,
    Invoke,
    Message,
    NeedValues,
    Outcome,
    Put,
    Register,
    Release,
    ResultReady,
    ResultStatus,
    SessionOpened,
    StatusReport,
    Submit,
    Values,
)
from broker.transitions import TERMINAL, TRANSITIONS, UNENDED
from tests.broker.bench import VALUE, Bench, DevicePeer, SessionPeer

NAMES = ("one", "two")
devices = st.sampled_from(NAMES)
S = ResultStatus


def reachable(start: ResultStatus) -> frozenset[ResultStatus]:
    """What may be seen after ``start`` has been seen."""
    found, edge = {start}, [start]
    while edge:
        for after in TRANSITIONS[edge.pop()].values():
            if after not in found:
                found.add(after)
                edge.append(after)
    return frozenset(found)


REACHABLE = {status: reachable(status) for status in S}


class Agent(DevicePeer):
    """A device that keeps what it was given and what it made, and may die. Its own words are never lost: a link that
    loses them is tried in `tests.simulation`.
    """

    def __init__(self, bench: Bench, name: str) -> None:
        super().__init__(bench, name)
        self.queue: dict[bytes, Deliver] = {}
        self.made: dict[bytes, tuple[Deliver, bool]] = {}  # commands that have ended here, and whether with a value
        self.order: list[bytes] = []
        self.registered = False

    def say(self, message: Message, *frames: Frame) -> None:
        """Speak only when the broker has answered: it may wait for its ledger."""
        if isinstance(message, Register):
            self.registered = False
        elif not self.registered:
            self.registered = self.welcomed()
        if self.registered or isinstance(message, Register):
            super().say(message, *frames)
        elif isinstance(message, Announce):
            self.announced -= 1

    def work(self) -> None:
        """Take what has come."""
        for deliver in self.take_all():
            command = deliver.command
            if isinstance(command, Invoke | Put):
                if command.id in self.made:
                    self.tell_end(command.id)
                elif command.id not in self.queue:
                    self.queue[command.id] = deliver
                    self.order.append(command.id)
            elif isinstance(command, Cancel):
                self.queue.pop(command.id, None)

    def end(self, which: int, *, good: bool, inline: bool) -> None:
        """End one of the commands in the queue."""
        if self.queue:
            first = list(self.queue)[which % len(self.queue)]
            deliver = self.queue.pop(first)
            self.made[first] = (deliver, good)
            self.tell_end(first, inline=inline)

    def report(self) -> None:
        """After a registration: all that is not recorded, as far as it knows, and then that there is no more."""
        for first in list(self.made):
            self.tell_end(first)
        self.catch_up()

    def tell_end(self, first: bytes, *, inline: bool = True) -> None:
        """Announce an end, perhaps once more."""
        deliver, good = self.made[first]
        outputs = deliver.command.outputs if isinstance(deliver.command, Invoke) else 1
        if good:
            self.ready(deliver, inline=inline, outputs=outputs)
        else:
            self.failed(deliver)

    def answer(self) -> None:
        """Send what was fetched."""
        for fetch in self.all(Fetch):
            self.take(Fetch)
            self.tell(Values(r=fetch.r, outcomes=[Outcome(id=each) for each in fetch.ids]), *[VALUE] * len(fetch.ids))


class Coordinator(SessionPeer):
    """A session that keeps what was not accepted, and sends it again."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.unaccepted: dict[int, Submit] = {}
        self.ended: dict[bytes, object] = {}
        self.told: dict[bytes, ResultStatus] = {}  # what the broker has said, of those that have ended

    def submit(self, command: object, *frames: object, devices: tuple[str, ...] = ()) -> int:
        """Number a command and send it."""
        self.n += 1
        self.unaccepted[self.n] = Submit(n=self.n, devices=list(devices), command=command)  # type: ignore[arg-type]
        self.tell(self.unaccepted[self.n], *frames)  # type: ignore[arg-type]
        return self.n

    def catch_up(self) -> None:
        """Take in acknowledgements and notifications, and send again what was not taken."""
        for notify in self.notified():
            event = notify.event
            before = self.ended.setdefault(event.id, event)  # type: ignore[union-attr]
            assert type(before) is type(event), "a result ended twice, and differently"
        done = max(
            [accepted.n for accepted in self.all(Accepted)] + [opened.accepted for opened in self.all(SessionOpened)],
            default=0,
        )
        for n in [n for n in self.unaccepted if n <= done]:
            del self.unaccepted[n]
        for report in self.all(StatusReport):
            for entry in report.entries:
                before = self.told.get(entry.id, S.UNKNOWN)
                assert entry.status in REACHABLE[before], (entry.id.hex(), before, entry.status)
                if entry.status in TERMINAL:  # else it may go back: it is delivered again
                    self.told[entry.id] = entry.status
        self.clear()

    def send_again(self) -> None:
        """All that was not accepted."""
        for submit in list(self.unaccepted.values()):
            frames = (b"a manifest",) if submit.n == 1 else ()
            self.tell(submit, *frames)


class Fleet(RuleBasedStateMachine):
    """Two devices, a session, a broker."""

    results = Bundle("results")

    def __init__(self) -> None:
        super().__init__()
        config = BrokerConfig(
            log_level=100, window=3, device_commands=4, mailbox_commands=40, max_deliveries=1000, restart_grace=5.0
        )
        self.bench = Bench(config)
        self.session = Coordinator(self.bench)
        self.session.open()
        self.agents = {name: Agent(self.bench, name) for name in NAMES}
        for agent in self.agents.values():
            agent.register()
        self.ids: list[bytes] = []

    # --------------------------------------------------------------------------------------------- the session

    @rule(
        target=results,
        device=devices,
        arguments=st.lists(results, max_size=2),
        outputs=st.integers(1, 3),
        deadline_ms=st.sampled_from([0, 4000]),
    )
    def invoke(self, device: str, arguments: list[bytes], outputs: int, deadline_ms: int) -> object:
        """Run a plan on one device."""
        first = self.session.id_of(outputs)
        command = Invoke(
            id=first, plan=self.session.plan, args=list(arguments), outputs=outputs, deadline_ms=deadline_ms
        )
        self.session.submit(command, devices=(device,))
        self.ids.append(first)
        return multiple(*(nth(first, k) for k in range(outputs)))

    @rule(target=results)
    def invoke_everywhere(self) -> object:
        """Run a plan on both devices, and on one that nobody knows."""
        first = self.session.id_of(3)
        self.session.submit(Invoke(id=first, plan=self.session.plan, args=[]), devices=(*NAMES, "nobody"))
        made = [nth(first, k) for k in range(3)]
        self.ids += made
        return multiple(*made)

    @rule(result=results)
    def release(self, result: bytes) -> None:
        """A result is needed no more."""
        self.session.submit(Release(ids=[result]))

    @rule(result=results)
    def cancel(self, result: bytes) -> None:
        """An invocation is to end."""
        self.session.submit(Cancel(id=result))

    @rule(result=results)
    def ask(self, result: bytes) -> None:
        """Somebody asks what became of a result, and remembers the answer."""
        self.session.tell(AskStatus(r=1, ids=[result]))

    @rule(result=results)
    def fetch(self, result: bytes) -> None:
        """A value is wanted."""
        self.session.tell(Fetch(r=1, ids=[result]))

    @rule()
    def catch_up(self) -> None:
        """The session takes in what has come, and sends again what was not taken."""
        self.session.catch_up()
        self.session.send_again()

    @rule(lose=st.booleans())
    def session_reconnects(self, *, lose: bool) -> None:
        """The session's connection breaks, perhaps with messages in it."""
        if lose:
            self.session.clear()
        self.session.connect()
        self.session.open()
        self.session.catch_up()
        self.session.send_again()

    # --------------------------------------------------------------------------------------------- the devices

    @rule(device=devices)
    def work(self, device: str) -> None:
        """A device takes its commands."""
        self.agents[device].work()

    @rule(device=devices, which=st.integers(0, 5), good=st.booleans(), inline=st.booleans())
    def end(self, device: str, which: int, *, good: bool, inline: bool) -> None:
        """A device ends a command."""
        self.agents[device].end(which, good=good, inline=inline)

    @rule(device=devices)
    def lose(self, device: str) -> None:
        """What was on its way to a device is lost."""
        self.agents[device].clear()

    @rule(device=devices, restarted=st.booleans(), half_open=st.booleans())
    def come_back(self, device: str, *, restarted: bool, half_open: bool) -> None:
        """A device's connection breaks, or its agent is killed: it forgets its queue, and keeps what it made."""
        agent = self.agents[device]
        agent.clear()
        agent.connect(half_open=half_open and not restarted)
        if restarted:
            agent.start()
            agent.queue.clear()
        agent.register()
        agent.report()

    @rule(device=devices)
    def goodbye(self, device: str) -> None:
        """A device goes to sleep."""
        self.agents[device].tell(Goodbye())

    @rule(device=devices)
    def heartbeat(self, device: str) -> None:
        """A device says what it runs."""
        agent = self.agents[device]
        agent.tell(Heartbeat(running=dict.fromkeys(list(agent.queue)[:1], -1.0)))

    @rule(device=devices, result=results)
    def need(self, device: str, result: bytes) -> None:
        """A device needs a value from elsewhere."""
        self.agents[device].tell(NeedValues(ids=[result]))

    @rule(device=devices)
    def answer(self, device: str) -> None:
        """A device answers what it was asked for."""
        self.agents[device].answer()

    # --------------------------------------------------------------------------------------------- time and the broker

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        """The clock goes on."""
        self.bench.pass_time(seconds)

    @rule()
    def hold_the_disk(self) -> None:
        """From now on nothing gets into the ledger ..."""
        self.bench.holding = True

    @rule()
    def let_the_disk_go(self) -> None:
        """... until now."""
        self.bench.holding = False
        self.bench.persist()

    @precondition(lambda self: self.bench.now >= 1.0)
    @rule(know=st.booleans(), reports=st.lists(st.booleans(), min_size=2, max_size=2), first=st.booleans())
    def kill_the_broker(self, *, know: bool, reports: list[bool], first: bool) -> None:
        """The broker is killed, perhaps with writes under way, of which others may ``know``. Its peers come to the
        next one in any order, and a device may be slow to say all that it has.
        """
        if know:
            self.session.catch_up()
        self.bench.holding = False
        self.bench.restart()
        if first:
            self.session_returns()
        for agent, report in zip(self.agents.values(), reports, strict=True):
            agent.connect()
            agent.register()
            if report:
                agent.report()
        if not first:
            self.session_returns()

    def session_returns(self) -> None:
        """The session finds another broker."""
        self.session.connect()
        self.session.open()
        self.session.catch_up()
        self.session.send_again()

    # --------------------------------------------------------------------------------------------- promises

    @invariant()
    def counts_agree(self) -> None:
        """The tables count what they hold."""
        core = self.bench.core
        records = {id(record): record for record in core.results.by_id.values()}.values()
        unended = [record for record in records if record.unended]
        assert core.results.unended == len(unended)
        assert sum(session.unended for session in core.sessions) == len(unended)
        assert core.results.retention.value_bytes == sum(sum(map(len, record.value)) for record in records)
        for device in core.devices:
            mine = [record for record in unended if record.device is device]
            assert device.mailbox.commands == len(mine)
            assert all(record.status is S.DONE and not record.inline for record in device.kept.values())
        for record in records:
            assert record.uses == sum(each.needs.count(record) for each in records)

    def teardown(self) -> None:
        """Everybody comes back and does their work: then every result has ended, and its session has been told."""
        self.let_the_disk_go()
        for _ in range(2 * len(self.ids) + 20):
            self.session.connect()
            self.session.open()
            self.session.catch_up()
            self.session.send_again()
            self.session.catch_up()
            for agent in self.agents.values():
                agent.connect()
                agent.register()
                agent.work()
                agent.report()
                while agent.queue:
                    agent.end(0, good=True, inline=True)
                agent.answer()
            self.bench.pass_time(2.0)  # a command for a device that nobody knows waits for a grace
            self.session.catch_up()
            told = set(self.ids) <= set(self.session.ended)
            if told and not self.session.unaccepted and not self.bench.core.results.unended:
                break
        self.counts_agree()
        assert self.bench.core.results.unended == 0
        assert self.session.unaccepted == {}
        assert set(self.session.ended) == set(self.ids)
        self.session.tell(AskStatus(r=1, ids=self.ids))
        for entry in self.session.take(StatusReport).entries:
            assert entry.status in TERMINAL
            assert entry.status not in UNENDED
            event = self.session.ended[entry.command or entry.id]
            assert isinstance(event, ResultReady) == (entry.status in (S.DONE, S.RELEASED, S.LOST))


Fleet.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase
TestFleet.__doc__ = """Whatever happens in whatever order, the promises hold."""
