"""Plans and blobs at the broker: which plans are whole, who needs which blobs, and until when.

The bytes are in the blob store. What a plan consists of, and what unended commands name, is pinned there, so it can't
be evicted; a blob that nobody names any more stays for a while, for whoever may come again, and is dropped.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from broker.context import DEBUG, INFO, WARNING, Blobs, Context, Tally
from broker.effects import DropBlobs, PinBlobs, SendBlobs, StoreBlobs, UnpinBlobs
from broker.ledger.interface import DropPlan, RecordPlan
from broker.protocol.framing import size_of
from broker.protocol.messages import INLINE_TENSORS_BYTES, Failure, Frame, StorePlan

__all__ = ["Plans"]

_PLAN = "plan:"
_USE = "use"


class _Plan:
    __slots__ = ("beside", "blobs", "uses")

    def __init__(self, blobs: list[bytes], beside: dict[str, bytes], uses: int = 0) -> None:
        self.blobs = blobs
        self.beside = beside
        self.uses = uses


class Plans:
    """See the module."""

    def __init__(self, context: Context, blobs: Blobs) -> None:
        self._context = context
        self._blobs = blobs
        self._plans: OrderedDict[bytes, _Plan] = OrderedDict()  # least recently used first
        self._broken: OrderedDict[bytes, _Plan] = OrderedDict()  # of which a part has gone
        self._named: dict[bytes, int] = {}  # blobs, by how many plans and commands name them
        self._lingering: OrderedDict[bytes, float] = OrderedDict()  # until when; the first first
        self._timer_set = False

    def __len__(self) -> int:
        return len(self._plans)

    # ------------------------------------------------------------------------------------------ plans

    def store(self, command: StorePlan, frames: Sequence[Frame]) -> Failure | list[bytes]:
        """Take in a plan: the digests of what it lacks, none if it is whole; or why it can't be taken.

        What is attached stays, also when something else is lacking.
        """
        digests = [hashlib.sha256(frame).digest() for frame in frames]
        attached = command.attached or digests
        if len(attached) != len(frames):
            return _malformed(f"expected {len(attached)} frames for the parts attached, got {len(frames)}")
        blobs = list(dict.fromkeys([command.plan, *command.parts, *command.beside.values()]))
        strange = set(attached).difference(blobs)
        if strange:
            return _malformed(f"expected parts of the plan, got {min(strange).hex()}")
        for digest, frame, actual in zip(attached, frames, digests, strict=True):
            if actual != digest:
                return _malformed(f"expected bytes with the SHA-256 {digest.hex()}, got {len(frame)} others")
        context, known = self._context, self._blobs
        new = [(d, f) for d, f in zip(attached, frames, strict=True) if known.size(d) is None]
        if new:
            context.total.blobs_in += len(new)
            context.total.blob_bytes_in += size_of([frame for _, frame in new])
            context.out.append(StoreBlobs(digests=[d for d, _ in new], frames=tuple(f for _, f in new)))
            for digest, _ in new:
                self._linger(digest)
        came = set(attached)
        lacking = [digest for digest in blobs if digest not in came and known.size(digest) is None]
        if lacking:
            return lacking
        plan = self._plans.get(command.plan)
        if plan is None or not set(blobs) <= set(plan.blobs):
            # a variant that another session has put beside it stays: its commands name it
            beside = command.beside if plan is None else {**plan.beside, **command.beside}
            blobs = list(dict.fromkeys([*blobs, *beside.values()]))
            former = self._broken.pop(command.plan, None) if plan is None else plan
            if plan is not None:
                self._remove(command.plan, plan)
            self._add(command.plan, _Plan(blobs, beside, 0 if former is None else former.uses))
            context.writes.append(RecordPlan(plan=command.plan, parts=command.parts, beside=beside))
            context.log(INFO, "plan_stored", plan=command.plan.hex(), parts=len(blobs))
        return []

    def _add(self, digest: bytes, plan: _Plan) -> None:
        self._plans[digest] = plan
        for blob in plan.blobs:
            self._named[blob] = self._named.get(blob, 0) + 1
        self._context.out.append(PinBlobs(name=_PLAN + digest.hex(), digests=plan.blobs))
        while len(self._plans) > self._context.config.plans and self._drop_oldest():
            pass

    def _drop_oldest(self) -> bool:
        oldest = next(((digest, plan) for digest, plan in self._plans.items() if not plan.uses), None)
        if oldest is None:
            return False
        digest, plan = oldest
        self._remove(digest, plan)
        self._context.writes.append(DropPlan(plan=digest))
        self._context.log(INFO, "plan_dropped", plan=digest.hex())
        return True

    def _remove(self, digest: bytes, plan: _Plan) -> None:
        del self._plans[digest]
        self._context.out.append(UnpinBlobs(name=_PLAN + digest.hex(), digests=plan.blobs))
        for blob in plan.blobs:
            self._unname(blob)

    def knows(self, digest: bytes) -> bool:
        """Whether a command may run this plan."""
        if digest in self._plans:
            self._plans.move_to_end(digest)
            return True
        if self._blobs.size(digest) is None:
            return False
        broken = self._broken.get(digest)
        if broken is not None:
            if not self._whole(broken):
                return False
            del self._broken[digest]
            self._add(digest, broken)
            return True
        # Uploaded part by part for a ledger that had never seen its `StorePlan`, or by a session before a restart.
        self._add(digest, _Plan([digest], {}))
        self._context.writes.append(RecordPlan(plan=digest, parts=[], beside={}))
        return True

    def use(self, digest: bytes) -> None:
        """A command that runs the plan has come: it must not go."""
        plan = self._plans.get(digest) or self._broken.get(digest)
        if plan is not None:
            plan.uses += 1

    def disuse(self, digest: bytes) -> None:
        """That command has ended."""
        plan = self._plans.get(digest) or self._broken.get(digest)
        if plan is not None:
            plan.uses -= 1

    def unavailable(self, digest: bytes) -> None:
        """A blob is not here after all, or no longer: a plan that is made of it is not whole, and has to come again."""
        broken = [name for name, plan in self._plans.items() if digest in plan.blobs]
        for name in broken:
            plan = self._plans[name]
            self._remove(name, plan)
            self._break(name, plan)
            self._context.log(WARNING, "plan_broken", plan=name.hex(), blob=digest.hex())

    def restore(self, write: RecordPlan) -> None:
        """Take up a plan from the ledger. If a blob of it is not there any more, it has to come again."""
        plan = _Plan(list(dict.fromkeys([write.plan, *write.parts, *write.beside.values()])), write.beside)
        if self._whole(plan):
            self._add(write.plan, plan)
        else:
            self._break(write.plan, plan)

    def _whole(self, plan: _Plan) -> bool:
        return all(self._blobs.size(blob) is not None for blob in plan.blobs)

    def _break(self, digest: bytes, plan: _Plan) -> None:
        """Remember what the plan consists of: its manifest alone, if that is still here, must not pass for the plan."""
        self._broken[digest] = plan
        while len(self._broken) > self._context.config.plans:
            oldest, _ = self._broken.popitem(last=False)
            self._context.writes.append(DropPlan(plan=oldest))

    # ------------------------------------------------------------------------------------------ blobs

    def has(self, digest: bytes) -> bool:
        """Whether a blob is here."""
        return self._blobs.size(digest) is not None

    def touch(self, digest: bytes) -> bool:
        """Whether a blob is here; somebody will fetch it: it stays for a while from now on."""
        if self._blobs.size(digest) is None:
            return False
        self.came(digest)
        return True

    def size(self, digest: bytes) -> int | None:
        """The size of a blob that is here."""
        return self._blobs.size(digest)

    def pin(self, name: bytes, digest: bytes) -> None:
        """Keep a blob that the command ``name`` needs."""
        self._named[digest] = self._named.get(digest, 0) + 1
        self._context.out.append(PinBlobs(name=_USE + name.hex(), digests=[digest]))

    def unpin(self, name: bytes, digest: bytes) -> None:
        """That command has ended."""
        self._context.out.append(UnpinBlobs(name=_USE + name.hex(), digests=[digest]))
        self._unname(digest)

    def _unname(self, digest: bytes) -> None:
        left = self._named[digest] - 1
        if left:
            self._named[digest] = left
        else:
            del self._named[digest]
            self._linger(digest)

    def _linger(self, digest: bytes) -> None:
        self._lingering.pop(digest, None)
        self._lingering[digest] = self._context.now + self._context.config.blob_linger
        self._arm()

    def came(self, digest: bytes) -> None:
        """A blob has come by the blob channel, or is asked for: it stays for a while."""
        if digest not in self._named:
            self._linger(digest)

    def _arm(self) -> None:
        if self._lingering and not self._timer_set:
            self._timer_set = True
            self._context.at(next(iter(self._lingering.values())), self._sweep)

    def _sweep(self, now: float) -> None:
        self._timer_set = False
        over = []
        while self._lingering and next(iter(self._lingering.values())) <= now:
            digest, _ = self._lingering.popitem(last=False)
            if digest not in self._named:
                over.append(digest)
        if over:
            self._context.out.append(DropBlobs(digests=over))
        self._arm()

    # ------------------------------------------------------------------------------------------ to devices

    def provide(self, peer: bytes, tally: Tally, digests: Sequence[bytes]) -> None:
        """A device needs these blobs: the small ones go at once, and manifests, of which a device reads what else it
        needs. That a blob does not exist is said only when it is sure: a device may have commands of a broker that died
        before it had committed them.
        """
        context = self._context
        attached: list[bytes] = []
        pull: dict[bytes, int] = {}
        none: list[bytes] = []
        room, of_manifests = INLINE_TENSORS_BYTES, context.config.max_message // 2
        for digest in dict.fromkeys(digests):
            size = self._blobs.size(digest)
            if size is None:
                if not context.unsure:  # else it may be part of what is not in the ledger yet, and comes again
                    none.append(digest)
            elif size <= room or (digest in self._plans and size <= of_manifests):
                if size <= room:
                    room -= size
                else:
                    of_manifests -= size
                attached.append(digest)
                for counted in (context.total, tally):
                    counted.blobs_out += 1
                    counted.blob_bytes_out += size
            else:
                pull[digest] = size
        if not (attached or pull or none):
            return
        context.total.control += 1
        context.out.append(SendBlobs(peer=peer, attached=attached, pull=pull, none=none))
        if context.level <= DEBUG:
            context.log(DEBUG, "blobs_provided", attached=len(attached), pull=len(pull), none=len(none))


def _malformed(reason: str) -> Failure:
    return Failure(code="PlanMalformed", message=reason)
