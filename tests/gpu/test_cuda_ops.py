"""The CUDA ops against the Python-integer oracle, and against the CPU ops where the oracle is too slow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcfhe import reference
from tests.gpu.conftest import Draw
from tests.shapes import EDGE_MODULI, LENET_CONVS, LENET_LINEARS, PRIMES_30, SMALL_CONVS, WIDE_CONV, ConvShape

pytestmark = pytest.mark.gpu

MODULI = torch.tensor(EDGE_MODULI)
PRIMES = torch.tensor(PRIMES_30[:3])
# Largest weight, and the bounds handed to the op: what they allow chooses the arithmetic. None: the op measures.
ARITHMETIC: dict[str, tuple[int, tuple[int, int] | None]] = {
    "double": (200, (200, 2**22)),
    "int64": (200, (200, 2**32)),
    "int64-mid": (2**31 - 1, (2**31 - 1, 2**40)),
    "measured": (20_000, None),
}


def weights(limit: int, *shape: int) -> Tensor:
    w = torch.randint(-limit, limit + 1, shape, generator=torch.Generator().manual_seed(3))
    w.view(-1)[0] = limit
    w.view(-1)[-1] = -limit
    return w


Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]  # x, weight, bias, poly, moduli


def conv2d(inputs: Inputs, shape: ConvShape, bounds: tuple[int, int] | None) -> Tensor:
    sizes = (list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups)
    result: Tensor = torch.ops.mcfhe.conv2d(*inputs, *sizes, bounds)
    return result


def on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    x, w, bias, poly, moduli = inputs
    return x.to(device), w.to(device), on(device, bias), on(device, poly), moduli.to(device)


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("stream", [1, 3, 4, 32, 33])
@pytest.mark.parametrize("name", SMALL_CONVS)
def test_conv2d_equals_oracle(draw: Draw, device: torch.device, name: str, stream: int, arithmetic: str) -> None:
    shape = SMALL_CONVS[name]
    limit, bounds = ARITHMETIC[arithmetic]
    moduli = MODULI[[0, 2, 4]]
    x = draw(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(limit, shape.out_channels, shape.channels // shape.groups, *shape.kernel)
    bias = draw(moduli, shape.out_channels)
    poly = draw(moduli, shape.out_channels, 3)
    poly[:, 0] = torch.tensor([0, 0, 1])  # one channel a square
    expected = reference.conv2d(
        x,
        w,
        bias,
        moduli,
        poly=poly,
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=shape.groups,
    )
    got = conv2d(moved((x, w, bias, poly, moduli), device), shape, bounds)
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("limit", "bounds"), [(2**22 // 6, 2**22), (2**32 // 6, 2**32), (2**31 - 1, 2**40)])
def test_conv2d_at_the_limit_of_its_arithmetic(device: torch.device, sign: int, limit: int, bounds: int) -> None:
    """Every residue b - 1, sum |q| the largest allowed."""
    shape = ConvShape(6, 2, 2, 3, kernel=(1, 1))
    x = (MODULI - 1).view(-1, 1, 1, 1, 1).expand(-1, 6, 2, 2, 4).contiguous()
    w = torch.full((3, 6, 1, 1), sign * limit)
    expected = reference.conv2d(x, w, None, MODULI)
    got = conv2d(moved((x, w, None, None, MODULI), device), shape, (limit, bounds))
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("arithmetic", ["double", "int64"])
@pytest.mark.parametrize("stream", [1, 4, 64, 400, 4096])
@pytest.mark.parametrize("name", [*LENET_CONVS, "wide"])
def test_conv2d_equals_cpu(draw: Draw, device: torch.device, name: str, stream: int, arithmetic: str) -> None:
    """Real layers at every batch size: all tiles of the convolution."""
    shape = WIDE_CONV if name == "wide" else LENET_CONVS[name]
    moduli = PRIMES
    if shape.macs * stream > 3 * 10**9:
        stream, moduli = min(stream, 64), PRIMES[:1]
    limit, bounds = ARITHMETIC[arithmetic]
    x = draw(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(limit, shape.out_channels, shape.channels, *shape.kernel)
    bias = draw(moduli, shape.out_channels)
    poly = torch.tensor([0, 0, 1]).expand(len(moduli), 1, 3)
    inputs: Inputs = (x, w, bias, poly, moduli)
    assert torch.equal(conv2d(moved(inputs, device), shape, bounds).cpu(), conv2d(inputs, shape, bounds))


@pytest.mark.parametrize("seed", range(60))
def test_conv2d_random_shapes_equal_cpu(draw: Draw, device: torch.device, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    groups = pick(1, 3)
    kernel, dilation, padding = (pick(1, 5), pick(1, 5)), (pick(1, 3), pick(1, 2)), (pick(0, 3), pick(0, 3))
    height, width = (max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + pick(0, 20) for i in (0, 1))
    shape = ConvShape(
        groups * pick(1, 20), height, width, groups * pick(1, 40), kernel, (pick(1, 3), pick(1, 3)), padding, dilation,
        groups,
    )  # fmt: skip
    stream = (1, 2, 3, 4, 5, 16, 33, 64, 100, 257)[pick(0, 9)]
    x = draw(PRIMES, shape.channels, height, width, stream)
    w = weights((1, 100, 2**16, 2**31 - 1)[pick(0, 3)], shape.out_channels, shape.channels // groups, *kernel)
    bias = draw(PRIMES, shape.out_channels) if pick(0, 1) else None
    poly = draw(PRIMES, (1, shape.out_channels)[pick(0, 1)], pick(2, 5)) if pick(0, 1) else None
    inputs: Inputs = (x, w, bias, poly, PRIMES)
    assert torch.equal(conv2d(moved(inputs, device), shape, None).cpu(), conv2d(inputs, shape, None))


# A window of four outputs goes into the convolution's launch, one of another size takes a second launch.
POOLS = [(2, 2), (1, 4), (4, 1), (3, 2), (1, 1)]


def conv2d_pool(
    inputs: Inputs, shape: ConvShape, bounds: tuple[int, int] | None, pool: tuple[int, int], factor: Tensor | None
) -> Tensor:
    sizes = (list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups)
    result: Tensor = torch.ops.mcfhe.conv2d(*inputs, *sizes, bounds, list(pool), factor)
    return result


def pool_inputs(draw: Draw, shape: ConvShape, moduli: Tensor, stream: int, limit: int) -> Inputs:
    x = draw(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(limit, shape.out_channels, shape.channels // shape.groups, *shape.kernel)
    return x, w, draw(moduli, shape.out_channels), draw(moduli, 1, 3), moduli


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("name", ["odd-channels", "groups"])
def test_conv2d_pool_equals_oracle(draw: Draw, device: torch.device, name: str, arithmetic: str) -> None:
    shape = SMALL_CONVS[name]
    limit, bounds = ARITHMETIC[arithmetic]
    inputs = pool_inputs(draw, shape, MODULI, 4, limit)
    x, w, bias, poly, _ = inputs
    whole = reference.conv2d(
        x, w, bias, MODULI, poly=poly, stride=shape.stride, padding=shape.padding, groups=shape.groups
    )
    factor = draw(MODULI)
    got = conv2d_pool(moved(inputs, device), shape, bounds, (2, 2), factor.to(device))
    assert torch.equal(got.cpu(), reference.sum_pool2d(whole, MODULI, kernel=(2, 2), factor=factor))


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("stream", [1, 4, 33, 260])
@pytest.mark.parametrize("name", SMALL_CONVS)
def test_conv2d_pools_equal_cpu(draw: Draw, device: torch.device, name: str, stream: int, arithmetic: str) -> None:
    """Windows that fill the output, and windows that leave rows and columns over."""
    shape = SMALL_CONVS[name]
    limit, bounds = ARITHMETIC[arithmetic]
    inputs = pool_inputs(draw, shape, MODULI, stream, limit)
    for pool in POOLS:
        if any(window > size for window, size in zip(pool, shape.out_size, strict=True)):
            continue
        for factor in (None, draw(MODULI)):
            got = conv2d_pool(moved(inputs, device), shape, bounds, pool, on(device, factor))
            assert torch.equal(got.cpu(), conv2d_pool(inputs, shape, bounds, pool, factor))


@pytest.mark.parametrize("arithmetic", ["double", "int64", "int64-mid"])
@pytest.mark.parametrize("pool", POOLS[:3])
def test_conv2d_pool_largest_sums(device: torch.device, pool: tuple[int, int], arithmetic: str) -> None:
    """Every output of every window b - 1, times b - 1."""
    shape = ConvShape(2, 9, 9, 1, kernel=(1, 1))
    bounds = {"double": (2, 3), "int64": (2, 2**32), "int64-mid": (2, 2**40)}[arithmetic]
    x = (MODULI - 1).view(-1, 1, 1, 1, 1).expand(-1, 2, 9, 9, 4).contiguous()
    w = torch.tensor([2, -1]).view(1, 2, 1, 1)
    got = conv2d_pool(moved((x, w, None, None, MODULI), device), shape, bounds, pool, (MODULI - 1).to(device))
    expected = torch.tensor([4 * (b - 1) ** 2 % b for b in EDGE_MODULI])
    assert torch.equal(got.cpu(), expected.view(-1, 1, 1, 1, 1).expand(got.shape))


@pytest.mark.parametrize("arithmetic", ["double", "int64"])
@pytest.mark.parametrize("stream", [1, 4, 64, 400, 4096])
@pytest.mark.parametrize("name", LENET_CONVS)
def test_conv2d_pool_equals_cpu(draw: Draw, device: torch.device, name: str, stream: int, arithmetic: str) -> None:
    shape = LENET_CONVS[name]
    limit, bounds = ARITHMETIC[arithmetic]
    moduli = PRIMES if shape.macs * stream < 10**9 else PRIMES[:1]
    x = draw(moduli, shape.channels, shape.height, shape.width, stream)
    w = weights(limit, shape.out_channels, shape.channels, *shape.kernel)
    square = torch.tensor([0, 0, 1]).expand(len(moduli), 1, 3)
    inputs: Inputs = (x, w, draw(moduli, shape.out_channels), square, moduli)
    factor = draw(moduli)
    got = conv2d_pool(moved(inputs, device), shape, bounds, (2, 2), factor.to(device))
    assert torch.equal(got.cpu(), conv2d_pool(inputs, shape, bounds, (2, 2), factor))


def test_conv2d_pool_where_no_tile_holds_a_window(draw: Draw, device: torch.device) -> None:
    shape = ConvShape(1, 201, 202, 1, kernel=(2, 2), dilation=(100, 100), stride=(90, 90))
    inputs: Inputs = (draw(PRIMES, 1, 201, 202, 3), weights(200, 1, 1, 2, 2), None, None, PRIMES)
    got = conv2d_pool(moved(inputs, device), shape, None, (2, 2), None)
    assert torch.equal(got.cpu(), conv2d_pool(inputs, shape, None, (2, 2), None))


@pytest.mark.parametrize("limit", [200, 2**31 - 1])
@pytest.mark.parametrize("stream", [1, 3, 4, 16, 17, 64, 400, 4096])
@pytest.mark.parametrize("name", [*LENET_LINEARS, "long", "odd"])
def test_linear_equals_cpu(draw: Draw, device: torch.device, name: str, stream: int, limit: int) -> None:
    features, outs = {**LENET_LINEARS, "long": (5000, 3), "odd": (7, 13)}[name]
    x = draw(PRIMES, features, stream)
    w = weights(limit, outs, features)
    bias = draw(PRIMES, outs)
    poly = draw(PRIMES, outs, 4)
    for bounds in (None, (limit, limit * features)):
        got = torch.ops.mcfhe.linear(*moved((x, w, bias, poly, PRIMES), device), bounds)
        assert torch.equal(got.cpu(), torch.ops.mcfhe.linear(x, w, bias, poly, PRIMES, bounds))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("stream", [1, 4, 33, 130])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1)), ((7, 9), (7, 9), (0, 0))]
)
def test_sum_pool2d_equals_oracle(
    draw: Draw,
    device: torch.device,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    stream: int,
    scaled: bool,
) -> None:
    x = draw(MODULI, 3, 7, 9, stream)
    factor = draw(MODULI) if scaled else None
    expected = reference.sum_pool2d(x, MODULI, kernel=kernel, stride=stride, padding=padding, factor=factor)
    inputs = (x.to(device), on(device, factor), MODULI.to(device))
    got = torch.ops.mcfhe.sum_pool2d(*inputs, list(kernel), list(stride), list(padding))
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 4, 3), (2, 3, 4), (120, 4), (4, 8, 8, 16), (33,)])
def test_pointwise_equals_oracle(draw: Draw, device: torch.device, shape: tuple[int, ...]) -> None:
    channels = shape[0] if len(shape) > 1 else 1
    x, y = draw(MODULI, *shape), draw(MODULI, *shape)
    fx, fy = draw(MODULI), draw(MODULI)
    xd, yd, md = x.to(device), y.to(device), MODULI.to(device)
    assert torch.equal(torch.ops.mcfhe.square(xd, md).cpu(), reference.square(x, MODULI))
    for rows in {1, channels}:
        for degree in (1, 2, 5):
            table = draw(MODULI, rows, degree + 1)
            got = torch.ops.mcfhe.poly(xd, table.to(device), md)
            assert torch.equal(got.cpu(), reference.poly(x, table, MODULI))
        constant = draw(MODULI, rows)
        got = torch.ops.mcfhe.add_const(xd, constant.to(device), md)
        assert torch.equal(got.cpu(), reference.add_const(x, constant, MODULI))
    for a, b in ((None, None), (fx, None), (None, fy), (fx, fy)):
        got = torch.ops.mcfhe.align_add(xd, yd, on(device, a), on(device, b), md)
        assert torch.equal(got.cpu(), reference.align_add(x, y, MODULI, x_factor=a, y_factor=b))


def test_count_out_of_range(draw: Draw, device: torch.device) -> None:
    x = draw(MODULI, 3, 5000)
    x[0, 1, 7] = -1
    x[1, 2, 9] = MODULI[1]
    x[4, 0, 0] = 2**63 - 1
    x[4, 2, 4999] = -(2**63)
    assert int(torch.ops.mcfhe.count_out_of_range(x.to(device), MODULI.to(device))) == 4


def test_layouts_are_made_dense(draw: Draw, device: torch.device) -> None:
    """Transposed, sliced, expanded and misaligned (an odd storage offset) inputs."""
    shape = ConvShape(2, 6, 6, 3)
    w = weights(100, 3, 2, 3, 3)
    base = draw(PRIMES, 2, 6, 6, 8).to(device)
    odd = torch.empty(base.numel() + 1, dtype=torch.int64, device=device)[1:].view(base.shape)
    odd.copy_(base)
    for x in (base.transpose(2, 3), base[..., ::2], base[..., :1].expand(-1, -1, -1, -1, 5), odd):
        got = conv2d((x, w.to(device), None, None, PRIMES.to(device)), shape, None)
        assert torch.equal(got.cpu(), conv2d((x.cpu(), w, None, None, PRIMES), shape, None))
        squared = torch.ops.mcfhe.square(x, PRIMES.to(device))
        assert squared.is_contiguous()
        assert torch.equal(squared.cpu(), torch.ops.mcfhe.square(x.cpu(), PRIMES))


def test_nothing_in_nothing_out(device: torch.device) -> None:
    md = PRIMES.to(device)
    empty = torch.empty(3, 2, 5, 5, 0, dtype=torch.int64, device=device)
    w = weights(9, 4, 2, 3, 3).to(device)
    assert conv2d((empty, w, None, None, md), ConvShape(2, 5, 5, 4), None).shape == (3, 4, 3, 3, 0)
    assert torch.ops.mcfhe.square(empty, md).shape == empty.shape
    assert int(torch.ops.mcfhe.count_out_of_range(empty, md)) == 0


def test_bad_arguments_are_refused(draw: Draw, device: torch.device) -> None:
    shape = ConvShape(2, 5, 5, 4)
    x, w, md = draw(PRIMES, 2, 5, 5, 4).to(device), weights(9, 4, 2, 3, 3).to(device), PRIMES.to(device)
    with pytest.raises(RuntimeError, match="moduli is on another device"):
        conv2d((x, w, None, None, PRIMES), shape, None)
    with pytest.raises(RuntimeError, match="must be int64"):
        conv2d((x.int(), w, None, None, md), shape, None)
    with pytest.raises(RuntimeError, match="2\\^31 - 1"):
        conv2d((x, w * 2**30, None, None, md), shape, None)
    with pytest.raises(RuntimeError, match="pool width: the window spans 4"):
        conv2d_pool((x, w, None, None, md), shape, None, (1, 4), None)
    with pytest.raises(RuntimeError, match="pool_factor is on another device"):
        conv2d_pool((x, w, None, None, md), shape, None, (2, 2), PRIMES)
    with pytest.raises(RuntimeError, match="groups"):
        torch.ops.mcfhe.conv2d(x, w, None, None, md, [1, 1], [0, 0], [1, 1], 3, None)


@pytest.mark.slow
def test_more_than_2_to_the_31_entries(device: torch.device) -> None:
    entries = 2**31 + 12_345
    free, _ = torch.cuda.mem_get_info(device)
    if free < 20 * entries:
        pytest.skip(f"needs {20 * entries / 2**30:.0f} GiB of free device memory, {free / 2**30:.0f} are free")
    b = PRIMES_30[0]
    md = torch.tensor([b], device=device)
    x = torch.full((1, entries), 3, dtype=torch.int64, device=device)
    x[0, -1] = b - 1
    x[0, 2**31] = 5
    y = torch.ops.mcfhe.square(x, md)
    assert y[0, [0, 2**31 - 1, 2**31, 2**31 + 1, -1]].tolist() == [9, 9, 25, 9, 1]
    assert int((y == 9).sum()) == entries - 2
