"""The oracle on plain Python integers against a naive one, and its speed."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import ImageError
from mcfhe.graph import integers
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.nodes import Graph, Input, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.polynomial import evaluate
from mcfhe.graph.steps import Conv2dStep, FlattenStep, IntegerProgram, LinearStep, PolyStep
from mcfhe.modular.plan import lower
from tests.graph_support import naive, random_graph, random_integers

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.sampled_from((1, 2, 3)), st.sampled_from((0, 1, 2**13, 2**70)))
@settings(max_examples=200, deadline=None)
def test_equals_the_naive_loops(seed: int, batch: int, limit: int) -> None:
    random = Random(seed)
    program = lower(random_graph(random), 3, 4, Order(1, 6))
    inputs = random_integers(random, (batch, *program.input_shape), limit)
    assert evaluate_integers(program, inputs) == [naive(program, image) for image in inputs]


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_chunks_do_not_matter(seed: int) -> None:
    random = Random(seed)
    program = lower(random_graph(random), 3, 4, Order(1, 3))
    inputs = random_integers(random, (5, *program.input_shape), 100)
    whole = evaluate_integers(program, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers, "_PACKED_BITS", 1)
        assert evaluate_integers(program, inputs) == whole


@given(st.lists(st.integers(-(2**100), 2**100), min_size=1, max_size=20), st.integers(0, 5))
def test_fields_pack_and_unpack(values: list[int], skip: int) -> None:
    fields = integers._Fields(max(abs(v) for v in values))
    packed = fields.pack(values, len(values))
    assert packed == sum(v << (i * fields.width) for i, v in enumerate(values))
    assert fields.unpack(packed, len(values)) == values
    garbage = packed << (skip * fields.width)
    assert fields.unpack(garbage + (7 << (fields.width * (skip + len(values) + 1))), len(values), skip) == values


def test_fields_hold_their_extremes() -> None:
    for bound in (0, 1, 127, 128, 255, 256, 2**31, 2**64 - 1, 2**64):
        fields = integers._Fields(bound)
        values = [bound, -bound, 0, -bound]
        assert fields.unpack(fields.pack(values, 4), 4) == values


def test_values_between_int64_and_uint64_stay_exact() -> None:
    # numpy would make float64 of a list that mixes such values with negative ones
    program = lower(Graph((Input(name="input", inputs=(), shape=(1, 1, 3)), *_square())), 1, 2, Order(1, 1))
    inputs = np.array([2**63 + 1, -1, 2**64 - 3], dtype=object).reshape(1, 1, 1, 3)
    assert evaluate_integers(program, inputs) == [naive(program, inputs[0])]


def test_weights_that_are_all_zero() -> None:
    # the sums are zero, the values that are packed are not
    zeros = LinearStep(
        name="fc", inputs=(1,), shape=(2,), order=Order(0, 0), weight=np.zeros((2, 2), np.int64), bias=(5, -7)
    )
    flatten = FlattenStep(name="flatten", inputs=(0,), shape=(2,), order=Order(0, 0))
    program = IntegerProgram(steps=(flatten, zeros), input_shape=(1, 1, 2), input_order=Order(0, 0))
    assert evaluate_integers(program, np.array([[[[10**30, -(10**30)]]]], object)) == [[5, -7]]


def _square() -> tuple[Poly]:
    return (Poly(name="square", inputs=(0,), coefficients=np.array([[0.0, 0.0, 1.0]])),)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 1, 4, 4)), "dtype float64"),
        (np.zeros((1, 4, 4), np.int64), "shape"),
        (np.zeros((2, 1, 4, 5), np.int64), "shape"),
        (np.full((1, 1, 4, 4), 0.5, dtype=object), "not an integer"),
        (np.full((1, 1, 4, 4), None, dtype=object), "not an integer"),
    ],
)
def test_bad_inputs_are_refused(inputs: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        evaluate_integers(_small_lenet(4), inputs)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, object])
def test_integer_dtypes_and_empty_batches(dtype: type) -> None:
    program = _small_lenet(4)
    images = np.arange(32).reshape(2, 1, 4, 4).astype(dtype)
    assert evaluate_integers(program, images) == [naive(program, image) for image in images.astype(object)]
    assert evaluate_integers(program, images[:0]) == []
    numpy_integers = np.array([np.int64(v) for v in images.flat] + [None], object)[:-1].reshape(images.shape)
    assert evaluate_integers(program, numpy_integers) == evaluate_integers(program, images)
    assert evaluate_integers(program, np.asfortranarray(numpy_integers)) == evaluate_integers(program, images)
    assert evaluate_integers(program, images.tolist()) == evaluate_integers(program, images)


def _small_lenet(side: int, channels: int = 4) -> IntegerProgram:
    rng = np.random.default_rng(0)
    order = Order(0, 0)
    conv = Conv2dStep(
        name="conv",
        inputs=(0,),
        shape=(channels, side, side),
        order=order,
        weight=rng.integers(-300, 300, (channels, 1, 5, 5)),
        bias=tuple(range(channels)),
        stride=(1, 1),
        padding=(2, 2),
        dilation=(1, 1),
        groups=1,
    )
    square = PolyStep(name="square", inputs=(1,), shape=conv.shape, order=order, coefficients=((5, -(3**40), 1),))
    flatten = FlattenStep(name="flatten", inputs=(2,), shape=(channels * side * side,), order=order)
    weight = rng.integers(-300, 300, (10, flatten.shape[0]))
    linear = LinearStep(name="linear", inputs=(3,), shape=(10,), order=order, weight=weight, bias=None)
    return IntegerProgram(steps=(conv, square, flatten, linear), input_shape=(1, side, side), input_order=order)


def test_speed_of_packed_integers() -> None:
    """Thousand images of a LeNet take seconds; here a fiftieth of that, with room for a slow machine."""
    program = _small_lenet(28, channels=8)
    images = np.random.default_rng(1).integers(0, 1 << 20, (20, 1, 28, 28))
    start = time.process_time()
    scores = evaluate_integers(program, images)
    assert time.process_time() - start < 5
    assert len(scores) == 20
    assert evaluate((1, 2, 3), 10) == 321
