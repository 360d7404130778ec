"""The CUDA ops as citizens of the CUDA runtime: streams, graphs, memory, devices; and a whole network on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import mcfhe
from mcfhe.cards import ModelCard
from mcfhe.engine import Engine
from mcfhe.program import Program
from tests.gpu.conftest import Draw
from tests.shapes import PRIMES_30

pytestmark = pytest.mark.gpu

MODULI = torch.tensor(PRIMES_30[:2])
LONG_WAIT = 200_000_000  # cycles: about 0.1 s


def layer(x: Tensor, w: Tensor, bias: Tensor, moduli: Tensor) -> Tensor:
    """A convolution with a fused square, a pool and a linear layer; nothing in it waits for the device."""
    poly = (torch.arange(3, device=x.device) // 2).expand(moduli.numel(), 1, 3)  # 0, 0, 1, made on the device
    y = torch.ops.mcfhe.conv2d(x, w, bias, poly, moduli, [1, 1], [1, 1], [1, 1], 1, (100, 100 * 27))
    y = torch.ops.mcfhe.sum_pool2d(y, None, moduli, [2, 2], [2, 2], [0, 0])
    y = y.flatten(1, 3)
    rows = torch.arange(5 * y.shape[1], device=x.device).view(5, -1) % 7 - 3
    result: Tensor = torch.ops.mcfhe.linear(y, rows, None, None, moduli, (3, 3 * y.shape[1]))
    return result


def new_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@pytest.fixture
def tensors(draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w = torch.randint(-100, 101, (6, 3, 3, 3), generator=torch.Generator().manual_seed(1))
    return draw(MODULI, 3, 8, 8, 12), w, draw(MODULI, 6), MODULI


def test_the_current_stream_is_used(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    """The input arrives late on a side stream: an op launched on any other stream would read the old one."""
    x, *rest = (t.to(device) for t in tensors)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    side = new_stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG_WAIT)  # type: ignore[no-untyped-call]
        late.copy_(x)
        y = layer(late, *rest)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(y.cpu(), layer(*tensors))


def test_streams_do_not_disturb_each_other(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    x, *rest = (t.to(device) for t in tensors)
    expected = layer(*tensors)
    streams = [new_stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(layer(x, *rest))
    torch.cuda.synchronize()
    assert all(torch.equal(y.cpu(), expected) for y in results)


def test_graph_capture_and_replay(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    x, *rest = (t.to(device) for t in tensors)
    static = x.clone()
    warm = new_stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            layer(static, *rest)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(static, *rest)
    for shift in (0, 1, 2):
        host = tensors[0].roll(shift, dims=-1)
        static.copy_(host.to(device))
        graph.replay()
        assert torch.equal(y.cpu(), layer(host, *tensors[1:]))


def test_weight_bounds_are_measured_when_absent(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    x, w, bias, moduli = tensors
    arguments = ([1, 1], [1, 1], [1, 1], 1)
    got = torch.ops.mcfhe.conv2d(*(t.to(device) for t in (x, w, bias)), None, moduli.to(device), *arguments)
    assert torch.equal(got.cpu(), torch.ops.mcfhe.conv2d(x, w, bias, None, moduli, *arguments))


def test_out_of_memory_is_clear_and_harmless(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    _, total = torch.cuda.mem_get_info(device)
    stream = 2**20
    outs = 2 * total // (8 * stream)  # twice the device
    x = torch.ones(1, 1, 1, 1, stream, dtype=torch.int64, device=device)
    w = torch.ones(outs, 1, 1, 1, dtype=torch.int64, device=device)
    moduli = MODULI[:1].to(device)
    before = torch.cuda.memory_allocated(device)
    with pytest.raises(RuntimeError, match="out of memory"):
        torch.ops.mcfhe.conv2d(x, w, None, None, moduli, [1, 1], [0, 0], [1, 1], 1, (1, 1))
    assert torch.cuda.memory_allocated(device) == before
    moved = [t.to(device) for t in tensors]
    assert torch.equal(layer(*moved).cpu(), layer(*tensors))


def test_another_device_than_the_current_one(tensors: tuple[Tensor, ...]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs 2 CUDA devices, {torch.cuda.device_count()} here")
    with torch.cuda.device(0):
        y = layer(*(t.to("cuda:1") for t in tensors))
        assert torch.cuda.current_device() == 0
    assert y.device == torch.device("cuda:1")
    assert torch.equal(y.cpu(), layer(*tensors))
    with pytest.raises(RuntimeError, match="another device"):
        torch.ops.mcfhe.square(tensors[0].to("cuda:0"), MODULI.to("cuda:1"))


def test_torch_compile_and_opcheck(tensors: tuple[Tensor, ...], device: torch.device) -> None:
    x, w, bias, moduli = (t.to(device) for t in tensors)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mcfhe.square, (x, moduli), test_utils=tests)
    arguments = (x, w, bias, None, moduli, [1, 1], [1, 1], [1, 1], 1, (100, 2700))
    torch.library.opcheck(torch.ops.mcfhe.conv2d, arguments, test_utils=tests)


def demo_program() -> Program:
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    assert isinstance(card, ModelCard)
    return mcfhe.compile(model, input_shape=card.input_shape, mean=card.mean, std=card.std, labels=card.labels)


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_the_demo_network_is_exact(profile: str) -> None:
    """Integers of real size, reduced and evaluated on the device: every residue equals the Python integers'."""
    program = demo_program()
    table = np.array(program.table, dtype=object)
    images = mcfhe.datasets.load("fashion-mnist-sample", "test", limit=3).images.numpy()
    values = np.take(table[0], images) * 2**4 + np.random.default_rng(3).integers(0, 8, images.shape)
    x = torch.tensor([[int(v) % b for v in values.ravel()] for b in PRIMES_30])
    x = x.reshape(len(PRIMES_30), *values.shape).permute(0, 2, 3, 4, 1)
    engine = Engine(program.integer_program(profile), torch.device("cuda"))
    got = engine.run(engine.bind(PRIMES_30), x)
    expected = program.evaluate_integers(values, profile)
    for limb, b in zip(got, PRIMES_30, strict=True):
        assert limb.T.tolist() == [[v % b for v in row] for row in expected]


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_encrypt_evaluate_decrypt(profile: str) -> None:
    """With a client: every decrypted integer equals the oracle's."""
    pytest.importorskip("cryptography", reason="the client needs the package cryptography")
    program = demo_program()
    images = mcfhe.datasets.load("fashion-mnist-sample", "test", limit=8).images
    client = mcfhe.Client.generate(program.client_spec(), lanes=4, profile=profile)
    request, integers = client.encrypt(images, return_integers=True)
    response = mcfhe.Server(program, device="cuda").evaluate(request)
    assert client.decrypt_integers(response) == program.evaluate_integers(integers, profile)
    assert torch.equal(response.residues, mcfhe.Server(program, device="cpu").evaluate(request).residues)
