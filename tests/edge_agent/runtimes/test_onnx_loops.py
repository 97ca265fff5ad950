"""Loops on onnxruntime that run as often as their data say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.translation.variants import make_variant
from edge_agent.plan.checker import CheckedPlan, check_graph
from edge_agent.plan.format import Graph, Manifest, digest_of, encode_graph
from edge_agent.runtimes.onnx import OnnxPlan, OnnxRuntime
from tests.edge_agent.plan.control_graphs import halving


class Enough(Exception):
    """Nobody wants more."""


def loaded(graph: Graph) -> OnnxPlan:
    """A graph on onnxruntime."""
    checked = check_graph(graph)
    manifest = Manifest(version=3, graph=digest_of(encode_graph(graph)), outputs=checked.output_types)
    return OnnxRuntime().load(CheckedPlan(manifest, checked), [], make_variant(graph))


def array(*values: float) -> np.ndarray:
    """A float32 array."""
    return np.array(values, np.float32)


def test_an_endless_loop_is_ended() -> None:
    """By what ``while_running`` raises, unchanged; the plan runs again after."""
    plan = loaded(halving())
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise Enough

    plan.while_running = look
    endless: Any = [array(np.inf), np.array(1.0, np.float32)]
    with pytest.raises(Enough) as caught:
        plan.run(endless, {"n": 1})
    assert caught.value.__cause__ is None
    assert looks == 4
    looks = 0
    halved, count = plan.run([array(4.0), np.array(1.0, np.float32)], {"n": 1})
    assert isinstance(halved, np.ndarray)
    assert isinstance(count, np.ndarray)
    assert (halved.tolist(), count.tolist()) == ([1.0], 2)
