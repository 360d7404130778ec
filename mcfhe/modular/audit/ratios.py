"""Attacks by comparing pixels of one lane: ``ratio`` and ``equality``. They need no key material at all.

Patent profile: CT[p][m] = PK[p][m] * PT in every lane, so CT_i / CT_j = PT_i / PT_j mod b_p whether the lane is true or
a decoy, and a fraction of two small integers is found from its residue by the extended Euclidean algorithm (P. S. Wang,
"A p-adic algorithm for univariate partial fractions", SYMSAC 1981; von zur Gathen and Gerhard, Modern Computer
Algebra, section 5.10). Hardened profile: V_i / V_j is such a fraction in the true lane alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mcfhe.modular.audit.fitting import positions_from_plain
from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.tuples import MOST_TUPLES, Fractions, Trials, search
from mcfhe.modular.audit.values import Image, image_of, in_table, multipliers, opened
from mcfhe.modular.audit.view import View
from mcfhe.modular.crt import crt

# Pixels and images that are tried in the hardened profile, and tuples that are left to be opened.
_MOST_PIXELS = 64
_MOST_IMAGES = 4
_MOST_SURVIVORS = 64
# Lanes that equality compares: different pixels agree in all of them with probability b_p**-128.
_MOST_ROWS = 128


def rational(residue: int, modulus: int, bound: int) -> tuple[int, int] | None:
    """(n, d) with n = residue * d mod modulus, |n| <= bound, 0 < d <= bound; unique while 2 * bound**2 < modulus."""
    high, low = modulus, residue
    before, after = 0, 1
    while low > bound:
        step, rest = divmod(high, low)
        high, low = low, rest
        before, after = after, before - step * after
    if not 0 < abs(after) <= bound or math.gcd(low, after) != 1:
        return None
    return (low, after) if after > 0 else (-low, -after)


def ratio(view: View) -> Finding:
    """Every lane that shows fractions of small integers gives its image up to one factor; the table fixes the factor.

    Fractions of integers up to R are unique modulo more than 2 * R**2, which takes k limbs. Patent: any lane of each,
    R = max |PT|, so the first tried works; knowing PT then gives F = CT / PT, and with it the positions. Hardened:
    R = max |V|, and lane tuples are tried, M**k. Cost: one Euclid a distinct pixel value.
    """
    bound = view.plain_bound if view.per_image else view.value_bound
    limbs = view.limbs_beyond(2 * bound * bound)
    if limbs is None:
        return Finding("ratio", "fractions are not unique modulo all moduli together", outcome="inapplicable")
    if not view.per_image:
        return _in_true_lanes(view, limbs, bound)
    images: dict[int, Image] = {}
    ambiguous = 0
    for index in range(view.batch):
        # Any lanes do, but for one whose pixels have no inverse.
        for lanes in itertools.islice(itertools.product(range(view.lanes), repeat=len(limbs)), 16):
            if (scaled := _primitive(view, index, limbs, lanes, bound)) is None:
                continue
            plains = _scales(view, scaled)
            if len(plains) == 1 and (image := image_of(view, plains[0])) is not None:
                images[index] = image
            ambiguous += len(plains) > 1
            break
    shown = f"{len(limbs)} limb(s), no key material" + (f"; {ambiguous} images up to a factor" if ambiguous else "")
    return Finding("ratio", f"any lane of {shown}", images, positions_from_plain(view, images))


def _in_true_lanes(view: View, limbs: Sequence[int], bound: int) -> Finding:
    """Hardened profile: the lanes in which all pixels are small fractions of one."""
    tuples = view.lanes ** len(limbs)
    if tuples > MOST_TUPLES:
        return Finding("ratio", f"M**k = {tuples} tuples of {len(limbs)} limbs are not tried here; see small-value")
    moduli = [view.moduli[p] for p in limbs]
    for index in range(min(view.batch, _MOST_IMAGES)):
        rows = [view.ciphertext[p, index] for p in limbs]
        product = math.prod(moduli)
        usable = (i for i in range(view.size) if all(math.gcd(int(v), product) == 1 for r in rows for v in r[:, i]))
        at = next(usable, None)
        if at is None:
            continue
        pixels = np.linspace(0, view.size - 1, min(view.size, _MOST_PIXELS)).astype(np.int64)
        quotients = [r[:, pixels] * _inverses(r[:, at], b)[:, None] % b for r, b in zip(rows, moduli, strict=True)]
        _, found = search(Trials(moduli, quotients, [Fractions(bound)] * len(pixels)))
        for lanes in found[:_MOST_SURVIVORS]:
            positions: list[int | None] = [None] * len(view.moduli)
            for limb, lane in zip(limbs, lanes, strict=True):
                positions[limb] = int(lane)
            images, positions = opened(view, positions)
            if images:
                detail = f"true lanes only, by {len(limbs)} limb(s), M**k = {tuples}, no key material"
                return Finding("ratio", detail, images, positions)
    return Finding("ratio", f"M**k = {tuples} tuples of {len(limbs)} limbs: none shows small fractions alone")


def _inverses(values: np.ndarray, b: int) -> np.ndarray:
    return np.array([pow(int(v), -1, b) for v in values], np.int64)


def _primitive(view: View, image: int, limbs: Sequence[int], lanes: Sequence[int], bound: int) -> np.ndarray | None:
    """The image's integers divided by their common factor, object ``[C * H * W]``; None if they are not small."""
    moduli = [view.moduli[p] for p in limbs]
    product = math.prod(moduli)
    rows = np.stack([view.ciphertext[p, image, m] for p, m in zip(limbs, lanes, strict=True)])
    columns, inverse = np.unique(rows, axis=1, return_inverse=True)
    distinct = [int(v) % product for v in crt(columns, moduli)]
    if not any(distinct):
        return None
    unit = next((v for v in distinct if math.gcd(v, product) == 1), None)
    if unit is None:
        return None
    unit = pow(unit, -1, product)
    fractions = []
    common = 1
    for value in distinct:
        found = rational(value * unit % product, product, bound)
        if found is None or (common := math.lcm(common, found[1])) > bound:
            return None
        fractions.append(found)
    integers = [n * common // d for n, d in fractions]
    divisor = math.gcd(*integers)
    out = np.empty(len(integers), object)
    out[:] = [v // divisor for v in integers]
    if max(abs(v) for v in out) > bound:
        return None
    return out[inverse.reshape(-1)]


def _scales(view: View, primitive: np.ndarray) -> list[np.ndarray]:
    """Plain values of all multiples s * primitive that the table allows: patent profile."""
    at = int(abs(primitive).argmax())
    found: list[np.ndarray] = []
    for s in multipliers(view, int(primitive[at]), int(view.channel[at])):
        if in_table(view, primitive * s, view.channel):
            found.append((primitive * s).astype(np.int64))
        if len(found) > 1:
            break
    return found


def equality(view: View) -> Finding:
    """Which pixels are equal, and which are zero, by sight: equal PT of an image give equal residues in every lane.

    Compares pixels in many lanes together, so that no chance remains. In the hardened profile decoys are drawn anew
    for every pixel and hide this; what remains in its true lanes is found by ``statistics``.
    Cost: one pass over the ciphertext.
    """
    counts = [int(classes(view, index).max()) + 1 for index in range(view.batch)]
    zeros = int((view.ciphertext == 0).all(axis=(0, 2)).sum())
    visible = sum(count < view.size for count in counts)
    structure = f"equal pixels of {visible}/{view.batch} images" if visible else ""
    detail = f"{sum(counts)} classes in {view.size * view.batch} pixels, {zeros} zeros"
    return Finding("equality", detail, structure=structure)


def classes(view: View, image: int) -> np.ndarray:
    """int64 [C * H * W]: numbers 0, 1, ..; the same one for pixels of an image that are equal in every lane."""
    rows = view.ciphertext[:, image].reshape(-1, view.size)[:_MOST_ROWS]
    return np.unique(rows, axis=1, return_inverse=True)[1].reshape(-1)
