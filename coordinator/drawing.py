"""A plan as a picture: an SVG of its ops, from inputs at the top to results at the bottom.

Layers are by longest path, the order within a layer by barycenters (Sugiyama, Tagawa, Toda 1981): no program outside is
needed. An op that takes sub-graphs has a picture of each inside its box.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from xml.sax.saxutils import escape

from edge_agent.plan.checker import CheckedGraph, check_graph
from edge_agent.plan.format import Graph
from edge_agent.plan.nesting import uses_of
from edge_agent.plan.readable import argument_text, render_type, value_names
from edge_agent.plan.registry import REGISTRY

__all__ = ["Drawing", "draw"]

_CHARACTER, _LINE, _PAD = 6.7, 15, 8  # px, of a font of 11 px
_GAP_X, _GAP_Y, _MARGIN = 22, 38, 20
_LONGEST = 44
"""Characters of a line; the rest is in the tooltip."""
_SWEEPS = 6

_COLOURS = {
    "input": ("#e3f2e6", "#3f8f55"),
    "state": ("#eeeeee", "#888888"),
    "op": ("#e8effa", "#3b6db3"),
    "output": ("#fdf0dc", "#c58420"),
}


@dataclass(frozen=True)
class Drawing:
    """A picture of a plan. A notebook shows it; as a string, it is the SVG."""

    svg: str

    def __repr__(self) -> str:
        return f"<Drawing of {len(self.svg):,} characters: save it, or see it in a notebook>"

    def __str__(self) -> str:
        return self.svg

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file."""
        Path(path).write_text(self.svg, encoding="utf-8")


@dataclass
class _Node:
    kind: str
    title: str
    notes: list[str]
    tooltip: str = ""
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    inner: list[_Inner] = field(default_factory=list)

    @property
    def width(self) -> float:
        words = max(len(line) for line in (self.title, *self.notes)) * _CHARACTER + 2 * _PAD
        return max(words, sum(one.width + _PAD for one in self.inner) + _PAD)

    @property
    def words(self) -> float:
        """The height of what is written."""
        return (1 + len(self.notes)) * _LINE + _PAD

    @property
    def height(self) -> float:
        return self.words + max((one.height + _PAD for one in self.inner), default=0.0)


@dataclass(frozen=True)
class _Inner:
    """The picture of a sub-graph, and what its op calls it."""

    name: str
    nodes: list[_Node]
    width: float
    height: float


def draw(graph: Graph, *, title: str = "") -> Drawing:
    """The picture of a graph. Raises what `check_graph` raises."""
    nodes, width, height = _laid_out(check_graph(graph))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="ui-monospace, monospace" font-size="11">'
        ),
        f"<title>{escape(title or graph.name or 'plan')}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{_MARGIN}" y="{_MARGIN + 4}" font-weight="bold" font-size="13">'
            f"{escape(title or graph.name or 'plan')}</text>"
        ),
    ]
    parts += _drawn(nodes)
    return Drawing("\n".join([*parts, "</svg>"]) + "\n")


def _laid_out(checked: CheckedGraph) -> tuple[list[_Node], float, float]:
    """The nodes of a graph in their places, and the width and height that they take."""
    nodes = _nodes(checked)
    if not nodes:
        return nodes, 2.0 * _MARGIN, 2.0 * _MARGIN
    _layer(nodes)
    layers = _order(nodes)
    width = _place(nodes, layers)
    return nodes, width, max(node.y + node.height for node in nodes) + _MARGIN


def _drawn(nodes: list[_Node]) -> list[str]:
    edges = [_edge(nodes[above], node) for node in nodes for above in node.above]
    return [*edges, *map(_box, nodes)]


def _nodes(checked: CheckedGraph) -> list[_Node]:
    graph = checked.graph
    names = value_names(graph)
    types = [render_type(one) for one in checked.types]
    nodes: list[_Node] = []
    maker: list[int] = []  # the node of each value
    for one, name, kind in zip(graph.inputs, names, types, strict=False):
        what = "input" if one.kind in ("user", "number") else "state"
        nodes.append(_Node(what, _short(name), [kind], f"{name}: {kind} ({one.kind})"))
        maker.append(len(nodes) - 1)
    for index, op in enumerate(graph.ops):
        first = len(maker)
        arguments = (*op.args, *op.kwargs.values())
        texts = [
            parameter.name if parameter.kind == "Graph" else argument_text(one, names)
            for one, parameter in zip(op.args, REGISTRY[op.name].parameters, strict=False)
        ]
        texts += [f"{name}={argument_text(one, names)}" for name, one in op.kwargs.items()]
        used = [k for k in range(first, first + op.outputs) if names[k] != "_"]
        bound = [f"{names[k]}: {types[k]}" for k in used]
        call = f"{op.name}({', '.join(texts)})"
        plain = op.name.removeprefix("aten.").removesuffix(".default")
        node = _Node("op", _short(plain), [_short(types[k]) for k in used[:3]], f"{', '.join(bound)} = {call}")
        above = {maker[value] for one in arguments for value in uses_of(one)}
        node.inner = [_Inner(name, *_laid_out(one)) for name, one in checked.inner.get(index, {}).items()]
        nodes.append(node)
        _join(nodes, sorted(above), len(nodes) - 1)
        maker += [len(nodes) - 1] * op.outputs
    for k, value in enumerate(graph.outputs):
        nodes.append(_Node("output", f"result {k}" if len(graph.outputs) > 1 else "result", [types[value]]))
        _join(nodes, [maker[value]], len(nodes) - 1)
    return nodes


def _join(nodes: list[_Node], above: list[int], below: int) -> None:
    nodes[below].above = above
    for one in above:
        nodes[one].below.append(below)


def _layer(nodes: list[_Node]) -> None:
    """Each below all that it uses; inputs just above their first use, so that edges are short."""
    for node in nodes:  # in the order of the plan, in which whatever is used comes before
        node.layer = 1 + max((nodes[above].layer for above in node.above), default=-1)
    for node in nodes:
        if not node.above and node.kind == "state" and node.below:
            node.layer = max(0, min(nodes[below].layer for below in node.below) - 1)


def _order(nodes: list[_Node]) -> list[list[_Node]]:
    layers: list[list[_Node]] = [[] for _ in range(1 + max(node.layer for node in nodes))]
    for node in nodes:
        layers[node.layer].append(node)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            at = {id(node): k for each in layers for k, node in enumerate(each)}
            # the state beside what the plan does, not in between
            layer.sort(key=lambda node: (node.kind == "state", _barycenter(nodes, node, at, down=down)))
    return layers


def _barycenter(nodes: list[_Node], node: _Node, at: dict[int, int], *, down: bool) -> float:
    near = (node.above if down else node.below) or (node.below if down else node.above)
    return sum(at[id(nodes[one])] for one in near) / len(near) if near else at[id(node)]


def _place(nodes: list[_Node], layers: list[list[_Node]]) -> float:
    """Give every node its place; the width of the picture."""
    y = _MARGIN + 20.0
    for layer in layers:
        for node in layer:
            node.y = y
        y += max(node.height for node in layer) + _GAP_Y
    for _ in range(2 * _SWEEPS):
        for layer in layers:
            x = float(_MARGIN)
            for node in layer:  # towards the middle of what it is joined to, never over its neighbour
                near = [nodes[one] for one in (*node.above, *node.below) if nodes[one].kind != "state"]
                middle = sum(one.x + one.width / 2 for one in near) / len(near) if near else x
                node.x = max(x, middle - node.width / 2)
                x = node.x + node.width + _GAP_X
    left = min(node.x for node in nodes)
    for node in nodes:
        node.x += _MARGIN - left
    return max(node.x + node.width for node in nodes) + _MARGIN


def _edge(above: _Node, below: _Node) -> str:
    x1, y1 = above.x + above.width / 2, above.y + above.height
    x2, y2 = below.x + below.width / 2, below.y
    bend = (y2 - y1) / 2
    colour = "#bbbbbb" if above.kind == "state" else "#666666"
    return (
        f'<path d="M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}" '
        f'fill="none" stroke="{colour}"/>'
    )


def _box(node: _Node) -> str:
    fill, stroke = _COLOURS[node.kind]
    middle = node.x + node.width / 2
    lines = [
        f'<text x="{middle:.1f}" y="{node.y + _LINE + k * _LINE:.1f}" text-anchor="middle"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if not k else ' fill=' + chr(34) + '#555555' + chr(34)}>"
        f"{escape(line)}</text>"
        for k, line in enumerate((node.title, *node.notes))
    ]
    tooltip = f"<title>{escape(node.tooltip)}</title>" if node.tooltip else ""
    return (
        f"<g>{tooltip}"
        f'<rect x="{node.x:.1f}" y="{node.y:.1f}" width="{node.width:.1f}" height="{node.height:.1f}" rx="4" '
        f'fill="{fill}" stroke="{stroke}"/>{"".join(lines)}</g>{"".join(_insides(node))}'
    )


def _insides(node: _Node) -> list[str]:
    """The pictures of a node's sub-graphs, side by side."""
    parts = []
    x, y = node.x + _PAD, node.y + node.words
    for one in node.inner:
        parts.append(
            f'<g transform="translate({x:.1f},{y:.1f})">'
            f'<rect width="{one.width:.1f}" height="{one.height:.1f}" rx="4" fill="white" stroke="#3b6db3"/>'
            f'<text x="{_PAD}" y="{_LINE}" fill="#3b6db3">{escape(one.name)}</text>'
            f"{''.join(_drawn(one.nodes))}</g>"
        )
        x += one.width + _PAD
    return parts


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
