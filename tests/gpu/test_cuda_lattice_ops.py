"""The lattice ops on CUDA: against the Python-integer oracle where it is quick, against the CPU ops at real sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor

from mcfhe import reference
from mcfhe.lattice import ring
from mcfhe.lattice.security import SEED_BYTES
from tests.gpu.conftest import Draw

pytestmark = pytest.mark.gpu

BITS = [31, 30, 20, 31, 29, 30, 31]  # of primes; the narrow one exercises reductions between moduli
LONG_WAIT = 200_000_000  # cycles: about 0.1 s
Op = Callable[..., Tensor]


@dataclass(eq=False)
class Case:
    """Ciphertexts and keys of one ring on the CPU; the special prime is last."""

    n: int
    limbs: int
    positions: tuple[int, ...]
    draw: Draw

    def __post_init__(self) -> None:
        primes = ring.ntt_primes(self.n, [max(b, self.n.bit_length() + 3) for b in BITS[: self.limbs + 1]])
        self.moduli, self.tables = torch.tensor(primes), ring.ntt_tables(primes, self.n)
        self.x = self.draw(self.moduli[:-1], *self.positions, 3 * self.n)
        self.seeds = self.draw(torch.tensor([256]), prod(self.positions), SEED_BYTES)[0].to(torch.uint8)
        self.keys = self.draw(self.moduli, self.limbs, 2, self.n).permute(1, 2, 0, 3).contiguous()

    @property
    def two(self) -> Tensor:
        return self.x[..., : 2 * self.n].contiguous()

    @property
    def row(self) -> Tensor:
        """All positions as one row of a channel."""
        return self.two.view(self.limbs, 1, 1, -1, 2 * self.n)

    def calls(self) -> dict[str, tuple[Op, tuple[Tensor | None, ...]]]:
        """Every op with its arguments."""
        op = torch.ops.mcfhe
        moduli, tables = self.moduli[:-1], self.tables[:-1].contiguous()
        shift, row = moduli[:, None] - 1, torch.stack([moduli - 2, moduli // 2, moduli - 1], 1)[:, None]
        calls: dict[str, tuple[Op, tuple[Tensor | None, ...]]] = {
            "ntt": (op.ntt, (self.x, tables, moduli)),
            "inverse": (lambda *a: op.ntt(*a, inverse=True), (self.x, tables, moduli)),
            "square": (op.tensor_square, (self.two, None, None, moduli)),
            "polynomial": (op.tensor_square, (self.two, shift, row, moduli)),
            "pooled": (lambda x, s, c, m: op.tensor_square(x, s, c, m, [1, 2]), (self.row, shift, row, moduli)),
            "pooled square": (lambda x, m: op.tensor_square(x, None, None, m, [1, 3]), (self.row, moduli)),
            "relinearise": (op.relinearise, (self.x, self.keys, self.tables, self.moduli)),
            "expand_uniform": (lambda seeds, m: op.expand_uniform(seeds, m, self.n), (self.seeds, moduli)),
            "add_const": (lambda x, c, m: op.add_const(x, c, m, self.n), (self.x, shift, moduli)),
        }
        if self.limbs > 1:
            calls["rescale"] = (op.rescale, (self.two, tables, moduli))
        return calls


def on(device: torch.device, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.to(device) for t in tensors)


@pytest.mark.parametrize("n", [8, 16, 32, 64])
@pytest.mark.parametrize("limbs", [1, 4])
def test_equal_to_the_oracle(draw: Draw, device: torch.device, n: int, limbs: int) -> None:
    case = Case(n, limbs, (2, 3), draw)
    moduli, tables = case.moduli[:-1], case.tables[:-1]
    got = {name: op(*on(device, arguments)).cpu() for name, (op, arguments) in case.calls().items()}
    assert torch.equal(got["ntt"], reference.ntt(case.x, tables, moduli))
    assert torch.equal(got["inverse"], reference.ntt(case.x, tables, moduli, inverse=True))
    assert torch.equal(got["square"], reference.tensor_square(case.two, moduli))
    assert torch.equal(got["pooled square"], reference.tensor_square(case.row, moduli, pool=(1, 3)))
    assert torch.equal(got["expand_uniform"], reference.expand_uniform(case.seeds, moduli, n))
    assert torch.equal(got["relinearise"], reference.relinearise(case.x, case.keys, case.tables, case.moduli))
    if limbs > 1:
        assert torch.equal(got["rescale"], reference.rescale(case.two, tables, moduli))


@pytest.mark.parametrize(
    ("n", "limbs", "positions"),
    [
        *((n, 2, (3,)) for n in (64, 128, 256, 512, 1024, 2048, 4096)),
        *((n, 6, (5, 2)) for n in (8192, 16384, 32768)),
        (1024, 3, (3, 3, 500)),  # more than one chunk of workspace
        (8, 2, (70_000,)),  # more positions than a grid is deep
    ],
)
def test_equal_to_the_cpu(draw: Draw, device: torch.device, n: int, limbs: int, positions: tuple[int, ...]) -> None:
    for name, (op, arguments) in Case(n, limbs, positions, draw).calls().items():
        assert torch.equal(op(*on(device, arguments)).cpu(), op(*arguments)), name


@pytest.mark.parametrize("n", [1024, 8192, 16384, 32768])
def test_the_largest_residues(device: torch.device, n: int) -> None:
    primes = ring.ntt_primes(n, [31, 30, 31])
    moduli, tables = torch.tensor(primes), ring.ntt_tables(primes, n)
    x = (moduli - 1).view(-1, 1).expand(-1, n).contiguous()
    for inverse in (False, True):
        y = torch.ops.mcfhe.ntt(x.to(device), tables.to(device), moduli.to(device), inverse).cpu()
        assert torch.equal(y, torch.ops.mcfhe.ntt(x, tables, moduli, inverse))


def test_layouts_are_made_dense_and_aligned(draw: Draw, device: torch.device) -> None:
    """Expanded, sliced and misaligned (an odd storage offset) inputs."""
    case = Case(64, 2, (4,), draw)
    for name, (op, arguments) in case.calls().items():
        moved = []
        for t in on(device, arguments):
            if t is None:
                moved.append(None)
                continue
            odd = torch.empty(t.numel() + 1, dtype=t.dtype, device=device)[1:].view(t.shape)
            moved.append(odd.copy_(t))
        assert torch.equal(op(*moved).cpu(), op(*arguments)), name
        strided = tuple(None if t is None else torch.stack([t, t], -1)[..., 0] for t in on(device, arguments))
        assert torch.equal(op(*strided).cpu(), op(*arguments)), name


def test_the_current_stream_is_used(draw: Draw, device: torch.device) -> None:
    """The input arrives late on a side stream: a kernel launched on any other stream would read zeros."""
    for name, (op, arguments) in Case(1024, 3, (2,), draw).calls().items():
        x, *rest = on(device, arguments)
        assert x is not None
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            torch.cuda._sleep(LONG_WAIT)  # type: ignore[no-untyped-call]
            late.copy_(x)
            y = op(late, *rest)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(y.cpu(), op(*arguments)), name


@pytest.mark.parametrize("n", [1024, 16384])
def test_graph_capture_and_replay(draw: Draw, device: torch.device, n: int) -> None:
    """Workspace is the capture's own; a replay reads the new input."""
    for name, (op, arguments) in Case(n, 2, (3,), draw).calls().items():
        x, *rest = on(device, arguments)
        assert x is not None
        static = x.clone()
        op(static, *rest)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = op(static, *rest)
        host = arguments[0]
        assert host is not None
        for _ in range(2):
            host = host.flip(1)
            static.copy_(host)
            graph.replay()
            assert torch.equal(y.cpu(), op(host, *arguments[1:])), name


def test_bad_arguments_are_refused(draw: Draw, device: torch.device) -> None:
    case = Case(8, 2, (1,), draw)
    x, moduli = case.x.to(device), case.moduli[:-1].to(device)
    with pytest.raises(RuntimeError, match="tables is on another device"):
        torch.ops.mcfhe.ntt(x, case.tables[:-1], moduli)
    with pytest.raises(RuntimeError, match="keys has shape"):
        torch.ops.mcfhe.relinearise(x, case.keys[:1].to(device), case.tables.to(device), case.moduli.to(device))
    with pytest.raises(RuntimeError, match="streams"):
        torch.ops.mcfhe.add_const(x, moduli[:, None], moduli, 100)
    with pytest.raises(RuntimeError, match="moduli is on another device"):
        torch.ops.mcfhe.expand_uniform(case.seeds.to(device), case.moduli, 8)


def test_nothing_in_nothing_out(draw: Draw, device: torch.device) -> None:
    for name, (op, arguments) in Case(8, 2, (0,), draw).calls().items():
        assert op(*on(device, arguments)).numel() == 0, name
