"""The order of an encrypted integer: which real number it stands for. The level of a lattice ciphertext: the same."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mcfhe.errors import ParameterError

TABLE_LIMIT = 1 << 31  # the integer of every pixel value is below, in absolute value
MAX_ORDER_BITS = 1 << 18  # of a**t * 2**k: nearly nine thousand 30-bit limbs; stops a hostile file, not a network


@dataclass(frozen=True, slots=True)
class Order:
    """An integer V at order (t, k) stands for the real number V / (a**t * 2**k).

    ``t`` counts factors of the amplification ``a``, ``k`` counts bits of scale. With one shared scale
    Delta = 2**scale_bits the literature writes (t, l) with k = l * scale_bits; see :meth:`label`.
    """

    t: int
    k: int

    def __post_init__(self) -> None:
        if self.t < 0 or self.k < 0:
            raise ParameterError(f"order (t={self.t}, k={self.k}): both must be >= 0")

    def __add__(self, other: Order) -> Order:
        """Order of the product of two values."""
        return Order(self.t + other.t, self.k + other.k)

    def times(self, degree: int) -> Order:
        """Order of the ``degree``-th power of a value."""
        return Order(self.t * degree, self.k * degree)

    def scaled(self, bits: int) -> Order:
        """Order after multiplying by a plaintext weight that carries ``bits`` bits of scale."""
        return Order(self.t, self.k + bits)

    def join(self, other: Order) -> Order:
        """Least order both operands of an addition can be aligned to: (max t, max k)."""
        return Order(max(self.t, other.t), max(self.k, other.k))

    def alignment(self, target: Order, amplification: int) -> int:
        """Integer factor that raises a value from this order to ``target``; ParameterError if it is lower."""
        if target.t < self.t or target.k < self.k:
            raise ParameterError(f"order {self} cannot be lowered to {target}")
        factor: int = amplification ** (target.t - self.t)
        return factor << (target.k - self.k)

    def denominator(self, amplification: int) -> int:
        """a**t * 2**k, the integer that a value at this order is divided by."""
        factor: int = amplification**self.t
        return factor << self.k

    def bits(self, amplification: int) -> int:
        """At least the bits of :meth:`denominator`, without computing it."""
        return self.t * amplification.bit_length() + self.k

    def value(self, integer: int, amplification: int) -> Fraction:
        """The exact real number that ``integer`` stands for at this order."""
        return Fraction(integer, self.denominator(amplification))

    def label(self, scale_bits: int) -> str:
        """``(t, l)`` in units of one shared scale where k allows it, else ``(t, k bits)``."""
        if scale_bits > 0 and self.k % scale_bits == 0:
            return f"({self.t}, {self.k // scale_bits})"
        return f"({self.t}, {self.k} bits)"


@dataclass(frozen=True, slots=True)
class Level:
    """A lattice ciphertext: an integer V in its slots stands for V / scale, up to the noise of the scheme.

    ``limbs`` of the ring's moduli are left, the first ones; ``components`` is 2, or 3 between a square and the
    relinearisation that follows it.
    """

    limbs: int
    components: int
    scale: Fraction

    def __post_init__(self) -> None:
        if self.limbs < 1 or self.components not in (2, 3) or self.scale <= 0:
            raise ParameterError(f"level {self}: limbs >= 1, 2 or 3 components and a positive scale")
