"""Networks that encrypted evaluation runs, and how trained ones are kept."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mcfhe import cards
from mcfhe.activations import PolyActivation
from mcfhe.cards import Argument, ModelCard
from mcfhe.errors import ParameterError

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "ModelCard",
    "Residual",
    "available_pretrained",
    "build",
    "fuse_batch_norm",
    "lenet",
    "load",
    "resnet_tiny",
    "save",
]

ASSETS = Path(__file__).parent / "assets"

#: What ``activation=`` accepts, as functions of the channel count. ReLU trains, for comparison; compile refuses it.
ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "poly": lambda channels: PolyActivation(),
        "poly-per-channel": lambda channels: PolyActivation(num_channels=channels),
        "square": lambda channels: PolyActivation((0.0, 0.0, 1.0)),
        "relu": lambda channels: nn.ReLU(),
    }
)

Layers = list[tuple[str, nn.Module]]


def _conv(name: str, inputs: int, outputs: int, kernel: int, batch_norm: bool) -> Layers:
    # A normalised layer needs no bias of its own: the normalisation subtracts it again.
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not batch_norm)
    return [(name, conv), (f"{name}_norm", nn.BatchNorm2d(outputs))] if batch_norm else [(name, conv)]


def _linear(name: str, inputs: int, outputs: int, batch_norm: bool) -> Layers:
    linear = nn.Linear(inputs, outputs, bias=not batch_norm)
    return [(name, linear), (f"{name}_norm", nn.BatchNorm1d(outputs))] if batch_norm else [(name, linear)]


def _check_arguments(
    in_channels: int, num_classes: int, image_size: int, batch_norm: bool, activation: str, size_step: int
) -> Callable[[int], nn.Module]:
    """Refuse what the architectures cannot be built with; returns the activation's factory."""
    for name, value, low, high, step in (
        ("in_channels", in_channels, 1, 64, 1),
        ("num_classes", num_classes, 2, 10_000, 1),
        ("image_size", image_size, size_step, 512, size_step),
    ):
        if type(value) is not int or not low <= value <= high or value % step:
            multiple = f" that is a multiple of {step}" if step > 1 else ""
            raise ParameterError(f"{name}: {value!r}; use an integer in {low}..{high}{multiple}")
    if type(batch_norm) is not bool:
        raise ParameterError(f"batch_norm: {batch_norm!r}; use True or False")
    if activation not in ACTIVATIONS:
        raise ParameterError(f"activation: {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def lenet(
    pretrained: str | None = None,
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 28,
    batch_norm: bool = False,
    activation: str = "poly",
) -> nn.Module:
    """Two 5x5 convolutions, two linear layers, three activations, average pooling.

    Args:
        pretrained: a name from ``available_pretrained()["lenet"]``; the model then comes in eval mode with its
            ``mcfhe_metadata`` (:class:`ModelCard`), and the other arguments must be those it was trained with.
        in_channels: C, 1..64.
        num_classes: 2..10000.
        image_size: S, 4..512, a multiple of 4 (two pools halve it).
        batch_norm: normalise before every activation, for training; :func:`fuse_batch_norm` removes it again.
        activation: ``poly`` (one trainable quadratic per layer), ``poly-per-channel``, ``square`` or ``relu``.

    Returns:
        A module from normalised floats ``[batch, C, S, S]`` to scores ``[batch, num_classes]``.

    Raises:
        ParameterError: an argument outside its range, or one that the pretrained model does not have.
    """
    make = _check_arguments(in_channels, num_classes, image_size, batch_norm, activation, size_step=4)
    if pretrained is not None:
        return _pretrained("lenet", pretrained, (in_channels, num_classes, image_size, batch_norm, activation))
    layers: Layers = [
        *_conv("conv1", in_channels, 8, 5, batch_norm),
        ("act1", make(8)),
        ("pool1", nn.AvgPool2d(2)),
        *_conv("conv2", 8, 16, 5, batch_norm),
        ("act2", make(16)),
        ("pool2", nn.AvgPool2d(2)),
        ("flatten", nn.Flatten()),
        *_linear("fc1", 16 * (image_size // 4) ** 2, 64, batch_norm),
        ("act3", make(64)),
        *_linear("fc2", 64, num_classes, batch_norm=False),
    ]
    return nn.Sequential(OrderedDict(layers))


class Residual(nn.Module):
    """``body(x) + x``. The two branches meet at different multiplicative depth, so a plan must align the shallower."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + x
        return out


def resnet_tiny(
    pretrained: str | None = None,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    image_size: int = 32,
    batch_norm: bool = False,
    activation: str = "poly",
) -> nn.Module:
    """A stem, one residual block of two 3x3 convolutions, one linear layer, three activations.

    Arguments, shapes and errors are those of :func:`lenet`, except that ``image_size`` is a multiple of 8.
    """
    make = _check_arguments(in_channels, num_classes, image_size, batch_norm, activation, size_step=8)
    if pretrained is not None:
        return _pretrained("resnet_tiny", pretrained, (in_channels, num_classes, image_size, batch_norm, activation))
    body: Layers = [
        *_conv("conv1", 16, 16, 3, batch_norm),
        ("act", make(16)),
        *_conv("conv2", 16, 16, 3, batch_norm),
    ]
    layers: Layers = [
        *_conv("conv", in_channels, 16, 3, batch_norm),
        ("act1", make(16)),
        ("pool1", nn.AvgPool2d(2)),
        ("block", Residual(nn.Sequential(OrderedDict(body)))),
        ("act2", make(16)),
        ("pool2", nn.AvgPool2d(4)),
        ("flatten", nn.Flatten()),
        *_linear("fc", 16 * (image_size // 8) ** 2, num_classes, batch_norm=False),
    ]
    return nn.Sequential(OrderedDict(layers))


#: Every architecture that ``mcfhe train --arch`` and :func:`load` know, by name.
ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"lenet": lenet, "resnet_tiny": resnet_tiny})
_ARGUMENTS = ("in_channels", "num_classes", "image_size", "batch_norm", "activation")


def build(arch: str, **arguments: Argument) -> nn.Module:
    """A fresh, untrained model of the architecture ``arch``; ParameterError names an unknown name or argument."""
    if arch not in ARCHITECTURES:
        raise ParameterError(f"arch: {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    unknown = sorted(set(arguments) - set(_ARGUMENTS))
    if unknown:
        raise ParameterError(f"arguments: {arch} has no {unknown[0]!r}; it takes {', '.join(_ARGUMENTS)}")
    return ARCHITECTURES[arch](**arguments)


def available_pretrained() -> dict[str, tuple[str, ...]]:
    """The data sets that each architecture ships weights for, for example ``{"lenet": ("fashion-mnist",)}``."""
    return {
        arch: tuple(sorted(path.stem[len(arch) + 1 :] for path in ASSETS.glob(f"{arch}-*.safetensors")))
        for arch in ARCHITECTURES
    }


def _pretrained(arch: str, dataset: str, values: tuple[Argument, ...]) -> nn.Module:
    choices = available_pretrained()[arch]
    if dataset not in choices:
        raise ParameterError(f"pretrained: no {arch} for {dataset!r}; available: {', '.join(choices) or 'none'}")
    model = load(ASSETS / f"{arch}-{dataset}.safetensors")
    trained = _card_of(model).arguments
    for name, value in zip(_ARGUMENTS, values, strict=True):
        if trained.get(name, value) != value:
            raise ParameterError(f"{name}: {value!r}, but the weights pretrained on {dataset} have {trained[name]!r}")
    return model


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode whose batch normalisation is folded into the layers before it.

    Exact algebra on the running statistics: w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps)
    + beta. Only rounding differs, so fuse in float64 where that matters.

    Raises:
        ParameterError: a normalisation that does not directly follow a Conv2d or Linear in an ``nn.Sequential``, or one
            without running statistics.
    """
    fused = copy.deepcopy(model).eval()
    for sequence in [module for module in fused.modules() if isinstance(module, nn.Sequential)]:
        previous = ""
        for name, layer in list(sequence.named_children()):
            before = getattr(sequence, previous) if previous else None
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
                if isinstance(before, nn.Conv2d):
                    setattr(sequence, previous, fuse_conv_bn_eval(before, layer))
                    delattr(sequence, name)
                    continue
                if isinstance(before, nn.Linear):
                    setattr(sequence, previous, fuse_linear_bn_eval(before, layer))
                    delattr(sequence, name)
                    continue
            previous = name
    for name, layer in fused.named_modules():
        if isinstance(layer, _BatchNorm):
            raise ParameterError(
                f"{name}: this normalisation cannot be fused; put it, with running statistics, right after a Conv2d or "
                "Linear in an nn.Sequential"
            )
    return fused


def _card_of(model: nn.Module) -> ModelCard:
    card = getattr(model, "mcfhe_metadata", None)
    if not isinstance(card, ModelCard):
        raise ParameterError("card: the model has no mcfhe_metadata; pass a ModelCard")
    return card


def _skeleton(card: ModelCard) -> nn.Module:
    """The card's network without storage, so that no card can make us allocate; ParameterError if there is none."""
    try:
        channels, classes, side = (int(card.arguments[name]) for name in _ARGUMENTS[:3])
    except (KeyError, ValueError):
        raise ParameterError(f"arguments: {', '.join(_ARGUMENTS[:3])} are needed, as integers") from None
    if card.input_shape != (channels, side, side):
        raise ParameterError(f"input_shape: {card.input_shape}, but the arguments say {(channels, side, side)}")
    if len(card.labels) != classes:
        raise ParameterError(f"labels: {len(card.labels)} names, but num_classes is {classes}")
    with torch.device("meta"):
        return build(card.arch, **card.arguments)


def save(model: nn.Module, path: str | os.PathLike[str], card: ModelCard | None = None) -> None:
    """Write weights and card as one safetensors container; on any failure the file that was there before stays.

    Args:
        model: float32 network of the architecture that the card names.
        path: conventionally ``.safetensors``.
        card: the model's ``mcfhe_metadata`` by default.

    Raises:
        ParameterError: the model has no card, is not what the card says, or has values that are not finite.
    """
    card = _card_of(model) if card is None else card
    cards.check_tensors(model.state_dict(), _skeleton(card).state_dict())
    cards.write(path, model.state_dict(), card)


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The model that :func:`save` wrote, in eval mode, with its card as ``mcfhe_metadata``.

    Nothing in the file is executed; sizes, metadata, names, shapes, dtypes and finiteness are checked first.

    Raises:
        FormatError: truncated, altered, of another kind or version, or weights that do not fit the card; one message
            with the file, the field and the value.
        McfheError: the file cannot be opened.
    """
    card, tensors = cards.read(path, lambda card: _skeleton(card).state_dict())
    model = _skeleton(card)
    model.load_state_dict(tensors, assign=True)
    model.mcfhe_metadata = card  # type: ignore[assignment]
    return model.eval()
