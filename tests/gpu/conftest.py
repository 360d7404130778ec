"""What the GPU tests share. They skip, with the reason, where there is no device or no CUDA build."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mcfhe._extension import has_cuda_kernels, load

Draw = Callable[..., Tensor]

load()  # registers torch.ops.mcfhe


@pytest.fixture(autouse=True)
def cuda_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """conftest.py above skips without a device; this one skips without kernels for it.

    An error of a kernel is reported by whatever waits for the device next. Waiting after every test names the right
    one, and ends the session there: a context in which a kernel failed can do nothing more.
    """
    if torch.cuda.is_available() and not has_cuda_kernels():
        pytest.skip("this build of mcfhe has no CUDA kernels: rebuild with MCFHE_WITH_CUDA=1")
    yield
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"{request.node.nodeid} broke the CUDA context: {error}", returncode=1)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


@pytest.fixture
def draw() -> Draw:
    """draw(moduli, *shape): residues on the CPU, int64 [L, *shape], a tenth of them 0 or b - 1."""
    generator = torch.Generator().manual_seed(7)

    def residues(moduli: Tensor, *shape: int) -> Tensor:
        rows = []
        for b in moduli.tolist():
            values = torch.randint(0, b, shape, generator=generator)
            chance = torch.rand(shape, generator=generator)
            rows.append(values.where(chance > 0.05, torch.tensor(0)).where(chance < 0.95, torch.tensor(b - 1)))
        return torch.stack(rows)

    return residues
