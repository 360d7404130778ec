"""The rings Z_q[X] / (X**n + 1): primes that have a transform, roots of unity, tables of the transform.

Choices are SEAL's (v4.1, native/src/seal/modulus.cpp and util/ntt.cpp), so that NTT forms agree word for word.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mcfhe.errors import ParameterError
from mcfhe.primes import is_prime

MIN_DEGREE, MAX_DEGREE = 8, 32768  # ring degrees the ops take; below 1,024 they are for tests
MAX_PRIME_BITS = 31

Words = npt.NDArray[np.uint64]


def check_degree(n: int) -> None:
    """ParameterError unless ``n`` is a power of two the lattice ops take."""
    if not MIN_DEGREE <= n <= MAX_DEGREE or n & (n - 1):
        raise ParameterError(f"n = {n} must be a power of two in {MIN_DEGREE}..{MAX_DEGREE}")


def ntt_primes(n: int, bits_list: Sequence[int]) -> tuple[int, ...]:
    """One prime q = 1 mod 2n of exactly so many bits for each entry of ``bits_list`` (2..31), all different.

    As SEAL's CoeffModulus::Create: an entry count k of one width gets the k largest primes of that width, the
    smallest of them first. ParameterError where there are not enough.
    """
    check_degree(n)
    pools = {bits: _largest_primes(n, bits, list(bits_list).count(bits)) for bits in set(bits_list)}
    taken = {bits: list(pool) for bits, pool in pools.items()}
    return tuple(taken[bits].pop() for bits in bits_list)


@functools.lru_cache(maxsize=64)
def _largest_primes(n: int, bits: int, count: int) -> tuple[int, ...]:
    """The ``count`` largest primes of ``bits`` bits that are 1 mod 2n, descending."""
    if not 2 <= bits <= MAX_PRIME_BITS:
        raise ParameterError(f"bits_list: {bits} is outside 2..{MAX_PRIME_BITS}")
    found: list[int] = []
    candidate = ((1 << bits) - 1) // (2 * n) * (2 * n) + 1
    if candidate >= 1 << bits:
        candidate -= 2 * n
    while len(found) < count and candidate >= 1 << (bits - 1):
        if is_prime(candidate):
            found.append(candidate)
        candidate -= 2 * n
    if len(found) < count:
        raise ParameterError(
            f"bits_list: only {len(found)} prime(s) of {bits} bits are 1 modulo {2 * n}, {count} wanted; "
            "use wider primes or a smaller n"
        )
    return tuple(found)


@functools.lru_cache(maxsize=256)
def minimal_primitive_root(order: int, modulus: int) -> int:
    """The smallest primitive ``order``-th root of unity modulo the prime ``modulus``; ``order`` a power of two >= 2."""
    if order < 2 or order & (order - 1):
        raise ParameterError(f"order = {order} must be a power of two, 2 or more")
    if not 2 < modulus < 1 << MAX_PRIME_BITS or not is_prime(modulus) or (modulus - 1) % order:
        raise ParameterError(f"modulus = {modulus} must be a prime below 2**{MAX_PRIME_BITS} that is 1 modulo {order}")
    root = next(
        r
        for r in (pow(g, (modulus - 1) // order, modulus) for g in range(2, modulus + 1))
        if pow(r, order // 2, modulus) == modulus - 1
    )
    odd_powers = _powers(root * root % modulus, order // 2, modulus) * np.uint64(root) % np.uint64(modulus)
    return int(odd_powers.min())


def ntt_tables(moduli: Iterable[int] | Tensor, n: int) -> Tensor:
    """Tables of the transform modulo each of ``moduli``: int32 [L, 4, n], bit patterns of 32-bit words.

    Row 0: at index m + i (m = 1, 2, 4, .., n / 2; 0 <= i < m) psi**bitrev(m + i), the root of group i of the stage with
    m groups; psi = :func:`minimal_primitive_root` of order 2n, bitrev over log2(n) bits; index 0 holds 1.
    Row 1: Shoup quotients floor(root * 2**32 / q). Row 2: the inverses of row 0, but n**-1 at index 0. Row 3: theirs.
    """
    check_degree(n)
    values: Any = moduli.tolist() if isinstance(moduli, Tensor) else moduli
    rows = [_limb_tables(int(q), n) for q in values]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, 4, n, dtype=torch.int32)


@functools.lru_cache(maxsize=128)
def _limb_tables(q: int, n: int) -> npt.NDArray[np.int32]:
    psi = minimal_primitive_root(2 * n, q)
    order = bit_reversal(n)
    rows = np.empty((4, n), np.uint64)
    rows[0] = _powers(psi, n, q)[order]
    rows[2] = _powers(pow(psi, -1, q), n, q)[order]
    rows[2, 0] = pow(n, -1, q)
    rows[1::2] = (rows[0::2] << np.uint64(32)) // np.uint64(q)
    return rows.astype(np.uint32).view(np.int32)


def bit_reversal(n: int) -> npt.NDArray[np.int64]:
    """bitrev(0), .., bitrev(n - 1) over log2(n) bits."""
    order = np.zeros(1, np.int64)
    while len(order) < n:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _powers(base: int, count: int, q: int) -> Words:
    """base**0, .., base**(count - 1) mod q, by doubling; products stay below 2**62."""
    powers = np.ones(1, np.uint64)
    step = base % q
    while len(powers) < count:
        powers = np.concatenate([powers, powers * np.uint64(step) % np.uint64(q)])
        step = step * step % q
    return powers[:count]
