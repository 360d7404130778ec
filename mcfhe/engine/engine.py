"""Runs an integer program on residues, on a device. Knows steps, moduli and tensors; nothing of lanes or keys.

:class:`Engine` holds what all keys share (the weights). :meth:`Engine.bind` reduces the exact constants modulo each
limb of one basis; :meth:`Engine.run` evaluates residues tile by tile: limbs and streams are independent, so a tile of
some limbs and some streams passes through the whole network before the next one starts, and the memory held is that
of the two largest neighbouring layers of one tile. How tiles reach a GPU is :mod:`mcfhe.engine.cuda_runner`.

In a lattice program some steps mix limbs and coefficients. There tiles pass from one of those to the next
(:mod:`mcfhe.engine.schedule`), and the values in between are kept whole, packed to 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mcfhe import ops
from mcfhe.arguments import torch_device, whole
from mcfhe.engine.arena import Arena, Memory, TorchMemory
from mcfhe.engine.binding import RESIDUE_BYTES, Binding, bind
from mcfhe.engine.ring_runner import RingRunner
from mcfhe.engine.schedule import Item, Part, components, fuse, schedule
from mcfhe.engine.tiling import VECTOR, Piece, Tile, fit
from mcfhe.engine.workers import run_tiles
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
    RelineariseStep,
    TensorSquareStep,
)

if TYPE_CHECKING:
    from mcfhe.engine.cuda_runner import CudaRunner

# A tile's live residues on a CPU, where each thread has its own tile: they stay in the second-level cache. Measured on
# the demo network with one thread: 2 MiB is 1.5 times as fast as 32 MiB and three times as fast as no tiling at all.
CPU_TILE_BYTES = 2 << 20
# Of lattice programs, whose tiles are written back as 32-bit words: longer runs of those, and fewer calls that pack the
# weights, are worth more than the second-level cache. Measured on the demo network with one thread: 6 MiB is 1.2 times
# as fast as 2 or 16.
CPU_RING_TILE_BYTES = 6 << 20
# And of a lattice program on a GPU: enough to fill it, little beside the values between parts.
CUDA_TILE_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class RingBinding:
    """A lattice program bound to one client: constants modulo the ring's moduli, key parts by number of limbs."""

    binding: Binding
    keys: dict[int, Tensor]


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
        self.device = torch_device(self.device)
        self._check_device()
        if self.tile_bytes is not None and whole("tile_bytes", self.tile_bytes) < 1:
            raise ParameterError(f"tile_bytes = {self.tile_bytes}: must be positive")
        self._fused = fuse(self.program)
        self._parts = schedule(self.program, self._fused)
        ring = self.program.ring
        self._ring = None if ring is None else RingRunner(ring, self.device)
        self._arena = Arena() if self.device.type == "cpu" and ring is not None else None
        self._ring_binding: Binding | None = None
        self._weights: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        for index, item in enumerate(self._fused):
            if isinstance(item.step, (Conv2dStep, LinearStep)):
                weight = np.ascontiguousarray(item.step.weight, dtype=np.int64)
                magnitude = np.abs(weight).reshape(weight.shape[0], -1)
                bounds = (int(magnitude.max()), int(magnitude.sum(axis=1).max()))
                self._weights[index] = (torch.from_numpy(weight.copy()).to(self.device), bounds)
        # None: the loop below, which is the CPU's, and that of lattice programs on every device
        self.runner = self._make_runner() if self.device.type == "cuda" and self._ring is None else None

    def _make_runner(self) -> CudaRunner:
        from mcfhe.engine.cuda_runner import CudaRunner, graphs_wanted
        from mcfhe.engine.cuda_runtime import CudaRuntime

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
        return bind(self._fused, moduli, self.device)

    def bind_ring(self, keys: Tensor) -> RingBinding:
        """A lattice program with one client's relinearisation key, int64 ``[D, 2, D + 1, n]`` for D moduli.

        ParameterError for a key of another shape.
        """
        ring = self.program.ring
        if ring is None or self._ring is None:
            raise ParameterError("relinearisation keys: this is no lattice program")
        digits = len(ring.moduli)
        expected = (digits, 2, digits + 1, ring.degree)
        if tuple(keys.shape) != expected or keys.dtype != torch.int64:
            raise ParameterError(
                f"relinearisation key: {keys.dtype} {list(keys.shape)}, int64 {list(expected)} expected"
            )
        levels = {
            self.program.levels[item.step.inputs[0]].limbs
            for item in self._fused
            if isinstance(item.step, RelineariseStep)
        }
        if self._ring_binding is None:
            self._ring_binding = self.bind(ring.moduli)
        return RingBinding(self._ring_binding, {limbs: self._ring.keys_of(keys, limbs) for limbs in levels})

    @property
    def live_entries(self) -> int:
        """Residues alive at the worst moment, for one limb and one stream."""
        return max((part.live for part in self._parts if not part.ring), default=prod(self.program.input_shape))

    def tile(self, limbs: int, stream: int, live: int | None = None) -> Tile:
        """(limbs, streams) of one tile of the loop below: as many streams as fit, then limbs; a tile for every thread.

        ``live``: residues alive for one limb and one stream, by default those of the widest part.
        """
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        live = self.live_entries if live is None else live
        default = CUDA_TILE_BYTES
        if self.device.type == "cpu":
            default = CPU_TILE_BYTES if self._ring is None else CPU_RING_TILE_BYTES
        budget = default if self.tile_bytes is None else max(1, self.tile_bytes // workers)
        least = VECTOR if self._ring is not None else 1  # fewer columns of a wide ciphertext waste what is loaded
        per_tile, streams = fit(limbs, stream, max(least, budget // (RESIDUE_BYTES * max(1, live))))
        columns = -(-stream // streams)
        if columns * -(-limbs // per_tile) < workers:
            per_tile = max(1, -(-limbs * columns // workers))
        return per_tile, streams

    def run(self, binding: Binding | RingBinding, x: Tensor, progress: Callable[[float], None] | None = None) -> Tensor:
        """Evaluate residues ``x`` [L, C, H, W, S], canonical, on any device -> [L', labels, S'] on ``x``'s device.

        L' = L and S' = S but for lattice programs, where both are those of the output's level. ``progress`` is called
        with the finished share, 0..1, after every tile. Residues must be in range: callers at a boundary use
        :func:`mcfhe.ops.check_residues` first. Those of lattice programs may also be int32.
        """
        bound = binding.binding if isinstance(binding, RingBinding) else binding
        keys = binding.keys if isinstance(binding, RingBinding) else {}
        limbs = bound.moduli.shape[0]
        if x.dim() != 5 or tuple(x.shape[:1]) != (limbs,) or tuple(x.shape[1:4]) != tuple(self.program.input_shape):
            raise ParameterError(
                f"residues of shape {list(x.shape)}: this program and basis take "
                f"[{limbs}, {', '.join(map(str, self.program.input_shape))}, streams]"
            )
        ring = self.program.ring
        if ring is not None and x.shape[-1] != 2 * ring.degree:
            raise ParameterError(
                f"residues of shape {list(x.shape)}: ciphertexts of two components in degree {ring.degree} have "
                f"{2 * ring.degree} residues a limb"
            )
        if self.runner is not None:
            return self.runner.run(bound, x, progress)
        bound_ring = RingBinding(bound, keys)
        with self.memory() as memory:
            # On a GPU the values between parts stay there: packed, they are half of what a tile of them takes.
            values = {0: x.to(self.device) if self._ring is not None else x}
            y = self._run_parts(bound_ring, values, memory, progress)
            return y.to(x.device, torch.int64, copy=self._arena is not None)

    @contextmanager
    def memory(self) -> Iterator[Memory]:
        """For values of one evaluation of a lattice program, its input among them; none outlives it."""
        if self._arena is None:
            yield TorchMemory(self.device)
            return
        with self._arena.lease() as lease:
            yield lease

    def _run_parts(
        self,
        bound: RingBinding,
        values: dict[int, Tensor],
        memory: Memory,
        progress: Callable[[float], None] | None,
    ) -> Tensor:
        """One part after the other; every value goes back to ``memory`` when no later part reads it."""
        if not self._parts:
            return values[0]
        weights = [self._work(part) for part in self._parts]
        for number, part in enumerate(self._parts):
            base, share = sum(weights[:number]) / sum(weights), weights[number] / sum(weights)
            update = None if progress is None else partial(_shifted, progress, base, share)
            if part.ring and self._ring is not None:
                steps = [item.step for _, item in part.items]
                x = values.pop(part.reads[0]) if part.in_place else values[part.reads[0]]
                y = self._ring.run(steps, bound.keys, x, memory, update, in_place=part.in_place)
                values[part.writes[0]] = y
            else:
                values |= self._run_part(part, bound.binding, values, memory, update)
            for value in set(part.dead) & set(values):
                memory.give(values.pop(value))
        return values[self._parts[-1].writes[0]]

    def _work(self, part: Part) -> float:
        """A rough measure of a part's share of the time, for progress alone."""
        levels = self.program.levels
        if not levels:
            return 1.0
        limbs = levels[part.reads[0]].limbs
        if part.ring:
            return 100.0 * limbs * limbs * prod(self.program.steps[part.items[0][1].output - 1].shape)
        weighted = (item.step for _, item in part.items if isinstance(item.step, (Conv2dStep, LinearStep)))
        return limbs * (1.0 + sum(int(step.weight[0].size) * prod(step.shape) for step in weighted))

    def _run_part(
        self,
        part: Part,
        binding: Binding,
        values: Mapping[int, Tensor],
        memory: Memory,
        progress: Callable[[float], None] | None,
    ) -> dict[int, Tensor]:
        """A stream part, tile by tile. A tile has the same columns of every component of every value."""
        program, ring = self.program, self.program.ring
        first = part.reads[0]
        # a lattice ciphertext with more limbs is read on the first of them
        limbs = values[first].shape[0] if ring is None else program.levels[part.writes[0]].limbs
        stream = values[first].shape[-1] // components(program, first)
        dtype = torch.int64 if ring is None else torch.int32
        results = {
            v: memory.take((limbs, *program.steps[v - 1].shape, stream * components(program, v)), dtype)
            for v in part.writes
        }
        tile_limbs, tile_streams = self.tile(limbs, stream, part.live)
        tiles = [
            (slice(lo, min(limbs, lo + tile_limbs)), slice(so, min(stream, so + tile_streams)))
            for lo in range(0, limbs, tile_limbs)
            for so in range(0, stream, tile_streams)
        ]
        parts = {rows.start: binding.limbs(rows.start, rows.stop) for rows, _ in tiles}

        def evaluate(tile: Piece) -> None:
            rows, columns = tile
            inputs = {v: _columns(values[v], tile, components(program, v)).to(self.device) for v in part.reads}
            # Written here, not by whoever waits: many small tiles would pile up faster than one thread stores them.
            for v, result in self._run_items(part, parts[rows.start], inputs).items():
                target = _by_component(results[v], components(program, v))[rows, ..., columns]
                target.copy_(result.view(target.shape))

        threaded = self.device.type == "cpu" and torch.get_num_threads() > 1 and len(tiles) > 1
        for count, _ in enumerate(run_tiles(evaluate, tiles) if threaded else map(evaluate, tiles)):
            if progress is not None:
                progress((count + 1) / len(tiles))
        return results

    def _run_tile(self, binding: Binding, x: Tensor) -> Tensor:
        """A whole program that is one part: every program of the modular scheme."""
        if not self._parts:
            return x
        (part,) = self._parts
        return self._run_items(part, binding, {0: x})[part.writes[0]]

    def _run_items(self, part: Part, binding: Binding, values: dict[int, Tensor]) -> dict[int, Tensor]:
        for index, item in part.items:
            inputs = [values[v] for v in item.step.inputs]
            values[item.output] = self._step(index, item, inputs, binding)
            del inputs
            for value in item.last_use:
                del values[value]
        return {v: values[v] for v in part.writes}

    def _step(self, index: int, item: Item, inputs: list[Tensor], binding: Binding) -> Tensor:
        step, moduli, constants = item.step, binding.moduli, binding.constants[index]
        x = inputs[0]
        if isinstance(step, (Conv2dStep, LinearStep)):
            bias = constants.get("bias")
            if self._ring is None:
                return self._weighted(index, item, x, moduli, bias, constants.get("poly"), constants.get("factor"))
            # In a ciphertext a constant belongs to the first component alone.
            y = self._weighted(index, item, x, moduli)
            if item.poly is not None:
                return self._squared(item, y, moduli, constants, bias)
            if bias is None:
                return y
            first = y.shape[-1] // components(self.program, item.output)
            return ops.add_const(y, bias, moduli, streams=first, validate=False)
        if isinstance(step, TensorSquareStep):
            return self._squared(item, x, moduli, constants)
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

    def _weighted(
        self,
        index: int,
        item: Item,
        x: Tensor,
        moduli: Tensor,
        bias: Tensor | None = None,
        poly: Tensor | None = None,
        pool_factor: Tensor | None = None,
    ) -> Tensor:
        weight, bounds = self._weights[index]
        step = item.step
        if not isinstance(step, Conv2dStep):
            return ops.linear(x, weight, bias, moduli, poly=poly, weight_bounds=bounds, validate=False)
        return ops.conv2d(
            x,
            weight,
            bias,
            moduli,
            stride=step.stride,
            padding=step.padding,
            dilation=step.dilation,
            groups=step.groups,
            poly=poly,
            weight_bounds=bounds,
            pool=None if item.pool is None or self._ring is not None else item.pool.kernel,
            pool_factor=pool_factor,
            validate=False,
        )

    @staticmethod
    def _squared(
        item: Item, x: Tensor, moduli: Tensor, constants: Mapping[str, Tensor], bias: Tensor | None = None
    ) -> Tensor:
        pool = None if item.pool is None else item.pool.kernel
        return ops.tensor_square(x, moduli, shift=bias, coefficients=constants.get("poly"), pool=pool, validate=False)

    @staticmethod
    def _align(x: Tensor, factor: Tensor | None, moduli: Tensor) -> Tensor:
        if factor is None:
            return x
        table = torch.stack([torch.zeros_like(factor), factor], dim=1)[:, None]
        return ops.poly(x, table.contiguous(), moduli, validate=False)


def _shifted(progress: Callable[[float], None], base: float, share: float, done: float) -> None:
    progress(base + share * done)


def _by_component(x: Tensor, parts: int) -> Tensor:
    """[..., parts * n] -> [..., parts, n]; as it is for one part."""
    return x if parts == 1 else x.view(*x.shape[:-1], parts, x.shape[-1] // parts)


def _columns(x: Tensor, tile: Piece, parts: int) -> Tensor:
    """int64 residues of one tile, dense."""
    rows, columns = tile
    part = _by_component(x, parts)[rows, ..., columns]
    dense = part.to(torch.int64, memory_format=torch.contiguous_format)
    return dense if parts == 1 else dense.contiguous().view(*x[rows].shape[:-1], -1)
