"""The CUDA kernels without a GPU: their sources under the SIMT harness, against Python integers.

Each case runs in both builds of the harness (csrc/testing/simt): under AddressSanitizer and UndefinedBehaviorSanitizer,
and with every memory access checked for races. Equality is exact.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "csrc" / "testing" / "simt"))

from tests import simt_oracle as oracle
from harness import VARIANTS, Driver, Host, SimtError, Sparse, build, compiler_available
from tests.simt_oracle import Ints, Pair, ints

BIG = 2**31 - 1
MODULI = (2, 3, BIG, 2**30, 998244353, 1073741789, 46341 * 46337, 2**31 - 3)
AUTO, DOUBLE, INT64, MID_SUM, INT8 = range(5)
ARITHMETIC = {"auto": AUTO, "double": DOUBLE, "int64": INT64, "mid_sum": MID_SUM, "int8": INT8}
ANY_TILE, SMALL, MEDIUM, LARGE, DIRECT = range(5)
TILES = {"small": SMALL, "medium": MEDIUM, "large": LARGE, "direct": DIRECT}
DOUBLE_MAX_SUM = 2**22
INT64_MAX_SUM = 2**32
INT8_MAX_ABS = 127 * 65793
LIMITS = {"double": DOUBLE_MAX_SUM, "int64": INT64_MAX_SUM, "int8": INT64_MAX_SUM}

pytestmark = pytest.mark.skipif(
    not compiler_available(), reason="the SIMT harness needs g++ 11 or later (or $MCFHE_SIMT_CXX)"
)

_log: dict[str, list[str]] = {"kernels_run": [], "planted_caught": []}


@pytest.fixture(scope="module", params=VARIANTS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    build(request.param)
    running = Driver(request.param)
    yield running
    running.close()
    _log["kernels_run"] = sorted({*_log["kernels_run"], *running.kernels_run})
    if path := os.environ.get("MCFHE_SIMT_LOG"):
        Path(path).write_text(json.dumps(_log))


def random_residues(rng: np.random.Generator, moduli: Sequence[int], shape: Sequence[int]) -> Ints:
    """Residues of each limb; about a third are 0, 1 or b - 1."""
    limbs = []
    for b in moduli:
        values = rng.integers(0, b, size=tuple(shape))
        edges = rng.choice(np.array([0, 1, b - 1]), size=tuple(shape))
        limbs.append(np.where(rng.random(tuple(shape)) < 0.35, edges, values))
    return ints(np.stack(limbs) if limbs else np.zeros((0, *shape), dtype=np.int64))


@dataclass
class Conv:
    """One convolution: geometry, and what to fill it with."""

    moduli: Sequence[int] = (BIG, 3)
    in_channels: int = 1
    out_channels: int = 1
    size: Pair = (4, 4)
    stream: int = 4
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    poly: str = ""  # "", "square", "shared" or "channel"
    degree: int = 2
    max_weight: int = 200
    seed: int = 0
    arithmetic: Sequence[str] = tuple(ARITHMETIC)
    tiles: Sequence[str] = tuple(TILES)
    numbers: dict[str, int] = field(default_factory=dict)  # more for the driver
    linear: bool = False

    def tensors(self) -> tuple[Ints, Ints, Ints | None, Ints | None]:
        rng = np.random.default_rng(self.seed)
        x = random_residues(rng, self.moduli, (self.in_channels, *self.size, self.stream))
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        weight = rng.integers(-self.max_weight, self.max_weight + 1, size=shape)
        weight.reshape(-1)[0] = self.max_weight
        weight.reshape(-1)[-1] = -self.max_weight
        bias = random_residues(rng, self.moduli, (self.out_channels,)) if self.bias else None
        poly: Ints | None = None
        if self.poly == "square":
            poly = ints([[[0, 0, 1]] for _ in self.moduli])
        elif self.poly:
            rows = self.out_channels if self.poly == "channel" else 1
            poly = random_residues(rng, self.moduli, (rows, self.degree + 1))
            if rows > 1 and self.degree == 2:
                poly[:, 0] = [0, 0, 1]  # one channel a square, the others not
        return x, ints(weight), bias, poly

    def out_size(self) -> Pair:
        return (
            oracle.out_size(self.size[0], self.kernel[0], self.stride[0], self.padding[0], self.dilation[0]),
            oracle.out_size(self.size[1], self.kernel[1], self.stride[1], self.padding[1], self.dilation[1]),
        )

    def check(self, driver: Driver) -> None:
        x, weight, bias, poly = self.tensors()
        expected = oracle.conv2d(
            x,
            weight,
            self.moduli,
            bias=bias,
            poly=poly,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        max_abs, max_sum = oracle.weight_bounds(weight)
        out_h, out_w = self.out_size()
        numbers: dict[str, int | str] = {
            **dict(zip(("height", "width"), self.size, strict=True)),
            **dict(zip(("kernel_h", "kernel_w"), self.kernel, strict=True)),
            **dict(zip(("stride_h", "stride_w"), self.stride, strict=True)),
            **dict(zip(("padding_h", "padding_w"), self.padding, strict=True)),
            **dict(zip(("dilation_h", "dilation_w"), self.dilation, strict=True)),
            "limbs": len(self.moduli),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "stream": self.stream,
            "groups": self.groups,
            "out_h": out_h,
            "out_w": out_w,
            "poly_degree": 0 if poly is None else poly.shape[2] - 1,
            "poly_channel_stride": 0 if poly is None or poly.shape[1] == 1 else poly.shape[2],
            "max_abs": max_abs,
            "max_sum": max_sum,
            **self.numbers,
        }
        buffers = {"x": x, "weight": weight, "bias": bias, "poly": poly, "moduli": ints(self.moduli)}
        schedule = self.seed
        for name in self.arithmetic:
            if max_sum > LIMITS.get(name, max_sum) or (name == "int8" and max_abs > INT8_MAX_ABS):
                continue
            for tile in self.tiles if name not in ("auto", "int8") else ("any",):
                if name == "mid_sum" and tile in ("medium", "large"):
                    continue
                schedule += 1
                numbers |= {"arithmetic": ARITHMETIC[name], "tile": TILES.get(tile, ANY_TILE), "schedule": schedule % 5}
                got = driver.launch("linear" if self.linear else "conv2d", numbers, buffers)
                assert (ints(got).reshape(expected.shape) == expected).all(), (name, tile)


CONV_CASES = {
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
    "chunked_channels": Conv(in_channels=70, out_channels=3, size=(3, 3), padding=(1, 1), stream=4, moduli=(BIG,)),
    "even_kernel": Conv(in_channels=2, out_channels=2, size=(3, 5), kernel=(2, 4), padding=(1, 2), stream=1),
    "kernel_over_padding": Conv(size=(2, 2), kernel=(5, 6), padding=(2, 3), stream=3),
    "misaligned": Conv(in_channels=2, out_channels=2, size=(4, 4), stream=4, numbers={"x_offset": 1, "y_offset": 1}),
    "all_arithmetic_paths_refused_but_mid_sum": Conv(
        in_channels=3, out_channels=5, size=(4, 4), kernel=(2, 2), max_weight=BIG, moduli=(BIG, 2**31 - 3, 2), bias=True
    ),
    "no_tile_fits": Conv(
        size=(101, 102), kernel=(2, 2), dilation=(100, 100), stream=1, arithmetic=("auto",), moduli=(BIG,)
    ),
}


@pytest.mark.parametrize("name", CONV_CASES)
def test_conv2d(driver: Driver, name: str) -> None:
    CONV_CASES[name].check(driver)


@pytest.mark.parametrize("arithmetic", ["double", "int64"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("b", [BIG, 2])
def test_conv2d_at_the_limit_of_its_arithmetic(driver: Driver, arithmetic: str, sign: int, b: int) -> None:
    """sum |q| is the largest allowed, every residue b - 1."""
    limit = LIMITS[arithmetic]
    channels = 4
    x = ints(np.full((1, channels, 1, 1, 4), b - 1))
    weight = ints(np.full((3, channels, 1, 1), sign * limit // channels))
    expected = oracle.conv2d(x, weight, [b])
    for tile in (SMALL, MEDIUM, LARGE):
        numbers = {
            **{"limbs": 1, "in_channels": channels, "out_channels": 3, "stream": 4, "tile": tile},
            **{"arithmetic": ARITHMETIC[arithmetic], "max_abs": limit // channels, "max_sum": limit},
        }
        got = driver.launch("conv2d", numbers, {"x": x, "weight": weight, "moduli": [b]})
        assert (ints(got).reshape(expected.shape) == expected).all()
        with pytest.raises(SimtError, match="refused"):
            driver.launch("conv2d", numbers | {"max_sum": limit + 1}, {"x": x, "weight": weight, "moduli": [b]})


@pytest.mark.parametrize("empty", ["stream", "limbs"])
def test_conv2d_of_nothing(driver: Driver, empty: str) -> None:
    stream, moduli = (0, (BIG,)) if empty == "stream" else (4, ())
    Conv(stream=stream, moduli=moduli, arithmetic=("auto",)).check(driver)
    Conv(stream=stream, moduli=moduli, arithmetic=("auto",), size=(1, 1), kernel=(1, 1), linear=True).check(driver)


@pytest.mark.parametrize("processors", [1, 132, 100000])
def test_conv2d_on_devices_of_any_size(driver: Driver, processors: int) -> None:
    """The tile depends on the device; the result does not."""
    case = Conv(in_channels=2, out_channels=18, size=(9, 9), stream=12, arithmetic=("auto",), moduli=(BIG,))
    for ratio in (2, 64):
        case.numbers = {"processors": processors, "double_ratio": ratio}
        case.check(driver)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    groups = draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))

    def extent(axis: int) -> int:
        smallest = max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis])
        return smallest + draw(st.integers(0, 4))

    return Conv(
        moduli=draw(st.lists(st.sampled_from(MODULI), min_size=1, max_size=2)),
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 9)),
        size=(extent(0), extent(1)),
        stream=draw(st.sampled_from([1, 2, 3, 4, 8, 32, 33, 70])),
        kernel=kernel,
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        poly=draw(st.sampled_from(["", "square", "shared", "channel"])),
        degree=draw(st.integers(1, 4)),
        max_weight=draw(st.sampled_from([1, 255, 2**20, BIG])),
        seed=draw(st.integers(0, 2**16)),
        arithmetic=(draw(st.sampled_from(list(ARITHMETIC))),),
        tiles=(draw(st.sampled_from(list(TILES))),),
    )


random_cases = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@random_cases
@given(case=convolutions())
def test_conv2d_random(driver: Driver, case: Conv) -> None:
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
    numbers = {
        **{"limbs": 3, "channels": 3, "height": 5, "width": 7, "stream": stream, "schedule": stream},
        **{"kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1]},
        **{"padding_h": padding[0], "padding_w": padding[1], "out_h": expected.shape[2], "out_w": expected.shape[3]},
    }
    got = driver.launch("sum_pool2d", numbers, {"x": x, "factor": factor, "moduli": ints(moduli)})
    assert (ints(got).reshape(expected.shape) == expected).all()


POINTWISE_SHAPES = [(1, 1), (3, 1), (5, 3), (2, 4), (300, 2), (1, 33), (2, 1030), (3, 514)]


def pointwise(moduli: Sequence[int], channels: int, inner: int, offset: int) -> dict[str, int | str]:
    shape: dict[str, int | str] = {"limbs": len(moduli), "channels": channels, "inner": inner, "schedule": channels % 5}
    return shape | {"x_offset": offset, "y_offset": offset}


@pytest.mark.parametrize(("channels", "inner"), POINTWISE_SHAPES)
@pytest.mark.parametrize("offset", [0, 1])
def test_pointwise(driver: Driver, channels: int, inner: int, offset: int) -> None:
    rng = np.random.default_rng(inner)
    x = random_residues(rng, MODULI, (channels, inner))
    y = random_residues(rng, MODULI, (channels, inner))
    numbers = pointwise(MODULI, channels, inner, offset)
    moduli = ints(MODULI)

    def same(got: object, expected: Ints) -> bool:
        return bool((ints(got).reshape(expected.shape) == expected).all())

    assert same(driver.launch("square", numbers, {"x": x, "moduli": moduli}), oracle.reduce(x * x, MODULI))
    for rows, degree in ((1, 1), (1, 4), (channels, 2), (channels, 3)):
        table = random_residues(rng, MODULI, (rows, degree + 1))
        if degree == 2:
            table[:, 0] = [0, 0, 1]
        stride = 0 if rows == 1 else degree + 1
        got = driver.launch(
            "poly",
            numbers | {"degree": degree, "channel_stride": stride},
            {"x": x, "coefficients": table, "moduli": moduli},
        )
        assert same(got, oracle.reduce(oracle.polynomial(x, table), MODULI))
    for rows in {1, channels}:
        constant = random_residues(rng, MODULI, (rows,))
        got = driver.launch(
            "add_const", numbers | {"channel_stride": int(rows > 1)}, {"x": x, "constant": constant, "moduli": moduli}
        )
        assert same(got, oracle.add_const(x, constant, MODULI))
    for has_x, has_y in ((False, False), (True, False), (True, True)):
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
    buffers = {"x": largest, "other": largest, "x_factor": factor, "y_factor": factor, "moduli": [BIG]}
    got = driver.launch("align_add", {"limbs": 1, "channels": 1, "inner": 1}, buffers)
    assert got.tolist() == [2 * (BIG - 1) ** 2 % BIG]


def test_pointwise_of_nothing(driver: Driver) -> None:
    numbers = pointwise((BIG,), 3, 0, 0)
    assert driver.launch("square", numbers, {"x": [], "moduli": [BIG]}).size == 0


@pytest.mark.parametrize(("channels", "inner"), [(1, 1), (3, 700)])
def test_count_out_of_range(driver: Driver, channels: int, inner: int) -> None:
    rng = np.random.default_rng(inner)
    x = random_residues(rng, MODULI, (channels, inner))
    bad = [-1, -(2**63), 2**63 - 1, 2**31]
    flat = x.reshape(len(MODULI), -1)
    flat[:, 0] = [bad[i % len(bad)] for i in range(len(MODULI))]
    flat[-1, -1] = MODULI[-1]
    expected = sum(not 0 <= value < b for row, b in zip(flat, MODULI, strict=True) for value in row)
    got = driver.launch("count_out_of_range", pointwise(MODULI, channels, inner, 0), {"x": x, "moduli": ints(MODULI)})
    assert got.tolist() == [expected]


@pytest.mark.parametrize("columns", [1, 5, 128, 300])
def test_weight_range(driver: Driver, columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = ints(rng.integers(-(2**31) + 1, 2**31, size=(5, columns)))
    got = driver.launch("weight_range", {"rows": 5, "columns": columns}, {"weight": weight})
    assert tuple(got.tolist()) == oracle.weight_bounds(weight)
    weight[2, 0] = -(2**63)
    got = driver.launch("weight_range", {"rows": 5, "columns": columns}, {"weight": weight})
    assert got.tolist() == [2**63 - 1, 2**63 - 1]


def test_naive_baseline(driver: Driver) -> None:
    x = random_residues(np.random.default_rng(1), (BIG, 3), (4, 5, 6, 3))
    weight = ints(np.random.default_rng(2).integers(-300, 300, size=(6, 2, 3, 2)))
    expected = oracle.conv2d(x, weight, (BIG, 3), stride=(2, 1), padding=(1, 0), groups=2)
    numbers = {
        **{"limbs": 2, "in_channels": 4, "height": 5, "width": 6, "stream": 3, "out_channels": 6, "groups": 2},
        **{"kernel_h": 3, "kernel_w": 2, "stride_h": 2, "padding_h": 1, "out_h": 3, "out_w": 5},
    }
    got = driver.launch("conv2d_naive", numbers, {"x": x, "weight": weight, "moduli": [BIG, 3]})
    assert (ints(got).reshape(expected.shape) == expected).all()


# --- beyond 2^31 entries: only the first and the last block of each launch run ------------------------------------


def launch_sparse(driver: Driver, op: str, numbers: dict[str, int | str], buffers: dict[str, object]) -> list[int]:
    try:
        return driver.launch(op, numbers | {"edge_blocks": 1}, buffers).tolist()  # type: ignore[arg-type]
    except SimtError as error:
        if "address space" in str(error) or "bad_alloc" in str(error):
            pytest.skip(f"this machine does not reserve terabytes of address space: {error}")
        raise


@pytest.mark.parametrize("columns", [2**31 + 78, 3 * 2**31 + 1])
def test_pointwise_beyond_32_bits(driver: Driver, columns: int) -> None:
    last = columns - 1
    x = Sparse(columns, {0: 3, last: BIG - 2})
    numbers = pointwise((BIG,), 1, columns, 0) | {"x_offset": 0, "y_offset": 0}
    got = launch_sparse(driver, "square", numbers, {"x": x, "moduli": [BIG], "at": Host([0, last])})
    assert got == [9, 4]


def test_pointwise_rows_beyond_32_bits(driver: Driver) -> None:
    """Two channels of more than 2^31 entries each, in two limbs: the last entry lies beyond 2^33."""
    inner = 2**31 + 3
    last = 4 * inner - 1
    x = Sparse(4 * inner, {last: 5})
    buffers = {"x": x, "constant": [1, 2, 3, 4], "moduli": [BIG, 11], "at": Host([last])}
    numbers = pointwise((BIG, 11), 2, inner, 0) | {"channel_stride": 1}
    assert launch_sparse(driver, "add_const", numbers, buffers) == [9]


def test_conv2d_beyond_32_bits(driver: Driver) -> None:
    stream = 2**31 + 5
    corner = 4 * stream - 1  # row 1, column 1, last stream entry
    numbers: dict[str, int | str] = {
        **{"limbs": 1, "in_channels": 1, "height": 2, "width": 2, "stream": stream, "out_channels": 1},
        **{"kernel_h": 1, "kernel_w": 1, "out_h": 2, "out_w": 2, "max_abs": 7, "max_sum": 7},
    }
    for arithmetic, tile in ((DOUBLE, LARGE), (DOUBLE, SMALL), (INT64, MEDIUM), (MID_SUM, DIRECT)):
        buffers = {"x": Sparse(4 * stream, {0: 2, corner: BIG - 1}), "weight": [-7], "moduli": [BIG]}
        got = launch_sparse(
            driver,
            "conv2d",
            numbers | {"arithmetic": arithmetic, "tile": tile},
            buffers | {"at": Host([0, corner])},
        )
        assert got == [BIG - 14, 7]


def test_sum_pool2d_beyond_32_bits(driver: Driver) -> None:
    stream = 2**31 + 5
    numbers: dict[str, int | str] = {
        **{"limbs": 1, "channels": 1, "height": 2, "width": 2, "stream": stream, "out_h": 1, "out_w": 1},
        **{"kernel_h": 2, "kernel_w": 2, "stride_h": 2, "stride_w": 2, "padding_h": 0, "padding_w": 0},
    }
    x = Sparse(4 * stream, {0: 1, 4 * stream - 1: BIG - 1, 3 * stream - 1: 5})
    got = launch_sparse(driver, "sum_pool2d", numbers, {"x": x, "moduli": [BIG], "at": Host([0, stream - 1])})
    assert got == [1, 4]


def test_count_out_of_range_beyond_32_bits(driver: Driver) -> None:
    """Entry 2^31 + 2^19 * k + 5 belongs to the first block, whose threads step over 2048 * 256 entries."""
    inner = 2**31 + 2**22
    x = Sparse(inner, {2**31 + 2**19 + 5: -1, 3: BIG})
    got = launch_sparse(driver, "count_out_of_range", pointwise((BIG,), 1, inner, 0), {"x": x, "moduli": [BIG]})
    assert got == [2]


# --- planted mistakes ---------------------------------------------------------------------------------------------

CAUGHT_BY = {
    "missing_barrier": {"race": "race|uninitialised"},
    "missing_second_barrier": {"race": "race"},
    "missing_warp_barrier": {"race": "race|uninitialised"},
    "missing_atomic": {"race": "race"},
    "uninitialised_shared": {"race": "uninitialised"},
    "divergent_barrier": {"race": "divergent barrier", "address": "divergent barrier"},
    "mismatched_barriers": {"race": "divergent barrier", "address": "divergent barrier"},
    "divergent_shuffle": {"race": "divergent warp", "address": "divergent warp"},
    "global_read_out_of_bounds": {"race": "out-of-bounds global read", "address": "heap-buffer-overflow"},
    "global_write_out_of_bounds": {"race": "out-of-bounds global write", "address": "heap-buffer-overflow"},
    "shared_read_out_of_bounds": {"race": "out-of-bounds shared read", "address": "heap-buffer-overflow"},
    "static_shared_out_of_bounds": {"address": "global-buffer-overflow"},
    "misaligned_pair": {"race": "misaligned", "address": "misaligned"},
    "index_overflow_unsigned": {"race": "32-bit index overflow", "address": "32-bit index overflow"},
    "index_overflow_int": {"race": "32-bit index overflow", "address": "32-bit index overflow"},
    "offset_overflow": {"race": "signed integer overflow", "address": "signed integer overflow"},
}


@pytest.mark.parametrize("name", CAUGHT_BY)
@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_planted_bug_is_caught(driver: Driver, name: str, schedule: int) -> None:
    """The mistake is an error, whatever the order of threads; the same kernel without it is not."""
    numbers: dict[str, int | str] = {"name": name, "size": 64, "edge_blocks": 1, "schedule": schedule}
    buffers = {"x": list(range(64))}
    assert driver.launch("planted", numbers | {"bug": 0}, buffers).size == 64
    expected = CAUGHT_BY[name].get(driver.variant)
    if expected is None:
        return  # the other build's business
    with pytest.raises(SimtError, match=expected):
        driver.launch("planted", numbers | {"bug": 1}, buffers)
    if name not in _log["planted_caught"]:
        _log["planted_caught"].append(name)


def test_unknown_requests_are_refused(driver: Driver) -> None:
    for op, numbers in (
        ("no_such_op", {}),
        ("square", {"limbs": 1}),
        ("planted", {"name": "none", "bug": 1, "size": 1}),
    ):
        with pytest.raises(SimtError):
            driver.launch(op, numbers, {})  # type: ignore[arg-type]
