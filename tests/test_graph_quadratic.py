"""Quadratic bounds: never below what any input attains, by search for the worst; never above interval arithmetic."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcfhe
from mcfhe.errors import ParameterError
from mcfhe.graph import quadratic
from mcfhe.graph.certificate import certify
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import AvgPool2d, Conv2d, Flatten, Graph, Input, Linear, Node, Poly, infer_shape
from mcfhe.graph.order import Order
from mcfhe.graph.steps import IntegerProgram
from mcfhe.modular.plan import lower
from tests.graph_support import naive, one_thread

__all__ = ["one_thread"]


def constants(random: Random, *shape: int) -> np.ndarray:
    return np.array([random.randint(-6, 6) / 2 for _ in range(math.prod(shape))]).reshape(shape)


def sandwich(random: Random, side: int = 5) -> Graph:
    """conv or linear, quadratic, perhaps a pool, conv or linear; sometimes with one more square in front."""
    nodes: list[Node] = [Input(name="input", inputs=(), shape=(random.randint(1, 2), side, side))]
    shapes: list[tuple[int, ...]] = [(nodes[0].shape)]  # type: ignore[attr-defined]

    def append(node: Node) -> None:
        shapes.append(infer_shape(node, [shapes[i] for i in node.inputs]))
        nodes.append(node)

    def name() -> str:
        return f"layer{len(nodes)}"

    def conv(kernel: int, padding: int, stride: int) -> None:
        outputs = random.randint(1, 2)
        weight = constants(random, outputs, shapes[-1][0], kernel, kernel)
        bias = constants(random, outputs) if random.random() < 0.7 else None
        append(
            Conv2d(
                name=name(),
                inputs=(len(nodes) - 1,),
                weight=weight,
                bias=bias,
                stride=(stride, stride),
                padding=(padding, padding),
                dilation=(1, 1),
                groups=1,
            )
        )

    def linear(outputs: int) -> None:
        weight, bias = constants(random, outputs, shapes[-1][0]), constants(random, outputs)
        append(Linear(name=name(), inputs=(len(nodes) - 1,), weight=weight, bias=bias))

    def square() -> None:
        rows = constants(random, random.choice((1, shapes[-1][0])), 3)
        rows[:, 2] = random.choice((1.0, -1.0, 0.5))
        append(Poly(name=name(), inputs=(len(nodes) - 1,), coefficients=rows))

    def flatten() -> None:
        append(Flatten(name=name(), inputs=(len(nodes) - 1,)))

    if random.random() < 0.3:
        square()
    if random.random() < 0.7:
        conv(random.randint(1, min(3, side)), random.randint(0, 2), random.randint(1, 2))
        square()
        if random.random() < 0.6 and shapes[-1][1] % 2 == 0:
            append(
                AvgPool2d(
                    name=name(), inputs=(len(nodes) - 1,), kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=4
                )
            )
        if random.random() < 0.5 and min(shapes[-1][1:]) >= 2:
            conv(2, random.randint(0, 1), random.randint(1, 2))
        else:
            flatten()
            linear(random.randint(1, 3))
    else:
        flatten()
        linear(3)
        square()
        linear(random.randint(1, 3))
    if len(shapes[-1]) == 3:
        flatten()
    return Graph(tuple(nodes))


def box(random: Random, channels: int, limit: int) -> list[tuple[int, int]]:
    pairs = [sorted((random.randint(-limit, limit), random.randint(-limit, limit))) for _ in range(channels)]
    return [(a, b) for a, b in pairs]


def worst(program: IntegerProgram, pairs: list[tuple[int, int]], output: int, sign: int, random: Random) -> int:
    """Corner search on exact integers: one pixel at a time to the other end while that helps."""
    shape = program.input_shape
    ends = np.array([[pairs[c] for _ in range(shape[1] * shape[2])] for c in range(shape[0])], object).reshape(-1, 2)
    choice = np.array([random.randint(0, 1) for _ in range(len(ends))])

    def values(choices: np.ndarray) -> list[int]:
        images = ends[np.arange(len(ends)), choices].reshape(-1, *shape)
        return [sign * row[output] for row in evaluate_integers(program, images)]

    best = values(choice[None])[0]
    for _ in range(4):
        flipped = choice ^ np.eye(len(ends), dtype=int)
        found = values(flipped)
        if max(found) <= best:
            break
        best = max(found)
        choice = flipped[found.index(best)]
    return sign * best


@given(st.integers(0, 2**32), st.sampled_from((1, 30, 2**70)))
@settings(max_examples=80, deadline=None)
def test_no_input_exceeds_the_bound(seed: int, limit: int) -> None:
    random = Random(seed)
    graph = sandwich(random)
    program = lower(graph, 2, 4, Order(1, 4))
    pairs = box(random, program.input_shape[0], limit)
    plain = certify(program, Intervals.of(pairs), 0)
    tight = certify(program, Intervals.of(pairs), 0, "quadratic")
    for wide, close in zip(plain.output_bounds, tight.output_bounds, strict=True):
        assert wide[0] <= close[0] <= close[1] <= wide[1]
    for output in range(min(4, program.output_shape[0])):
        for sign in (1, -1):
            value = worst(program, pairs, output, sign, random)
            low, high = tight.output_bounds[output]
            assert low <= value <= high
    inner = [[[random.randint(*pairs[c]) for _ in range(5)] for _ in range(5)] for c in range(len(pairs))]
    for value, (low, high) in zip(naive(program, inner), tight.output_bounds, strict=True):
        assert low <= value <= high


def _pair_of_pixels(weight: list[float], second: list[float]) -> IntegerProgram:
    graph = Graph(
        (
            Input(name="input", inputs=(), shape=(1, 1, 2)),
            Flatten(name="flat", inputs=(0,)),
            Linear(name="first", inputs=(1,), weight=np.array(weight, float).reshape(-1, 2), bias=None),
            Poly(name="square", inputs=(2,), coefficients=np.array([[0.0, 0.0, 1.0]])),
            Linear(name="second", inputs=(3,), weight=np.array([second], float), bias=None),
        )
    )
    return lower(graph, 1, 1, Order(0, 1))


def test_cancellation_is_seen() -> None:
    """(x + y)**2 - x**2 - y**2 is 2 x y: at most 2 for |x|, |y| <= 1, where intervals have 4."""
    program = _pair_of_pixels([1, 1, 1, 0, 0, 1], [1, -1, -1])
    unit = 2 * 2 * 2 * 2 * 2  # weights of 2, their square, weights of 2; input +-2
    inputs = Intervals.of([(-2, 2)])
    (plain,) = certify(program, inputs, 0).output_bounds
    (tight,) = certify(program, inputs, 0, "quadratic").output_bounds
    assert plain == (-2 * unit, 4 * unit)
    assert tight[0] == -2 * unit
    assert 2 * unit <= tight[1] <= 2 * unit + 1


def test_a_square_alone_is_never_negative() -> None:
    """The diagonal counts e**2 in 0..1."""
    program = _pair_of_pixels([1, 0, 0, 1], [1, 1])
    (low, high) = certify(program, Intervals.of([(-2, 2)]), 0, "quadratic").output_bounds[0]
    assert (low, high) == (0, certify(program, Intervals.of([(-2, 2)]), 0).output_bound)


def test_too_large_layers_keep_their_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    program = _pair_of_pixels([1, 1, 1, 0, 0, 1], [1, -1, -1])
    inputs = Intervals.of([(-2, 2)])
    assert certify(program, inputs, 0, "quadratic").output_bounds != certify(program, inputs, 0).output_bounds
    monkeypatch.setattr(quadratic, "MAX_WORK", 3)
    assert certify(program, inputs, 0, "quadratic").output_bounds == certify(program, inputs, 0).output_bounds


def test_all_corners_of_small_networks() -> None:
    """Every corner of 2 x 2 images: how tight the bounds are, on average in bits, is printed by pytest -s."""
    lost = []
    for seed in range(30):
        random = Random(seed)
        graph = sandwich(random, side=2)
        program = lower(graph, 2, 1, Order(0, 2))
        pairs = box(random, program.input_shape[0], 9)
        tight = certify(program, Intervals.of(pairs), 0, "quadratic")
        ends = [pairs[c] for c in range(len(pairs)) for _ in range(4)]
        corners = np.array(list(itertools.product(*ends)), object).reshape(-1, len(pairs), 2, 2)
        scores = np.array(evaluate_integers(program, corners), object)
        for (low, high), least, most in zip(tight.output_bounds, scores.min(0), scores.max(0), strict=True):
            assert low <= least <= most <= high
        largest = max(int(abs(v)) for v in scores.flat)
        lost.append(math.log2((tight.output_bound + 1) / (largest + 1)))
    print(f"bounds exceed the largest corner by {sum(lost) / len(lost):.2f} bits on average")
    assert max(lost) < 6


@pytest.fixture(scope="module")
def shipped() -> tuple[mcfhe.Program, mcfhe.Program]:
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    plain = mcfhe.compile(model, card.input_shape, card.mean, card.std, passes="default")
    return plain, mcfhe.Program(plain.graph, replace(plain.settings, bounds="quadratic"))


def test_shipped_network(shipped: tuple[mcfhe.Program, mcfhe.Program]) -> None:
    """What is gained, and that a search for the worst image stays below it."""
    plain, tight = shipped
    saved = plain.certificate("patent").required_bits - tight.certificate("patent").required_bits
    assert saved >= 5
    layer = next(layer for layer in tight.certificate("patent").layers if layer.name == "conv2")
    assert layer.plain_bits > layer.bits
    assert "by intervals alone" in str(tight.certificate("patent"))
    images = _worst_images(tight)
    V = np.array(tight.table, object)[0][images] * tight.settings.amplification
    bound = tight.certificate("hardened").output_bound
    largest = max(abs(v) for row in tight.evaluate_integers(V, "hardened") for v in row)
    print(f"the worst image found is {math.log2(bound / largest):.1f} bits below the bound, {saved} bits were gained")
    assert largest <= bound
    ordinary = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28))
    V = np.array(tight.table, object)[0][ordinary] * tight.settings.amplification
    assert largest > 2**8 * max(abs(v) for row in tight.evaluate_integers(V, "hardened") for v in row)


def _worst_images(program: mcfhe.Program, steps: int = 12) -> np.ndarray:
    """Pixels 0 or 255 by the sign of the gradient of a score, until it no longer grows; one image a score."""
    mean, std = program.settings.mean[0], program.settings.std[0]
    model = mcfhe.models.lenet(pretrained="fashion-mnist").double()
    generator = np.random.default_rng(1)
    pixels = generator.choice([0, 255], (10, 1, 28, 28))
    best, found = np.zeros(10), pixels.copy()
    for _ in range(steps):
        x = torch.from_numpy((pixels / 255 - mean) / std).requires_grad_(True)
        scores = model(x)
        own = scores.diagonal().abs()
        better = own.detach().numpy() > best
        best, found[better] = np.maximum(best, own.detach().numpy()), pixels[better]
        (gradient,) = torch.autograd.grad(own.sum(), x)
        pixels = np.where(gradient.numpy() > 0, 255, 0)
    floats = evaluate_floats(program.graph, (found / 255 - mean) / std)
    assert np.isfinite(floats).all()
    return found


def test_files_keep_how_bounds_were_made(shipped: tuple[mcfhe.Program, mcfhe.Program]) -> None:
    plain, tight = shipped
    again = mcfhe.Program.from_bytes(tight.to_bytes())
    assert again.settings.bounds == "quadratic"
    assert again.client_spec().to_json() == tight.client_spec().to_json()
    assert again.program_id == tight.program_id != plain.program_id
    assert b"bounds" not in plain.to_bytes()


def test_unknown_method() -> None:
    with pytest.raises(ParameterError, match="bounds = 'affine': choose one of interval, quadratic"):
        certify(_pair_of_pixels([1, 1], [1]), Intervals.of([(0, 1)]), 0, "affine")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    with pytest.raises(ParameterError, match="bounds = 'affine'"):
        mcfhe.compile(model, (1, 2, 2), bounds="affine")
