"""Every network that plans must carry: captured with a dynamic batch, run at other sizes, compared with eager torch;
and its gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coordinator.capture.draws import Drawn, drawing
from coordinator.plan import FunctionPlan
from tests.coordinator.networks import NETWORKS, Network

SEED = 5


def _made(network: Network) -> nn.Module:
    torch.manual_seed(0)
    return network.make().train(network.train_mode)


def _eager(module: Any, args: tuple[torch.Tensor, ...]) -> Any:
    """What eager torch gives, drawing as plans do."""
    with drawing(SEED), Drawn():  # type: ignore[no-untyped-call]
        return module(*args)


def _plain(nest: Any) -> Any:
    if isinstance(nest, dict):
        return {key: _plain(value) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        return tuple(_plain(value) for value in nest)
    return nest.detach() if isinstance(nest, torch.Tensor) else nest


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_and_run_at_other_sizes(name: str) -> None:
    """A plan made at one batch size gives what eager torch gives at others."""
    network = NETWORKS[name]
    module = _made(network)
    plan = FunctionPlan(module)
    plan.build(*network.draw(5), args_shape=list(network.shape))
    for batch in (2, 7):
        args = network.draw(batch)
        torch.testing.assert_close(
            _plain(plan.options(seed=SEED)(*args)), _plain(_eager(module, args)), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.trains])
def test_gradients_at_other_sizes(name: str) -> None:
    """The gradients of all parameters are eager torch's, at another batch size."""
    network = NETWORKS[name]
    module = _made(network)

    def gradients(*args: torch.Tensor) -> Any:
        module(*args).square().mean().backward()
        return {key: parameter.grad for key, parameter in module.named_parameters()}

    plan = FunctionPlan(gradients)
    plan.build(*network.draw(5), args_shape=list(network.shape))
    args = network.draw(7)
    got = plan.options(seed=SEED)(*args)
    _eager(module, args).square().mean().backward()
    wanted = {key: parameter.grad for key, parameter in module.named_parameters()}
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
