"""Interval bounds: sound for every input, attained where they can be, exact ranges of polynomials."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import ParameterError
from mcfhe.graph.certificate import Certificate, certify
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.intervals import Intervals
from mcfhe.graph.nodes import AvgPool2d, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.polynomial import evaluate, polynomial_range
from mcfhe.graph.steps import IntegerProgram
from mcfhe.modular.plan import lower
from tests.graph_support import naive, random_graph

# Ranges of polynomials ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=6), st.integers(-40, 40), st.integers(0, 60))
@settings(max_examples=500)
def test_range_is_exact(coefficients: list[int], lower_end: int, width: int) -> None:
    values = [evaluate(coefficients, x) for x in range(lower_end, lower_end + width + 1)]
    assert polynomial_range(coefficients, lower_end, lower_end + width) == (min(values), max(values))


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=7), st.integers(-4, 4), st.integers(0, 60))
@settings(max_examples=300)
def test_range_of_products_with_close_roots(roots: list[int], shift: int, width: int) -> None:
    coefficients = [1]
    for root in roots:
        coefficients = [a - root * b for a, b in zip([0, *coefficients], [*coefficients, 0], strict=True)]
    coefficients[0] += shift
    values = [evaluate(coefficients, x) for x in range(-30, -29 + width)]
    assert polynomial_range(coefficients, -30, -30 + width) == (min(values), max(values))


def test_range_over_intervals_of_a_thousand_bits() -> None:
    big = 1 << 1000
    assert polynomial_range([0, 0, 1], -big, big - 1) == (0, big**2)
    assert polynomial_range([5, -2 * (big // 3), 1], 0, big) == (5 - (big // 3) ** 2, 5 - 2 * (big // 3) * big + big**2)
    low, high = polynomial_range([0, -3 * big**2, 0, 1], -2 * big, 2 * big)  # x^3 - 3 B^2 x turns at -B and B
    assert (low, high) == (-2 * big**3, 2 * big**3)
    start = time.process_time()
    polynomial_range([7 * (-1) ** i * (i + 1) << (1000 * (16 - i)) for i in range(17)], -big, big)
    assert time.process_time() - start < 5


def test_empty_interval_is_a_bug() -> None:
    with pytest.raises(ValueError, match="empty interval"):
        polynomial_range([0, 1], 1, 0)


# Programs -------------------------------------------------------------------------------------------------------------


def channel_intervals(random: Random, channels: int, limit: int) -> list[tuple[int, int]]:
    pairs = [sorted((random.randint(-limit, limit), random.randint(-limit, limit))) for _ in range(channels)]
    return [(a, b) for a, b in pairs]


def images(random: Random, program: IntegerProgram, pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    """Corners and inner points of the box, half of each."""
    batch = np.empty((count, *program.input_shape), object)
    for index in np.ndindex(*batch.shape):
        low, high = pairs[index[1]]
        batch[index] = random.choice((low, high)) if index[0] % 2 else random.randint(low, high)
    return batch


@given(st.integers(0, 2**32), st.sampled_from((1, 10, 2**40)))
@settings(max_examples=150, deadline=None)
def test_no_value_leaves_its_interval(seed: int, limit: int) -> None:
    """Random images and corners, every value of every layer: a program cut after a step shows that step."""
    random = Random(seed)
    program = lower(random_graph(random), 3, 4, Order(1, 6))
    pairs = channel_intervals(random, program.input_shape[0], limit)
    certificate = certify(program, Intervals.of(pairs), 0)
    batch = images(random, program, pairs, 6)
    for length in range(1, len(program.steps) + 1):
        part = IntegerProgram(
            steps=program.steps[:length], input_shape=program.input_shape, input_order=program.input_order
        )
        bounds = certificate.layers[length].intervals
        repeat = math.prod(part.output_shape) // len(bounds.lower)
        lows, highs = np.repeat(bounds.lower, repeat), np.repeat(bounds.upper, repeat)
        for row in evaluate_integers(part, batch):
            assert all(low <= v <= high for low, v, high in zip(lows, row, highs, strict=True))


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_one_linear_layer_is_bounded_exactly(seed: int) -> None:
    """Convolution (with any padding) or pool, then nothing: the worst corner attains both ends of the bound."""
    random = Random(seed)
    channels, rows, columns = random.randint(1, 2), random.randint(1, 2), random.randint(1, 2)
    kernel = (random.randint(1, 3), random.randint(1, 2))
    source = Input(name="input", inputs=(), shape=(channels, rows, columns))
    weight = np.array([random.randint(-4, 4) for _ in range(2 * channels * kernel[0] * kernel[1])], float)
    layer: Node = Conv2d(
        name="layer",
        inputs=(0,),
        weight=weight.reshape(2, channels, *kernel),
        bias=np.array([3.0, -2.0]),
        stride=(random.randint(1, 2), 1),
        padding=(kernel[0], kernel[1]),
        dilation=(1, random.randint(1, 2)),
        groups=1,
    )
    if random.random() < 0.3:
        layer = AvgPool2d(
            name="layer", inputs=(0,), kernel=(2, 2), stride=(1, 1), padding=(1, 1), divisor=random.choice((1, 2))
        )
    program = lower(Graph((source, layer)), 1, 1, Order(1, 1))
    pairs = channel_intervals(random, channels, 5)
    bounds = certify(program, Intervals.of(pairs), 0).layers[-1].intervals
    found: list[list[int]] = [[] for _ in bounds.lower]
    for corner in itertools.product((0, 1), repeat=math.prod(program.input_shape)):
        picks = np.array(corner).reshape(program.input_shape)
        image = [[[pairs[c][v] for v in line] for line in plane] for c, plane in enumerate(picks)]
        scores = np.array(naive(program, image), object).reshape(program.output_shape)
        for o, plane in enumerate(scores):
            found[o] += plane.reshape(-1).tolist()
    assert [(min(values), max(values)) for values in found] == list(zip(bounds.lower, bounds.upper, strict=True))


def _lenet(random: Random, side: int) -> Graph:
    def weights(*shape: int) -> np.ndarray:
        return np.array([random.gauss(0, 0.5) for _ in range(math.prod(shape))]).reshape(shape)

    quadratic = np.array([[0.1, 0.5, 0.25]])
    return Graph(
        (
            Input(name="input", inputs=(), shape=(1, side, side)),
            Conv2d(
                name="conv",
                inputs=(0,),
                weight=weights(2, 1, 3, 3),
                bias=weights(2),
                stride=(1, 1),
                padding=(1, 1),
                dilation=(1, 1),
                groups=1,
            ),
            Poly(name="act", inputs=(1,), coefficients=quadratic),
            AvgPool2d(name="pool", inputs=(2,), kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=4),
            Flatten(name="flatten", inputs=(3,)),
            Linear(name="fc1", inputs=(4,), weight=weights(4, 2 * (side // 2) ** 2), bias=weights(4)),
            Poly(name="act2", inputs=(5,), coefficients=quadratic),
            Linear(name="fc2", inputs=(6,), weight=weights(3, 4), bias=None),
        )
    )


def worst(program: IntegerProgram, pair: tuple[int, int], objective: Callable[[list[int]], int]) -> int:
    """Corner search: move one pixel at a time to the other end of its interval while that helps; several starts."""
    random, best = Random(0), 0
    for _ in range(4):
        image = np.array([random.choice(pair) for _ in range(math.prod(program.input_shape))], object)
        value, improved = objective(evaluate_integers(program, image.reshape(1, *program.input_shape))[0]), True
        while improved:
            trials = np.repeat(image[None], len(image), axis=0)
            for i in range(len(image)):
                trials[i, i] = pair[0] + pair[1] - image[i]
            values = [objective(row) for row in evaluate_integers(program, trials.reshape(-1, *program.input_shape))]
            improved = max(values) > value
            if improved:
                value, image = max(values), trials[values.index(max(values))]
        best = max(best, value)
    return best


def test_worst_images_stay_within_the_bound(record_property: Callable[[str, object], None]) -> None:
    program = lower(_lenet(Random(3), 6), 4, 16, Order(1, 8))
    pair = (-16 * 16 * 8, (16 * 16 + 7) * 20)
    certificate = certify(program, Intervals.of([pair]), 32)
    found = max(worst(program, pair, lambda row, o=o: abs(row[o])) for o in range(3))  # type: ignore[misc]
    slack = certificate.output_bound.bit_length() - found.bit_length()
    record_property("bits_between_worst_image_found_and_bound", slack)
    assert found <= certificate.output_bound
    assert slack <= 6


def test_certificate_numbers_and_text() -> None:
    program = lower(_lenet(Random(1), 6), 4, 16, Order(1, 8))
    certificate = certify(program, Intervals.of([(-5000, 5000)]), 10)
    assert isinstance(certificate, Certificate)
    assert [layer.name for layer in certificate.layers] == ["input", *(step.name for step in program.steps)]
    ends = [end for pair in certificate.output_bounds for end in pair]
    assert certificate.output_bound == max(abs(end) for end in ends)
    assert certificate.required_product == 2 * certificate.output_bound << 10
    assert certificate.required_bits == certificate.required_product.bit_length()
    assert certificate.widest.name == "fc2"
    text = str(certificate)
    assert "widest layer 'fc2'" in text
    assert all(layer.name in text for layer in certificate.layers)


def test_zero_network_needs_a_basis_all_the_same() -> None:
    graph = Graph(
        (Input(name="input", inputs=(), shape=(1, 1, 1)), Poly(name="p", inputs=(0,), coefficients=np.zeros((1, 1))))
    )
    certificate = certify(lower(graph, 4, 16, Order(1, 4)), Intervals.of([(-3, 3)]), 7)
    assert (certificate.output_bound, certificate.required_product) == (0, 1 << 7)


def test_intervals_must_fit_the_channels() -> None:
    program = lower(_lenet(Random(1), 6), 4, 16, Order(1, 8))
    with pytest.raises(ParameterError, match="intervals for 1 channels"):
        certify(program, Intervals.of([(0, 1), (0, 1)]), 0)


def test_speed_on_large_layers() -> None:
    rng = np.random.default_rng(0)
    nodes = (
        Input(name="input", inputs=(), shape=(256, 8, 8)),
        Conv2d(
            name="conv",
            inputs=(0,),
            weight=rng.normal(size=(256, 256, 3, 3)),
            bias=None,
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=1,
        ),
        Flatten(name="flatten", inputs=(1,)),
        Linear(name="fc", inputs=(2,), weight=rng.normal(size=(64, 16384)), bias=None),
    )
    program = lower(Graph(nodes), 8, 16, Order(1, 8))
    start = time.process_time()
    certify(program, Intervals.of([(-(1 << 500), 1 << 500)] * 256), 32)
    assert time.process_time() - start < 5
