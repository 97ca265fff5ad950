"""The networks that plans must carry: each with an example, and the dims that may vary.

Used by `tests.coordinator.coverage`, on every runtime. All of them have parameters, so that all of them train; what
has no gradients (integers, sampling, sorting) stands beside a layer that has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._higher_order_ops as torchs_operators
import torch.nn.functional as F  # noqa: N812 -- torch's own word for it
from torch import nn

__all__ = ["NETWORKS", "Network", "Scanned"]


operators: Any = torchs_operators


@dataclass(frozen=True)
class Network:
    """``make()`` gives a module; ``draw(batch)`` its arguments at a batch size; ``shape`` is ``args_shape``.

    ``train_mode``: its result is that of a module in training, dropout included.
    """

    make: Callable[[], nn.Module]
    draw: Callable[[int], tuple[torch.Tensor, ...]]
    shape: tuple[Any, ...]
    train_mode: bool = False


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


class _ScaledDotProduct(nn.Module):
    """torch's own function for attention, as hand-written transformers call it."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> Any:
        """Two heads, causal."""
        parts = self.all(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)


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
    """A linear layer with weights of int8 and a scale a row, and its input rounded to int8 too, as torch's dynamic
    quantisation does; a layer of floats after it, which can be trained.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(4, 6)
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """Products of integers, scaled back."""
        step = x.abs().amax(1, keepdim=True) / 127
        rounded = (x / step).round().clamp(-127, 127).to(torch.int8)
        return self.last(self.sums(rounded).to(torch.float32) * step * self.scale.squeeze(1))

    def sums(self, rounded: torch.Tensor) -> torch.Tensor:
        """Of the products of integers."""
        return (rounded.to(torch.int32).unsqueeze(1) * self.weight.to(torch.int32)).sum(2)


class _IntegerProduct(_Int8Linear):
    """The same with torch's product of matrices of int8, which its own quantised layers are made of."""

    def sums(self, rounded: torch.Tensor) -> torch.Tensor:
        """As one product."""
        return torch._int_mm(rounded, self.weight.t())


class _Masks(nn.Module):
    """The positive of its results: as many as there are, up to 8."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """Where they are (-1 stands for none), what they are, and what they add up to."""
        x = self.first(x)
        flat = x.flatten()
        places = torch.nonzero_static(flat > 0, size=8, fill_value=-1).squeeze(1)
        found = torch.where(places >= 0, flat[places.clamp(min=0)], torch.zeros(()))
        return places, found, found.sum(), x.masked_fill(x < 0, 0.0)


class _Spectrum(nn.Module):
    """A filter in the frequency domain, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> Any:
        """What it filters, the spectrum, and a transform over both dims."""
        spectrum = torch.fft.rfft(x)
        return torch.fft.irfft(spectrum * self.gain, n=8), spectrum, torch.fft.fft2(x.to(torch.complex64)).abs()


class _Order(nn.Module):
    """Sorted scores; and a mixture of the best three, as in a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """Every op that sorts."""
        scores = self.first(x)
        best, which = scores.topk(3)
        gates = torch.zeros_like(scores).scatter(1, which, best.softmax(1))
        return (
            (gates * x).sum(1),
            scores.sort(1),
            x.argsort(1, descending=True),
            scores.kthvalue(2),
            scores.median(1),
            torch.bucketize(x, x[0].sort()[0]),
        )


class _Sampled(nn.Module):
    """Noise as a variational autoencoder adds it, dropout, and drawn categories."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """One of each."""
        x = self.first(x)
        probabilities = x.detach().softmax(1)
        return (
            F.dropout(x, 0.5),
            x + torch.randn_like(x) * torch.exp(x / 2),
            torch.bernoulli(probabilities),
            torch.multinomial(probabilities, 2),
        )


class _Integers(nn.Module):
    """Whole numbers of several widths, and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> Any:
        """Divided, shifted, narrowed and scaled."""
        whole = (x * 8).to(torch.int64)
        return whole // 3, whole % 3, whole << 1, whole.to(torch.int8), whole.to(torch.int32) * self.scale


class _Truths(nn.Module):
    """Comparisons, their logic, and numbers chosen by it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """Chosen by a mask of bool."""
        mask = (x > 0) & ~(x > 1)
        return mask, mask.any(1), mask.all(), torch.where(mask, self.first(x), -x)


class _InDtype(nn.Module):
    """Two layers in another dtype, from float32 and back."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8, dtype=dtype)
        self.last = nn.Linear(8, 3, dtype=dtype)

    def forward(self, x: torch.Tensor) -> Any:
        """In their dtype."""
        return self.last(torch.relu(self.first(x.to(self.first.weight.dtype))))


class _Waves(nn.Module):
    """A complex layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 3, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> Any:
        """Its result, and how large that is."""
        waves = self.first(torch.complex(x, -x))
        return waves, waves.abs(), (waves * waves.conj()).real


class _Branch(nn.Module):
    """Either of two layers, by what the data are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        """Both ways."""
        x = self.first(x)
        return [operators.cond(turned.sum() > 0, self.one, self.other, (turned,)) for turned in (x, -x)]


class _Iterated(nn.Module):
    """Scaled down until it is small: by as much as that takes, of which there is no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """The result, and how often it was halved."""
        x = self.first(x)
        with torch.no_grad():
            scale, count = operators.while_loop(
                lambda scale, _: (x * scale).norm() > 0.5,
                lambda scale, count: (scale / 2, count + 1),
                (x.new_ones(()), 0),
            )
        return x * scale, count


class Scanned(nn.Module):
    """A recurrent layer, written as a scan over the rows (dim 0) or over the columns."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.take, self.keep = nn.Linear(1, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        """The last state, and the sums of all."""

        def step(state: torch.Tensor, row: torch.Tensor) -> Any:
            state = torch.tanh(self.take(row.unsqueeze(1)) + self.keep(state))
            return state, state.sum(1)

        return operators.scan(step, x.new_zeros(x.shape[1 - self.dim], 4), x, dim=self.dim)


class _Smoothed(nn.Module):
    """Rows less a mean of those up to them, of which there is no gradient: a scan over as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> Any:
        """The rows, and the last mean."""

        def step(mean: torch.Tensor, row: torch.Tensor) -> Any:
            mean = 0.9 * mean + 0.1 * row
            return mean, mean.clone()

        x = self.first(x)
        with torch.no_grad():
            last, means = operators.scan(step, x.new_zeros(6), x)
        return x - means, last


class _Mapped(nn.Module):
    """A layer on each row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> Any:
        """The rows' results."""
        return operators.map(lambda row: torch.softmax(self.first(row), 0) * row.norm(), x)


def _floats(*shape: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def _words(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 11, (batch, 5), generator=torch.Generator().manual_seed(batch)),)


def _rows(make: Callable[[], nn.Module], *, train_mode: bool = False) -> Network:
    """A network of rows of 6 numbers."""
    return Network(make, _floats(6), ((-1, 6),), train_mode)


NETWORKS: dict[str, Network] = {
    "MLP": _rows(lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))),
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
    "LSTM, 2 layers": Network(
        lambda: _First(nn.LSTM(4, 5, num_layers=2, batch_first=True)), _floats(2, 4), ((-1, 2, 4),)
    ),
    "GRU, both directions": Network(
        lambda: _First(nn.GRU(4, 5, bidirectional=True, batch_first=True)), _floats(2, 4), ((-1, 2, 4),)
    ),
    "Embedding": Network(_Words, _words, ((-1, 5),)),
    "TransformerEncoder": Network(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1, enable_nested_tensor=False
        ),
        _floats(4, 8),
        ((-1, 4, 8),),
    ),
    "MultiheadAttention": Network(_Attention, _floats(4, 8), ((-1, 4, 8),)),
    "scaled_dot_product_attention": Network(_ScaledDotProduct, _floats(4, 8), ((-1, 4, 8),)),
    "dropout in training": _rows(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)), train_mode=True
    ),
    "sampling": _rows(_Sampled),
    "FFT": Network(_Spectrum, _floats(8), ((-1, 8),)),
    "sorting and top-k": _rows(_Order),
    "boolean masks": _rows(_Masks),
    "int8 linear": _rows(_Int8Linear),
    "int8 linear by _int_mm": _rows(_IntegerProduct),
    "half": _rows(lambda: _InDtype(torch.float16)),
    "bfloat16": _rows(lambda: _InDtype(torch.bfloat16)),
    "double": _rows(lambda: _InDtype(torch.float64)),
    "complex": _rows(_Waves),
    "int": _rows(_Integers),
    "bool": _rows(_Truths),
    "cond": _rows(_Branch),
    "while_loop, beside the gradient": _rows(_Iterated),
    "map": _rows(_Mapped),
    "scan over a fixed size": _rows(lambda: Scanned(1)),
    "scan over a varying size, beside the gradient": _rows(_Smoothed),
}
"""By the name that the table of networks and runtimes has for them."""
