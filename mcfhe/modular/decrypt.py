"""S8: true lanes, Chinese remaindering, bound check, correction of damaged limbs, scores.

The basis is a redundant residue number system. Any two integers of absolute value <= bound differ in more than
n - N of n limbs, when the product of the N smallest exceeds 2 * bound; so s missing and q damaged limbs are
corrected uniquely while s + 2q <= r (D. M. Mandelbaum, "On a class of arithmetic codes and a decoding algorithm",
IEEE Trans. Inf. Theory 22, 1976). Damage in an integer X is located by rational reconstruction: with D the
product of the damaged moduli, D * X = D * V modulo the product of all, and both D and D * V are small (O. Goldreich,
D. Ron, M. Sudan, "Chinese remaindering with errors", IEEE Trans. Inf. Theory 46, 2000). That alone falls short
of (n - N) / 2 damaged limbs when these are larger than the rest; trying again with the largest limbs erased,
one more each time, closes the gap (V. Guruswami, A. Sahai, M. Sudan, "Soft-decision decoding of Chinese
remainder codes", FOCS 2000: Forney's generalised minimum distance argument).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from mcfhe.errors import DecryptionError
from mcfhe.modular.crt import crt_basis

_LOG = logging.getLogger("mcfhe")


def true_lanes(residues: np.ndarray, positions: Sequence[int] | np.ndarray, lanes: int) -> np.ndarray:
    """``[n, K, batch * M]`` to ``[n, K, batch]``: row p keeps lane positions[p] of every image."""
    limbs, scores, streams = residues.shape
    apart = residues.reshape(limbs, scores, streams // lanes, lanes)
    return apart[np.arange(limbs), :, :, np.asarray(positions, np.int64)]


def in_range(residues: np.ndarray, moduli: Sequence[int]) -> list[bool]:
    """For each limb of ``[n, ...]``, whether all its residues, decoys included, are in 0 <= r < b_p."""
    return [bool(((row >= 0) & (row < b)).all()) for row, b in zip(residues, moduli, strict=True)]


def decrypt_integers(
    residues: np.ndarray,
    limbs: Sequence[int],
    *,
    moduli: Sequence[int],
    positions: Sequence[int] | np.ndarray,
    lanes: int,
    redundancy: int,
    bound: int,
) -> list[list[int]]:
    """The exact scores of every image.

    residues: int64 ``[n, labels, batch * M]``, row i belongs to limb ``limbs[i]`` of ``moduli`` (all N + r of them).
    Limbs that are absent or hold a value out of range count as missing. Returns ``batch`` lists of ``labels``
    integers, |V| <= bound; DecryptionError if no such integers fit all but the limbs that redundancy can spare.
    """
    # Out of range in a decoy lane counts too: otherwise whether it is noticed would tell which lane is true.
    rows = [i for i, good in enumerate(in_range(residues, [moduli[p] for p in limbs])) if good]
    kept = [limbs[i] for i in rows]
    chosen = true_lanes(residues[rows], np.asarray(positions, np.int64)[kept], lanes)
    count, labels, batch = chosen.shape
    flat = chosen.transpose(0, 2, 1).reshape(count, batch * labels)
    needed = len(moduli) - redundancy
    values, damaged = correct(flat, [moduli[p] for p in kept], bound, needed)
    missing = len(moduli) - len(kept)
    if missing or damaged:
        _LOG.warning("decrypt: %d of %d limbs missing, %d damaged and corrected", missing, len(moduli), len(damaged))
    return [values[i * labels : (i + 1) * labels] for i in range(batch)]


def correct(residues: np.ndarray, moduli: Sequence[int], bound: int, needed: int) -> tuple[list[int], list[int]]:
    """Integers within the bound that agree with the residues, and the rows found damaged.

    residues: int64 ``[n, K]`` in range, row i modulo ``moduli[i]``; damage may hit any column of a damaged row.
    ``needed`` = N: the product of any N of the moduli exceeds 2 * bound. At most (n - needed) // 2 rows are given
    up, the same ones for all columns; every integer returned agrees with all other rows. DecryptionError otherwise.
    """
    total = len(moduli)
    if total < needed:
        raise DecryptionError(
            f"only {total} usable limbs arrived and {needed} are needed: the response is incomplete or damaged; "
            "ask for it again"
        )
    budget = (total - needed) // 2
    damaged: set[int] = set()
    while True:
        rows = [i for i in range(total) if i not in damaged]
        basis = tuple(moduli[i] for i in rows)
        values = crt_basis(basis).reconstruct(residues[rows])
        outside = next((k for k, v in enumerate(values) if abs(v) > bound), None)
        if outside is None:
            return values, sorted(damaged)
        found = locate(values[outside], basis, bound, needed, budget - len(damaged))
        if found is None:
            raise DecryptionError(
                f"a decrypted integer lies outside the proved bound ({values[outside].bit_length()} bits, at most "
                f"{bound.bit_length()} are possible) and correcting it takes more than the {budget} limbs that the "
                "redundancy allows: the response is damaged, or of another key; no label is returned"
            )
        damaged.update(rows[i] for i in found)


def locate(value: int, moduli: Sequence[int], bound: int, needed: int, budget: int) -> list[int] | None:
    """Which of ``moduli`` ``value`` is wrong in: the at most ``budget`` ones where it differs from an integer V,
    |V| <= bound. None if there is no such V. At most one can exist while 2 * budget <= len(moduli) - needed.
    """
    if budget < 1:
        return None
    descending = sorted(range(len(moduli)), key=lambda i: -moduli[i])
    kept = math.prod(moduli)
    for erased in range(len(moduli) - needed + 1):
        if erased:
            kept //= moduli[descending[erased - 1]]
        candidate = _reconstruct_rational(value % kept, kept, bound)
        if candidate is None or abs(candidate) > bound:
            continue
        wrong = [i for i, b in enumerate(moduli) if (value - candidate) % b]
        if len(wrong) <= budget:
            return wrong
    return None


def _reconstruct_rational(value: int, modulus: int, bound: int) -> int | None:
    """V such that D * value = D * V mod modulus for a D > 0 with 2 * bound * D**2 < modulus, or None.

    Half-extended Euclid: with T = floor(sqrt((modulus - 1) / (2 * bound))) and R = T * bound, all (t, u) with
    u = t * value mod modulus, |t| <= T, |u| <= R are multiples of the first remainder <= R and its cofactor (von
    zur Gathen and Gerhard, Modern Computer Algebra, theorem 5.26), because 2 * R * T < modulus.
    """
    bound = max(bound, 1)
    limit = math.isqrt((modulus - 1) // (2 * bound)) * bound
    high, low = modulus, value
    cofactor_high, cofactor_low = 0, 1
    while low > limit:
        quotient, rest = divmod(high, low)
        high, low = low, rest
        cofactor_high, cofactor_low = cofactor_low, cofactor_high - quotient * cofactor_low
    quotient, rest = divmod(low, cofactor_low)
    return quotient if rest == 0 else None


def to_scores(integers: Sequence[Sequence[int]], denominator: int, labels: int) -> np.ndarray:
    """float64 ``[batch, labels]``: each V / denominator, rounded once, to nearest, ties to even.

    Division of Python ints is correctly rounded at any size, where float(V) overflows from 1,024 bits on. A
    quotient beyond float64 becomes an infinity, as IEEE 754 rounds it.
    """
    scores = [[_quotient(v, denominator) for v in row] for row in integers]
    return np.array(scores, np.float64).reshape(len(integers), labels)


def _quotient(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf
