"""Relinearises and rescales whole ciphertexts: the steps of a lattice program that mix limbs and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch
from torch import Tensor

from mcfhe import ops
from mcfhe.engine.arena import Memory
from mcfhe.engine.workers import run_tiles
from mcfhe.graph.steps import DropStep, RelineariseStep, RescaleStep, Ring, Step
from mcfhe.lattice.ring import ntt_tables

# Residues of the ciphertexts that one call works on. Some of them share what a call spends on packing the
# relinearisation key. On a CPU the results of its ops then come from memory that the C library kept, which it does for
# blocks below 32 MiB: 1.33 s -> 0.81 s for the rescale of the demo network, one thread.
CPU_CHUNK_BYTES = 24 << 20
CPU_CHUNK_LEAST = 4
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
        memory: Memory,
        progress: Callable[[float], None] | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        """Residues ``[L, ..., components * n]`` through ``steps`` -> int32 of the last step's shape, in ``memory``.

        ``keys``: by number of limbs, what :meth:`keys_of` gave. ``in_place``: over ``x``, int32, of which the result is
        then a view: its first limbs and components. Gigabytes are neither held twice nor touched anew.
        """
        limbs, degree = x.shape[0], self.ring.degree
        flat = x.view(limbs, -1, x.shape[-1]) if in_place else x.reshape(limbs, -1, x.shape[-1])
        count = flat.shape[1]
        left = limbs
        for step in steps:
            left = step.limbs if isinstance(step, DropStep) else left - isinstance(step, RescaleStep)
        parts = x.shape[-1] // degree
        parts_out = 2 if any(isinstance(step, RelineariseStep) for step in steps) else parts
        if in_place:
            y = flat[:left, :, : parts_out * degree]
        else:
            y = memory.take((left, count, parts_out * degree), torch.int32)
        cpu = self.device.type == "cpu"
        each = 8 * limbs * parts * degree
        size = max(CPU_CHUNK_LEAST, CPU_CHUNK_BYTES // each) if cpu else max(1, CUDA_CHUNK_BYTES // each)
        workers = torch.get_num_threads() if cpu else 1
        size = min(size, -(-count // workers))  # no thread without work
        chunks = [slice(i, min(count, i + size)) for i in range(0, count, size)]
        spare = SimpleQueue[Tensor]()
        for _ in range(min(len(chunks), workers)):
            spare.put(memory.take((limbs * size * x.shape[-1],), torch.int64))

        def apply(chunk: slice) -> None:
            part, scratch = flat[:, chunk], spare.get()
            try:
                z = scratch[: part.numel()].view(part.shape).copy_(part)
                for step in steps:
                    z = self._step(step, keys, z)
                y[:, chunk] = z
            finally:  # others wait for it
                spare.put(scratch)

        threaded = workers > 1 and len(chunks) > 1
        for done, _ in enumerate(run_tiles(apply, chunks) if threaded else map(apply, chunks)):
            if progress is not None:
                progress((done + 1) / len(chunks))
        while not spare.empty():
            memory.give(spare.get())
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
