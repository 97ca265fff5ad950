"""For which dtypes onnxruntime's CPU kernels of the ops that are used here exist, as ``get_all_opkernel_def`` of
onnxruntime 1.32 lists them for opset 20. What has no kernel is computed in a wider dtype (`wider`).
"""

from __future__ import annotations

__all__ = ["KERNELS", "OPSET", "wider"]

OPSET = 20
IR_VERSION = 9

_FLOATS = "float64 float32"
_WIDE = "float64 float32 int32 int64"
_ARITHMETIC = "float64 float32 int32 int64"
_BITS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64"
_NO_BFLOAT16 = f"bool float64 float32 float16 {_BITS}"
_ALL = f"{_NO_BFLOAT16} bfloat16"

_TABLE: dict[str, tuple[str, tuple[int, ...] | None]] = {
    # op: dtypes, and which inputs are of them (None: all)
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (_ARITHMETIC, None)),
    **dict.fromkeys(("Max", "Min"), ("float64 float32 int32 int64 uint32 uint64 int8 uint8", None)),
    **dict.fromkeys(("Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Floor", "Ceil"), (_FLOATS, None)),
    **dict.fromkeys(("Round", "Softmax", "LogSoftmax", "Gemm", "Sin", "Cos", "DFT"), (_FLOATS, None)),
    **dict.fromkeys(("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"), ("float32", None)),
    **dict.fromkeys(("Erf", "Conv", "ConvTranspose", "AveragePool", "Det"), ("float32", None)),
    **dict.fromkeys(("MaxPool",), (_FLOATS, (0,))),
    **dict.fromkeys(("ReduceSum", "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "CumSum"), (_WIDE, (0,))),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ArgMax", "ArgMin"), (f"{_WIDE} int8 uint8", (0,))),
    "ReduceLogSumExp": (_FLOATS, (0,)),
    "Abs": (f"{_FLOATS} {_BITS}", None),
    "Neg": ("float64 float32 int8 int32 int64", None),
    "Sign": (f"{_FLOATS} {_BITS}", None),
    "Pow": (_WIDE, None),
    "Mod": (f"{_FLOATS} {_BITS}", None),
    "MatMul": (_WIDE, None),
    "Einsum": (_WIDE, None),
    "Equal": (f"bool {_FLOATS} {_BITS}", None),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual"), (_WIDE, None)),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), ("bool", None)),
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"), (_BITS, None)),
    "BitShift": ("uint8 uint32 uint64", None),
    **dict.fromkeys(("IsNaN",), (_FLOATS, None)),
    "IsInf": (_FLOATS, None),
    "Where": (f"{_WIDE} int8 uint8", (1, 2)),
    "Expand": (_NO_BFLOAT16, (0,)),
    "Tile": (f"bool {_FLOATS} int8 int16 int32 int64 uint8", (0,)),
    "Pad": (f"bool {_WIDE} int8 uint8", (0, 2)),
    "Trilu": (f"bool {_FLOATS} int64", (0,)),
    "TopK": (_WIDE, (0,)),
    "NonZero": ("bool float32 int32 int64 uint8", (0,)),
    "Range": (f"{_WIDE} int16", None),
    "ScatterElements": (_ALL, (0, 2)),
    "ScatterND": (_ALL, (0, 2)),
    "Resize": ("float32", (0,)),
    "GridSample": (_FLOATS, (0, 1)),
    "LayerNormalization": (_FLOATS, None),
    "Col2Im": ("float32", (0,)),
}

KERNELS: dict[str, tuple[frozenset[str], tuple[int, ...] | None]] = {
    op: (frozenset(dtypes.split()), inputs) for op, (dtypes, inputs) in _TABLE.items()
}
"""Op to the dtypes of its kernels, and the inputs that are of that dtype. Ops that are not here move data of any."""

_WIDER = {
    "bool": ("uint8", "int32", "int64", "float32"),
    "uint8": ("int32", "int64", "float32"),
    "int8": ("int32", "int64", "float32"),
    "int16": ("int32", "int64", "float32"),
    "uint16": ("int32", "int64", "float32"),
    "int32": ("int64", "float64"),
    "uint32": ("int64", "float64"),
    "int64": ("float64",),
    "uint64": ("int64",),
    "float16": ("float32",),
    "bfloat16": ("float32",),
    "float32": ("float64",),
    "float64": (),
}


def wider(op: str, dtype: str) -> str | None:
    """The dtype in which ``op`` computes what it cannot in ``dtype`` itself; None if there is none that is as exact."""
    kernels, _ = KERNELS.get(op, (None, None))
    if kernels is None or dtype in kernels:
        return dtype
    return next((other for other in _WIDER.get(dtype, ()) if other in kernels), None)
