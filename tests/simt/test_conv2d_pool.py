"""conv2d with a sum pool in its launch, every arithmetic path and tile, against Python integers. Equality is exact."""

from __future__ import annotations

import numpy as np
import pytest
from harness import Driver, SimtError
from hypothesis import given

from tests.simt import oracle
from tests.simt.cases import ARITHMETIC, BIG, LIMITS, MODULI, TILES, Buffers, Conv, same, sizes
from tests.simt.oracle import Pair, ints
from tests.simt.strategies import TILED, convolutions, examples

WINDOWS: list[Pair] = [(2, 2), (1, 4), (4, 1)]  # all of four outputs

CASES = {
    "one_window": Conv(size=(2, 2), kernel=(1, 1), stream=1, moduli=MODULI, pool=(2, 2)),
    "demo_layer": Conv(
        in_channels=3, out_channels=5, size=(8, 8), kernel=(5, 5), padding=(2, 2), bias=True, poly="square",
        moduli=(2, 3, BIG), pool=(2, 2), scaled=True,
    ),
    "odd_rows_and_columns": Conv(
        in_channels=2, out_channels=3, size=(7, 9), padding=(1, 1), stream=1, bias=True, poly="channel", pool=(2, 2),
    ),
    "one_row_too_many": Conv(size=(3, 4), kernel=(1, 1), stream=33, pool=(2, 2), scaled=True),
    "stride_dilation": Conv(
        in_channels=2, out_channels=9, size=(13, 15), stride=(2, 3), dilation=(1, 2), padding=(2, 1), stream=3,
        bias=True, pool=(2, 2),
    ),
    "groups": Conv(
        in_channels=4, out_channels=6, size=(6, 5), groups=2, stream=32, bias=True, poly="channel", degree=3,
        pool=(2, 2), scaled=True,
    ),
    "long_stream": Conv(in_channels=2, out_channels=4, size=(4, 5), kernel=(2, 2), stream=260, pool=(2, 2)),
    "long_odd_stream": Conv(out_channels=2, size=(4, 4), kernel=(2, 2), stream=131, moduli=(BIG,), pool=(2, 2)),
    "chunked_channels": Conv(in_channels=70, out_channels=3, size=(4, 4), padding=(1, 1), moduli=(BIG,), pool=(2, 2)),
    "columns": Conv(in_channels=2, out_channels=3, size=(5, 11), stream=5, poly="shared", pool=(1, 4), scaled=True),
    "rows": Conv(in_channels=2, out_channels=3, size=(11, 5), stream=5, poly="shared", pool=(4, 1), scaled=True),
    "misaligned": Conv(in_channels=2, out_channels=2, numbers=sizes(x_offset=1, y_offset=1), pool=(2, 2)),
    "largest_weights": Conv(
        in_channels=3, out_channels=5, kernel=(2, 2), max_weight=BIG, moduli=(BIG, 2**31 - 3, 2), bias=True,
        size=(5, 5), pool=(2, 2),
    ),
    "three_digit_weights": Conv(
        in_channels=5, out_channels=17, max_weight=127 * 65793, arithmetic=("int8",), poly="channel", pool=(2, 2),
    ),
    "one_digit_weights": Conv(
        in_channels=9, out_channels=40, size=(6, 4), max_weight=127, arithmetic=("int8",), stream=33, pool=(2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_conv2d_pool(driver: Driver, name: str) -> None:
    CASES[name].check(driver)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("arithmetic", ["double", "int64", "mid_sum", "int8"])
@pytest.mark.parametrize("b", [BIG, 2])
def test_the_largest_window_sum(driver: Driver, window: Pair, arithmetic: str, b: int) -> None:
    """Four outputs b - 1 times the factor b - 1: 4 (b - 1)**2, close below 2**64 for the largest b."""
    channels, size = 2, (2 * window[0] + 1, 2 * window[1] + 1)
    x = ints(np.full((1, channels, *size, 4), b - 1))
    weight = ints(np.array([[1, 0], [-1, 2], [0, 1]]).reshape(3, channels, 1, 1))
    y = oracle.conv2d(x, weight, [b])
    assert (y == b - 1).all()
    expected = oracle.sum_pool2d(y, [b], kernel=window, stride=window, padding=(0, 0), factor=ints([b - 1]))
    buffers: Buffers = {"x": x, "weight": weight, "factor": [b - 1], "moduli": [b]}
    for tile in TILED if arithmetic in LIMITS and arithmetic != "int8" else ("any",):
        numbers = sizes(limbs=1, in_channels=channels, out_channels=3, stream=4, tile=TILES[tile])
        numbers |= sizes(arithmetic=ARITHMETIC[arithmetic], max_abs=2, max_sum=3, pool_h=window[0], pool_w=window[1])
        numbers |= sizes(height=size[0], width=size[1], out_h=size[0], out_w=size[1])
        assert same(driver.launch("conv2d_pool", numbers, buffers), expected)


def test_what_one_launch_cannot_pool_is_refused(driver: Driver) -> None:
    """Other windows, no tile for a window, and what the arithmetic does not allow."""
    buffers: Buffers = {"x": [1] * 64, "weight": [1], "moduli": [BIG]}
    numbers = sizes(limbs=1, in_channels=1, out_channels=1, stream=1, height=8, width=8, out_h=8, out_w=8)
    numbers |= sizes(pool_h=2, pool_w=2, max_abs=1, max_sum=1)
    assert driver.launch("conv2d_pool", numbers, buffers).tolist() == [4] * 16
    not_supported, invalid = "CUDA error 801", "CUDA error 1$"
    for wrong, error in (
        (sizes(pool_h=3, pool_w=3), not_supported),
        (sizes(pool_h=1, pool_w=2), not_supported),
        (sizes(pool_h=8, pool_w=8), not_supported),
        (sizes(tile=TILES["direct"]), not_supported),
        (sizes(arithmetic=ARITHMETIC["mid_sum"], tile=TILES["large"]), not_supported),
        (sizes(arithmetic=ARITHMETIC["int8"], major=7), not_supported),
        (sizes(arithmetic=ARITHMETIC["double"], max_sum=LIMITS["double"] + 1), invalid),
    ):
        with pytest.raises(SimtError, match=error):
            driver.launch("conv2d_pool", numbers | wrong, buffers)
    wide = sizes(stride_h=2000, stride_w=2000, height=2001, width=2001, out_h=2, out_w=2)
    for arithmetic in ARITHMETIC.values():
        with pytest.raises(SimtError, match=not_supported):
            driver.launch("conv2d_pool", numbers | wide | sizes(arithmetic=arithmetic), buffers | {"x": [1] * 2001**2})


@pytest.mark.parametrize("empty", ["stream", "limbs", "windows"])
def test_nothing_in_nothing_out(driver: Driver, empty: str) -> None:
    stream, moduli = (0 if empty == "stream" else 4), (() if empty == "limbs" else (BIG,))
    size = (3, 5) if empty == "windows" else (4, 4)  # a result of 1 x 3: no window of 2 x 2
    Conv(stream=stream, moduli=moduli, arithmetic=("auto",), size=size, pool=(2, 2)).check(driver)


@examples(60)
@given(case=convolutions(pools=WINDOWS))
def test_random_shapes(driver: Driver, case: Conv) -> None:
    case.check(driver)
