"""The twin of edge_agent/plan/ops/spectral.py: Fourier transforms against torch."""

from __future__ import annotations

import pytest

from edge_agent.plan.ops import spectral
from tests.edge_agent.plan.agreement import Call, T, assert_agrees, call, f32, refusal

COMPLEX = T("complex64", (4, 6))

CASES = [
    call("_fft_r2c", f32(4, 6), [1], 0, True),
    call("_fft_r2c", f32(4, 7), [1], 2, True),
    call("_fft_r2c", T("float64", (4, 6)), [0, 1], 1, False),
    call("_fft_c2r", COMPLEX, [1], 0, 10),
    call("_fft_c2r", COMPLEX, [1], 2, 11),
    call("_fft_c2c", COMPLEX, [0, 1], 0, True),
    call("_fft_c2c", T("complex128", (4, 6)), [1], 2, False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_torch(case: Call) -> None:
    """dtype, shape and values."""
    assert_agrees(case)


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (call("_fft_r2c", COMPLEX, [1], 0, True), "an input"),
        (call("_fft_r2c", f32(4, 6), [2], 0, True), "dim"),
        (call("_fft_r2c", f32(4, 6), [], 0, True), "at least one dim"),
        (call("_fft_c2c", COMPLEX, [1], 3, True), "a normalization of 0, 1 or 2, got 3"),
        (call("_fft_c2r", COMPLEX, [1], 0, 0), "a last size of 1 or more, got 0"),
    ],
    ids=str,
)
def test_refused(case: Call, sentence: str) -> None:
    """What does not fit, in a sentence."""
    assert sentence in str(refusal(case))


def test_every_op_has_a_case() -> None:
    """No op of the family is untested."""
    assert {case.name for case in CASES} == {spec.name for spec in spectral.OPS}
