"""Element-wise ops of one tensor."""

from __future__ import annotations

import math

from coordinator.translation.table import TRANSLATIONS, Translation, translates
from coordinator.translation.writer import Value, Writer
from edge_agent.plan.dtypes import FLOATING

__all__: list[str] = []

_DIRECT = {
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "log": "Log",
    "reciprocal": "Reciprocal",
    "sigmoid": "Sigmoid",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}


def _direct(kind: str) -> Translation:
    def write(w: Writer, x: Value) -> Value:
        return w.op(kind, w.wide(x))

    return write


for _name, _kind in _DIRECT.items():
    TRANSLATIONS[f"aten.{_name}.default"] = _direct(_kind)


def number(w: Writer, value: float, like: Value) -> Value:
    """A constant of the dtype of ``like``."""
    return w.operand(value, like.dtype)


def less(w: Writer, a: Value, b: Value) -> Value:
    """a < b."""
    return w.op("Less", a, b, dtype="bool")


def maximum(w: Writer, a: Value, b: Value) -> Value:
    """The larger; NaN where either is, as torch has it and onnxruntime too."""
    return w.op("Max", a, b)


@translates("exp2")
def _exp2(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Pow", number(w, 2.0, x), x)


@translates("expm1")
def _expm1(w: Writer, x: Value) -> Value:
    # exp(x) - 1 loses all near 0: x / 2 tells it as 2 sinh(x / 2) exp(x / 2), with its series where x is small
    x = w.wide(x)
    small = less(w, w.op("Abs", x), number(w, 0.05, x))
    series = number(w, 1 / 5040, x)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0):
        series = w.op("Add", w.op("Mul", series, x), number(w, factor, x))
    return w.op("Where", small, w.op("Mul", series, x), w.op("Sub", w.op("Exp", x), number(w, 1.0, x)))


@translates("log1p")
def _log1p(w: Writer, x: Value) -> Value:
    return log1p(w, w.wide(x))


def log1p(w: Writer, x: Value) -> Value:
    """log(1 + x), also near 0: with u = 1 + x as rounded, log(u) x / (u - 1) is exact enough (Kahan)."""
    one = number(w, 1.0, x)
    u = w.op("Add", x, one)
    rest = w.op("Sub", u, one)
    plain = w.op("Equal", rest, number(w, 0.0, x), dtype="bool")
    infinite = w.op("IsInf", u, dtype="bool")
    safe = w.op("Where", plain, one, rest)
    corrected = w.op("Where", infinite, u, w.op("Div", w.op("Mul", w.op("Log", u), x), safe))
    return w.op("Where", plain, x, corrected)


@translates("log10")
def _log10(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", w.op("Log", x), number(w, 1 / math.log(10), x))


@translates("log2")
def _log2(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", w.op("Log", x), number(w, 1 / math.log(2), x))


@translates("rsqrt")
def _rsqrt(w: Writer, x: Value) -> Value:
    return w.op("Reciprocal", w.op("Sqrt", w.wide(x)))


@translates("deg2rad")
def _deg2rad(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", x, number(w, math.pi / 180, x))


@translates("rad2deg")
def _rad2deg(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", x, number(w, 180 / math.pi, x))


@translates("erfc")
def _erfc(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Sub", number(w, 1.0, x), w.op("Erf", x))


@translates("logit")
def _logit(w: Writer, x: Value, eps: float | None) -> Value:
    x = w.wide(x)
    if eps is not None:
        x = w.op("Min", w.op("Max", x, number(w, eps, x)), number(w, 1 - eps, x))
    return w.op("Log", w.op("Div", x, w.op("Sub", number(w, 1.0, x), x)))


@translates("nan_to_num")
def _nan_to_num(w: Writer, x: Value, nan: float | None, posinf: float | None, neginf: float | None) -> Value:
    if x.dtype not in FLOATING:
        return x
    limits = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}
    most = limits.get(x.dtype, 1.7976931348623157e308)
    x = w.wide(x)
    result = w.op("Where", w.op("IsNaN", x, dtype="bool"), number(w, nan or 0.0, x), x)
    high = w.op("IsInf", x, dtype="bool", detect_negative=0)
    low = w.op("IsInf", x, dtype="bool", detect_positive=0)
    result = w.op("Where", high, number(w, most if posinf is None else posinf, x), result)
    return w.op("Where", low, number(w, -most if neginf is None else neginf, x), result)


@translates("sgn", "sign")
def _sign(w: Writer, x: Value) -> Value:
    return x if x.dtype == "bool" else w.op("Sign", w.wide(x))


@translates("neg")
def _neg(w: Writer, x: Value) -> Value:
    return w.op("Neg", x)


@translates("positive", "conj_physical")
def _same(_w: Writer, x: Value) -> Value:
    return x


def _whole(kind: str) -> Translation:
    def write(w: Writer, x: Value) -> Value:
        return x if x.dtype not in FLOATING else w.op(kind, w.wide(x))

    return write


for _name in ("ceil", "floor", "round"):
    TRANSLATIONS[f"aten.{_name}.default"] = _whole(_name.capitalize())


@translates("round.decimals")
def _round_decimals(w: Writer, x: Value, decimals: int) -> Value:
    if x.dtype not in FLOATING:
        return x
    x = w.wide(x)
    scale = number(w, 10.0 ** abs(decimals), x)
    kinds = ("Mul", "Div") if decimals >= 0 else ("Div", "Mul")
    return w.op(kinds[1], w.op("Round", w.op(kinds[0], x, scale)), scale)


def trunc(w: Writer, x: Value) -> Value:
    """Towards 0."""
    if x.dtype not in FLOATING:
        return x
    zero = number(w, 0.0, x)
    return w.op("Where", less(w, x, zero), w.op("Ceil", x), w.op("Floor", x))


@translates("trunc")
def _trunc(w: Writer, x: Value) -> Value:
    return trunc(w, w.wide(x))


@translates("frac")
def _frac(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Sub", x, trunc(w, x))


@translates("hardtanh")
def _hardtanh(w: Writer, x: Value, low: float, high: float) -> Value:
    return w.op("Min", w.op("Max", x, w.operand(low, x.dtype)), w.operand(high, x.dtype))


@translates("relu")
def _relu(w: Writer, x: Value) -> Value:
    return w.op("Max", x, w.operand(0, x.dtype))


@translates("relu6")
def _relu6(w: Writer, x: Value) -> Value:
    return _hardtanh(w, x, 0, 6)


@translates("threshold")
def _threshold(w: Writer, x: Value, threshold: float, value: float) -> Value:
    under = w.op("LessOrEqual", x, w.operand(threshold, x.dtype), dtype="bool")
    return w.op("Where", under, w.operand(value, x.dtype), x, dtype=None)


@translates("celu")
def _celu(w: Writer, x: Value, alpha: float) -> Value:
    return _elu_of(w, w.wide(x), alpha, 1.0, 1.0 / alpha)


@translates("elu")
def _elu(w: Writer, x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    return _elu_of(w, w.wide(x), alpha, scale, input_scale)


@translates("selu")
def _selu(w: Writer, x: Value) -> Value:
    return _elu_of(w, w.wide(x), 1.6732632423543772, 1.0507009873554805, 1.0)


def _elu_of(w: Writer, x: Value, alpha: float, scale: float, input_scale: float) -> Value:
    low = w.op("Min", x, number(w, 0.0, x))
    grown = w.op("Sub", w.op("Exp", w.op("Mul", low, number(w, input_scale, x))), number(w, 1.0, x))
    negative = w.op("Mul", grown, number(w, alpha * scale, x))
    positive = less(w, number(w, 0.0, x), x)
    return w.op("Where", positive, w.op("Mul", x, number(w, scale, x)), negative)


@translates("hardshrink")
def _hardshrink(w: Writer, x: Value, lambd: float) -> Value:
    x = w.wide(x)
    inside = w.op("LessOrEqual", w.op("Abs", x), number(w, lambd, x), dtype="bool")
    return w.op("Where", inside, number(w, 0.0, x), x)


@translates("softshrink")
def _softshrink(w: Writer, x: Value, lambd: float) -> Value:
    x = w.wide(x)
    zero, edge = number(w, 0.0, x), number(w, lambd, x)
    return w.op("Mul", w.op("Sign", x), w.op("Max", w.op("Sub", w.op("Abs", x), edge), zero))


def _hard(w: Writer, x: Value) -> Value:
    lifted = w.op("Add", x, number(w, 3.0, x))
    return w.op("Div", w.op("Min", w.op("Max", lifted, number(w, 0.0, x)), number(w, 6.0, x)), number(w, 6.0, x))


@translates("hardsigmoid")
def _hardsigmoid(w: Writer, x: Value) -> Value:
    return _hard(w, w.wide(x))


@translates("hardswish")
def _hardswish(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", x, _hard(w, x))


@translates("leaky_relu")
def _leaky_relu(w: Writer, x: Value, slope: float) -> Value:
    x = w.wide(x)
    return w.op("Where", less(w, number(w, 0.0, x), x), x, w.op("Mul", x, number(w, slope, x)))


def softplus(w: Writer, x: Value) -> Value:
    """log(1 + exp(x)) without overflow: max(x, 0) + log1p(exp(-|x|))."""
    tail = log1p(w, w.op("Exp", w.op("Neg", w.op("Abs", x))))
    return w.op("Add", w.op("Max", x, number(w, 0.0, x)), tail)


@translates("softplus")
def _softplus(w: Writer, x: Value, beta: float, threshold: float) -> Value:
    x = w.wide(x)
    scaled = w.op("Mul", x, number(w, beta, x))
    smooth = w.op("Div", softplus(w, scaled), number(w, beta, x))
    return w.op("Where", less(w, number(w, threshold, x), scaled), x, smooth)


@translates("log_sigmoid")
def _log_sigmoid(w: Writer, x: Value) -> Value:
    return w.op("Neg", softplus(w, w.op("Neg", w.wide(x))))


@translates("log_sigmoid_forward")
def _log_sigmoid_forward(w: Writer, x: Value) -> list[Value]:
    wide = w.wide(x)
    buffer = w.constant([0.0] * 0, w.out[1].dtype)
    if w.out[1].shape != [0]:
        buffer = w.op("Exp", w.op("Neg", w.op("Abs", wide)))
    return [_log_sigmoid(w, x), buffer]


@translates("mish")
def _mish(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", x, w.op("Tanh", softplus(w, x)))


@translates("gelu")
def _gelu(w: Writer, x: Value, approximate: str) -> Value:
    x = w.wide(x)
    half = w.op("Mul", x, number(w, 0.5, x))
    if approximate == "tanh":
        cube = w.op("Mul", w.op("Mul", x, x), x)
        inner = w.op("Add", x, w.op("Mul", cube, number(w, 0.044715, x)))
        bent = w.op("Tanh", w.op("Mul", inner, number(w, math.sqrt(2 / math.pi), x)))
    else:
        bent = w.op("Erf", w.op("Mul", x, number(w, math.sqrt(0.5), x)))
    return w.op("Mul", half, w.op("Add", bent, number(w, 1.0, x)))


@translates("silu")
def _silu(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    return w.op("Mul", x, w.op("Sigmoid", x))


@translates("glu")
def _glu(w: Writer, x: Value, dim: int) -> Value:
    a, b = w.ops("Split", x, dtypes=(None, None), axis=dim, num_outputs=2)
    return w.op("Mul", w.wide(a), w.op("Sigmoid", w.wide(b)))


@translates("bitwise_not")
def _bitwise_not(w: Writer, x: Value) -> Value:
    return w.op("Not" if x.dtype == "bool" else "BitwiseNot", x)


@translates("square")
def _square(w: Writer, x: Value) -> Value:
    return w.op("Mul", x, x) if x.dtype != "bool" else w.cast(x, w.out[0].dtype)


@translates("abs")
def _abs(w: Writer, x: Value) -> Value:
    return w.op("Abs", x)


@translates("isnan")
def _isnan(w: Writer, x: Value) -> Value:
    return _never(w, x) if x.dtype not in FLOATING else w.op("IsNaN", x, dtype="bool")


@translates("isinf")
def _isinf(w: Writer, x: Value) -> Value:
    return _never(w, x) if x.dtype not in FLOATING else w.op("IsInf", x, dtype="bool")


@translates("isfinite")
def _isfinite(w: Writer, x: Value) -> Value:
    return w.op("Not", w.op("Or", _isnan(w, x), _isinf(w, x)))


@translates("isposinf")
def _isposinf(w: Writer, x: Value) -> Value:
    return _never(w, x) if x.dtype not in FLOATING else w.op("IsInf", x, dtype="bool", detect_negative=0)


@translates("isneginf")
def _isneginf(w: Writer, x: Value) -> Value:
    return _never(w, x) if x.dtype not in FLOATING else w.op("IsInf", x, dtype="bool", detect_positive=0)


def _never(w: Writer, x: Value) -> Value:
    return w.op("Expand", w.constant(False, "bool"), w.op("Shape", x, dtype="int64"))


@translates("logical_not")
def _logical_not(w: Writer, x: Value) -> Value:
    return w.op("Not", w.cast(x, "bool"))


@translates("signbit")
def _signbit(w: Writer, x: Value) -> Value:
    if x.dtype == "bool":
        return _never(w, x)
    if x.dtype not in FLOATING:
        return less(w, x, w.operand(0, x.dtype))
    wide = w.wide(x, x.dtype)  # 1 / -0.0 is minus infinity
    zero = w.op("Equal", wide, number(w, 0.0, wide), dtype="bool")
    return less(w, w.op("Where", zero, w.op("Reciprocal", wide), wide), number(w, 0.0, wide))


@translates("special_entr")
def _entr(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    zero = number(w, 0.0, x)
    positive = w.op("Neg", w.op("Mul", x, w.op("Log", x)))
    rest = w.op("Where", less(w, x, zero), number(w, -math.inf, x), zero)
    return w.op("Where", less(w, zero, x), positive, w.op("Where", w.op("IsNaN", x, dtype="bool"), x, rest))


@translates("sinc")
def _sinc(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    scaled = w.op("Mul", x, number(w, math.pi, x))
    zero = w.op("Equal", x, number(w, 0.0, x), dtype="bool")
    one = number(w, 1.0, x)
    return w.op("Where", zero, one, w.op("Div", w.op("Sin", scaled), w.op("Where", zero, one, scaled)))


@translates("angle")
def _angle(w: Writer, x: Value) -> Value:
    x = w.wide(x)
    turned = w.op("Where", less(w, x, number(w, 0.0, x)), number(w, math.pi, x), number(w, 0.0, x))
    return w.op("Where", w.op("IsNaN", x, dtype="bool"), x, turned)
