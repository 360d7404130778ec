"""The lattice ops against SEAL's own evaluator, limb for limb."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcfhe import ops
from mcfhe.lattice import ring
from tests.seal_support import Seal, sealapi

# Ring degree and prime widths, special prime last: all the widths in use, few and many limbs.
CONTEXTS = [
    (1024, (30, 31)),
    (1024, (31, 30, 20, 29, 31, 30)),
    (2048, (31, 30, 30, 31)),
    (4096, (28, 31, 30, 31)),
    (8192, (31, 30, 30, 30, 30, 30, 31)),
]


@functools.cache
def context(n: int, bits: tuple[int, ...]) -> Seal:
    return Seal(n, list(bits))


@pytest.mark.parametrize(("n", "bits"), [*CONTEXTS, (16384, (31, 30, 31)), (32768, (31, 31))])
def test_primes_are_those_seal_creates(n: int, bits: tuple[int, ...]) -> None:
    assert ring.ntt_primes(n, bits) == tuple(m.value() for m in sealapi.CoeffModulus.Create(n, list(bits)))


class Level:
    """One context at one level, and random residues in it."""

    def __init__(self, data: st.DataObject, least: int = 1) -> None:
        n, bits = data.draw(st.sampled_from([c for c in CONTEXTS if len(c[1]) > least]))
        self.seal = context(n, bits)
        self.limbs = data.draw(st.integers(least, len(bits) - 1))
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
        self.moduli = self.seal.moduli(self.limbs)
        self.tables = ring.ntt_tables(self.moduli, n)

    def random(self, components: int) -> Tensor:
        return self.seal.random(self.limbs, components, self.generator)

    def relinearise(self, x: Tensor) -> Tensor:
        moduli = self.seal.moduli(self.limbs, special=True)
        return ops.relinearise(x, self.seal.keys(self.limbs), ring.ntt_tables(moduli, self.seal.n), moduli)


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_ntt_is_seals(data: st.DataObject) -> None:
    level = Level(data)
    x = level.random(2)
    ciphertext = level.seal.ciphertext(x)
    level.seal.evaluator.transform_from_ntt_inplace(ciphertext)
    coefficients = Seal.residues(ciphertext)
    assert torch.equal(ops.ntt(x, level.tables, level.moduli, inverse=True), coefficients)
    level.seal.evaluator.transform_to_ntt_inplace(ciphertext)
    assert torch.equal(ops.ntt(coefficients, level.tables, level.moduli), Seal.residues(ciphertext))


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_square_is_seals(data: st.DataObject) -> None:
    level = Level(data)
    x = level.random(2)
    ciphertext = level.seal.ciphertext(x)
    level.seal.evaluator.square_inplace(ciphertext)
    assert torch.equal(ops.tensor_square(x, level.moduli), Seal.residues(ciphertext))


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_relinearise_is_seals(data: st.DataObject) -> None:
    level = Level(data)
    x = level.random(3)
    ciphertext = level.seal.ciphertext(x)
    level.seal.evaluator.relinearize_inplace(ciphertext, level.seal.relin_keys)
    assert torch.equal(level.relinearise(x), Seal.residues(ciphertext))


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_rescale_is_seals(data: st.DataObject) -> None:
    level = Level(data, least=2)
    x = level.random(data.draw(st.integers(2, 3)))
    ciphertext = level.seal.ciphertext(x)
    level.seal.evaluator.rescale_to_next_inplace(ciphertext)
    assert torch.equal(ops.rescale(x, level.tables, level.moduli), Seal.residues(ciphertext))


@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_multiply_relinearise_rescale_is_seals(data: st.DataObject) -> None:
    """Several ciphertexts in one tensor, each against SEAL by itself."""
    level = Level(data, least=2)
    x = torch.stack([level.random(2) for _ in range(3)], 1).unsqueeze(1)
    y = ops.rescale(level.relinearise(ops.tensor_square(x, level.moduli)), level.tables, level.moduli)
    for i in range(3):
        ciphertext = level.seal.ciphertext(x[:, 0, i])
        level.seal.evaluator.square_inplace(ciphertext)
        level.seal.evaluator.relinearize_inplace(ciphertext, level.seal.relin_keys)
        level.seal.evaluator.rescale_to_next_inplace(ciphertext)
        assert torch.equal(y[:, 0, i], Seal.residues(ciphertext))
