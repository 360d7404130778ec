"""Seeded ciphertexts: our expansion against the oracle and against SEAL's."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe import ops, reference
from mcfhe.errors import FormatError
from mcfhe.lattice import seal as boundary
from mcfhe.lattice.plan import make_ring
from tests.lattice.support import AnySeal
from tests.shapes import REFUSING, REFUSING_MODULUS


def as_tensor(seed: bytes) -> torch.Tensor:
    return torch.tensor(list(seed), dtype=torch.uint8)[None]


def test_blake2b_of_the_oracle_is_the_librarys() -> None:
    """Keyed and tree parameters that hashlib takes; the nodes' depth of 0 it does not take."""
    for key, data in ((b"k" * 64, b"counter!"), (b"\x07" * 64, b"")):
        want = hashlib.blake2b(data, key=key, digest_size=64, node_offset=4096 << 32).digest()
        blocks = [(key, 128), (data, 128 + len(data))] if data else [(key, 128)]
        assert reference.blake2b((64 | 64 << 8 | 1 << 16 | 1 << 24, 4096 << 32, 0), blocks) == want
    tree = hashlib.blake2b(b"x" * 64, fanout=3, depth=2, leaf_size=64, node_offset=5, node_depth=1, inner_size=64)
    assert reference.blake2b((64 | 3 << 16 | 2 << 24 | 64 << 32, 5, 1 | 64 << 8), [(b"x" * 64, 64)]) == tree.digest()


@pytest.mark.parametrize(("degree", "limbs"), [(64, 3), (1024, 2), (4096, 2), (8192, 6)])
def test_seeded_ciphertexts_are_seals(degree: int, limbs: int) -> None:
    """The same stream, loaded by SEAL and written out in full."""
    import tenseal.sealapi as sealapi

    seal = AnySeal(make_ring(degree, limbs))
    secret = seal.secret(seal.generate_secret())
    plaintext = sealapi.Plaintext()
    values = np.random.default_rng(1).uniform(-1, 1, degree // 2)
    seal.encoder.encode(values.tolist(), 2.0**20, plaintext)
    saved = boundary._saved(seal.encryptor(secret).encrypt_symmetric(plaintext))
    full = seal.residues(seal._loaded(sealapi.Ciphertext(), saved, "ciphertext"))
    first, seed = seal.seeded_residues(saved)
    assert np.array_equal(first, full[:, :degree])
    got = ops.expand_uniform(as_tensor(seed), torch.tensor(seal.ring.moduli), degree)
    assert got.dtype == torch.int32
    assert np.array_equal(got[:, 0].numpy(), full[:, degree:].astype(np.int64))
    again = np.concatenate([first, got[:, 0].numpy()], 1)
    assert np.abs(seal.decrypt(secret, again, 2.0**20) - values).max() < 0.01


@given(seeds=st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=2), n=st.sampled_from([1, 3, 8, 64]))
@settings(max_examples=8, deadline=None)
def test_expansion_equals_oracle(seeds: list[bytes], n: int) -> None:
    moduli = torch.tensor([2, 97, 1073741789, (1 << 31) - 1])
    rows = torch.cat([as_tensor(seed) for seed in seeds])
    assert torch.equal(ops.expand_uniform(rows, moduli, n), reference.expand_uniform(rows, moduli, n))


def test_seeds_may_lie_anywhere_in_memory() -> None:
    moduli, raw = torch.tensor([1073741789]), torch.arange(200, dtype=torch.uint8)
    for start in (1, 3, 8):
        view = raw[start : start + 128].view(2, 64)
        assert torch.equal(ops.expand_uniform(view, moduli, 8), ops.expand_uniform(view.clone(), moduli, 8))
    strided = raw[:192].view(64, 3).T
    assert torch.equal(ops.expand_uniform(strided, moduli, 8), ops.expand_uniform(strided.contiguous(), moduli, 8))


def test_expansion_past_one_refill() -> None:
    """More words than the kernel makes at once."""
    seed = as_tensor(bytes(range(64)))
    moduli = torch.tensor([1073741789])
    assert torch.equal(ops.expand_uniform(seed, moduli, 5000), reference.expand_uniform(seed, moduli, 5000))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_refused_words_are_replaced(device: str) -> None:
    """By the words behind all rows, whatever the other seeds of the call."""
    seeds = torch.cat([as_tensor(bytes(64)), *(as_tensor(seed) for seed, _, _ in REFUSING)])
    moduli = torch.full((7,), REFUSING_MODULUS)
    got = ops.expand_uniform(seeds.to(device), moduli.to(device), 512).cpu()
    for number, (seed, limb, place) in enumerate(REFUSING, 1):
        stream = list(itertools.islice(reference.seed_stream(seed), 7 * 512 + 1))
        replaced = stream[512 * limb + place]
        assert replaced >= (1 << 64) - REFUSING_MODULUS
        stream[512 * limb + place] = stream[-1]
        want = torch.tensor([word % REFUSING_MODULUS for word in stream[:-1]])
        assert torch.equal(got[:, number].flatten().long(), want)


def test_expansion_is_uniform_and_depends_on_every_seed_bit() -> None:
    moduli = torch.tensor([1073741789, 257])
    seeds = torch.zeros(3, 64, dtype=torch.uint8)
    seeds[1, 0], seeds[2, 63] = 1, 128
    x = ops.expand_uniform(seeds, moduli, 32768)
    assert x.shape == (2, 3, 32768)
    assert len({tuple(row[:8].tolist()) for row in x[0]}) == 3
    assert int(x.min()) >= 0
    assert bool((x.amax((1, 2)) < moduli).all())
    counts = torch.bincount(x[1].flatten(), minlength=257).double()
    expected = 3 * 32768 / 257
    assert float(((counts - expected) ** 2 / expected).sum()) < 256 + 6 * (2 * 256) ** 0.5  # chi-square, 6 sigma


def test_refuses_arguments() -> None:
    good, moduli = torch.zeros(2, 64, dtype=torch.uint8), torch.tensor([97])
    for seeds, basis, n, match in (
        (good[:, :63], moduli, 8, r"seeds has shape \[2, 63\]"),
        (good.int(), moduli, 8, "must be uint8"),
        (good[0], moduli, 8, r"\[count, 64\]"),
        (good, moduli.int(), 8, "moduli must be int64|moduli"),
        (good, torch.tensor([1]), 8, "modul"),
        (good, torch.tensor([1 << 31]), 8, "modul"),
        (good, moduli, 0, r"n = 0 must lie in 1\.\.32768"),
        (good, moduli, 40000, "n = 40000"),
    ):
        with pytest.raises(Exception, match=match):
            ops.expand_uniform(seeds, basis, n)
    assert ops.expand_uniform(good[:0], moduli, 8).shape == (1, 0, 8)


def test_refuses_streams_that_are_not_seeded() -> None:
    seal = AnySeal(make_ring(64, 2))
    secret = seal.secret(seal.generate_secret())
    full = boundary._saved(seal.ciphertext(seal.encrypt(seal.encryptor(secret), np.zeros(32), 2.0**20), 2.0**20))
    with pytest.raises(FormatError, match="a seeded one of degree 64"):
        seal.seeded_residues(full)
