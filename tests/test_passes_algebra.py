"""Every pass keeps the function of the graph: exactly, in fractions, where its algebra is exact in float64."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe import models
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.import_ import import_module
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.passes import apply_passes, available_passes
from mcfhe.graph.passes.sums_of_squares import NAME as SUMS_OF_SQUARES
from mcfhe.graph.steps import AddStep
from mcfhe.modular.plan import input_orders, lower
from tests.graph_support import one_thread, random_graph  # noqa: F401 - a fixture
from tests.rational import evaluate_rational

RNG = np.random.default_rng(5)


def constants(*shape: int) -> np.ndarray:
    """Multiples of 1/8 in -2..2: few digits, so that products and sums of a few are exact in float64."""
    return RNG.integers(-16, 17, shape) / 8


def conv(
    source: int, inputs: int, outputs: int, kernel: int = 3, padding: int = 0, name: str = "", **more: Any
) -> Conv2d:
    settings: dict[str, Any] = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "bias": constants(outputs), **more}
    return Conv2d(
        name=name or f"conv_{source}",
        inputs=(source,),
        weight=constants(outputs, inputs // settings["groups"], kernel, kernel),
        padding=(padding, padding),
        **settings,
    )


def poly(source: int, rows: Any, name: str = "") -> Poly:
    return Poly(name=name or f"poly_{source}", inputs=(source,), coefficients=np.array(rows, float))


def pool(source: int, padding: int = 0, divisor: int = 4) -> AvgPool2d:
    return AvgPool2d(
        name=f"pool_{source}",
        inputs=(source,),
        kernel=(2, 2),
        stride=(2, 2),
        padding=(padding, padding),
        divisor=divisor,
    )


def flat(source: int) -> Flatten:
    return Flatten(name=f"flatten_{source}", inputs=(source,))


def linear(source: int, inputs: int, outputs: int = 2, bias: bool = True) -> Linear:
    return Linear(
        name=f"linear_{source}",
        inputs=(source,),
        weight=constants(outputs, inputs),
        bias=constants(outputs) if bias else None,
    )


def graph(*nodes: Node, shape: tuple[int, int, int] = (2, 4, 4)) -> Graph:
    return Graph((Input(name="input", inputs=(), shape=shape), *nodes))


def kinds(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes[1:]]


def check(before: Graph, *names: str) -> Graph:
    """Run passes and compare in exact rational arithmetic; returns the result without dead nodes."""
    after = apply_passes(before, [*names, "eliminate_dead_nodes"])
    for _ in range(2):
        image = RNG.integers(-4, 5, before.input_shape)
        assert evaluate_rational(after, image) == evaluate_rational(before, image)
    return after


# Batch normalisation --------------------------------------------------------------------------------------------------

NORM = [[0.5, 2.0], [-1.0, -0.25]]


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_into_the_padded_convolution_before(bias: bool) -> None:
    first = conv(0, 2, 2, padding=2, groups=2, bias=constants(2) if bias else None)
    after = check(graph(first, poly(1, NORM), flat(2)), "fold_batch_norm", "eliminate_dead_orders")
    assert kinds(after) == ["conv2d", "flatten"]


def test_batch_norm_into_the_linear_layer_or_polynomial_before() -> None:
    before = graph(flat(0), linear(1, 32), poly(2, NORM), poly(3, [[1.0, 2.0, 0.5]]), poly(4, NORM, "norm"))
    after = check(before, "fold_batch_norm", "eliminate_dead_orders")
    assert kinds(after) == ["flatten", "linear", "poly"]


def test_batch_norm_into_the_layers_after_unless_they_pad() -> None:
    for padding, expected in ((0, ["conv2d", "flatten"]), (1, ["poly", "conv2d", "flatten"])):
        before = graph(poly(0, NORM), conv(1, 2, 2, padding=padding), flat(2))
        after = check(before, "fold_batch_norm", "eliminate_dead_orders")
        assert kinds(after) == expected
    # its factor still goes: x + h / g needs no scale
    after = check(before, "fold_batch_norm", "fold_leading_coefficients")
    assert after.nodes[1].coefficients.tolist() == [[0.25, 1.0], [4.0, 1.0]]  # type: ignore[attr-defined]


def test_batch_norm_into_the_polynomial_after_a_sum() -> None:
    before = graph(
        conv(0, 2, 2), conv(0, 2, 2, name="other"), add(1, 2), poly(3, NORM), poly(4, [[1, 2, 0.5]]), flat(5)
    )
    after = check(before, "fold_batch_norm", "eliminate_dead_orders")
    assert kinds(after) == ["conv2d", "conv2d", "add", "poly", "flatten"]


def add(first: int, second: int) -> Add:
    return Add(name=f"add_{first}_{second}", inputs=(first, second))


# Pools ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1])
def test_pool_factor_into_the_layers_after(padding: int) -> None:
    side = 3 if padding else 2
    branches = graph(
        pool(0, padding), conv(1, 2, 2, 1, groups=2), flat(2), flat(1), Concat(name="cat", inputs=(3, 4)),
        linear(5, 4 * side**2),
    )  # fmt: skip
    after = check(branches, "fold_pool_factors")
    assert [node.divisor for node in after.nodes if isinstance(node, AvgPool2d)] == [1]


def test_pool_factor_into_the_layer_before() -> None:
    residual = graph(conv(0, 2, 2, padding=1), pool(1), poly(2, [[0, 0, 1]]), add(2, 3), flat(4))
    after = check(residual, "fold_pool_factors")
    assert after.nodes[2].divisor == 1  # type: ignore[attr-defined]
    activation = graph(poly(0, [[1.0, 2.0, 0.5]]), pool(1, padding=1), flat(2))
    after = check(activation, "fold_pool_factors")
    assert after.nodes[1].coefficients.tolist() == [[0.25, 0.5, 0.125]]  # type: ignore[attr-defined]


def test_pool_factor_stays_where_nothing_can_take_it() -> None:
    before = graph(pool(0), flat(1))
    assert check(before, "fold_pool_factors").nodes[1].divisor == 4  # type: ignore[attr-defined]


# Activations ----------------------------------------------------------------------------------------------------------

QUADRATIC = [[0.5, 2.0, 0.5], [1.0, -0.5, -0.25]]


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_squares_with_and_without_padding_after(padding: int) -> None:
    """The constant goes into the next bias, through a pool, unless zeros are padded: then it stays in front."""
    before = graph(conv(0, 2, 2, padding=1), poly(1, QUADRATIC), pool(2), conv(3, 2, 2, 1, padding=padding), flat(4))
    after = check(before, "complete_squares")
    rows = after.nodes[2].coefficients  # type: ignore[attr-defined]
    assert (rows[:, 1] == 0).all()
    assert rows[:, 0].tolist() == ([0.0, 0.0] if padding == 0 else [-1.5, 1.25])
    monic = check(before, "complete_squares", "fold_leading_coefficients")
    assert (monic.nodes[2].coefficients[:, 2] == 1).all()  # type: ignore[attr-defined]


def test_squares_after_a_padded_pool_keep_their_constant() -> None:
    before = graph(conv(0, 2, 2, padding=1), poly(1, QUADRATIC), pool(2, padding=1), flat(3), linear(4, 18))
    after = check(before, "complete_squares")
    assert after.nodes[2].coefficients[:, 0].tolist() == [-1.5, 1.25]  # type: ignore[attr-defined]


def test_squares_after_a_sum_shift_one_branch() -> None:
    before = graph(conv(0, 2, 2, padding=1), add(1, 0), poly(2, QUADRATIC), flat(3), linear(4, 32))
    after = check(before, "complete_squares")
    assert (after.nodes[3].coefficients[:, :2] == 0).all()  # type: ignore[attr-defined]


def test_squares_stay_without_a_bias_before_them() -> None:
    before = graph(poly(0, QUADRATIC), flat(1), linear(2, 32))
    after = check(before, "complete_squares")
    assert after.nodes[1].coefficients.tolist() == QUADRATIC  # type: ignore[attr-defined]


def test_leading_coefficient_moves_across_the_squaring() -> None:
    """A sum takes no factor, so x is stretched by its root: 0.25 x**2 = (x / 2)**2."""
    before = graph(conv(0, 2, 2, padding=1), poly(1, [[1.0, 2.0, -0.25]]), add(2, 0), flat(3))
    after = check(before, "fold_leading_coefficients")
    assert after.nodes[2].coefficients.tolist() == [[1.0, 4.0, -1.0]]  # type: ignore[attr-defined]


def test_higher_degrees() -> None:
    before = graph(flat(0), linear(1, 32), poly(2, [[1.0, 2.0, 0.0, 0.125]]), linear(3, 2))
    assert check(before, "fold_leading_coefficients").nodes[3].coefficients[0, 3] == 1  # type: ignore[attr-defined]
    last = graph(flat(0), linear(1, 32), poly(2, [[1.0, 2.0, 0.0, 0.125]]))
    after = check(last, "fold_leading_coefficients")
    assert after.nodes[3].coefficients.tolist() == [[1.0, 4.0, 0.0, 1.0]]  # type: ignore[attr-defined]


# Linear layers --------------------------------------------------------------------------------------------------------


def test_linear_layers_are_merged_where_that_is_cheaper() -> None:
    narrow = graph(flat(0), linear(1, 32, 1), linear(2, 1, 32))
    assert kinds(check(narrow, "merge_linear_layers")) == ["flatten", "linear", "linear"]
    wide = graph(flat(0), linear(1, 32, 8), linear(2, 8, 4, bias=False), linear(3, 4, 2))
    assert kinds(check(wide, "merge_linear_layers")) == ["flatten", "linear"]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (conv(0, 2, 2, padding=2, stride=(2, 1), dilation=(1, 2)), conv(1, 2, 1, 1, stride=(1, 2)), True),
        (conv(0, 2, 3, 1), conv(1, 3, 1, 3), True),
        (conv(0, 2, 3, 1), conv(1, 3, 1, 3, padding=1), False),
        (conv(0, 2, 3, 1, bias=None), conv(1, 3, 1, 3, padding=1, stride=(2, 1)), True),
        (conv(0, 2, 3, 1, padding=1), conv(1, 3, 1, 3), True),
        (conv(0, 2, 2, 1, groups=2), conv(1, 2, 1, 3), False),
        (conv(0, 2, 2, 3), conv(1, 2, 2, 2), True),
        (conv(0, 2, 3, 2, padding=2, stride=(2, 1)), conv(1, 3, 1, 2, stride=(1, 2), dilation=(1, 2)), True),
        (conv(0, 2, 2, 3, padding=2, bias=None), conv(1, 2, 1, 2, padding=1), False),
        (conv(0, 2, 2, 2, dilation=(2, 1)), conv(1, 2, 1, 2), False),
        (conv(0, 2, 1, 2), conv(1, 1, 4, 2), False),  # more multiplications
    ],
)
def test_convolutions(first: Conv2d, second: Conv2d, merged: bool) -> None:
    after = check(graph(first, second, flat(2)), "merge_linear_layers")
    assert kinds(after) == (["conv2d", "flatten"] if merged else ["conv2d", "conv2d", "flatten"])


def test_a_layer_that_others_read_is_not_merged() -> None:
    before = graph(flat(0), linear(1, 32), linear(2, 2), add(2, 3))
    assert kinds(check(before, "merge_linear_layers")) == ["flatten", "linear", "linear", "add"]


# Sums -----------------------------------------------------------------------------------------------------------------


def square(source: int, name: str = "") -> Poly:
    return poly(source, [[0.0, 0.0, 1.0]], name)


def multiplications(graph: Graph) -> int:
    """Operands that sums must multiply."""
    steps = lower(graph, 4, 16, input_orders(4)["patent"]).steps
    return sum(factor != 1 for step in steps if isinstance(step, AddStep) for factor in step.factors)


def test_sums_align_every_order_once() -> None:
    before = graph(square(0), add(1, 0), square(0, "second"), add(2, 3), add(4, 0), flat(5))
    after = check(before, "regroup_sums")
    assert (multiplications(before), multiplications(after)) == (2, 1)
    assert kinds(after) == ["poly", "add", "poly", "add", "add", "flatten"]  # an operand before the sum that reads it


def test_sums_that_others_read_or_that_align_no_less_stay() -> None:
    for before in (
        graph(square(0), add(1, 0), add(2, 0), poly(2, [[1.0, 0.0, 1.0]]), add(3, 4), flat(5)),
        graph(square(0), add(0, 1), add(2, 1), flat(3)),
    ):
        after = check(before, "regroup_sums")
        assert [node.inputs for node in after.nodes] == [node.inputs for node in before.nodes]


def test_an_operand_made_after_the_sum_moves_before_it() -> None:
    before = graph(square(0), square(1, "fourth"), add(1, 2), square(0, "late"), add(3, 4), flat(5))
    after = check(before, "regroup_sums")
    assert (multiplications(before), multiplications(after)) == (2, 1)


# Orders ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "order"), [("patent", Order(8, 31 * 8)), ("hardened", Order(8, 23 * 8))])
def test_orders_of_the_lenet(profile: str, order: Order) -> None:
    """By the letter they are (8, 44) and (8, 36)."""
    shipped = import_module(models.lenet(pretrained="fashion-mnist"), (1, 28, 28))
    program = lower(apply_passes(shipped, "default"), 8, 16, input_orders(8)[profile])
    assert program.output_order == order


# All of them ----------------------------------------------------------------------------------------------------------


def test_dead_orders() -> None:
    nothing = AvgPool2d(name="one", inputs=(1,), kernel=(1, 1), stride=(1, 1), padding=(0, 0), divisor=1)
    before = graph(
        poly(0, [[0.0, 1.0]]), nothing, Concat(name="cat", inputs=(2,)), poly(3, [[1.0, 2.0, 0.0]]), flat(4),
        poly(5, [[0.0, 1.0]], "last"),
    )  # fmt: skip
    after = check(before, "eliminate_dead_orders")
    assert kinds(after) == ["poly", "flatten"]
    assert after.nodes[1].coefficients.tolist() == [[1.0, 2.0]]  # type: ignore[attr-defined]


# Sums of squares take no constant and drop what is nothing near 0: not for any graph (tests/test_passes_degrees.py).
ANYWHERE = sorted({p.name for p in available_passes()} - {SUMS_OF_SQUARES})


@given(st.integers(0, 2**32), st.sets(st.sampled_from(ANYWHERE), min_size=1))
@settings(max_examples=150, deadline=None)
def test_any_passes_on_any_graph(seed: int, names: set[str]) -> None:
    """Up to the rounding of constants: random coefficients are divided, which float64 does not do exactly."""
    before = random_graph(Random(seed), scale_bits=3, layers=6)
    after = apply_passes(before, sorted(names))
    images = np.random.default_rng(seed).uniform(-1, 1, (2, *before.input_shape))
    expected = evaluate_floats(before, images)
    np.testing.assert_allclose(evaluate_floats(after, images), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["poly", "poly-per-channel", "square"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("arch", ["lenet", "resnet_tiny"])
def test_architectures(arch: str, batch_norm: bool, activation: str) -> None:
    model = models.build(arch, in_channels=1, num_classes=3, image_size=8, batch_norm=batch_norm, activation=activation)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape) * 0.2 + 0.1)
    before = import_module(model.eval(), (1, 8, 8))
    after = apply_passes(before, "default")
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8))
    np.testing.assert_allclose(evaluate_floats(after, images), evaluate_floats(before, images), rtol=1e-9, atol=1e-12)
    for node in after.nodes:
        if isinstance(node, AvgPool2d):
            assert node.divisor == 1
        if isinstance(node, Poly):
            assert node.coefficients.shape[1] == 3
            assert (node.coefficients[:, 1] == 0).all()
            assert (np.abs(node.coefficients[:, 2]) == 1).all()
