"""Values on their way: what sessions fetch, and what devices need as arguments from elsewhere.

What is inline is answered from its record. The rest is asked of the device that has it, once for all who want it, and
parked while that device is away. A large value comes as a blob, and is passed on when the broker has it whole.
Nothing here must survive: whoever waits asks again, and what nobody asks for again is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from broker.context import DEBUG, WARNING, Context
from broker.devices import Device, Devices
from broker.plans import Plans
from broker.protocol.framing import HEADER_LIMIT
from broker.protocol.messages import Failure, Fetch, Frame, Outcome, ResultStatus, Supply
from broker.protocol.messages import Values as ValuesMessage
from broker.records import Record
from broker.sessions import Session

__all__ = ["Gathering", "Values", "Want"]

_Found: TypeAlias = tuple[Outcome, Frame | None]
_SUPPLY_BYTES = 1 << 20
_SUPPLY_HEADER = HEADER_LIMIT // 4
"""How many bytes of frames, and how many of outcomes, one supply has before the last of them: failures have their
sentences, and a header its limit.
"""

_encode = msgspec.msgpack.Encoder().encode


class Gathering:
    """A session's fetch that is being answered: the outcomes so far, by id."""

    __slots__ = ("distinct", "found", "ids", "r", "session")

    def __init__(self, session: Session, r: int, ids: list[bytes]) -> None:
        self.session = session
        self.r = r
        self.ids = ids
        self.distinct = list(dict.fromkeys(ids))
        self.found: dict[bytes, _Found] = {}


class Want:
    """A value that a device was asked for, or will be when it is there."""

    __slots__ = ("asked_at", "blob", "device", "gatherings", "id", "needed_at", "outcome", "waiters")

    def __init__(self, id: bytes, device: Device, now: float) -> None:
        self.id = id
        self.device = device
        self.needed_at = now
        self.asked_at: float | None = None
        self.gatherings: dict[Gathering, None] = {}
        self.waiters: dict[str, Device] = {}
        self.outcome: Outcome | None = None  # it is a blob, which has yet to come
        self.blob = b""


class Values:
    """See the module. The core sets `record_of`, and `may_come`: an id that is not known may be named yet."""

    def __init__(self, context: Context, devices: Devices, plans: Plans) -> None:
        self._context = context
        self._devices = devices
        self._plans = plans
        self.record_of: Callable[[bytes], Record | None]
        self.may_come: Callable[[bytes], bool]
        self._wants: dict[bytes, Want] = {}
        self._blobs: dict[bytes, dict[bytes, Want]] = {}  # wants that wait for a blob, by its digest
        self._r = 1 << 32  # apart from the numbers of challenges

    def __len__(self) -> int:
        return len(self._wants)

    # ------------------------------------------------------------------------------------------ asking

    def fetch(self, session: Session, r: int, ids: list[bytes]) -> None:
        """A session wants these values: now, so what has not ended is not waited for."""
        limit = self._context.config.fetches
        gathering = session.fetches.get(r)
        if gathering is None or gathering.ids != ids:
            if gathering is not None:  # another fetch under the same number takes its place
                session.forget_fetch(gathering)
            if len(ids) + session.fetching > limit:
                failure = Failure(code="QueueFull", message=f"expected to fetch at most {limit} values at a time")
                outcomes = [Outcome(id=each, failure=failure) for each in ids[:limit]]
                assert session.peer is not None
                self._context.send(session.peer, ValuesMessage(r=r, outcomes=outcomes))
                return
            gathering = session.fetches[r] = Gathering(session, r, ids)
            session.fetching += len(gathering.distinct)
        wanted: dict[Device, list[bytes]] = {}
        for each in gathering.distinct:
            if (there := gathering.found.get(each)) is not None:
                blob = there[0].blob
                if blob is None or self._plans.touch(blob):
                    continue
                del gathering.found[each]  # it has gone while the others were gathered
            found = self._find(each, for_session=True)
            if type(found) is tuple:
                gathering.found[each] = found
            else:
                assert type(found) is Device  # `_find` waits for no record on a session's behalf
                self._want(each, found).gatherings[gathering] = None
                wanted.setdefault(found, []).append(each)
        self._answer(gathering)
        for device, needed in wanted.items():
            self._ask(device, needed)

    def supply(self, device: Device, ids: Iterable[bytes]) -> None:
        """A device needs these values as arguments: at once, or as soon as they have ended."""
        ready: list[_Found] = []
        wanted: dict[Device, list[bytes]] = {}
        limit = self._context.config.fetches
        for each in list(dict.fromkeys(ids))[:limit]:
            found = self._find(each, for_session=False)
            if found is None:
                continue  # it asks again
            if type(found) is tuple:
                ready.append(found)
            elif type(found) is Record:
                if found.waiters is None:
                    found.waiters = {}
                found.waiters[device.name, each] = device
                if found.device is not None:
                    found.device.mailbox.hasten(found)
            else:
                assert type(found) is Device
                self._want(each, found).waiters[device.name] = device
                wanted.setdefault(found, []).append(each)
        self._send_supply(device, ready)
        for owner, needed in wanted.items():
            self._ask(owner, needed)

    def _find(self, id: bytes, *, for_session: bool) -> _Found | Record | Device | None:
        """The value, or why there is none; or the record that has not ended; or the device that has it. None: its
        command may be sent again by a session that is not back yet.
        """
        record = self.record_of(id)
        if record is None:
            name = self._devices.tags.owner(id)
            owner = None if name is None else self._devices.by_name.get(name)
            if owner is not None:
                return owner
            if not self.may_come(id):
                return _failed(id, "UnknownResult", f"no result {id.hex()} is known here")
            return _failed(id, "NotReady", f"the result {id.hex()} is not known yet") if for_session else None
        if record.unended or record.untold:
            if not for_session:
                return record
            return _failed(id, "NotReady", f"the result {id.hex()} has not ended")
        # A release that was asked for waits for commands that need the value: for them it is there still.
        gone = (
            record.status is not ResultStatus.DONE
            or record.released & record.bit(id)
            or (for_session and record.wanted & record.bit(id))
        )
        if gone:
            failure = record.failure_of(id)
            assert failure is not None
            return Outcome(id=id, failure=failure), None
        if record.inline:
            return Outcome(id=id), record.value[record.place(id)]
        if record.device is None:
            return _failed(id, "UnknownDevice", f"no device {record.device_name!r} is known here")
        return record.device

    def _want(self, id: bytes, device: Device) -> Want:
        now = self._context.now
        want = self._wants.get(id)
        if want is None or want.device is not device:
            want = self._wants[id] = device.wants[id] = Want(id, device, now)
            self._context.at(now + self._context.config.fetch_life, lambda later: self._look(want, later))
        want.needed_at = now
        return want

    def _look(self, want: Want, now: float) -> None:
        """Is it still wanted?"""
        if self._wants.get(want.id) is not want:
            return
        over = want.needed_at + self._context.config.fetch_life
        if now < over:
            self._context.at(over, lambda later: self._look(want, later))
            return
        for gathering in want.gatherings:
            gathering.session.forget_fetch(gathering)
        self._drop(want)

    def _drop(self, want: Want) -> None:
        self._wants.pop(want.id, None)
        want.device.wants.pop(want.id, None)
        self._await_no_blob(want)

    def _await_no_blob(self, want: Want) -> None:
        if want.outcome is not None:
            want.outcome = None
            waiting = self._blobs[want.blob]
            del waiting[want.id]
            if not waiting:
                del self._blobs[want.blob]

    def _ask(self, device: Device, ids: Iterable[bytes]) -> None:
        """Ask a device for what it was not just asked for."""
        if device.peer is None:
            return
        now = self._context.now
        due: list[bytes] = []
        for each in ids:
            want = device.wants[each]
            if want.asked_at is None or now - want.asked_at >= self._context.config.fetch_patience:
                want.asked_at = now
                due.append(each)
        if due:
            self._r += 1
            self._context.send(device.peer, Fetch(r=self._r, ids=due))

    def arrived(self, device: Device) -> None:
        """A device is there: it is asked for all that is wanted of it."""
        for want in device.wants.values():
            want.asked_at = None
        self._ask(device, list(device.wants))

    def reconsider(self, device: Device) -> None:
        """What the device had may be gone: those who wait are told."""
        for want in list(device.wants.values()):
            found = self._find(want.id, for_session=False)
            if type(found) is tuple:
                self._deliver(want, found)

    # ------------------------------------------------------------------------------------------ answers

    def answered(self, device: Device, message: ValuesMessage, frames: tuple[Frame, ...]) -> None:
        """A device sends values."""
        inline = sum(1 for outcome in message.outcomes if outcome.failure is None and outcome.blob is None)
        if inline != len(frames):
            self._context.log(WARNING, "values_malformed", device=device.name, expected=inline, got=len(frames))
            return  # whoever waits asks again
        place = 0
        for outcome in message.outcomes:
            frame: Frame | None = None
            if outcome.failure is None and outcome.blob is None:
                frame = frames[place]
                place += 1
            want = device.wants.get(outcome.id)
            if want is None:
                continue  # an answer that came twice, or that nobody waits for any more
            if outcome.blob is None or self._plans.touch(outcome.blob):
                self._deliver(want, (outcome, frame))
                continue
            self._await_no_blob(want)
            want.outcome, want.blob = outcome, outcome.blob
            self._blobs.setdefault(outcome.blob, {})[want.id] = want

    def blob_came(self, digest: bytes) -> None:
        """A blob is in the store."""
        for want in list(self._blobs.get(digest, {}).values()):
            outcome = want.outcome
            assert outcome is not None
            self._deliver(want, (outcome, None))

    def blob_unavailable(self, digest: bytes) -> None:
        """A blob can't be had: whoever wants it asks again, and then its device is asked again."""
        for want in list(self._blobs.get(digest, {}).values()):
            self._await_no_blob(want)

    def _deliver(self, want: Want, found: _Found) -> None:
        self._drop(want)
        for gathering in want.gatherings:
            gathering.found[want.id] = found
            self._answer(gathering)
        for device in want.waiters.values():
            self._send_supply(device, [found])

    def _answer(self, gathering: Gathering) -> None:
        """Answer a session's fetch, if all is there. What has gone meanwhile is looked for when it asks again."""
        if len(gathering.found) < len(gathering.distinct):
            return
        blobs = [outcome.blob for outcome, _ in gathering.found.values() if outcome.blob is not None]
        if not all(map(self._plans.has, blobs)):
            return
        session = gathering.session
        if session.fetches.get(gathering.r) is not gathering:
            return
        session.forget_fetch(gathering)
        if session.peer is None:
            return
        found = [gathering.found[each] for each in gathering.ids]
        frames = tuple(frame for _, frame in found if frame is not None)
        self._context.send(
            session.peer, ValuesMessage(r=gathering.r, outcomes=[outcome for outcome, _ in found]), frames
        )

    def _send_supply(self, device: Device, found: list[_Found]) -> None:
        """In messages of a bounded size. One that is away asks again when it is back."""
        if device.peer is None:
            return
        outcomes: list[Outcome] = []
        frames: list[Frame] = []
        size = header = 0
        for outcome, frame in found:
            outcomes.append(outcome)
            header += len(_encode(outcome))
            if frame is not None:
                frames.append(frame)
                size += len(frame)
            if size >= _SUPPLY_BYTES or header >= _SUPPLY_HEADER:
                self._context.send(device.peer, Supply(outcomes=outcomes), tuple(frames))
                outcomes, frames, size, header = [], [], 0, 0
        if outcomes:
            self._context.send(device.peer, Supply(outcomes=outcomes), tuple(frames))
            if self._context.level <= DEBUG:
                self._context.log(DEBUG, "arguments_supplied", device=device.name, values=len(found))


def _failed(id: bytes, code: str, message: str) -> _Found:
    return Outcome(id=id, failure=Failure(code=code, message=message)), None
