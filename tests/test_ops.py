"""Every residue op against the Python-integer oracle, by equality."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcfhe import ops, reference
from mcfhe.errors import ParameterError
from tests.conftest import Residues
from tests.shapes import EDGE_MODULI, SMALL_CONVS, ConvShape

MODULI = torch.tensor(EDGE_MODULI)
LATTICE_OPS = {"expand_uniform", "ntt", "tensor_square", "relinearise", "rescale"}  # tests/test_lattice_ops.py
# Largest weight for each arithmetic path of the CPU kernels.
WEIGHT_LIMITS = {"int16": 100, "double": 20_000, "int64": 1 << 24, "int64-mid": (1 << 31) - 1}


def weights(limit: int, *shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randint(-limit, limit + 1, shape, generator=generator)
    w.view(-1)[0] = limit
    w.view(-1)[-1] = -limit
    return w


@pytest.mark.parametrize("path", WEIGHT_LIMITS)
@pytest.mark.parametrize("stream", [1, 4, 33])
@pytest.mark.parametrize("name", SMALL_CONVS)
def test_conv2d_equals_oracle(residues: Residues, name: str, stream: int, path: str) -> None:
    shape = SMALL_CONVS[name]
    moduli = MODULI if path != "int16" else MODULI[:4]  # 2^31 - 1 takes the wide paths
    x = residues(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(WEIGHT_LIMITS[path], shape.out_channels, shape.channels // shape.groups, *shape.kernel)
    bias = residues(moduli, shape.out_channels)
    poly = residues(moduli, shape.out_channels, 3)
    got = ops.conv2d(x, w, bias, moduli, poly=poly, **shape.arguments)
    assert torch.equal(got, reference.conv2d(x, w, bias, moduli, poly=poly, **shape.arguments))


@pytest.mark.parametrize("path", WEIGHT_LIMITS)
@pytest.mark.parametrize("name", ["odd-channels", "groups"])
def test_conv2d_pool_equals_oracle(residues: Residues, name: str, path: str) -> None:
    shape = SMALL_CONVS[name]
    moduli = MODULI if path != "int16" else MODULI[:4]
    x = residues(moduli, shape.channels, shape.height, shape.width, 4)
    w = weights(WEIGHT_LIMITS[path], shape.out_channels, shape.channels // shape.groups, *shape.kernel)
    bias, poly, factor = residues(moduli, shape.out_channels), residues(moduli, 1, 3), residues(moduli)
    more = {"poly": poly, "pool": (2, 2), "pool_factor": factor, **shape.arguments}
    got = ops.conv2d(x, w, bias, moduli, **more)  # type: ignore[arg-type]
    assert torch.equal(got, reference.conv2d(x, w, bias, moduli, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", WEIGHT_LIMITS)
@pytest.mark.parametrize("stream", [1, 4, 33])
@pytest.mark.parametrize("name", SMALL_CONVS)
def test_conv2d_pool_equals_two_ops(residues: Residues, name: str, stream: int, path: str) -> None:
    """Windows that fill the output, and windows that leave rows and columns over."""
    shape = SMALL_CONVS[name]
    moduli = MODULI if path != "int16" else MODULI[:4]
    x = residues(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(WEIGHT_LIMITS[path], shape.out_channels, shape.channels // shape.groups, *shape.kernel)
    bias, poly = residues(moduli, shape.out_channels), residues(moduli, shape.out_channels, 3)
    whole = ops.conv2d(x, w, bias, moduli, poly=poly, **shape.arguments)
    for pool in ((2, 2), (3, 1), (1, 2), (1, 1)):
        if any(window > size for window, size in zip(pool, shape.out_size, strict=True)):
            continue
        for factor in (None, residues(moduli)):
            got = ops.conv2d(x, w, bias, moduli, poly=poly, pool=pool, pool_factor=factor, **shape.arguments)
            assert torch.equal(got, ops.sum_pool2d(whole, moduli, kernel=pool, factor=factor))


@pytest.mark.parametrize("stream", [127, 128, 129, 200])
def test_conv2d_pool_wide_streams(residues: Residues, stream: int) -> None:
    """Around the blocking limits, and in bands of rows that are cut between windows."""
    for shape in (ConvShape(3, 7, 6, 5, stride=(1, 2), padding=(1, 1)), ConvShape(16, 40, 9, 4, kernel=(5, 5))):
        x = residues(MODULI[:3], shape.channels, shape.height, shape.width, stream)
        w, factor = weights(50, shape.out_channels, shape.channels, *shape.kernel), residues(MODULI[:3])
        whole = ops.conv2d(x, w, None, MODULI[:3], **shape.arguments)
        for pool in ((2, 2), (3, 2)):
            got = ops.conv2d(x, w, None, MODULI[:3], pool=pool, pool_factor=factor, **shape.arguments)
            assert torch.equal(got, ops.sum_pool2d(whole, MODULI[:3], kernel=pool, factor=factor))


@pytest.mark.parametrize("limit", WEIGHT_LIMITS.values())
def test_conv2d_pool_largest_sums(limit: int) -> None:
    """Every output of every window b - 1, times b - 1."""
    x = (MODULI - 1).view(-1, 1, 1, 1, 1).expand(-1, 2, 5, 4, 5).contiguous()
    w = torch.tensor([[limit, 1 - limit]]).view(1, 2, 1, 1)
    got = ops.conv2d(x, w, None, MODULI, pool=(2, 2), pool_factor=MODULI - 1)
    expected = [4 * (b - 1) ** 2 % b for b in EDGE_MODULI]
    assert torch.equal(got, torch.tensor(expected).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 5))


def test_conv2d_extreme_residues_and_weights() -> None:
    """All residues b - 1 and all weights +-(2^31 - 1): the largest sums there are."""
    for limit in WEIGHT_LIMITS.values():
        for sign in (1, -1):
            x = (MODULI - 1).view(-1, 1, 1, 1, 1).expand(-1, 6, 4, 4, 5).contiguous()
            w = torch.full((3, 6, 3, 3), sign * limit)
            assert torch.equal(ops.conv2d(x, w, None, MODULI), reference.conv2d(x, w, None, MODULI))


@pytest.mark.parametrize("limit", [65535 // 54, 65535 // 54 + 1])
def test_int16_path_boundary(limit: int) -> None:
    """Sums of |q| just below and just above what 32-bit sums of 16-bit halves hold, with the largest residues."""
    moduli = torch.tensor([(1 << 31) - (1 << 15), (1 << 31) - (1 << 15) + 1, (1 << 31) - 1])
    for m in moduli:
        x = (m - 1).view(1, 1, 1, 1, 1).expand(1, 6, 3, 3, 16).contiguous()
        w = torch.full((1, 6, 3, 3), limit)
        assert torch.equal(ops.conv2d(x, w, None, m[None]), reference.conv2d(x, w, None, m[None]))


@pytest.mark.parametrize("stream", [127, 128, 129, 200])
def test_conv2d_wide_streams(residues: Residues, stream: int) -> None:
    """Streams around the blocking limits; only some columns go to the (slow) oracle."""
    shape = ConvShape(3, 6, 5, 5, stride=(1, 2), padding=(1, 1))
    x = residues(MODULI, 3, 6, 5, stream)
    w = weights(300, 5, 3, 3, 3)
    got = ops.conv2d(x, w, None, MODULI, **shape.arguments)
    for part in (slice(0, 2), slice(62, 66), slice(stream - 2, stream)):
        expected = reference.conv2d(x[..., part], w, None, MODULI, **shape.arguments)
        assert torch.equal(got[..., part], expected)


def test_conv2d_bands(residues: Residues) -> None:
    """Enough rows and channels that one task cannot hold the layer: bands must join without a seam."""
    moduli = torch.tensor([1073741789])
    x = residues(moduli, 16, 40, 40, 64)
    w = weights(50, 4, 16, 5, 5)
    got = ops.conv2d(x, w, None, moduli, padding=(2, 2))
    exact = torch.nn.functional.conv2d(
        x[0].permute(3, 0, 1, 2)[:4].double(), w.double(), padding=2
    )  # below 2^53: 400 * 50 * 2^30
    assert torch.equal(got[0].permute(3, 0, 1, 2)[:4], exact.to(torch.int64) % 1073741789)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_conv2d_random_shapes(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.integers(1, 3))
    shape = ConvShape(
        channels=groups * draw(st.integers(1, 3)),
        height=draw(st.integers(1, 6)),
        width=draw(st.integers(1, 6)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=groups,
    )
    if min(shape.out_size) < 1:
        return
    moduli = torch.tensor(draw(st.lists(st.integers(2, (1 << 31) - 1), min_size=1, max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    stream = draw(st.integers(1, 9))
    x = torch.stack(
        [
            torch.randint(0, b, (shape.channels, shape.height, shape.width, stream), generator=generator)
            for b in moduli.tolist()
        ]
    )
    limit = draw(st.sampled_from(list(WEIGHT_LIMITS.values())))
    w = torch.randint(
        -limit, limit + 1, (shape.out_channels, shape.channels // groups, *shape.kernel), generator=generator
    )
    got = ops.conv2d(x, w, None, moduli, **shape.arguments)
    assert torch.equal(got, reference.conv2d(x, w, None, moduli, **shape.arguments))


@pytest.mark.parametrize("path", WEIGHT_LIMITS)
@pytest.mark.parametrize("stream", [1, 4, 65])
def test_linear_equals_oracle(residues: Residues, stream: int, path: str) -> None:
    x = residues(MODULI, 37, stream)
    w = weights(WEIGHT_LIMITS[path], 6, 37)
    bias = residues(MODULI, 6)
    poly = residues(MODULI, 1, 4)
    got = ops.linear(x, w, bias, MODULI, poly=poly)
    assert torch.equal(got, reference.linear(x, w, bias, MODULI, poly=poly))


def test_given_weight_bounds_choose_the_arithmetic_only(residues: Residues) -> None:
    x, w = residues(MODULI, 2, 5, 5, 4), weights(100, 3, 2, 3, 3)
    plain = ops.conv2d(x, w, None, MODULI)
    for bounds in ((100, 1800), (20_000, 1 << 20), (1 << 24, 1 << 30), ((1 << 31) - 1, 1 << 40)):
        assert torch.equal(ops.conv2d(x, w, None, MODULI, weight_bounds=bounds), plain)


@pytest.mark.parametrize("stream", [1, 4, 33])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 1)), ((5, 5), (5, 5), (0, 0)), ((2, 2), (3, 3), (1, 0))],
)
def test_sum_pool2d_equals_oracle(
    residues: Residues, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], stream: int
) -> None:
    x = residues(MODULI, 3, 6, 7, stream)
    for factor in (None, residues(MODULI)):
        got = ops.sum_pool2d(x, MODULI, kernel=kernel, stride=stride, padding=padding, factor=factor)
        expected = reference.sum_pool2d(x, MODULI, kernel=kernel, stride=stride, padding=padding, factor=factor)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(3, 2, 2, 5), (3, 7), (1,), (2, 4097)])
def test_pointwise_ops_equal_oracle(residues: Residues, shape: tuple[int, ...]) -> None:
    x, y = residues(MODULI, *shape), residues(MODULI, *shape)
    channels = shape[0] if len(shape) > 1 else 1
    assert torch.equal(ops.square(x, MODULI), reference.square(x, MODULI))
    for rows in {1, channels}:
        for degree in (1, 2, 3, 5):
            table = residues(MODULI, rows, degree + 1)
            assert torch.equal(ops.poly(x, table, MODULI), reference.poly(x, table, MODULI))
        constant = residues(MODULI, rows)
        assert torch.equal(ops.add_const(x, constant, MODULI), reference.add_const(x, constant, MODULI))
    for fx, fy in (
        (None, None),
        (residues(MODULI), None),
        (None, residues(MODULI)),
        (residues(MODULI), residues(MODULI)),
    ):
        got = ops.align_add(x, y, MODULI, x_factor=fx, y_factor=fy)
        assert torch.equal(got, reference.align_add(x, y, MODULI, x_factor=fx, y_factor=fy))


@pytest.mark.parametrize("coefficients", [(0, 0, 1), (1, 1), (0, 1), (1, 0, 1), (0, 0, 0), (1, 1, 1, 1)])
def test_poly_special_coefficients(residues: Residues, coefficients: tuple[int, ...]) -> None:
    """Monic polynomials take a shortcut; results at 0, 1 and b - 1 must still be canonical."""
    x = residues(MODULI, 4, 9)
    table = torch.tensor(coefficients).expand(5, 1, -1).contiguous()
    assert torch.equal(ops.poly(x, table, MODULI), reference.poly(x, table, MODULI))


@given(b=st.integers(2, (1 << 31) - 1), values=st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_square_any_modulus(b: int, values: list[int]) -> None:
    x = torch.tensor([[v % b for v in values]])
    assert ops.square(x, torch.tensor([b]))[0].tolist() == [v * v % b for v in x[0].tolist()]


def test_count_and_check_residues(residues: Residues) -> None:
    x = residues(MODULI, 3, 50_000)
    assert int(torch.ops.mcfhe.count_out_of_range(x, MODULI)) == 0
    x[1, 2, 3], x[4, 0, 0], x[0, 0, 1] = 3, -1, 1 << 40
    assert int(torch.ops.mcfhe.count_out_of_range(x, MODULI)) == 3
    with pytest.raises(ValueError, match="3 of 750000 residues"):
        ops.check_residues(x, MODULI)


def test_empty_batch_and_no_limbs(residues: Residues) -> None:
    w = weights(5, 3, 2, 3, 3)
    assert ops.conv2d(residues(MODULI, 2, 5, 5, 0), w, None, MODULI).shape == (5, 3, 3, 3, 0)
    assert ops.conv2d(residues(MODULI, 2, 6, 5, 0), w, None, MODULI, pool=(2, 2)).shape == (5, 3, 2, 1, 0)
    assert ops.linear(residues(MODULI, 4, 0), weights(5, 3, 4), None, MODULI).shape == (5, 3, 0)
    assert ops.square(residues(MODULI, 2, 0), MODULI).shape == (5, 2, 0)
    assert ops.sum_pool2d(residues(MODULI, 2, 4, 4, 0), MODULI, kernel=(2, 2)).shape == (5, 2, 2, 2, 0)
    none = torch.empty(0, dtype=torch.int64)
    assert ops.conv2d(torch.empty(0, 2, 5, 5, 4, dtype=torch.int64), w, None, none).shape == (0, 3, 3, 3, 4)


def test_non_contiguous_input(residues: Residues) -> None:
    wide = residues(MODULI, 2, 5, 5, 8)
    w = weights(50, 2, 3, 3, 3).transpose(0, 1)
    view = wide[..., ::2]
    assert not view.is_contiguous()
    assert not w.is_contiguous()
    assert torch.equal(
        ops.conv2d(view, w, None, MODULI), reference.conv2d(view.contiguous(), w.contiguous(), None, MODULI)
    )
    assert torch.equal(ops.square(view, MODULI), reference.square(view.contiguous(), MODULI))
    assert torch.equal(
        ops.align_add(view, view, MODULI), reference.align_add(view.contiguous(), view.contiguous(), MODULI)
    )


def _conv(**changes: object) -> None:
    arguments: dict[str, object] = {
        "x": torch.zeros(2, 2, 4, 4, 3, dtype=torch.int64),
        "weight": torch.ones(2, 2, 3, 3, dtype=torch.int64),
        "bias": None,
        "moduli": torch.tensor([5, 7]),
    }
    arguments.update(changes)
    ops.conv2d(**arguments)  # type: ignore[arg-type]


REFUSALS = {
    "x dtype": ({"x": torch.zeros(2, 2, 4, 4, 3)}, "x must be int64"),
    "x rank": ({"x": torch.zeros(2, 2, 4, 4, dtype=torch.int64)}, r"x has shape \[2, 2, 4, 4\]"),
    "weight dtype": ({"weight": torch.ones(2, 2, 3, 3)}, "weight must be int64"),
    "weight channels": ({"weight": torch.ones(2, 3, 3, 3, dtype=torch.int64)}, "x has 2 channels"),
    "weight too large": ({"weight": torch.full((2, 2, 3, 3), 1 << 31)}, "above 2\\^31 - 1"),
    "weight most negative": ({"weight": torch.full((2, 2, 3, 3), -(1 << 63))}, "above 2\\^31 - 1"),
    "kernel too large": ({"weight": torch.ones(2, 2, 5, 5, dtype=torch.int64)}, "window spans 5"),
    "moduli length": ({"moduli": torch.tensor([5])}, r"moduli has shape \[1\]"),
    "modulus 1": ({"moduli": torch.tensor([5, 1])}, r"moduli\[1\] = 1"),
    "modulus 2^31": ({"moduli": torch.tensor([5, 1 << 31])}, r"moduli\[1\] = 2147483648"),
    "negative modulus": ({"moduli": torch.tensor([-5, 7])}, r"moduli\[0\] = -5"),
    "residue b": ({"x": torch.full((2, 2, 4, 4, 3), 5)}, "outside 0 <= r < b"),
    "residue negative": ({"x": torch.full((2, 2, 4, 4, 3), -1)}, "outside 0 <= r < b"),
    "bias shape": ({"bias": torch.zeros(2, 3, dtype=torch.int64)}, r"bias has shape \[2, 3\]"),
    "bias range": ({"bias": torch.full((2, 2), 6)}, "bias holds 6 in limb 0"),
    "poly shape": ({"poly": torch.zeros(2, 3, 3, dtype=torch.int64)}, r"poly has shape \[2, 3, 3\]"),
    "poly degree 0": ({"poly": torch.zeros(2, 1, 1, dtype=torch.int64)}, "degree >= 1"),
    "poly range": ({"poly": torch.full((2, 1, 3), 6)}, "poly holds 6 in limb 0"),
    "stride 0": ({"stride": (0, 1)}, "stride = \\[0, 1\\]"),
    "padding": ({"padding": (-1, 0)}, "padding = \\[-1, 0\\]"),
    "groups": ({"groups": 3}, "groups = 3 must divide"),
    "bounds": ({"weight_bounds": (5, 2)}, "weight_bounds = \\[5, 2\\]"),
    "pool of one size": ({"pool": (2,)}, "pool = \\[2\\] must be two integers"),
    "pool 0": ({"pool": (0, 2)}, "pool = \\[0, 2\\]"),
    "pool too large": ({"pool": (2, 3)}, "pool width: the window spans 3"),
    "pool beyond 2^20": ({"pool": (1 << 11, 1 << 11)}, "2\\^20 entries"),
    "factor without pool": ({"pool_factor": torch.tensor([1, 1])}, "there is no pool"),
    "factor shape": ({"pool": (2, 2), "pool_factor": torch.tensor([1])}, r"pool_factor has shape \[1\]"),
    "factor range": ({"pool": (2, 2), "pool_factor": torch.tensor([5, 1])}, "pool_factor holds 5 in limb 0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_argument(name: str) -> None:
    changes, message = REFUSALS[name]
    with pytest.raises(RuntimeError, match=message):
        _conv(**changes)


@pytest.mark.parametrize("bad", [-1, 5, 1 << 40, -(1 << 63)])
def test_pointwise_ops_refuse_residues_out_of_range(bad: int) -> None:
    moduli = torch.tensor([5, 7])
    good = torch.zeros(2, 3, 10, dtype=torch.int64)
    table = torch.ones(2, 1, 3, dtype=torch.int64)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: ops.square(x, moduli),
        lambda x: ops.poly(x, table, moduli),
        lambda x: ops.add_const(x, torch.zeros(2, 1, dtype=torch.int64), moduli),
        lambda x: ops.align_add(x, good, moduli),
        lambda x: ops.align_add(good, x, moduli),
        lambda x: ops.linear(x, torch.ones(2, 3, dtype=torch.int64), None, moduli),
        lambda x: ops.sum_pool2d(x.view(2, 3, 1, 2, 5), moduli, kernel=(1, 1)),
    ]
    for position in (0, 17, 29):  # in a full vector and in the last, partial one
        x = good.clone()
        x.view(2, -1)[0, position] = bad
        for call in calls:
            with pytest.raises(RuntimeError, match="outside 0 <= r < b"):
                call(x)


def test_a_refusal_names_the_operand_that_may_be_bad() -> None:
    x, y = torch.zeros(1, 1, 4, dtype=torch.int64), torch.full((1, 1, 4), 7)
    with pytest.raises(RuntimeError, match=r"mcfhe::align_add: x or y holds a value outside"):
        ops.align_add(x, y, torch.tensor([5]))


def test_refusals_do_not_tell_where_the_extension_was_built() -> None:
    with pytest.raises(RuntimeError, match="x must be int64") as refused:
        ops.square(torch.zeros(1, 1, 4), torch.tensor([5]))
    assert " /" not in str(refused.value)


def test_one_meta_tensor_among_real_ones_is_refused() -> None:
    """Its dispatch key wins: the shape function runs, whose result would be memory that nobody has written."""
    x, w, moduli = torch.zeros(1, 1, 2, 2, 1, dtype=torch.int64), torch.ones(1, 1, 1, 1, dtype=torch.int64), [5]
    calls: list[Callable[[], Tensor]] = [
        lambda: ops.conv2d(x, w.to("meta"), None, torch.tensor(moduli)),
        lambda: ops.square(x, torch.tensor(moduli, device="meta")),
        lambda: ops.align_add(x, x.to("meta"), torch.tensor(moduli)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="tensors are on cpu and meta"):
            call()
    assert ops.square(x.to("meta"), torch.tensor(moduli, device="meta")).shape == x.shape


@pytest.mark.parametrize("x", [None, [1, 2], np.zeros((1, 1, 4), np.int64)])
def test_what_is_no_tensor_is_refused_by_name(x: Any) -> None:
    with pytest.raises(ParameterError, match=r"^x: .* given; give an int64 tensor of residues"):
        ops.square(x, torch.tensor([5]))


def test_one_number_stands_for_both_axes(residues: Residues) -> None:
    x, w = residues(MODULI, 2, 8, 8, 3), weights(9, 4, 2, 3, 3)
    pairs = ops.conv2d(x, w, None, MODULI, stride=(2, 2), padding=(1, 1), dilation=(1, 1), pool=(2, 2))
    assert torch.equal(ops.conv2d(x, w, None, MODULI, stride=2, padding=1, dilation=1, pool=2), pairs)
    assert torch.equal(ops.sum_pool2d(x, MODULI, kernel=2), ops.sum_pool2d(x, MODULI, kernel=(2, 2)))
    with pytest.raises(ParameterError, match=r"^stride: float given"):
        ops.conv2d(x, w, None, MODULI, stride=1.5)  # type: ignore[arg-type]


def test_opcheck_every_op(residues: Residues) -> None:
    x, moduli = residues(MODULI, 2, 6, 6, 3), MODULI
    flat = residues(MODULI, 8, 3)
    w, v = weights(9, 4, 2, 3, 3), weights(9, 5, 8)
    table, factor = residues(MODULI, 1, 3), residues(MODULI)
    m = torch.ops.mcfhe
    calls: list[tuple[object, tuple[object, ...]]] = [
        (m.conv2d.default, (x, w, residues(MODULI, 4), table, moduli, [2, 1], [1, 1], [1, 1], 1)),
        (m.conv2d.default, (x, w, None, None, moduli, [1, 1], [0, 0], [1, 1], 1, [9, 200])),
        (m.conv2d.default, (x, w, None, table, moduli, [1, 1], [1, 1], [1, 1], 1, None, [4, 2], factor)),
        (m.linear.default, (flat, v, None, table, moduli)),
        (m.sum_pool2d.default, (x, factor, moduli, [2, 3], [2, 1], [1, 0])),
        (m.square.default, (flat, moduli)),
        (m.poly.default, (x, table, moduli)),
        (m.align_add.default, (x, x.clone(), factor, None, moduli)),
        (m.add_const.default, (x, residues(MODULI, 2), moduli)),
        (m.add_const.default, (x, residues(MODULI, 2), moduli, 2)),
        (m.count_out_of_range.default, (x, moduli)),
    ]
    covered = set()
    for op, arguments in calls:
        torch.library.opcheck(op, arguments)  # type: ignore[arg-type]
        covered.add(op.name().split("::")[1])  # type: ignore[attr-defined]
    assert covered == {name.split("::")[1] for name in _registered()} - {"cpu_isa"} - LATTICE_OPS


def _registered() -> set[str]:
    return {s.split(".")[0] for s in torch._C._dispatch_get_all_op_names() if s.startswith("mcfhe::")}


def test_ops_trace_under_torch_compile_backend_eager(residues: Residues) -> None:
    x, w = residues(MODULI, 2, 4, 4, 3), weights(9, 4, 2, 3, 3)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def f(x: Tensor) -> Tensor:
        return ops.square(ops.conv2d(x, w, None, MODULI, validate=False), MODULI, validate=False)

    assert torch.equal(f(x), ops.square(ops.conv2d(x, w, None, MODULI), MODULI))


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    """This file again, held to another instruction set; the default run is the best one there is."""
    if os.environ.get("MCFHE_CPU_ISA"):
        pytest.skip("already running under a forced instruction set")
    with Path("/proc/cpuinfo").open() as cpuinfo:
        if isa == "avx2" and " avx2 " not in cpuinfo.read():
            pytest.skip("this processor has no AVX2")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "MCFHE_CPU_ISA": isa},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_instruction_set_is_refused() -> None:
    code = "import torch\nfrom mcfhe import ops\nops.square(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([3]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MCFHE_CPU_ISA": "sse9"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "MCFHE_CPU_ISA=sse9" in done.stderr
