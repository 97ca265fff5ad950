"""Taking up results by their ids: those of other sessions, of earlier incarnations of this one, or found by tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.protocol.batches import batches
from broker.protocol.ids import counter_of, incarnation_of, nth
from broker.protocol.messages import AskStatus, ResultStatus, StatusEntry, StatusReport
from coordinator.core_events import Watch
from coordinator.core_requests import failure_of
from coordinator.core_results import Result
from coordinator.core_tables import ResultInput
from coordinator.errors import error_from_failure
from coordinator.pointers import PointerTensor

if TYPE_CHECKING:
    from coordinator.fleet import Fleet

__all__ = ["take_up", "take_up_session"]

IDS_A_QUESTION = 1000
"""About how many ids one question asks."""


def take_up(fleet: Fleet, raw: bytes, pending: tuple[Result, int] | None) -> PointerTensor:
    """The pointer to what an id names; ``pending``, if it is of a command of this session that has not ended."""
    if pending is not None:
        return PointerTensor(fleet, *pending)
    entry = fleet.status_entry(raw)
    if entry.status in {ResultStatus.UNKNOWN, ResultStatus.FORGOTTEN}:
        failure = failure_of(entry)
        assert failure is not None
        raise error_from_failure(failure, id=raw)
    return _pointer(fleet, entry)


def take_up_session(fleet: Fleet) -> list[PointerTensor]:
    """Pointers to every output of every invocation of this session that the broker remembers as not released."""
    firsts: list[StatusEntry] = []
    after: bytes | None = None
    while page := _ask(fleet, [], mine=True, after=after):
        firsts += page
        after = page[-1].id
    # A broker that has restarted tells of those that have ended first. The ids say in which order they were made.
    incarnations = list(dict.fromkeys(incarnation_of(entry.id) for entry in firsts))
    firsts.sort(key=lambda entry: (incarnations.index(incarnation_of(entry.id)), counter_of(entry.id)))
    known = {entry.id: entry for entry in firsts}
    ids = [nth(entry.id, k) for entry in firsts for k in range(entry.outputs)]
    more = [each for each in ids if each not in known]
    for some in batches(more, IDS_A_QUESTION):
        known.update({entry.id: entry for entry in _ask(fleet, some)})
    made: list[PointerTensor] = []
    for each in ids:
        pending = fleet.pending(each)
        if pending is not None:
            made.append(PointerTensor(fleet, *pending))
        elif known[each].status not in {ResultStatus.UNKNOWN, ResultStatus.FORGOTTEN, ResultStatus.RELEASED}:
            made.append(_pointer(fleet, known[each]))
    return made


def _ask(fleet: Fleet, ids: list[bytes], *, mine: bool = False, after: bytes | None = None) -> list[StatusEntry]:
    return fleet.ask(StatusReport, lambda r: AskStatus(r=r, ids=ids, mine=mine, after=after)).entries


def _pointer(fleet: Fleet, entry: StatusEntry) -> PointerTensor:
    info = entry.info
    return PointerTensor(
        fleet,
        _result(fleet, entry),
        dtype=None if info is None else info.dtype,
        shape=None if info is None else tuple(info.shape),
        tags=tuple(entry.tags),
        description=entry.description,
    )


def _result(fleet: Fleet, entry: StatusEntry) -> Result:
    failure = failure_of(entry)
    raw = entry.id
    if failure is None and entry.status is not ResultStatus.DONE:
        fleet.driver.feed(Watch(raw, entry.device, entry.command or raw))
        with fleet.driver.lock:
            result = fleet.driver.core.result(raw)
        if result is not None:
            return result
        entry = fleet.status_entry(raw)  # it has ended meanwhile
        failure = failure_of(entry)
    result = Result(raw, device=entry.device, plan=entry.plan or b"", first=entry.command)
    result.made = entry.command is not None  # the broker has no command for what it knows by its tags
    if failure is not None:
        result.end(ResultInput.FAILED, failure=failure)
    else:
        result.end(ResultInput.READY_REMOTE, infos=[] if entry.info is None else [entry.info])
    return result
