"""How much noise a step of the lattice scheme adds to a slot: standard deviations, by the heuristics of the field.

A polynomial with independent coefficients of variance v has slots (its values at primitive 2n-th roots of unity) whose
real parts have variance n v / 2, and its product with a ternary secret adds 2 n / 3 times its coefficients' variance
(J. H. Cheon, A. Kim, M. Kim, Y. Song, Homomorphic Encryption for Arithmetic of Approximate Numbers, ASIACRYPT 2017,
section 3.4 and appendix B, average case). Integers, to be divided by the scale of the ciphertext.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial, hypot, sqrt

# Of a fresh coefficient: the weight of 21 random bits less that of 21 others, variance 21 / 2. SEAL draws so unless it
# is built with SEAL_USE_GAUSSIAN_NOISE (native/src/seal/util/rlwe.cpp, sample_poly_cbd), instead of a normal 3.2.
ERROR_STD = sqrt(21 / 2)


def _slots(degree: int, variance: float) -> float:
    return sqrt(degree * variance / 2)


def fresh(degree: int) -> float:
    """An encryption under a public key, and the rounding of its encoding: what plans are made for.

    SEAL encrypts at the level of keys and divides by the special modulus, so the errors of key and encryption (of
    variance 21/2 (4 n / 3 + 1), over its square) are nothing beside the rounding of that division.
    """
    return hypot(rescaled(degree), _slots(degree, 1 / 12))


def fresh_symmetric(degree: int) -> float:
    """An encryption under the secret key, and the rounding of its encoding: a sixth to a ninth of :func:`fresh`."""
    return _slots(degree, ERROR_STD**2 + 1 / 12)


def rescaled(degree: int, components: int = 2) -> float:
    """The rounding of every component, weighted by the power of the secret s that it meets.

    A slot of s is a complex normal variable of variance 2 n / 3 on average, so |s|^2k has the mean k! (2 n / 3)^k. With
    three components few slots, those where s is large, have most of the noise: up to ten times this.
    """
    secret = 2 * degree / 3
    return _slots(degree, sum(factorial(power) * secret**power for power in range(components)) / 12)


def relinearised(degree: int, moduli: Sequence[int], special: int) -> float:
    """Digits uniform below each modulus times the key's errors, over the special modulus; and its rounding.

    SEAL does not centre digits, so three quarters of this come from their mean, a multiple of 1 + X + .. + X^(n-1): it
    falls on the few slots whose root is near 1, slot 0 first, where noise is up to sqrt(0.3 n) times the average. A
    typical slot has half of the average.
    """
    digits = degree * sum((q / special) ** 2 for q in moduli) / 3 * ERROR_STD**2
    return _slots(degree, digits + (1 + 2 * degree / 3) / 12)
