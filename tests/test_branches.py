"""Branches of sums and concatenations: scales under which nothing is multiplied to be aligned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mcfhe
from mcfhe.graph.steps import AddStep, ConcatStep
from tests.graph_support import one_thread

__all__ = ["one_thread"]


class Branches(nn.Module):
    """Two convolutions of very different weights, joined, and a shortcut of another degree."""

    def __init__(self, join: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join = join
        self.small, self.large = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 1)
        self.act, self.pool = mcfhe.PolyActivation((0.0, 0.0, 1.0)), nn.AvgPool2d(2, divisor_override=1)
        self.fc = nn.Linear(16 if join == "concat" else 8, 3)
        with torch.no_grad():
            self.small.weight *= 1 / 16
            self.large.weight *= 8

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pool(self.small(x)), self.pool(self.large(x))
        if self.join == "concat":
            return self.fc(self.act(torch.cat([first, second], dim=1)).flatten(1))
        if self.join == "shared":  # the lower branch is read twice: its scale is not its own
            return self.fc(self.act(first + second + second).flatten(1))
        if self.join == "degrees":
            return self.fc((self.act(first) + second).flatten(1))
        return self.fc(self.act(first + second).flatten(1))


def compiled(join: str) -> mcfhe.Program:
    return mcfhe.compile(Branches(join).eval(), (1, 4, 4), scale_bits=6, passes="default")


def factors(program: mcfhe.Program) -> list[tuple[int, ...]]:
    steps = program.integer_program("patent").steps
    return [step.factors for step in steps if isinstance(step, AddStep | ConcatStep)]


@pytest.mark.parametrize("join", ["add", "concat"])
def test_branches_of_one_degree_need_no_alignment(join: str) -> None:
    program = compiled(join)
    assert factors(program) == [(1, 1)]
    bits = program.settings.layer_bits
    assert bits is not None
    assert bits["small"] == bits["large"]
    # the finer scale of the larger weights cost nothing: the order is that of the smaller weights' branch
    scores = program.integer_program("patent").output_order
    assert scores.k == 2 * (12 + bits["small"]) + bits["fc"]


def test_scales_that_are_given_stay() -> None:
    program = mcfhe.compile(
        Branches("add").eval(), (1, 4, 4), scale_bits=6, passes="default", weight_bits={"large": 5, "small": 9}
    )
    assert program.settings.layer_bits is not None
    assert (program.settings.layer_bits["large"], program.settings.layer_bits["small"]) == (5, 9)
    assert factors(program)[0] in ((1, 16), (16, 1))


def test_other_degrees_are_aligned_as_before() -> None:
    (pair,) = factors(compiled("degrees"))
    assert pair[0] == 1 < pair[1]


def test_a_layer_that_two_sums_read_keeps_its_scale() -> None:
    program = compiled("shared")
    assert any(factor != 1 for pair in factors(program) for factor in pair)


@pytest.mark.parametrize("join", ["add", "concat", "degrees", "shared"])
def test_encrypted_scores_are_the_oracles(join: str) -> None:
    program = compiled(join)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4), dtype=np.uint8)
    client = mcfhe.Client.generate(program.client_spec(), lanes=2, profile="patent")
    request, V = client.encrypt(images, return_integers=True)
    response = mcfhe.Server(program).evaluate(request)
    assert client.decrypt_integers(response) == program.evaluate_integers(V, "patent")
    with torch.no_grad():
        floats = Branches(join).eval().double()(torch.from_numpy(images).double() / 255)
    assert float((client.decrypt(response) - floats).abs().max()) < 0.05 * float(floats.abs().max())
