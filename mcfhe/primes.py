"""Primality of the moduli both schemes use."""

from __future__ import annotations

from mcfhe.errors import ParameterError


def is_prime(n: int) -> bool:
    """Exact for n < 2**32: Miller-Rabin with the bases 2, 7, 61 (Jaeschke 1993, no pseudoprime below 4,759,123,141)."""
    if n < 2 or n >= 1 << 32:
        if n < 2:
            return False
        raise ParameterError(f"is_prime: {n} is not below 2**32")
    for p in (2, 7, 61):
        if n % p == 0:
            return n == p
    odd = n - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in (2, 7, 61):
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True
