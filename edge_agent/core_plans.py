"""The plans that the device has, as the core sees them: where their parts are, and whether the worker can run them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from broker.protocol.messages import Failure
from edge_agent.catalog import Catalog
from edge_agent.core_blobs import BlobWants
from edge_agent.core_desk import INFO, WARNING, AgentConfig, Desk, failure
from edge_agent.core_quota import Quota
from edge_agent.effects import DropBlobs, KeepBlob
from edge_agent.jobs import LoadPlan, PlanLoaded, PlanRefused, Source, as_source
from edge_agent.plan.errors import PlanMalformed
from edge_agent.plan.format import Manifest, decode_manifest
from edge_agent.plan.quantised import PackedState, decode_packed
from edge_agent.transitions import PLAN, PLAN_LOADED, PlanStep, advance

__all__ = ["Plan", "Plans"]


_REPAIRS = 2
"""How often parts of a plan that are found damaged are fetched again, before it is refused."""


class Plan:
    """One plan. ``uses`` counts the commands that name it and have not ended; ``deaths`` the workers that died of
    loading it, ``repairs`` how often a part was fetched again that was found damaged. ``packed``: the blob that the
    command names as its variant says that the state is packed for one; known once ``variant_known``.
    """

    __slots__ = (
        "counted",
        "deaths",
        "failure",
        "final",
        "id",
        "key",
        "lacking",
        "manifest",
        "manifest_bytes",
        "packed",
        "packed_bytes",
        "repairs",
        "step",
        "uses",
        "variant",
        "variant_known",
    )

    def __init__(self, id: bytes, variant: bytes | None = None) -> None:
        self.id = id
        self.variant = variant
        self.key = key_of(id, variant)
        self.step = PlanStep.ASKED
        self.manifest: Manifest | None = None
        self.manifest_bytes = b""
        self.packed: PackedState | None = None
        self.packed_bytes = b""
        self.variant_known = variant is None
        self.lacking: set[bytes] = set()
        self.counted = False
        self.uses = 0
        self.deaths = 0
        self.repairs = 0
        self.failure: Failure | None = None
        self.final = False

    @property
    def parts(self) -> list[bytes]:
        """The digests of all its parts but the manifest, each once; the variant that is run among them, and the state
        as that takes it.
        """
        if self.manifest is None:
            return []
        variant = [] if self.variant is None else [self.variant]
        if self.packed is not None:
            return list(dict.fromkeys([self.manifest.graph, *variant, self.packed.variant, *self.packed.state]))
        return list(dict.fromkeys([self.manifest.graph, *self.manifest.state, *variant]))

    def move(self, step: PlanStep) -> None:
        """Take a step of the table. Raises `InvalidTransition`."""
        self.step = advance(PLAN, self.step, step, f"plan {self.id.hex()}")


def key_of(id: bytes, variant: bytes | None) -> bytes:
    """Under which name the worker has a plan: its id, or one that no other plan and variant share."""
    return id if variant is None else hashlib.sha256(id + variant).digest()


class Plans:
    """A cache with a limit of count and of bytes; the least recently used goes first, one that is in use never.

    ``changed`` is called when a plan has been loaded or refused.
    """

    def __init__(
        self,
        desk: Desk,
        catalog: Catalog,
        blobs: BlobWants,
        quota: Quota,
        config: AgentConfig,
        changed: Callable[[Plan], None],
    ) -> None:
        self._desk = desk
        self._quota = quota
        self._catalog = catalog
        self._blobs = blobs
        self._config = config
        self._by_graph = "onnx" not in config.runtimes
        self._changed = changed
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._sharers: dict[bytes, int] = {}  # digest of a part to how many plans here consist of it
        self._bytes = 0
        self._strays: dict[bytes, int] = {}  # digest to size of what no plan here consists of
        self._unloads: list[bytes] = []
        for digest, data in catalog.plans():
            plan = Plan(digest)
            if self._read_manifest(plan, data) is None:
                self._plans[digest] = plan
                if all(catalog.blob_size(part) for part in plan.parts):
                    self._count(plan)
        # variants and packed state, of which nothing here says whose they are until a command does, what was fetched
        # for nothing, and parts of plans that are not whole
        self._strays = {part: catalog.blob_size(part) for part in catalog.parts() if part not in self._sharers}
        self._bytes += sum(self._strays.values())

    def use(self, digest: bytes, variant: bytes | None = None) -> Plan:
        """The plan, for one more command; what is not here is asked for. ``variant``: by which of them it is run, where
        torch is not there to run the graph itself.
        """
        if self._by_graph:
            variant = None
        key = digest if variant is None else key_of(digest, variant)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(digest, variant)
        self._plans.move_to_end(key)
        plan.uses += 1
        if plan.step is PLAN_LOADED:
            return plan
        if plan.step is PlanStep.REFUSED and not plan.final:
            plan.move(PlanStep.ASKED)  # those that it was refused to may not have ended yet, and still count as uses
            self._ask(plan)
        elif plan.step is PlanStep.ASKED and plan.uses == 1:
            self._ask(plan)
        return plan

    def release(self, plan: Plan) -> None:
        """A command that named it has ended."""
        plan.uses -= 1
        if len(self._plans) > self._config.plan_count or self._bytes > self._config.plan_bytes:
            self._evict()

    def loadable(self) -> list[Plan]:
        """The plans that commands wait for and that the worker could load now."""
        return [plan for plan in self._plans.values() if plan.step is PlanStep.HERE and plan.uses]

    def order(self, plan: Plan, n: int) -> LoadPlan | None:
        """The order to load it. None: a part has been lost meanwhile, and is asked for again."""
        assert plan.manifest is not None
        sources: dict[bytes, Source] = {}
        for part in plan.parts:
            if (source := self._catalog.blob(part)) is None:
                plan.move(PlanStep.ASKED)
                self._ask(plan)
                return None
            sources[part] = as_source(source)
        if not plan.counted:
            self._count(plan)
        plan.move(PlanStep.LOADING)
        state, variant = plan.manifest.state, plan.variant
        if plan.packed is not None:
            state, variant = plan.packed.state, plan.packed.variant
        return LoadPlan(
            n=n,
            plan=plan.key,
            manifest=plan.manifest_bytes,
            graph=sources[plan.manifest.graph],
            state=[sources[digest] for digest in state],
            variant=None if variant is None else sources[variant],
            packed=plan.packed_bytes,
        )

    def unloads(self) -> list[bytes]:
        """The plans that the worker may forget, each told once."""
        unloads, self._unloads = self._unloads, []
        return unloads

    def loaded(self, answer: PlanLoaded) -> None:
        """The worker can run it."""
        plan = self._plans.get(answer.plan)
        if plan is None or plan.step is not PlanStep.LOADING:
            return
        plan.move(PLAN_LOADED)
        plan.deaths = 0
        self._desk.log(INFO, "plan_loaded", plan=plan.id.hex(), seconds=round(answer.seconds, 6))
        self._changed(plan)

    def refused(self, answer: PlanRefused) -> None:
        """The worker does not take it."""
        plan = self._plans.get(answer.plan)
        if plan is None or plan.step is not PlanStep.LOADING:
            return
        why = answer.failure
        if why.code == "PartDamaged" and plan.repairs < _REPAIRS:
            part = bytes.fromhex(str(why.details["part"]))
            self._desk.log(WARNING, "plan_part_damaged", plan=plan.id.hex(), part=part.hex())
            plan.repairs += 1
            plan.move(PlanStep.HERE)
            plan.move(PlanStep.ASKED)
            self._desk.do(DropBlobs(digests=[part]))
            plan.lacking = {part}
            self._blobs.want(part, lambda digest, result: self._part_arrived(plan, digest, result), anew=True)
        else:
            self.refuse(plan, why)

    def refuse(self, plan: Plan, why: Failure, *, final: bool = True) -> None:
        """It cannot be run: for good, or until somebody invokes it again."""
        plan.move(PlanStep.REFUSED)
        plan.failure, plan.final = why, final
        self._desk.log(WARNING, "plan_refused", plan=plan.id.hex(), code=why.code, reason=why.message)
        self._changed(plan)

    def unkept(self, digest: bytes, why: Failure) -> None:
        """The store could not keep a blob: the plans that wait for it can't be loaded, for now."""
        for plan in list(self._plans.values()):
            waits = plan.step is PlanStep.ASKED or plan.step is PlanStep.HERE
            if waits and digest in (plan.id, plan.variant, *plan.parts):
                self.refuse(plan, why, final=False)

    def worker_gone(self) -> None:
        """No plan is loaded any more."""
        self._unloads.clear()
        for plan in self._plans.values():
            if plan.step is PlanStep.LOADING or plan.step is PLAN_LOADED:
                plan.move(PlanStep.HERE)

    # ------------------------------------------------------------------------------------------- parts

    def _ask(self, plan: Plan) -> None:
        """Gather what is not here: the manifest and what the command names as its variant, then what they name."""
        if plan.manifest is not None and plan.variant_known:
            self._want(plan, plan.parts)
            return
        if plan.manifest is None:
            self._blobs.want(plan.id, lambda _digest, result: self._manifest_arrived(plan, result), apart=plan.key)
        if plan.variant is not None and not plan.variant_known:
            self._blobs.want(plan.variant, lambda _digest, result: self._variant_arrived(plan, result), apart=plan.key)

    def _ask_on(self, plan: Plan) -> None:
        """Manifest or variant has come: if both are known, so is what is to be gathered besides."""
        if plan.manifest is not None and plan.variant_known:
            self._want(plan, [part for part in plan.parts if part != plan.variant])

    def _want(self, plan: Plan, parts: list[bytes]) -> None:
        plan.lacking = set(parts)
        for part in parts:
            self._blobs.want(part, lambda digest, result: self._part_arrived(plan, digest, result))

    def _read_manifest(self, plan: Plan, data: bytes) -> Failure | None:
        try:
            plan.manifest = decode_manifest(data)
        except PlanMalformed as error:
            return failure("PlanMalformed", str(error), plan=plan.id.hex())
        plan.manifest_bytes = data
        return None

    def _manifest_arrived(self, plan: Plan, result: bytes | str | Failure) -> None:
        if plan.step is not PlanStep.ASKED or self._plans.get(plan.key) is not plan:
            return
        if isinstance(result, Failure):
            said = f"the broker does not have plan {plan.id.hex()}"
            self.refuse(plan, failure("PlanNotFound", said, plan=plan.id.hex()), final=False)
            return
        if isinstance(result, str):
            said = f"expected a manifest that fits into a message, got that of plan {plan.id.hex()}, which does not"
            self.refuse(plan, failure("PlanMalformed", said, plan=plan.id.hex()))
            return
        why = self._read_manifest(plan, result)
        if why is not None:
            self.refuse(plan, why)
            return
        why = self._quota.room_for(len(result))
        if why is not None:
            self.refuse(plan, why, final=False)
            return
        self._desk.do(KeepBlob(digest=plan.id, source=result, manifest=True))
        self._ask_on(plan)

    def _variant_arrived(self, plan: Plan, result: bytes | str | Failure) -> None:
        """What the command names as the variant: that, or which variant it is and how the state is packed for it, which
        always fits into a message.
        """
        assert plan.variant is not None
        if not self._took(plan, plan.variant, result) or plan.variant_known:
            return
        if isinstance(result, bytes):
            try:
                plan.packed = decode_packed(result)
            except PlanMalformed as error:
                self.refuse(plan, failure("PlanMalformed", str(error), plan=plan.id.hex()))
                return
            plan.packed_bytes = b"" if plan.packed is None else result
        plan.variant_known = True
        self._ask_on(plan)

    def _part_arrived(self, plan: Plan, digest: bytes, result: bytes | str | Failure) -> None:
        if self._took(plan, digest, result):
            plan.lacking.discard(digest)
            if not plan.lacking:
                plan.move(PlanStep.HERE)

    def _took(self, plan: Plan, digest: bytes, result: bytes | str | Failure) -> bool:
        """Keep a part that the plan waits for. False: nobody waits for it any more, or the plan is refused."""
        if plan.step is not PlanStep.ASKED or self._plans.get(plan.key) is not plan:
            return False
        if isinstance(result, bytes) and self._catalog.blob(digest) is None:
            result = self._quota.room_for(len(result)) or result
        if isinstance(result, Failure):
            said = f"plan {plan.id.hex()} is not whole: {result.message}"
            code = "StoreFull" if result.code == "StoreFull" else "PlanNotFound"
            self.refuse(
                plan, Failure(code=code, message=said, details={**result.details, "plan": plan.id.hex()}), final=False
            )
            return False
        if self._catalog.blob(digest) is None:
            self._desk.do(KeepBlob(digest=digest, source=result))
        return True

    # ------------------------------------------------------------------------------------------- limits

    def _count(self, plan: Plan) -> None:
        plan.counted = True
        for part in plan.parts:
            sharers = self._sharers[part] = self._sharers.get(part, 0) + 1
            if sharers == 1:
                self._bytes += self._catalog.blob_size(part) - self._strays.pop(part, 0)

    def _evict(self) -> None:
        if self._bytes > self._config.plan_bytes:
            self._drop_strays()
        for plan in list(self._plans.values()):
            if len(self._plans) <= self._config.plan_count and self._bytes <= self._config.plan_bytes:
                return
            if not plan.uses and plan.step is not PlanStep.LOADING:
                self._forget(plan)

    def evict_one(self) -> int:
        """Forget the plan that was used least recently, or what belongs to none; how many bytes that frees, 0 if
        nothing can go.
        """
        if freed := self._drop_strays():
            return freed
        for plan in list(self._plans.values()):
            if not plan.uses and plan.step is not PlanStep.LOADING and (freed := self._forget(plan)):
                return freed
        return 0

    def _forget(self, plan: Plan) -> int:
        if plan.step is PLAN_LOADED:
            self._unloads.append(plan.key)
        del self._plans[plan.key]
        for part in plan.parts if plan.counted else ():
            self._sharers[part] -= 1
            if not self._sharers[part]:
                del self._sharers[part]
                self._bytes -= self._catalog.blob_size(part)
        # other variants of the same plan have its manifest, and plans that are still being fetched share parts as well
        named = {part for other in self._plans.values() for part in (other.id, *other.parts)}
        gone = [part for part in (plan.id, *plan.parts) if part not in named and part not in self._strays]
        freed = sum(self._catalog.blob_size(digest) for digest in gone)
        self._desk.do(DropBlobs(digests=gone))
        self._desk.log(INFO, "plan_evicted", plan=plan.id.hex())
        return freed

    def _drop_strays(self) -> int:
        """Drop what no plan that is here consists of; how many bytes that frees. A plan that wants one of them just now
        asks for it anew.
        """
        strays, self._strays = self._strays, {}
        freed = sum(strays.values())
        self._bytes -= freed
        if strays:
            self._desk.do(DropBlobs(digests=list(strays)))
        return freed
