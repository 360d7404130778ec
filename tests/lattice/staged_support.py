"""Deep networks of four values for the tests of client refresh, and their stages."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

import mcfhe
from mcfhe.staged.cutting import refresh
from mcfhe.staged.program import StagedProgram
from mcfhe.staged.uncut import Uncut

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 1, 2, 2), dtype=np.uint8)


class Bend(nn.Module):
    """Almost linear, so that a deep chain keeps what it is given apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x * x / 16


def chain(activations: int) -> nn.Module:
    """On 1 x 2 x 2 pixels: rotations of the four values and bends, one after the other."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(activations):
        linear = nn.Linear(4, 4)
        nn.init.orthogonal_(linear.weight)
        layers += [linear, Bend()]
    return nn.Sequential(*layers, nn.Linear(4, 3)).eval()


def uncut(activations: int, **arguments: Any) -> Uncut:
    defaults: dict[str, Any] = {"scale_bits": 6, "scheme": "lattice", "for_refresh": True}
    return mcfhe.compile(chain(activations), (1, 2, 2), 0.5, 0.5, **(defaults | arguments))  # type: ignore[no-any-return]


def after(program: Uncut, activations: int) -> str:
    """Name of the layer that is the given activation."""
    return [node.name for node in program.graph.nodes if node.op == "poly"][activations - 1]


@cache
def two_stages() -> StagedProgram:
    """Four activations, cut in the middle."""
    program = uncut(4)
    return refresh(program, PIXELS, [after(program, 2)], max_degree=8192)


@cache
def equal_stages() -> StagedProgram:
    """Eight activations in four stages, the last three of one ring."""
    program = uncut(8)
    return refresh(program, PIXELS, [after(program, count) for count in (2, 4, 6)], max_degree=8192)
