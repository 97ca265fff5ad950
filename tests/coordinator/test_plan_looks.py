"""What may change between `build` and `send`, and what may not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn
from torch.nn.utils import parametrize

from coordinator.errors import PlanStale
from coordinator.function_plan import func2plan
from coordinator.plan import Plan

V = torch.tensor([1.0, 2.0])


def _same_as_live(plan: Plan) -> None:
    """What would be sent gives what the module gives."""
    torch.testing.assert_close(plan.run_plan(V), plan(V).detach())


# ------------------------------------------------------------------------------------------------- tied weights


class Pair(Plan):
    """Two layers, that may share their weight."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2, bias=False)
        self.two = nn.Linear(2, 2, bias=False)
        if tied:
            self.two.weight = self.one.weight
        self.build(V)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.two(self.one(x))
        return result


def test_tied_weights_that_came_apart_are_stale() -> None:
    """The plan carries one tensor for both names: with two it would be wrong, and the error names them."""
    pair = Pair(tied=True)
    pair.one.weight = nn.Parameter(torch.eye(2))
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight: one tensor became 2"):
        pair.bundle()
    pair.two.weight = nn.Parameter(torch.eye(2) * 3)
    with pytest.raises(PlanStale) as caught:
        pair.run_plan(V)
    assert caught.value.changes == ("one.weight and two.weight: one tensor became 2",)
    pair.build(V)
    _same_as_live(pair)


def test_a_tied_head_that_was_replaced_is_stale() -> None:
    """Also where the whole layer is another one, of the same shape."""
    pair = Pair(tied=True)
    pair.two = nn.Linear(2, 2, bias=False)
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight"):
        pair.bundle()
    pair.two.weight = pair.one.weight
    _same_as_live(pair)


def test_three_names_of_one_tensor() -> None:
    """Each is named, also if only one of them came apart."""

    class Three(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
            for layer in self.layers:
                layer.weight = self.layers[0].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    three = Three()
    three.build(V)
    three.layers[1].weight = nn.Parameter(torch.eye(2))
    with pytest.raises(
        PlanStale, match=r"layers\.0\.weight and layers\.1\.weight and layers\.2\.weight: one tensor became 2"
    ):
        three.bundle()


def test_tied_weights_of_a_functions_modules() -> None:
    """Two modules that a function uses may share a weight as well."""
    one, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    two.weight = one.weight

    @func2plan(args_shape=[(2,)])
    def plan(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = two(one(x))
        return result

    two.weight = nn.Parameter(torch.eye(2))
    with pytest.raises(PlanStale, match=r"one\.weight and two\.weight"):
        plan.bundle()


def test_tied_weights_that_stay_tied_are_sent() -> None:
    """Trained, loaded, converted to what they were, or tied to another tensor."""
    pair = Pair(tied=True)
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.1)
    pair(V).sum().backward()
    optimizer.step()
    _same_as_live(pair)
    pair.to(torch.float32)
    pair.load_state_dict(Pair(tied=True).state_dict())
    _same_as_live(pair)
    pair.one.weight = pair.two.weight = nn.Parameter(torch.eye(2) * 3)
    _same_as_live(pair)
    pair.load_state_dict(Pair(tied=True).state_dict(), assign=True)
    assert pair.one.weight is not pair.two.weight  # two views of the same elements
    _same_as_live(pair)
    with torch.no_grad():
        pair.two.weight.add_(1)
    _same_as_live(pair)


def test_weights_that_were_tied_later_are_sent() -> None:
    """The plan carries two tensors, which may be equal; they may come apart again."""
    pair = Pair(tied=False)
    pair.two.weight = pair.one.weight
    _same_as_live(pair)
    pair.two.weight = nn.Parameter(torch.eye(2))
    _same_as_live(pair)


# ------------------------------------------------------------------------------------------------- attributes


class Config:
    """An object of the user's."""

    def __init__(self, slope: float) -> None:
        self.slope = slope


class Net(Plan):
    """Reads attributes of many kinds."""

    gain = 1.5

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = nn.LeakyReLU(0.1)
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm1d(1, eps=1.0)
        self.drop = nn.Dropout(0.5)
        self.scale = 2.0
        self.power = 2
        self.signed = False
        self.reduction = "sum"
        self.shape: tuple[int, ...] = (1, 2)
        self.limits = {"low": -5.0, "high": 5.0}
        self.function = torch.tanh
        self.config = Config(0.25)
        self.space = SimpleNamespace(offset=1, inner=[Config(0.5)])
        self.shift = torch.ones(2)
        self.shifts = {"all": [torch.ones(2)]}
        self.listed: list[nn.Module] = [nn.LeakyReLU(0.1), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ELU())]
        self.epoch = 0
        self.losses: list[float] = []
        self.best: torch.Tensor | None = None
        self.eval()
        self.build(V)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.fc(x)) * self.scale**self.power + self.shift + self.shifts["all"][0] * self.gain
        x = self.drop(self.norm(self.conv(x.reshape(1, 1, 2))).reshape(self.shape).reshape(2))
        for layer in self.listed:
            x = layer(x)
        x = x.clamp(self.limits["low"], self.limits["high"])
        x = self.function(x) * self.config.slope + self.space.offset * self.space.inner[0].slope
        x = -x if self.signed else x
        return x.sum() if self.reduction == "sum" else x.mean()


def _set(path: str, value: Any) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        owner, _, name = path.rpartition(".")
        found: Any = net
        for part in owner.split(".") if owner else ():
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        if name.isdigit():
            found[int(name)] = value
        else:
            setattr(found, name, value)

    return change


def _hook(*_: Any) -> None:
    pass


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice."""
        return x * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("scale", 3.0), "attribute scale: 2.0 became 3.0"),
        (_set("scale", 2), "attribute scale: 2.0 became 2"),
        (_set("power", 3), "attribute power: 2 became 3"),
        (_set("signed", True), "attribute signed: False became True"),
        (_set("reduction", "mean"), "attribute reduction: 'sum' became 'mean'"),
        (_set("shape", (2, 1)), "attribute shape: (1, 2) became (2, 1)"),
        (lambda net: net.limits.update(low=0.0), "attribute limits: {'low': -5.0, 'high': 5.0} became {'low': 0.0, "),
        (_set("gain", 2.5), "attribute gain: 1.5 became 2.5"),
        (_set("function", torch.relu), "attribute function: _VariableFunctionsClass.tanh became "),
        (_set("config.slope", 0.5), "attribute config.slope: 0.25 became 0.5"),
        (_set("config", Config(1.25)), "attribute config.slope: 0.25 became 1.25"),
        (_set("space.inner.0.slope", 9.0), "attribute space.inner[0].slope: 0.5 became 9.0"),
        (_set("act", nn.LeakyReLU(0.9)), "attribute act.negative_slope: 0.1 became 0.9"),
        (_set("act.negative_slope", 0.9), "attribute act.negative_slope: 0.1 became 0.9"),
        (_set("act", nn.ReLU()), "mode of act: LeakyReLU, eval became ReLU, train"),
        (_set("act", type("LeakyReLU", (nn.Module,), {})().eval()), "class of act: LeakyReLU became another LeakyReLU"),
        (_set("conv", nn.Conv1d(1, 1, 3, stride=2, padding=1).eval()), "attribute conv.stride: (1,) became (2,)"),
        (
            _set("conv", nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular").eval()),
            "attribute conv.padding_mode: 'zeros' became 'circular'",
        ),
        (_set("norm.eps", 0.5), "attribute norm.eps: 1.0 became 0.5"),
        (_set("shift", torch.ones(2)), "attribute shift: float32[2] became another float32[2]"),
        (lambda net: net.shifts.update(all=[torch.zeros(2)]), "attribute shifts['all'][0]: float32[2] became another"),
        (_set("listed.0", nn.LeakyReLU(0.9)), "attribute listed[0]: LeakyReLU became another LeakyReLU"),
        (_set("listed.0.negative_slope", 0.9), "attribute listed[0].negative_slope: 0.1 became 0.9"),
        (lambda net: net.listed.append(nn.ReLU()), "attribute listed: a list of 3 became a list of 4"),
        (
            _set("listed.1.weight", nn.Parameter(torch.eye(2))),
            "attribute listed[1].weight: float32[2, 2] became another",
        ),
        (_set("listed.1.weight.data", torch.eye(2)), "attribute listed[1].weight: float32[2, 2] became another"),
        (_set("listed.2.1.alpha", 3.0), "attribute listed[2].1.alpha: 1.0 became 3.0"),
        (lambda net: net.listed[1].eval(), "mode of listed[1]: Linear, train became Linear, eval"),
        (lambda net: net.fc.register_forward_hook(_hook), "forward hooks of fc: none became _hook"),
        (lambda net: net.register_forward_pre_hook(_hook), "forward pre-hooks of the module: none became _hook"),
        (lambda net: net.listed[0].register_forward_hook(_hook), "forward hooks of listed[0]: none became _hook"),
        (
            lambda net: parametrize.register_parametrization(net.fc, "weight", Doubled()),
            "mode of fc: Linear, eval became ParametrizedLinear, eval",
        ),
        (_set("fc.forward", F.relu), "attribute fc.forward: none became relu"),
    ],
)
def test_a_changed_attribute_is_stale(change: Callable[[Net], object], said: str) -> None:
    """What the code read of modules is in the plan: what it was, and what it is, is said."""
    net = Net()
    _same_as_live(net)
    change(net)
    with pytest.raises(PlanStale) as caught:
        net.bundle()
    assert any(one.startswith(said) for one in caught.value.changes), caught.value.changes


def _train(net: Net) -> None:
    """As people do, in another mode than the built one, with counts and lists of their own."""
    net.train()
    optimizer = torch.optim.Adam([*net.parameters(), *net.listed[1].parameters()], lr=0.1)
    for _ in range(2):
        net(V).backward()
        optimizer.step()
        net.epoch += 1
        net.losses.append(0.5)
        net.best = torch.ones(1)
    net.eval()


def _in_place(net: Net) -> None:
    net.shift.mul_(3)
    net.shifts["all"][0].fill_(7)
    for tensor in (*net.listed[1].parameters(), *net.norm.buffers()):
        tensor.data.add_(1)


def _in_turn(net: Net) -> None:
    handles = [net.register_forward_hook(_hook), net.listed[0].register_forward_pre_hook(_hook)]
    net.scale = 7
    for handle in handles:
        handle.remove()
    net.scale = 2.0


@pytest.mark.parametrize(
    "change",
    [
        _train,
        _in_place,
        _in_turn,
        lambda net: net.load_state_dict(Net().state_dict()),
        lambda net: net.load_state_dict(Net().state_dict(), assign=True),
        lambda net: net.to(torch.float32).cpu().requires_grad_(requires_grad=False),
        lambda net: net.zero_grad(),
        lambda net: net.fc.register_full_backward_hook(_hook),
        lambda net: net.register_state_dict_post_hook(_hook),
        _set("act", nn.LeakyReLU(0.1).eval()),
        _set("fc", nn.Linear(2, 2).eval()),
        _set("norm", nn.BatchNorm1d(1, eps=1.0).eval()),
        _set("conv.weight", nn.Parameter(torch.ones(1, 1, 3))),
        _set("norm.running_mean", torch.ones(1)),
        _set("limits", {"low": -5.0, "high": 5.0}),
        _set("config", Config(0.25)),
        _set("shape", (1, 2)),
        _set("note", "new"),
    ],
)
def test_what_the_plan_is_right_for_is_sent(change: Callable[[Net], object]) -> None:
    """Other values of what is sent, the same of what is not, and what the code does not read."""
    net = Net()
    change(net)
    _same_as_live(net)
    net.build(V)
    change(net)
    _same_as_live(net)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_another_weight_of_a_recurrent_layer_is_sent(make: Callable[[int, int], nn.LSTM]) -> None:
    """Such a layer has a list of its weights beside them."""

    class Recurrent(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make(2, 2)
            self.build(V)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(x.reshape(1, 2))[0][0]
            return result

    net = Recurrent()
    weight: Any = net.layer.weight_ih_l0
    net.layer.weight_ih_l0 = nn.Parameter(weight.detach() + 1)
    _same_as_live(net)
    net.layer.to(torch.float32)
    _same_as_live(net)
    net.load_state_dict(Recurrent().state_dict(), assign=True)
    _same_as_live(net)


def test_layers_taken_together_while_it_runs() -> None:
    """A slice of a sequence is a module that the code makes: what is in it may be another layer of the same kind."""

    class Sliced(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.ELU(), nn.ELU())
            self.again = self.layers[0]
            self.build(V)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.again(nn.Softplus(2.0)(self.layers[:2](x)))
            return result

    net = Sliced()
    net.layers[0].weight = nn.Parameter(torch.eye(2))
    net.layers[1] = nn.ELU()
    _same_as_live(net)
    net.layers[1] = nn.ELU(3.0)
    with pytest.raises(PlanStale) as caught:
        net.bundle()
    assert caught.value.changes == ("attribute layers.1.alpha: 1.0 became 3.0",)


def test_a_cache_that_a_package_keeps() -> None:
    """What the code itself sets on every call, which is not refused of a package's module, is none of what it reads."""

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.calls = module.calls + 1
        return x * 2

    kept = type("Kept", (nn.Module,), {"__module__": "torch.nn.modules.kept", "forward": forward})

    class Holds(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.kept: Any = kept()
            self.kept.calls = 0
            self.build(V)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.kept(x)
            return result

    net = Holds()
    net(V)
    _same_as_live(net)


def test_attributes_of_a_method_and_of_a_functions_modules() -> None:
    """Each plan depends on what its own code reads."""

    class Scored(Plan):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.scale = 2.0
            self.build(V)
            self.build_method("score", V)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.fc(x)
            return result

        def score(self, x: torch.Tensor) -> torch.Tensor:
            """Scaled."""
            return self.forward(x) * self.scale

    net = Scored()

    @func2plan(args_shape=[(2,)])
    def plan(x: torch.Tensor) -> torch.Tensor:
        return net.score(x)

    net.scale = 3.0
    _same_as_live(net)
    with pytest.raises(PlanStale, match=r"^Scored\.score has .*: attribute scale: 2\.0 became 3\.0$"):
        net.methods["score"].bundle()
    with pytest.raises(PlanStale, match=r"^plan has .*: attribute net\.scale: 2\.0 became 3\.0$"):
        plan.bundle()


# ------------------------------------------------------------------------------------------------- copies


class Constants(Plan):
    """Has a tensor that is no buffer, a hook that is its own method, and a list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = [nn.LeakyReLU(0.1)]
        self.shift = torch.ones(2)
        self.fc.register_forward_hook(self.look)
        self.build(V)

    def look(self, *_: Any) -> None:
        """Do nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act[0](self.fc(x)) + self.shift
        return result


def _pickled(plan: Constants) -> Constants:
    copied: Constants = pickle.loads(pickle.dumps(plan))  # noqa: S301 -- our own
    return copied


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _pickled])
def test_a_copy_has_what_it_had_copied(duplicate: Callable[[Constants], Constants]) -> None:
    """It is built; its tensors are its own, and so are its modules."""
    plan = Constants()
    other = duplicate(plan)
    other.shift.fill_(9)
    _same_as_live(other)
    _same_as_live(plan)
    assert other.id != plan.id
    other.shift = torch.zeros(2)
    with pytest.raises(PlanStale, match=r"attribute shift: float32\[2\] became another"):
        other.bundle()
    _same_as_live(plan)


def test_a_copy_of_a_changed_plan_is_stale_as_well() -> None:
    """Until it is built again, or what had changed is as it was."""
    plan = Constants()
    plan.act[0].negative_slope = 0.9
    other = copy.deepcopy(plan)
    with pytest.raises(PlanStale):
        other.bundle()
    other.act[0].negative_slope = 0.1
    _same_as_live(other)


def test_a_copy_that_holds_parameters_of_no_module_of_its_own() -> None:
    """The plan has them as constants, of the plan that was copied: the copy has to be built."""
    net = Net()
    other = copy.deepcopy(net)
    with pytest.raises(PlanStale, match=r"listed\[1\]\.weight: float32\[2, 2\] became another float32\[2, 2\]"):
        other.bundle()
    other.build(V)
    _same_as_live(other)
