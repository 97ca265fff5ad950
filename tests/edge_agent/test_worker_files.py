"""A model may name files for its weights: those of the device are not read for it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_agent.jobs import PlanRefused, WorkerReady
from edge_agent.plan.variants import decode_variant, encode_variant
from edge_agent.worker_hosts import ProcessWorker
from tests.edge_agent.test_worker_onnx import load, variant
from tests.edge_agent.test_worker_process import Talk


def reads(location: str) -> bytes:
    """A variant of ``double_abs`` that gives the two floats of a file, whatever its argument holds."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weight.external_data.add(key=key, value=value)
    inputs = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n"])]
    outputs = [helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["n"])]
    nodes = [helper.make_node("Mul", ["x0", "x0"], ["square"]), helper.make_node("Add", ["square", "w"], ["y0"])]
    graph = helper.make_graph(nodes, "reads", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=onnx.IR_VERSION_2023_5_5)
    found = decode_variant(variant("double_abs"))
    return encode_variant(msgspec.structs.replace(found, content=model.SerializeToString()))


@pytest.mark.parametrize("where", ["beside the agent", "by its whole path", "above the worker"])
def test_a_variant_reads_no_file_of_the_device(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, wherever the file is."""
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(2, np.float32).tobytes())
    locations = {
        "beside the agent": "secret.bin",
        "by its whole path": str(secret),
        "above the worker": "../../secret.bin",
    }
    host = ProcessWorker("onnx", store)
    talk = Talk(host)
    host.start()
    try:
        talk.next(WorkerReady)
        host.assign([msgspec.structs.replace(load("double_abs", 1), variant=reads(locations[where]))])
        failure = talk.next(PlanRefused).failure
        assert failure.code == "VariantRefused"
        assert failure.message.startswith("the plan's variant is refused: onnxruntime does not load it")
    finally:
        host.stop()
        host.bury()
