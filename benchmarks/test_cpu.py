"""Timings on this machine's CPU: ``make bench``. Absolute times mean little on a shared machine; the ratios do.

One image in one limb and one lane is the work of one float image. So the yardstick for N limbs and M lanes is N * M
times torch float32 on the same network, batch and threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mcfhe
from benchmarks.conftest import interleaved
from mcfhe import ops
from mcfhe.demo.modular import PUBLISHED_MS, Demo
from tests.shapes import LENET_CONVS, LENET_LINEARS, PRIMES_30, WIDE_CONV

LANES = 4
BATCH = 100
REPEATS = 10
MAX_RATIO = 3.0  # evaluation over N * M times torch float32
MAX_LATENCY_MS = 20.0  # one image: encrypt + evaluate + decrypt

Record = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo.prepare(BATCH)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def squared(model: nn.Module) -> nn.Module:
    """The same network with x * x for every activation: the least torch can do."""
    layers = [Square() if isinstance(m, mcfhe.PolyActivation) else m for m in model.children()]
    return nn.Sequential(*layers)


def test_lenet_batch_against_torch(demo: Demo, benchmark: Any, record: Record) -> None:
    client = mcfhe.Client.generate(demo.program.client_spec(), lanes=LANES, profile="patent")
    server = mcfhe.Server(demo.program)
    request = client.encrypt(demo.images.images)
    images = demo.images.images.float() / 255
    copies = len(client.evaluation_key.moduli) * LANES
    networks = {"torch float32, model as trained": demo.model, "torch float32, x * x": squared(demo.model)}
    with torch.inference_mode():
        for name, network in networks.items():
            ours, theirs = interleaved(lambda: server.evaluate(request), lambda n=network: n(images), REPEATS, 20)
            ratios = [a / (copies * b) for a, b in zip(ours, theirs, strict=True)]
            row = record(
                f"lenet, batch {BATCH}, M = {LANES}",
                ours,
                ratios,
                f"{copies} x {name}",
                limbs=len(client.evaluation_key.moduli),
                lanes=LANES,
                per_image_ms=sorted(ours)[len(ours) // 2] * 1e3 / BATCH,
            )
            assert row["ratio"] <= MAX_RATIO
    benchmark.pedantic(server.evaluate, args=(request,), rounds=REPEATS, warmup_rounds=1)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_one_image_end_to_end(demo: Demo, benchmark: Any, record: Record, profile: str) -> None:
    client = mcfhe.Client.generate(demo.program.client_spec(), lanes=LANES, profile=profile)
    server = mcfhe.Server(demo.program)
    image = demo.images.images[:1]

    def whole() -> None:
        client.decrypt(server.evaluate(client.encrypt(image)))

    benchmark.pedantic(whole, rounds=30, warmup_rounds=3)
    row = record(
        f"one image end to end, {profile}",
        list(benchmark.stats.stats.data),
        published_ms=PUBLISHED_MS,
        limbs=len(client.evaluation_key.moduli),
    )
    assert row["median"] <= MAX_LATENCY_MS


def residues(limbs: int, *shape: int) -> Tensor:
    return torch.stack([torch.randint(0, b, shape) for b in PRIMES_30[:limbs]])


@pytest.mark.parametrize("streams", [4, 64])
@pytest.mark.parametrize("name", [*LENET_CONVS, "wide"])
def test_conv2d_kernel(benchmark: Any, record: Record, name: str, streams: int) -> None:
    shape = WIDE_CONV if name == "wide" else LENET_CONVS[name]
    limbs = 2
    moduli = torch.tensor(PRIMES_30[:limbs])
    x = residues(limbs, shape.channels, shape.height, shape.width, streams)
    weight = torch.randint(-64, 65, (shape.out_channels, shape.channels, *shape.kernel))
    bias = residues(limbs, shape.out_channels)
    poly = residues(limbs, 1, 3)
    image = torch.rand(streams, shape.channels, shape.height, shape.width)
    float_weight = torch.rand(weight.shape)
    ours, theirs = interleaved(
        lambda: ops.conv2d(x, weight, bias, moduli, padding=shape.padding, poly=poly),
        lambda: torch.nn.functional.conv2d(image, float_weight, padding=shape.padding),
        REPEATS,
    )
    benchmark.pedantic(
        ops.conv2d, args=(x, weight, bias, moduli), kwargs={"padding": shape.padding, "poly": poly}, rounds=REPEATS
    )
    record(
        f"conv2d {name}, S = {streams}, bias + quadratic",
        ours,
        [a / (limbs * b) for a, b in zip(ours, theirs, strict=True)],
        "torch float32 conv2d alone, per sub-image",
        gmacs=shape.macs * limbs * streams / sorted(ours)[len(ours) // 2] / 1e9,
    )


@pytest.mark.parametrize("streams", [4, 64])
@pytest.mark.parametrize("name", LENET_CONVS)
def test_conv2d_pool_kernel(benchmark: Any, record: Record, name: str, streams: int) -> None:
    """The pool in the convolution's op against an op of its own."""
    shape = LENET_CONVS[name]
    limbs, window = 2, (2, 2)
    moduli = torch.tensor(PRIMES_30[:limbs])
    x = residues(limbs, shape.channels, shape.height, shape.width, streams)
    weight = torch.randint(-64, 65, (shape.out_channels, shape.channels, *shape.kernel))
    bias, poly, factor = residues(limbs, shape.out_channels), residues(limbs, 1, 3), residues(limbs)

    def one() -> Tensor:
        return ops.conv2d(x, weight, bias, moduli, padding=shape.padding, poly=poly, pool=window, pool_factor=factor)

    def two() -> Tensor:
        y = ops.conv2d(x, weight, bias, moduli, padding=shape.padding, poly=poly)
        return ops.sum_pool2d(y, moduli, kernel=window, factor=factor)

    ours, theirs = interleaved(one, two, REPEATS)
    benchmark.pedantic(one, rounds=REPEATS)
    record(
        f"conv2d {name}, S = {streams}, bias + quadratic + pool",
        ours,
        [a / b for a, b in zip(ours, theirs, strict=True)],
        "conv2d, then sum_pool2d",
    )


@pytest.mark.parametrize("name", LENET_LINEARS)
def test_linear_kernel(benchmark: Any, record: Record, name: str) -> None:
    features, outputs = LENET_LINEARS[name]
    limbs, streams = 8, 400
    moduli = torch.tensor(PRIMES_30[:limbs])
    x = residues(limbs, features, streams)
    weight = torch.randint(-64, 65, (outputs, features))
    image, float_weight = torch.rand(streams, features), torch.rand(outputs, features)
    ours, theirs = interleaved(
        lambda: ops.linear(x, weight, None, moduli),
        lambda: torch.nn.functional.linear(image, float_weight),
        REPEATS,
    )
    benchmark.pedantic(ops.linear, args=(x, weight, None, moduli), rounds=REPEATS)
    record(
        f"linear {name}, S = {streams}",
        ours,
        [a / (limbs * b) for a, b in zip(ours, theirs, strict=True)],
        "torch float32 linear, per sub-image",
    )
