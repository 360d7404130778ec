"""Lattice programs on a device: bit for bit what the CPU computes, whatever the tiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.engine import Engine
from mcfhe.graph.steps import IntegerProgram

pytestmark = pytest.mark.gpu


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def program() -> IntegerProgram:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Square(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 12),
        Square(),
        nn.Linear(12, 3),
    ).eval()
    found: IntegerProgram = mcfhe.compile(model, (1, 6, 6), 0.3, 0.4, scheme="lattice").integer_program()
    return found


@pytest.mark.parametrize("tile_bytes", [None, 1 << 20])
def test_equals_cpu(tile_bytes: int | None) -> None:
    steps = program()
    ring = steps.ring
    assert ring is not None
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, moduli: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([torch.randint(0, q, shape, generator=generator) for q in moduli])

    x = draw(1, 6, 6, 2 * ring.degree, moduli=ring.moduli).to(torch.int32)
    digits = len(ring.moduli)
    keys = draw(digits, 2, ring.degree, moduli=(*ring.moduli, ring.special)).permute(1, 2, 0, 3).contiguous()
    host = Engine(steps)
    device = Engine(steps, torch.device("cuda"), tile_bytes)
    expected = host.run(host.bind_ring(keys), x)
    found = device.run(device.bind_ring(keys), x)
    resident = device.run(device.bind_ring(keys), x.cuda())
    assert torch.equal(found, expected)
    assert resident.is_cuda
    assert torch.equal(resident.cpu(), expected)
