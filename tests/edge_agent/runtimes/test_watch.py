"""The thread that looks into runs of onnxruntime."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from coordinator.translation.variants import make_variant
from edge_agent.plan.checker import CheckedPlan, check_graph
from edge_agent.plan.errors import OpFailed
from edge_agent.plan.format import Graph, Manifest, digest_of, encode_graph
from edge_agent.runtimes.onnx import OnnxPlan, OnnxRuntime
from edge_agent.runtimes.watch import Watch, Watched
from tests.edge_agent.plan.control_graphs import halving
from tests.edge_agent.plan.graphs import double_abs

WITHIN = 30.0


class Enough(Exception):
    """Nobody wants more."""


class Options:
    """What a run is started with."""

    terminate = False


def loaded(graph: Graph) -> OnnxPlan:
    """A graph on onnxruntime."""
    checked = check_graph(graph)
    manifest = Manifest(version=3, graph=digest_of(encode_graph(graph)), outputs=checked.output_types)
    return OnnxRuntime().load(CheckedPlan(manifest, checked), [], make_variant(graph))


def array(*values: float) -> np.ndarray:
    """A float32 array."""
    return np.array(values, np.float32)


def watching() -> list[threading.Thread]:
    """The threads that watch."""
    return [one for one in threading.enumerate() if one.name == "run-watch"]


def test_an_endless_run_is_ended() -> None:
    """By what ``between_ops`` raises, unchanged; the plan runs again after."""
    plan = loaded(halving())
    asked: list[int] = []

    def between(index: int) -> None:
        asked.append(index)
        if len(asked) > 3:
            raise Enough

    plan.between_ops = between
    endless: Any = [array(np.inf), np.array(1.0, np.float32)]
    with pytest.raises(Enough) as caught:
        plan.run(endless, {"n": 1})
    assert caught.value.__cause__ is None
    assert asked == [0] * 4
    asked.clear()
    halved, count = plan.run([array(4.0), np.array(1.0, np.float32)], {"n": 1})
    assert isinstance(halved, np.ndarray)
    assert isinstance(count, np.ndarray)
    assert (halved.tolist(), count.tolist()) == ([1.0], 2)


def test_a_run_that_fails_by_itself() -> None:
    """Its own error is told."""
    plan = loaded(halving())
    plan.between_ops = lambda _: None
    wrong: Any = [array(1.0).reshape(1, 1), np.array(1.0, np.float32)]
    with pytest.raises(OpFailed):
        plan.run(wrong, {"n": 1})


def test_nothing_is_asked_once_a_run_is_over() -> None:
    """A run that has ended in time was not ended, and its thread goes with the watch."""
    others = watching()
    watch = Watch()
    assert watching() == others
    asked = threading.Event()
    run = Watched(lambda _: asked.set(), Options())
    watch.begin(run)
    assert asked.wait(WITHIN)
    run.end()
    asked.clear()
    second_asked = threading.Event()
    second = Watched(lambda _: second_asked.set(), Options())
    watch.begin(second)
    assert second_asked.wait(WITHIN)  # so the first is not looked at any more
    second.end()
    assert not asked.is_set()
    assert (run.error, run.options.terminate) == (None, False)
    (own,) = set(watching()) - set(others)
    del watch
    gc.collect()
    own.join(WITHIN)
    assert not own.is_alive()


def test_plans_without_such_loops_are_not_watched() -> None:
    """They take no thread."""
    others = watching()
    plan = loaded(double_abs())
    plan.between_ops = lambda _: None
    assert [one.tolist() for one in plan.run([array(1.0, -2.0)], {}) if isinstance(one, np.ndarray)] == [[2.0, 4.0]]
    assert watching() == others
