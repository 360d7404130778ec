"""Whole programs, limb for limb: our engine against SEAL's Evaluator on the same ciphertexts and keys."""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from mcfhe.engine import Engine
from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly
from mcfhe.graph.passes.sums_of_squares import sums_of_squares
from mcfhe.lattice.lower import Placement
from mcfhe.lattice.work import ring_points
from tests.lattice.support import Oracle, TransparentError, lowered, small_ring

BITS = 3
SQUARE = np.array([[0.0, 0.0, 1.0]])


@cache
def oracle(degree: int, limbs: int, first_bits: int = 30) -> Oracle:
    return Oracle(small_ring(degree, limbs, first_bits))


def constants(random: Random, *shape: int) -> np.ndarray:
    """Multiples of 2^-BITS, never 0: SEAL refuses ciphertexts of nothing but zeros."""
    values = [random.choice((-1, 1)) * random.randint(1, 15) / 2**BITS for _ in range(int(np.prod(shape)))]
    return np.array(values).reshape(shape)


def check(
    nodes: list[Node],
    placements: dict[int, Placement],
    degree: int = 64,
    limbs: int = 4,
    seed: int = 0,
    first_bits: int = 30,
) -> None:
    """Random residues, as good as ciphertexts: what both sides do does not depend on their meaning."""
    graph = Graph(tuple(nodes))
    bits = {node.name: BITS for node in nodes}
    seal = oracle(degree, limbs, first_bits)
    try:
        program = lowered(graph, bits, seal.ring, placements)
    except ParameterError as error:  # random placements that rescale and square a scale below what we take
        if "a scale of 2^-" in str(error):
            reject()
        raise
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, q, (*graph.input_shape, 2 * degree), generator=generator) for q in seal.ring.moduli]
    x = torch.stack(rows)
    engine = Engine(program)
    got = engine.run(engine.bind_ring(seal.keys), x)
    level = program.levels[-1]
    assert got.shape == (level.limbs, *program.output_shape, level.components * degree)
    try:
        expected = seal.run(program, x)
    except TransparentError:  # about one random program in a thousand; in any other test this is a failure
        reject()
    assert torch.equal(got, expected)


def conv(name: str, source: int, weight: np.ndarray, bias: np.ndarray | None = None, **changes: object) -> Conv2d:
    fields = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | changes
    return Conv2d(name=name, inputs=(source,), weight=weight, bias=bias, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("first_bits", [14, 18, 30, 31])
def test_lenet_of_every_step(first_bits: int) -> None:
    """Padding, stride, groups, bias, a square with all terms, pooling, relinearisation past a linear layer."""
    random = Random(1)
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(2, 4, 4)),
        conv("c1", 0, constants(random, 2, 1, 3, 3), constants(random, 2), padding=(1, 1), groups=2),
        Poly(name="p1", inputs=(1,), coefficients=constants(random, 2, 3)),
        AvgPool2d(name="pool", inputs=(2,), kernel=(2, 2), stride=(2, 2), padding=(0, 0), divisor=4),
        conv("c2", 3, constants(random, 3, 2, 2, 2), constants(random, 3), stride=(2, 1), padding=(1, 0)),
        Poly(name="p2", inputs=(4,), coefficients=SQUARE),
        Flatten(name="flat", inputs=(5,)),
        Linear(name="fc", inputs=(6,), weight=constants(random, 2, 6), bias=constants(random, 2)),
    ]
    check(nodes, {3: Placement(1, 3, True), 7: Placement(0, 2, True)}, degree=1024, first_bits=first_bits)


def test_residual_of_branches_at_different_levels() -> None:
    random = Random(2)
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(2, 2, 2)),
        conv("c1", 0, constants(random, 2, 2, 1, 1), constants(random, 2)),
        Poly(name="p1", inputs=(1,), coefficients=constants(random, 1, 3)),
        Add(name="add", inputs=(2, 1)),
        Concat(name="cat", inputs=(3, 0, 2)),
        Flatten(name="flat", inputs=(4,)),
        Linear(name="fc", inputs=(5,), weight=constants(random, 2, 24), bias=None),
    ]
    for placement in (Placement(1, 3, True), Placement(2, 2, True), Placement(0, 2, True), Placement(1, 1, True)):
        check(nodes, {2: placement})


@pytest.mark.parametrize("relinearise", [True, False])
def test_response_of_two_or_three_components(relinearise: bool) -> None:
    random = Random(3)
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(1, 2, 1)),
        Poly(name="p", inputs=(0,), coefficients=np.array([[0.0, 1.5, 2.0]])),
        Flatten(name="flat", inputs=(1,)),
        Linear(name="fc", inputs=(2,), weight=constants(random, 2, 2), bias=constants(random, 2)),
    ]
    check(nodes, {3: Placement(2, 1, relinearise)})


@given(
    seed=st.integers(0, 1 << 30),
    degree=st.sampled_from([8, 64, 256]),
    limbs=st.integers(2, 6),
    first_bits=st.sampled_from([18, 30, 31]),
)
@settings(max_examples=30, deadline=None)
def test_random_programs(seed: int, degree: int, limbs: int, first_bits: int) -> None:
    random = Random(seed)
    shape = (random.randint(1, 2), random.randint(1, 3), random.randint(1, 3))
    nodes: list[Node] = [Input(name="input", inputs=(), shape=shape)]
    placements, left, parts, x = {}, [limbs], [2], 0

    def append(node: Node) -> int:
        nodes.append(node)
        left.append(min(left[i] for i in node.inputs))
        parts.append(parts[node.inputs[0]])
        return len(nodes) - 1

    def place(at: int, relinearise: bool) -> None:
        rescales = random.randint(0, min(2, left[at] - 1))
        left[at] = random.randint(1, left[at] - rescales) if random.random() < 0.3 else left[at] - rescales
        placements[at] = Placement(rescales, left[at], relinearise)
        parts[at] = 2 if relinearise else parts[at]

    for number in range(random.randint(1, 4)):
        channels, *size = Graph(tuple(nodes)).shapes[x]
        kind = random.choice(("conv", "square", "pool", "add"))
        if kind == "conv":
            kernel = [random.randint(1, s) for s in size]
            weight = constants(random, random.randint(1, 2), channels, *kernel)
            x = append(conv(f"l{number}", x, weight, constants(random, len(weight)) if random.random() < 0.5 else None))
        elif kind == "pool":
            kernel = [random.randint(1, s) for s in size]
            x = append(
                AvgPool2d(
                    name=f"l{number}",
                    inputs=(x,),
                    kernel=(kernel[0], kernel[1]),
                    stride=(1, 1),
                    padding=(0, 0),
                    divisor=random.choice((1, 3)),
                )
            )
        elif kind == "square" and parts[x] == 2:
            rows = constants(random, random.choice((1, channels)), 3)
            before, x = x, append(Poly(name=f"l{number}", inputs=(x,), coefficients=random.choice((SQUARE, rows))))
            parts[x] = 3
            if random.random() < 0.7:
                place(x, True)
                if random.random() < 0.5:
                    x = append(Add(name=f"a{number}", inputs=random.choice(((x, before), (before, x)))))
        elif kind == "add":
            x = append(Add(name=f"l{number}", inputs=(x, x)))
    if parts[x] == 3:
        place(x, True)
    x = append(Flatten(name="flat", inputs=(x,)))
    width = Graph(tuple(nodes)).shapes[x][0]
    append(Linear(name="fc", inputs=(x,), weight=constants(random, 1, width), bias=constants(random, 1)))
    check(nodes, placements, degree, limbs, seed, first_bits)


@given(seed=st.integers(0, 1 << 30), degree=st.integers(2, 4), skip=st.booleans(), limbs=st.integers(3, 6))
@settings(max_examples=20, deadline=None)
def test_activations_of_every_degree(seed: int, degree: int, skip: bool, limbs: int) -> None:
    """As the plan places them: squares meet linear polynomials and shortcuts before they are relinearised."""
    random = Random(seed)
    rows = constants(random, random.choice((1, 2)), degree + 1)
    nodes: list[Node] = [
        Input(name="input", inputs=(), shape=(2, 2, 1)),
        Poly(name="act", inputs=(0,), coefficients=rows),
    ]
    if skip:
        nodes.append(Add(name="skip", inputs=random.choice(((0, 1), (1, 0)))))
    last = len(nodes) - 1
    pool = {"kernel": (2, 1), "stride": (1, 1), "padding": (0, 0), "divisor": 1}
    nodes.append(AvgPool2d(name="pool", inputs=(last,), **pool))  # type: ignore[arg-type]
    nodes.append(Flatten(name="flat", inputs=(last + 1,)))
    nodes.append(Linear(name="fc", inputs=(last + 2,), weight=constants(random, 2, 2), bias=constants(random, 2)))
    graph = sums_of_squares(Graph(tuple(nodes)))
    places, left = set(ring_points(graph).values()), list[int]()
    placements = {}
    for index, node in enumerate(graph.nodes):
        left.append(min((left[i] for i in node.inputs), default=limbs))
        if index in places:
            rescales = random.randint(0, min(2, left[index] - 1))
            left[index] = random.randint(1, left[index] - rescales)
            placements[index] = Placement(rescales, left[index], True)
    check(list(graph.nodes), placements, 16, limbs, seed)
