"""Models that cannot be compiled: one error that names the layer, by how much it is too much, and what would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mcfhe
from mcfhe.errors import ParameterError, UnsupportedLayerError
from tests.graph_support import one_thread

__all__ = ["one_thread"]

SHAPE = (1, 4, 4)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.Flatten(), nn.Linear(8, 2)).eval()


def powers(count: int) -> list[nn.Module]:
    pairs = [(mcfhe.PolyActivation((0.0,) * 16 + (1.0,)), nn.Conv2d(2, 2, 1)) for _ in range(count)]
    return [layer for pair in pairs for layer in pair]


class Picks(nn.Module):
    """A shape that depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


def test_unsupported_operation() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"layer '1' \(ReLU\): relu is no polynomial; use mcfhe.PolyActiv"):
        mcfhe.compile(chain(nn.ReLU()), SHAPE)


def test_shape_that_depends_on_the_values() -> None:
    """The layer after it cannot take what comes out on the probe, or torch.export refuses it: either is named."""
    with pytest.raises(ParameterError, match=r"layer '\d(\.0)?' \(\w+\): "):
        mcfhe.compile(chain(nn.Sequential(Picks())), SHAPE)


def test_branch_on_the_image_names_its_layer() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedLayerError, match=r"^layer '1\.0' \(Branch\): torch.export cannot trace it; control"):
        mcfhe.compile(chain(nn.Sequential(Branch())), SHAPE)


def test_layer_that_does_not_take_the_shape_is_named() -> None:
    with pytest.raises(ParameterError, match=r"^input_shape: .* \[batch, 1, 4, 4\]: layer '1\.1' \(Halves\): "):
        mcfhe.compile(chain(nn.Sequential(nn.Identity(), Halves())), SHAPE)
    with pytest.raises(ParameterError, match=r"^input_shape: .* layer '3' \(Linear\): "):
        mcfhe.compile(chain(nn.Identity()), (1, 6, 6))
    with pytest.raises(ParameterError, match=r"input_shape: \(1, None, 4\) is not \(C, H, W\) with fixed sizes"):
        mcfhe.compile(chain(), (1, None, 4))  # type: ignore[arg-type]


def test_hooks_of_the_diagnosis_do_not_stay() -> None:
    model = chain(Halves())
    for _ in range(2):
        with pytest.raises(ParameterError):
            mcfhe.compile(model, SHAPE)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_weights_too_large_for_any_scale() -> None:
    model = chain()
    with torch.no_grad():
        model[2].weight[0, 0] = 2.0**30
    with pytest.raises(
        ParameterError, match=r"layer '2': weight 1\.07374e\+09 \* 2\*\*8 .* 8 bits too large; no scale"
    ):
        mcfhe.compile(model, SHAPE, scale_bits=8)
    with torch.no_grad():
        model[2].weight[0, 0] = 2.0**26
    with pytest.raises(ParameterError, match=r"layer '2': .* 4 bits too large; use at most 4 bits of scale there"):
        mcfhe.compile(model, SHAPE, scale_bits=8)
    mcfhe.compile(model, SHAPE, scale_bits=4)  # what the message promises
    with pytest.raises(ParameterError):
        mcfhe.compile(model, SHAPE, scale_bits=5)


def test_no_basis_of_the_width() -> None:
    """There are 23 primes of 8 bits; the message's width is the least that works."""
    model = chain(mcfhe.PolyActivation())
    message = (
        r"layer '3': its scores of order \(t=2, .* bits together, \d+ more .* primes of 8 bits .*; use modulus_bits=9"
    )
    with pytest.raises(ParameterError, match=message):
        mcfhe.compile(model, SHAPE, scale_bits=24, modulus_bits=8)
    program = mcfhe.compile(model, SHAPE, scale_bits=24, modulus_bits=9)
    mcfhe.Client.generate(program.client_spec(), profile="hardened")


def test_no_basis_at_all() -> None:
    """Every degree 16 multiplies the bits by 16: three and a square need more than 4,096 limbs of 31 bits."""
    model = chain(*powers(3), mcfhe.PolyActivation((0.0, 0.0, 1.0)))
    with pytest.raises(
        ParameterError, match=r"^layer '\d': its scores of order .* more than .* 30 bits .* 4096 limbs\); use"
    ):
        mcfhe.compile(model, SHAPE, scale_bits=6)


def test_orders_beyond_any_use() -> None:
    message = (
        r"^layer '7': its order \(t=65536, k=\d+\) means integers of \d+ bits, \d+ more than the 262144 .*; use fewer"
    )
    with pytest.raises(ParameterError, match=message):
        mcfhe.compile(chain(*powers(4)), SHAPE, scale_bits=8)


def test_train_mode() -> None:
    model = chain(nn.BatchNorm2d(2))
    model[1].train()
    with pytest.raises(ParameterError, match=r"its layer '1' is in train mode; call model.eval\(\) first"):
        mcfhe.compile(model, SHAPE)


def test_modules_that_contain_each_other() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.next(x)

    first, second = Part(), Part()
    first.next, second.next = second, first
    with pytest.raises(ParameterError, match=r"^layer '1\.next\.next': is layer '1', which contains it"):
        mcfhe.compile(nn.Sequential(nn.Flatten(), first), SHAPE)
    first.next = first
    with pytest.raises(ParameterError, match=r"layer 'next': is the model, which contains it"):
        mcfhe.compile(first, SHAPE)


def test_a_module_used_twice_is_no_cycle() -> None:
    shared = mcfhe.PolyActivation()
    program = mcfhe.compile(chain(shared, nn.Sequential(shared)), SHAPE, scale_bits=4)
    assert [node.name for node in program.graph.nodes if node.op == "poly"] == ["1", "2.0"] or len(program.labels) == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 1, 4, 4), np.uint8), "calibration: uint8 of shape \\(0, 1, 4, 4\\); give at least one image"),
        (np.zeros((5, 1, 6, 4), np.uint8), r"calibration: uint8 of shape \(5, 1, 6, 4\)"),
        (np.zeros((5, 4, 4), np.uint8), r"calibration: uint8 of shape \(5, 4, 4\)"),
        (np.zeros((5, 1, 4, 4), np.float32), "calibration: float32"),
    ],
)
def test_calibration(images: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        mcfhe.compile(chain(), SHAPE, scale_bits="auto", calibration=images)
