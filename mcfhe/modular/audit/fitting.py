"""Lane positions from integers that are known up to noise: known pixels, recovered images, or the public key."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mcfhe.modular.audit.tuples import Near, Trials, search
from mcfhe.modular.audit.values import Image, opened
from mcfhe.modular.audit.view import View

# What single_out asks for beyond the number of lanes it looks at.
_SPARE_BITS = 10
# Pixels of an image that are looked at: in the patent profile all repeat one test.
_SAMPLE = 64
_MOST_TRIALS = 256
_UNKNOWN = np.iinfo(np.int64).min


def positions_from_plain(view: View, images: dict[int, Image]) -> list[int | None]:
    """Lane positions once whole images are known: the lanes that stay within the noise of the known pixels, [] if none.

    Beyond opening an image, which it then is, positions open all others of the key.
    """
    known = np.full((view.batch, view.size), _UNKNOWN, np.int64)
    for index, image in images.items():
        known[index] = image.plain.reshape(-1)
    return opened(view, positions_that_fit(view, known))[1]


def positions_that_fit(view: View, plain: np.ndarray) -> list[int | None]:
    """The lanes that known plain values single out, limb by limb or else tuple by tuple.

    plain: int64 ``[batch, C * H * W]``, the lowest int64 where unknown.
    """
    found = lanes_that_fit(view, plain)
    if any(w is not None for w in found):
        return found
    return tuple_that_fits(view, *trials_of_plain(view, plain))


def lanes_that_fit(view: View, plain: np.ndarray) -> list[int | None]:
    """The lane of every limb that known plain values single out by itself.

    Patent: CT / PT = F must lie in a * Delta + [0, span) mod b_p, one test an image; hardened: CT - a * PT in
    [0, span), one a pixel. Wrong guesses among the known values are tolerated: a lane counts when chance does not
    explain its hits.
    """
    known = plain != _UNKNOWN
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
                offsets = (lanes * _inverses(values, b) - view.amplification * view.scale) % b
                # All pixels of an image repeat one test; the majority decides it.
                hits += (offsets < view.noise_span).mean(axis=1) > 0.5
                trials += 1
            else:
                hits += ((lanes - view.amplification * values) % b < view.noise_span).sum(axis=1)
                trials += len(where)
        found[limb] = single_out(hits, trials, view.noise_span / b, len(view.moduli))
    return found


def trials_of_plain(view: View, plain: np.ndarray) -> tuple[list[np.ndarray], list[Near]]:
    """What known plain values say of a tuple of lanes: V of the pixels (hardened), or F of the images (patent)."""
    known = plain != _UNKNOWN
    if not view.per_image:
        image, pixel = np.nonzero(known)
        step = max(1, len(image) // _MOST_TRIALS)
        image, pixel = image[::step], pixel[::step]
        forms = [Near((view.amplification * int(v),), view.noise_span) for v in plain[image, pixel]]
        return [rows[image, :, pixel].T for rows in view.ciphertext], forms
    factors: list[list[np.ndarray]] = [[] for _ in view.moduli]
    form = Near((view.amplification * view.scale,), view.noise_span)
    product = math.prod(view.moduli)
    for index in range(view.batch):
        usable = (i for i in np.flatnonzero(known[index]) if math.gcd(int(plain[index, i]), product) == 1)
        at = next(usable, None)
        if at is None:
            continue
        for limb, b in enumerate(view.moduli):
            inverse = pow(int(plain[index, at]), -1, b)
            factors[limb].append(view.ciphertext[limb, index, :, at] * inverse % b)
    if not factors[0]:
        return [], []
    return [np.stack(columns, axis=1) for columns in factors], [form] * len(factors[0])


def tuple_that_fits(view: View, residues: Sequence[np.ndarray], forms: Sequence[Near]) -> list[int | None]:
    """The lanes of the first limbs whose integers fit best, where at least half of the guesses behind them are right.

    Of several tuples the one that opens an image; all None if none does.
    """
    nothing: list[int | None] = [None] * len(view.moduli)
    if not forms:
        return nothing
    widest = sorted(range(len(view.moduli)), key=lambda p: -view.moduli[p])
    trials = Trials([view.moduli[p] for p in widest], [residues[p] for p in widest], forms)
    for share in (1.0, 0.5) if len(forms) >= 8 else (1.0,):
        count, tuples = search(trials, share, 2 * view.value_bound << 16)
        for lanes in tuples[:64]:
            positions = list(nothing)
            for limb, lane in zip(widest[:count], lanes, strict=True):
                positions[limb] = int(lane)
            if opened(view, positions)[0]:
                return positions
    return nothing


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


def _inverses(values: np.ndarray, b: int) -> np.ndarray:
    return np.array([pow(int(v), -1, b) for v in values], np.int64)
