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


def opened(view: View, found: Sequence[int | None]) -> tuple[dict[int, Image], list[int | None]]:
    """(images, positions) that follow from the positions found. Positions that open no image are no finding: [].

    With V known each limb has one lane that holds V mod b_p: M comparisons of a few pixels a limb. A lane that holds
    the same as another in all images opened is not claimed: it serves for these, and perhaps for no other.
    """
    images = decode(view, found)
    if not images:
        return {}, []
    positions = _distinct(view, found, images)
    # Without the lanes that served for some images only, more may open, and these tell more lanes apart.
    while len(more := decode(view, positions)) > len(images):
        images, positions = more, _distinct(view, positions, more)
    return images, positions


def _distinct(view: View, found: Sequence[int | None], images: dict[int, Image]) -> list[int | None]:
    """For every limb the one lane that holds the integers of ``images``, which ``found`` opens; None if several do."""
    limbs = _enough(view, found) or []
    samples = []
    for index in list(images)[:8]:
        values = integers(view, limbs, found, index)
        # One pixel for each value: a background of zeros would fit every lane of the patent profile.
        where = np.unique(values, return_index=True)[1][:_SAMPLE]
        samples.append((index, where, values[where]))
    positions: list[int | None] = []
    for limb, b in enumerate(view.moduli):
        fits = np.ones(view.lanes, bool)
        for index, where, values in samples:
            residues = (values % b).astype(np.int64)
            fits &= (view.ciphertext[limb, index][:, where] == residues).all(axis=1)
        lanes = np.flatnonzero(fits)
        positions.append(int(lanes[0]) if len(lanes) == 1 else None)
    return positions


def _enough(view: View, positions: Sequence[int | None]) -> list[int] | None:
    """Limbs with known positions that hold V, with 2**16 to spare where there are more; None if too few."""
    held, limbs = 1, []
    for limb in sorted(range(len(view.moduli)), key=lambda p: -view.moduli[p]):
        if positions[limb] is not None and held <= 2 * view.value_bound << 16:
            limbs.append(limb)
            held *= view.moduli[limb]
    return limbs if held > 2 * view.value_bound else None
