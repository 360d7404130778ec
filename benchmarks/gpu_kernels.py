"""Each kernel against its own floor, the naive kernel and cuBLAS. A wrong residue ends its case and fails the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_native import Native, conv_params, pool_params
from benchmarks.gpu_plan import ENTRY, PATHS, POOL, SMALL_WEIGHT_LIMIT, WEIGHT_LIMIT, ConvCase, moduli
from benchmarks.gpu_timing import Ceilings, Clock, Timing

Row = dict[str, Any]
GEMM_BYTES = 4 << 30  # of the large factor; longer products are timed in part
POISON = -1  # no residue


class WrongResult(RuntimeError):
    """Two ways to the same residues differ."""


@dataclass(eq=False)
class Stand:
    """What every measurement needs."""

    clock: Clock
    device: torch.device

    def residues(self, bases: tuple[int, ...], *shape: int) -> Tensor:
        """Uniform residues [L, *shape] on the device."""
        out = torch.empty(len(bases), *shape, dtype=torch.int64, device=self.device)
        for limb, b in zip(out, bases, strict=True):
            limb.random_(0, b)
        return out

    def weights(self, limit: int, *shape: int) -> tuple[Tensor, tuple[int, int]]:
        """Uniform weights |q| <= limit and their bounds (max |q|, max over outputs of sum |q|)."""
        w = torch.randint(-limit, limit + 1, shape, dtype=torch.int64, device=self.device)
        w.view(-1)[0] = limit
        return w, (int(w.abs().max()), int(w.abs().flatten(1).sum(1).max()))


@dataclass(eq=False)
class Bench(Stand):
    """And what those of single kernels need."""

    native: Native
    ceilings: Ceilings


def kernel_row(name: str, path: str, timing: Timing, floor: tuple[float, str], **more: Any) -> Row:
    return {
        "name": name,
        "path": path,
        **timing.to_json(),
        "floor": floor[0],
        "floor_of": floor[1],
        "fraction": floor[0] / timing.median,
        **more,
    }


def _check_baseline(case: ConvCase, bases: tuple[int, ...], x: Tensor, weight: Tensor, y: Tensor) -> None:
    """The naive kernel against the CPU op on the first limb and streams."""
    few = min(case.stream, 4)
    host = torch.ops.mcfhe.conv2d(
        x[:1, ..., :few].cpu().contiguous(), weight.cpu(), None, None, torch.tensor(bases[:1]),
        list(case.shape.stride), list(case.shape.padding), list(case.shape.dilation), case.shape.groups, None,
    )  # fmt: skip
    if not torch.equal(y[:1, ..., :few].cpu(), host):
        raise WrongResult(f"{case.title}: the naive kernel differs from the CPU")


def _gemm(bench: Bench, case: ConvCase) -> tuple[Timing, float]:
    """cuBLAS double on a matrix product of the same multiply-adds, and what part of it was timed (0..1)."""
    columns = case.shape.out_size[0] * case.shape.out_size[1] * case.stream
    limbs = max(1, min(case.limbs, GEMM_BYTES // (8 * case.taps * columns)))
    a = torch.rand(case.shape.out_channels, case.taps, dtype=torch.float64, device=bench.device)
    b = torch.rand(case.taps, columns * limbs, dtype=torch.float64, device=bench.device)
    out = torch.empty(case.shape.out_channels, columns * limbs, dtype=torch.float64, device=bench.device)
    return bench.clock.time(lambda: torch.mm(a, b, out=out)), limbs / case.limbs


def conv_rows(bench: Bench, case: ConvCase) -> Iterator[Row]:
    """Every path of one layer without epilogue, then the package's choice with bias and square, then with a pool."""
    bases = moduli(case.limbs)
    md = torch.tensor(bases, device=bench.device)
    x = bench.residues(bases, *case.x_shape[1:])
    y, expected = (torch.empty(case.y_shape, dtype=torch.int64, device=bench.device) for _ in range(2))
    params = conv_params(case.shape, case.limbs, case.stream)
    gemm, part = _gemm(bench, case)
    gemm_ms = gemm.median / part
    naive: Timing | None = None
    drawn = None
    for path, (arithmetic, unit, products) in PATHS.items():
        limit = SMALL_WEIGHT_LIMIT if path.endswith("< 128") else WEIGHT_LIMIT
        if drawn != limit:
            weight, bounds = bench.weights(limit, *case.weight_shape)
            bench.native.conv2d_naive(params, x, weight, md, expected.fill_(POISON))
            _check_baseline(case, bases, x, weight, expected)
            drawn = limit
        if naive is None:
            naive = bench.clock.time(lambda w=weight: bench.native.conv2d_naive(params, x, w, md, y))
        tensors = (x, weight, None, None, md)

        def call(
            tensors: tuple[Tensor | None, ...] = tensors, bounds: tuple[int, int] = bounds, how: str = arithmetic
        ) -> None:
            bench.native.conv2d(params, tensors, y, bounds, how, linear=case.linear)

        y.fill_(POISON)
        try:
            call()
        except RuntimeError as error:  # a path that this device or shape does not have
            yield {"name": case.title, "path": path, "refused": str(error)}
            continue
        if not torch.equal(y, expected):
            raise WrongResult(f"{case.title}: {path} differs from the naive kernel")
        if path == "auto":  # may choose either of the two
            unit = max(("double", "int64"), key=bench.ceilings.products.__getitem__)
        timing = bench.clock.time(call)
        floor = bench.ceilings.floor_ms(case.bytes_moved, case.macs * products, unit)
        yield kernel_row(
            case.title,
            path,
            timing,
            floor,
            warm=bench.clock.time(call, cold=False, seconds=0.2).median,
            macs=case.macs,
            bytes=case.bytes_moved,
            naive=naive.median,
            naive_ratio=naive.median / timing.median,
            gemm=gemm_ms,
            gemm_part=part,
            gemm_ratio=gemm_ms / timing.median,
        )
    yield _fused_row(bench, case, bases, md, x, y)
    if min(case.pooled_shape) > 0:
        yield _pooled_row(bench, case, bases, md, x, y)


def _fused_row(bench: Bench, case: ConvCase, bases: tuple[int, ...], md: Tensor, x: Tensor, y: Tensor) -> Row:
    weight, bounds = bench.weights(WEIGHT_LIMIT, *case.weight_shape)
    bias = bench.residues(bases, case.shape.out_channels)
    square = torch.tensor([0, 0, 1], device=bench.device).expand(case.limbs, 1, 3).contiguous()
    params = conv_params(case.shape, case.limbs, case.stream, square)
    tensors = (x, weight, bias, square, md)
    timing = bench.clock.time(lambda: bench.native.conv2d(params, tensors, y, bounds, linear=case.linear))
    unit = max(("double", "int64"), key=bench.ceilings.products.__getitem__)
    floor = bench.ceilings.floor_ms(case.bytes_moved, case.macs, unit)
    return kernel_row(case.title, "auto, bias + square", timing, floor, macs=case.macs, bytes=case.bytes_moved)


def _pooled_row(bench: Bench, case: ConvCase, bases: tuple[int, ...], md: Tensor, x: Tensor, y: Tensor) -> Row:
    """Bias, square and pool in the convolution's launch, beside the same with a launch for the pool."""
    weight, bounds = bench.weights(WEIGHT_LIMIT, *case.weight_shape)
    bias, factor = bench.residues(bases, case.shape.out_channels), bench.residues(bases)
    square = torch.tensor([0, 0, 1], device=bench.device).expand(case.limbs, 1, 3).contiguous()
    params = conv_params(case.shape, case.limbs, case.stream, square)
    pool = pool_params(case.shape, case.limbs, case.stream, POOL)
    one, two = (torch.empty(case.pooled_shape, dtype=torch.int64, device=bench.device) for _ in range(2))

    def fused() -> None:
        bench.native.conv2d_pool(params, POOL, (x, weight, bias, square, factor, md), one, bounds)

    def pair() -> None:
        bench.native.conv2d(params, (x, weight, bias, square, md), y, bounds)
        bench.native.sum_pool2d(pool, y, factor, md, two)

    one.fill_(POISON)
    fused()
    pair()
    if not torch.equal(one, two):
        raise WrongResult(f"{case.title}: the pool in the convolution's launch differs from that in its own")
    unit = max(("double", "int64"), key=bench.ceilings.products.__getitem__)
    moved, macs = case.pooled_work
    timing, apart = bench.clock.time(fused), bench.clock.time(pair)
    return kernel_row(
        case.title,
        "auto, bias + square + pool",
        timing,
        bench.ceilings.floor_ms(moved, macs, unit),
        macs=macs,
        bytes=moved,
        two_launches=apart.median,
        two_launches_ratio=apart.median / timing.median,
    )


def pointwise_rows(bench: Bench, limbs: int = 8, stream: int = 4096) -> Iterator[Row]:
    """The kernels that only move memory, as torch ops, on conv2's output."""
    shape = (16, 14, 14, stream)
    bases = moduli(limbs)
    md = torch.tensor(bases, device=bench.device)
    x, other = bench.residues(bases, *shape), bench.residues(bases, *shape)
    factor, table = bench.residues(bases), bench.residues(bases, 1, 4)
    pair = [2, 2]
    op = torch.ops.mcfhe
    works: dict[str, tuple[Callable[[], Tensor], float]] = {  # work, tensors of x's size moved
        "sum_pool2d 2x2": (lambda: op.sum_pool2d(x, factor, md, pair, pair, [0, 0]), 1.25),
        "square": (lambda: op.square(x, md), 2),
        "poly, degree 3": (lambda: op.poly(x, table, md), 2),
        "align_add": (lambda: op.align_add(x, other, factor, None, md), 3),
        "count_out_of_range": (lambda: op.count_out_of_range(x, md), 1),
    }
    for name, (work, moved) in works.items():
        size = int(moved * ENTRY * x.numel())
        floor = (size / bench.ceilings.copy_bytes * 1e3, "memory")
        yield kernel_row(f"{name}, L = {limbs}, S = {stream}", "auto", bench.clock.time(work), floor, bytes=size)
