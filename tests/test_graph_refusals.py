"""Modules that do not compile: the message names the layer and says what to use instead."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mcfhe import PolyActivation
from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph.import_ import import_module

SHAPE = (4, 6, 6)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def net(layer: nn.Module | Callable[[Tensor], Any]) -> nn.Module:
    """The layer at the path ``body.1``."""
    module = layer if isinstance(layer, nn.Module) else Lambda(layer)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), module)
    return _Net(body).eval()


class _Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


ACTIVATIONS = (
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.ELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Hardswish(),
    nn.Softplus(),
    nn.Mish(),
)


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=repr)
def test_activations(layer: nn.Module) -> None:
    name = type(layer).__name__
    with pytest.raises(
        UnsupportedLayerError, match=rf"layer 'body\.1' \({name}\): .* is no polynomial; use mcfhe.PolyAct"
    ):
        import_module(net(layer), SHAPE)


LAYERS: list[tuple[Any, str]] = [
    (nn.MaxPool2d(2), r"layer 'body\.1' \(MaxPool2d\): max_pool2d.*use AvgPool2d"),
    (nn.AdaptiveMaxPool2d(1), "use AvgPool2d"),
    (nn.Softmax(dim=1), "leave it to the client"),
    (nn.LogSoftmax(dim=1), "leave it to the client"),
    (nn.LayerNorm([4, 6, 6]), r"layer 'body\.1' \(LayerNorm\).*use BatchNorm1d or BatchNorm2d"),
    (nn.GroupNorm(2, 4), "use BatchNorm1d or BatchNorm2d"),
    (nn.InstanceNorm2d(4), "BatchNorm|track_running_stats"),
    (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats=True"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), r"'body\.1' \(Conv2d\): pad.*padding_mode='zeros'"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), r"'body\.1' \(Conv2d\): pad.*padding_mode='zeros'"),
    (nn.Conv2d(4, 4, 2, dilation=3, padding="same"), "even kernel and dilation"),
    (nn.ConvTranspose2d(4, 4, 3), r"\(ConvTranspose2d\): conv_transpose2d.*strided Conv2d"),
    (nn.Upsample(scale_factor=2), "resamples"),
    (nn.ZeroPad2d(1), "use Conv2d\\(padding"),
    (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), "divides windows at the border by fewer pixels"),
    (nn.AvgPool2d(4, ceil_mode=True), "ceil_mode=True and windows that overhang"),
    (nn.AvgPool2d(2, divisor_override=-3), "divisor_override=-3"),
    (nn.AdaptiveAvgPool2d(4), r"\(AdaptiveAvgPool2d\).*sizes that divide"),
    (nn.AdaptiveAvgPool2d(12), "sizes that divide"),
    (nn.Linear(6, 6), r"\(Linear\): linear is applied to a feature map"),
    (lambda x: x * x.mean((2, 3), keepdim=True), r"'body\.1' \(Lambda\): mul multiplies two different values"),
    (lambda x: x * functional.avg_pool2d(x, 3, 1, 1), "multiplies two different values"),
    (lambda x: x + x.mean((2, 3), keepdim=True), "adds values of shapes"),
    (lambda x: 1 / x, "reciprocal is no polynomial"),
    (lambda x: torch.ones(1) / (x + 2), "divides by a value that depends on the image"),
    (lambda x: x / x, "divides by a value"),
    (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounds"),
    (lambda x: x**-1, "power -1"),
    (lambda x: x**0.5, "power 0.5"),
    (lambda x: 2**x, "exponent that depends on the image"),
    (lambda x: x**17, "power 17"),
    (lambda x: (x**8 + x) ** 3, "degree 24"),
    (lambda x: (x**8) * (x**9), "degree 17"),
    (lambda x: x.abs(), "abs is no polynomial"),
    (lambda x: x.clamp(0, 1), "clamp is no polynomial"),
    (lambda x: torch.maximum(x, -x), "use AvgPool2d"),
    (lambda x: torch.where(x > 0, x, 0.1 * x), "compares"),
    (lambda x: x.round(), "compares or rounds"),
    (lambda x: x.to(torch.int32).float(), "casts to torch.int32"),
    (lambda x: x + torch.linspace(0, 1, 6), "differs between positions"),
    (lambda x: x[:, :2], "picks some positions"),
    (lambda x: x.flip(1), "picks some positions"),
    (lambda x: x.transpose(2, 3), "picks some positions"),
    (lambda x: torch.cat([x, x], dim=2), "only channels, dim=1"),
    (lambda x: torch.cat([x, torch.ones(2, 1, 6, 6)], dim=1), "concat|constant|does not run"),
    (lambda x: x.mean(1, keepdim=True), r"reduces the dimensions \[1\]"),
    (lambda x: x.mean(2, keepdim=True), "reduces the dimensions"),
    (lambda x: x - x.mean(0, keepdim=True), "reduces the dimensions"),
    (lambda x: x.flatten(2) @ torch.ones(36, 36), "view of shape"),
    (lambda x: x.flatten(2) * 2, "view of shape"),
    (lambda x: functional.scaled_dot_product_attention(x, x, x), "multiplies encrypted values|softmax"),
    (lambda x: torch.einsum("nchw,nchw->nchw", x, x), "multipl|not supported"),
    (lambda x: torch.fft.fft(x).real, "not supported; supported are Conv2d"),
    (lambda x: x * float("nan"), "NaN|finite"),
    (lambda x: x / 0, "division by zero"),
]


@pytest.mark.parametrize(("layer", "message"), LAYERS, ids=[f"{i}" for i in range(len(LAYERS))])
def test_layers(layer: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        import_module(net(layer), SHAPE)


def test_the_innermost_layer_is_named() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(144, 3), Inner()))
    with pytest.raises(UnsupportedLayerError, match=r"layer '1\.1' \(Inner\): relu is no polynomial"):
        import_module(model.eval(), SHAPE)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).flatten(1)

    with pytest.raises(UnsupportedLayerError, match=r"forward\(\) of Net: relu is no polynomial"):
        import_module(Net().eval(), SHAPE)


OUTPUTS: list[tuple[Any, str]] = [
    (lambda x: x, r"returns shape \(2, 4, 6, 6\).*\(batch, labels\)"),
    (lambda x: x.mean((1, 2, 3)), r"returns shape \(2,\)"),
    (lambda x: (x.flatten(1), x.flatten(1)), "returns tuple; it must return one tensor"),
    (lambda x: {"scores": x.flatten(1)}, "returns dict"),
    (lambda x: x.sum(0).flatten(1), "returns shape"),
    (lambda x: x.view(1, -1), "returns shape"),
    (lambda x: torch.ones(2, 3), "do not depend on the image"),
    (lambda x: x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2, "control flow must not depend on the image"),
    (lambda x: x.flatten(1) * x.sum().item(), "control flow|multiplies|not supported|reduces"),
    (lambda x: x.flatten(1) * x.shape[0], "fixed function of one image"),
    (lambda x: x.flatten(1) + torch.rand(1, 1), "not supported|fixed function of one image"),
    (lambda x: x.view(2, 144), "runs on 2 images but not on 3"),
    (lambda x: x.flatten(1) * random.random(), "fixed function of one image"),
]


@pytest.mark.parametrize(("function", "message"), OUTPUTS, ids=[f"{i}" for i in range(len(OUTPUTS))])
def test_what_forward_must_be(function: Any, message: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        import_module(Lambda(function).eval(), SHAPE)


def test_two_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x + y).flatten(1)

    with pytest.raises(ParameterError, match="missing 1 required positional argument"):
        import_module(Two().eval(), SHAPE)


def test_state_that_changes() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x.flatten(1) * self.count

    with pytest.raises(UnsupportedLayerError, match="forward\\(\\) changes 'count'"):
        import_module(Counter().eval(), SHAPE)


def test_train_mode() -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(ParameterError, match=r"model: it is in train mode; call model.eval\(\)"):
        import_module(model, SHAPE)
    model.eval()
    model[1].train()
    with pytest.raises(ParameterError, match="its layer '1' is in train mode"):
        import_module(model, SHAPE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, 3), PolyActivation(), nn.BatchNorm2d(2), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].bias[1] = bad
    with pytest.raises(ParameterError, match=r"parameter '0\.bias': holds NaN or infinity"):
        import_module(model, SHAPE)
    with torch.no_grad():
        model[0].bias[1] = 0
        model[2].running_var[0] = bad
    with pytest.raises(ParameterError, match=r"parameter '2\.running_var'"):
        import_module(model, SHAPE)
    with torch.no_grad():
        model[2].running_var[0] = -1
    with pytest.raises(ParameterError, match=r"layer '2'.*not finite"):
        import_module(model, SHAPE)


@pytest.mark.parametrize(
    "shape",
    [(4, 6), (4, 6, 6, 6), (0, 6, 6), (4, -1, 6), (4.0, 6, 6), (None, 6, 6), 5, (4, 1 << 17, 6), (4, 1 << 14, 1 << 14)],
)
def test_input_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(ParameterError, match="input_shape"):
        import_module(net(nn.Identity()), shape)


def test_input_shapes_the_model_does_not_take() -> None:
    with pytest.raises(ParameterError, match=r"input_shape: the model does not run on \[batch, 3, 6, 6\]: .*channels"):
        import_module(net(nn.Identity()), (3, 6, 6))
    with pytest.raises(ParameterError, match="input_shape: the model does not run"):
        import_module(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).eval(), (4, 6, 7))


def test_modules_that_contain_themselves() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.again(x)

    loop = Loop()
    object.__setattr__(loop, "again", loop)
    with pytest.raises(ParameterError, match="recursion"):
        import_module(loop.eval(), SHAPE)


@pytest.mark.parametrize("model", [None, "lenet", torch.zeros(3), nn.Linear])
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(ParameterError, match=r"is not a torch\.nn\.Module"):
        import_module(model, SHAPE)
