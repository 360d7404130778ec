"""From lane positions, or from integers, to pixels: what every attack ends with.

Patent profile: V = F * PT with F = a * Delta + e the same for all pixels of an image. Hardened: V = a * PT + e with an
e for every pixel. PT is one of the at most 256 values that the public table gives a channel, so an integer that is no
such V betrays a wrong guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcfhe.modular.audit.view import View
from mcfhe.modular.crt import crt

# An event that chance produces with less than 2**-EVIDENCE_BITS is taken as proof.
EVIDENCE_BITS = 40
# What single_out asks for beyond the number of lanes it looks at.
_SPARE_BITS = 10
# Pixels of the sample that settles a limb once V is known: b_p**-64 for a wrong lane to fit.
_SAMPLE = 64


@dataclass(frozen=True, eq=False)
class Image:
    """A recovered image. ``plain`` is exact; ``pixels`` too, where ``unique``: no two pixel values share a PT."""

    plain: np.ndarray  # int64 [C, H, W]: PT
    pixels: np.ndarray  # uint8 [C, H, W]: the lowest pixel value that gives this PT
    unique: bool


def image_of(view: View, plain: np.ndarray) -> Image | None:
    """Pixels of plain values, int64 or object ``[C * H * W]``; None if one is not in the table of its channel."""
    if not in_table(view, plain, view.channel):
        return None
    plain = plain.astype(np.int64)
    pixels = np.empty(view.size, np.uint8)
    unique = True
    for channel, row in enumerate(view.table):
        mask = view.channel == channel
        entries, first, counts = np.unique(np.array(row, np.int64), return_index=True, return_counts=True)
        at = np.searchsorted(entries, plain[mask])
        pixels[mask] = first[at]
        unique &= bool((counts[at] == 1).all())
    return Image(plain.reshape(view.shape), pixels.reshape(view.shape), unique)


def plain_of(view: View, values: np.ndarray, channel: np.ndarray) -> list[np.ndarray]:
    """All plain values PT, int64 ``[n]``, that explain the integers V ``[n]`` of one image, pixels of ``channel``.

    Empty if V cannot be input of the profile. More than one is possible in the patent profile only, where another F
    may explain the same V when all of V share a factor (an image of one colour).
    """
    if not view.per_image:
        plain = values // view.amplification
        fits = (values - view.amplification * plain < view.noise_span).all() and in_table(view, plain, channel)
        return [plain.astype(np.int64)] if fits else []
    common = math.gcd(*(int(v) for v in values))
    lowest = view.amplification * view.scale
    if common == 0:
        return [np.zeros(len(values), np.int64)] if in_table(view, values, channel) else []
    found = []
    # F * gcd(PT) = gcd(V), and gcd(PT) is at most the largest |PT|.
    for divisor in range(max(1, common // (lowest + view.noise_span)), min(view.plain_bound, common // lowest) + 1):
        factor, rest = divmod(common, divisor)
        if rest == 0 and lowest <= factor < lowest + view.noise_span:
            plain = values // factor
            if in_table(view, plain, channel):
                found.append(plain.astype(np.int64))
    return found


def in_table(view: View, plain: np.ndarray, channel: np.ndarray) -> bool:
    """Whether every value is in the table of its channel; of any integer dtype, objects included."""
    if len(plain) and max(abs(int(plain.max())), abs(int(plain.min()))) > view.plain_bound:
        return False
    plain = plain.astype(np.int64)
    return all(bool(np.isin(plain[channel == c], row).all()) for c, row in enumerate(view.table))


def decode(view: View, positions: Sequence[int | None]) -> dict[int, Image]:
    """All images that the known lane positions open, by image number.

    Needs positions of limbs whose moduli multiply to more than the range of V; otherwise nothing is returned.
    """
    limbs = _enough(view, positions)
    if limbs is None:
        return {}
    found = {}
    for index in range(view.batch):
        plains = plain_of(view, integers(view, limbs, positions, index), view.channel)
        image = image_of(view, plains[0]) if len(plains) == 1 else None
        if image is not None:
            found[index] = image
    return found


def multipliers(view: View, value: int, channel: int, most: int = 1 << 12) -> list[int]:
    """All s such that s * value may be PT (patent) or V (hardened) of a pixel of ``channel``; [] if more than ``most``.

    value: not 0.
    """
    found: set[int] = set()
    for entry in view.table[channel]:
        lowest = entry if view.per_image else view.amplification * entry
        span = 1 if view.per_image else view.noise_span
        # The multiples of |value| in lowest <= x < lowest + span.
        first, last = -(-lowest // abs(value)), (lowest + span - 1) // abs(value)
        if last - first >= most:
            return []
        found.update(range(first, last + 1))
    found.discard(0)
    if len(found) > most:
        return []
    return sorted(s if value > 0 else -s for s in found)


def integers(view: View, limbs: Sequence[int], positions: Sequence[int | None], image: int) -> np.ndarray:
    """V of all pixels of an image from some limbs: object ``[C * H * W]``, unique if the limbs hold V."""
    rows = np.stack([view.ciphertext[p, image, positions[p]] for p in limbs])
    return crt(rows, [view.moduli[p] for p in limbs])


def complete(view: View, positions: Sequence[int | None]) -> list[int | None]:
    """Fill in the missing lanes: with V known from some limbs, each further limb has one lane that holds V mod b_p.

    Cost: M comparisons of a few pixels for every missing limb.
    """
    found = list(positions)
    limbs = _enough(view, positions)
    if limbs is None:
        return found
    samples = []
    for index in range(min(view.batch, 8)):
        values = integers(view, limbs, positions, index)
        # One pixel for each value: a background of zeros would fit every lane of the patent profile.
        where = np.unique(values, return_index=True)[1][:_SAMPLE]
        samples.append((where, values[where]))
    for limb, known in enumerate(positions):
        if known is None:
            fits = np.ones(view.lanes, bool)
            for index, (where, values) in enumerate(samples):
                residues = (values % view.moduli[limb]).astype(np.int64)
                fits &= (view.ciphertext[limb, index][:, where] == residues).all(axis=1)
            lanes = np.flatnonzero(fits)
            found[limb] = int(lanes[0]) if len(lanes) == 1 else None
    return found


def opened(view: View, found: Sequence[int | None]) -> tuple[dict[int, Image], list[int | None]]:
    """(images, positions) that follow from the positions found. Positions that open no image are no finding: []."""
    positions = complete(view, found)
    images = decode(view, positions)
    return images, positions if images else []


def positions_from_plain(view: View, images: dict[int, Image]) -> list[int | None]:
    """Lane positions once whole images are known: the lane that stays within the noise of the known pixels; [] if none
    does, as where noise may take more values than b_p has.
    """
    known = np.full((view.batch, view.size), np.iinfo(np.int64).min, np.int64)
    for index, image in images.items():
        known[index] = image.plain.reshape(-1)
    return opened(view, lanes_that_fit(view, known))[1]


def lanes_that_fit(view: View, plain: np.ndarray) -> list[int | None]:
    """The lane of every limb that known plain values single out.

    plain: int64 ``[batch, C * H * W]``, the lowest int64 where unknown. Patent: CT / PT = F must lie in
    a * Delta + [0, span) mod b_p, one test an image; hardened: CT - a * PT in [0, span), one a pixel. Wrong guesses
    among the known values are tolerated: a lane counts when chance does not explain its hits.
    """
    known = plain != np.iinfo(np.int64).min
    if view.per_image:
        known &= plain != 0
    found: list[int | None] = [None] * len(view.moduli)
    for limb, b in enumerate(view.moduli):
        hits, trials = np.zeros(view.lanes, np.int64), 0
        for index in range(view.batch):
            where = np.flatnonzero(known[index])
            if view.per_image:
                where = np.array([i for i in where[:_SAMPLE] if math.gcd(int(plain[index, i]), b) == 1], np.int64)
            if len(where) == 0:
                continue
            lanes = view.ciphertext[limb, index][:, where]
            values = plain[index, where] % b
            if view.per_image:
                inverses = np.array([pow(int(v), -1, b) for v in values], np.int64)
                offsets = (lanes * inverses - view.amplification * view.scale) % b
                # All pixels of an image repeat one test; the majority decides it.
                hits += (offsets < view.noise_span).mean(axis=1) > 0.5
                trials += 1
            else:
                hits += ((lanes - view.amplification * values) % b < view.noise_span).sum(axis=1)
                trials += len(where)
        found[limb] = single_out(hits, trials, view.noise_span / b, len(view.moduli))
    return found


def single_out(hits: np.ndarray, trials: int, probability: float, limbs: int) -> int | None:
    """The one lane whose hits chance does not explain, among ``len(hits)`` lanes of each of ``limbs`` limbs."""
    if len(hits) == 1:
        return 0  # no decoys, nothing to find
    needed = math.log2(len(hits) * limbs) + _SPARE_BITS
    lanes = [m for m, h in enumerate(hits) if chance_bits(int(h), trials, probability) >= needed]
    return lanes[0] if len(lanes) == 1 else None


def chance_bits(hits: int, trials: int, probability: float) -> float:
    """-log2 of a bound on the chance of so many hits: P(X >= hits) <= exp(-n * KL(hits / n || p)) (Chernoff)."""
    if trials == 0 or hits <= trials * probability or probability >= 1:
        return 0.0
    share = hits / trials
    divergence = share * math.log(share / probability)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - probability))
    return trials * divergence / math.log(2)


def _enough(view: View, positions: Sequence[int | None]) -> list[int] | None:
    """Limbs with known positions that hold V, with 2**16 to spare where there are more; None if too few."""
    held, limbs = 1, []
    for limb in sorted(range(len(view.moduli)), key=lambda p: -view.moduli[p]):
        if positions[limb] is not None and held <= 2 * view.value_bound << 16:
            limbs.append(limb)
            held *= view.moduli[limb]
    return limbs if held > 2 * view.value_bound else None
