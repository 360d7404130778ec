"""The memory-bound kernels against Python integers. Equality is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from harness import Driver

from tests.simt import oracle
from tests.simt.cases import BIG, MODULI, Buffers, Numbers, random_residues, same, sizes
from tests.simt.oracle import Pair, ints

SHAPES = [(1, 1), (3, 1), (5, 3), (2, 4), (300, 2), (1, 33), (2, 1030), (3, 514)]


def flat(moduli: Sequence[int], channels: int, inner: int, offset: int = 0) -> Numbers:
    numbers = sizes(limbs=len(moduli), channels=channels, inner=inner, schedule=channels % 5)
    return numbers | sizes(x_offset=offset, y_offset=offset)


@pytest.mark.parametrize("stream", [1, 3, 4, 32, 33])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((1, 1), (1, 1), (0, 0))],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_sum_pool2d(driver: Driver, stream: int, kernel: Pair, stride: Pair, padding: Pair, scaled: bool) -> None:
    moduli = (2, BIG, 46341 * 46337)
    rng = np.random.default_rng(stream)
    x = random_residues(rng, moduli, (3, 5, 7, stream))
    factor = random_residues(rng, moduli, ()) if scaled else None
    expected = oracle.sum_pool2d(x, moduli, kernel=kernel, stride=stride, padding=padding, factor=factor)
    numbers = sizes(limbs=3, channels=3, height=5, width=7, stream=stream, schedule=stream)
    numbers |= sizes(kernel_h=kernel[0], kernel_w=kernel[1], stride_h=stride[0], stride_w=stride[1])
    numbers |= sizes(padding_h=padding[0], padding_w=padding[1], out_h=expected.shape[2], out_w=expected.shape[3])
    got = driver.launch("sum_pool2d", numbers, {"x": x, "factor": factor, "moduli": ints(moduli)})
    assert same(got, expected)


@pytest.mark.parametrize(("channels", "inner"), SHAPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_square_and_poly(driver: Driver, channels: int, inner: int, offset: int) -> None:
    rng = np.random.default_rng(inner)
    x = random_residues(rng, MODULI, (channels, inner))
    numbers, moduli = flat(MODULI, channels, inner, offset), ints(MODULI)
    got = driver.launch("square", numbers, {"x": x, "moduli": moduli})
    assert same(got, oracle.reduce(x * x, MODULI))
    for rows, degree in ((1, 1), (1, 4), (channels, 2), (channels, 3)):
        table = random_residues(rng, MODULI, (rows, degree + 1))
        if degree == 2:
            table[:, 0] = [0, 0, 1]
        more = sizes(degree=degree, channel_stride=0 if rows == 1 else degree + 1)
        got = driver.launch("poly", numbers | more, {"x": x, "coefficients": table, "moduli": moduli})
        assert same(got, oracle.reduce(oracle.polynomial(x, table), MODULI))


@pytest.mark.parametrize(("channels", "inner"), SHAPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_additions(driver: Driver, channels: int, inner: int, offset: int) -> None:
    rng = np.random.default_rng(inner)
    x, y = (random_residues(rng, MODULI, (channels, inner)) for _ in range(2))
    numbers, moduli = flat(MODULI, channels, inner, offset), ints(MODULI)
    for rows in {1, channels}:
        constant = random_residues(rng, MODULI, (rows,))
        buffers: Buffers = {"x": x, "constant": constant, "moduli": moduli}
        got = driver.launch("add_const", numbers | sizes(channel_stride=int(rows > 1)), buffers)
        assert same(got, oracle.add_const(x, constant, MODULI))
    for has_x, has_y in ((False, False), (True, False), (False, True), (True, True)):
        fx = random_residues(rng, MODULI, ()) if has_x else None
        fy = random_residues(rng, MODULI, ()) if has_y else None
        got = driver.launch(
            "align_add", numbers, {"x": x, "other": y, "x_factor": fx, "y_factor": fy, "moduli": moduli}
        )
        assert same(got, oracle.align_add(x, y, MODULI, fx, fy))


def test_align_add_at_its_largest(driver: Driver) -> None:
    """Both products are (b - 1)^2 with the largest b."""
    largest = ints([[[BIG - 1]]])
    factor = ints([BIG - 1])
    buffers: Buffers = {"x": largest, "other": largest, "x_factor": factor, "y_factor": factor, "moduli": [BIG]}
    assert driver.launch("align_add", flat([BIG], 1, 1), buffers).tolist() == [2 * (BIG - 1) ** 2 % BIG]


def test_nothing_in_nothing_out(driver: Driver) -> None:
    assert driver.launch("square", flat([BIG], 3, 0), {"x": [], "moduli": [BIG]}).size == 0
    assert driver.launch("count_out_of_range", flat([BIG], 3, 0), {"x": [], "moduli": [BIG]}).tolist() == [0]


def test_more_limbs_than_a_grid_is_deep(driver: Driver) -> None:
    """65,537 limbs: the first block takes limbs 0 and 65,535 in turn."""
    limbs = 65_537
    numbers = sizes(limbs=limbs, channels=1, inner=1, edge_blocks=1, schedule=1)
    moduli = np.arange(limbs) + 10
    got = driver.launch("square", numbers, {"x": np.full(limbs, 9), "moduli": moduli})
    assert [got[limb] for limb in (0, 65_534, 65_535)] == [81 % 10, 81, 81]
    got = driver.launch("count_out_of_range", numbers, {"x": np.full(limbs, -1), "moduli": moduli})
    assert got.tolist() == [3]


@pytest.mark.parametrize(("channels", "inner"), [(1, 1), (3, 700)])
def test_count_out_of_range(driver: Driver, channels: int, inner: int) -> None:
    x = random_residues(np.random.default_rng(inner), MODULI, (channels, inner))
    bad = [-1, -(2**63), 2**63 - 1, 2**31]
    rows = x.reshape(len(MODULI), -1)
    rows[:, 0] = [bad[i % len(bad)] for i in range(len(MODULI))]
    rows[-1, -1] = MODULI[-1]
    expected = sum(not 0 <= value < b for row, b in zip(rows, MODULI, strict=True) for value in row)
    got = driver.launch("count_out_of_range", flat(MODULI, channels, inner), {"x": x, "moduli": ints(MODULI)})
    assert got.tolist() == [expected]


@pytest.mark.parametrize("columns", [1, 5, 128, 300])
def test_weight_range(driver: Driver, columns: int) -> None:
    weight = ints(np.random.default_rng(columns).integers(-(2**31) + 1, 2**31, size=(5, columns)))
    got = driver.launch("weight_range", sizes(rows=5, columns=columns), {"weight": weight})
    assert tuple(got.tolist()) == oracle.weight_bounds(weight)
    weight[2, 0] = -(2**63)
    got = driver.launch("weight_range", sizes(rows=5, columns=columns), {"weight": weight})
    assert got.tolist() == [2**63 - 1, 2**63 - 1]


def test_weight_range_of_more_rows_than_blocks(driver: Driver) -> None:
    """4,096 blocks at most: the first takes rows 0 and 4,096."""
    weight = np.zeros((4097, 130), dtype=np.int64)
    weight[0] = 5
    weight[4096] = -6
    numbers = sizes(rows=4097, columns=130, edge_blocks=1, schedule=1)
    assert driver.launch("weight_range", numbers, {"weight": weight}).tolist() == [6, 780]
