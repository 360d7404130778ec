"""Everything that is captured in a CUDA graph, on the CPU: nothing in it may wait for a device."""

from __future__ import annotations

import pytest
import torch

from mcfhe.engine import Engine
from tests.capture_rules import NotCapturable, check_capturable
from tests.gpu.test_cuda_runtime import demo_program, layer
from tests.shapes import PRIMES_30
from tests.test_engine import residual_program
from tests.test_schedule import JOINED

MODULI = torch.tensor(PRIMES_30[:2])
X = torch.ones(2, 1, 4, 4, 3, dtype=torch.int64)
W = torch.ones(2, 1, 3, 3, dtype=torch.int64)


def test_what_waits_is_seen() -> None:
    sizes = ([1, 1], [0, 0], [1, 1], 1)
    check_capturable(lambda: torch.ops.mcfhe.conv2d(X, W, None, None, MODULI, *sizes, (1, 9)))
    for waits in (
        lambda: torch.tensor([1, 2]),
        lambda: int(torch.ops.mcfhe.count_out_of_range(X, MODULI)),
        lambda: X.to(torch.int32),
        lambda: X[[1, 0]],
        lambda: torch.ops.mcfhe.conv2d(X, W, None, None, MODULI, *sizes),
        lambda: torch.ops.mcfhe.linear(X[:, :, 0, 0], W[:, :, 0, 0], None, None, MODULI),
    ):
        with pytest.raises(NotCapturable):
            check_capturable(waits)


def test_the_layer_that_the_gpu_tests_capture() -> None:
    x, w = torch.ones(2, 3, 8, 8, 4, dtype=torch.int64), torch.ones(6, 3, 3, 3, dtype=torch.int64)
    bias = torch.ones(2, 6, dtype=torch.int64)
    check_capturable(lambda: layer(x, w, bias, MODULI))


@pytest.mark.parametrize("name", ["residual", *JOINED])
def test_every_kind_of_step(name: str) -> None:
    engine = Engine(residual_program() if name == "residual" else JOINED[name])
    binding = engine.bind(MODULI.tolist())
    x = torch.ones(2, *engine.program.input_shape, 3, dtype=torch.int64)
    check_capturable(lambda: engine._run_tile(binding, x))


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_the_demo_network(profile: str) -> None:
    engine = Engine(demo_program().integer_program(profile))
    binding = engine.bind(MODULI.tolist())
    x = torch.ones(2, 1, 28, 28, 4, dtype=torch.int64)
    check_capturable(lambda: engine._run_tile(binding, x))
