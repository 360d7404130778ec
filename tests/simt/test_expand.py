"""expand_uniform against the Python-integer oracle. Equality is exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from harness import Driver

from mcfhe import reference
from tests.shapes import REFUSING, REFUSING_MODULUS
from tests.simt.cases import MODULI, Buffers, sizes
from tests.simt.oracle import ints


def words(seeds: bytes) -> list[int]:
    """As a buffer: 64 bytes a seed, eight numbers."""
    return np.frombuffer(seeds, "<i8").tolist()


def residues(answer: np.ndarray, count: int, offset: int = 0) -> torch.Tensor:
    return torch.from_numpy(answer.astype("<i8").view("<i4")[offset : offset + count].astype(np.int32))


def expected(seeds: bytes, moduli: list[int], n: int) -> torch.Tensor:
    rows = torch.frombuffer(bytearray(seeds), dtype=torch.uint8).view(-1, 64)
    return reference.expand_uniform(rows, torch.tensor(moduli), n)


@pytest.mark.parametrize(
    ("n", "limbs", "count", "odd"),
    [
        (8, 2, 1, 0),  # far less than an output
        (8, 2, 1, 1),  # rows that may not be written four residues at a time
        (1, 3, 2, 0),
        (13, 8, 2, 0),
        (520, 1, 2, 0),  # a limb that ends within an output
        (511, 2, 1, 0),
        (256, 1, 66, 0),  # more seeds than a block makes outputs
        (1024, 2, 1, 0),
    ],
)
def test_expand_uniform(driver: Driver, n: int, limbs: int, count: int, odd: int) -> None:
    seeds, moduli = np.random.default_rng(n).bytes(64 * count), list(MODULI[:limbs])
    buffers: Buffers = {"seeds": words(seeds), "moduli": moduli}
    numbers = sizes(limbs=limbs, count=count, n=n, y_words=odd, schedule=n % 4)
    got = residues(driver.launch("expand_uniform", numbers, buffers), limbs * count * n, odd)
    if count > 2:  # the oracle takes its time
        picked = [0, 63, 64, 65]
        got = got.view(limbs, count, n)[:, picked].flatten()
        seeds = b"".join(seeds[64 * i : 64 * i + 64] for i in picked)
    assert torch.equal(got, expected(seeds, moduli, n).flatten())


def test_a_refused_word(driver: Driver) -> None:
    """Found by search: one word in 2^33 is refused."""
    seed, limb, place = REFUSING[0]
    n, moduli = 512, [REFUSING_MODULUS] * (limb + 1)
    stream = reference.seed_stream(seed)
    drawn = [next(stream) for _ in range(n * (limb + 1) + 1)]
    numbers = sizes(limbs=limb + 1, count=2, n=n)
    buffers: Buffers = {"seeds": words(bytes(64) + seed), "moduli": moduli}
    got = residues(driver.launch("expand_uniform", numbers, buffers), 2 * n * (limb + 1)).view(-1, 2, n)
    assert int(got[limb, 1, place]) == drawn[-1] % REFUSING_MODULUS != drawn[n * limb + place] % REFUSING_MODULUS
    assert torch.equal(got[:, 1:], expected(seed, moduli, n))


@pytest.mark.parametrize("planted", [(), (0,), (5, 6, 7), (0, 255, 256, 700, 1199), tuple(range(0, 1200, 100))])
def test_many_refused_words(driver: Driver, planted: tuple[int, ...]) -> None:
    """More than chance will ever give: in the order of the rows they take the words behind all rows."""
    n, limbs = 600, 2
    seeds, moduli = np.random.default_rng(7).bytes(192), [int(b) for b in MODULI[2:4]]

    def behind(seed: bytes) -> Iterator[int]:
        stream = reference.seed_stream(seed)
        for _ in range(n * limbs):
            next(stream)
        yield from stream

    rng = np.random.default_rng(1)
    y = np.stack([rng.integers(0, b, (3, n)) for b in moduli]).astype("<i4")
    want = y.copy()
    for row in (0, 2):  # the seed between them has nothing refused
        stream = behind(seeds[64 * row : 64 * row + 64])
        for place in planted:
            y[place // n, row, place % n] = -1
            want[place // n, row, place % n] = next(stream) % moduli[place // n]
    buffers: Buffers = {
        "seeds": words(seeds),
        "moduli": ints(moduli),
        "refused": [len(planted), 0, len(planted)],
        "y": y.reshape(-1).view("<i8").tolist(),
    }
    numbers = sizes(limbs=limbs, count=3, n=n, schedule=len(planted) % 4)
    got = residues(driver.launch("replace_refused", numbers, buffers), y.size)
    assert torch.equal(got, torch.from_numpy(want.astype(np.int32)).flatten())


def test_nothing_in_nothing_out(driver: Driver) -> None:
    for limbs, count in ((0, 1), (1, 0)):
        buffers: Buffers = {"seeds": [0] * 8 * count, "moduli": [97] * limbs}
        for op in ("expand_uniform", "replace_refused"):
            sent = buffers | {"refused": [0] * count, "y": []}
            assert driver.launch(op, sizes(limbs=limbs, count=count, n=8), sent).size == 0
