"""The lattice ops on Python integers, and moduli, tables and keys for them. Independent of mcfhe.lattice and of torch.

A transform is defined by evaluation: out[i] = x(psi ** (2 * bitrev(i) + 1)). `ntt` follows the definition where n is
small; above, it halves x(X) = even(X^2) + X odd(X^2), and test_lattice.py holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tests.simt.oracle import Ints, ints

BY_DEFINITION = 64  # largest n that is transformed by the definition


def is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, int(q**0.5) + 1))


@cache
def primes(n: int, bits: Sequence[int]) -> tuple[int, ...]:
    """For each entry the largest unused prime below 2**bits that is 1 modulo 2n."""
    found: list[int] = []
    for b in bits:
        q = (2**b - 2) // (2 * n) * 2 * n + 1
        while q in found or not is_prime(q):
            q -= 2 * n
        found.append(q)
    return tuple(found)


@cache
def root(q: int, n: int) -> int:
    """A primitive 2n-th root of unity modulo q: psi ** n = -1."""
    return next(psi for psi in (pow(g, (q - 1) // (2 * n), q) for g in range(2, q)) if pow(psi, n, q) == q - 1)


def bitrev(i: int, n: int) -> int:
    return int(format(i, f"0{n.bit_length() - 1}b")[::-1], 2) if n > 1 else 0


@cache
def bit_reversed(n: int) -> tuple[int, ...]:
    return tuple(bitrev(i, n) for i in range(n))


@cache
def powers(q: int, n: int) -> Ints:
    """psi ** i for i < 2n."""
    psi, values = root(q, n), [1]
    for _ in range(2 * n - 1):
        values.append(values[-1] * psi % q)
    return ints(values)


def tables(moduli: Sequence[int], n: int) -> Ints:
    """[L, 4, n] as int64 holding two little-endian words a number: [L, 4, n / 2] for the driver."""
    order = np.array(bit_reversed(n))
    rows = []
    for q in moduli:
        forward = powers(q, n)[order]
        inverse = powers(q, n)[(2 * n - order) % (2 * n)]
        inverse[0] = pow(n, -1, q)
        rows += [forward, forward * 2**32 // q, inverse, inverse * 2**32 // q]
    words = np.stack(rows).astype(np.uint32).reshape(len(moduli), 4, n // 2, 2)
    return words.view(np.int64)[..., 0]


def evaluate(x: Ints, q: int, n: int, i: int) -> Ints:
    """x(psi ** (2 bitrev(i) + 1)) over the last axis, by the definition."""
    at = powers(q, n)[(2 * bit_reversed(n)[i] + 1) * np.arange(n) % (2 * n)]
    return (x * at).sum(axis=-1) % q


def _halves(x: Ints, q: int, point_powers: Ints) -> Ints:
    """Values of x at the n points of the natural order, odd powers of psi: point_powers[j] = psi ** (2 j + 1)."""
    n = x.shape[-1]
    if n == 1:
        return x % q
    squares = point_powers[: n // 2] ** 2 % q
    even, odd = (_halves(x[..., k::2], q, squares) for k in (0, 1))
    odd = point_powers[: n // 2] * odd % q
    return np.concatenate([(even + odd) % q, (even - odd) % q], axis=-1)


def ntt(x: Ints, q: int) -> Ints:
    """Of the last axis, modulo one prime."""
    n = x.shape[-1]
    if n <= BY_DEFINITION:
        return np.stack([evaluate(x, q, n, i) for i in range(n)], axis=-1)
    return _halves(x, q, powers(q, n)[1::2])[..., np.array(bit_reversed(n))]


def _interpolate(values: Ints, q: int, point_powers: Ints) -> Ints:
    """The inverse of _halves, without the factor 1/n."""
    n = values.shape[-1]
    if n == 1:
        return values
    inverse = ints([pow(int(p), -1, q) for p in point_powers[: n // 2]])
    left, right = values[..., : n // 2], values[..., n // 2 :]
    squares = point_powers[: n // 2] ** 2 % q
    x = np.empty_like(values)
    x[..., 0::2] = _interpolate((left + right) % q, q, squares)
    x[..., 1::2] = _interpolate((left - right) * inverse % q, q, squares)
    return x


def intt(values: Ints, q: int) -> Ints:
    """The inverse of ntt."""
    n = values.shape[-1]
    natural = values[..., np.array(bit_reversed(n))]
    return _interpolate(natural, q, powers(q, n)[1::2]) * pow(n, -1, q) % q


def rescale(x: Ints, moduli: Sequence[int]) -> Ints:
    """[L, ..., n] -> [L - 1, ..., n]: divided by the last modulus, rounded."""
    last = moduli[-1]
    half = last >> 1
    a = (intt(x[-1], last) + half) % last
    return np.stack([(x[j] - ntt((a - half) % q, q)) * pow(last, -1, q) % q for j, q in enumerate(moduli[:-1])])


def relinearise(x: Ints, keys: Ints, moduli: Sequence[int]) -> Ints:
    """x [L, P, 3, n], keys [L, 2, L + 1, n], moduli [L + 1] -> [L, P, 2, n]."""
    limbs = x.shape[0]
    digits = [intt(x[i, :, 2], moduli[i]) for i in range(limbs)]
    sums = []
    for j, q in enumerate(moduli):
        spread = [ntt(digit % q, q) for digit in digits]
        sums.append(np.stack([sum(keys[i, k, j] * spread[i] for i in range(limbs)) % q for k in (0, 1)], axis=1))
    return (rescale(np.stack(sums), moduli) + x[:, :, :2]) % ints(moduli[:-1])[:, None, None, None]


def tensor_square(x: Ints, shift: Ints | None, coefficients: Ints | None, moduli: Sequence[int]) -> Ints:
    """x [L, C, P, 2, n], shift [L, 1 or C], coefficients [L, 1 or C, 3] -> [L, C, P, 3, n]."""
    z0, z1 = x[:, :, :, 0], x[:, :, :, 1]
    if shift is not None:
        z0 = z0 + shift[:, :, None, None]
    a0, a1, a2 = (0, 0, 1) if coefficients is None else (coefficients[:, :, d, None, None] for d in range(3))
    parts = (a2 * z0 * z0 + a1 * z0 + a0, (2 * a2 * z0 + a1) * z1, a2 * z1 * z1)
    q = ints(moduli).reshape(-1, *[1] * 4)
    return np.stack([np.broadcast_to(part, z1.shape) for part in parts], axis=3) % q


def window_sums(x: Ints, width: int, pool: tuple[int, int], moduli: Sequence[int]) -> Ints:
    """x [L, C, H * width, parts, n] -> [L, C, OH * OW, parts, n], windows side by side."""
    limbs, channels, positions, parts, n = x.shape
    out_h, out_w = positions // width // pool[0], width // pool[1]
    grid = x.reshape(limbs, channels, -1, width, parts, n)[:, :, : out_h * pool[0], : out_w * pool[1]]
    windows = grid.reshape(limbs, channels, out_h, pool[0], out_w, pool[1], parts, n).sum(axis=(3, 5))
    return windows.reshape(limbs, channels, -1, parts, n) % ints(moduli).reshape(-1, *[1] * 4)
