"""Chinese remaindering, exact and vectorised, for any number of limbs.

With c_p = r_p * (B / b_p)^-1 mod b_p the value is X = sum_p c_p * (B / b_p) - k * B for one integer k
(Knuth, TAOCP vol. 2, 4.3.2). The sum is one matrix product in int64 over 16-bit digits of B / b_p; k is the
rounded sum of c_p / b_p, off by at most one, which a comparison mends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

# c_p < 2**31 times a 16-bit digit, summed over N < 2**16 limbs, stays below 2**63.
_DIGIT_BITS = 16
_CHUNK_ENTRIES = 1 << 20


class CrtBasis:
    """Precomputed constants of one modular basis; see :func:`crt_basis` for the cached constructor."""

    def __init__(self, moduli: Sequence[int]) -> None:
        self.moduli = tuple(int(b) for b in moduli)
        self.product = math.prod(self.moduli)
        cofactors = [self.product // b for b in self.moduli]
        inverses = [pow(c, -1, b) for c, b in zip(cofactors, self.moduli, strict=True)]
        self._column = np.array(self.moduli, np.int64)[:, None]
        self._inverses = np.array(inverses, np.int64)[:, None]
        size = (self.product.bit_length() + _DIGIT_BITS - 1) // _DIGIT_BITS
        digits = b"".join(c.to_bytes(2 * size, "little") for c in cofactors)
        rows = np.frombuffer(digits, "<u2").reshape(len(cofactors), size)
        self._digits = np.ascontiguousarray(rows.T, np.int64)  # [digits, N]

    def reconstruct(self, residues: np.ndarray) -> list[int]:
        """int64 [N, K], 0 <= r < b_p  ->  K Python ints X with X = r_p mod b_p and -B/2 < X <= B/2."""
        chunk = max(1, _CHUNK_ENTRIES // len(self._digits))
        values: list[int] = []
        for start in range(0, residues.shape[1], chunk):
            values += self._reconstruct(residues[:, start : start + chunk])
        return values

    def _reconstruct(self, residues: np.ndarray) -> list[int]:
        c = residues * self._inverses % self._column  # below 2**62
        count = c.shape[1]
        size = len(self._digits)
        # einsum, not @: its loops along limbs are fast on int64, and no thread pool stalls a busy machine.
        sums = np.einsum("kn,dn->kd", np.ascontiguousarray(c.T), self._digits)
        # A sum is below 2**63: four 16-bit planes, each read as one long integer, instead of a carry chain.
        planes = np.ascontiguousarray(sums.astype("<i8").view("<u2").reshape(count, size, 4).transpose(2, 0, 1))
        width = 2 * size
        raw = [(16 * i, plane.tobytes()) for i, plane in enumerate(planes) if plane.any()]
        quotients = np.rint((c / self._column).sum(axis=0)).astype(np.int64).tolist()
        product, values = self.product, []
        for index, k in enumerate(quotients):
            at = index * width
            x = -k * product
            for shift, plane in raw:
                x += int.from_bytes(plane[at : at + width], "little") << shift
            if 2 * x > product:
                x -= product
            elif 2 * x <= -product:
                x += product
            values.append(x)
        return values


@functools.lru_cache(maxsize=4)
def crt_basis(moduli: tuple[int, ...]) -> CrtBasis:
    """Cached :class:`CrtBasis`; ``moduli`` pairwise coprime."""
    return CrtBasis(moduli)


def crt(residues: np.ndarray, moduli: Sequence[int]) -> np.ndarray:
    """Residues int64 ``[N, ...]``, 0 <= r < b_p, to an object array ``[...]`` of Python ints in (-B/2, B/2]."""
    array = np.asarray(residues, np.int64)
    out = np.empty(math.prod(array.shape[1:]), object)
    out[:] = crt_basis(tuple(moduli)).reconstruct(array.reshape(len(array), -1))
    return out.reshape(array.shape[1:])
