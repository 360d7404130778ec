"""Attack ``statistics``: images repeat values and change slowly; uniform decoys do neither.

Two tests a lane, each against what chance does in uniform residues; a limb falls when exactly one lane fails chance:

- repeats: pairs of equal residues within an image. V takes at most 256 * span values, of which a background uses few;
  decoys repeat with probability 1 / b_p a pair. Works in the hardened profile at any size of V; in the patent profile
  all lanes repeat alike, which is ``equality``.
- smoothness: distances between neighbours modulo b_p. Decoys are b_p / 4 apart on average. Works while
  differences of V between neighbours are small against b_p; when they wrap many times (narrow moduli or a large
  scale) neighbours of different value look like chance, and it does not apply.
"""

from __future__ import annotations

import math

import numpy as np

from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import EVIDENCE_BITS, opened
from mcfhe.modular.audit.view import View


def statistics(view: View) -> Finding:
    """Lanes that natural images betray, then V from them. Cost: N * M sorts of the pixels, no search."""
    positions: list[int | None] = []
    by = {"repeats": 0, "smoothness": 0}
    for limb, b in enumerate(view.moduli):
        if view.lanes == 1:
            positions.append(0)
            continue
        lane = None
        for name, test in (("repeats", repeat_bits), ("smoothness", smooth_bits)):
            bits = [test(view.ciphertext[limb, :, m], b, view.shape) for m in range(view.lanes)]
            above = [m for m, value in enumerate(bits) if value >= EVIDENCE_BITS]
            if lane is None and len(above) == 1:
                lane = above[0]
                by[name] += 1
        positions.append(lane)
    direct = sum(w is not None for w in positions)
    detail = f"{by['repeats']} limbs by repeats, {by['smoothness']} by smoothness"
    if view.lanes == 1:
        detail = "one lane: no decoys"
    elif direct == 0:
        detail = "no lane differs from the others: V wraps too often for smoothness and repeats are alike in all lanes"
    # In the patent profile a decoy can be smooth by chance: its differences are multiples of few numbers.
    return Finding("statistics", detail, *opened(view, positions))


def repeat_bits(rows: np.ndarray, b: int, shape: tuple[int, int, int]) -> float:
    """-log2 of a bound on the chance that uniform residues repeat as often as ``rows`` ``[batch, C * H * W]`` do.

    Pairs of equal residues are close to Poisson with mean pairs / b; P(X >= x) <= exp(-mean) * (e * mean / x)**x.
    """
    pairs, total = 0, 0
    for row in rows:
        counts = np.unique(row, return_counts=True)[1]
        pairs += int((counts * (counts - 1) // 2).sum())
        total += len(row) * (len(row) - 1) // 2
    mean = total / b
    if pairs <= mean:
        return 0.0
    return (mean - pairs + pairs * math.log(pairs / mean)) / math.log(2)


def smooth_bits(rows: np.ndarray, b: int, shape: tuple[int, int, int]) -> float:
    """-log2 of a bound on the chance that uniform residues lie as close to their right neighbours as ``rows`` do.

    With u = 2 * distance / b uniform in 0..1, the sum T of -ln u over n pairs has P(T >= t) <= (t / n)**n * e**(n - t).
    Each distance counts once an image: in the patent profile equal differences of pixels are equal in every lane.
    """
    total, count = 0.0, 0
    for row in rows:
        image = row.reshape(shape)
        difference = (image[:, :, 1:] - image[:, :, :-1]) % b
        distance = np.unique(np.minimum(difference, b - difference))
        distance = distance[distance > 0]
        total += float(-np.log(np.minimum(2 * distance / b, 1.0)).sum())
        count += len(distance)
    if count == 0 or total <= count:
        return 0.0
    return (total - count - count * math.log(total / count)) / math.log(2)
