"""Taking up, at a start, what the ledger knows: devices and sessions that are away, and all that waits for them."""

from __future__ import annotations

from broker.context import INFO, Context
from broker.devices import Devices
from broker.ledger.interface import RecordErrand, RecordRelease, Snapshot, StoredResult
from broker.plans import Plans
from broker.records import Record
from broker.results import Results
from broker.sessions import Sessions

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
    for session in snapshot.sessions:
        sessions.restore(session)

    def take_up(stored: StoredResult) -> Record:
        command = stored.command
        session = sessions.by_incarnation.get(command.incarnation)
        return results.restore(stored, session, devices.by_name.get(command.device))

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
            results.releases.restore(step, sessions.by_incarnation.get(step.incarnation))
        elif step.device in devices.by_name:
            devices.by_name[step.device].mailbox.take_up(step.command, step.digest, step.seq)
    results.releases.resume()
    if snapshot.epoch > 1:
        context.log(INFO, "ledger_taken_up", epoch=snapshot.epoch, unended=results.unended)
