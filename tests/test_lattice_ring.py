"""Primes, roots and tables of the transform."""

from __future__ import annotations

import pytest
import torch

from mcfhe.errors import ParameterError
from mcfhe.lattice import ring


@pytest.mark.parametrize(("order", "q"), [(2, 3), (16, 17), (16, 97), (64, 1153), (512, 12289)])
def test_minimal_primitive_root_by_search(order: int, q: int) -> None:
    want = next(r for r in range(1, q) if pow(r, order // 2, q) == q - 1)
    assert ring.minimal_primitive_root(order, q) == want


def test_ntt_tables_by_definition() -> None:
    n, primes = 16, (97, 2147483489)
    tables = ring.ntt_tables(torch.tensor(primes), n)
    assert tables.shape == (2, 4, n)
    assert tables.dtype == torch.int32
    for limb, q in enumerate(primes):
        psi = ring.minimal_primitive_root(2 * n, q)
        roots, quotients, inverses, inverse_quotients = (tables[limb].long() & 0xFFFFFFFF).tolist()
        for i in range(n):
            exponent = int(f"{i:04b}"[::-1], 2)
            assert roots[i] == pow(psi, exponent, q)
            assert inverses[i] == (pow(psi, -exponent, q) if i else pow(n, -1, q))
            assert quotients[i] == (roots[i] << 32) // q
            assert inverse_quotients[i] == (inverses[i] << 32) // q


def test_ntt_primes_are_the_largest_smallest_first() -> None:
    n = 1024
    got = ring.ntt_primes(n, [31, 30, 30, 31, 30])
    for bits in (30, 31):
        largest = [q for q in range((1 << bits) - 2 * n + 1, 1 << (bits - 1), -2 * n) if ring.is_prime(q)][:3]
        mine = [q for q in got if q.bit_length() == bits]
        assert mine == sorted(largest[: len(mine)])


def test_refusals() -> None:
    for call, message in (
        (lambda: ring.ntt_primes(12, [30]), "n = 12 must be a power of two"),
        (lambda: ring.ntt_primes(65536, [30]), "n = 65536"),
        (lambda: ring.ntt_primes(1024, [32]), "32 is outside 2..31"),
        (lambda: ring.ntt_primes(32768, [17, 17]), "only 1 prime"),
        (lambda: ring.minimal_primitive_root(12, 13), "order = 12"),
        (lambda: ring.minimal_primitive_root(16, 15), "modulus = 15"),
        (lambda: ring.minimal_primitive_root(16, 19), "modulus = 19"),
        (lambda: ring.ntt_tables([97], 64), "modulus = 97 must be a prime .* 1 modulo 128"),
    ):
        with pytest.raises(ParameterError, match=message):
            call()
