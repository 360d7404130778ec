"""Attack ``constant``: a few known pixels, such as padding or background, give the lane positions."""

from __future__ import annotations

import numpy as np

from mcfhe.modular.audit.fitting import positions_that_fit
from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import opened
from mcfhe.modular.audit.view import UNKNOWN, View


def constant(view: View) -> Finding:
    """The lane whose residues at known pixels are a known integer plus small noise is the true one.

    Patent: CT / PT = F with F - a * Delta in [0, span); a decoy lane fits with probability span / b_p an image.
    Hardened: CT - a * PT in [0, span); a decoy fits with probability span / b_p a known pixel, so that fresh decoys
    for every pixel make it easier, not harder. PK is not used. Cost: N * M a known pixel; where the noise may take
    more values than b_p has, the same for tuples of the fewest limbs that hold it.
    """
    known = view.known != UNKNOWN
    if not known.any():
        return Finding("constant", "no known pixels were given", outcome="skipped")
    plain = np.full((view.batch, view.size), np.iinfo(np.int64).min, np.int64)
    for channel, row in enumerate(view.table):
        mask = known & (view.channel == channel)
        plain[mask] = np.array(row, np.int64)[view.known[mask]]
    found = positions_that_fit(view, plain)
    direct = sum(w is not None for w in found)
    detail = f"{int(known.sum())} known pixels gave {direct} positions, V the others"
    return Finding("constant", detail, *opened(view, found))
