"""Lattice programs on a device: bit for bit what the CPU computes, whatever the tiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.engine import Engine
from mcfhe.engine.arena import TorchMemory
from mcfhe.errors import FormatError
from mcfhe.lattice import expansion
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.security import SEED_BYTES
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.wire import LatticeRequest

pytestmark = pytest.mark.gpu


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def compiled() -> LatticeProgram:
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
    program = mcfhe.compile(model, (1, 6, 6), 0.3, 0.4, scheme="lattice")
    assert isinstance(program, LatticeProgram)
    return program


def draw(generator: torch.Generator, *shape: int, moduli: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([torch.randint(0, q, shape, generator=generator) for q in moduli])


@pytest.mark.parametrize("tile_bytes", [None, 1 << 20])
def test_equals_cpu(tile_bytes: int | None) -> None:
    steps = compiled().integer_program()
    ring = steps.ring
    assert ring is not None
    generator = torch.Generator().manual_seed(1)
    x = draw(generator, 1, 6, 6, 2 * ring.degree, moduli=ring.moduli).to(torch.int32)
    keys = draw(generator, len(ring.moduli), 2, ring.degree, moduli=(*ring.moduli, ring.special))
    keys = keys.permute(1, 2, 0, 3).contiguous()
    host = Engine(steps)
    device = Engine(steps, torch.device("cuda"), tile_bytes)
    expected = host.run(host.bind_ring(keys), x)
    found = device.run(device.bind_ring(keys), x)
    resident = device.run(device.bind_ring(keys), x.cuda())
    assert torch.equal(found, expected)
    assert resident.is_cuda
    assert torch.equal(resident.cpu(), expected)


@pytest.mark.parametrize("seeded", [True, False])
def test_requests_as_received(seeded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves travel through pinned memory, seeds are expanded on the device, bad residues are seen there."""
    monkeypatch.setattr(expansion, "UPLOAD_BYTES", 1 << 20)
    monkeypatch.setattr(expansion, "CUDA_EXPAND_BYTES", 1 << 21)
    program = compiled()
    ring, generator = program.plan.ring, torch.Generator().manual_seed(2)
    key = draw(generator, len(ring.moduli), 2, ring.degree, moduli=(*ring.moduli, ring.special)).permute(1, 2, 0, 3)
    stream = (1 if seeded else 2) * ring.degree
    request = LatticeRequest(
        draw(generator, 1, 6, 6, stream, moduli=ring.moduli).to(torch.int32),
        LatticeEvaluationKey(ring, key.to(torch.int32).contiguous()),
        program.program_id,
        program.slots,
        seeds=torch.randint(0, 256, (1, 6, 6, SEED_BYTES), dtype=torch.uint8) if seeded else None,
    )
    server = LatticeServer(program, "cuda")
    residues = server.evaluate(request).residues
    assert not residues.is_cuda
    assert torch.equal(residues, LatticeServer(program).evaluate(request).residues)
    assert torch.equal(expansion.expanded(request, TorchMemory(server.device)).cpu(), expansion.expanded(request))
    request.ciphertext[-1, 0, 5, 5, -1] = ring.moduli[-1]
    with pytest.raises(FormatError, match=f"limb {len(ring.moduli) - 1}"):
        server.evaluate(request)
