"""The float64 evaluation: its error bound holds, its labels are those of the exact integers."""

from __future__ import annotations

import math
import sys
import time
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.nodes import Flatten, Graph, Input, Linear, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.plain import evaluate_plain
from mcfhe.modular.plan import lower
from tests.graph_support import one_thread, random_graph  # noqa: F401 - a fixture

LARGEST = int(sys.float_info.max)


def _errors(graph: Graph, inputs: np.ndarray, bits: int, amplification: int) -> tuple[list[Fraction], list[Fraction]]:
    """Errors and their bounds, of scores that float64 holds; of others, that they are infinities without a bound."""
    program = lower(graph, bits, amplification, Order(1, bits))
    result = evaluate_plain(program, inputs, amplification)
    exact = evaluate_integers(program, inputs)
    errors, bounds = [], []
    for row, scores, limits in zip(exact, result.scores.tolist(), result.bounds.tolist(), strict=True):
        values = [program.output_order.value(integer, amplification) for integer in row]
        for value, score, limit in zip(values, scores, limits, strict=True):
            if math.isfinite(score):
                errors.append(abs(value - Fraction(score)))
                bounds.append(Fraction(limit) if math.isfinite(limit) else errors[-1])
            else:
                assert abs(value) > LARGEST
                assert (score, limit) == (math.inf if value > 0 else -math.inf, math.inf)
        if all(map(math.isfinite, scores)):
            assert row[scores.index(max(scores))] == max(row)
    return errors, bounds


@given(st.integers(0, 2**32), st.sampled_from((1, 3, 16)), st.sampled_from((3, 10)))
@settings(max_examples=150, deadline=None)
def test_the_error_bound_holds(seed: int, amplification: int, bits: int) -> None:
    random = Random(seed)
    graph = random_graph(random, scale_bits=20)
    inputs = np.random.default_rng(seed).integers(-(2**20), 2**20, (4, *graph.input_shape)) * amplification
    errors, bounds = _errors(graph, inputs, bits, amplification)
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))


def test_the_error_bound_is_of_use() -> None:
    """Bounds are a few thousand times the errors that occur, and far below the scores."""
    random = Random(5)
    graph = random_graph(random, scale_bits=20, layers=6)
    inputs = np.random.default_rng(5).integers(-(2**8), 2**8, (50, *graph.input_shape)) * 16
    program = lower(graph, 8, 16, Order(1, 8))
    result = evaluate_plain(program, inputs, 16)
    assert float(result.bounds.max()) < 1e-9 * float(result.scores.abs().max())


def _cancelling(gap: float) -> Graph:
    """Two scores that differ by ``gap`` times the pixel's square, buried under terms of 2**38."""
    return Graph(
        (
            Input(name="input", inputs=(), shape=(1, 1, 1)),
            Poly(name="square", inputs=(0,), coefficients=np.array([[0.0, 0.0, 1.0]])),
            Flatten(name="flatten", inputs=(1,)),
            Linear(
                name="big", inputs=(2,), weight=np.array([[2.0**15], [2.0**15 + gap]]), bias=np.array([2.0**38] * 2)
            ),
            Poly(name="again", inputs=(3,), coefficients=np.array([[0.0, 0.0, 1.0]])),
        )
    )


def test_margins_within_the_bound_go_to_exact_integers() -> None:
    program = lower(_cancelling(2.0**-14), 14, 2, Order(1, 14))
    inputs = np.array([1, 5, 0, 1 << 34, -3]).reshape(-1, 1, 1, 1) * 2
    result = evaluate_plain(program, inputs, 2)
    exact = evaluate_integers(program, inputs)
    assert bool(result.exact[[0, 1, 2, 4]].all())
    assert not bool(result.exact[3])
    assert [row[1] > row[0] for row in exact] == [True, True, False, True, True]
    unit = program.output_order.denominator(2)
    assert result.scores[0].tolist() == [v / unit for v in exact[0]]
    assert float(result.bounds[0].max()) <= 2.0**-52 * float(result.scores[0].abs().max())


def test_numbers_out_of_the_range_of_floats() -> None:
    nodes = [Input(name="input", inputs=(), shape=(2, 1, 1)), Flatten(name="flatten", inputs=(0,))]
    for i in range(4):
        coefficients = np.array([[0.0] * 8 + [1.0]])
        nodes.append(Poly(name=f"p{i}", inputs=(len(nodes) - 1,), coefficients=coefficients))
    program = lower(Graph(tuple(nodes)), 4, 2, Order(1, 4))
    inputs = np.array([[2**12, 2**12 + 1], [1, 0], [3, 2]]).reshape(3, 2, 1, 1)
    result = evaluate_plain(program, inputs, 2)
    assert bool(result.exact[0])  # 2**(7 * 4096) is no float64: both scores are infinite, and not told apart
    assert torch.isinf(result.scores[0]).all()
    assert result.scores[1:].argmax(1).tolist() == [0, 0]


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches(count: int) -> None:
    program = lower(_cancelling(1.0), 8, 2, Order(1, 8))
    result = evaluate_plain(program, np.ones((count, 1, 1, 1), np.int64), 2)
    assert result.scores.shape == result.bounds.shape == (count, 2)
    assert result.exact.shape == (count,)


def test_one_score_is_always_separated() -> None:
    graph = Graph((Input(name="input", inputs=(), shape=(1, 1, 1)), Flatten(name="flatten", inputs=(0,))))
    result = evaluate_plain(lower(graph, 8, 2, Order(1, 8)), np.arange(6).reshape(6, 1, 1, 1), 2)
    assert not result.exact.any()
    assert result.scores[:, 0].tolist() == [v / 512 for v in range(6)]


def test_speed_on_a_lenet() -> None:
    from mcfhe import models
    from mcfhe.graph.import_ import import_module

    torch.manual_seed(0)
    program = lower(import_module(models.lenet().eval(), (1, 28, 28)), 8, 16, Order(1, 8))
    inputs = np.random.default_rng(0).integers(-70, 180, (500, 1, 28, 28)) * 16
    start = time.process_time()
    evaluate_plain(program, inputs, 16)
    assert time.process_time() - start < 10
