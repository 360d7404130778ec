"""Attack ``small-value``: true lanes of a few limbs combine to an integer that a pixel can have, decoys do not.

Exhaustive search over the lanes of k limbs, then limb by limb: M**k tuples, then M for each further one, never M**N.
In the hardened profile a pixel's V is a * PT + e with 256 plain values PT that the table tells and ``span`` values e,
so k limbs are enough once their product exceeds 256 * span, however large a and Delta make V. In the patent profile V
is F * PT with the same unknown F for all pixels, and the range of V is what counts (``ratio`` needs no search there). k
is 1 for 30-bit limbs at the default scales: each limb falls alone.
"""

from __future__ import annotations

import numpy as np

from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.tuples import MOST_TUPLES, Form, Near, Trials, search
from mcfhe.modular.audit.values import EVIDENCE_BITS, opened
from mcfhe.modular.audit.view import View

_MOST_PIXELS = 128
# Survivors that are tried: of one request several tuples may hold the same integers.
_MOST_SURVIVORS = 64


def small_value(view: View) -> Finding:
    """Search lane tuples limb by limb, keep those that are possible at every sampled pixel, and open with them."""
    forms = [_form(view, channel) for channel in range(view.shape[0])]
    image, pixels = _sample(view, _MOST_PIXELS)
    widest = sorted(range(len(view.moduli)), key=lambda p: -view.moduli[p])
    trials = Trials(
        [view.moduli[p] for p in widest],
        [view.ciphertext[p, image][:, pixels] for p in widest],
        [forms[view.channel[i]] for i in pixels],
    )
    # Pixels of one lane are multiples of each other in the patent profile, not independent trials.
    count = trials.limbs_needed(EVIDENCE_BITS)
    if count is None:
        return Finding("small-value", "the values that V may take fill the moduli", outcome="inapplicable")
    tuples = view.lanes**count
    cost = f"M**k = {view.lanes}**{count} = {tuples} tuples"
    if tuples > MOST_TUPLES:
        return Finding("small-value", f"{cost} are too many here; see ratio and lattice")
    used, found = search(trials, beyond=2 * view.value_bound)
    detail = f"{cost}, then M a limb; {len(found)} survived"
    for lanes in found[:_MOST_SURVIVORS]:
        positions: list[int | None] = [None] * len(view.moduli)
        for limb, lane in zip(widest[:used], lanes, strict=True):
            positions[limb] = int(lane)
        images, positions = opened(view, positions)
        if images:
            return Finding("small-value", detail, images, positions)
    return Finding("small-value", detail)


def _form(view: View, channel: int) -> Form:
    """What V of a pixel may be."""
    if view.per_image:
        low, high = view.value_range
        return Near((low,), high - low + 1)
    return Near(tuple(sorted({view.amplification * plain for plain in view.table[channel]})), view.noise_span)


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
