"""Attack ``reaction``: a client that tells the server which responses fail to decrypt tells it the lane positions.

Adaptive chosen-ciphertext attack in the manner of D. Bleichenbacher ("Chosen ciphertext attacks against protocols
based on RSA encryption standard PKCS #1", CRYPTO 1998). The server alters some lanes of a response: the client
notices if and only if the true lane is among them. It needs a talkative client, so ``audit`` of a request
alone does not run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from mcfhe.modular.audit.report import Finding
from mcfhe.modular.audit.values import decode
from mcfhe.modular.audit.view import View
from mcfhe.wire import Response


def reaction(view: View, response: Response, accepts: Callable[[Response], bool]) -> Finding:
    """Lane positions by halving: ``accepts`` says whether the client decrypted a response without an error.

    response: an honest response to a request of ``view``. Cost: about N * log2(M) responses. Redundancy costs r + N
    more: enough limbs are damaged in all lanes first that the next one makes the difference.
    """
    asked = 0

    def notices(damage: dict[int, Sequence[int]]) -> bool:
        nonlocal asked
        asked += 1
        return not accepts(damaged(response, view.moduli, damage))

    everything = range(view.lanes)
    count = len(view.moduli)
    spare = 0
    while spare < count and not notices(dict.fromkeys(range(spare + 1), everything)):
        spare += 1
    if spare == count:
        return Finding("reaction", f"the client accepted every one of {asked} damaged responses")
    positions: list[int | None] = []
    for limb in range(count):
        base = dict.fromkeys([p for p in range(count) if p != limb][:spare], everything)
        low, high = 0, view.lanes
        while high - low > 1:
            middle = (low + high) // 2
            if notices({**base, limb: range(low, middle)}):
                high = middle
            else:
                low = middle
        positions.append(low)
    detail = f"{asked} damaged responses to a client that says which ones fail"
    return Finding("reaction", detail, decode(view, positions), positions)


def damaged(response: Response, moduli: Sequence[int], damage: dict[int, Sequence[int]]) -> Response:
    """The response with 1 added, modulo b_p, to all scores in some lanes of some limbs."""
    residues = response.residues.clone()
    for limb, lanes in damage.items():
        for lane in lanes:
            residues[limb, :, lane :: response.lanes] += 1
        residues[limb] %= moduli[limb]
    return dataclasses.replace(response, residues=torch.as_tensor(residues))
