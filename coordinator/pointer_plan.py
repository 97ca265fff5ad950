"""`PointerPlan`: a plan on devices, called with pointers, and giving pointers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from broker.protocol.errors import EdgePlanError, TensorRefused
from broker.protocol.messages import INLINE_TENSORS_BYTES, Argument, Failure, Fold, Invoke, Release
from coordinator.checks import checked_description, checked_seed, checked_tags
from coordinator.core_events import PlanParts, SendPlan, SubmitCommand
from coordinator.core_results import Result
from coordinator.device import Device
from coordinator.errors import ForeignPointer, error_from_failure
from coordinator.fleet import Fleet
from coordinator.folding import Folding, shape_of
from coordinator.older_devices import bundle_for
from coordinator.pointers import PointerTensor
from coordinator.scopes import note
from coordinator.sending import check_tensor, nbytes_of, put
from edge_agent.plan.bundle import PlanBundle
from edge_agent.plan.errors import ArgumentMismatch
from edge_agent.plan.format import digest_of
from edge_agent.plan.trees import unflatten
from edge_agent.runtimes.torch_tensors import DTYPE_NAMES, encode_tensor

if TYPE_CHECKING:
    from coordinator.plan import Plan

__all__ = ["PointerPlan", "send_plan"]

_Type: TypeAlias = tuple[str, tuple[int, ...]] | None
_Outs: TypeAlias = list[tuple[str, tuple[int, ...] | None, int | None]]
"""Of each output its dtype, and its shape, or how many dims it has where the shape is not known."""

_CHECKED_CALLS = 256
"""For how many combinations of argument types it is remembered that they fit."""
_LEAST_DEADLINE, _MOST_DEADLINE = 0.001, 9_000_000_000_000
"""In seconds: it travels in milliseconds, and one is the shortest."""


def send_plan(plan: Plan, targets: Sequence[Device | Fleet], precision: str = "") -> PointerPlan:
    """Send a built plan to devices, or to all that the fleets among ``targets`` know now. What the broker has already
    is not sent again. Where there are devices without torch, a variant goes with it, of this ``precision``.

    Raises `PlanNotBuilt`, `PlanStale`, `ForeignPointer` for devices of two fleets, TypeError for no device at all;
    what `coordinator.variants.variant_of` and `coordinator.older_devices.bundle_for` raise.
    """
    bundle = plan.bundle()
    devices: dict[str, Device] = {}
    fleet: Fleet | None = None
    for target in targets:
        if not isinstance(target, Device | Fleet):
            raise TypeError(f"expected devices, or a fleet, to send a plan to, got a {type(target).__name__}")
        if fleet is None:
            fleet = target if isinstance(target, Fleet) else target.fleet
        elif fleet is not (target if isinstance(target, Fleet) else target.fleet):
            raise ForeignPointer(f"{target!r}")
        for device in target.devices() if isinstance(target, Fleet) else [target]:
            devices.setdefault(device.id, device)
    if fleet is None:
        raise TypeError("expected at least one device to send a plan to")
    if not devices:
        failure = Failure(code="UnknownDevice", message="the broker knows no device yet, so there is none to send to")
        raise error_from_failure(failure)
    light = fleet.runtimes.without_torch(devices.values(), fleet.device_infos)
    lines = plan.source_table
    sent = bundle_for(bundle, devices, fleet.runtimes)
    if sent is not bundle:
        bundle, lines = sent, ()
    beside = {name: digest_of(content) for name, content in bundle.beside.items()}
    blobs = bundle.parts | {digest: bundle.beside[name] for name, digest in beside.items()}
    named = b""
    for name, content in _variant(plan, bundle, precision, light, devices).items():
        named = beside[name] = digest_of(content)
        blobs[named] = content
    parts = PlanParts(plan=bundle.plan_id, blobs=blobs, beside=beside, variant=named)
    fleet.keep_source(parts.plan, lines)
    fleet.driver.feed(SendPlan(plan=parts))
    single = len(targets) == 1 and isinstance(targets[0], Device)
    methods = {name: send_plan(method, targets, precision) for name, method in plan.methods.items()}
    return PointerPlan(fleet, tuple(devices), plan, parts, single=single, methods=methods)


def _variant(
    plan: Plan, bundle: PlanBundle, precision: str, light: Sequence[str], devices: Mapping[str, Device]
) -> dict[str, bytes]:
    """What goes with the plan for those of the devices that are ``light``, by name; the last is what commands name as
    their variant. Empty: all run it as it is.
    """
    if precision and len(light) < len(devices):
        others = ", ".join(name for name in devices if name not in light)
        raise ValueError(f"expected devices that run onnx for the variant {precision!r}, got {others}")
    if not light:
        return {}
    try:
        return plan.variant_parts(bundle, precision)
    except EdgePlanError as error:
        error.add_note(f"while sending {plan.name} to {', '.join(light)}: without torch, only a variant can be run")
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    deadline_ms: int = 0
    seed: int | None = None
    tags: tuple[str, ...] = ()
    description: str = ""
    inline: bool = True


class PointerPlan:
    """A plan that was sent. Made by `Plan.send`.

    Called with what the plan takes (tensors, numbers, pointers in place of tensors), it sends one command and returns
    pointers, nested as the plan's results are, without waiting for anything. A tensor on the device may be named by
    its tags: a string, or a list of strings.

    Sent to several devices (or to a fleet), a call is still one command. Each argument is then the same for all: tags,
    a number, a local tensor, a pointer; or a dict from device id to pointer. What is returned is a dict from device id
    to pointers.
    """

    def __init__(
        self,
        fleet: Fleet,
        devices: tuple[str, ...],
        plan: Plan,
        parts: PlanParts,
        *,
        single: bool,
        options: _Options | None = None,
        methods: Mapping[str, PointerPlan] | None = None,
    ) -> None:
        self.fleet = fleet
        self.name = plan.name
        self._device_ids = devices
        self._plan = plan
        self._parts = parts
        self._single = single
        self._options = options or _Options()
        self._signature = plan.signature
        self._types = plan.output_types
        self._tree = plan.output_tree
        self._checked: dict[tuple[_Type, ...], _Outs] = {}
        self._methods = dict(methods or {})

    # --------------------------------------------------------------------------------------------- what it is

    @property
    def id(self) -> str:
        """The plan's id: 64 hex digits."""
        return self._parts.plan.hex()

    @property
    def devices(self) -> list[Device]:
        """Where it was sent, in the order in which results are numbered."""
        return [self.fleet.device(device) for device in self._device_ids]

    def __repr__(self) -> str:
        to = ", ".join(f"{device}:{self.id[:8]}" for device in self._device_ids[:4])
        more = "" if len(self._device_ids) <= 4 else f", and {len(self._device_ids) - 4} more"
        return f"[PointerPlan {self.name} | me:{self.fleet.short_id} -> {to}{more}]"

    def options(
        self,
        *,
        deadline: float | None = None,
        seed: int | None = None,
        tags: Sequence[str] | None = None,
        description: str | None = None,
        inline: bool | None = None,
    ) -> PointerPlan:
        """The same, with settings for its invocations; what is None stays as it is.

        ``deadline``: seconds until an invocation that has not ended expires, time queued for a sleeping device
        included; 0.001 at least. ``seed``: for random ops. ``tags`` and ``description``: what the results carry on the
        device. ``inline``: False keeps even a small result on the device until it is fetched. Raises ValueError for
        what they can't be.
        """
        changes: dict[str, Any] = {
            "deadline_ms": None if deadline is None else _milliseconds(deadline),
            "tags": None if tags is None else checked_tags(tags),
            "seed": None if seed is None else checked_seed(seed),
            "description": None if description is None else checked_description(description),
            "inline": None if inline is None else bool(inline),
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        plan = PointerPlan(
            self.fleet,
            self._device_ids,
            self._plan,
            self._parts,
            single=self._single,
            options=replace(self._options, **changes),
        )
        plan._checked = self._checked
        plan._methods = {
            name: method.options(deadline=deadline, seed=seed, tags=tags, description=description, inline=inline)
            for name, method in self._methods.items()
        }
        return plan

    def __getattr__(self, name: str) -> PointerPlan:
        """A method that `Plan.build_method` has built."""
        methods: dict[str, PointerPlan] = self.__dict__.get("_methods", {})
        if name not in methods:
            built = ", ".join(methods) or "none"
            raise AttributeError(f"a pointer plan has no {name!r}; methods that were built and sent: {built}")
        return methods[name]

    # --------------------------------------------------------------------------------------------- calling it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One invocation; see the class. Returns at once.

        Raises `ArgumentMismatch`, `ConditionFailed` or `TensorRefused` for arguments that do not fit, `ForeignPointer`
        for a pointer of another fleet, before anything is sent.
        """
        known = None if kwargs else self._of_pointers(args)
        if known is not None:
            ids, outs = known
            results = _invoke(self.fleet, self._device_ids, self._parts, len(self._types), self._options, ids)
        else:
            leaves = self._signature.bind(args, kwargs)
            outs = self._check(leaves)
            call = _Call(self.fleet, self._device_ids, leaves)
            results = call.submit(self._parts, len(self._types), self._options)
        if self._single:
            return self._pointers(results[0], outs)
        return {result.device: self._pointers(result, outs) for result in results}

    def fold(
        self,
        carry: Any,
        *,
        over: Any,
        batch_size: int,
        epochs: int = 1,
        shuffle: int | None = None,
    ) -> Any:
        """Run a plan ``(carry, *batch) -> (carry, out)`` over data on the device, batch by batch, by one command.

        ``over`` has what the plan takes as its batch, whole: pointers, tags, or local tensors with one first dim; or it
        is the name of a data set, whose columns are taken in order (see `edge_agent.Store.append`). Gives
        pointers, nested as the plan nests them: to the carry after the last step, and to the other outputs, stacked,
        one entry a step. The last batch of an epoch may be smaller. ``shuffle``: a seed for the order of the rows,
        another one in each epoch. It goes on from a checkpoint when the device was restarted; `PointerTensor.cancel`
        ends it between two steps.

        Raises what a call raises, `ArgumentMismatch` for a plan that does not fold, and ValueError for what is no seed.
        """
        order = None if shuffle is None else checked_seed(shuffle, "shuffle")
        folding = Folding.of(self._signature, self._types, self._tree, batch_size, epochs, order)
        batch = folding.batch(over)
        leaves = self._signature.bind((carry, *batch), {})
        outs = self._outs(folding.check([self._type(leaf, k) for k, leaf in enumerate(leaves)]))
        results = _Call(self.fleet, self._device_ids, leaves).submit(
            self._parts, len(self._types), self._options, folding.fold
        )
        if self._single:
            return self._pointers(results[0], outs)
        return {result.device: self._pointers(result, outs) for result in results}

    def _of_pointers(self, args: tuple[Any, ...]) -> tuple[list[Argument], _Outs] | None:
        """The ids of the arguments and what is known of the outputs, if all arguments are pointers of types that were
        checked before; None otherwise, and where anything may be wrong.

        The common case of `Signature.bind`, `_check` and `_Call`, in a third of their time: a chain of calls has
        nothing but pointers.
        """
        if len(args) != self._signature.flat:
            return None
        fleet = self.fleet
        for leaf in args:
            if type(leaf) is not PointerTensor or leaf.fleet is not fleet:
                return None
        ids: list[Argument] = []
        types: list[_Type] = []
        for leaf in args:
            ids.append(leaf.result_id)
            types.append(leaf.known_type)
        outs = self._checked.get(tuple(types))
        return None if outs is None else (ids, outs)

    def _pointers(self, result: Result, outs: _Outs) -> Any:
        fleet, options = self.fleet, self._options
        tags, description = options.tags, options.description
        # By position: keywords take twice as long.
        if type(self._tree) is int and len(outs) == 1:
            [(dtype, shape, rank)] = outs
            pointer = PointerTensor(fleet, result, 0, dtype, shape, rank, tags, description)
            note((pointer,))
            return pointer
        pointers = [
            PointerTensor(fleet, result, k, dtype, shape, rank, tags, description)
            for k, (dtype, shape, rank) in enumerate(outs)
        ]
        note(pointers)
        return pointers[0] if type(self._tree) is int else unflatten(self._tree, pointers)

    def _outs(self, shapes: Sequence[tuple[int, ...] | None]) -> _Outs:
        kinds = zip(self._types, shapes, strict=True)
        return [(kind.dtype, shape, len(kind.shape) if shape is None else None) for kind, shape in kinds]

    def _check(self, leaves: Sequence[Any]) -> _Outs:
        """Compare the arguments with the plan's signature; what is known by them of each output."""
        types = tuple([self._type(leaf, k) for k, leaf in enumerate(leaves)])
        outs = self._checked.get(types)
        if outs is None:
            outs = self._checked_outs(leaves, types)
        if not self._single:
            self._check_each(leaves, types)
        return outs

    def _checked_outs(self, leaves: Sequence[Any], types: tuple[_Type, ...]) -> _Outs:
        fitting = [leaf if type_ is not None else None for leaf, type_ in zip(leaves, types, strict=True)]
        sizes = self._signature.sizes(fitting)
        outs = self._outs([shape_of(kind, sizes) for kind in self._types])
        if len(self._checked) >= _CHECKED_CALLS:
            self._checked.clear()
        self._checked[types] = outs
        return outs

    def _type(self, leaf: Any, k: int) -> _Type:
        """The type of one argument, as far as it is known. What can't be an argument at all is refused."""
        if type(leaf) is PointerTensor:
            if leaf.fleet is not self.fleet:
                raise ForeignPointer(f"the pointer {leaf.id}", self._signature.inputs[k].name)
            return leaf.known_type
        if isinstance(leaf, torch.Tensor):
            try:
                check_tensor(leaf)
            except TensorRefused as error:
                raise TensorRefused(f"{self._signature.inputs[k].name}: {error.reason}") from None
            return DTYPE_NAMES[leaf.dtype], tuple(leaf.shape)
        given = self._signature.inputs[k]
        if isinstance(leaf, bool | int | float) and given.kind == "number":
            return given.dtype, ()
        if _is_tags(leaf):
            checked_tags(leaf)
            return None
        if isinstance(leaf, Mapping) and not self._single:
            self._check_mapping(leaf, k)
            return None
        self._signature.types([leaf if k == other else None for other in range(len(self._signature.inputs))])
        # It has a dtype and a shape, whatever it is; but it can't travel.
        raise ArgumentMismatch(given.name, "a tensor, a number, a pointer or tags", f"a {type(leaf).__name__}")

    def _check_mapping(self, leaf: Mapping[Any, Any], k: int) -> None:
        name = self._signature.inputs[k].name
        devices = {device.id if isinstance(device, Device) else device for device in leaf}
        if devices != set(self._device_ids):
            missing = [device for device in self._device_ids if device not in devices]
            unknown = [str(device) for device in devices if device not in self._device_ids]
            got = f"none for {', '.join(missing)}" if missing else f"one for {', '.join(unknown)}, too"
            raise ArgumentMismatch(name, "a pointer for each device that the plan was sent to", got)
        for device, pointer in leaf.items():
            if not isinstance(pointer, PointerTensor):
                raise ArgumentMismatch(f"{name}[{_device_id(device)!r}]", "a pointer", f"a {type(pointer).__name__}")
            if pointer.fleet is not self.fleet:
                raise ForeignPointer(f"the pointer {pointer.id}", f"{name}[{_device_id(device)!r}]")

    def _check_each(self, leaves: Sequence[Any], types: tuple[_Type, ...]) -> None:
        """Where an argument differs from device to device, it must fit on each."""
        mappings = {k: _by_id(leaf) for k, leaf in enumerate(leaves) if isinstance(leaf, Mapping)}
        if not mappings:
            return
        for device in self._device_ids:
            here = [mappings[k][device] if k in mappings else leaf for k, leaf in enumerate(leaves)]
            found = tuple([here[k].known_type if k in mappings else known for k, known in enumerate(types)])
            if found not in self._checked:
                self._checked_outs(here, found)


class _Call:
    """One call's arguments on their way into a command."""

    def __init__(self, fleet: Fleet, devices: tuple[str, ...], leaves: Sequence[Any]) -> None:
        self._fleet = fleet
        self._devices = devices
        self._args: list[Argument] = []
        self._frames: list[bytes] = []
        self._each: dict[int, bytes] = {}
        self._passing: list[PointerTensor] = []  # tensors that were put for this call alone
        room = INLINE_TENSORS_BYTES
        for k, leaf in enumerate(leaves):
            if type(leaf) is PointerTensor:
                self._args.append(leaf.result_id)
            elif isinstance(leaf, torch.Tensor):
                size = nbytes_of(leaf)
                if size <= room:
                    room -= size
                    self._args.append(None)
                    self._frames.append(encode_tensor(leaf))
                else:
                    self._put(k, leaf)
            elif isinstance(leaf, Mapping):
                pointers = _by_id(leaf)
                self._vary(k, [pointers[device] for device in self._devices])
            elif isinstance(leaf, bool | int | float):
                self._args.append(leaf)
            else:
                self._args.append([leaf] if isinstance(leaf, str) else list(leaf))

    def _put(self, k: int, tensor: torch.Tensor) -> None:
        pointers = put(self._fleet, self._devices, tensor)
        self._passing += pointers
        self._vary(k, pointers)

    def _vary(self, k: int, pointers: Sequence[PointerTensor]) -> None:
        self._args.append(pointers[0].result_id)
        if len(pointers) > 1:
            self._each[k] = b"".join(pointer.result_id for pointer in pointers)

    def submit(self, parts: PlanParts, outputs: int, options: _Options, fold: Fold | None = None) -> list[Result]:
        return _invoke(
            self._fleet,
            self._devices,
            parts,
            outputs,
            options,
            self._args,
            frames=tuple(self._frames),
            each=self._each,
            fold=fold,
            passing=self._passing,
        )


def _invoke(
    fleet: Fleet,
    devices: tuple[str, ...],
    parts: PlanParts,
    outputs: int,
    options: _Options,
    args: list[Argument],
    *,
    frames: tuple[bytes, ...] = (),
    each: dict[int, bytes] | None = None,
    fold: Fold | None = None,
    passing: Sequence[PointerTensor] = (),
) -> list[Result]:
    """Submit one invocation, and the release of the tensors that were put for it alone; its results, one a device."""
    driver = fleet.driver
    driver.check()
    with driver.lock:
        command = Invoke(
            id=driver.core.take_ids(outputs * len(devices)),
            plan=parts.plan,
            args=args,
            outputs=outputs,
            deadline_ms=options.deadline_ms,
            inline=options.inline,
            seed=options.seed,
            tags=list(options.tags),
            description=options.description,
            each=each or {},
            fold=fold,
            variant=parts.variant or None,
        )
        results = driver.submit(SubmitCommand(devices=devices, command=command, frames=frames, plan=parts))
        for pointer in passing:
            # It acts after the invocation: then nothing needs the tensor any more.
            release = Release(ids=[pointer.result_id])
            driver.submit(SubmitCommand(devices=(pointer.result.device,), command=release))
        driver.flush()
    return results


def _is_tags(leaf: Any) -> bool:
    return isinstance(leaf, str) or (
        isinstance(leaf, list | tuple) and bool(leaf) and all(isinstance(tag, str) for tag in leaf)
    )


def _device_id(device: Any) -> str:
    return device.id if isinstance(device, Device) else str(device)


def _by_id(pointers: Mapping[Any, PointerTensor]) -> dict[str, PointerTensor]:
    return {_device_id(device): pointer for device, pointer in pointers.items()}


def _milliseconds(deadline: float) -> int:
    try:
        fits = _LEAST_DEADLINE <= deadline <= _MOST_DEADLINE
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"expected a deadline of {_LEAST_DEADLINE} to {_MOST_DEADLINE:,} seconds, got {deadline!r}")
    return round(deadline * 1000)
