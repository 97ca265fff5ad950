"""The networks that plans must carry: each with an example, the dims that may vary, and arguments of another size.

Used by the test of capture and the torch runtime; other runtimes compare themselves on the same networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True)
class Network:
    """``make()`` gives a module; ``draw(batch)`` its arguments at a batch size; ``shape`` is ``args_shape``.

    ``trains``: a loss on its result has gradients. ``random``: it draws random numbers.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int], tuple[torch.Tensor, ...]]
    shape: tuple[Any, ...]
    trains: bool = True
    random: bool = False
    train_mode: bool = False


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        """Call it."""
        return self.function(*args)


class _First(nn.Module):
    """The first result of a module that gives several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: torch.Tensor) -> Any:
        """The first result."""
        return self.module(*args)[0]


class _Attention(nn.Module):
    """Attention of a sequence to itself, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        """With a mask that hides what comes later."""
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]


class _Words(nn.Module):
    """Embedded words, their mean, and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, words: torch.Tensor) -> Any:
        """From word numbers to scores."""
        return self.last(self.table(words).mean(1))


class _Int8Linear(nn.Module):
    """A linear layer with weights of int8 and a scale a row, and its input rounded to int8 too."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(3, 6)
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> Any:
        """Products of integers, scaled back."""
        step = x.abs().amax(1, keepdim=True) / 127
        rounded = (x / step).round().clamp(-127, 127).to(torch.int8)
        products = rounded.to(torch.int32).unsqueeze(1) * self.weight.to(torch.int32)
        return products.sum(2).to(torch.float32) * step * self.scale.squeeze(1)


def _mask(x: torch.Tensor) -> Any:
    """The positive numbers, up to 8 of them, with -1 as the place of none; what they add up to."""
    flat = x.flatten()
    places = torch.nonzero_static(flat > 0, size=8, fill_value=-1).squeeze(1)
    found = torch.where(places >= 0, flat[places.clamp(min=0)], torch.zeros(()))
    return places, found, found.sum(), x.masked_fill(x < 0, 0.0)


def _spectrum(x: torch.Tensor) -> Any:
    spectrum = torch.fft.rfft(x)
    return spectrum, torch.fft.irfft(spectrum * 2, n=8), torch.fft.fft2(x.to(torch.complex64)).abs()


def _order(x: torch.Tensor) -> Any:
    return (
        x.sort(1),
        x.topk(3),
        x.argsort(1, descending=True),
        x.kthvalue(2),
        x.median(1),
        torch.bucketize(x, x[0].sort()[0]),
    )


def _dtypes(x: torch.Tensor) -> Any:
    half, brain, wide = x.half(), x.bfloat16(), x.double()
    whole = (x * 8).to(torch.int64)
    waves = torch.complex(x, -x)
    return {
        "half": half * 2 + half.sum(1, keepdim=True),
        "bfloat16": torch.relu(brain) - 1,
        "double": wide.cumsum(1),
        "int": (whole // 3, whole % 3, whole << 1, whole.to(torch.int8)),
        "bool": (x > 0) & ~(x > 1),
        "complex": (waves * waves.conj()).real + waves.abs(),
    }


def _sampled(x: torch.Tensor) -> Any:
    probabilities = x.softmax(1)
    return (
        F.dropout(x, 0.5),
        torch.bernoulli(probabilities),
        torch.multinomial(probabilities, 2),
        torch.randn_like(x) + x,
    )


def _floats(*shape: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def _words(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 11, (batch, 5), generator=torch.Generator().manual_seed(batch)),)


NETWORKS: dict[str, Network] = {
    "MLP": Network(lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), _floats(6), ((-1, 6),)),
    "CNN with BatchNorm and pooling": Network(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        _floats(1, 12, 12),
        ((-1, 1, 12, 12),),
    ),
    "LSTM": Network(lambda: _First(nn.LSTM(4, 5, num_layers=2, batch_first=True)), _floats(3, 4), ((-1, 3, 4),)),
    "GRU": Network(lambda: _First(nn.GRU(4, 5, bidirectional=True, batch_first=True)), _floats(3, 4), ((-1, 3, 4),)),
    "Embedding": Network(_Words, _words, ((-1, 5),)),
    "TransformerEncoder": Network(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1, enable_nested_tensor=False
        ),
        _floats(4, 8),
        ((-1, 4, 8),),
    ),
    "attention": Network(_Attention, _floats(4, 8), ((-1, 4, 8),)),
    "dropout and sampling": Network(lambda: _Call(_sampled), _floats(6), ((-1, 6),), trains=False, random=True),
    "dropout in training": Network(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)),
        _floats(6),
        ((-1, 6),),
        random=True,
        train_mode=True,
    ),
    "FFT": Network(lambda: _Call(_spectrum), _floats(8), ((-1, 8),), trains=False),
    "sorting and top-k": Network(lambda: _Call(_order), _floats(6), ((-1, 6),), trains=False),
    "boolean masks": Network(lambda: _Call(_mask), _floats(6), ((-1, 6),), trains=False),
    "int8 linear": Network(_Int8Linear, _floats(6), ((-1, 6),), trains=False),
    "dtypes": Network(lambda: _Call(_dtypes), _floats(6), ((-1, 6),), trains=False),
}
"""By the name that the table of networks and runtimes has for them."""
