"""The lattice ops: each against the larger of its memory traffic and its multiplications at their measured rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_kernels import Bench, Row, WrongResult, kernel_row
from benchmarks.gpu_plan import ENTRY, LatticeCase
from mcfhe import ops
from mcfhe.lattice import ring
from mcfhe.lattice.security import SEED_BYTES

HASH_WORDS = 8  # residues of one BLAKE2b hash
PRODUCTS = 3  # multiplications of 32-bit words in a butterfly; counted at the rate of the int64 path


@dataclass(frozen=True)
class Work:
    """One op on the device, the same on the CPU for the first position, and what it costs."""

    name: str
    call: Callable[[Tensor], Tensor]
    check: Callable[[Tensor], Tensor]
    x: Tensor
    transforms: int
    bytes_moved: int


def works(bench: Bench, case: LatticeCase) -> Iterator[Work]:
    op = torch.ops.mcfhe
    limbs, n, each = case.limbs, case.n, case.component
    primes = ring.ntt_primes(n, case.prime_bits)
    moduli, tables = torch.tensor(primes), ring.ntt_tables(primes, n)
    host = (tables[:-1].contiguous(), moduli[:-1])
    here = tuple(t.to(bench.device) for t in host)
    x = bench.residues(primes[:-1], case.positions, 3 * n)
    two = x[..., : 2 * n].contiguous()
    one = x[..., :n].contiguous()
    polynomials = limbs * case.positions
    for inverse in (False, True):
        yield Work(
            "inverse ntt" if inverse else "ntt",
            lambda t, i=inverse: op.ntt(t, *here, i), lambda t, i=inverse: op.ntt(t, *host, i), one, polynomials,
            2 * each,
        )  # fmt: skip
    yield Work(
        "tensor_square", lambda t: op.tensor_square(t, None, None, here[1]),
        lambda t: op.tensor_square(t, None, None, host[1]), two, 0, 5 * each,
    )  # fmt: skip
    windows = two.view(limbs, -1, 2, 2, 2 * n)
    yield Work(
        "tensor_square + pool", lambda t: op.tensor_square(t, None, None, here[1], [2, 2]),
        lambda t: op.tensor_square(t, None, None, host[1], [2, 2]), windows, 0, 2 * each + 3 * each // 4,
    )  # fmt: skip
    kept = 2 * case.positions * (limbs - 1)
    yield Work(
        "rescale", lambda t: op.rescale(t, *here), lambda t: op.rescale(t, *host), two,
        2 * case.positions + kept, 2 * each + ENTRY * kept * n,
    )  # fmt: skip
    keys = bench.residues(primes, limbs, 2, n).permute(1, 2, 0, 3).contiguous()
    host_keys = keys.cpu()
    all_tables, all_moduli = tables.to(bench.device), moduli.to(bench.device)
    yield Work(
        "relinearise", lambda t: op.relinearise(t, keys, all_tables, all_moduli),
        lambda t: op.relinearise(t, host_keys, tables, moduli), x,
        case.positions * (limbs + 1) * (limbs + 2), 5 * each + ENTRY * keys.numel(),
    )  # fmt: skip


def rows(bench: Bench, case: LatticeCase) -> Iterator[Row]:
    """Butterflies and bytes a second of every op; its first position is compared with the CPU's."""
    for work in works(bench, case):
        if not torch.equal(work.call(work.x)[:, :1].cpu(), work.check(work.x[:, :1].cpu().contiguous())):
            raise WrongResult(f"{work.name}, {case.title}: differs from the CPU")
        timing = bench.clock.time(lambda w=work: w.call(w.x))
        butterflies = work.transforms * case.butterflies
        floor = bench.ceilings.floor_ms(work.bytes_moved, PRODUCTS * butterflies, "int64")
        seconds = timing.median * 1e-3
        yield kernel_row(
            f"{work.name}, {case.title}", "auto", timing, floor, bytes=work.bytes_moved, butterflies=butterflies,
            bytes_per_second=work.bytes_moved / seconds, butterflies_per_second=butterflies / seconds,
        )  # fmt: skip
    yield expansion_row(bench, case)


def expansion_row(bench: Bench, case: LatticeCase) -> Row:
    """Seeds of as many ciphertexts. Hashes set its pace, of which no peak is measured: the floor is that of memory."""
    moduli = torch.tensor(ring.ntt_primes(case.n, case.prime_bits)[:-1])
    seeds = torch.randint(0, 256, (case.positions, SEED_BYTES), dtype=torch.uint8)
    here, moduli_here = seeds.to(bench.device), moduli.to(bench.device)

    def call() -> Tensor:
        return ops.expand_uniform(here, moduli_here, case.n)

    if not torch.equal(call()[:, -1:].cpu(), ops.expand_uniform(seeds[-1:], moduli, case.n)):
        raise WrongResult(f"expand_uniform, {case.title}: differs from the CPU")
    timing = bench.clock.time(call)
    words = case.limbs * case.positions * case.n
    moved = 4 * words + seeds.numel()
    return kernel_row(
        f"expand_uniform, {case.title}", "auto", timing, bench.ceilings.floor_ms(moved, 0, "int64"), bytes=moved,
        hashes=words // HASH_WORDS, hashes_per_second=words // HASH_WORDS / (timing.median * 1e-3),
    )  # fmt: skip
