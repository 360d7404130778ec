"""What a request stands for: both components of every ciphertext, the second ones from their seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from mcfhe import ops
from mcfhe.engine.arena import HOST, Memory
from mcfhe.lattice.wire import LatticeRequest

# Residues that one call expands: on a CPU they stay near its caches, a GPU needs many to be filled.
CPU_EXPAND_BYTES = 32 << 20
CUDA_EXPAND_BYTES = 1 << 30
UPLOAD_BYTES = 32 << 20  # of each of two buffers


def expanded(request: LatticeRequest, memory: Memory = HOST) -> Tensor:
    """Both components of a request's ciphertexts: int32 ``[L, C, H, W, 2 * n]`` in ``memory``, by default the CPU's.

    To another device only what was sent travels: half of the residues, and seeds, which are expanded there.
    """
    x, seeds, home = request.ciphertext, request.seeds, memory.device
    if seeds is None and home.type == "cpu":
        return x
    n = request.evaluation_key.ring.degree
    limbs, sent = x.shape[0], x.shape[-1]
    y = memory.take((*x.shape[:-1], 2 * n), torch.int32)
    rows = y.view(-1, 2 * n)
    _place(x.reshape(-1, sent), rows[:, :sent])
    if seeds is None:
        return y
    moduli = torch.tensor(request.evaluation_key.ring.moduli).to(home)
    table, second = seeds.flatten(0, 2).to(home), y.view(limbs, -1, 2 * n)[:, :, n:]
    budget = CPU_EXPAND_BYTES if home.type == "cpu" else CUDA_EXPAND_BYTES
    size = max(1, budget // (4 * limbs * n))
    for begin in range(0, len(table), size):
        places = slice(begin, begin + size)
        second[:, places] = ops.expand_uniform(table[places], moduli, n)
    return y


def _place(source: Tensor, target: Tensor) -> None:
    if target.device.type != "cuda":
        target.copy_(source)
        return
    from mcfhe.engine.cuda_runtime import current_mark, pinned
    from mcfhe.engine.uploads import upload

    with torch.cuda.device(target.device):
        upload(source, target, pinned, current_mark, UPLOAD_BYTES)
