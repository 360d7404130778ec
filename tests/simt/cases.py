"""What the SIMT tests have in common: moduli, residues, and a convolution with all ways to compute it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "csrc" / "testing" / "simt"))

from harness import Buffer, Driver

from tests.simt import oracle
from tests.simt.oracle import Ints, Pair, ints

BIG = 2**31 - 1
MODULI = (2, 3, BIG, 2**30, 998244353, 1073741789, 46341 * 46337, 2**31 - 3)
Numbers = dict[str, int | str]
Buffers = dict[str, Buffer | None]

# As cuda_launch.h numbers them.
ARITHMETIC = {"auto": 0, "double": 1, "int64": 2, "mid_sum": 3, "int8": 4}
TILES = {"any": 0, "small": 1, "medium": 2, "large": 3, "direct": 4}
DOUBLE_MAX_SUM = 2**22
INT64_MAX_SUM = 2**32
INT8_MAX_ABS = 127 * 65793
LIMITS = {"double": DOUBLE_MAX_SUM, "int64": INT64_MAX_SUM, "int8": INT64_MAX_SUM}


def sizes(**numbers: int) -> Numbers:
    return {**numbers}


def random_residues(rng: np.random.Generator, moduli: Sequence[int], shape: Sequence[int]) -> Ints:
    """Residues of each limb; about a third are 0, 1 or b - 1."""
    limbs = []
    for b in moduli:
        values = rng.integers(0, b, size=tuple(shape))
        edges = rng.choice(np.array([0, 1, b - 1]), size=tuple(shape))
        limbs.append(np.where(rng.random(tuple(shape)) < 0.35, edges, values))
    return ints(np.stack(limbs) if limbs else np.zeros((0, *shape), dtype=np.int64))


def same(got: object, expected: Ints) -> bool:
    return bool((ints(got).reshape(expected.shape) == expected).all())


@dataclass
class Conv:
    """One convolution: geometry, what to fill it with, and the arithmetic paths and tiles to try."""

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
    tiles: Sequence[str] = ("small", "medium", "large", "direct")
    numbers: Numbers = field(default_factory=dict)  # more for the driver
    linear: bool = False
    pool: Pair | None = None  # window of a sum pool in the same launch
    scaled: bool = False  # with a factor a limb behind it

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

    def geometry(self) -> Numbers:
        out = [
            oracle.out_size(self.size[i], self.kernel[i], self.stride[i], self.padding[i], self.dilation[i])
            for i in (0, 1)
        ]
        names = ("kernel", "stride", "padding", "dilation", "out")
        values = (self.kernel, self.stride, self.padding, self.dilation, out)
        numbers: Numbers = {
            f"{name}_{axis}": value[i] for name, value in zip(names, values, strict=True) for i, axis in enumerate("hw")
        }
        numbers |= sizes(height=self.size[0], width=self.size[1], stream=self.stream, groups=self.groups)
        shape = sizes(limbs=len(self.moduli), in_channels=self.in_channels, out_channels=self.out_channels)
        return numbers | shape

    def ways(self, max_abs: int, max_sum: int) -> list[tuple[str, str]]:
        """The (arithmetic, tile) pairs of this case that its weights allow."""
        found = []
        for name in self.arithmetic:
            if max_sum > LIMITS.get(name, max_sum) or (name == "int8" and max_abs > INT8_MAX_ABS):
                continue
            tiles: Sequence[str] = ("any",) if name in ("auto", "int8") else self.tiles
            tiles = [tile for tile in tiles if tile != "direct" or self.pool is None]
            found += [(name, tile) for tile in tiles if name != "mid_sum" or tile not in ("medium", "large")]
        return found

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
        op, factor = "linear" if self.linear else "conv2d", None
        if self.pool is not None:
            op = "conv2d_pool"
            if self.scaled:
                factor = random_residues(np.random.default_rng(self.seed + 1), self.moduli, ())
            expected = oracle.sum_pool2d(
                expected, self.moduli, kernel=self.pool, stride=self.pool, padding=(0, 0), factor=factor
            )
        max_abs, max_sum = oracle.weight_bounds(weight)
        numbers: Numbers = {
            **self.geometry(),
            "poly_degree": 0 if poly is None else poly.shape[2] - 1,
            "poly_channel_stride": 0 if poly is None or poly.shape[1] == 1 else poly.shape[2],
            "max_abs": max_abs,
            "max_sum": max_sum,
            **(sizes(pool_h=self.pool[0], pool_w=self.pool[1]) if self.pool is not None else {}),
            **self.numbers,
        }
        buffers: Buffers = {"x": x, "weight": weight, "bias": bias, "poly": poly, "moduli": ints(self.moduli)}
        buffers["factor"] = factor
        for schedule, (name, tile) in enumerate(self.ways(max_abs, max_sum), self.seed):
            way = sizes(arithmetic=ARITHMETIC[name], tile=TILES[tile], schedule=schedule % 5)
            got = driver.launch(op, numbers | way, buffers)
            assert same(got, expected), (name, tile)
