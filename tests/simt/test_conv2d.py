"""conv2d and linear, every arithmetic path and tile, against Python integers. Equality is exact."""

from __future__ import annotations

import numpy as np
import pytest
from harness import Driver, SimtError
from hypothesis import given

from tests.simt import oracle
from tests.simt.cases import ARITHMETIC, BIG, LIMITS, MODULI, TILES, Buffers, Conv, random_residues, same, sizes
from tests.simt.oracle import ints
from tests.simt.strategies import convolutions, examples

CASES = {
    "one_entry": Conv(size=(1, 1), kernel=(1, 1), stream=1, moduli=MODULI),
    "bias_square": Conv(
        in_channels=3, out_channels=5, size=(6, 7), padding=(1, 1), bias=True, poly="square", moduli=(2, 3, BIG)
    ),
    "wide_kernel_cubic": Conv(
        out_channels=6, size=(8, 8), kernel=(5, 5), bias=True, poly="channel", degree=3, moduli=(BIG, 46341 * 46337)
    ),
    "stride": Conv(in_channels=2, out_channels=9, size=(9, 7), stride=(2, 2), padding=(2, 1), stream=3, bias=True),
    "stride_beyond_kernel": Conv(in_channels=2, size=(7, 9), kernel=(2, 2), stride=(3, 3), stream=1, max_weight=4000),
    "dilation": Conv(in_channels=2, out_channels=3, size=(7, 6), dilation=(2, 1), stream=33, poly="shared"),
    "groups": Conv(in_channels=4, out_channels=6, size=(5, 5), groups=2, stream=32, bias=True, poly="channel"),
    "depthwise": Conv(in_channels=5, out_channels=5, size=(6, 5), groups=5, padding=(1, 1), poly="square"),
    "pointwise_many_outputs": Conv(in_channels=2, out_channels=35, size=(2, 3), kernel=(1, 1), stream=33, bias=True),
    "long_stream": Conv(in_channels=2, out_channels=4, size=(3, 3), kernel=(2, 2), stream=260, padding=(1, 0)),
    "long_odd_stream": Conv(out_channels=2, size=(3, 2), kernel=(2, 2), stream=131, moduli=(BIG,)),
    "chunked_channels": Conv(in_channels=70, out_channels=3, size=(3, 3), padding=(1, 1), moduli=(BIG,)),
    "chunked_words_of_channels": Conv(
        in_channels=250, out_channels=18, size=(3, 3), moduli=(BIG,), arithmetic=("int8",), bias=True
    ),
    "even_kernel": Conv(in_channels=2, out_channels=2, size=(3, 5), kernel=(2, 4), padding=(1, 2), stream=1),
    "kernel_over_padding": Conv(size=(2, 2), kernel=(5, 6), padding=(2, 3), stream=3),
    "huge_steps": Conv(
        in_channels=2, size=(3, 3), kernel=(1, 1), stride=(BIG, BIG), dilation=(BIG, BIG), stream=3, max_weight=9
    ),
    "mostly_padding": Conv(size=(2, 3), padding=(20, 30), stride=(2, 1), stream=1, bias=True, moduli=(BIG,)),
    "misaligned": Conv(in_channels=2, out_channels=2, numbers=sizes(x_offset=1, y_offset=1)),
    "largest_weights": Conv(
        in_channels=3, out_channels=5, kernel=(2, 2), max_weight=BIG, moduli=(BIG, 2**31 - 3, 2), bias=True
    ),
    "no_tile_fits": Conv(
        size=(101, 102), kernel=(2, 2), dilation=(100, 100), stream=1, arithmetic=("auto",), moduli=(BIG,)
    ),
    "three_digit_weights": Conv(
        in_channels=5, out_channels=17, max_weight=127 * 65793, arithmetic=("int8",), poly="channel"
    ),
    "one_digit_weights": Conv(in_channels=9, out_channels=40, max_weight=127, arithmetic=("int8",), stream=33),
}


@pytest.mark.parametrize("name", CASES)
def test_conv2d(driver: Driver, name: str) -> None:
    CASES[name].check(driver)


@pytest.mark.parametrize("arithmetic", ["double", "int64"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("b", [BIG, 2])
def test_the_limit_of_an_arithmetic(driver: Driver, arithmetic: str, sign: int, b: int) -> None:
    """sum |q| is the largest allowed, every residue b - 1; beyond it the path is refused."""
    limit = LIMITS[arithmetic]
    channels = 4
    x = ints(np.full((1, channels, 1, 1, 4), b - 1))
    weight = ints(np.full((3, channels, 1, 1), sign * limit // channels))
    expected = oracle.conv2d(x, weight, [b])
    buffers: Buffers = {"x": x, "weight": weight, "moduli": [b]}
    for tile in ("small", "medium", "large"):
        numbers = sizes(limbs=1, in_channels=channels, out_channels=3, stream=4, tile=TILES[tile])
        numbers |= sizes(arithmetic=ARITHMETIC[arithmetic], max_abs=limit // channels, max_sum=limit)
        assert same(driver.launch("conv2d", numbers, buffers), expected)
        with pytest.raises(SimtError, match="refused"):
            driver.launch("conv2d", numbers | sizes(max_sum=limit + 1), buffers)


def test_int8_refuses_what_it_cannot_hold(driver: Driver) -> None:
    buffers: Buffers = {"x": [1], "weight": [1], "moduli": [BIG]}
    numbers = sizes(limbs=1, in_channels=1, out_channels=1, stream=1, arithmetic=ARITHMETIC["int8"])
    assert driver.launch("conv2d", numbers | sizes(max_abs=1, max_sum=1), buffers).tolist() == [1]
    for wrong in (
        sizes(max_abs=127 * 65793 + 1, max_sum=2**31),
        sizes(max_abs=1, max_sum=2**32 + 1),
        sizes(max_abs=1, max_sum=1, major=7),
        sizes(max_abs=1, max_sum=1, in_channels=21_932),
    ):
        with pytest.raises(SimtError, match="refused"):
            driver.launch("conv2d", numbers | wrong, buffers)


@pytest.mark.parametrize("empty", ["stream", "limbs"])
def test_nothing_in_nothing_out(driver: Driver, empty: str) -> None:
    stream, moduli = (0, (BIG,)) if empty == "stream" else (4, ())
    Conv(stream=stream, moduli=moduli, arithmetic=("auto",)).check(driver)
    Conv(stream=stream, moduli=moduli, arithmetic=("auto",), size=(1, 1), kernel=(1, 1), linear=True).check(driver)


@pytest.mark.parametrize("processors", [1, 132, 100_000])
def test_devices_of_any_size(driver: Driver, processors: int) -> None:
    """The tile and the arithmetic depend on the device; the result does not."""
    case = Conv(in_channels=2, out_channels=18, size=(9, 9), stream=12, arithmetic=("auto",), moduli=(BIG,))
    for ratio in (2, 64):
        case.numbers = sizes(processors=processors, double_ratio=ratio)
        case.check(driver)


@examples(100)
@given(case=convolutions())
def test_random_shapes(driver: Driver, case: Conv) -> None:
    case.check(driver)


LINEAR_SHAPES = [(1, 1, 1), (7, 5, 3), (128, 6, 4), (300, 9, 1), (33, 4, 16), (20, 3, 17), (40, 10, 33), (17, 5, 130)]


@pytest.mark.parametrize(("features", "outs", "stream"), LINEAR_SHAPES)
@pytest.mark.parametrize("max_weight", [255, BIG])
def test_linear(driver: Driver, features: int, outs: int, stream: int, max_weight: int) -> None:
    case = Conv(
        moduli=(BIG, 2, 46341 * 46337),
        in_channels=features,
        out_channels=outs,
        size=(1, 1),
        kernel=(1, 1),
        stream=stream,
        bias=True,
        poly="channel",
        max_weight=max_weight,
        seed=features,
        tiles=("any", "small", "large"),
        linear=True,
    )
    case.check(driver)


def test_linear_refuses_int64_beyond_its_limit(driver: Driver) -> None:
    numbers = sizes(limbs=1, in_channels=1, out_channels=1, stream=1, arithmetic=ARITHMETIC["int64"])
    numbers |= sizes(max_abs=2**30, max_sum=LIMITS["int64"] + 1)
    with pytest.raises(SimtError, match="refused"):
        driver.launch("linear", numbers, {"x": [1], "weight": [1], "moduli": [BIG]})


def test_naive_baseline(driver: Driver) -> None:
    x = random_residues(np.random.default_rng(1), (BIG, 3), (4, 5, 6, 3))
    weight = ints(np.random.default_rng(2).integers(-300, 300, size=(6, 2, 3, 2)))
    expected = oracle.conv2d(x, weight, (BIG, 3), stride=(2, 1), padding=(1, 0), groups=2)
    numbers = sizes(limbs=2, in_channels=4, height=5, width=6, stream=3, out_channels=6, groups=2)
    numbers |= sizes(kernel_h=3, kernel_w=2, stride_h=2, padding_h=1, out_h=3, out_w=5)
    assert same(driver.launch("conv2d_naive", numbers, {"x": x, "weight": weight, "moduli": [BIG, 3]}), expected)
