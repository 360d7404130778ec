"""Pools joined to the squares before them: which do, and that SEAL's evaluator, one step after the other, agrees."""

from __future__ import annotations

from random import Random

import pytest
import torch

from mcfhe.engine import Engine
from mcfhe.engine.schedule import fuse
from mcfhe.graph.nodes import AvgPool2d, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.steps import IntegerProgram
from mcfhe.lattice.lower import Placement
from tests.lattice.support import Oracle, lowered, small_ring
from tests.lattice.test_equals_seal import SQUARE, constants
from tests.test_schedule import joined

DEGREE, LIMBS, SIZE = 16, 4, 5
Pair = tuple[int, int]


def network(
    seed: int,
    kernel: Pair = (2, 2),
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    divisor: int = 1,
    rows: int | None = None,
    layer: bool = True,
) -> IntegerProgram:
    """(A layer,) a quadratic, its pool, a linear layer. ``rows``: of coefficients; None: the plain square."""
    random = Random(seed)
    stride = kernel if stride is None else stride
    nodes: list[Node] = [Input(name="input", inputs=(), shape=(2, SIZE, SIZE))]
    if layer:
        weight, bias = constants(random, 2, 2, 3, 3), constants(random, 2)
        nodes.append(
            Conv2d(
                name="conv", inputs=(0,), weight=weight, bias=bias, stride=(1, 1), padding=(1, 1), dilation=(1, 1),
                groups=1,
            )
        )  # fmt: skip
    last = len(nodes) - 1
    coefficients = SQUARE if rows is None else constants(random, rows, 3)
    out = [(SIZE + 2 * p - k) // s + 1 for k, s, p in zip(kernel, stride, padding, strict=True)]
    nodes += [
        Poly(name="poly", inputs=(last,), coefficients=coefficients),
        AvgPool2d(name="pool", inputs=(last + 1,), kernel=kernel, stride=stride, padding=padding, divisor=divisor),
        Flatten(name="flat", inputs=(last + 2,)),
        Linear(name="fc", inputs=(last + 3,), weight=constants(random, 2, 2 * out[0] * out[1]), bias=None),
    ]
    bits = {node.name: 3 for node in nodes}
    return lowered(Graph(tuple(nodes)), bits, small_ring(DEGREE, LIMBS), {last + 2: Placement(1, LIMBS - 1, True)})


PROGRAMS = {
    "square": network(1),
    "window of the whole": network(2, kernel=(5, 5)),
    "rows left over": network(3, kernel=(3, 1)),
    "factor": network(4, divisor=3),
    "quadratic": network(5, rows=1),
    "quadratic by channel, factor": network(6, rows=2, divisor=4, kernel=(1, 2)),
    "square of the input": network(7, layer=False),
    "overlap": network(8, kernel=(3, 3), stride=(2, 2)),
    "padding": network(9, padding=(1, 1)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_joins_the_square(name: str) -> None:
    first = joined(fuse(PROGRAMS[name])[0])
    alone = ["tensor_square"] if name == "square of the input" else ["conv2d", "tensor_square"]
    assert first == (alone if name in ("overlap", "padding") else [*alone, "sum_pool2d"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_joining_changes_no_residue(name: str) -> None:
    oracle = Oracle(small_ring(DEGREE, LIMBS))
    engine = Engine(PROGRAMS[name], tile_bytes=20_000)
    generator = torch.Generator().manual_seed(len(name))
    x = torch.stack([torch.randint(0, q, (2, SIZE, SIZE, 2 * DEGREE), generator=generator) for q in oracle.ring.moduli])
    assert torch.equal(engine.run(engine.bind_ring(oracle.keys), x), oracle.run(PROGRAMS[name], x))


def test_memory_alive_counts_what_the_layer_wrote() -> None:
    """Two components of 2 x 5 x 5 come in and leave the layer; three of 2 x 2 x 2 leave the pool."""
    assert Engine(PROGRAMS["square"]).live_entries == 2 * 50 + 2 * 50 + 3 * 8
    assert Engine(PROGRAMS["square of the input"]).live_entries == 2 * 50 + 3 * 8
