"""Code that is wrong on purpose, in named places: what the simulation must find.

A mutant patches the real code (or, where the fault is one of a driver or a disk, the simulation's own), and is called
with pytest's monkeypatch. `MUTANTS` has all of them, each with the seeds that are known to find it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from broker.acknowledgements import Acknowledgements
from broker.announcements import Announcements
from broker.core import BrokerCore
from broker.devices import Device
from broker.effects import Persisted
from broker.ledger.interface import RecordTerminal
from broker.mailboxes import Mailbox
from broker.protocol.bundles import unpack
from broker.protocol.errors import ProtocolError
from broker.protocol.messages import Failure, Registered
from broker.protocol.streams import Inbox, Outbox, Verdict
from broker.records import Record
from broker.releases import Releases
from broker.results import Results
from broker.sessions import Session, Sessions
from broker.submissions import Submissions
from broker.values import Values
from coordinator.core_commands import Commands
from coordinator.core_outgoing import Outgoing
from coordinator.core_results import Result
from coordinator.core_tables import ResultInput
from edge_agent.core_commands import Command
from edge_agent.core_ends import Ends
from edge_agent.core_link import Link
from edge_agent.core_runs import Runs
from edge_agent.effects import TensorUnfit
from tests.simulation.broker_node import BrokerNode
from tests.simulation.device_blobs import DeviceBlobs
from tests.simulation.disks import LedgerDisk, ShelfDisk

__all__ = ["MUTANTS", "Mutant"]

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One place, and how it is broken. ``seeds``: which are known to find it."""

    mutate: Callable[[Patch], None]
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What a test of it is called."""
        return self.mutate.__name__


# ------------------------------------------------------------------------------------------------- streams


def take_duplicates(patch: Patch) -> None:
    """A receiver takes whatever number comes."""

    def offer(self: Inbox, n: int) -> Verdict:
        self.taken = max(n, self.taken)
        return Verdict.NEXT

    patch.setattr(Inbox, "offer", offer)


def never_go_back(patch: Patch) -> None:
    """A sender sends each message once on a connection."""
    original: Any = Outbox.__init__

    def init(self: Outbox[object], **options: Any) -> None:
        original(self, **{**options, "patience": 1e9})

    patch.setattr(Outbox, "__init__", init)


def forget_what_is_unacknowledged(patch: Patch) -> None:
    """A sender counts as delivered what was under way when a connection broke."""

    def rewind(self: Outbox[object]) -> None:
        self.items.clear()
        self._sent = 0

    patch.setattr(Outbox, "rewind", rewind)


# ------------------------------------------------------------------------------------------------- the broker


def acknowledge_early(patch: Patch) -> None:
    """`Accepted` and `Recorded` follow the writing of a commit, not its end."""
    original: Any = Acknowledgements.flush

    def flush(self: Acknowledgements, now: float = 0.0) -> None:
        original(self, now)
        self.persisted(self._last)

    patch.setattr(Acknowledgements, "flush", flush)


def skip_the_ledgers_sync(patch: Patch) -> None:
    """The ledger says that a commit is on the disk when it is in the page cache."""

    def sync(self: BrokerNode, asked: list[Any]) -> None:
        self._committing = False
        for persist in asked:
            self.feed(Persisted(ticket=persist.ticket))
        if self._asked and not self._committing:
            self._committing = True
            self._write()

    patch.setattr(BrokerNode, "_sync", sync)


def skip_the_blobs_sync(patch: Patch) -> None:
    """A commit names blobs that are in the page cache."""
    patch.setattr(LedgerDisk, "sync_blobs", lambda _self: None)


def record_no_ends(patch: Patch) -> None:
    """How a command ended is told, and not written."""
    original: Any = Results.conclude

    def conclude(self: Results, *args: Any, **rest: Any) -> None:
        original(self, *args, **rest)
        writes = self._context.writes
        writes[:] = [write for write in writes if not isinstance(write, RecordTerminal)]

    patch.setattr(Results, "conclude", conclude)


def take_any_number(patch: Patch) -> None:
    """The broker takes a session's command though an earlier one is missing."""
    original: Any = Submissions.submit

    def submit(self: Submissions, session: Session, message: Any, *rest: Any) -> None:
        session.inbox.taken = max(session.inbox.taken, message.n - 1)
        original(self, session, message, *rest)

    patch.setattr(Submissions, "submit", submit)


def forget_the_digest(patch: Patch) -> None:
    """The broker takes another command under an id that is taken."""
    patch.setattr(Submissions, "_known", lambda *_: None)


def let_a_second_end_win(patch: Patch) -> None:
    """A later announcement changes what was recorded."""
    original: Any = Announcements.ended

    def ended(self: Announcements, device: Device, event: Any, frames: Any) -> None:
        record = self._results.by_id.get(event.id)
        if record is not None and not record.unended and record.device is device and record.event != event:
            record.status = record.status.DELIVERED
            self._results.unended += 1
            if record.session is not None:
                record.session.unended += 1
        original(self, device, event, frames)

    patch.setattr(Announcements, "ended", ended)


def count_as_delivered_what_was_pulled(patch: Patch) -> None:
    """What a device has taken is not given to its next start."""
    original: Any = Mailbox.restart

    def restart(self: Mailbox, *args: Any, **rest: Any) -> list[Record]:
        self._held.clear()
        worn_out: list[Record] = original(self, *args, **rest)
        return worn_out

    patch.setattr(Mailbox, "restart", restart)


def deliver_without_counting(patch: Patch) -> None:
    """No delivery is ever counted."""
    original: Any = Mailbox.restart

    def restart(self: Mailbox, *args: Any, **rest: Any) -> list[Record]:
        for record in self._held.values():
            record.deliveries = 0
        worn_out: list[Record] = original(self, *args, **rest)
        return worn_out

    patch.setattr(Mailbox, "restart", restart)


def redeliver_in_reverse(patch: Patch) -> None:
    """A device's next start gets what has not ended, the youngest first."""
    original: Any = Mailbox.restart

    def restart(self: Mailbox, *args: Any, **rest: Any) -> list[Record]:
        worn_out: list[Record] = original(self, *args, **rest)
        waiting = list(self._waiting)
        self._waiting.clear()
        self._waiting.extend(reversed(waiting))
        return worn_out

    patch.setattr(Mailbox, "restart", restart)


def forget_who_is_fenced(patch: Patch) -> None:
    """An incarnation that was fenced may come back."""
    original: Any = Sessions.open

    def open_session(self: Sessions, peer: bytes, message: Any) -> None:
        self.fenced.pop(message.incarnation, None)
        self.past.pop(message.incarnation, None)
        original(self, peer, message)

    patch.setattr(Sessions, "open", open_session)


def forget_what_was_not_seen(patch: Patch) -> None:
    """After a restart the broker tells nobody what ended before."""
    patch.setattr(Sessions, "restored_ended", lambda *_: None)


def release_what_is_needed(patch: Patch) -> None:
    """A release does not wait for the commands that need the value."""
    patch.setattr(Releases, "_tie", lambda *_: None)


def release_at_once(patch: Patch) -> None:
    """A release does not wait for the commands before it, and drops what is needed."""
    original: Any = Releases.release

    def release(self: Releases, session: Session, ids: Any, **rest: Any) -> bool:
        for each in ids:
            record = self._by_id.get(each)
            if record is not None:
                record.uses = 0
                record.passed |= record.bit(each)
        self._act([record for each in ids if (record := self._by_id.get(each)) is not None])
        waits: bool = original(self, session, ids, **rest)
        return waits

    patch.setattr(Releases, "release", release)


def keep_lost_values(patch: Patch) -> None:
    """A device that comes with another store is said to have the values of its old one."""
    patch.setattr(Announcements, "store_lost", lambda *_: None)


# ------------------------------------------------------------------------------------------------- bundles


def forget_what_is_due_while_more_follows(patch: Patch) -> None:
    """What a message lets the broker's streams say is forgotten, if another one follows in the same bundle."""
    original: Any = BrokerCore.handle

    def handle(self: BrokerCore, event: Any, now: float, *, more: bool = False) -> list[object]:
        instructions: list[object] = original(self, event, now, more=more)
        if more:
            self._context.due = {}
        return instructions

    patch.setattr(BrokerCore, "handle", handle)


def do_nothing_while_more_follows(patch: Patch) -> None:
    """What the broker's core says to a message is not done, if another one follows in the same bundle."""
    original: Any = BrokerCore.handle

    def handle(self: BrokerCore, event: Any, now: float, *, more: bool = False) -> list[object]:
        instructions: list[object] = original(self, event, now, more=more)
        return [] if more else instructions

    patch.setattr(BrokerCore, "handle", handle)


def drop_the_rest_of_a_bundle(patch: Patch) -> None:
    """After a part of a bundle that means nothing to it a receiver looks at no other."""

    def unpack_until(frames: Any, **options: Any) -> list[Any]:
        parts = unpack(frames, **options)
        wrong = [k for k, part in enumerate(parts) if isinstance(part[0], ProtocolError)]
        return parts[: wrong[0] + 1] if wrong else parts

    patch.setattr("tests.simulation.network.unpack", unpack_until)


def send_bundles_to_everybody(patch: Patch) -> None:
    """The broker sends bundles to peers that can't read them."""
    patch.setattr(BrokerCore, "reads_bundles", lambda *_: True)


# ------------------------------------------------------------------------------------------------- the device


def announce_before_the_sync(patch: Patch) -> None:
    """The store says that a value is on the disk when it is in the page cache."""

    def finish(self: ShelfDisk) -> None:
        sync, self.sync = self.sync, lambda: None  # type: ignore[method-assign]  # a mutant
        original(self)
        self.sync = sync  # type: ignore[method-assign]  # a mutant

    original: Any = ShelfDisk.finish
    patch.setattr(ShelfDisk, "finish", finish)


def run_again_what_has_ended(patch: Patch) -> None:
    """A command that comes again is run again, whatever the store says."""
    original: Any = Runs._known

    def known(self: Runs, id: bytes, digest: bytes) -> bool:
        command = self._commands.get(id)
        return command is not None and not command.ended and original(self, id, digest)

    patch.setattr(Runs, "_known", known)


def start_in_reverse(patch: Patch) -> None:
    """A device starts the youngest command first."""
    original: Any = Command.__init__

    def init(self: Command, *args: Any, order: int, **rest: Any) -> None:
        original(self, *args, order=-order, **rest)

    patch.setattr(Command, "__init__", init)


def expire_by_the_devices_clock(patch: Patch) -> None:
    """A device takes the time left for a point in time."""
    original: Any = Command.__init__

    def init(self: Command, body: Any, *args: Any, deadline: float, **rest: Any) -> None:
        original(self, body, *args, deadline=(body.deadline_ms or 1e12) / 1000, **rest)

    patch.setattr(Command, "__init__", init)


def never_give_up_a_poison(patch: Patch) -> None:
    """A command is tried again however many workers have died of it."""
    original: Any = Runs.__init__

    def init(self: Runs, *args: Any, **rest: Any) -> None:
        original(self, *args, **rest)
        self._max_deaths = 10**9

    patch.setattr(Runs, "__init__", init)


def forget_to_announce_again(patch: Patch) -> None:
    """A device that registers anew does not say how commands ended meanwhile."""
    patch.setattr(ShelfDisk, "unrecorded", lambda _self: [])


def forget_what_could_not_be_kept(patch: Patch) -> None:
    """A command whose values could not be written never ends."""
    patch.setattr(Ends, "keep_failed", lambda *_: None)


def wait_for_ends_that_are_gone(patch: Patch) -> None:
    """At a registration nobody looks for ends that could be neither written nor told."""
    patch.setattr(Runs, "tell_unwritten", lambda *_: None)


def present_a_token_that_was_not_written(patch: Patch) -> None:
    """A device takes a registration for good that it could not write down."""
    patch.setattr(Link, "unsaved", lambda _self: None)


def fetch_into_the_same_file(patch: Patch) -> None:
    """A blob that is fetched again comes into the file of the copy that is still being kept."""
    begin: Any = DeviceBlobs.__init__

    def init(self: DeviceBlobs, *args: Any) -> None:
        begin(self, *args)
        self._arrivals = itertools.repeat(0)

    patch.setattr(DeviceBlobs, "__init__", init)
    original: Any = Runs.tensor_unfit

    def unfit(self: Runs, event: TensorUnfit) -> None:
        original(self, TensorUnfit(id=event.id, failure=event.failure))

    patch.setattr(Runs, "tensor_unfit", unfit)


def give_up_what_was_dropped(patch: Patch) -> None:
    """A large argument whose blob the broker has dropped is lost."""
    patch.setattr("edge_agent.core_arguments._SUPPLIES", 1)


def wait_for_blobs_that_have_gone(patch: Patch) -> None:
    """A device that has answered with a blob is not asked again, though that has gone."""
    original: Any = Values._ask

    def ask(self: Values, device: Device, ids: Any) -> None:
        original(self, device, [id for id in ids if device.wants[id].outcome is None])

    patch.setattr(Values, "_ask", ask)


def take_for_ours_what_another_broker_sent(patch: Patch) -> None:
    """What a device has taken of one broker counts for the next, whose numbers begin anew."""
    original: Any = Link.welcome

    def welcome(self: Link, message: Registered) -> bool:
        before = self._inbox
        taken: bool = original(self, message)
        if taken and before.taken > self._inbox.taken:
            self._inbox = before
        return taken

    patch.setattr(Link, "welcome", welcome)


# ------------------------------------------------------------------------------------------------- the session


def take_an_older_answer_for_a_loss(patch: Patch) -> None:
    """A session that is told less than before, by an answer that was overtaken, numbers its commands anew."""
    patch.setattr(Commands, "knows_more", lambda *_: False)


def mix_up_values(patch: Patch) -> None:
    """A session gives a result the values of another one."""
    original: Any = Result.end
    last: list[tuple[bytes, ...]] = []

    def end(self: Result, step: Any, frames: tuple[bytes, ...] = (), *rest: Any, **named: Any) -> None:
        mine, last[:] = (last[0] if last else frames), [frames] if len(frames) == 1 else last
        original(self, step, mine if len(mine) == len(frames) else frames, *rest, **named)

    patch.setattr(Result, "end", end)


def forget_unended_commands(patch: Patch) -> None:
    """A session keeps nothing that was accepted, for a ledger that is lost."""
    original: Any = Commands._start_over

    def start_over(self: Commands, accepted: int, out: list[object]) -> None:
        kept = [one for one in self._kept if one.accepted]
        for one in kept:
            del self._kept[one]
        original(self, accepted, out)

    patch.setattr(Commands, "_start_over", start_over)


def take_a_taken_id_for_unmade(patch: Patch) -> None:
    """A session takes an id that another command has already for one that no broker knows."""

    def end_all(self: Commands, outgoing: Outgoing, failure: Failure, out: list[object]) -> None:
        for result in outgoing.results:
            if not result.ended:
                self._unmade.add(result, failure)
                self.end(result, ResultInput.FAILED, out, failure=failure)

    patch.setattr(Commands, "_end_all", end_all)


def end_here_what_the_broker_records(patch: Patch) -> None:
    """A session sends no call on a result that has failed, wherever that was."""
    original: Any = Commands.end

    def end(self: Commands, result: Result, step: ResultInput, *args: Any, **kwargs: Any) -> None:
        original(self, result, step, *args, **kwargs)
        if result.failure is not None:
            self._unmade.add(result, result.failure)

    patch.setattr(Commands, "end", end)


MUTANTS = (
    Mutant(mutate=take_duplicates, seeds=(9, 10)),
    Mutant(mutate=never_go_back, seeds=(0, 6)),
    Mutant(mutate=forget_what_is_unacknowledged, seeds=(0, 6)),
    Mutant(mutate=acknowledge_early, seeds=(0, 1)),
    Mutant(mutate=skip_the_ledgers_sync, seeds=(0, 1)),
    Mutant(mutate=skip_the_blobs_sync, seeds=(41, 131)),
    Mutant(mutate=record_no_ends, seeds=(0, 1)),
    Mutant(mutate=take_any_number, seeds=(0, 6)),
    Mutant(mutate=forget_the_digest, seeds=(8, 11)),
    Mutant(mutate=let_a_second_end_win, seeds=(0, 13)),
    Mutant(mutate=count_as_delivered_what_was_pulled, seeds=(9, 17)),
    Mutant(mutate=deliver_without_counting, seeds=(82, 92)),
    Mutant(mutate=redeliver_in_reverse, seeds=(5, 11)),
    Mutant(mutate=forget_who_is_fenced, seeds=(130, 150)),
    Mutant(mutate=forget_what_was_not_seen, seeds=(43, 151)),
    Mutant(mutate=release_what_is_needed, seeds=(47, 62)),
    Mutant(mutate=release_at_once, seeds=(39, 47)),
    Mutant(mutate=keep_lost_values, seeds=(84, 87)),
    Mutant(mutate=forget_what_is_due_while_more_follows, seeds=(7, 33)),
    Mutant(mutate=do_nothing_while_more_follows, seeds=(1, 2)),
    Mutant(mutate=drop_the_rest_of_a_bundle, seeds=(23, 31)),
    Mutant(mutate=send_bundles_to_everybody, seeds=(3, 5)),
    Mutant(mutate=announce_before_the_sync, seeds=(0, 1)),
    Mutant(mutate=run_again_what_has_ended, seeds=(8, 13)),
    Mutant(mutate=start_in_reverse, seeds=(0, 1)),
    Mutant(mutate=expire_by_the_devices_clock, seeds=(0, 1)),
    Mutant(mutate=never_give_up_a_poison, seeds=(37, 48)),
    Mutant(mutate=forget_to_announce_again, seeds=(8, 13)),
    Mutant(mutate=forget_what_could_not_be_kept, seeds=(13, 20)),
    Mutant(mutate=wait_for_ends_that_are_gone, seeds=(446, 834)),
    Mutant(mutate=present_a_token_that_was_not_written, seeds=(2419, 2474)),
    Mutant(mutate=fetch_into_the_same_file, seeds=(208, 242)),
    Mutant(mutate=give_up_what_was_dropped, seeds=(1805, 5048)),
    Mutant(mutate=wait_for_blobs_that_have_gone, seeds=(360, 1008)),
    Mutant(mutate=take_for_ours_what_another_broker_sent, seeds=(13, 41)),
    Mutant(mutate=take_an_older_answer_for_a_loss, seeds=(1294,)),
    Mutant(mutate=mix_up_values, seeds=(0, 1)),
    Mutant(mutate=forget_unended_commands, seeds=(728, 839)),
    Mutant(mutate=take_a_taken_id_for_unmade, seeds=(300040, 300383)),
    Mutant(mutate=end_here_what_the_broker_records, seeds=(21, 29)),
)
"""All mutants."""
