"""The lattice kernels against Python integers, every shape of transform. Equality is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from harness import Driver, SimtError

from tests.simt import lattice_oracle as lattice
from tests.simt.cases import BIG, MODULI, Buffers, random_residues, same, sizes
from tests.simt.oracle import Ints, ints

# Every first pass below 512 values, between 512 and 8192, one part, two parts, four parts.
DEGREES = (8, 16, 32, 64, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def edges(rng: np.random.Generator, moduli: Sequence[int], shape: Sequence[int]) -> Ints:
    """Residues of which the first row is all q - 1: the largest sums of a transform."""
    x = random_residues(rng, moduli, shape)
    for limb, q in enumerate(moduli):
        x[limb].reshape(-1, shape[-1])[0] = q - 1
    return x


def bits(n: int, limbs: int) -> tuple[int, ...]:
    """Widths of primes: the largest there are, and the smallest that hold a transform of n."""
    return (31, 31, max(18, n.bit_length() + 3), 30, 31, 29)[:limbs]


@pytest.mark.parametrize("n", [8, 64, 128])
def test_the_oracle_agrees_with_the_definition(n: int) -> None:
    q = lattice.primes(n, (31,))[0]
    x = random_residues(np.random.default_rng(n), (q,), (2, n))[0]
    y = lattice._halves(x, q, lattice.powers(q, n)[1::2])[:, np.array(lattice.bit_reversed(n))]
    assert all((y[:, i] == lattice.evaluate(x, q, n, i)).all() for i in range(n))
    assert same(lattice.intt(lattice.ntt(x, q), q), x)


@pytest.mark.parametrize("n", DEGREES)
def test_ntt(driver: Driver, n: int) -> None:
    limbs, runs = (3, 3) if n < 1024 else (2, 1)
    moduli = lattice.primes(n, bits(n, limbs))
    x = edges(np.random.default_rng(n), moduli, (runs, n))
    buffers: Buffers = {"x": x, "tables": lattice.tables(moduli, n), "moduli": ints(moduli)}
    numbers = sizes(limbs=limbs, runs=runs, n=n, schedule=n.bit_length() % 4)
    expected = np.stack([lattice.ntt(x[limb], q) for limb, q in enumerate(moduli)])
    assert same(driver.launch("ntt", numbers | sizes(inverse=0), buffers), expected)
    assert same(driver.launch("ntt", numbers | sizes(inverse=1), buffers | {"x": expected}), x)


@pytest.mark.parametrize("n", [8, 64, 1024, 8192, 16384, 32768])
def test_rescale(driver: Driver, n: int) -> None:
    limbs, runs = (4, 3) if n <= 64 else (2, 2 if n == 1024 else 1)
    moduli = lattice.primes(n, bits(n, limbs))
    x = edges(np.random.default_rng(n), moduli, (runs, n))
    buffers: Buffers = {"x": x, "tables": lattice.tables(moduli, n), "moduli": ints(moduli)}
    numbers = sizes(limbs=limbs, runs=runs, n=n, schedule=n.bit_length() % 4)
    assert same(driver.launch("rescale", numbers, buffers), lattice.rescale(x, moduli))


@pytest.mark.parametrize(
    ("n", "limbs", "positions"),
    [
        (8, 1, 1),
        (8, 5, 3),
        (16, 3, 2),
        (64, 4, 2),
        (256, 2, 1),
        (2048, 1, 1),
        (8192, 2, 1),
        (16384, 1, 1),
        (32768, 1, 1),
    ],
)
def test_relinearise(driver: Driver, n: int, limbs: int, positions: int) -> None:
    moduli = lattice.primes(n, bits(n, limbs + 1))
    rng = np.random.default_rng(n + limbs)
    x = edges(rng, moduli[:-1], (positions, 3, n))
    keys = edges(rng, moduli, (2 * limbs, n)).reshape(limbs + 1, 2, limbs, n).transpose(2, 1, 0, 3)
    buffers: Buffers = {"x": x, "keys": keys, "tables": lattice.tables(moduli, n), "moduli": ints(moduli)}
    numbers = sizes(limbs=limbs, positions=positions, n=n, schedule=n.bit_length() % 4)
    assert same(driver.launch("relinearise", numbers, buffers), lattice.relinearise(x, keys, moduli))


@pytest.mark.parametrize("largest", [False, True])
def test_the_largest_sums_with_keys(driver: Driver, largest: bool) -> None:
    """Twenty digits: products of the largest residues pass 2^64 unless the sum is reduced on the way."""
    n, limbs = 8, 20
    moduli = lattice.primes(n, (31,) * (limbs + 1))
    rng = np.random.default_rng(1)
    x = edges(rng, moduli[:-1], (1, 3, n))
    keys = np.stack([np.broadcast_to(ints(moduli)[:, None] - 1, (limbs + 1, n))] * 2 * limbs)
    keys = keys.reshape(limbs, 2, limbs + 1, n) - (0 if largest else 1)
    buffers: Buffers = {"x": x, "keys": keys, "tables": lattice.tables(moduli, n), "moduli": ints(moduli)}
    numbers = sizes(limbs=limbs, positions=1, n=n)
    assert same(driver.launch("relinearise", numbers, buffers), lattice.relinearise(x, keys, moduli))


@pytest.mark.parametrize("n", [1, 3, 4, 64, 1030])
@pytest.mark.parametrize("offset", [0, 1])
def test_tensor_square(driver: Driver, n: int, offset: int) -> None:
    channels, positions = (3, 2) if n < 1030 else (1, 1)
    rng = np.random.default_rng(n)
    x = random_residues(rng, MODULI, (channels, positions, 2, n))
    numbers = sizes(limbs=len(MODULI), channels=channels, positions=positions, n=n, schedule=n % 4)
    numbers |= sizes(x_offset=offset, y_offset=offset)
    for shift_rows, rows in ((0, 0), (1, 0), (channels, channels), (0, 1)):
        shift = random_residues(rng, MODULI, (shift_rows,)) if shift_rows else None
        coefficients = random_residues(rng, MODULI, (rows, 3)) if rows else None
        strides = sizes(shift_stride=int(shift_rows > 1), coefficients_stride=3 if rows > 1 else 0)
        buffers: Buffers = {"x": x, "shift": shift, "coefficients": coefficients, "moduli": ints(MODULI)}
        got = driver.launch("tensor_square", numbers | strides, buffers)
        assert same(got, lattice.tensor_square(x, shift, coefficients, MODULI))


@pytest.mark.parametrize(
    ("n", "height", "width", "pool"),
    [
        (1, 2, 2, (2, 2)),
        (2, 9, 5, (9, 5)),
        (3, 5, 7, (2, 3)),
        (4, 4, 4, (4, 4)),
        (64, 4, 2, (3, 1)),
        (1030, 2, 3, (2, 2)),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_tensor_square_and_its_pool(
    driver: Driver, n: int, height: int, width: int, pool: tuple[int, int], offset: int
) -> None:
    channels = 3 if n < 1030 else 1
    rng = np.random.default_rng(n)
    numbers = sizes(limbs=len(MODULI), channels=channels, positions=height * width, n=n, schedule=n % 4, width=width)
    numbers |= sizes(pool_h=pool[0], pool_w=pool[1], x_offset=offset, y_offset=offset)
    for largest, shift_rows, rows in ((0, 0, 0), (0, 1, 0), (0, channels, channels), (1, 0, 1), (1, 1, 0)):
        x = random_residues(rng, MODULI, (channels, height * width, 2, n))
        if largest:
            x = np.broadcast_to(ints(MODULI).reshape(-1, *[1] * 4) - 1, x.shape).copy()
        shift = random_residues(rng, MODULI, (shift_rows,)) if shift_rows else None
        coefficients = random_residues(rng, MODULI, (rows, 3)) if rows else None
        strides = sizes(shift_stride=int(shift_rows > 1), coefficients_stride=3 if rows > 1 else 0)
        buffers: Buffers = {"x": x, "shift": shift, "coefficients": coefficients, "moduli": ints(MODULI)}
        squares = lattice.tensor_square(x, shift, coefficients, MODULI)
        expected = lattice.window_sums(squares, width, pool, MODULI)
        assert same(driver.launch("tensor_square_pool", numbers | strides, buffers), expected)


@pytest.mark.parametrize(("stream", "head"), [(1, 0), (4, 2), (6, 3), (5, 2), (64, 32), (512, 511)])
@pytest.mark.parametrize("offset", [0, 1])
def test_add_const_to_the_first_streams(driver: Driver, stream: int, head: int, offset: int) -> None:
    channels, positions = 3, 2
    rng = np.random.default_rng(stream)
    x = random_residues(rng, MODULI, (channels, positions, stream))
    numbers = sizes(limbs=len(MODULI), channels=channels, inner=positions * stream, stream=stream, head=head)
    numbers |= sizes(x_offset=offset, y_offset=offset)
    for rows in (1, channels):
        constant = random_residues(rng, MODULI, (rows,))
        expected = x.copy()
        expected[..., :head] = (x + constant[:, :, None, None])[..., :head] % ints(MODULI)[:, None, None, None]
        buffers: Buffers = {"x": x, "constant": constant, "moduli": ints(MODULI)}
        got = driver.launch("add_const", numbers | sizes(channel_stride=int(rows > 1)), buffers)
        assert same(got, expected)


def test_nothing_in_nothing_out(driver: Driver) -> None:
    moduli = lattice.primes(8, (31, 31))
    buffers: Buffers = {"x": [], "tables": lattice.tables(moduli, 8), "moduli": ints(moduli)}
    assert driver.launch("ntt", sizes(limbs=2, runs=0, n=8, inverse=0), buffers).size == 0
    assert driver.launch("rescale", sizes(limbs=2, runs=0, n=8), buffers).size == 0
    with_keys = buffers | {"keys": [0] * 32}
    assert driver.launch("relinearise", sizes(limbs=1, positions=0, n=8), with_keys).size == 0
    square = sizes(limbs=1, channels=0, positions=1, n=8, shift_stride=0, coefficients_stride=0)
    assert driver.launch("tensor_square", square, {"x": [], "moduli": [BIG]}).size == 0
    pooled = square | sizes(width=1, pool_h=1, pool_w=1)
    assert driver.launch("tensor_square_pool", pooled, {"x": [], "moduli": [BIG]}).size == 0


@pytest.mark.parametrize("numbers", [sizes(n=4), sizes(n=24), sizes(n=65536), sizes(n=8, x_offset=1)])
def test_what_no_kernel_can_do_is_refused(driver: Driver, numbers: dict[str, int]) -> None:
    moduli = lattice.primes(8, (31,))
    buffers: Buffers = {"x": [0] * 8, "tables": lattice.tables(moduli, 8), "moduli": ints(moduli)}
    with pytest.raises(SimtError, match="launch refused"):
        driver.launch("ntt", sizes(limbs=1, runs=1, inverse=0) | numbers, buffers)


def test_more_positions_than_a_chunk(driver: Driver) -> None:
    """65,537 positions or runs: a grid holds 65,535. Only the first and last blocks of each launch run."""
    count, n = 65_537, 8
    moduli = lattice.primes(n, (31, 30))
    rng = np.random.default_rng(3)
    at = [0, 65_534, 65_535, 65_536]
    few = edges(rng, moduli[:-1], (len(at), 3, n))
    keys = edges(rng, moduli, (2, n)).reshape(2, 2, 1, n).transpose(2, 1, 0, 3)
    x = np.zeros((1, count, 3, n), dtype=np.int64)
    x[:, at] = few
    buffers: Buffers = {"x": x, "keys": keys, "tables": lattice.tables(moduli, n), "moduli": ints(moduli)}
    numbers = sizes(limbs=1, positions=count, n=n, edge_blocks=1, schedule=1)
    got = driver.launch("relinearise", numbers, buffers).reshape(1, count, 2, n)[:, at]
    assert same(got, lattice.relinearise(few, keys, moduli))
    few = edges(rng, moduli, (len(at), n))
    x = np.zeros((2, count, n), dtype=np.int64)
    x[:, at] = few
    numbers = sizes(limbs=2, runs=count, n=n, edge_blocks=1, schedule=1)
    got = driver.launch("rescale", numbers, buffers | {"x": x}).reshape(1, count, n)[:, at]
    assert same(got, lattice.rescale(few, moduli))
