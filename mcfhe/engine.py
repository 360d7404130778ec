"""Runs an integer program on residues, on a device. Knows steps, moduli and tensors; nothing of lanes or keys.

:class:`Engine` holds what all keys share (the weights). :meth:`Engine.bind` reduces the exact constants modulo each
limb of one basis; :meth:`Engine.run` evaluates residues tile by tile: limbs and streams are independent, so a tile of
some limbs and some streams passes through the whole network before the next one starts, and the memory held is that
of the two largest neighbouring layers of one tile. How tiles reach a GPU is :mod:`mcfhe.cuda_runner`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mcfhe import ops
from mcfhe.errors import ParameterError
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
)
from mcfhe.tiling import fit
from mcfhe.workers import run_tiles

if TYPE_CHECKING:
    from mcfhe.cuda_runner import CudaRunner

RESIDUE_BYTES = 8
# A tile's live residues on a CPU, where each thread has its own tile: they stay in the second-level cache. Measured on
# the demo network with one thread: 2 MiB is 1.5 times as fast as 32 MiB and three times as fast as no tiling at all.
CPU_TILE_BYTES = 2 << 20


def physical_memory() -> int:
    """Bytes of RAM in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, eq=False)
class _Fused:
    """A step with the polynomial that follows it, where nothing else reads the value in between."""

    step: Step
    poly: PolyStep | None
    output: int  # index of the value this produces
    last_use: tuple[int, ...] = ()  # values nobody reads after this step


@dataclass(frozen=True, eq=False)
class Binding:
    """The constants of one modular basis: per fused step, residues [L, ...]."""

    moduli: Tensor
    constants: tuple[dict[str, Tensor], ...]

    def limbs(self, start: int, stop: int) -> Binding:
        """The same for limbs start .. stop - 1."""
        return Binding(self.moduli[start:stop], tuple({k: v[start:stop] for k, v in c.items()} for c in self.constants))

    def copy(self) -> Binding:
        """The same values in dense tensors of its own."""
        dense = torch.contiguous_format
        return Binding(
            self.moduli.clone(memory_format=dense),
            tuple({k: v.clone(memory_format=dense) for k, v in c.items()} for c in self.constants),
        )

    def tensors(self) -> list[Tensor]:
        """Moduli and constants, in the same order for every basis of one program."""
        return [self.moduli, *(t for c in self.constants for t in c.values())]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * RESIDUE_BYTES for t in self.tensors())


def _residues(values: Sequence[int], moduli: Sequence[int]) -> Tensor:
    """Exact integers modulo every limb: int64 [L, len(values)]."""
    return torch.tensor([[v % b for v in values] for b in moduli], dtype=torch.int64).reshape(len(moduli), len(values))


def _constants(fused: _Fused, moduli: Sequence[int]) -> dict[str, Tensor]:
    step, out = fused.step, {}
    if isinstance(step, (Conv2dStep, LinearStep)) and step.bias is not None:
        out["bias"] = _residues(step.bias, moduli)
    poly = step if isinstance(step, PolyStep) else fused.poly
    if poly is not None:
        rows, width = len(poly.coefficients), len(poly.coefficients[0])
        flat = [c for row in poly.coefficients for c in row]
        out["poly"] = _residues(flat, moduli).reshape(len(moduli), rows, width)
    if isinstance(step, PoolStep) and step.factor != 1:
        out["factor"] = _residues([step.factor], moduli)[:, 0]
    if isinstance(step, (AddStep, ConcatStep)):
        for i, factor in enumerate(step.factors):
            if factor != 1:
                out[f"factor{i}"] = _residues([factor], moduli)[:, 0]
    return {name: value.contiguous() for name, value in out.items()}


def _fuse(program: IntegerProgram) -> tuple[_Fused, ...]:
    readers: dict[int, list[int]] = {}
    for index, step in enumerate(program.steps):
        for value in step.inputs:
            readers.setdefault(value, []).append(index)
    fused: list[_Fused] = []
    skip: set[int] = set()
    for index, step in enumerate(program.steps):
        if index in skip:
            continue
        follower = readers.get(index + 1, [])
        poly = None
        if isinstance(step, (Conv2dStep, LinearStep)) and len(follower) == 1:
            candidate = program.steps[follower[0]]
            if isinstance(candidate, PolyStep) and len(candidate.coefficients) in (1, step.shape[0]):
                poly = candidate
                skip.add(follower[0])
        fused.append(_Fused(step, poly, (follower[0] if poly is not None else index) + 1))
    # A fused step may run before steps that stood between it and its polynomial, so uses are counted on the new line.
    last: dict[int, int] = {}
    for index, item in enumerate(fused):
        for value in item.step.inputs:
            last[value] = index
    output = fused[-1].output if fused else 0
    return tuple(
        _Fused(
            item.step, item.poly, item.output, tuple(v for v in set(item.step.inputs) if last[v] == i and v != output)
        )
        for i, item in enumerate(fused)
    )


@dataclass(eq=False)
class Engine:
    """Evaluates one integer program on one device.

    ``device`` is "cpu", "cuda" or "cuda:n". ``tile_bytes`` bounds the live residues of all tiles at work
    (default: what fits the cache on a CPU, a share of the free memory on a GPU). ``cuda_graphs`` = False launches every
    step by itself on a GPU; by default tiles are replayed as CUDA graphs unless MCFHE_CUDA_GRAPHS=0.
    """

    program: IntegerProgram
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tile_bytes: int | None = None
    cuda_graphs: bool | None = None

    def __post_init__(self) -> None:
        self.device = torch.device(self.device)
        self._check_device()
        if self.tile_bytes is not None and self.tile_bytes < 1:
            raise ParameterError(f"tile_bytes = {self.tile_bytes}: must be positive")
        self._fused = _fuse(self.program)
        self._weights: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        for index, item in enumerate(self._fused):
            if isinstance(item.step, (Conv2dStep, LinearStep)):
                weight = np.ascontiguousarray(item.step.weight, dtype=np.int64)
                magnitude = np.abs(weight).reshape(weight.shape[0], -1)
                bounds = (int(magnitude.max()), int(magnitude.sum(axis=1).max()))
                self._weights[index] = (torch.from_numpy(weight.copy()).to(self.device), bounds)
        self.runner = self._make_runner() if self.device.type == "cuda" else None  # None: the CPU loop below

    def _make_runner(self) -> CudaRunner:
        from mcfhe.cuda_runner import CudaRunner, graphs_wanted
        from mcfhe.cuda_runtime import CudaRuntime

        graphs = graphs_wanted() if self.cuda_graphs is None else self.cuda_graphs
        runtime = CudaRuntime(self.device, graphs)
        return CudaRunner(self._run_tile, self.program.output_shape, self.live_entries, runtime, self.tile_bytes)

    def _check_device(self) -> None:
        from mcfhe._extension import has_cuda_kernels

        if self.device.type == "cpu":
            return
        if self.device.type != "cuda":
            raise ParameterError(f"device {self.device}: choose cpu or cuda")
        if not torch.cuda.is_available():
            raise ParameterError(f"device {self.device}: torch sees no CUDA device; use device='cpu'")
        if not has_cuda_kernels():
            raise ParameterError(
                f"device {self.device}: this build has no CUDA kernels; rebuild with MCFHE_WITH_CUDA=1 "
                "or use device='cpu'"
            )

    def bind(self, moduli: Sequence[int]) -> Binding:
        """Reduce every constant modulo every limb. Costs O(constants * limbs) Python integers: keep the result."""
        return Binding(
            torch.tensor(list(moduli), dtype=torch.int64, device=self.device),
            tuple({k: v.to(self.device) for k, v in _constants(item, moduli).items()} for item in self._fused),
        )

    @property
    def live_entries(self) -> int:
        """Residues alive at the worst moment, for one limb and one stream."""
        sizes = {0: prod(self.program.input_shape)}
        live, worst = sizes[0], sizes[0]
        for item in self._fused:
            shape = self.program.steps[item.output - 1].shape
            if not isinstance(item.step, FlattenStep):
                live += prod(shape)
            sizes[item.output] = prod(shape)
            worst = max(worst, live)
            if not isinstance(item.step, FlattenStep):
                live -= sum(sizes[v] for v in item.last_use)
        return worst

    def tile(self, limbs: int, stream: int) -> tuple[int, int]:
        """(limbs, streams) of one tile on a CPU: as many streams as fit, then limbs; at least one tile a thread."""
        workers = torch.get_num_threads()
        budget = CPU_TILE_BYTES if self.tile_bytes is None else max(1, self.tile_bytes // workers)
        per_tile, streams = fit(limbs, stream, max(1, budget // (RESIDUE_BYTES * max(1, self.live_entries))))
        columns = -(-stream // streams)
        if columns * -(-limbs // per_tile) < workers:
            per_tile = max(1, -(-limbs * columns // workers))
        return per_tile, streams

    def run(self, binding: Binding, x: Tensor, progress: Callable[[float], None] | None = None) -> Tensor:
        """Evaluate residues ``x`` [L, C, H, W, S], canonical, on any device -> [L, labels, S] on ``x``'s device.

        ``progress`` is called with the finished share, 0..1, after every tile. Residues must be in range: callers at a
        boundary use :func:`mcfhe.ops.check_residues` first.
        """
        limbs = binding.moduli.shape[0]
        if x.dim() != 5 or tuple(x.shape[:1]) != (limbs,) or tuple(x.shape[1:4]) != tuple(self.program.input_shape):
            raise ParameterError(
                f"residues of shape {list(x.shape)}: this program and basis take "
                f"[{limbs}, {', '.join(map(str, self.program.input_shape))}, streams]"
            )
        if self.runner is not None:
            return self.runner.run(binding, x, progress)
        stream = x.shape[4]
        y = torch.empty(limbs, *self.program.output_shape, stream, dtype=torch.int64, device=x.device)
        tile_limbs, tile_streams = self.tile(limbs, stream)
        tiles = [
            (slice(lo, lo + tile_limbs), slice(so, so + tile_streams))
            for lo in range(0, limbs, tile_limbs)
            for so in range(0, stream, tile_streams)
        ]
        parts = {rows.start: binding.limbs(rows.start, rows.stop) for rows, _ in tiles}

        def evaluate(tile: tuple[slice, slice]) -> Tensor:
            rows, columns = tile
            return self._run_tile(parts[rows.start], x[rows, ..., columns].cpu())

        threaded = torch.get_num_threads() > 1 and len(tiles) > 1
        results = run_tiles(evaluate, tiles) if threaded else map(evaluate, tiles)
        for done, ((rows, columns), result) in enumerate(zip(tiles, results, strict=True)):
            y[rows, ..., columns] = result
            if progress is not None:
                progress((done + 1) / len(tiles))
        return y

    def _run_tile(self, binding: Binding, x: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: x}
        for index, item in enumerate(self._fused):
            inputs = [values[v] for v in item.step.inputs]
            values[item.output] = self._step(index, item, inputs, binding)
            del inputs
            for value in item.last_use:
                del values[value]
        return values[self._fused[-1].output] if self._fused else x

    def _step(self, index: int, item: _Fused, inputs: list[Tensor], binding: Binding) -> Tensor:
        step, moduli, constants = item.step, binding.moduli, binding.constants[index]
        x = inputs[0]
        if isinstance(step, Conv2dStep):
            weight, bounds = self._weights[index]
            return ops.conv2d(
                x,
                weight,
                constants.get("bias"),
                moduli,
                stride=step.stride,
                padding=step.padding,
                dilation=step.dilation,
                groups=step.groups,
                poly=constants.get("poly"),
                weight_bounds=bounds,
                validate=False,
            )
        if isinstance(step, LinearStep):
            weight, bounds = self._weights[index]
            return ops.linear(
                x,
                weight,
                constants.get("bias"),
                moduli,
                poly=constants.get("poly"),
                weight_bounds=bounds,
                validate=False,
            )
        if isinstance(step, PoolStep):
            return ops.sum_pool2d(
                x,
                moduli,
                kernel=step.kernel,
                stride=step.stride,
                padding=step.padding,
                factor=constants.get("factor"),
                validate=False,
            )
        if isinstance(step, PolyStep):
            return ops.poly(x, constants["poly"], moduli, validate=False)
        if isinstance(step, AddStep):
            return ops.align_add(
                x,
                inputs[1],
                moduli,
                x_factor=constants.get("factor0"),
                y_factor=constants.get("factor1"),
                validate=False,
            )
        if isinstance(step, ConcatStep):
            return torch.cat([self._align(v, constants.get(f"factor{i}"), moduli) for i, v in enumerate(inputs)], dim=1)
        if isinstance(step, FlattenStep):
            return x.reshape(x.shape[0], -1, x.shape[-1])
        raise ParameterError(f"layer {step.name!r}: the engine has no step {step.kind!r}")

    @staticmethod
    def _align(x: Tensor, factor: Tensor | None, moduli: Tensor) -> Tensor:
        if factor is None:
            return x
        table = torch.stack([torch.zeros_like(factor), factor], dim=1)[:, None]
        return ops.poly(x, table.contiguous(), moduli, validate=False)
