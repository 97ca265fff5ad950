"""What a plan can't be is said in a sentence, with the line, and with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator import VirtualWorker, connect, func2plan
from coordinator.build_errors import PlanBuildError
from coordinator.device import Device
from coordinator.errors import PlanOverQuota
from edge_agent.limits import Limits
from tests.acceptance.worlds import KINDS
from tests.processes import Program, start_agent
from tests.waiting import PATIENCE

SEEN: list[Any] = []


def branches(x: torch.Tensor) -> torch.Tensor:
    """Decides by the data."""
    if x.sum() > 0:
        return x * 2
    return x


def prints(x: torch.Tensor) -> torch.Tensor:
    """Says something, once, at build."""
    print("doubling")
    return x * 2


def appends(x: torch.Tensor) -> torch.Tensor:
    """Keeps something that a device would not keep."""
    SEEN.append(x.shape[0])
    return x * 2


def has_an_unknown_op(x: torch.Tensor) -> torch.Tensor:
    """Uses an op that no device has."""
    result: torch.Tensor = torch.special.bessel_j0(x)
    return result + 1


def uses_numpy(x: torch.Tensor) -> torch.Tensor:
    """Leaves torch."""
    return torch.from_numpy(np.sqrt(x.numpy()))


REFUSALS: dict[Callable[..., Any], tuple[str, str, str]] = {
    branches: (
        "DataDependentBranch",
        (
            "this line branches on what a tensor holds, which is not known when the plan is built: write it with "
            "torch.cond(condition, if_true, if_false, operands), or with torch.where; a while with "
            "torch.while_loop(condition, body, carried)"
        ),
        "if x.sum() > 0:",
    ),
    prints: (
        "LostSideEffect",
        (
            "print writes while the plan is built, and would write nothing on a device: return the value, and print or "
            "log it outside, where the result arrives"
        ),
        'print("doubling")',
    ),
    appends: (
        "LostSideEffect",
        (
            "SEEN lives outside the function and is changed here, which would be lost on a device: return the value, "
            "and change SEEN (or use logging) outside, where the result arrives; if it is a cache, fill it before build"
        ),
        "SEEN.append(x.shape[0])",
    ),
    has_an_unknown_op: (
        "OpNotSupported",
        "prims.bessel_j0.default is not an op that plans can carry yet",
        "result: torch.Tensor = torch.special.bessel_j0(x)",
    ),
    uses_numpy: (
        "NumpyInPlan",
        "numpy needs a tensor's values, which are not known when the plan is built: use torch's functions instead",
        "return torch.from_numpy(np.sqrt(x.numpy()))",
    ),
}


@pytest.mark.parametrize("function", REFUSALS, ids=lambda function: function.__name__)
def test_what_cannot_be_captured_is_refused_with_its_line(function: Callable[..., Any]) -> None:
    """The whole sentence, the file, the line and its text; and nothing is left behind."""
    kind, sentence, line = REFUSALS[function]
    with pytest.raises(PlanBuildError) as caught:
        func2plan()(function).build(torch.ones(3))
    error = caught.value
    said, _, place = str(error).partition("\n    ")
    assert (type(error).__name__, said) == (kind, sentence)
    assert place.startswith(__file__)
    assert place.endswith(f": {line}")
    assert error.where is not None
    assert Path(__file__).read_text(encoding="utf-8").splitlines()[error.where.line - 1].strip() == line
    assert SEEN == []


@pytest.fixture(params=KINDS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    """A device whose owner allows a run 1,000 operations: an agent process, or a virtual one."""
    if request.param == "embedded":
        with connect() as fleet:
            yield VirtualWorker(fleet, id="small", limits=Limits(ops=1000))
        return
    broker: Program = request.getfixturevalue("broker")
    with start_agent("small", tmp_path, broker, "--max-ops", "1000"), connect(broker.endpoint, insecure=True) as fleet:
        yield fleet.device("small")


def test_a_plan_over_the_quota_is_refused_by_the_device(small: Device) -> None:
    """The device works out the cost itself, for the sizes of this call, and says what it allows."""

    @func2plan(args_shape=[(-1, 10), (10, 10)])
    def plan_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y

    on_device = plan_product.send(small)
    assert plan_product.cost(s0=5).flops == 1000
    assert plan_product.cost(s0=6).flops == 1200
    eye = torch.eye(10)
    assert torch.equal(on_device(torch.ones(5, 10), eye).get(timeout=PATIENCE), torch.ones(5, 10))
    refused = on_device(torch.ones(6, 10), eye)
    with pytest.raises(PlanOverQuota) as caught:
        refused.get(timeout=PATIENCE)
    error = caught.value
    assert str(error) == (
        f"small, result {refused.id}: a run of the plan needs 1,200 operations, and this device allows 1,000 operations"
    )
    assert (error.what, error.needed, error.allowed, error.device) == ("operations", 1200, 1000, "small")
    assert refused.status() == "failed"
