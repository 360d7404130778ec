"""Activations, networks, batch-norm fusion and the model file, each against an oracle of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import re
import typing
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcfhe import container, models
from mcfhe.activations import PolyActivation
from mcfhe.cli import run
from mcfhe.errors import FormatError, McfheError, ParameterError
from mcfhe.models import ModelCard

CARD = ModelCard(
    arch="lenet",
    arguments={"in_channels": 1, "num_classes": 3, "image_size": 8, "batch_norm": False, "activation": "poly"},
    dataset="toy",
    input_shape=(1, 8, 8),
    mean=(0.25,),
    std=(0.5,),
    labels=("a", "b", "ü"),
    test_accuracy=0.75,
    command="mcfhe train --dataset toy",
    seed=3,
    environment="torch",
)


FACTORIES = [
    (models.lenet, (1, 28, 28)),
    (models.cryptonets, (1, 28, 28)),
    (models.tenseal_net, (1, 28, 28)),
    (models.resnet_tiny, (3, 32, 32)),
    (models.resnet7, (3, 32, 32)),
]


def toy_model() -> nn.Module:
    torch.manual_seed(0)
    return models.lenet(num_classes=3, image_size=8)


# --- PolyActivation ---


@given(st.lists(st.integers(-64, 64), min_size=2, max_size=6), st.lists(st.integers(-8, 8), min_size=1, max_size=5))
def test_polynomial_equals_exact_arithmetic(coefficients: list[int], points: list[int]) -> None:
    dyadic = [Fraction(c, 16) for c in coefficients]
    activation = PolyActivation([float(c) for c in dyadic]).double()
    computed = activation(torch.tensor(points, dtype=torch.float64) / 4)
    exact = [sum(c * Fraction(x, 4) ** i for i, c in enumerate(dyadic)) for x in points]
    assert [Fraction(y) for y in computed.tolist()] == exact


def test_polynomial_per_channel() -> None:
    activation = PolyActivation((0.0, 1.0, 0.0), num_channels=3)
    with torch.no_grad():
        activation.coefficients.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    for shape in ((2, 3), (2, 3, 4, 5)):
        x = torch.randn(shape)
        y = activation(x)
        assert torch.equal(y[:, 0], torch.ones_like(x[:, 0]))
        assert torch.equal(y[:, 1], x[:, 1])
        assert torch.equal(y[:, 2], x[:, 2] * x[:, 2])
    # one channel would broadcast silently
    for bad, x in ((activation, torch.ones(2, 4)), (PolyActivation(num_channels=1), torch.ones(2, 3, 4, 4))):
        with pytest.raises(ParameterError, match=r"expected \[batch, "):
            bad(x)


def test_polynomial_trains_resets_and_prints() -> None:
    activation = PolyActivation((0.5, -1.0, 0.25)).double()
    assert repr(activation) == "PolyActivation(degree=2, shared, coefficients=(0.5, -1, 0.25))"
    assert repr(PolyActivation(num_channels=4)) == "PolyActivation(degree=2, num_channels=4)"
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, c: Tensor) -> Tensor:
        return torch.func.functional_call(activation, {"coefficients": c}, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(function, (x, activation.coefficients))
    with torch.no_grad():
        activation.coefficients.fill_(9)
    activation.reset_parameters()
    assert activation.coefficients.tolist() == [0.5, -1.0, 0.25]


def test_default_activation_is_near_the_best_quadratic_for_relu() -> None:
    x = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = torch.linalg.lstsq(torch.stack([x**0, x, x**2], 1), x.relu()[:, None]).solution.flatten()
    c0, c1, c2 = PolyActivation().coefficients.tolist()
    assert abs(c1 - best[1]) < 0.01
    assert abs(c2 - best[2]) < 0.06
    assert c0 == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1.0,),), "1 of them; a degree of 1..16"),
        (((0.0,) * 18,), "18 of them"),
        (((0.0, math.nan),), "must all be finite"),
        (((0.0, 1.0), 0), "num_channels: 0"),
    ],
)
def test_bad_polynomials(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        PolyActivation(*arguments)


# --- architectures ---


def exported_ops(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    graph = torch.export.export(model.eval(), (torch.randn(shape),)).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("activation", ["poly", "poly-per-channel", "square"])
@pytest.mark.parametrize(("factory", "shape"), FACTORIES)
def test_exports_to_few_linear_ops(
    factory: Callable[..., nn.Module], shape: tuple[int, int, int], activation: str
) -> None:
    ops = exported_ops(factory(activation=activation), (2, *shape))
    allowed = {"conv2d", "linear", "avg_pool2d", "flatten", "mul", "add", "select", "slice", "reshape"}
    assert {op.split(".")[1] for op in ops} <= allowed
    weighted = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in factory().modules())
    assert sum("conv2d" in op or "linear" in op for op in ops) == weighted


@pytest.mark.parametrize(
    ("factory", "weights", "activations"),
    [
        (models.cryptonets, {(5, 1, 5, 5), (100, 5 * 13 * 13), (10, 100)}, 2),
        (models.tenseal_net, {(4, 1, 7, 7), (64, 4 * 8 * 8), (10, 64)}, 2),
    ],
)
def test_published_networks_have_their_published_sizes(
    factory: Callable[..., nn.Module], weights: set[tuple[int, ...]], activations: int
) -> None:
    model = factory().eval()
    assert {tuple(v.shape) for n, v in model.state_dict().items() if n.endswith("weight")} == weights
    assert sum(isinstance(module, PolyActivation) for module in model.modules()) == activations
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    x = torch.randn(3, 1, 28, 28)
    assert torch.allclose(factory(activation="square").act1(x), x**2)  # type: ignore[operator]


def test_resnet7_has_seven_activations_and_halves_the_map_three_times() -> None:
    model = models.resnet7(batch_norm=True).eval()
    assert sum(isinstance(module, PolyActivation) for module in model.modules()) == 7
    assert sum(isinstance(module, models.Residual) for module in model.modules()) == 3
    maps = []
    for module in model.modules():
        if isinstance(module, models.Residual):
            module.register_forward_hook(lambda _, inputs, output: maps.append((inputs[0].shape[2], output.shape[2])))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert maps == [(32, 16), (16, 8), (8, 4)]


def test_lenet_is_the_documented_network() -> None:
    kinds = [type(layer).__name__ for layer in models.lenet().children()]
    conv, linear = ["Conv2d", "PolyActivation", "AvgPool2d"], ["Linear", "PolyActivation", "Linear"]
    assert kinds == [*conv, *conv, "Flatten", *linear]
    shapes = {name: tuple(value.shape) for name, value in models.lenet().state_dict().items() if "weight" in name}
    assert shapes == {
        "conv1.weight": (8, 1, 5, 5),
        "conv2.weight": (16, 8, 5, 5),
        "fc1.weight": (64, 784),
        "fc2.weight": (10, 64),
    }


def test_residual_branches_differ_in_depth() -> None:
    model = models.resnet_tiny(in_channels=1, num_classes=4, image_size=8).double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    stem = model.pool1(model.act1(model.conv(x)))  # type: ignore[operator]
    body = model.block.body  # type: ignore[union-attr]
    branch = body.conv2(body.act(body.conv1(stem)))  # type: ignore[operator, union-attr]
    rest = model.fc(model.flatten(model.pool2(model.act2(branch + stem))))  # type: ignore[operator]
    assert torch.equal(model(x), rest)
    assert model(x).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image_size: 30; use an integer in 4..512 that is a multiple of 4"),
        ({"image_size": 10**9}, "image_size: 1000000000"),
        ({"in_channels": 0}, "in_channels: 0"),
        ({"num_classes": 1}, "num_classes: 1"),
        ({"num_classes": True}, "num_classes: True"),
        ({"batch_norm": 1}, "batch_norm: 1"),
        ({"activation": "tanh"}, "activation: 'tanh'; choose one of poly"),
        ({"pretrained": "cifar"}, "no lenet for 'cifar'; available: fashion-mnist, mnist, pneumoniamnist"),
        ({"pretrained": "fashion-mnist", "num_classes": 11}, "num_classes: 11, but the weights"),
        ({"pretrained": "fashion-mnist", "batch_norm": True}, "batch_norm: True, but the weights"),
    ],
)
def test_bad_architecture_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        models.lenet(**arguments)


SHIPPED = [f"{arch}:{dataset}" for arch, names in models.available_pretrained().items() for dataset in names]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_compile_by_their_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but the name is needed; limbs before and after, certificate and cost card are printed."""
    arch, dataset = name.split(":")
    card = models.ARCHITECTURES[arch](pretrained=dataset).mcfhe_metadata
    assert isinstance(card, ModelCard)
    assert run(["compile", name, "--out", str(tmp_path / "program")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(card.labels)} labels" in printed
    assert re.search(r"by the letter, scale 2\^8: \d+ bits, \d+ limbs before, \d+ after the passes", printed)
    assert re.search(r"scores of \d+ bits, widest layer \w+ with \d+; the moduli must hold", printed)
    assert re.search(r"predicted on cpu: encrypt .*, evaluate .*, decrypt", printed)
    with pytest.raises(ParameterError, match=f"num_classes: 77, but the weights pretrained on {dataset} have"):
        models.ARCHITECTURES[arch](pretrained=dataset, num_classes=77)


def test_registry() -> None:
    assert set(models.ARCHITECTURES) == {"lenet", "cryptonets", "tenseal_net", "resnet_tiny", "resnet7"}
    assert repr(models.build("lenet", num_classes=5)) == repr(models.lenet(num_classes=5))
    with pytest.raises(ParameterError, match="arch: 'vgg'; choose one of lenet, cryptonets, tenseal_net, resnet_tiny"):
        models.build("vgg")
    with pytest.raises(ParameterError, match="lenet has no 'pretrained'"):
        models.build("lenet", pretrained="fashion-mnist")


# --- batch norm ---


@pytest.mark.parametrize(("factory", "shape"), FACTORIES)
def test_fusion_is_exact(factory: Callable[..., nn.Module], shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    model = factory(batch_norm=True).double()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    for norm in norms:  # nothing left at its default
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            torch.nn.init.uniform_(value, 0.5, 2.0)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = models.fuse_batch_norm(model)
    x = torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected, found = model.eval()(x), fused(x)
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert float(expected.std()) > 1e-3
    assert fused.state_dict().keys() == factory().state_dict().keys()
    assert not fused.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.BatchNorm2d(3)],
        [nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)],
        [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)],
    ],
)
def test_normalisation_that_cannot_be_fused(layers: list[nn.Module]) -> None:
    with pytest.raises(ParameterError, match="this normalisation cannot be fused"):
        models.fuse_batch_norm(nn.Sequential(*layers))


# --- files ---


@pytest.mark.parametrize("batch_norm", [False, True])
def test_save_and_load(tmp_path: Path, batch_norm: bool) -> None:
    card = dataclasses.replace(CARD, arguments={**CARD.arguments, "batch_norm": batch_norm})
    model = models.build("lenet", **card.arguments)
    models.save(model, tmp_path / "m.safetensors", card)
    loaded = models.load(tmp_path / "m.safetensors")
    assert loaded.mcfhe_metadata == card
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    models.save(loaded, tmp_path / "again.safetensors")  # with the card it came with
    assert models.load(tmp_path / "again.safetensors").mcfhe_metadata == card


def test_values_of_half_precision_take_half_the_room(tmp_path: Path) -> None:
    """Stored as float16 where that loses nothing, tensor by tensor; read back as the same float32."""
    model = toy_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 1024).round() / 1024)
        model.fc1.weight[0, 0] = 1 + 2**-20  # type: ignore[union-attr, operator]
        model.conv1.weight[0, 0, 0, 0] = 1e6  # type: ignore[union-attr, operator]
    models.save(model, tmp_path / "m.safetensors", CARD)
    stored = container.read_header((tmp_path / "m.safetensors").read_bytes()).tensors
    assert {name for name, info in stored.items() if info.dtype == "F32"} == {"fc1.weight", "conv1.weight"}
    assert {info.dtype for info in stored.values()} == {"F16", "F32"}
    loaded = models.load(tmp_path / "m.safetensors").state_dict()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    models.save(toy_model(), path, CARD)
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(McfheError, match="No space left"):
        models.save(toy_model(), path, dataclasses.replace(CARD, seed=4))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_what_load_would() -> None:
    nan = toy_model()
    with torch.no_grad():
        nan.fc2.weight[0, 0] = math.nan  # type: ignore[union-attr, operator]
    for model, card, message in (
        (toy_model(), None, "pass a ModelCard"),
        (nan, CARD, "fc2.weight: holds values that are not finite"),
        (toy_model().double(), CARD, "torch.float64"),
        (models.lenet(num_classes=4, image_size=8), CARD, r"fc2.weight: torch.float32 \[4, 64\]"),
        (models.resnet_tiny(), CARD, "the card names another network"),
        (toy_model(), dataclasses.replace(CARD, labels=("a", "b")), "2 names, but num_classes is 3"),
        (toy_model(), dataclasses.replace(CARD, input_shape=(1, 9, 9)), "input_shape"),
        (toy_model(), dataclasses.replace(CARD, arguments={}), "are needed, as integers"),
    ):
        with pytest.raises(ParameterError, match=message):
            models.save(model, "/dev/null/never", card)


def write_with(path: Path, changes: dict[str, str | None], tensors: dict[str, Any] | None = None) -> None:
    """A model file with a valid digest, whatever its metadata and tensors say."""
    metadata = {name: value for name, value in (CARD.to_metadata() | changes).items() if value is not None}
    arrays = {name: value.numpy() for name, value in toy_model().state_dict().items()}
    container.write_file(path, container.pack("model", {**arrays, **(tensors or {})}, metadata))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vgg"}, "arch: 'vgg'; choose one of"),
        ({"arch": None}, "metadata field 'arch' is missing"),
        ({"arguments": "[]"}, "arguments: .* is not valid .*list instead of dict"),
        ({"arguments": '{"in_channels": 1.5}'}, "arguments: .* is not valid"),
        ({"arguments": json.dumps({**CARD.arguments, "pretrained": "x"})}, "lenet has no 'pretrained'"),
        (
            {
                "arguments": json.dumps({**CARD.arguments, "image_size": 10**12}),
                "input_shape": f"[1,{10**12},{10**12}]",
            },
            "image_size",
        ),
        ({"arguments": json.dumps({**CARD.arguments, "batch_norm": "yes"})}, "batch_norm: 'yes'"),
        (
            {"arguments": json.dumps({**CARD.arguments, "num_classes": 10_000}), "labels": json.dumps(["x"] * 10_000)},
            "fc2",
        ),
        ({"input_shape": "[1, 8]"}, "input_shape"),
        ({"input_shape": "[1, 8, true]"}, "bool instead of int"),
        ({"mean": "[NaN]"}, "mean: .* finite"),
        ({"mean": "[0.1, 0.2]"}, "mean: .* one per channel"),
        ({"std": "[0.0]"}, "std: .* must be positive"),
        ({"labels": "[]"}, "labels: empty"),
        ({"labels": '["a", 2, "c"]'}, "int instead of str"),
        ({"test_accuracy": "1.5"}, "test_accuracy: 1.5"),
        ({"seed": "[" * 100_000}, "seed: .* is not valid"),
        ({"seed": "9" * 5000}, "seed: .* is not valid"),
    ],
)
def test_hostile_metadata(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    write_with(tmp_path / "m.safetensors", changes)
    with pytest.raises(FormatError, match=message) as caught:
        models.load(tmp_path / "m.safetensors")
    assert str(caught.value).startswith(str(tmp_path))
    assert len(str(caught.value)) < 600


def test_hostile_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    nan = np.full((3, 64), np.nan, dtype=np.float32)
    for tensors, message in (
        ({"fc2.weight": nan}, "fc2.weight: holds values that are not finite"),
        ({"fc2.weight": nan.astype(np.float64)}, "fc2.weight"),
        ({"fc2.weight": nan.astype(np.float16)}, "fc2.weight: holds values that are not finite"),
        ({"fc2.weight": nan[:2]}, "fc2.weight"),
        ({"fc3.weight": nan}, "fc3.weight"),
    ):
        write_with(path, {}, tensors)
        with pytest.raises(FormatError, match=message):
            models.load(path)
    for data in (b"", b"\xff" * 64, pickle.dumps({"a": 1}), container.pack("other", {}, {})):
        path.write_bytes(data)
        with pytest.raises(FormatError):
            models.load(path)
    with pytest.raises(McfheError, match="cannot be read"):
        models.load(tmp_path / "missing.safetensors")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_altered_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    models.save(toy_model(), path, CARD)
    content = bytearray(path.read_bytes())
    position = data.draw(st.one_of(st.integers(0, 1500), st.integers(0, len(content) - 1)))  # headers are small
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(FormatError):
        models.load(path)
    path.write_bytes(content[:position])
    with pytest.raises(FormatError):
        models.load(path)


def test_pretrained_weights() -> None:
    assert models.available_pretrained() == {
        "lenet": ("fashion-mnist", "mnist", "pneumoniamnist"),
        "cryptonets": ("mnist",),
        "tenseal_net": ("mnist",),
        "resnet_tiny": (),
        "resnet7": ("cifar10",),
    }
    model = models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    assert isinstance(card, ModelCard)
    assert not model.training
    assert (card.dataset, card.input_shape, len(card.labels)) == ("fashion-mnist", (1, 28, 28), 10)
    assert (card.mean, card.std) == ((0.286,), (0.353,))
    assert card.command.startswith("mcfhe train --dataset fashion-mnist --arch lenet --epochs ")
    assert "/" not in card.command  # no path of the machine it was trained on
    assert card.test_accuracy is not None
    assert card.test_accuracy >= 0.915
    size = (models.ASSETS / "lenet-fashion-mnist.safetensors").stat().st_size
    assert size < 300_000


@pytest.mark.parametrize("make", [*models.ARCHITECTURES.values(), models.build, models.load])
def test_a_type_checker_knows_the_card(make: Callable[..., nn.Module]) -> None:
    """Attributes of an nn.Module are Tensor | Module to it, so that strict mypy refused README's example."""
    assert typing.get_type_hints(typing.get_type_hints(make)["return"])["mcfhe_metadata"] is models.ModelCard
