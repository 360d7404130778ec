"""Parameters of the modular scheme: ranges, the modular basis, and drawing its primes."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mcfhe.arguments import require
from mcfhe.errors import CapacityError, ParameterError
from mcfhe.primes import is_prime

if TYPE_CHECKING:
    from mcfhe.modular.csprng import RandomStream

MAX_MODULUS = (1 << 31) - 1
MAX_LIMBS = 4096
MAX_LANES = 1024
MAX_AMPLIFICATION = 1 << 20
MAX_SCALE = 1 << 30

# Below this width all primes are listed; from here on they are drawn from the top eighth of the width.
_LISTED_BITS = 20
_SMALL_PRIMES = math.prod((3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97))


class Moduli(tuple[int, ...]):
    """A modular basis (b_1..b_N): pairwise coprime integers, 2 <= b_p < 2**31, in limb order.

    Immutable and equal to the plain tuple. ParameterError names the first modulus that is out of range or
    shares a factor with an earlier one.
    """

    def __new__(cls, values: Iterable[Any]) -> Moduli:
        require("moduli", values, Iterable, "give a list of pairwise coprime integers")
        moduli = tuple(integer("moduli", b, 2, MAX_MODULUS) for b in values)
        if not 1 <= len(moduli) <= MAX_LIMBS:
            raise ParameterError(f"moduli: {len(moduli)} limbs, 1..{MAX_LIMBS} are supported")
        # b_p is coprime to all earlier moduli iff it is to their product: one reduction of a long integer a limb.
        product = 1
        for limb, b in enumerate(moduli):
            if (common := math.gcd(product % b, b)) != 1:
                raise ParameterError(f"moduli: number {limb} ({b}) shares the factor {common} with an earlier one")
            product *= b
        return super().__new__(cls, moduli)

    @functools.cached_property
    def product(self) -> int:
        """B, the product of all moduli."""
        return math.prod(self)

    @property
    def bits(self) -> int:
        """Bit length of :attr:`product`."""
        return self.product.bit_length()

    def smallest_product(self, count: int) -> int:
        """Product of the ``count`` smallest moduli."""
        return math.prod(sorted(self)[: max(0, count)])

    def spare(self, required_product: int) -> int:
        """The largest r with the product of the N smallest of N + r moduli above ``required_product``; 0 if none is.

        So many limbs may be missing. It follows from public numbers: server and client find the same r.
        """
        product, needed = 1, 0
        for b in sorted(self):
            if product > required_product:
                break
            product *= b
            needed += 1
        return min(len(self) - needed, len(self) - 1) if product > required_product else 0

    def as_tensor(self, device: torch.device | str | None = None) -> torch.Tensor:
        """int64 [N]."""
        return torch.tensor(tuple(self), dtype=torch.int64, device=device)

    def as_array(self) -> np.ndarray:
        """int64 [N]."""
        return np.array(tuple(self), np.int64)

    def require_coprime(self, amplification: int, scale: int) -> None:
        """ParameterError unless gcd(b_p, a * Delta) = 1 for every limb (else lanes could be told apart)."""
        for limb, b in enumerate(self):
            if (common := math.gcd(amplification * scale, b)) != 1:
                raise ParameterError(
                    f"moduli: number {limb} ({b}) shares the factor {common} with amplification * scale = "
                    f"{amplification} * {scale}; choose moduli that are coprime to both"
                )

    def require_capacity(self, required_product: int, redundancy: int = 0) -> None:
        """CapacityError unless the product of the N smallest of N + redundancy moduli exceeds ``required_product``."""
        count = len(self) - redundancy
        product = self.smallest_product(count)
        if count < 1 or product <= required_product:
            raise CapacityError(
                f"moduli: the {max(0, count)} smallest of {len(self)} limbs hold {product.bit_length()} bits, the "
                f"program needs {required_product.bit_length()} bits; add limbs or widen them"
            )


def integer(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int in low..high; ParameterError names the parameter otherwise. Bools and floats are refused."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ParameterError(f"{name}: an integer expected, not {type(value).__name__}") from None
    if isinstance(value, bool | np.bool_):
        raise ParameterError(f"{name}: an integer expected, not a bool")
    if not low <= number <= high:
        shown = str(number) if number.bit_length() <= 128 else f"an integer of {number.bit_length()} bits"
        raise ParameterError(f"{name} = {shown} is outside {low}..{high}")
    return number


def draw_primes(stream: RandomStream, bits: int, coprime_to: int) -> Iterator[int]:
    """Distinct random primes of exactly ``bits`` bits (2..31) that do not divide ``coprime_to``, in drawing order.

    From 20 bits on they are uniform over the primes of the top eighth of the width, 2**bits - 2**(bits - 3) and
    above: the product of N then stays within 0.2 bits a limb of 2**(bits * N), which saves limbs, and uniform
    residues are rejected at most one time in eight. Narrower primes are drawn without replacement from all of
    the width, and end when there are no more.
    """
    integer("modulus_bits", bits, 2, 31)
    if bits < _LISTED_BITS:
        pool = [p for p in _primes_of_width(bits) if coprime_to % p]
        while pool:
            yield pool.pop(int(stream.uniform_below(len(pool))))
        return
    low = (1 << bits) - (1 << (bits - 3))
    seen = set()
    while True:
        # 64 odd candidates at a time; the number is part of what makes a derived basis reproducible.
        for candidate in (low + 1 + 2 * stream.uniform_below(1 << (bits - 4), (64,))).tolist():
            if candidate in seen or math.gcd(candidate, _SMALL_PRIMES) != 1 or not is_prime(candidate):
                continue
            seen.add(candidate)
            if coprime_to % candidate:
                yield candidate


def widest_product(bits: int) -> int:
    """About the largest product of a basis drawn by :func:`draw_primes`, with ``MAX_LIMBS`` limbs or all that exist."""
    if bits < _LISTED_BITS:
        return math.prod(_primes_of_width(bits)[-MAX_LIMBS:])
    return int((15 << (bits - 4)) ** MAX_LIMBS)


@functools.lru_cache(maxsize=8)
def _primes_of_width(bits: int) -> tuple[int, ...]:
    """All primes p with 2**(bits - 1) <= p < 2**bits, ascending; bits <= 20."""
    sieve = np.ones(1 << bits, bool)
    sieve[:2] = False
    for p in range(2, math.isqrt(1 << bits) + 1):
        if sieve[p]:
            sieve[p * p :: p] = False
    return tuple((np.flatnonzero(sieve[1 << (bits - 1) :]) + (1 << (bits - 1))).tolist())
