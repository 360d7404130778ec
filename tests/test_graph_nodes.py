"""Graph validation and the passes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcfhe.errors import ParameterError
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.passes import apply_passes, available_passes, graph_pass, select_passes
from mcfhe.graph.passes.dead_nodes import eliminate_dead_nodes
from tests.graph_support import one_thread, random_graph  # noqa: F401 - a fixture

IMAGE = Input(name="input", inputs=(), shape=(2, 4, 4))
CONV = Conv2d(
    name="conv",
    inputs=(0,),
    weight=np.ones((4, 1, 3, 3)),
    bias=np.zeros(4),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    groups=2,
)
POOL = AvgPool2d(name="pool", inputs=(0,), kernel=(2, 2), stride=(2, 2), padding=(1, 1), divisor=4)
POLY = Poly(name="poly", inputs=(0,), coefficients=np.ones((2, 3)))
FLAT = Flatten(name="flat", inputs=(0,))


def test_shapes() -> None:
    concat = Concat(name="concat", inputs=(1, 3, 0))
    graph = Graph((IMAGE, CONV, POLY, Add(name="add", inputs=(0, 2)), concat, Flatten(name="flat", inputs=(4,))))
    assert graph.shapes == ((2, 4, 4), (4, 4, 4), (2, 4, 4), (2, 4, 4), (8, 4, 4), (128,))
    assert (graph.input_shape, graph.output_shape) == ((2, 4, 4), (128,))
    assert Graph((IMAGE, POOL)).output_shape == (2, 3, 3)
    wide = replace(CONV, stride=(2, 1), padding=(0, 2), dilation=(1, 2))
    assert Graph((IMAGE, wide)).output_shape == (4, 1, 4)


BAD: list[tuple[Any, str]] = [
    ((), "first node must be the input"),
    ((CONV,), "first node must be the input"),
    ((IMAGE, replace(IMAGE, name="second")), "more than one input"),
    ((IMAGE, CONV, replace(POLY, name="conv")), "two layers are named 'conv'"),
    ((replace(IMAGE, shape=(2, 4)),), "not \\(C, H, W\\)"),
    ((replace(IMAGE, shape=(2, 4, 0)),), "not \\(C, H, W\\)"),
    ((replace(IMAGE, shape=(1 << 10, 1 << 10, 1 << 10)),), "more than"),
    ((IMAGE, replace(CONV, inputs=(1,))), "'conv': reads values \\(1,\\)"),
    ((IMAGE, replace(CONV, inputs=(-1,))), "reads values"),
    ((IMAGE, replace(CONV, inputs=())), "takes 1..1 inputs, has 0"),
    ((IMAGE, replace(CONV, inputs=(0, 0))), "takes 1..1 inputs, has 2"),
    ((IMAGE, replace(CONV, groups=1)), "does not fit input"),
    ((IMAGE, replace(CONV, groups=0)), "does not fit input"),
    ((IMAGE, replace(CONV, weight=np.ones((3, 1, 3, 3)), bias=None)), "does not fit input"),
    ((IMAGE, replace(CONV, bias=np.zeros(3))), "bias of shape"),
    ((IMAGE, replace(CONV, weight=np.ones((4, 1, 3)))), "weight of shape"),
    ((IMAGE, replace(CONV, weight=np.ones((4, 1, 0, 3)))), "weight of shape"),
    ((IMAGE, replace(CONV, weight=np.ones((4, 1, 3, 3), np.float32))), "float32, not float64"),
    ((IMAGE, replace(CONV, weight=np.full((4, 1, 3, 3), np.nan))), "not finite"),
    ((IMAGE, replace(CONV, stride=(0, 1))), "out of range"),
    ((IMAGE, replace(CONV, padding=(-1, 1))), "out of range"),
    ((IMAGE, replace(CONV, dilation=(4, 1))), "kernel \\(3, 3\\) is larger"),
    ((IMAGE, FLAT, replace(CONV, inputs=(1,))), "does not fit input"),
    ((IMAGE, replace(POOL, divisor=0)), "divisor 0"),
    ((IMAGE, replace(POOL, divisor=2.0)), "divisor 2.0"),
    ((IMAGE, replace(POOL, padding=(2, 1))), "padding > kernel / 2"),
    ((IMAGE, FLAT, replace(POOL, inputs=(1,))), "needs a feature map"),
    ((IMAGE, replace(POLY, coefficients=np.ones((3, 3)))), "3 rows for 2 channels"),
    ((IMAGE, replace(POLY, coefficients=np.ones(3))), "coefficients of shape"),
    ((IMAGE, replace(POLY, coefficients=np.ones((1, 18)))), "coefficients of shape"),
    ((IMAGE, replace(POLY, coefficients=np.array([[np.inf]]))), "not finite"),
    ((IMAGE, CONV, Add(name="add", inputs=(0, 1))), "operands of shapes"),
    ((IMAGE, FLAT, Concat(name="cat", inputs=(0, 1))), "operands of shapes"),
    ((IMAGE, Concat(name="cat", inputs=())), "inputs, has 0"),
    ((IMAGE, Linear(name="fc", inputs=(0,), weight=np.ones((3, 32)), bias=None)), "32 inputs, given"),
    ((IMAGE, FLAT, Linear(name="fc", inputs=(1,), weight=np.ones((3, 31)), bias=None)), "31 inputs, given"),
    ((IMAGE, Node(name="node", inputs=(0,))), "unknown node Node"),
]


@pytest.mark.parametrize(("nodes", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_graphs_that_make_no_sense(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        _ = Graph(nodes).input_shape


def with_dead_nodes(random: Random, graph: Graph) -> Graph:
    """The graph with layers put in between that nobody reads."""
    nodes, position = [graph.nodes[0]], {0: 0}
    for index, node in enumerate(graph.nodes[1:], 1):
        if random.random() < 0.5:
            dead = Poly(
                name=f"dead{index}", inputs=(random.choice(list(position.values())),), coefficients=np.ones((1, 2))
            )
            nodes.append(dead)
        position[index] = len(nodes)
        nodes.append(replace(node, inputs=tuple(position[i] for i in node.inputs)))
    return Graph(tuple(nodes))


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_dead_nodes_go_and_nothing_else_changes(seed: int) -> None:
    random = Random(seed)
    graph = with_dead_nodes(random, random_graph(random))
    cleaned = eliminate_dead_nodes(graph)
    assert not any(node.name.startswith("dead") for node in cleaned.nodes)
    images = np.random.default_rng(seed).normal(size=(2, *graph.input_shape))
    assert np.array_equal(evaluate_floats(cleaned, images), evaluate_floats(graph, images))
    read = {i for node in cleaned.nodes for i in node.inputs}
    assert read | {0} == set(range(len(cleaned.nodes) - 1))
    assert [node.name for node in eliminate_dead_nodes(cleaned).nodes] == [node.name for node in cleaned.nodes]


def test_selection_of_passes() -> None:
    names = tuple(p.name for p in available_passes())
    assert "eliminate_dead_nodes" in names
    assert select_passes(None) == select_passes("letter") == ("eliminate_dead_nodes",)
    assert select_passes("default") == tuple(p.name for p in available_passes() if p.default)
    assert select_passes(()) == ()
    assert select_passes(list(reversed(names))) == names  # always in the order of registration
    dead = Graph((IMAGE, POLY, FLAT))
    assert len(apply_passes(dead, ()).nodes) == 3
    assert len(apply_passes(dead).nodes) == 2


@pytest.mark.parametrize(
    ("names", "message"), [(["no_such"], "no pass 'no_such'.*eliminate_dead_nodes"), ("abc", "'abc' is no preset")]
)
def test_unknown_passes(names: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        select_passes(names)


def test_a_pass_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        graph_pass("eliminate_dead_nodes", default=False)(lambda graph: graph)
