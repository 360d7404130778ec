"""Activations of degree 1, 3 and 4 as squares and sums: the algebra in fractions, its condition, and the pass."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import UnsupportedLayerError
from mcfhe.graph.nodes import Add, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.passes import apply_passes, available_passes, select_passes
from mcfhe.graph.passes.sums_of_squares import NAME, sums_of_squares
from mcfhe.graph.squarings import REACH, balance, composition, composition_holds, difference, negligible
from tests.rational import evaluate_rational

fractions = st.fractions(-64, 64, max_denominator=1 << 12)
rows = st.lists(fractions, min_size=5, max_size=5)


def at(row: list[Fraction] | tuple[Fraction, ...], x: Fraction) -> Fraction:
    return sum((a * x**i for i, a in enumerate(row)), Fraction(0))


@settings(max_examples=50)
@given(rows, fractions.filter(bool), fractions)
def test_composition_is_the_polynomial(row: list[Fraction], leading: Fraction, x: Fraction) -> None:
    row[4] = leading
    form = composition(row)
    assert at(form.outer, at(form.inner, x)) + at(form.rest, x) == at(row, x)


@settings(max_examples=50)
@given(rows, fractions.filter(bool), fractions)
def test_difference_is_the_polynomial(row: list[Fraction], t: Fraction, x: Fraction) -> None:
    form = difference(row, t)
    assert at(form.plus, x) ** 2 - at(form.minus, x) ** 2 + at(form.rest, x) == at(row, x)


@settings(max_examples=50)
@given(rows.filter(lambda row: any(row[2:])), st.fractions(-1, 1, max_denominator=50))
def test_squares_of_a_balanced_difference_are_no_larger_than_the_polynomial(row: list[Fraction], x: Fraction) -> None:
    """t is a power of two, so t x^2 and B / t are within a factor of 2 of each other at the end of the range, and
    (u + v)^2 / 4 is at most 9/8 u v there."""
    form = difference(row, balance([row]))
    largest = sum(abs(a) * REACH**i for i, a in enumerate(row) if i >= 2)
    assert max(at(form.plus, x * REACH) ** 2, at(form.minus, x * REACH) ** 2) <= Fraction(9, 8) * largest


@settings(max_examples=50)
@given(rows.filter(composition_holds), st.fractions(-1, 1, max_denominator=50))
def test_a_composition_that_holds_loses_two_bits_at_most(row: list[Fraction], x: Fraction) -> None:
    form = composition(row)
    z = at(form.inner, x * REACH)
    largest = sum(abs(a) * REACH**i for i, a in enumerate(row) if i)
    parts = (form.outer[2] * z * z, form.outer[1] * z, at(form.rest, x * REACH))
    assert sum(map(abs, parts)) <= 4 * largest


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        ([0, 0.5, 0.25, 0.03, 0.02], True),
        ([0, 0.5, 0.25, 0, 0.001], True),
        ([0, 0, 0, 0, 1], True),
        ([0, 0.5, 0.25, 0.03, 0], False),  # no quartic
        ([0, 0.5, 0.25, 0.1, 0.0001], False),  # p = 500
        ([0, 0.5, 0.25, 0, 1e-6], False),  # a leading coefficient that pays 20 bits for nothing
    ],
)
def test_condition_of_the_composition(row: list[float], holds: bool) -> None:
    assert composition_holds([Fraction(a) for a in row]) is holds


def test_what_is_negligible() -> None:
    row = [Fraction(a) for a in (0.3, 0.5, 0.2, 0.01)]
    assert negligible(Fraction(1e-17), 3, row)
    assert not negligible(Fraction(1e-9), 3, row)
    assert negligible(Fraction(1e-10), 1, row)
    assert not negligible(Fraction(1e-7), 1, row)
    assert negligible(Fraction(0), 3, [Fraction(0)] * 4)  # a channel that gives nothing


# The pass -------------------------------------------------------------------------------------------------------------


def conv(name: str, source: int, channels: int, random: Random, padding: int = 0) -> Conv2d:
    weight = np.array([random.randint(-8, 8) / 8 for _ in range(channels * channels * 4)])
    return Conv2d(
        name=name,
        inputs=(source,),
        weight=weight.reshape(channels, channels, 2, 2),
        bias=np.array([random.randint(-8, 8) / 8 for _ in range(channels)]),
        stride=(1, 1),
        padding=(padding, padding),
        dilation=(1, 1),
        groups=1,
    )


def network(coefficients: np.ndarray, random: Random, skip: bool = False) -> Graph:
    """Convolution, activation (with a shortcut around it), convolution, the same on a vector."""
    channels = 2
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(channels, 3, 3)),
        conv("c1", 0, channels, random),
        Poly(name="act", inputs=(1,), coefficients=coefficients),
    ]
    if skip:
        nodes.append(Add(name="skip", inputs=(2, 1)))
    nodes.append(conv("c2", len(nodes) - 1, channels, random, padding=1))
    nodes.append(Flatten(name="flat", inputs=(len(nodes) - 1,)))
    nodes.append(Poly(name="last", inputs=(len(nodes) - 1,), coefficients=coefficients[:1]))
    return Graph(tuple(nodes))


def values(graph: Graph, random: Random) -> list[list[Fraction]]:
    shape = graph.input_shape
    image = np.array([random.randint(-16, 16) / 8 for _ in range(int(np.prod(shape)))]).reshape(shape)
    return evaluate_rational(graph, image)


def same(first: Graph, second: Graph, seed: int, error: Fraction = Fraction(0)) -> None:
    before, after = (values(graph, Random(seed)) for graph in (first, second))
    assert all(abs(a - b) <= error * max(1, abs(a)) for a, b in zip(before, after, strict=True))


def check_form(graph: Graph) -> None:
    """Quadratics only, and linear polynomials that a sum reads."""
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Poly):
            assert node.coefficients.shape[1] in (2, 3)
            if node.coefficients.shape[1] == 2:
                assert [type(reader) for reader in graph.nodes if index in reader.inputs] == [Add]


@given(
    seed=st.integers(0, 1 << 30),
    degree=st.integers(1, 4),
    per_channel=st.booleans(),
    skip=st.booleans(),
    k=st.integers(-5, 1),
)
@settings(max_examples=25, deadline=None)
def test_exact_where_float64_is(seed: int, degree: int, per_channel: bool, skip: bool, k: int) -> None:
    """Coefficients of few digits, quartics with a power of two in front: no constant is rounded."""
    random = Random(seed)
    numbers = [[random.randint(-16, 16) / 8 for _ in range(degree + 1)] for _ in range(1 + per_channel)]
    coefficients = np.array(numbers)
    coefficients[:, -1] = random.choice((-1, 1)) * 2.0**k
    graph = network(coefficients, random, skip)
    found = sums_of_squares(graph)
    check_form(found)
    same(graph, found, seed)


@given(
    seed=st.integers(0, 1 << 30),
    degree=st.integers(1, 4),
    skip=st.booleans(),
    others=st.sets(st.sampled_from([p.name for p in available_passes() if p.name != NAME])),
)
@settings(max_examples=20, deadline=None)
def test_any_coefficients_to_float64_rounding(seed: int, degree: int, skip: bool, others: set[str]) -> None:
    """Also with other passes around it: all, as a lattice program has them, or some."""
    random = Random(seed)
    coefficients = np.array([[random.uniform(-1, 1) / 2 ** (2 * i) for i in range(degree + 1)] for _ in range(2)])
    graph = network(coefficients, random, skip)
    check_form(sums_of_squares(graph))
    same(graph, sums_of_squares(graph), seed, Fraction(1, 1 << 44))
    for names in (select_passes("default"), sorted(others)):
        found = apply_passes(graph, (*names, NAME))
        check_form(found)
        same(graph, found, seed, Fraction(1, 1 << 40))


def forms(*row: float, channels: int = 1) -> list[str]:
    graph = network(np.array([row] * channels, float), Random(1))
    names = (node.name for node in sums_of_squares(graph).nodes)
    return [name.removeprefix("act").removeprefix(": ") for name in names if name.startswith("act")]


def test_which_form_is_taken() -> None:
    differing = ["plus", "minus", "plus squared", "minus squared"]
    assert forms(0.1, 0.5, 0.25) == [""]
    assert forms(0.1, 0.5, 0.25, 0.03, 0.02) == ["inner", "outer", "rest", ""]
    assert forms(0, 0, 0.25, 0, 0.02) == ["inner", ""]  # a quadratic of a square, and nothing besides
    inner = (0.1, 0.7, 0.3)  # of z = x^2 + 0.2 x: what is left of the linear term is rounding
    squared = (inner[0], 0.2 * inner[1], inner[1] + 0.04 * inner[2], 0.4 * inner[2], inner[2])
    assert forms(*squared) == ["inner", ""]
    assert forms(0.1, 0.5, 0.25, 0.03) == [*differing, "difference", "rest", ""]
    assert forms(0.1, 0, 0.25, 0.03) == [*differing, ""]
    assert forms(0.1, 0.5, 0.25, 0.1, 1e-4) == [*differing, "difference", "rest", ""]
    assert forms(0.1, 0.5, 0.25, 1e-17, 1e-17) == [""]  # what least squares leave of zeros
    assert forms(0.1, 0.5, 0.25, 0.03, 0.0) == forms(0.1, 0.5, 0.25, 0.03)


def test_one_channel_decides_for_all() -> None:
    rows = np.array([[0.1, 0.5, 0.25, 0.03, 0.02], [0.1, 0.5, 0.25, 0.1, 0.0]])
    graph = network(rows, Random(2))
    assert "act: plus" in [node.name for node in sums_of_squares(graph).nodes]
    assert "act: inner" in [node.name for node in sums_of_squares(network(rows[[0, 0]], Random(2))).nodes]


def test_a_leading_coefficient_keeps_its_power_of_two_alone() -> None:
    rows = np.array([[0.1, 0.5, 0.25, 0.03, 0.02], [0.1, 0.5, 0.25, 0.03, -0.7]])
    graph = network(rows, Random(3))
    found = {node.name: node for node in sums_of_squares(graph).nodes}
    outer, before, after = found["act: outer"], found["c2"], graph.nodes[3]
    assert isinstance(outer, Poly)
    assert isinstance(before, Conv2d)
    assert isinstance(after, Conv2d)
    assert outer.coefficients[:, 2].tolist() == [2.0**-6, -0.5]
    assert np.allclose(before.weight, after.weight * np.array([1.28, 1.4])[:, None, None])
    blocked = {node.name: node for node in sums_of_squares(network(rows, Random(3), skip=True)).nodes}["act: outer"]
    assert isinstance(blocked, Poly)
    assert blocked.coefficients[:, 2].tolist() == [0.02, -0.7]  # the sum cannot take the factor


def test_a_linear_activation_is_a_layer() -> None:
    graph = network(np.array([[0.5, 2.0], [0.0, 0.0]]), Random(4), skip=True)
    found = {node.name: node for node in sums_of_squares(graph).nodes}
    assert isinstance(found["act"], Conv2d)
    assert found["act"].groups == 2
    assert isinstance(found["last"], Linear)
    same(graph, sums_of_squares(graph), 4)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            [0, 1, 0, 0, 0, 0.5],
            "layer 'act': degree 5; .* degree 1 to 4: convert with max_degree=4 .* scheme='modular'",
        ),
        ([0, 0, 0, 0, 0, 0, 0, 0, 1], "layer 'act': degree 8"),
        ([0.5], "layer 'act': degree 0; .*leave the layer out"),
    ],
)
def test_refuses_other_degrees(row: list[float], words: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=words):
        sums_of_squares(network(np.array([row], float), Random(5)))


def test_no_preset_has_it() -> None:
    assert NAME not in select_passes("default")
    assert NAME not in select_passes("letter")
    assert NAME in select_passes([NAME])
