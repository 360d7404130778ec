"""Attack ``small-value``: true lanes of a few limbs combine to a small integer, decoys do not.

This is noisy Chinese remaindering by exhaustive search over few limbs, then limb by limb (D. Bleichenbacher and
P. Q. Nguyen, "Noisy polynomial interpolation and noisy Chinese remaindering", EUROCRYPT 2000, treat the general
problem). Cost: M**k for the first k limbs, M for each further one, never M**N. k is the number of limbs whose
moduli hold the range of V: 1 for 30-bit limbs at the default scales, where each limb falls alone.
"""

from __future__ import annotations

import math

import numpy as np

from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import EVIDENCE_BITS, complete, integers, opened, plain_of
from mcfhe.modular.audit.view import View

MOST_TUPLES = 1 << 26
_CHUNK = 1 << 20
# Sums of fractions are off by at most about k * 2**-52.
_TOLERANCE = 2.0**-44


def small_value(view: View) -> Finding:
    """Search lane tuples of the fewest limbs that hold V, keep those small at every sampled pixel, and extend."""
    low, high = view.value_range
    width = high - low + 1
    limbs = view.limbs_beyond(2 * width)
    if limbs is None:
        return Finding("small-value", "the range of V fills the moduli", outcome="inapplicable")
    tuples = view.lanes ** len(limbs)
    cost = f"M**k = {view.lanes}**{len(limbs)} = {tuples} tuples"
    if tuples > MOST_TUPLES:
        return Finding("small-value", f"{cost} are too many here; see lattice")
    density = width / math.prod(view.moduli[p] for p in limbs)
    pixels = max(16, math.ceil((len(limbs) * math.log2(max(2, view.lanes)) + EVIDENCE_BITS) / -math.log2(density)))
    if view.per_image:
        pixels *= 2  # pixels of one lane are multiples of each other, not independent trials
    survivors: list[list[int | None]] = []
    image, sample = _sample(view, pixels)
    residues = [view.ciphertext[p, image][:, sample] for p in limbs]
    for lanes in search(residues, [view.moduli[p] for p in limbs], low, width):
        positions: list[int | None] = [None] * len(view.moduli)
        for limb, lane in zip(limbs, lanes, strict=True):
            positions[limb] = int(lane)
        values = integers(view, limbs, positions, image)[sample]
        if plain_of(view, values, view.channel[sample]):
            survivors.append(positions)
    best: list[int | None] = []
    if survivors:
        extended = [complete(view, positions) for positions in survivors[:64]]
        scores = [sum(w is not None for w in positions) for positions in extended]
        best = extended[scores.index(max(scores))] if scores.count(max(scores)) == 1 else []
    detail = f"{cost}, then M a limb; {len(survivors)} survived"
    return Finding("small-value", detail, *opened(view, best)) if best else Finding("small-value", detail)


def search(residues: list[np.ndarray], moduli: list[int], low: int, width: int) -> np.ndarray:
    """Lane tuples ``[survivors, k]`` whose integers V satisfy low <= V < low + width modulo the product, at all pixels.

    residues: k arrays ``[M, n]``. Uses the Chinese remainder theorem in fractions: V / P = sum of c_p / b_p mod 1 with
    c_p = r_p * (P / b_p)**-1 mod b_p, in float64; a few false survivors are possible, no true one is lost.
    """
    product = math.prod(moduli)
    fractions = []
    for rows, b in zip(residues, moduli, strict=True):
        inverse = pow(product // b, -1, b)
        fractions.append((rows - low % b) % b * inverse % b / b)  # below 2**62 before the last reduction
    limit = width / product + _TOLERANCE
    found = []
    tail = max(0, len(moduli) - 1)
    # The first limb's lanes one at a time when all tuples at once would be too many.
    lanes = residues[0].shape[0]
    step = max(1, min(lanes, _CHUNK // lanes**tail if lanes**tail <= _CHUNK else 1))
    for start in range(0, lanes, step):
        head = fractions[0][start : start + step]
        sums = head[:, 0]
        for rows in fractions[1:]:
            sums = np.add.outer(sums, rows[:, 0])
        index = np.stack(np.nonzero(_inside(sums, limit)), axis=1)
        index[:, 0] += start
        for pixel in range(1, residues[0].shape[1]):
            if len(index) == 0:
                break
            sums = sum(rows[index[:, i], pixel] for i, rows in enumerate(fractions))
            index = index[_inside(sums, limit)]
        found.append(index)
    return np.concatenate(found)


def _inside(sums: np.ndarray, limit: float) -> np.ndarray:
    shares = sums % 1.0
    inside: np.ndarray = (shares <= limit) | (shares >= 1 - _TOLERANCE)
    return inside


def _sample(view: View, count: int) -> tuple[int, np.ndarray]:
    """An image and up to ``count`` of its pixels, as different from each other as can be seen from outside."""
    best = (0, np.zeros(0, np.int64))
    for image in range(min(view.batch, 16)):
        first = np.unique(view.ciphertext[0, image], axis=1, return_index=True)[1]
        if len(first) > len(best[1]):
            best = image, first
        if len(first) >= 4 * count:
            break
    picked = best[1]
    if len(picked) > count:
        picked = picked[np.linspace(0, len(picked) - 1, count).astype(np.int64)]
    return best[0], picked
