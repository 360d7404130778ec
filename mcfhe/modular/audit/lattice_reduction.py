"""Attack ``lattice``: noisy Chinese remaindering without trying lanes at all.

D. Bleichenbacher and P. Q. Nguyen (EUROCRYPT 2000) find one integer from sets of residues as a short vector. Here many
integers share their lane positions, which makes a smaller lattice: over K pixels, the true V is a combination of the M
lane vectors modulo b_p, for every limb p. All such vectors form a lattice of dimension K and volume (product of b_p)
to the K - rank, rank = M (1 in the patent profile, where all lanes are multiples of each other). V is far shorter than
its other vectors once K exceeds rank by a fraction, so LLL (A. K. Lenstra, H. W. Lenstra, L. Lovasz, 1982) finds it.

Cost: one reduction in a dimension K a little over M, 68 to 99 for M = 64, whatever k or N are: M**k never enters.
``small-value`` is faster where M**k is small; this one is needed where V spans many limbs, and nothing repeats. In the
patent profile it finds PT up to a factor, which the table fixes, as in ``ratio``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mcfhe.modular.audit.fitting import positions_from_plain
from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import Image, image_of, multipliers, opened, plain_of
from mcfhe.modular.audit.view import View
from mcfhe.modular.crt import crt
from mcfhe.primes import is_prime

MOST_DIMENSIONS = 200
# V is the shortest vector only if its coordinates share no factor: wrong once in about 2**K.
_LEAST_DIMENSIONS = 32
# LLL comes within about 1.02**dimension of the shortest vector on average (N. Gama, P. Q. Nguyen, EUROCRYPT 2008).
_LLL_BITS = 0.03
_MARGIN_BITS = 3.0


def lattice(view: View) -> Finding:
    """The short vector of the lattice of lane vectors; needs python-flint (``pip install 'mcfhe[audit]'``)."""
    try:
        import flint
    except ImportError:
        return Finding("lattice", "needs python-flint: pip install 'mcfhe[audit]'", outcome="skipped")
    rank = 1 if view.per_image else view.lanes
    # PT is nearly an arithmetic progression, s0 * u + t0: without noise, multiples by about P / s0 are short as well
    # and stay longer than PT only while P exceeds the square of PT.
    bits = 2 * math.log2(view.plain_bound)
    if not view.per_image:
        bits = max(bits, math.log2(view.value_bound))
    primes = [p for p, b in enumerate(view.moduli) if is_prime(b)]
    shape = dimensions(rank, bits, [math.log2(view.moduli[p]) for p in primes], view.size)
    if shape is None:
        return Finding(
            "lattice",
            f"needs more than {MOST_DIMENSIONS} dimensions, more pixels or more prime limbs",
            outcome="inapplicable",
        )
    limbs, size = primes[: shape[0]], shape[1]
    detail = f"LLL in dimension {size} over {len(limbs)} limb(s), M**k not searched"
    if view.per_image:
        images: dict[int, Image] = {}
        for index in range(view.batch):
            pixels = _spread(view, index, size)
            short = shortest(flint, view, index, limbs, pixels, rank)
            image = None if short is None else _scaled(view, index, pixels, short)
            if image is not None:
                images[index] = image
        return Finding("lattice", detail, images, positions_from_plain(view, images))
    for index in range(min(view.batch, 2)):
        pixels = _spread(view, index, size)
        short = shortest(flint, view, index, limbs, pixels, rank)
        if short is None or not short.any():
            continue
        # V itself, -V, or V less a factor that all of V share (a, where there is no noise).
        at = int(abs(short).argmax())
        for s in multipliers(view, int(short[at]), int(view.channel[pixels[at]])):
            if plain_of(view, short * s, view.channel[pixels]):
                images, positions = opened(view, _matching(view, index, pixels, short * s))
                if images:
                    return Finding("lattice", detail, images, positions)
    return Finding("lattice", detail)


def dimensions(rank: int, value_bits: float, limb_bits: list[float], most: int) -> tuple[int, int] | None:
    """(limbs, K) of the cheapest lattice in which integers of ``value_bits`` are the shortest vector by a safe margin.

    By the Gaussian heuristic other vectors have about volume**(1 / K) * sqrt(K / 17) with
    log2(volume) = (K - rank) * sum(limb_bits).
    """
    best: tuple[float, int, int] | None = None
    held = 0.0
    for count, bits in enumerate(limb_bits, 1):
        held += bits
        for size in range(max(rank + 1, min(most, _LEAST_DIMENSIONS)), min(most, MOST_DIMENSIONS) + 1):
            if held * (size - rank) / size > value_bits + 2 + _LLL_BITS * size + _MARGIN_BITS:
                cost = float(size) ** 12 * held  # measured: dimension counts far more than length
                if best is None or cost < best[0]:
                    best = cost, count, size
                break
    return None if best is None else best[1:]


def shortest(flint: Any, view: View, image: int, limbs: list[int], pixels: np.ndarray, rank: int) -> np.ndarray | None:
    """The first vector of the reduced basis, object ``[K]``; None if no limb's lanes are of the expected rank.

    A limb is left out when its first ``rank`` pixels do not determine the others, one in about b_p.
    """
    size = len(pixels)
    moduli = [view.moduli[p] for p in limbs]
    kept: list[tuple[int, Any]] = []
    for limb, b in zip(limbs, moduli, strict=True):
        lanes = view.ciphertext[limb, image][:, pixels].tolist()
        echelon, found = flint.nmod_mat(view.lanes, size, [v for row in lanes for v in row], b).rref()
        if found == rank and all(int(echelon[i, i]) == 1 for i in range(rank)):
            kept.append((b, echelon))
    if not kept:
        return None
    product = math.prod(b for b, _ in kept)
    rows = [[0] * size for _ in range(size)]
    for b, echelon in kept:
        lift = product // b * pow(product // b, -1, b)
        for i in range(rank):
            for j in range(rank, size):
                rows[i][j] += int(echelon[i, j]) * lift
    for i in range(size):
        rows[i] = [v % product for v in rows[i]]
        rows[i][i] = 1 if i < rank else product
    reduced = flint.fmpz_mat(rows).lll()
    out = np.empty(size, object)
    out[:] = [int(reduced[0, j]) for j in range(size)]
    return out


def _spread(view: View, image: int, count: int) -> np.ndarray:
    """``count`` pixels of an image over all of it, the first of them not zero."""
    lane = view.ciphertext[0, image, 0]
    nonzero = np.flatnonzero(lane)
    first = np.unique(lane[nonzero], return_index=True)[1]
    order = np.concatenate([nonzero[np.sort(first)], np.flatnonzero(lane == 0), nonzero])
    order = order[np.sort(np.unique(order, return_index=True)[1])]
    head = order[: max(count, len(first))]
    return head[np.linspace(0, len(head) - 1, count).astype(np.int64)]


def _scaled(view: View, image: int, pixels: np.ndarray, short: np.ndarray) -> Image | None:
    """The whole image from a few of its pixels up to a factor s.

    Any lane is a multiple of PT, so one pixel gives all, and s * short in the table gives s. None if no s or more than
    one fits, or the first lanes hold no pixel to divide by.
    """
    limbs = view.limbs_beyond(2 * view.plain_bound) or []
    moduli = [view.moduli[p] for p in limbs]
    lanes = [view.ciphertext[p, image, 0] for p in limbs]
    usable = [
        i
        for i, pixel in enumerate(pixels)
        if all(math.gcd(int(x[pixel]), b) == 1 for x, b in zip(lanes, moduli, strict=True))
    ]
    if not limbs or not usable:
        return None
    at = usable[0]
    units = [x * pow(int(x[pixels[at]]), -1, b) % b for x, b in zip(lanes, moduli, strict=True)]
    found: list[Image] = []
    for s in multipliers(view, int(short[at]), int(view.channel[pixels[at]])) if short[at] else ():
        rows = [unit * (s * int(short[at]) % b) % b for unit, b in zip(units, moduli, strict=True)]
        candidate = image_of(view, crt(np.stack(rows), moduli))
        if candidate is not None:
            found.append(candidate)
    return found[0] if len(found) == 1 else None


def _matching(view: View, image: int, pixels: np.ndarray, values: np.ndarray) -> list[int | None]:
    """The lane of every limb that holds ``values`` modulo b_p at ``pixels``."""
    found: list[int | None] = []
    for limb, b in enumerate(view.moduli):
        residues = (values % b).astype(np.int64)
        lanes = np.flatnonzero((view.ciphertext[limb, image][:, pixels] == residues).all(axis=1))
        found.append(int(lanes[0]) if len(lanes) == 1 else None)
    return found
