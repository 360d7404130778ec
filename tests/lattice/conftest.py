"""The lattice scheme's tests need SEAL, which the ``tenseal`` wheel brings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("tenseal.sealapi", reason="the lattice scheme's client needs SEAL: pip install 'mcfhe[lattice]'")

from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.program import LatticeProgram
from tests.lattice.support import small_program


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Rings are small here: on a busy machine threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def program() -> LatticeProgram:
    return small_program()


@pytest.fixture(scope="session")
def client(program: LatticeProgram) -> LatticeClient:
    return LatticeClient.generate(program.client_spec())
