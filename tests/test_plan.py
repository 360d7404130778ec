"""S5 by the letter: orders, alignment constants and rounding of the plan, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe import models
from mcfhe.errors import ParameterError
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.import_ import import_module
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.steps import AddStep, ConcatStep, Conv2dStep, LinearStep, PolyStep, PoolStep
from mcfhe.modular.constants import LetterConstants, pool_factor, rounding_notes
from mcfhe.modular.plan import input_intervals, input_orders, lower, max_noise, quantise
from tests.graph_support import one_thread, random_graph, random_integers  # noqa: F401 - a fixture
from tests.rational import evaluate_rational

IMAGE = Input(name="input", inputs=(), shape=(1, 4, 4))
VECTOR = (Input(name="input", inputs=(), shape=(2, 1, 1)), Flatten(name="flatten", inputs=(0,)))


def poly(*coefficients: float, source: int = 0, name: str = "poly") -> Poly:
    return Poly(name=name, inputs=(source,), coefficients=np.array([coefficients], float))


def step_of(node: Node, order: Order, scale_bits: int = 8, amplification: int = 16) -> PolyStep:
    step = lower(Graph((IMAGE, node)), scale_bits, amplification, order).steps[0]
    assert isinstance(step, PolyStep)
    return step


@pytest.mark.parametrize(("profile", "expected"), [("patent", Order(8, 44 * 8)), ("hardened", Order(8, 36 * 8))])
def test_lenet_by_the_letter(profile: str, expected: Order) -> None:
    torch.manual_seed(0)
    graph = import_module(models.lenet().eval(), (1, 28, 28))
    program = lower(graph, 8, 16, input_orders(8)[profile])
    assert program.output_order == expected
    if profile == "patent":
        labels = {step.name: step.order.label(8) for step in program.steps}
        assert labels == {
            "conv1": "(1, 3)",
            "act1": "(2, 7)",
            "pool1": "(2, 8)",
            "conv2": "(2, 9)",
            "act2": "(4, 19)",
            "pool2": "(4, 20)",
            "flatten": "(4, 20)",
            "fc1": "(4, 21)",
            "act3": "(8, 43)",
            "fc2": "(8, 44)",
        }


def test_weights_and_biases_by_the_letter() -> None:
    a, delta = 16, 256
    weight = np.array([[0.5 / 256, 1.5 / 256], [-2.5 / 256, 0.3]])
    bias = np.array([0.7, -1 / 512])
    linear = Linear(name="fc", inputs=(1,), weight=weight, bias=bias)
    program = lower(Graph((*VECTOR, linear)), 8, a, Order(1, 16))
    step = program.steps[-1]
    assert isinstance(step, LinearStep)
    assert step.order == Order(1, 24)
    assert step.weight.tolist() == [[0, 2], [-2, 77]]  # ties to even
    assert step.weight.dtype == np.int64
    # round(c * Delta) * a^t * Delta^(l - 1) at (t, l) = (1, 3)
    assert step.bias == (179 * a * delta**2, 0)


def test_square_pays_no_scale() -> None:
    step = step_of(poly(0.0, 0.0, 1.0), Order(1, 24))
    assert (step.order, step.coefficients) == (Order(2, 48), ((0, 0, 1),))


@pytest.mark.parametrize("leading", [1.0, -1.0, 3.0])
def test_whole_leading_coefficient_pays_no_scale(leading: float) -> None:
    step = step_of(poly(0.25, 0.5, leading), Order(1, 24))
    assert step.order == Order(2, 48)
    assert step.coefficients == ((64 * 16**2 << 40, 128 * 16 << 16, int(leading)),)


def test_polynomial_terms_are_aligned_to_their_join() -> None:
    step = step_of(poly(0.25, 0.5, 0.125), Order(1, 24))
    assert step.order == Order(2, 56)
    assert step.coefficients == ((64 * 16**2 << 48, 128 * 16 << 24, 32),)


def test_terms_that_round_to_zero_are_not_aligned() -> None:
    step = step_of(poly(0.25, 0.5, 2.0**-10), Order(1, 24))
    assert (step.order, step.coefficients) == (Order(1, 32), ((64 * 16 << 24, 128),))
    constant = step_of(poly(0.25), Order(1, 24))
    assert (constant.order, constant.coefficients) == (Order(0, 8), ((64, 0),))
    nothing = step_of(poly(0.0), Order(1, 24))
    assert (nothing.order, nothing.coefficients) == (Order(0, 0), ((0, 0),))


def test_one_channel_that_is_not_whole_makes_all_pay() -> None:
    node = Poly(name="p", inputs=(1,), coefficients=np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.5]]))
    step = lower(Graph((*VECTOR, node)), 8, 16, Order(1, 8)).steps[-1]
    assert isinstance(step, PolyStep)
    assert (step.order, step.coefficients) == (Order(2, 24), ((0, 0, 256), (0, 0, 384)))


@pytest.mark.parametrize(
    ("divisor", "factor", "order"), [(4, 64, Order(1, 24)), (9, 28, Order(1, 24)), (1, 1, Order(1, 16))]
)
def test_average_pool(divisor: int, factor: int, order: Order) -> None:
    pool = AvgPool2d(name="pool", inputs=(0,), kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=divisor)
    step = lower(Graph((IMAGE, pool)), 8, 16, Order(1, 16)).steps[0]
    assert isinstance(step, PoolStep)
    assert (step.factor, step.order) == (factor, order)


def test_additions_align_both_operands() -> None:
    # a square is ahead in t, a linear polynomial with a scale is ahead of nothing: neither order holds the other
    nodes = (
        IMAGE,
        poly(0.0, 0.0, 1.0, name="square"),
        poly(0.0, 0.5, name="line"),
        poly(0.0, 0.5, name="line2", source=2),
    )
    pair = (*nodes, Add(name="add", inputs=(1, 3)), Concat(name="cat", inputs=(3, 1)))
    program = lower(Graph(pair), 8, 16, Order(1, 8))
    add, concat = program.steps[-2:]
    assert isinstance(add, AddStep)
    assert isinstance(concat, ConcatStep)
    assert (program.steps[0].order, program.steps[2].order) == (Order(2, 16), Order(1, 24))
    assert (add.order, add.factors) == (Order(2, 24), (2**8, 16))
    assert (concat.order, concat.factors) == (Order(2, 24), (16, 2**8))


@given(st.integers(0, 2**32), st.sampled_from((1, 3, 16)), st.integers(2, 6), st.booleans())
@settings(max_examples=120, deadline=None)
def test_integers_stand_for_the_quantised_network(seed: int, amplification: int, bits: int, patent: bool) -> None:
    """Whatever the scale, the program computes the graph of rounded constants, exactly: checked in fractions."""
    random = Random(seed)
    graph = random_graph(random, scale_bits=5)
    order = input_orders(bits)["patent" if patent else "hardened"]
    program = lower(graph, bits, amplification, order)
    plain = random_integers(random, graph.input_shape, 50)
    scores = evaluate_integers(program, plain[None] * order.denominator(amplification))[0]

    def pool_weight(divisor: int) -> Fraction:  # as the letter says
        return Fraction(pool_factor(divisor, bits), 1 << bits) if divisor > 1 else Fraction(1)

    expected = evaluate_rational(quantise(graph, bits), plain, pool_weight)
    assert [program.output_order.value(v, amplification) for v in scores] == expected


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_quantise_is_idempotent_and_exact_on_the_grid(seed: int) -> None:
    graph = random_graph(Random(seed), scale_bits=3)
    once = quantise(graph, 3)
    for node, same in zip(graph.nodes, once.nodes, strict=True):
        for field in ("weight", "bias", "coefficients"):
            if getattr(node, field, None) is not None:
                assert np.array_equal(getattr(node, field), getattr(same, field))
    coarse = quantise(graph, 2)
    again = quantise(coarse, 2)
    images = np.random.default_rng(0).integers(-3, 3, (2, *graph.input_shape)).astype(float)
    assert np.array_equal(evaluate_floats(coarse, images), evaluate_floats(again, images))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Linear(name="fc", inputs=(1,), weight=np.array([[2.0**23, 0.0]]), bias=None), "'fc'.*weight.*2.*31"),
        (Linear(name="fc", inputs=(1,), weight=np.ones((1, 2)), bias=np.array([2.0**45])), "'fc'.*bias.*2.*53"),
        (poly(0.0, 1e300, source=1), "'poly'.*coefficients"),
        (poly(0.0, 1e308, source=1), "'poly'.*coefficients"),
    ],
)
def test_constants_too_large_are_refused_by_name(node: Node, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        quantise(Graph((*VECTOR, node)), 8)


def test_largest_weights_are_kept() -> None:
    linear = Linear(name="fc", inputs=(1,), weight=np.array([[2.0**31 - 1, -(2.0**31) + 1]]) / 256, bias=None)
    step = lower(Graph((*VECTOR, linear)), 8, 16, Order(1, 8)).steps[-1]
    assert isinstance(step, LinearStep)
    assert step.weight.tolist() == [[2**31 - 1, 1 - 2**31]]


def test_pool_that_would_give_zeros_is_refused() -> None:
    pool = AvgPool2d(name="pool", inputs=(0,), kernel=(4, 4), stride=(1, 1), padding=(0, 0), divisor=16)
    with pytest.raises(ParameterError, match=r"'pool'.*only zeros.*scale_bits of 5"):
        quantise(Graph((IMAGE, pool)), 3)
    assert not rounding_notes(Graph((IMAGE, pool)), LetterConstants(4))
    ninth = AvgPool2d(name="pool", inputs=(0,), kernel=(3, 3), stride=(1, 1), padding=(0, 0), divisor=9)
    assert rounding_notes(Graph((IMAGE, ninth)), LetterConstants(8)) == [
        "pool multiplies by 28 / 2^8 for 1 / 9, 1.6% off; more scale_bits bring it closer"
    ]


def test_orders_beyond_use_are_refused() -> None:
    nodes: list[Node] = [IMAGE]
    for i in range(8):
        nodes.append(poly(*[0.0] * 16, 1.0, source=i, name=f"p{i}"))
    with pytest.raises(ParameterError, match=r"'p3'.*order"):
        lower(Graph(tuple(nodes)), 8, 16, Order(1, 8))


@pytest.mark.parametrize(
    ("bits", "amplification", "order"), [(0, 16, Order(1, 8)), (8, 0, Order(1, 8)), (8, 2, Order(1, 7))]
)
def test_bad_parameters_are_refused(bits: int, amplification: int, order: Order) -> None:
    with pytest.raises(ParameterError, match="plan"):
        lower(Graph((IMAGE, poly(0.0, 1.0))), bits, amplification, order)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=20), st.sampled_from((1, 2, 16, 1024)))
def test_input_intervals_are_tight(row: list[int], a: int) -> None:
    noises = range(max(1, max_noise(a))) if a < 100 else (0, max_noise(a) - 1)
    patent = [(a * 256 + e) * v for e in noises for v in row]
    hardened = [a * v + e for e in noises for v in row]
    assert input_intervals("patent", [row], 8, a) == [(min(patent), max(patent))]
    assert input_intervals("hardened", [row], 8, a) == [(min(hardened), max(hardened))]


def test_unknown_profile_is_refused() -> None:
    with pytest.raises(ParameterError, match="profile 'none'"):
        input_intervals("none", [[1]], 8, 16)


def test_convolution_keeps_its_geometry() -> None:
    conv = Conv2d(
        name="conv",
        inputs=(0,),
        weight=np.full((2, 1, 2, 3), 0.5),
        bias=None,
        stride=(1, 2),
        padding=(1, 0),
        dilation=(2, 1),
        groups=1,
    )
    step = lower(Graph((IMAGE, conv)), 4, 16, Order(1, 8)).steps[0]
    assert isinstance(step, Conv2dStep)
    assert (step.stride, step.padding, step.dilation, step.groups, step.bias) == ((1, 2), (1, 0), (2, 1), 1, None)
    assert (step.weight == 8).all()
    assert step.shape == (2, 4, 1)
