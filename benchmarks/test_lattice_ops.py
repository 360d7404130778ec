"""The lattice ops on one core against SEAL's evaluator on the same ciphertexts: part of ``make bench``.

SEAL runs one thread and 64-bit words; ours are 32-bit words, since all primes are below 2**31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.conftest import interleaved
from mcfhe import ops
from mcfhe.lattice import ring
from tests.seal_support import Seal, sealapi

Record = Callable[..., dict[str, Any]]
POSITIONS = 8  # ciphertexts in one of our calls; SEAL takes them one at a time
REPEATS = 15
# The square by itself has no bound: it waits for fresh memory, which SEAL's evaluator writes to the same place again.
MAX_RATIO = {"relinearise": 1 / 3, "rescale": 1 / 3, "square + relinearise + rescale": 1 / 3}
CONTEXTS = {8192: (31, 30, 30, 30, 30, 30, 31), 16384: (31, *[30] * 11, 31)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def butterflies(n: int, limbs: int) -> int:
    """In one relinearisation: L inverse transforms, L to each other prime and the special one, 2 down and 2 L up."""
    return (limbs + limbs * limbs + 2 + 2 * limbs) * n // 2 * (n.bit_length() - 1)


@pytest.mark.parametrize("n", CONTEXTS)
@pytest.mark.parametrize("op", ["square", "relinearise", "rescale", "square + relinearise + rescale"])
def test_against_seal(record: Record, one_thread: None, n: int, op: str) -> None:
    seal = Seal(n, list(CONTEXTS[n]))
    limbs = len(CONTEXTS[n]) - 1
    moduli, key_moduli = seal.moduli(limbs), seal.moduli(limbs, special=True)
    tables, key_tables = ring.ntt_tables(moduli, n), ring.ntt_tables(key_moduli, n)
    keys = seal.keys(limbs)
    generator = torch.Generator().manual_seed(1)
    components = 3 if op == "relinearise" else 2
    x = torch.stack([seal.random(limbs, components, generator) for _ in range(POSITIONS)], 1)
    theirs, result = seal.ciphertext(x[:, 0].contiguous()), sealapi.Ciphertext(seal.context)

    def our_chain() -> None:
        squares = ops.tensor_square(x, moduli)
        ops.rescale(ops.relinearise(squares, keys, key_tables, key_moduli), tables, moduli)

    def their_chain() -> None:
        seal.evaluator.square(theirs, result)
        seal.evaluator.relinearize_inplace(result, seal.relin_keys)
        seal.evaluator.rescale_to_next_inplace(result)

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "square": (lambda: ops.tensor_square(x, moduli), lambda: seal.evaluator.square(theirs, result)),
        "relinearise": (
            lambda: ops.relinearise(x, keys, key_tables, key_moduli),
            lambda: seal.evaluator.relinearize(theirs, seal.relin_keys, result),
        ),
        "rescale": (
            lambda: ops.rescale(x, tables, moduli),
            lambda: seal.evaluator.rescale_to_next(theirs, result),
        ),
        "square + relinearise + rescale": (our_chain, their_chain),
    }
    ours, seals = interleaved(*calls[op], REPEATS)
    each = [a / POSITIONS for a in ours]
    row = record(
        f"{op}, n = {n}, L = {limbs}, one ciphertext",
        each,
        [a / b for a, b in zip(each, seals, strict=True)],
        "SEAL's evaluator, one core",
        fastest_ms=min(each) * 1e3,
        seal_fastest_ms=min(seals) * 1e3,
        **({"gbutterflies": butterflies(n, limbs) / min(each) / 1e9} if op == "relinearise" else {}),
    )
    assert row["ratio"] <= MAX_RATIO.get(op, float("inf"))
