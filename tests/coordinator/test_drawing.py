"""A plan as a picture, and its further methods."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn

from coordinator import Plan, VirtualWorker, connect, func2plan
from coordinator.drawing import draw
from coordinator.errors import ExampleMismatch, PlanNotBuilt, ProtectedName
from tests.coordinator.drawn_plan import PICTURE, drawn
from tests.edge_agent.plan.control_graphs import nested

WITHIN = 60.0
_SVG = "{http://www.w3.org/2000/svg}"


def test_sub_graphs_inside_the_box_of_their_op() -> None:
    """Each is a picture of its own, with its name, within the box, and none over another; nested ones likewise."""
    svg = draw(nested(2)).svg
    root = ET.fromstring(svg)  # noqa: S314  (our own)
    found: list[tuple[str, float, float, float, float]] = []

    def visit(group: ET.Element, x: float, y: float) -> None:
        frame, name = group.find(f"{_SVG}rect"), group.find(f"{_SVG}text")
        moved = group.get("transform")
        if moved is not None and frame is not None and name is not None:
            dx, dy = (float(one) for one in moved.removeprefix("translate(").rstrip(")").split(","))
            x, y = x + dx, y + dy
            found.append((name.text or "", x, y, x + float(frame.get("width", 0)), y + float(frame.get("height", 0))))
        for child in group:
            visit(child, x, y)

    visit(root, 0, 0)
    assert [name for name, *_ in found] == ["if_true", "if_true", "if_false", "if_false"]
    outer, deep, beside, other = (box for _, *box in found)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for inside, around in (
        (deep, outer),
        (beside, outer),
        (outer, [0, 0, width, height]),
        (other, [0, 0, width, height]),
    ):
        assert around[0] < inside[0] < inside[2] < around[2]
        assert around[1] < inside[1] < inside[3] < around[3]
    assert outer[2] < other[0]
    assert deep[2] < beside[0]
    assert "control.cond.default(yes, if_true, if_false, [x, yes])" in svg  # the tooltip


class Net(Plan):
    """Two methods over the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        result: torch.Tensor = self.out(torch.relu(self.hidden(x)))
        return result

    def score(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """The largest probability."""
        result: torch.Tensor = (self(x) * scale).softmax(1).amax(1)
        return result

    def width(self) -> int:
        """No method of tensors."""
        return 5


def built() -> Net:
    """With both methods."""
    net = Net()
    net.build(torch.randn(2, 4), args_shape=[("batch", 4)])
    net.build_method("score", torch.randn(2, 4), args_shape=[(-1, 4)])
    return net


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """x, y, width and height of every box."""
    root = ET.fromstring(svg)  # noqa: S314  (our own)
    found = [group.find(f"{_SVG}rect") for group in root.iter(f"{_SVG}g")]
    return [
        (float(one.get("x", "")), float(one.get("y", "")), float(one.get("width", "")), float(one.get("height", "")))
        for one in found
        if one is not None
    ]


def test_every_input_op_and_result_has_a_box_and_none_overlap(tmp_path: Path) -> None:
    """In a file that is well-formed, and within the picture."""
    net = built()
    drawing = net.draw(tmp_path / "net.svg")
    svg = (tmp_path / "net.svg").read_text(encoding="utf-8")
    assert svg == drawing._repr_svg_() == str(drawing)
    found = boxes(svg)
    assert len(found) == len(net.graph.inputs) + len(net.graph.ops) + len(net.graph.outputs)
    root = ET.fromstring(svg)  # noqa: S314
    for k, (x, y, width, height) in enumerate(found):
        assert x >= 0
        assert x + width <= float(root.get("width", ""))
        assert y + height <= float(root.get("height", ""))
        for x2, y2, width2, height2 in found[k + 1 :]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
    assert "float32[batch, 4]" in svg


def test_the_picture_in_the_documents_is_current() -> None:
    """``python -m tests.coordinator.drawn_plan`` draws it anew."""
    assert PICTURE.read_text(encoding="utf-8") == drawn()


def test_a_person_sees_no_markup() -> None:
    """Where no notebook shows the picture: the SVG is pages long."""
    drawing = func2plan(args_shape=[(2,)])(torch.abs).draw()
    assert repr(drawing) == f"<Drawing of {len(str(drawing)):,} characters: save it, or see it in a notebook>"


def test_names_are_no_markup() -> None:
    """Whatever a plan is called."""

    @func2plan(args_shape=[(2,)])
    def odd(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    odd.__name__ = "a<b>&c"
    odd._function.__name__ = "a<b>&c"
    ET.fromstring(odd.draw().svg)  # noqa: S314
    assert "a&lt;b&gt;&amp;c" in odd.draw().svg


def test_a_plan_that_is_not_built_cannot_be_drawn() -> None:
    """It says so."""
    with pytest.raises(PlanNotBuilt):
        Net().draw()


def test_a_method_is_a_plan_of_its_own_over_the_same_weights() -> None:
    """Sent with the plan, called by its name; shared weights move once; a changed one reaches both."""
    net, x = built(), torch.randn(7, 4)
    with connect() as fleet:
        device = VirtualWorker(fleet, id="one")
        pointer_net = net.send(device)
        torch.testing.assert_close(pointer_net(x).get(WITHIN), net(x).detach())
        torch.testing.assert_close(pointer_net.score(x).get(WITHIN), net.score(x).detach())
        assert pointer_net.score.id != pointer_net.id
        tagged = pointer_net.options(tags=["scores"]).score(x)
        tagged.wait(WITHIN)
        assert tagged.tags == ("scores",)
        with torch.no_grad():
            net.out.bias.add_(1)
        torch.testing.assert_close(net.send(device).score(x).get(WITHIN), net.score(x).detach())
        with pytest.raises(AttributeError, match="methods that were built and sent: score"):
            pointer_net.nonesuch(x)


@pytest.mark.parametrize("name", ["forward", "build", "_looks", "parameters"])
def test_what_is_no_method_of_the_users_is_refused(name: str) -> None:
    """``build`` is for ``forward``, and a plan needs the others for itself."""
    with pytest.raises(ProtectedName):
        Net().build_method(name, torch.randn(2, 4))


def test_a_method_that_is_not_there() -> None:
    """As Python says it."""
    with pytest.raises(AttributeError, match="nonesuch"):
        Net().build_method("nonesuch", torch.randn(2, 4))


def test_building_needs_an_example() -> None:
    """The error says so, with the function's name and parameters, of a method and of forward; a method has a name."""
    needed = "expected an example of each argument, or args_shape with an entry for each: missing a required argument"
    with pytest.raises(ExampleMismatch, match=rf"^to build score\(x, scale=1.0\), {needed}: 'x'$"):
        Net().build_method("score")
    with pytest.raises(ExampleMismatch, match=rf"^to build forward\(x\), {needed}: 'x'$"):
        Net().build()
    with pytest.raises(TypeError, match=r"^expected the name of a method, got a int$"):
        Net().build_method(3, torch.randn(2, 4))  # type: ignore[arg-type]
