"""What SECURITY.md says of clients that hand decrypted scores back: one response gives an active server the key."""

from __future__ import annotations

import numpy as np
import torch

from mcfhe.lattice import seal as boundary
from mcfhe.lattice.plan import make_ring
from mcfhe.lattice.ring import ntt_tables
from mcfhe.ops import ntt
from tests.lattice.support import AnySeal


def test_two_made_up_scores_that_come_back_are_the_secret_key() -> None:
    """(c0, c1) = (0, 2^15 X^k) decrypts to 2^15 X^k s: for k = 0 and n / 2 the real and imaginary parts of s's slots,
    all of them small, so no bound on scores stands in the way."""
    n, factor, scale = 64, 1 << 15, 2.0**20
    seal = AnySeal(make_ring(n, 2))
    data = seal.generate_secret()
    secret = seal.secret(data)
    q = seal.ring.moduli[0]
    moduli, tables = torch.tensor([q]), ntt_tables([q], n)
    root_powers = [pow(3, slot, 2 * n) for slot in range(n // 2)]  # SEAL's slots: values at exp(i pi 3^slot / n)
    seen, system = [], []
    for k in (0, n // 2):
        monomial = torch.zeros(1, n, dtype=torch.int64)
        monomial[0, k] = factor
        response = np.concatenate([np.zeros((1, n)), ntt(monomial, tables, moduli).numpy()], 1).astype(np.uint32)
        scores = seal.decrypt(secret, response, scale)
        assert np.abs(scores).max() < 4
        seen.append(scores * scale / factor)
        system.append(np.cos(np.pi / n * np.outer(root_powers, np.arange(n) + k)))
    found = np.rint(np.linalg.solve(np.concatenate(system), np.concatenate(seen))).astype(np.int64)
    words = np.frombuffer(boundary._unwrapped(data)[-8 * 3 * n :], "<u8").astype(np.int64)[:n]
    truth = ntt(torch.from_numpy(words[None].copy()), tables, moduli, inverse=True)[0].numpy()
    assert np.array_equal(found, np.where(truth > q // 2, truth - q, truth))
    assert set(found.tolist()) == {-1, 0, 1}
