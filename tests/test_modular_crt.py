"""Chinese remaindering against plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.modular.crt import crt, crt_basis
from mcfhe.modular.csprng import RandomStream
from mcfhe.modular.params import Moduli, draw_primes

LARGEST = 2**31 - 1
BASES = [(2,), (3,), (2, 3), (LARGEST,), (2, LARGEST), (4, 9, 25, 49), (LARGEST, 2**31 - 2, 2**31 - 3), (6, 35, 143)]


def plain_crt(residues: list[int], moduli: tuple[int, ...]) -> int:
    """Successive substitution, then the representative in (-B/2, B/2]."""
    value, product = 0, 1
    for r, b in zip(residues, moduli, strict=True):
        value += product * ((r - value) * pow(product, -1, b) % b)
        product *= b
    return value - product if 2 * value > product else value


def primes(count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(draw_primes(RandomStream(bytes(32)), 30, 2), count))


@pytest.mark.parametrize("moduli", BASES)
def test_small_bases(moduli: tuple[int, ...]) -> None:
    product = math.prod(Moduli(moduli))
    half = product // 2
    low = half - product + 1
    values = sorted({v for v in (*range(-40, 41), low, low + 1, half - 1, half) if low <= v <= half})
    residues = np.array([[v % b for v in values] for b in moduli])
    assert crt(residues, moduli).tolist() == values


@pytest.mark.parametrize("moduli", [(2, 3, 5), (4, 9), (3, 5, 7), (2, 15, 7)])
def test_every_residue_of_tiny_bases(moduli: tuple[int, ...]) -> None:
    """Both ends of (-B/2, B/2] among them, for even and odd B."""
    product = math.prod(moduli)
    values = range(-((product - 1) // 2), product // 2 + 1)
    residues = np.array([[v % b for v in values] for b in moduli])
    assert crt(residues, moduli).tolist() == list(values)


@pytest.mark.parametrize("limbs", [1, 2, 16, 33, 300])
def test_random_residues(limbs: int) -> None:
    moduli = primes(limbs)
    residues = RandomStream.from_os().uniform_residues(moduli, (3, 4))
    residues[:, 0, 0] = 0
    residues[:, 0, 1] = np.array(moduli) - 1
    found = crt(residues, moduli)
    assert found.shape == (3, 4)
    for i, j in np.ndindex(3, 4):
        assert found[i, j] == plain_crt(residues[:, i, j].tolist(), moduli)
        assert type(found[i, j]) is int


@pytest.mark.parametrize("limbs", [16, 300])
def test_ends_of_the_range(limbs: int) -> None:
    moduli = primes(limbs)
    half = math.prod(moduli) // 2
    values = [half, half - 1, -half, 1 - half, 0, -1, 1]
    residues = np.array([[v % b for v in values] for b in moduli])
    assert crt(residues, moduli).tolist() == values


def test_largest_moduli_many_limbs() -> None:
    """Moduli just below 2^31: the largest sums that the float64 products must hold exactly."""
    moduli: list[int] = []
    candidate = LARGEST
    while len(moduli) < 64:
        if all(math.gcd(candidate, b) == 1 for b in moduli):
            moduli.append(candidate)
        candidate -= 1
    residues = np.array([[b - 1, b - 2, b // 2] for b in moduli])
    assert crt(residues, moduli).tolist() == [plain_crt(column.tolist(), tuple(moduli)) for column in residues.T]


def test_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    moduli = primes(5)
    residues = RandomStream.from_os().uniform_residues(moduli, (50,))
    whole = crt(residues, moduli).tolist()
    monkeypatch.setattr("mcfhe.modular.crt._CHUNK_ENTRIES", 40)
    assert crt(residues, moduli).tolist() == whole


def test_empty() -> None:
    assert crt(np.zeros((2, 0), np.int64), (3, 5)).tolist() == []
    assert crt_basis((3, 5)).reconstruct(np.zeros((2, 0), np.int64)) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    pool = [2, 3, 5, 7, 121, 169, 289, 2**16 + 1, 2**30 - 35, LARGEST]
    moduli = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8, unique=True))
    product = math.prod(Moduli(moduli))
    span = st.integers(-((product - 1) // 2), product // 2)
    values = data.draw(st.lists(span, min_size=1, max_size=5))
    residues = np.array([[v % b for v in values] for b in moduli])
    assert crt(residues, moduli).tolist() == values
