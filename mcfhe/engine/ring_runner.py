"""Relinearises and rescales whole ciphertexts: the steps of a lattice program that mix limbs and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcfhe import ops
from mcfhe.engine.workers import empty_for_threads, run_tiles
from mcfhe.graph.steps import DropStep, RelineariseStep, RescaleStep, Ring, Step
from mcfhe.lattice.ring import ntt_tables

# Residues of the ciphertexts that one call works on. Tens of them share what a call spends on the relinearisation key:
# packing it once, and reading a part that does not fit a second-level cache.
CPU_CHUNK_BYTES = 96 << 20
CUDA_CHUNK_BYTES = 1 << 30


class RingRunner:
    """Applies chains of ring steps on one device. Holds the transforms' tables; keys come with every call."""

    def __init__(self, ring: Ring, device: torch.device) -> None:
        self.ring = ring
        self.device = device
        moduli = (*ring.moduli, ring.special)
        self._moduli = torch.tensor(moduli, dtype=torch.int64, device=device)
        self._tables = ntt_tables(moduli, ring.degree).to(device)
        self._levels: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_of(self, keys: Tensor, limbs: int) -> Tensor:
        """The part of a relinearisation key int64 ``[D, 2, D + 1, n]`` that a ciphertext of ``limbs`` limbs needs."""
        digits = keys.shape[0]
        if limbs == digits:
            return keys.to(self.device)
        rows = [*range(limbs), digits]
        return keys[:limbs][:, :, rows].contiguous().to(self.device)

    def run(
        self,
        steps: Sequence[Step],
        keys: dict[int, Tensor],
        x: Tensor,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Residues ``[L, ..., components * n]`` through ``steps`` -> int32 of the last step's shape.

        ``keys``: by number of limbs, what :meth:`keys_of` gave.
        """
        limbs, degree = x.shape[0], self.ring.degree
        flat = x.reshape(limbs, -1, x.shape[-1])
        count = flat.shape[1]
        left = limbs
        for step in steps:
            left = step.limbs if isinstance(step, DropStep) else left - isinstance(step, RescaleStep)
        parts = x.shape[-1] // degree
        parts_out = 2 if any(isinstance(step, RelineariseStep) for step in steps) else parts
        y = empty_for_threads(left, count, parts_out * degree, dtype=torch.int32, device=x.device)
        cpu = self.device.type == "cpu"
        budget = CPU_CHUNK_BYTES if cpu else CUDA_CHUNK_BYTES
        size = max(1, budget // (8 * limbs * parts * degree))
        if cpu:  # no thread without work
            size = max(1, min(size, -(-count // torch.get_num_threads())))
        chunks = [slice(i, min(count, i + size)) for i in range(0, count, size)]

        def apply(chunk: slice) -> None:
            z = flat[:, chunk].to(self.device, torch.int64, memory_format=torch.contiguous_format)
            for step in steps:
                z = self._step(step, keys, z)
            y[:, chunk] = z.to(y.device)

        threaded = cpu and torch.get_num_threads() > 1 and len(chunks) > 1
        for done, _ in enumerate(run_tiles(apply, chunks) if threaded else map(apply, chunks)):
            if progress is not None:
                progress((done + 1) / len(chunks))
        return y.view(y.shape[0], *x.shape[1:-1], y.shape[-1])

    def _step(self, step: Step, keys: dict[int, Tensor], x: Tensor) -> Tensor:
        limbs = x.shape[0]
        if isinstance(step, RescaleStep):
            return ops.rescale(x, self._tables[:limbs], self._moduli[:limbs], validate=False)
        if isinstance(step, DropStep):
            return x[: step.limbs]
        if limbs not in self._levels:
            rows = [*range(limbs), len(self.ring.moduli)]
            self._levels[limbs] = (self._tables[rows].contiguous(), self._moduli[rows].contiguous())
        tables, moduli = self._levels[limbs]
        return ops.relinearise(x, keys[limbs], tables, moduli, validate=False)
