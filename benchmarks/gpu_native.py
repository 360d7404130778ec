"""The torch-free launchers with every option, the naive kernel and the peaks, built with nvcc and called by ctypes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.shapes import ConvShape

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden")

ARITHMETIC = {"auto": 0, "double": 1, "int64": 2, "int64-mid": 3, "int8": 4}
TILES = {"auto": 0, "small": 1, "medium": 2, "large": 3, "direct": 4}
UNITS = {"double": 0, "int64": 1, "int8": 2}

# The fields of mcfhe::ConvParams, csrc/kernels/params.h, in order.
FIELDS = (
    "limbs", "in_channels", "height", "width", "stream", "out_channels", "kernel_h", "kernel_w", "stride_h",
    "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w", "groups", "out_h", "out_w", "poly_degree",
    "poly_channel_stride",
)  # fmt: skip


# The fields of mcfhe::PoolParams.
POOL_FIELDS = (
    "limbs", "channels", "height", "width", "stream", "kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h",
    "padding_w", "out_h", "out_w",
)  # fmt: skip


class ConvParams(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in FIELDS)


class PoolParams(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in POOL_FIELDS)


def conv_params(shape: ConvShape, limbs: int, stream: int, poly: Tensor | None = None) -> ConvParams:
    """``poly`` [L, 1 or O, degree + 1]."""
    degree = 0 if poly is None else poly.shape[2] - 1
    row = 0 if poly is None or poly.shape[1] == 1 else poly.shape[2]
    return ConvParams(
        limbs, shape.channels, shape.height, shape.width, stream, shape.out_channels, *shape.kernel, *shape.stride,
        *shape.padding, *shape.dilation, shape.groups, *shape.out_size, degree, row,
    )  # fmt: skip


def pool_params(shape: ConvShape, limbs: int, stream: int, window: tuple[int, int]) -> PoolParams:
    """Of windows side by side on the output of ``shape``."""
    height, width = shape.out_size
    stored = (height // window[0], width // window[1])
    return PoolParams(limbs, shape.out_channels, height, width, stream, *window, *window, 0, 0, *stored)


def sources() -> list[Path]:
    folders = (CSRC / "cuda", CSRC / "testing" / "baseline", CSRC / "testing" / "bench")
    return [path for folder in folders for path in sorted(folder.glob("*.cu"))]


def find_nvcc() -> Path | None:
    sys.path.insert(0, str(CSRC / "testing"))
    import cuda_check

    found: Path | None = cuda_check.find_nvcc()
    return found


def build(architecture: str, folder: Path = ROOT / "build" / "bench-gpu") -> Path:
    """The shared library for one architecture ("90"), compiled anew where a source is younger than its object."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("benchmarks.gpu needs nvcc: set CUDA_HOME to the CUDA toolkit")
    folder.mkdir(parents=True, exist_ok=True)
    headers = max(p.stat().st_mtime for suffix in ("*.h", "*.cuh") for p in CSRC.rglob(suffix))
    common = [str(nvcc), *FLAGS, f"-gencode=arch=compute_{architecture},code=sm_{architecture}", f"-I{CSRC}"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}-sm{architecture}.o"
        if not target.exists() or target.stat().st_mtime < max(headers, source.stat().st_mtime):
            command = [*common, "-c", str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{source.name} does not compile:\n{done.stderr}")
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources()))
    library = folder / f"libmcfhe_bench-sm{architecture}.so"
    # A static runtime of its own shares torch's primary context; streams and pointers mean the same in both.
    link = [*common, "-shared", *map(str, objects), "-o", str(library)]
    done = subprocess.run(link, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the benchmark library does not link:\n{done.stderr}")
    return library


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


@dataclass(eq=False)
class Native:
    """The library's functions on torch tensors, on the current stream. Tensors are dense and on the device."""

    library: ctypes.CDLL

    @staticmethod
    def load(path: Path) -> Native:
        library = ctypes.CDLL(str(path))
        library.mcfhe_bench_error.restype = ctypes.c_char_p
        library.mcfhe_bench_peak_products.restype = ctypes.c_int64
        library.mcfhe_bench_peak_threads.restype = ctypes.c_int64
        return Native(library)

    def _check(self, what: str, error: int) -> None:
        if error:
            raise RuntimeError(f"{what}: {self.library.mcfhe_bench_error(error).decode()}")

    def conv2d(
        self,
        params: ConvParams,
        tensors: Sequence[Tensor | None],
        y: Tensor,
        bounds: tuple[int, int],
        arithmetic: str = "auto",
        tile: str = "auto",
        linear: bool = False,
    ) -> None:
        """``tensors`` x, weight, bias, poly, moduli; y [L, O, OH, OW, S] is overwritten. Refused options raise."""
        function = self.library.mcfhe_bench_linear if linear else self.library.mcfhe_bench_conv2d
        error = function(
            ctypes.byref(params),
            *(ctypes.c_int64(bound) for bound in bounds),
            ARITHMETIC[arithmetic],
            TILES[tile],
            *(_pointer(t) for t in (*tensors, y)),
            _stream(),
        )
        self._check(f"conv2d, {arithmetic}, {tile}", error)

    def conv2d_pool(
        self,
        params: ConvParams,
        window: tuple[int, int],
        tensors: Sequence[Tensor | None],
        y: Tensor,
        bounds: tuple[int, int],
        arithmetic: str = "auto",
        tile: str = "auto",
    ) -> None:
        """``tensors`` x, weight, bias, poly, factor, moduli; y [L, O, OH // h, OW // w, S]. One launch or an error."""
        error = self.library.mcfhe_bench_conv2d_pool(
            ctypes.byref(params),
            *(ctypes.c_int64(number) for number in (*window, *bounds)),
            ARITHMETIC[arithmetic],
            TILES[tile],
            *(_pointer(t) for t in (*tensors, y)),
            _stream(),
        )
        self._check(f"conv2d with a pool, {arithmetic}, {tile}", error)

    def sum_pool2d(self, params: PoolParams, x: Tensor, factor: Tensor, moduli: Tensor, y: Tensor) -> None:
        pointers = (_pointer(t) for t in (x, factor, moduli, y))
        self._check("sum_pool2d", self.library.mcfhe_bench_sum_pool2d(ctypes.byref(params), *pointers, _stream()))

    def conv2d_naive(self, params: ConvParams, x: Tensor, weight: Tensor, moduli: Tensor, y: Tensor) -> None:
        pointers = (_pointer(t) for t in (x, weight, moduli, y))
        self._check("naive conv2d", self.library.mcfhe_bench_conv2d_naive(ctypes.byref(params), *pointers, _stream()))

    def peak(self, unit: str, blocks: int, rounds: int, seed: Tensor, out: Tensor) -> None:
        """``seed`` int32 [threads, 2], ``out`` float64 [threads]."""
        sizes = (ctypes.c_int64(blocks), ctypes.c_int64(rounds))
        error = self.library.mcfhe_bench_peak(UNITS[unit], *sizes, _pointer(seed), _pointer(out), _stream())
        self._check(f"peak of {unit}", error)

    def peak_products(self, unit: str, blocks: int, rounds: int) -> int:
        """Multiply-adds of one call of :meth:`peak`."""
        sizes = (ctypes.c_int64(blocks), ctypes.c_int64(rounds))
        return int(self.library.mcfhe_bench_peak_products(UNITS[unit], *sizes))

    def peak_threads(self, blocks: int) -> int:
        return int(self.library.mcfhe_bench_peak_threads(ctypes.c_int64(blocks)))
