"""Matrix products, decompositions and solutions, distances."""

from __future__ import annotations

from typing import Any

from edge_agent.plan.dtypes import COMPLEX, FLOATING, promote, real_of
from edge_agent.plan.format import Dim, TensorType
from edge_agent.plan.shapes import (
    broadcast,
    describe,
    expect_dtype,
    expect_equal,
    expect_rank,
    misfit,
    result_type,
    tensor,
    wrap_dim,
)
from edge_agent.plan.spec import Scope, define

__all__ = ["OPS", "matmul"]

FAMILY = "matrix"
_DECOMPOSED = frozenset({"float32", "float64", "complex64", "complex128"})
"""What LAPACK computes in."""


def _one_dtype(*operands: TensorType | None) -> str:
    dtypes = [operand.dtype for operand in operands if operand is not None]
    if any(dtype != dtypes[0] for dtype in dtypes):
        raise misfit("matrices of one dtype", " and ".join(dtypes))
    if dtypes[0] == "bool":
        raise misfit("numbers to multiply", "bools")
    return dtypes[0]


def _inner(scope: Scope, a: Dim, b: Dim) -> None:
    expect_equal(scope, a, b, "the inner sizes of a product")


def _mm(scope: Scope, self: TensorType, mat2: TensorType) -> TensorType:
    expect_rank(self, 2, "a matrix")
    expect_rank(mat2, 2, "a matrix")
    _inner(scope, self.shape[1], mat2.shape[0])
    return tensor(_one_dtype(self, mat2), [self.shape[0], mat2.shape[1]])


def _bmm(scope: Scope, self: TensorType, mat2: TensorType) -> TensorType:
    expect_rank(self, 3, "a batch of matrices")
    expect_rank(mat2, 3, "a batch of matrices")
    expect_equal(scope, self.shape[0], mat2.shape[0], "the numbers of matrices")
    _inner(scope, self.shape[2], mat2.shape[1])
    return tensor(_one_dtype(self, mat2), [self.shape[0], self.shape[1], mat2.shape[2]])


def _mv(scope: Scope, self: TensorType, vec: TensorType) -> TensorType:
    expect_rank(self, 2, "a matrix")
    expect_rank(vec, 1, "a vector")
    _inner(scope, self.shape[1], vec.shape[0])
    return tensor(_one_dtype(self, vec), [self.shape[0]])


def _dot(scope: Scope, self: TensorType, other: TensorType) -> TensorType:
    expect_rank(self, 1, "a vector")
    expect_rank(other, 1, "a vector")
    _inner(scope, self.shape[0], other.shape[0])
    return tensor(_one_dtype(self, other), [])


def _outer(_: Scope, self: TensorType, vec2: TensorType) -> TensorType:
    expect_rank(self, 1, "a vector")
    expect_rank(vec2, 1, "a vector")
    return tensor(result_type((self, vec2)), [self.shape[0], vec2.shape[0]])


def _added(scope: Scope, self: TensorType, product: TensorType) -> TensorType:
    dtype = _one_dtype(self, product)
    if len(self.shape) > len(product.shape):
        raise misfit(f"an addend that broadcasts to {describe(product)}", describe(self))
    broadcast(scope, self, product)
    for own, size in zip(self.shape[::-1], product.shape[::-1], strict=False):
        if own != 1 and scope.sizes.equal(own, 1) is False:
            expect_equal(scope, own, size, "the sizes of an addend and the product")
    return tensor(dtype, product.shape)


def _addmm(scope: Scope, self: TensorType, mat1: TensorType, mat2: TensorType, *_: Any) -> TensorType:
    return _added(scope, self, _mm(scope, mat1, mat2))


def _baddbmm(scope: Scope, self: TensorType, batch1: TensorType, batch2: TensorType, *_: Any) -> TensorType:
    return _added(scope, self, _bmm(scope, batch1, batch2))


def _addbmm(scope: Scope, self: TensorType, batch1: TensorType, batch2: TensorType, *_: Any) -> TensorType:
    product = _bmm(scope, batch1, batch2)
    return _added(scope, self, tensor(product.dtype, product.shape[1:]))


def _addmv(scope: Scope, self: TensorType, mat: TensorType, vec: TensorType, *_: Any) -> TensorType:
    return _added(scope, self, _mv(scope, mat, vec))


def _addr(scope: Scope, self: TensorType, vec1: TensorType, vec2: TensorType, *_: Any) -> TensorType:
    product = _outer(scope, vec1, vec2)
    return tensor(promote(self.dtype, product.dtype), _added(scope, tensor(product.dtype, self.shape), product).shape)


def matmul(scope: Scope, self: TensorType, other: TensorType) -> TensorType:
    """The type of a product of any dims, as in ``torch.matmul``: leading dims broadcast."""
    dtype = _one_dtype(self, other)
    if not self.shape or not other.shape:
        raise misfit("tensors with dims to multiply", f"{describe(self)} and {describe(other)}")
    _inner(scope, self.shape[-1], other.shape[0 if len(other.shape) == 1 else -2])
    front = broadcast(scope, self.shape[:-2], other.shape[:-2])
    rows = self.shape[-2:-1]
    columns = other.shape[-1:] if len(other.shape) > 1 else []
    return tensor(dtype, [*front, *rows, *columns])


def _linear(scope: Scope, operand: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    expect_rank(weight, (1, 2), "a weight")
    dtype = _one_dtype(operand, weight, bias)
    if not operand.shape:
        raise misfit("an input with dims", "one without")
    _inner(scope, operand.shape[-1], weight.shape[-1])
    shape = [*operand.shape[:-1], *weight.shape[:-1]]
    if bias is not None and broadcast(scope, shape, bias) != shape:
        raise misfit(f"a bias that broadcasts to the output's {shape}", describe(bias))
    return tensor(dtype, shape)


def _square(scope: Scope, operand: TensorType, name: str = "A") -> list[Dim]:
    expect_dtype(operand, _DECOMPOSED, name)
    if len(operand.shape) < 2:
        raise misfit(f"{name} with at least 2 dims", describe(operand))
    expect_equal(scope, operand.shape[-2], operand.shape[-1], f"the last two sizes of {name}")
    return operand.shape[:-2]


def _rectangular(operand: TensorType) -> tuple[list[Dim], Dim, Dim]:
    expect_dtype(operand, _DECOMPOSED, "A")
    if len(operand.shape) < 2:
        raise misfit("A with at least 2 dims", describe(operand))
    return operand.shape[:-2], operand.shape[-2], operand.shape[-1]


def _determinant(scope: Scope, operand: TensorType) -> TensorType:
    return tensor(operand.dtype, _square(scope, operand))


def _determinant_and_factors(scope: Scope, operand: TensorType) -> list[TensorType]:
    front = _square(scope, operand)
    return [tensor(operand.dtype, front), operand, tensor("int32", operand.shape[:-1])]


def _square_alike(scope: Scope, operand: TensorType, *_: Any) -> TensorType:
    _square(scope, operand)
    return operand


def _square_and_info(scope: Scope, operand: TensorType, *_: Any) -> list[TensorType]:
    return [operand, tensor("int32", _square(scope, operand))]


def _solution(scope: Scope, a: TensorType, b: TensorType, left: bool) -> TensorType:
    front = _square(scope, a)
    dtype = _one_dtype(a, b)
    # as in torch.linalg.solve: B is one vector, or a batch of them shaped like A without its last dim, or matrices
    vector = len(b.shape) == 1 or (
        len(b.shape) == len(a.shape) - 1
        and all(scope.sizes.equal(x, y) for x, y in zip(b.shape, a.shape[:-1], strict=True))
    )
    if vector:
        expect_equal(scope, b.shape[-1], a.shape[-1], "the sizes of A and B")
        return tensor(dtype, [*broadcast(scope, front, b.shape[:-1]), a.shape[-1]])
    if len(b.shape) < 2:
        raise misfit("B with dims", "one without")
    expect_equal(scope, b.shape[-2 if left else -1], a.shape[-1], "the sizes of A and B")
    return tensor(dtype, [*broadcast(scope, front, b.shape[:-2]), *b.shape[-2:]])


def _solution_and_factors(scope: Scope, a: TensorType, b: TensorType, left: bool, *_: Any) -> list[TensorType]:
    front = _square(scope, a)
    solution = _solution(scope, a, b, left)
    return [solution, a, tensor("int32", a.shape[:-1]), tensor("int32", front)]


def _eigen(scope: Scope, operand: TensorType, uplo: str, compute_v: bool = True) -> list[TensorType]:
    if uplo not in ("L", "U", "l", "u"):
        raise misfit("an UPLO of 'L' or 'U'", repr(uplo))
    _square(scope, operand)
    vectors = operand if compute_v else tensor(operand.dtype, [0])
    return [tensor(real_of(operand.dtype), operand.shape[:-1]), vectors]


def _qr(scope: Scope, operand: TensorType, mode: str) -> list[TensorType]:
    front, rows, columns = _rectangular(operand)
    if mode not in ("reduced", "complete", "r"):
        raise misfit("a mode of 'reduced', 'complete' or 'r'", repr(mode))
    inner = rows if mode == "complete" else scope.sizes.min(rows, columns)
    q = tensor(operand.dtype, [0] if mode == "r" else [*front, rows, inner])
    return [q, tensor(operand.dtype, [*front, inner, columns])]


def _svd(scope: Scope, operand: TensorType, full: bool, *rest: Any) -> list[TensorType]:
    front, rows, columns = _rectangular(operand)
    compute_uv = rest[0] if len(rest) == 2 else True
    if rest[-1] is not None:
        raise misfit("no driver, as on the CPU", repr(rest[-1]))
    inner = scope.sizes.min(rows, columns)
    values = tensor(real_of(operand.dtype), [*front, inner])
    if not compute_uv:
        return [tensor(operand.dtype, [0]), values, tensor(operand.dtype, [0])]
    left = tensor(operand.dtype, [*front, rows, rows if full else inner])
    return [left, values, tensor(operand.dtype, [*front, columns if full else inner, columns])]


def _cross(scope: Scope, self: TensorType, other: TensorType, dim: Any) -> TensorType:
    if len(self.shape) != len(other.shape):
        raise misfit("two tensors with as many dims", f"{describe(self)} and {describe(other)}")
    shape = broadcast(scope, self, other)
    if dim is not None:
        size = shape[wrap_dim(dim, len(shape))] if shape else 0
        if scope.sizes.equal(size, 3) is False:
            raise misfit("a dim of size 3", str(size))
    return tensor(result_type((self, other)), shape)


def _distances(scope: Scope, x1: TensorType, x2: TensorType, *_: Any) -> TensorType:
    if len(x1.shape) < 2 or len(x2.shape) < 2:
        raise misfit("two tensors with at least 2 dims", f"{describe(x1)} and {describe(x2)}")
    expect_equal(scope, x1.shape[-1], x2.shape[-1], "the last sizes")
    dtype = _one_dtype(x1, x2)
    expect_dtype(x1, FLOATING, "a tensor")
    return tensor(dtype, [*broadcast(scope, x1.shape[:-2], x2.shape[:-2]), x1.shape[-2], x2.shape[-2]])


def _own_distances(scope: Scope, self: TensorType, _: Any) -> TensorType:
    expect_rank(self, 2, "a matrix")
    expect_dtype(self, FLOATING, "a tensor")
    rows = self.shape[0]
    pairs = scope.sizes.floordiv(scope.sizes.mul(rows, scope.sizes.sub(rows, 1)), 2)
    return tensor(self.dtype, [0 if type(rows) is int and rows <= 1 else pairs])


def _similarity(scope: Scope, x1: TensorType, x2: TensorType, dim: Any, _: Any) -> TensorType:
    dtype = promote(x1.dtype, x2.dtype)
    if dtype not in FLOATING and dtype not in COMPLEX:
        raise misfit("floats", dtype)
    shape = broadcast(scope, x1, x2)
    axis = wrap_dim(dim, len(shape))
    return tensor(dtype, shape[:axis] + shape[axis + 1 :])


def _tensordot(
    scope: Scope, self: TensorType, other: TensorType, dims_self: list[Any], dims_other: list[Any]
) -> TensorType:
    dtype = _one_dtype(self, other)
    own = [wrap_dim(dim, len(self.shape), "dims_self") for dim in dims_self]
    others = [wrap_dim(dim, len(other.shape), "dims_other") for dim in dims_other]
    if len(own) != len(others) or len(set(own)) != len(own) or len(set(others)) != len(others):
        raise misfit("as many different dims of each", f"{dims_self} and {dims_other}")
    for a, b in zip(own, others, strict=True):
        if self.shape and other.shape and 1 not in (self.shape[a], other.shape[b]):
            _inner(scope, self.shape[a], other.shape[b])
    kept = [size for place, size in enumerate(self.shape) if place not in own]
    return tensor(dtype, kept + [size for place, size in enumerate(other.shape) if place not in others])


def _kron(scope: Scope, self: TensorType, other: TensorType) -> TensorType:
    rank = max(len(self.shape), len(other.shape))
    first = [1] * (rank - len(self.shape)) + self.shape
    second = [1] * (rank - len(other.shape)) + other.shape
    return tensor(result_type((self, other)), [scope.sizes.mul(a, b) for a, b in zip(first, second, strict=True)])


OPS = [
    *define(FAMILY, _mm, "mm(Tensor self, Tensor mat2) -> Tensor"),
    *define(FAMILY, _bmm, "bmm(Tensor self, Tensor mat2) -> Tensor"),
    *define(FAMILY, _mv, "mv(Tensor self, Tensor vec) -> Tensor"),
    *define(
        FAMILY,
        _dot,
        """
        dot(Tensor self, Tensor tensor) -> Tensor
        vdot(Tensor self, Tensor other) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _outer,
        """
        ger(Tensor self, Tensor vec2) -> Tensor
        outer(Tensor self, Tensor vec2) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _addmm,
        "addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _baddbmm,
        "baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    ),
    *define(
        FAMILY,
        _addbmm,
        "addbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    ),
    *define(FAMILY, _addmv, "addmv(Tensor self, Tensor mat, Tensor vec, *, Scalar beta=1, Scalar alpha=1) -> Tensor"),
    *define(FAMILY, _addr, "addr(Tensor self, Tensor vec1, Tensor vec2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"),
    *define(FAMILY, matmul, "matmul(Tensor self, Tensor other) -> Tensor"),
    *define(FAMILY, _linear, "linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"),
    *define(FAMILY, _determinant, "linalg_det(Tensor A) -> Tensor"),
    *define(FAMILY, _determinant_and_factors, "_linalg_det(Tensor A) -> (Tensor result, Tensor LU, Tensor pivots)"),
    *define(
        FAMILY,
        _square_alike,
        """
        linalg_cholesky(Tensor self, *, bool upper=False) -> Tensor
        linalg_inv(Tensor A) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _square_and_info,
        """
        linalg_cholesky_ex(Tensor self, *, bool upper=False, bool check_errors=False) -> (Tensor L, Tensor info)
        linalg_inv_ex(Tensor A, *, bool check_errors=False) -> (Tensor inverse, Tensor info)
        """,
    ),
    *define(FAMILY, _solution, "linalg_solve(Tensor A, Tensor B, *, bool left=True) -> Tensor"),
    *define(
        FAMILY,
        _solution_and_factors,
        "_linalg_solve_ex(Tensor A, Tensor B, *, bool left=True, bool check_errors=False) "
        "-> (Tensor result, Tensor LU, Tensor pivots, Tensor info)",
    ),
    *define(
        FAMILY,
        _eigen,
        """
        _linalg_eigh(Tensor A, str UPLO="L", bool compute_v=True) -> (Tensor eigenvalues, Tensor eigenvectors)
        linalg_eigh(Tensor self, str UPLO="L") -> (Tensor eigenvalues, Tensor eigenvectors)
        """,
    ),
    *define(FAMILY, _qr, 'linalg_qr(Tensor A, str mode="reduced") -> (Tensor Q, Tensor R)'),
    *define(
        FAMILY,
        _svd,
        """
        _linalg_svd(Tensor A, bool full_matrices=False, bool compute_uv=True, *, str? driver=None) -> (Tensor U,
            Tensor S, Tensor Vh)
        linalg_svd(Tensor A, bool full_matrices=True, *, str? driver=None) -> (Tensor U, Tensor S, Tensor Vh)
        """,
    ),
    *define(
        FAMILY,
        _cross,
        """
        cross(Tensor self, Tensor other, int? dim=None) -> Tensor
        linalg_cross(Tensor self, Tensor other, *, int dim=-1) -> Tensor
        """,
    ),
    *define(
        FAMILY,
        _distances,
        """
        _cdist_forward(Tensor x1, Tensor x2, float p, int? compute_mode) -> Tensor
        cdist(Tensor x1, Tensor x2, float p=2., int? compute_mode=None) -> Tensor
        """,
    ),
    *define(FAMILY, _own_distances, "_pdist_forward(Tensor self, float p=2.) -> Tensor"),
    *define(FAMILY, _similarity, "cosine_similarity(Tensor x1, Tensor x2, int dim=1, float eps=1e-08) -> Tensor"),
    *define(FAMILY, _tensordot, "tensordot(Tensor self, Tensor other, int[] dims_self, int[] dims_other) -> Tensor"),
    *define(FAMILY, _kron, "kron(Tensor self, Tensor other) -> Tensor"),
]
