"""Beyond 2^31 entries: buffers of unbacked address space, and only the first and the last block of each launch."""

from __future__ import annotations

import itertools

import pytest
from harness import Driver, Host, SimtError, Sparse

from mcfhe import reference
from tests.simt import lattice_oracle
from tests.simt.cases import ARITHMETIC, BIG, TILES, Buffers, Numbers, sizes


def launch(driver: Driver, op: str, numbers: Numbers, buffers: Buffers) -> list[int]:
    try:
        return [int(value) for value in driver.launch(op, numbers | sizes(edge_blocks=1), buffers)]
    except SimtError as error:
        if "address space" in str(error) or "bad_alloc" in str(error):
            pytest.skip(f"this machine does not reserve that much address space: {error}")
        raise


@pytest.mark.parametrize("columns", [2**31 + 78, 3 * 2**31 + 1])
def test_square(driver: Driver, columns: int) -> None:
    last = columns - 1
    x = Sparse(columns, {0: 3, last: BIG - 2})
    numbers = sizes(limbs=1, channels=1, inner=columns)
    assert launch(driver, "square", numbers, {"x": x, "moduli": [BIG], "at": Host([0, last])}) == [9, 4]


def test_add_const_over_rows(driver: Driver) -> None:
    """Two channels of more than 2^31 entries each, in two limbs: the last entry lies beyond 2^33."""
    inner = 2**31 + 3
    last = 4 * inner - 1
    buffers: Buffers = {
        "x": Sparse(4 * inner, {last: 5}),
        "constant": [1, 2, 3, 4],
        "moduli": [BIG, 11],
        "at": Host([last]),
    }
    numbers = sizes(limbs=2, channels=2, inner=inner, channel_stride=1)
    assert launch(driver, "add_const", numbers, buffers) == [9]


@pytest.mark.parametrize(
    ("arithmetic", "tile"),
    [("double", "large"), ("double", "small"), ("int64", "medium"), ("mid_sum", "direct"), ("int8", "any")],
)
def test_conv2d(driver: Driver, arithmetic: str, tile: str) -> None:
    stream = 2**31 + 5
    corner = 4 * stream - 1  # row 1, column 1, last stream entry
    numbers = sizes(limbs=1, in_channels=1, height=2, width=2, stream=stream, out_channels=1, kernel_h=1, kernel_w=1)
    numbers |= sizes(out_h=2, out_w=2, max_abs=7, max_sum=7, arithmetic=ARITHMETIC[arithmetic], tile=TILES[tile])
    x = Sparse(4 * stream, {0: 2, corner: BIG - 1})
    buffers: Buffers = {"x": x, "weight": [-7], "moduli": [BIG], "at": Host([0, corner])}
    assert launch(driver, "conv2d", numbers, buffers) == [BIG - 14, 7]


@pytest.mark.parametrize(
    ("arithmetic", "tile"), [("double", "large"), ("int64", "medium"), ("mid_sum", "small"), ("int8", "any")]
)
def test_conv2d_pool(driver: Driver, arithmetic: str, tile: str) -> None:
    stream = 2**31 + 5
    numbers = sizes(limbs=1, in_channels=1, height=2, width=2, stream=stream, out_channels=1, kernel_h=1, kernel_w=1)
    numbers |= sizes(out_h=2, out_w=2, max_abs=7, max_sum=7, arithmetic=ARITHMETIC[arithmetic], tile=TILES[tile])
    corner = 4 * stream - 1  # row 1, column 1, last stream entry
    x = Sparse(4 * stream, {0: 3, corner: BIG - 1, corner - stream: 3})
    buffers: Buffers = {"x": x, "weight": [-7], "factor": [2], "moduli": [BIG], "at": Host([0, stream - 1])}
    assert launch(driver, "conv2d_pool", numbers | sizes(pool_h=2, pool_w=2), buffers) == [BIG - 42, BIG - 28]


def test_conv2d_naive(driver: Driver) -> None:
    entries = 2**31 + 5
    numbers = sizes(limbs=1, in_channels=1, stream=entries, out_channels=1)
    x = Sparse(entries, {0: 2, entries - 1: BIG - 1})
    buffers: Buffers = {"x": x, "weight": [-7], "moduli": [BIG], "at": Host([0, entries - 1])}
    assert launch(driver, "conv2d_naive", numbers, buffers) == [BIG - 14, 7]


def test_sum_pool2d(driver: Driver) -> None:
    stream = 2**31 + 5
    numbers = sizes(limbs=1, channels=1, height=2, width=2, stream=stream, out_h=1, out_w=1)
    numbers |= sizes(kernel_h=2, kernel_w=2, stride_h=2, stride_w=2, padding_h=0, padding_w=0)
    x = Sparse(4 * stream, {0: 1, 4 * stream - 1: BIG - 1, 3 * stream - 1: 5})
    buffers: Buffers = {"x": x, "moduli": [BIG], "at": Host([0, stream - 1])}
    assert launch(driver, "sum_pool2d", numbers, buffers) == [1, 4]


def test_count_out_of_range(driver: Driver) -> None:
    """Entry 2^31 + 2^19 + 5 belongs to the first block, whose threads step over 2048 * 256 = 2^19 entries."""
    inner = 2**31 + 2**22
    x = Sparse(inner, {2**31 + 2**19 + 5: -1, 3: BIG})
    numbers = sizes(limbs=1, channels=1, inner=inner)
    assert launch(driver, "count_out_of_range", numbers, {"x": x, "moduli": [BIG]}) == [2]


@pytest.mark.parametrize("n", [8, 32768])
def test_ntt(driver: Driver, n: int) -> None:
    """The last run lies beyond 2^31 entries: 5 there is 5 at every point, and the other way round."""
    runs = 2**31 // n + 3
    entries = runs * n
    moduli = lattice_oracle.primes(n, (31,))
    tables = lattice_oracle.tables(moduli, n)
    numbers = sizes(limbs=1, runs=runs, n=n)
    buffers: Buffers = {"x": Sparse(entries, {entries - n: 5}), "tables": tables, "moduli": moduli}
    at = [0, entries - n, entries - 1]
    assert launch(driver, "ntt", numbers | sizes(inverse=0), buffers | {"at": Host(at[::2])}) == [0, 5]
    if n == 8:  # above, the first stages back need every block
        x = Sparse(entries, dict.fromkeys(range(entries - n, entries), 5))
        assert launch(driver, "ntt", numbers | sizes(inverse=1), buffers | {"x": x, "at": Host(at)}) == [0, 5, 0]


def test_expand_uniform(driver: Driver) -> None:
    """The last row lies beyond 2^31 residues, two of them an entry of the answer."""
    n, count = 32768, 2**16 + 3
    last = count * n // 2 - 1
    buffers: Buffers = {
        "seeds": Sparse(8 * count, {8 * count - 8: 7}),
        "moduli": [BIG],
        "at": Host([0, last]),
    }
    first, pair = launch(driver, "expand_uniform", sizes(limbs=1, count=count, n=n), buffers)
    drawn = reference.seed_stream(bytes(64))
    assert first == next(drawn) % BIG | next(drawn) % BIG << 32
    tail = list(itertools.islice(reference.seed_stream(bytes([7]) + bytes(63)), n - 2, n))
    assert pair == tail[0] % BIG | tail[1] % BIG << 32
