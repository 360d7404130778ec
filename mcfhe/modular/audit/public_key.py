"""Attacks that read the public key PK: ``quotient`` and ``position``. The patent profile sends PK to the server."""

from __future__ import annotations

import math

import numpy as np

from mcfhe.modular.audit.fitting import single_out, tuple_that_fits
from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.tuples import Near
from mcfhe.modular.audit.values import Image, image_of, opened
from mcfhe.modular.audit.view import View
from mcfhe.modular.crt import crt

_NO_KEY = "the request holds no PK: the hardened profile keeps it on the client"


def quotient(view: View) -> Finding:
    """PT = CT * PK**-1 mod b_p, in any lane, true or decoy: both are the same multiple.

    One limb is enough while b_p > 2 * max |PT|, otherwise the fewest that hold it, any lane of each. Cost: one
    inversion an image and one multiplication a pixel and limb.
    """
    if view.public_key is None:
        return Finding("quotient", _NO_KEY, outcome="inapplicable")
    limbs = view.limbs_beyond(2 * view.plain_bound)
    if limbs is None:
        return Finding("quotient", "all moduli together are smaller than the range of PT", outcome="inapplicable")
    images: dict[int, Image] = {}
    for index in range(view.batch):
        rows = [row for limb in limbs if (row := _divide(view, limb, index)) is not None]
        if len(rows) == len(limbs):
            image = image_of(view, crt(np.stack(rows), [view.moduli[p] for p in limbs]))
            if image is not None:
                images[index] = image
    return Finding("quotient", f"CT / PK in {len(limbs)} limb(s), first lane of each, true or not", images)


def _divide(view: View, limb: int, image: int) -> np.ndarray | None:
    """CT / PK mod b in the first lane where PK is invertible."""
    assert view.public_key is not None
    b = view.moduli[limb]
    for lane in range(view.lanes):
        divisor = int(view.public_key[limb, image, lane])
        if math.gcd(divisor, b) == 1:
            quotients: np.ndarray = view.ciphertext[limb, image, lane] * pow(divisor, -1, b) % b
            return quotients
    return None


def position(view: View) -> Finding:
    """PK encrypts 1.0: its true lane holds a * Delta + e mod b_p with 0 <= e < span. The lane that does is w_p.

    A decoy does with probability span / b_p an image, so more requests of a key settle what one leaves open. Cost:
    N * M comparisons; where the noise may take more values than b_p has, the same for tuples of limbs. All images made
    with the key, earlier and later, then decrypt like the client decrypts them.
    """
    if view.public_key is None:
        return Finding("position", _NO_KEY, outcome="inapplicable")
    lowest = view.amplification * view.scale
    found = []
    for limb, b in enumerate(view.moduli):
        hits = ((view.public_key[limb] - lowest) % b < view.noise_span).sum(axis=0)
        found.append(single_out(hits, view.batch, view.noise_span / b, len(view.moduli)))
    if all(w is None for w in found):
        residues = [rows.T for rows in view.public_key]
        found = tuple_that_fits(view, residues, [Near((lowest,), view.noise_span)] * view.batch)
    detail = f"lanes of PK within {view.noise_span} of a * Delta = {lowest}"
    return Finding("position", detail, *opened(view, found))
