"""Attack ``statistics``: images repeat values and change slowly; uniform decoys do neither.

Tests of a lane; a limb falls when exactly one lane stands out:

- repeats: pairs of equal residues. V takes at most 256 * span values, of which a background uses few; decoys repeat
  with probability 1 / b_p a pair. In the hardened profile it works at any size of V, over all images of the key at
  once, so evidence grows with the square of their number. In the patent profile all lanes of an image repeat alike,
  which is ``equality``;
- shared: residues that several images have in common. In the patent profile the true lane multiplies every image by
  nearly the same F, a decoy lane by another number each time. It takes three images of a key, of any requests;
- smoothness: distances between neighbours modulo b_p. Decoys are b_p / 4 apart on average. Works while
  differences of V between neighbours are small against b_p. Where wide noise fills every single limb, the same on the
  integers that pairs of limbs make: M**2 pairs.
"""

from __future__ import annotations

import math

import numpy as np

from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import EVIDENCE_BITS, opened
from mcfhe.modular.audit.view import View

_MOST_PAIRS = 1 << 16
_PAIR_IMAGES = 2
# How much more often than any other lane the true one must share residues between images.
_CLEARLY = 2
_FEWEST_SHARING = 3


def statistics(view: View) -> Finding:
    """Lanes that natural images betray, then V from them. Cost: N * M sorts of the pixels; M**2 for pairs of limbs."""
    if view.lanes == 1:
        positions: list[int | None] = [0] * len(view.moduli)
        return Finding("statistics", "one lane: no decoys", *opened(view, positions))
    by = {"repeats": 0, "smoothness": 0, "shared": 0, "pairs": 0}
    positions = []
    for limb in range(len(view.moduli)):
        lane = None
        for name, test in (("repeats", _by_repeats), ("smoothness", _by_smoothness), ("shared", _by_sharing)):
            if lane is None and (lane := test(view, limb)) is not None:
                by[name] += 1
        positions.append(lane)
    if not view.per_image and not any(by.values()):
        positions = _by_pairs(view)
        by["pairs"] = sum(w is not None for w in positions)
    detail = ", ".join(f"{count} limbs by {name}" for name, count in by.items() if count)
    if not detail:
        detail = "no lane differs from the others: V wraps too often for smoothness and repeats are alike in all lanes"
    # In the patent profile a decoy can be smooth by chance: its differences are multiples of few numbers.
    return Finding("statistics", detail, *opened(view, positions))


def _by_repeats(view: View, limb: int) -> int | None:
    rows = view.ciphertext[limb]
    rows = rows if view.per_image else rows.transpose(1, 0, 2).reshape(1, view.lanes, -1)
    return _alone([repeat_bits(rows[:, m], view.moduli[limb]) for m in range(view.lanes)])


def _by_smoothness(view: View, limb: int) -> int | None:
    b = view.moduli[limb]
    return _alone([smooth_bits(view.ciphertext[limb, :, m], b, view.shape) for m in range(view.lanes)])


def _by_sharing(view: View, limb: int) -> int | None:
    """No bound on chance here: two decoy factors may be small multiples of each other. What it claims must open."""
    if not view.per_image or view.batch < _FEWEST_SHARING:
        return None
    counts = []
    for m in range(view.lanes):
        # A zero pixel is zero in every lane.
        seen = [np.setdiff1d(row, [0]) for row in view.ciphertext[limb, :, m]]
        distinct = np.unique(np.concatenate(seen), return_counts=True)[1]
        counts.append(int((distinct * (distinct - 1) // 2).sum()))
    order = np.argsort(counts)
    first, second = counts[order[-1]], counts[order[-2]]
    return int(order[-1]) if first > _CLEARLY * max(second, view.batch) else None


def _by_pairs(view: View) -> list[int | None]:
    """Lanes of two limbs at a time, of as many limbs as it takes to hold V."""
    found: list[int | None] = [None] * len(view.moduli)
    if view.lanes**2 > _MOST_PAIRS:
        return found
    widest = sorted(range(len(view.moduli)), key=lambda p: -view.moduli[p])
    held = 1
    for p, q in zip(widest[::2], widest[1::2], strict=False):
        b, c = view.moduli[p], view.moduli[q]
        inverse = pow(b, -1, c)
        best: tuple[float, int, int] = (0.0, 0, 0)
        for m in range(view.lanes):
            first = view.ciphertext[p, :_PAIR_IMAGES, m]
            for n in range(view.lanes):
                value = first + b * ((view.ciphertext[q, :_PAIR_IMAGES, n] - first) % c * inverse % c)
                best = max(best, (smooth_bits(value, b * c, view.shape), m, n))
        if best[0] < EVIDENCE_BITS + 2 * math.log2(view.lanes):
            break  # narrower pairs show less
        found[p], found[q] = best[1:]
        held *= b * c
        if held > 2 * view.value_bound << 16:
            break
    return found


def _alone(bits: list[float]) -> int | None:
    """The one lane that chance does not explain."""
    above = [m for m, value in enumerate(bits) if value >= EVIDENCE_BITS]
    return above[0] if len(above) == 1 else None


def repeat_bits(rows: np.ndarray, b: int) -> float:
    """-log2 of a bound on the chance that uniform residues repeat as often as those of each of ``rows`` ``[n, K]`` do.

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
