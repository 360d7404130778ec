"""Which ring parameters reach 128 bits, and how long the seed of a uniform polynomial is.

Largest log2 of the product of all moduli, the special one included, for a ternary secret and 128 bits of classical
security: M. Albrecht et al., Homomorphic Encryption Security Standard, HomomorphicEncryption.org, 2018, table 1. (The
entry for n = 32,768 is the standard's; SEAL enforces the same numbers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mcfhe.errors import ParameterError

#: n -> bits of Q * P.
MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
#: Of BLAKE2Xb, as SEAL draws them; a seed is public.
SEED_BYTES = 64


def require_security(degree: int, moduli: Sequence[int]) -> None:
    """ParameterError unless ring degree and moduli (the special one among them) are within the table."""
    limit = MAX_MODULUS_BITS.get(degree)
    if limit is None:
        raise ParameterError(
            f"ring degree {degree}: the 128-bit table has {', '.join(str(n) for n in MAX_MODULUS_BITS)}"
        )
    bits = prod(moduli).bit_length()
    if bits > limit:
        raise ParameterError(
            f"moduli of {bits} bits at ring degree {degree}: less than 128 bits of security; the table allows {limit}"
        )
