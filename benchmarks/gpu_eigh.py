"""Ways to get the cut's eigenvector on a GPU (`gpu_eigh.py` prints nothing: `gpu.py` calls it).

torch's `eigh` of a batch on a GPU loops over the batch before torch 2.12, and calls cuSOLVER's
batched solver since. Here beside it: the same solver called directly, cupy's, the CPU's with two
copies, repeated squaring (which the ONNX export uses), and inverse iteration by Cholesky factors.
Each gets the weights of patch graphs and returns the second eigenvector of the normalised Laplacian
and its gap. Graphs are planted clusters with noise, as random tokens have no cut.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from many_runs import solves_one_by_one
from torch import Tensor

from microclip.export.onnx import fiedler_by_squaring
from microclip.model.saliency import affinity, fiedler_vector, laplacian

Found = tuple[Tensor, Tensor]  # vectors, gaps
_SHIFT = 3.0
_INVERSE_STEPS, _BLOCK = 12, 8


def graphs(batch: int, side: int) -> Tensor:
    """Weights of patch graphs with three clusters, on the CPU, in float32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(batch, 3, 32, generator=generator)
    label = torch.randint(3, (batch, side), generator=generator)
    tokens = centres.gather(1, label[..., None].expand(-1, -1, 32))
    tokens = tokens + 0.9 * torch.randn(batch, side, 32, generator=generator)
    return affinity(tokens, tau=0.2, eps=1e-6, normalize=True)


def errors(found: Found, known: Found) -> tuple[float, float]:
    """Largest difference of a vector's entries, up to its sign, and of a gap."""
    vector, gap = (part.cpu().double() for part in found)
    sign = (vector * known[0]).sum(dim=-1, keepdim=True).sign()
    worst = (sign * vector - known[0]).abs().max()
    return float(worst), float((gap - known[1]).abs().max())


def shifted(weights: Tensor) -> Tensor:
    """The Laplacian with its null vector moved past all other eigenvalues, as in our solver."""
    matrix, null = laplacian(weights)
    return matrix + _SHIFT * null[:, :, None] * null[:, None, :]


def on_the_cpu(weights: Tensor) -> Found:
    """Copy there, solve, copy back."""
    vector, gap = fiedler_vector(weights.cpu())
    return vector.to(weights.device), gap.to(weights.device)


def by_inverse_iteration(weights: Tensor) -> Found:
    """Subspace iteration with a Cholesky factor; Rayleigh-Ritz gives vectors and gap."""
    matrix = shifted(weights.double())  # a graph that filler alone connects has values near 0
    factor, _ = torch.linalg.cholesky_ex(matrix)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[-1], _BLOCK, generator=generator)
    basis = start.to(matrix.device, matrix.dtype).expand(len(matrix), -1, -1)
    for _ in range(_INVERSE_STEPS):
        basis = torch.cholesky_solve(basis, factor)
        for _ in range(2):  # twice: once leaves an error of the condition number's square
            gram, _ = torch.linalg.cholesky_ex(basis.mT @ basis)
            basis = torch.linalg.solve_triangular(gram.mT, basis, upper=True, left=False)
    values, turn = torch.linalg.eigh(basis.mT @ matrix @ basis)
    return (basis @ turn[..., :1])[..., 0], values[:, 1] - values[:, 0]


def by_cupy(weights: Tensor) -> Found:
    """cupy.linalg.eigh of the batch."""
    import cupy

    matrix = cupy.from_dlpack(shifted(weights).contiguous())
    values, vectors = (torch.from_dlpack(part) for part in cupy.linalg.eigh(matrix))
    return vectors[..., 0], values[:, 1] - values[:, 0]


def by_cupy_syevj(weights: Tensor) -> Found:
    """Solve by Jacobi's method, batched by cuSOLVER, through cupy."""
    import cupy
    from cupyx import cusolver

    matrix = cupy.from_dlpack(shifted(weights).contiguous())
    values, vectors = (torch.from_dlpack(part) for part in cusolver.syevj(matrix))
    order = values.argsort(dim=-1)
    values = values.gather(-1, order)
    first = order[:, :1, None].expand(-1, vectors.shape[1], -1)
    return vectors.gather(-1, first)[..., 0], values[:, 1] - values[:, 0]


class Cusolver:
    """cusolverDnXsyevBatched of the cuSOLVER that torch has loaded, called directly."""

    def __init__(self) -> None:
        """Find the library and make a handle."""
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        found = sorted({line.split()[-1] for line in lines if "libcusolver.so" in line})
        self._library: Any = ctypes.CDLL(found[0])
        self._handle, self._options = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._library.cusolverDnCreate(ctypes.byref(self._handle)))
        self._check(self._library.cusolverDnCreateParams(ctypes.byref(self._options)))

    def __call__(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues and, in the rows of each matrix, eigenvectors."""
        batch, n, _ = matrix.shape
        kind = {torch.float32: 0, torch.float64: 1}[matrix.dtype]
        vectors, values = matrix.clone(), matrix.new_empty(batch, n)
        status = self.status = torch.empty(batch, dtype=torch.int32, device=matrix.device)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(self._library.cusolverDnSetStream(self._handle, stream))
        size, place = ctypes.c_int64(n), ctypes.c_void_p
        given = (
            *(self._handle, self._options, 1, 0, size),  # eigenvectors too; lower triangle
            *(kind, place(vectors.data_ptr()), size, kind, place(values.data_ptr()), kind),
        )
        on_device, on_host, count = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int64(batch)
        sizes = (ctypes.byref(on_device), ctypes.byref(on_host), count)
        self._check(self._library.cusolverDnXsyevBatched_bufferSize(*given, *sizes))
        room = torch.empty(max(1, on_device.value), dtype=torch.uint8, device=matrix.device)
        host = ctypes.create_string_buffer(max(1, on_host.value))
        self._check(
            self._library.cusolverDnXsyevBatched(
                *given,
                *(place(room.data_ptr()), on_device, ctypes.cast(host, place), on_host),
                *(place(status.data_ptr()), count),
            )
        )
        return values, vectors

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise RuntimeError(f"cuSOLVER answered {status}")


@cache
def cusolver() -> Cusolver:
    """The solver, made once."""
    torch.linalg.eigvalsh(torch.eye(2, device="cuda"))  # loads the library
    return Cusolver()


def by_cusolver(weights: Tensor) -> Found:
    """What torch calls since 2.12."""
    values, vectors = cusolver()(shifted(weights).contiguous())
    return vectors[:, 0], values[:, 1] - values[:, 0]


class Eigen(NamedTuple):
    """What torch.linalg.eigh returns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


LOOPS = solves_one_by_one()
_plain_eigh = torch.linalg.eigh


@torch.library.custom_op("microclip_benchmarks::eigh", mutates_args=())
def _solved(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, and eigenvectors in rows; an operation of torch, so that it can be compiled."""
    solver = cusolver()
    values, vectors = solver(matrix.contiguous())
    if bool(solver.status.any()):
        raise RuntimeError("cuSOLVER found no eigenvalues")
    return values, vectors


@_solved.register_fake
def _(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix.new_empty(matrix.shape[:2]), torch.empty_like(
        matrix, memory_format=torch.contiguous_format
    )


def _eigh(matrix: Tensor) -> Any:
    """torch.linalg.eigh, but batches on a GPU as torch calls cuSOLVER since 2.12, check and all."""
    if matrix.device.type != "cuda" or matrix.ndim != 3:
        return _plain_eigh(matrix)
    values, vectors = _solved(matrix)
    return Eigen(values, vectors.mT)


@contextmanager
def as_torch_2_12() -> Iterator[None]:
    """Solve as torch does since 2.12, in what runs inside; with such a torch, change nothing."""
    torch.linalg.eigh = _eigh if LOOPS else _plain_eigh
    try:
        yield
    finally:
        torch.linalg.eigh = _plain_eigh


@contextmanager
def plain() -> Iterator[None]:
    """Solve as this torch does, inside `as_torch_2_12`."""
    kept, torch.linalg.eigh = torch.linalg.eigh, _plain_eigh
    try:
        yield
    finally:
        torch.linalg.eigh = kept


def compile_as_torch_2_12() -> None:
    """Let torch.compile take `recompile_limit`, which it lacks before torch 2.12, for this run."""
    compile_: Any = torch.compile
    if "recompile_limit" in inspect.signature(compile_).parameters:
        return

    def with_limit(*given: Any, recompile_limit: int | None = None, **options: Any) -> Any:
        if recompile_limit is not None:
            torch._dynamo.config.recompile_limit = recompile_limit
        return compile_(*given, **options)

    torch.compile = with_limit


SOLVERS: dict[str, Callable[[Tensor], Found]] = {
    "torch, as the cut calls it": fiedler_vector,
    "cusolverDnXsyevBatched": by_cusolver,
    "cupy.linalg.eigh": by_cupy,
    "cupyx syevj, batched": by_cupy_syevj,
    "on the CPU, with copies": on_the_cpu,
    "repeated squaring": fiedler_by_squaring,
    "inverse iteration": by_inverse_iteration,
}
