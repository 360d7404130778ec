"""What compile refuses for the lattice scheme: rings below 128 bits, arguments out of range, other activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph.nodes import Graph, Input, Poly
from mcfhe.lattice.plan import Plan, make_ring
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.security import MAX_MODULUS_BITS, require_security
from tests.lattice.support import lowered, small_program


def test_parameters_below_128_bits_are_refused() -> None:
    for degree, bits in MAX_MODULUS_BITS.items():
        require_security(degree, [(1 << bits) - 1])
        with pytest.raises(
            ParameterError, match=rf"{bits + 1} bits at ring degree {degree}: less than 128 .* allows {bits}"
        ):
            require_security(degree, [1 << bits])
    with pytest.raises(ParameterError, match="ring degree 2048000"):
        require_security(2048000, [3])
    program = small_program()
    with pytest.raises(ParameterError, match="less than 128 bits"):
        LatticeProgram(program.graph, program.settings, Plan(4096, 3, 20, program.plan.placements))


@pytest.mark.parametrize(("argument", "match"), [({"degree": 5000}, "degree 5000: choose one of 4096, 8192"),
    ({"degree": 1024}, "degree 1024"), ({"precision_bits": 3}, "precision_bits 4..24"), ({"precision_bits": 25}, "25"),
    ({"scale_bits": "auto"}, "scale_bits must be a number")])  # fmt: skip
def test_refuses_arguments(argument: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        small_program(**argument)


def test_refuses_other_activations() -> None:
    class Fifth(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x * x * x * x

    model = nn.Sequential(nn.Conv2d(1, 1, 1), Fifth(), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"degree 5; .* degree 1 to 4: convert with max_degree=4"):
        mcfhe.compile(model, (1, 2, 2), scheme="lattice")
    with pytest.raises(ParameterError, match="scheme 'bfv': choose one of modular, lattice"):
        mcfhe.compile(model, (1, 2, 2), scheme="bfv")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([("act", [1.0])], "layer 'act': degree 0;"),
        ([("act", [0.0, 0.0, 0.0, 1.0])], "layer 'act': degree 3; .* the pass sums_of_squares"),
        ([("act", [0.0, 1.0])], "layer 'act': degree 1, and no sum reads it"),
        ([("act", [0.0, 1.0]), ("next", [0.0, 0.0, 1.0])], "layer 'act': degree 1, read by 'next'"),
    ],
)
def test_lowering_refuses_what_the_pass_has_not_seen(nodes: list[tuple[str, list[float]]], words: str) -> None:
    polys = [Poly(name=name, inputs=(index,), coefficients=np.array([row])) for index, (name, row) in enumerate(nodes)]
    graph = Graph((Input(name="input", inputs=(), shape=(1, 1, 1)), *polys))
    with pytest.raises(UnsupportedLayerError, match=words):
        lowered(graph, {"act": 2}, make_ring(1024, 3), {})
