"""Taking up, at a start, what the ledger knows: devices and sessions that are away, and all that waits for them."""

from __future__ import annotations

from broker.context import INFO, Context
from broker.devices import Devices
from broker.ledger.interface import DropErrand, RecordErrand, RecordRelease, Snapshot, StoredResult
from broker.plans import Plans
from broker.protocol.messages import Cancel, Cancelled
from broker.records import Record
from broker.results import Results
from broker.sessions import Session, Sessions

__all__ = ["restore"]


def restore(
    snapshot: Snapshot, context: Context, *, devices: Devices, sessions: Sessions, plans: Plans, results: Results
) -> None:
    """Fill the empty tables of a core with ``snapshot``."""
    for plan in snapshot.plans:
        plans.restore(plan)
    for device in snapshot.devices:
        devices.restore(device)
    for name, entries in snapshot.tags.items():
        devices.tags.change(name, entries, (), whole=True)
    sessions.past.update(snapshot.past_sessions)
    sessions.fenced.update(snapshot.fenced)
    for session in snapshot.sessions:
        sessions.restore(session)

    def session_of(incarnation: bytes) -> Session | None:
        """Whose it is now: what an earlier incarnation of a named session has sent is the newest one's."""
        name = sessions.fenced.get(incarnation, "")
        return sessions.by_incarnation.get(incarnation) or sessions.by_name.get(name)

    def take_up(stored: StoredResult) -> Record:
        command = stored.command
        return results.restore(stored, session_of(command.incarnation), devices.by_name.get(command.device))

    # Ended ones first, in the order in which they ended, which is that of their notifications.
    by_id = {stored.command.id: stored for stored in snapshot.results}
    for ended in snapshot.ended:
        record = take_up(by_id[ended])
        if not record.seen:
            sessions.restored_ended(record)
    # Then what waits, in the order in which it came: a release waits for the commands before it.
    steps: list[tuple[int, StoredResult | RecordRelease | RecordErrand]] = []
    steps += [(stored.command.seq, stored) for stored in snapshot.results if stored.terminal is None]
    steps += [(release.seq, release) for release in snapshot.releases]
    steps += [(errand.seq, errand) for errand in snapshot.errands]
    context.seq = max([seq for seq, _ in steps] + [stored.command.seq for stored in snapshot.results], default=0)
    for _, step in sorted(steps, key=lambda step: step[0]):
        if isinstance(step, StoredResult):
            take_up(step)
        elif isinstance(step, RecordRelease):
            results.releases.restore(step, session_of(step.incarnation))
        elif step.device in devices.by_name:
            cancelled = results.by_id.get(step.command.id) if isinstance(step.command, Cancel) else None
            if cancelled is not None and cancelled.unended:
                event = Cancelled(id=cancelled.id, digest=cancelled.digest)
                results.held.hold(cancelled, event, step.seq)
            else:
                devices.by_name[step.device].mailbox.take_up(step.command, step.digest, step.seq)
        else:
            context.writes.append(DropErrand(seq=step.seq))  # its device was forgotten
    results.releases.resume()
    if snapshot.epoch > 1:
        context.log(INFO, "ledger_taken_up", epoch=snapshot.epoch, unended=results.unended)
