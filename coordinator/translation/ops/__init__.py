"""The translations, a module a family, as in `edge_agent.plan.ops`."""

from coordinator.translation.ops import (
    arithmetic,
    comparison,
    complex_numbers,
    control,
    convolution,
    creation,
    indexing,
    joining,
    loss,
    matrix,
    network,
    pointwise,
    reduction,
    sorting,
    views,
)

__all__ = [
    "arithmetic",
    "comparison",
    "complex_numbers",
    "control",
    "convolution",
    "creation",
    "indexing",
    "joining",
    "loss",
    "matrix",
    "network",
    "pointwise",
    "reduction",
    "sorting",
    "views",
]
