"""Which steps join the convolution before them, and that joining them changes no residue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe.engine import Engine
from mcfhe.engine.schedule import POOL_WINDOW, Item, fuse
from mcfhe.graph.order import Order
from mcfhe.graph.steps import AddStep, Conv2dStep, FlattenStep, IntegerProgram, PolyStep, PoolStep, Step
from tests.shapes import PRIMES_30
from tests.test_engine import ORDER, check, conv

RNG = np.random.default_rng(11)


def pool(
    source: int,
    channels: int,
    size: int,
    kernel: tuple[int, int] = (2, 2),
    stride: tuple[int, int] | None = None,
    padding: tuple[int, int] = (0, 0),
    factor: int = 3**50,
) -> PoolStep:
    """Of ``channels`` square maps of ``size``."""
    stride = kernel if stride is None else stride
    out = ((size + 2 * p - k) // s + 1 for k, s, p in zip(kernel, stride, padding, strict=True))
    return PoolStep(
        name="pool", inputs=(source,), shape=(channels, *out), order=ORDER, kernel=kernel, stride=stride,
        padding=padding, factor=factor,
    )  # fmt: skip


def square(source: int, shape: tuple[int, ...]) -> PolyStep:
    return PolyStep(name="square", inputs=(source,), shape=shape, order=ORDER, coefficients=((0, 0, 1),))


def flatten(source: int, shape: tuple[int, ...]) -> FlattenStep:
    return FlattenStep(name="flat", inputs=(source,), shape=(int(np.prod(shape)),), order=ORDER)


def program(*steps: Step, size: int = 7) -> IntegerProgram:
    """Ends with a flattening, as evaluate_integers returns vectors."""
    last = steps[-1]
    return IntegerProgram(
        steps=(*steps, flatten(len(steps), last.shape)), input_shape=(2, size, size), input_order=Order(1, 8)
    )


def joined(item: Item) -> list[str]:
    return [step.kind for step in (item.step, item.poly, item.pool) if step is not None]


JOINED = {
    "polynomial and pool": program(conv("a", 0, 2, 3, 7), square(1, (3, 7, 7)), pool(2, 3, 7)),
    "pool alone, factor 1": program(conv("a", 0, 2, 3, 7, bias=False), pool(1, 3, 7, factor=1)),
    "a wide window": program(conv("a", 0, 2, 3, 7), square(1, (3, 7, 7)), pool(2, 3, 7, kernel=(3, 1))),
    "windows with gaps": program(conv("a", 0, 2, 3, 7), pool(1, 3, 7, stride=(3, 3))),
    "overlap": program(conv("a", 0, 2, 3, 7), pool(1, 3, 7, kernel=(3, 3), stride=(2, 2))),
    "padding": program(conv("a", 0, 2, 3, 7), square(1, (3, 7, 7)), pool(2, 3, 7, padding=(1, 1))),
    "read twice": program(
        conv("a", 0, 2, 2, 7),
        pool(1, 2, 7, kernel=(1, 1)),
        AddStep(name="add", inputs=(1, 2), shape=(2, 7, 7), order=ORDER, factors=(1, 1)),
    ),
    "polynomial behind the pool": program(conv("a", 0, 2, 3, 7), pool(1, 3, 7), square(2, (3, 3, 3))),
    "pool behind no convolution": program(square(0, (2, 7, 7)), pool(1, 2, 7)),
}
KINDS = {
    "polynomial and pool": [["conv2d", "poly", "sum_pool2d"]],
    "pool alone, factor 1": [["conv2d", "sum_pool2d"]],
    "a wide window": [["conv2d", "poly", "sum_pool2d"]],
    "windows with gaps": [["conv2d"], ["sum_pool2d"]],
    "overlap": [["conv2d"], ["sum_pool2d"]],
    "padding": [["conv2d", "poly"], ["sum_pool2d"]],
    "read twice": [["conv2d"], ["sum_pool2d"], ["align_add"]],
    "polynomial behind the pool": [["conv2d", "sum_pool2d"], ["poly"]],
    "pool behind no convolution": [["poly"], ["sum_pool2d"]],
}


@pytest.mark.parametrize("name", JOINED)
def test_what_joins_the_convolution(name: str) -> None:
    items = fuse(JOINED[name])
    assert [joined(item) for item in items] == [*KINDS[name], ["flatten"]]
    assert items[-1].output == len(JOINED[name].steps)


@pytest.mark.parametrize("name", JOINED)
def test_joining_changes_no_residue(name: str) -> None:
    engine = Engine(JOINED[name])
    for moduli in (PRIMES_30[:2], (2**31 - 1, 3), (2,)):
        check(engine, RNG.integers(-1000, 1000, (3, 2, 7, 7)), moduli)


def test_the_window_is_that_of_the_kernels() -> None:
    header = Path(__file__).parent.parent / "csrc" / "kernels" / "cuda_launch.h"
    assert f"inline constexpr int kPoolWindow = {POOL_WINDOW};" in header.read_text()


def test_memory_alive_is_without_the_map_between() -> None:
    """Input 98, stored windows 27, and with a window of another size than the CUDA kernels sum the 147 before it."""
    assert Engine(JOINED["polynomial and pool"]).live_entries == 98 + 27
    assert Engine(JOINED["a wide window"]).live_entries == 98 + 3 * 2 * 7 + 147


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_the_demo_network_pools_in_its_convolutions(profile: str) -> None:
    """Both pools join, and the scores are those of the steps one by one, on Python integers."""
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    compiled = mcfhe.compile(model, (1, 28, 28), 0.286, 0.353, scale_bits=8, amplification_bits=4)
    steps = compiled.integer_program(profile)
    items = fuse(steps)
    assert [joined(item) for item in items if isinstance(item.step, Conv2dStep)] == [
        ["conv2d", "poly", "sum_pool2d"]
    ] * 2
    assert not any(isinstance(item.step, PoolStep) for item in items)
    check(Engine(steps), RNG.integers(-(2**16), 2**16, (1, 1, 28, 28)), (*PRIMES_30[:2], 2**31 - 1))


def test_the_demo_network_without_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same residues where every pool is a step of its own."""
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    compiled = mcfhe.compile(model, (1, 28, 28), 0.286, 0.353, scale_bits=8, amplification_bits=4)
    steps = compiled.integer_program("hardened")
    together = Engine(steps)
    monkeypatch.setattr("mcfhe.engine.schedule._tiles_its_input", lambda _: False)
    apart = Engine(steps)
    x = torch.stack(
        [torch.randint(0, b, (1, 28, 28, 70), generator=torch.Generator().manual_seed(b)) for b in PRIMES_30]
    )
    results = [engine.run(engine.bind(PRIMES_30), x) for engine in (together, apart)]
    assert torch.equal(*results)
    assert together.live_entries < apart.live_entries
