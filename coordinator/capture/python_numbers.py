"""Python numbers as arguments of a plan.

A number given to `build` is an input, a tensor of 0 dims: int64, float64, bool or complex128. In eager code it is a
Python number, which takes the dtype of the tensors that it meets: ``torch.arange(3) + 0.5`` is float32, while adding
a float64 tensor would give float64. So while the plan is traced, a number that meets a tensor is cast to what
Python's would have become, wherever that differs; what is computed of numbers alone stays a number. (Meeting a half of
0 dims, a float is rounded to a half first, where eager code would round once, after the op.) Where a value is
needed (a size, a branch, ``alpha=``), a number is refused like any other tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["NUMBER_DTYPES", "Numbers", "kind_of_number"]

NUMBER_DTYPES: dict[type, torch.dtype] = {
    bool: torch.bool,
    int: torch.int64,
    float: torch.float64,
    complex: torch.complex128,
}
"""The dtype of the 0-d tensor that stands for a Python number."""

_EXAMPLES: dict[type, bool | int | float | complex] = {bool: True, int: 1, float: 1.0, complex: 1j}
_KINDS = {dtype: kind for kind, dtype in NUMBER_DTYPES.items()}
_TRUE_DIVISIONS = {
    torch.div,
    torch.true_divide,
    torch.Tensor.div,
    torch.Tensor.__truediv__,
    torch.Tensor.__rtruediv__,
    torch.Tensor.true_divide,
}


def kind_of_number(value: object) -> type | None:
    """bool, int, float or complex, if the value is one."""
    for kind in NUMBER_DTYPES:
        if type(value) is kind:
            return kind
    return None


class Numbers:
    """Which tensors stand for Python numbers while a function is traced."""

    def __init__(self) -> None:
        self._kinds: Any = WeakTensorKeyDictionary()

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Remember that ``tensor`` stands for a number."""
        self._kinds[tensor] = _KINDS[tensor.dtype]
        return tensor

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor in self._kinds

    def __len__(self) -> int:
        return len(self._kinds)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a torch function with its numbers cast to what Python's would become there."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        numbers = [tensor for tensor in tensors if tensor in self._kinds]
        if not numbers:
            return func(*args, **kwargs)
        if len(numbers) == len(tensors):
            return self._among_numbers(func, args, kwargs)
        others = [tensor for tensor in tensors if tensor not in self._kinds]
        cast = {id(number): self._cast(number, others) for number in numbers}
        return func(
            *(cast.get(id(value), value) for value in args),
            **{key: cast.get(id(value), value) for key, value in kwargs.items()},
        )

    def _cast(self, number: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
        wanted = torch.result_type(others[0], _EXAMPLES[self._kinds[number]])
        given = torch.result_type(others[0], number)
        for other in others[1:]:
            wanted = torch.promote_types(wanted, torch.result_type(other, _EXAMPLES[self._kinds[number]]))
            given = torch.promote_types(given, torch.result_type(other, number))
        return number if wanted == given else number.to(wanted)

    def _among_numbers(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in _TRUE_DIVISIONS:
            # Python divides integers in double precision; torch in its default dtype
            args = [value.to(torch.float64) if self._is_integer(value) else value for value in args]
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.ndim == 0 and result.dtype in _KINDS:
            self._kinds[result] = _KINDS[result.dtype]
        return result

    def _is_integer(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and self._kinds.get(value) in (bool, int)
