"""Modules that compile: every layer and every spelling of a polynomial becomes the expected graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from mcfhe import PolyActivation
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.import_ import import_module
from mcfhe.graph.nodes import AvgPool2d, Conv2d, Graph, Node, Poly

SHAPE = (4, 6, 6)


class Lambda(nn.Module):
    """forward() is a function of the input and of the tensors it is given (parameter p, buffer b, constant t)."""

    def __init__(self, function: Callable[[Lambda, Tensor], Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if name.startswith("p"):
                self.register_parameter(name, nn.Parameter(tensor))
            elif name.startswith("b"):
                self.register_buffer(name, tensor)
            else:
                setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def check(model: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Graph:
    """Import, and compare with the module itself in float64 on random images."""
    model = model.eval()
    graph = import_module(model, shape)
    images = np.random.default_rng(1).normal(size=(5, *shape))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(evaluate_floats(graph, images), expected, rtol=1e-9, atol=1e-9)
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes[1:]]


def only(graph: Graph, kind: type[Node]) -> Any:
    found = [node for node in graph.nodes if isinstance(node, kind)]
    assert len(found) == 1
    return found[0]


# One quadratic, c0 = 0.5, c1 = -0.25, c2 = 2; all values are exact in float32.
QUADRATIC: dict[str, Callable[[Lambda, Tensor], Tensor]] = {
    "sum of products": lambda m, x: 0.5 + -0.25 * x + 2 * x * x,
    "power operator": lambda m, x: 2 * x**2 - x / 4 + 0.5,
    "torch.pow": lambda m, x: torch.pow(x, 2) * 2 - 0.25 * torch.pow(x, 1) + 0.5 * torch.pow(x, 0),
    "torch.square": lambda m, x: 2 * torch.square(x) - 0.25 * x + 0.5,
    "method calls": lambda m, x: x.square().mul(2).sub(x.mul(0.25)).add(0.5),
    "horner": lambda m, x: (2 * x - 0.25) * x + 0.5,
    "reverse subtraction": lambda m, x: 0.5 - x * (0.25 - 2 * x),
    "negation": lambda m, x: -(-2 * x * x + 0.25 * x - 0.5),
    "alpha": lambda m, x: torch.add(torch.sub(2 * x * x, x, alpha=0.25), torch.ones(1), alpha=0.5),
    "addcmul": lambda m, x: torch.addcmul(0.5 - 0.25 * x, x, x, value=2),
    "addcmul of constants": lambda m, x: torch.addcmul(2 * x * x - 0.25 * x, m.b, m.b, value=2),
    "in place": lambda m, x: (x * x).mul_(2).sub_(0.25 * x).add_(0.5),
    "augmented": lambda m, x: _augmented(x),
    "product of two lines": lambda m, x: (2 * x + 1) * (x - 0.625) - (-1.125),
    "difference of squares": lambda m, x: 2 * (x - 1) ** 2 + 3.75 * x - 1.5,
    "cancelled cubic": lambda m, x: x**3 + 2 * x**2 - x / 4 + 0.5 - x * x * x,
    "float_power": lambda m, x: (2 * torch.float_power(x, 2)).to(x.dtype) - 0.25 * x + 0.5,
    "tensor exponent": lambda m, x: 2 * torch.pow(x, torch.tensor(2.0)) - 0.25 * x + 0.5,
    "division by a tensor": lambda m, x: torch.div(2 * x * x, m.b * 2) - x / torch.tensor(4.0) + m.b,
    "buffer": lambda m, x: 4 * m.b * x * x - m.b / 2 * x + m.b,
    "parameters": lambda m, x: m.p[0] + m.p[1] * x + m.p[2] * x * x,
    "horner over a parameter": lambda m, x: _horner(m.p, x),
    "plain attribute": lambda m, x: m.t[0] + m.t[1] * x + m.t[2] * x.pow(2),
    "per channel": lambda m, x: m.pc[:, 0].view(1, -1, 1, 1) + m.pc[:, 1, None, None] * x + 2 * x**2,
    "full shape": lambda m, x: torch.full((2, 4, 6, 6), 0.5)[:1] + torch.ones(6) * -0.25 * x + 2 * x * x,
    "python sum": lambda m, x: sum(c * x**i for i, c in enumerate((0.5, -0.25, 2.0))),
    "unbind": lambda m, x: sum(c * x**i for i, c in enumerate(m.p.unbind(0))),
    "dropout inside": lambda m, x: 0.5 + functional.dropout(-0.25 * x, 0.5, m.training) + 2 * x * x.clone(),
    "reshaped on the way": lambda m, x: 0.5 - 0.25 * x + 2 * (x.view(x.shape[0], 4, 36).view_as(x)) ** 2,
}


def _augmented(x: Tensor) -> Tensor:
    y = x * 2
    y -= 0.25
    y *= x
    y += 0.5
    return y


def _horner(coefficients: Tensor, x: Tensor) -> Tensor:
    y = coefficients[-1]
    for i in range(len(coefficients) - 2, -1, -1):
        y = y * x + coefficients[i]
    return y


@pytest.mark.parametrize("spelling", QUADRATIC)
def test_quadratic_in_any_spelling(spelling: str) -> None:
    coefficients = torch.tensor([0.5, -0.25, 2.0])
    tensors = {
        "p": coefficients.clone(),
        "pc": coefficients.repeat(4, 1),
        "b": torch.tensor(0.5),
        "t": coefficients.clone(),
    }
    model = nn.Sequential(Lambda(QUADRATIC[spelling], **tensors), nn.Flatten())
    if spelling == "full shape":  # its constant is written for the exported batch of two; only the structure matters
        model[0].function = lambda m, x: torch.full((4, 6, 6), 0.5) + torch.ones(6) * -0.25 * x + 2 * x * x
    if spelling in ("plain attribute", "alpha", "tensor exponent", "division by a tensor", "full shape"):
        graph = import_module(model.eval(), SHAPE)  # float32 constants in forward() do not follow .double()
    else:
        graph = check(model)
    assert ops(graph) == ["poly", "flatten"]
    node = only(graph, Poly)
    assert node.coefficients.tolist() == [[0.5, -0.25, 2.0]]
    assert node.name.split(".")[0] == "0"


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("degree", [1, 2, 5])
def test_poly_activation(channels: int | None, degree: int) -> None:
    activation = PolyActivation(tuple(0.5 / (i + 1) for i in range(degree + 1)), num_channels=channels)
    with torch.no_grad():
        activation.coefficients.add_(torch.randn_like(activation.coefficients) / 8)
    graph = check(nn.Sequential(activation, nn.Flatten()))
    node = only(graph, Poly)
    assert node.name == "0"
    rows = activation.coefficients.detach().double().reshape(-1, degree + 1).numpy()
    assert np.array_equal(node.coefficients, rows)


def test_per_channel_after_flatten_and_on_vectors() -> None:
    scale = torch.linspace(0.5, 1.5, 144)
    model = nn.Sequential(nn.Flatten(), Lambda(lambda m, x: m.b * x * x + m.b[:1], b=scale), nn.Linear(144, 3))
    graph = check(model)
    assert ops(graph) == ["flatten", "poly", "linear"]
    assert only(graph, Poly).coefficients.shape == (144, 3)


def test_lines_between_layers_are_polynomials_too() -> None:
    model = nn.Sequential(
        Lambda(lambda m, x: (x - 0.5) / 0.25), nn.Conv2d(4, 2, 3), nn.Flatten(), Lambda(lambda m, x: x)
    )
    graph = check(model)
    assert ops(graph) == ["poly", "conv2d", "flatten"]
    assert only(graph, Poly).coefficients.tolist() == [[-2.0, 4.0]]


def test_constant_polynomial() -> None:
    graph = check(nn.Sequential(Lambda(lambda m, x: x * 0 + 0.25), nn.Flatten()))
    assert only(graph, Poly).coefficients.tolist() == [[0.25]]


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "no bias": nn.Conv2d(4, 6, 3, bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "stride": nn.Conv2d(4, 6, 3, stride=(2, 1)),
    "padding": nn.Conv2d(4, 6, 3, padding=(2, 1)),
    "dilation": nn.Conv2d(4, 6, 2, dilation=(3, 2)),
    "same": nn.Conv2d(4, 6, 5, padding="same"),
    "same, even kernel": nn.Conv2d(4, 6, (4, 2), padding="same"),
    "same, dilation": nn.Conv2d(4, 6, 3, dilation=2, padding="same"),
    "valid": nn.Conv2d(4, 6, 3, padding="valid"),
    "pointwise": nn.Conv2d(4, 6, 1),
    "double": nn.Conv2d(4, 6, 3).double(),
    "half": nn.Conv2d(4, 6, 3).to(torch.bfloat16),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    graph = check(nn.Sequential(CONVOLUTIONS[name], nn.Flatten()))
    conv = only(graph, Conv2d)
    assert conv.name == "0"
    if name != "same, even kernel":
        assert np.array_equal(conv.weight, CONVOLUTIONS[name].weight.detach().double().numpy())


def test_parametrised_weights_are_folded() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    graph = check(nn.Sequential(conv, nn.Flatten()))
    assert ops(graph) == ["conv2d", "flatten"]


def test_linear_in_any_spelling() -> None:
    weight = torch.randn(144, 3)
    for function in (
        lambda m, x: x.flatten(1) @ m.p,
        lambda m, x: torch.mm(x.flatten(1), m.p) + 0,
        lambda m, x: functional.linear(x.flatten(1), m.p.t()),
        lambda m, x: torch.addmm(torch.zeros(3, dtype=x.dtype), x.flatten(1), m.p),
    ):
        graph = check(Lambda(function, p=weight))
        assert ops(graph) == ["flatten", "linear"]


def _trained(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            if tensor is not None:
                tensor.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_a_layer_of_its_own(affine: bool) -> None:
    norm = _trained(nn.BatchNorm2d(6, affine=affine, eps=0.1))
    graph = check(nn.Sequential(nn.Conv2d(4, 6, 3), norm, PolyActivation(), nn.Flatten(), nn.Linear(96, 3)))
    assert ops(graph) == ["conv2d", "poly", "poly", "flatten", "linear"]
    assert [node.name for node in graph.nodes[2:4]] == ["1", "2"]
    vector = _trained(nn.BatchNorm1d(5, affine=affine))
    graph = check(nn.Sequential(nn.Flatten(), nn.Linear(144, 5), PolyActivation(), vector, nn.Linear(5, 3)))
    assert ops(graph) == ["flatten", "linear", "poly", "poly", "linear"]


POOLS = {
    "plain": (nn.AvgPool2d(2), 4),
    "stride": (nn.AvgPool2d(3, stride=1), 9),
    "rectangle": (nn.AvgPool2d((2, 3), stride=(1, 2)), 6),
    "counted padding": (nn.AvgPool2d(3, stride=2, padding=1), 9),
    "uncounted padding of 0": (nn.AvgPool2d(2, count_include_pad=False), 4),
    "divisor_override": (nn.AvgPool2d(2, divisor_override=3), 3),
    "override and padding": (nn.AvgPool2d(3, padding=1, count_include_pad=False, divisor_override=5), 5),
    "ceil_mode that changes nothing": (nn.AvgPool2d(2, ceil_mode=True), 4),
    "remainder dropped": (nn.AvgPool2d(4), 16),
    "adaptive to 1": (nn.AdaptiveAvgPool2d(1), 36),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), 6),
    "adaptive, one side": (nn.AdaptiveAvgPool2d((None, 2)), 3),
    "mean": (Lambda(lambda m, x: x.mean((2, 3), keepdim=True)), 36),
    "mean, negative": (Lambda(lambda m, x: x.mean([-1, -2], keepdim=True)), 36),
    "sum": (Lambda(lambda m, x: x.sum((2, 3), keepdim=True)), 1),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str) -> None:
    module, divisor = POOLS[name]
    graph = check(nn.Sequential(module, nn.Flatten()))
    assert ops(graph) == ["avg_pool2d", "flatten"]
    assert only(graph, AvgPool2d).divisor == divisor


def test_pools_that_do_nothing_leave_no_layer() -> None:
    assert ops(check(nn.Sequential(nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(6), nn.Flatten()))) == ["flatten"]


FLATTENINGS: dict[str, Callable[[Lambda, Tensor], Tensor]] = {
    "flatten": lambda m, x: torch.flatten(x, 1),
    "view": lambda m, x: x.view(x.size(0), -1),
    "view, batch free": lambda m, x: x.view(-1, 144),
    "reshape": lambda m, x: x.reshape(x.shape[0], 144),
    "two steps": lambda m, x: x.flatten(2).flatten(1),
    "contiguous": lambda m, x: x.contiguous().view(x.shape[0], -1),
    "unsqueeze": lambda m, x: x.unsqueeze(1).flatten(1),
}


@pytest.mark.parametrize("name", FLATTENINGS)
def test_flatten_in_any_spelling(name: str) -> None:
    assert ops(check(Lambda(FLATTENINGS[name]))) == ["flatten"]


def test_squeeze_and_mean_without_keepdim() -> None:
    graph = check(nn.Sequential(nn.AdaptiveAvgPool2d(1), Lambda(lambda m, x: x.squeeze(-1).squeeze(-1))))
    assert ops(graph) == ["avg_pool2d", "flatten"]
    assert ops(check(Lambda(lambda m, x: x.mean((2, 3))))) == ["avg_pool2d", "flatten"]


def test_identity_and_dropout_leave_no_layer() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d(inplace=True), nn.Flatten(), nn.AlphaDropout())
    assert ops(check(model)) == ["flatten"]


class Block(nn.Module):
    def __init__(self, body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = body, skip or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def test_residual_adds() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    graph = check(nn.Sequential(Block(conv), nn.Flatten()))
    assert ops(graph) == ["conv2d", "add", "flatten"]
    assert [node.name for node in graph.nodes[1:]] == ["0.body", "0.add", "1"]
    deep = nn.Sequential(conv, PolyActivation(), nn.Conv2d(4, 4, 3, padding=1))
    assert ops(check(nn.Sequential(Block(deep, nn.Conv2d(4, 4, 1)), nn.Flatten()))) == [
        "conv2d",
        "poly",
        "conv2d",
        "conv2d",
        "add",
        "flatten",
    ]


def test_subtraction_of_branches() -> None:
    conv = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(conv, Lambda(lambda m, x: x), nn.Flatten())
    model[1] = Lambda(lambda m, x: functional.avg_pool2d(x, 3, 1, 1) - 2 * x)
    assert ops(check(model)) == ["conv2d", "avg_pool2d", "poly", "add", "flatten"]


def test_sum_of_the_same_tensor_is_a_polynomial() -> None:
    graph = check(nn.Sequential(nn.Conv2d(4, 4, 1), Lambda(lambda m, x: x + x), nn.Flatten()))
    assert only(graph, Poly).coefficients.tolist() == [[0.0, 2.0]]
    skip = nn.Sequential(nn.Conv2d(4, 4, 1), Block(PolyActivation((0.0, 0.5, 0.25))), nn.Flatten())
    assert only(check(skip), Poly).coefficients.tolist() == [[0.0, 1.5, 0.25]]


def test_activation_used_twice_is_computed_once() -> None:
    model = nn.Sequential(PolyActivation(), Block(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)), nn.Flatten())
    assert ops(check(model)) == ["poly", "conv2d", "conv2d", "add", "flatten"]


def test_concatenation() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 2, 3, padding=1), PolyActivation()

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.cat([self.a(x), x, self.b(x)], dim=-3)
            return torch.cat((maps.flatten(1), x.mean((2, 3))), 1)

    graph = check(Cat())
    assert [graph.nodes[i].op for i in graph.nodes[-1].inputs] == ["flatten", "flatten"]
    assert ops(graph).count("concat") == 2
    assert graph.output_shape == (10 * 36 + 4,)


def test_shared_module_runs_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), PolyActivation()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(self.act(self.conv(x)))).flatten(1)

    graph = check(Net())
    assert [node.name for node in graph.nodes[1:]] == ["conv", "act", "conv#2", "act#2", "flatten"]


def test_names_are_the_users() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y * y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleList([Inner()])
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features[0](x).view(x.shape[0], -1)) / 2

    graph = check(Net())
    assert [node.name for node in graph.nodes] == [
        "input",
        "features.0.conv",
        "features.0.mul",
        "view",
        "head",
        "div",
    ]


def test_unused_layers_and_results_leave_no_trace() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.head = nn.MaxPool2d(2), nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            torch.relu(x)
            return self.head(x.flatten(1))

    assert ops(check(Net())) == ["flatten", "linear"]


def test_the_models_state_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten()).eval()
    before = copy.deepcopy(model.state_dict())
    import_module(model, SHAPE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert model[0].weight.requires_grad
