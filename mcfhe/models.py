"""Networks that encrypted evaluation runs, and how trained ones are kept."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from mcfhe import architectures, cards
from mcfhe.activations import PolyActivation
from mcfhe.architectures import Network, Residual
from mcfhe.cards import Argument, ModelCard
from mcfhe.errors import ParameterError

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "ModelCard",
    "Network",
    "Residual",
    "available_pretrained",
    "build",
    "cryptonets",
    "fuse_batch_norm",
    "lenet",
    "load",
    "resnet7",
    "resnet_tiny",
    "save",
    "tenseal_net",
]

M = TypeVar("M", bound=nn.Module)

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


def _check_arguments(
    in_channels: int,
    num_classes: int,
    image_size: int,
    batch_norm: bool,
    activation: str,
    size_step: int,
    smallest: int = 0,
) -> Callable[[int], nn.Module]:
    """Refuse what the architectures cannot be built with; returns the activation's factory."""
    for name, value, low, high, step in (
        ("in_channels", in_channels, 1, 64, 1),
        ("num_classes", num_classes, 2, 10_000, 1),
        ("image_size", image_size, max(smallest, size_step), 512, size_step),
    ):
        if type(value) is not int or not low <= value <= high or value % step:
            multiple = f" that is a multiple of {step}" if step > 1 else ""
            raise ParameterError(f"{name}: {value!r}; use an integer in {low}..{high}{multiple}")
    if type(batch_norm) is not bool:
        raise ParameterError(f"batch_norm: {batch_norm!r}; use True or False")
    if activation not in tuple(ACTIVATIONS):
        raise ParameterError(f"activation: {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


# Channels, classes and image size where neither the caller nor shipped weights say them.
_GREY, _COLOUR = (1, 10, 28), (3, 10, 32)


def _made(
    make_layers: Callable[..., Network],
    pretrained: str | None,
    values: tuple[int | None, int | None, int | None, bool, str],
    defaults: tuple[int, int, int],
    size_step: int,
    smallest: int = 0,
) -> Network:
    """Fresh layers, or the shipped model of the architecture that ``make_layers`` is named after; None: not given."""
    *sizes, batch_norm, activation = values
    given = [default if value is None else value for value, default in zip(sizes, defaults, strict=True)]
    in_channels, num_classes, image_size = given
    make = _check_arguments(in_channels, num_classes, image_size, batch_norm, activation, size_step, smallest)
    if pretrained is not None:
        return _pretrained(make_layers.__name__, pretrained, values)
    return make_layers(in_channels, num_classes, image_size, batch_norm, make)


def lenet(
    pretrained: str | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_norm: bool = False,
    activation: str = "poly",
) -> Network:
    """Two 5x5 convolutions, two linear layers, three activations, average pooling.

    Args:
        pretrained: a name from ``available_pretrained()["lenet"]``; the model then comes in eval mode with its
            ``mcfhe_metadata`` (:class:`ModelCard`), and the other arguments, if given, must be those it was trained
            with.
        in_channels: C, 1..64; 1 by default.
        num_classes: 2..10000; 10 by default.
        image_size: S, 4..512, a multiple of 4 (two pools halve it); 28 by default.
        batch_norm: normalise before every activation, for training; :func:`fuse_batch_norm` removes it again.
        activation: ``poly`` (one trainable quadratic per layer), ``poly-per-channel``, ``square`` or ``relu``.

    Returns:
        A module from normalised floats ``[batch, C, S, S]`` to scores ``[batch, num_classes]``.

    Raises:
        ParameterError: an argument outside its range, or one that the pretrained model does not have.
    """
    values = (in_channels, num_classes, image_size, batch_norm, activation)
    return _made(architectures.lenet, pretrained, values, _GREY, size_step=4)


def cryptonets(
    pretrained: str | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_norm: bool = False,
    activation: str = "square",
) -> Network:
    """A 5x5 convolution of stride 2 to 5 channels, a linear layer of 100, one of the classes, two squares.

    The network of CryptoNets (Gilad-Bachrach et al., ICML 2016, section 5 and the simplified form of its appendix), in
    which the pooling layers are merged with the linear layers around them; on 28 x 28 pixels 845, 100 and 10 values.

    Arguments, shapes and errors are those of :func:`lenet`, except that ``image_size`` is any of 8..512.
    """
    values = (in_channels, num_classes, image_size, batch_norm, activation)
    return _made(architectures.cryptonets, pretrained, values, _GREY, size_step=1, smallest=8)


def tenseal_net(
    pretrained: str | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_norm: bool = False,
    activation: str = "square",
) -> Network:
    """A 7x7 convolution of stride 3 to 4 channels, a linear layer of 64, one of the classes, two squares.

    The network of TenSEAL's tutorial "Encrypted convolution on MNIST" (Benaissa et al., arXiv:2104.03152, section 4);
    on 28 x 28 pixels 256, 64 and 10 values.

    Arguments, shapes and errors are those of :func:`lenet`, except that ``image_size`` is any of 8..512.
    """
    values = (in_channels, num_classes, image_size, batch_norm, activation)
    return _made(architectures.tenseal_net, pretrained, values, _GREY, size_step=1, smallest=8)


def resnet_tiny(
    pretrained: str | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_norm: bool = False,
    activation: str = "poly",
) -> Network:
    """A stem, one residual block of two 3x3 convolutions, one linear layer, three activations.

    Arguments, shapes and errors are those of :func:`lenet`, except that ``image_size`` is a multiple of 8,
    by default 32, of three channels.
    """
    values = (in_channels, num_classes, image_size, batch_norm, activation)
    return _made(architectures.resnet_tiny, pretrained, values, _COLOUR, size_step=8)


def resnet7(
    pretrained: str | None = None,
    *,
    in_channels: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch_norm: bool = False,
    activation: str = "poly",
) -> Network:
    """A residual network of seven activations for colour images: a stem and three stages that halve the map.

    A stage is two convolutions, 4x4 of stride 2 (what a 3x3 and a 2x2 average pool make together) and 3x3, beside a
    shortcut of a 2x2 average pool and a 1x1 convolution, as in He et al. (CVPR 2016) with averages in the shortcut
    (He et al., CVPR 2019, "bag of tricks", ResNet-D); then one global average and one linear layer.

    Arguments, shapes and errors are those of :func:`lenet`, except that ``image_size`` is a multiple of 8,
    by default 32, of three channels.
    """
    values = (in_channels, num_classes, image_size, batch_norm, activation)
    return _made(architectures.resnet7, pretrained, values, _COLOUR, size_step=8)


#: Every architecture that ``mcfhe train --arch`` and :func:`load` know, by name.
ARCHITECTURES: Mapping[str, Callable[..., Network]] = MappingProxyType(
    {
        "lenet": lenet,
        "cryptonets": cryptonets,
        "tenseal_net": tenseal_net,
        "resnet_tiny": resnet_tiny,
        "resnet7": resnet7,
    }
)
_ARGUMENTS = ("in_channels", "num_classes", "image_size", "batch_norm", "activation")


def build(arch: str, **arguments: Argument) -> Network:
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


def _pretrained(arch: str, dataset: str, values: tuple[Argument | None, ...]) -> Network:
    choices = available_pretrained()[arch]
    if dataset not in choices:
        raise ParameterError(f"pretrained: no {arch} for {dataset!r}; available: {', '.join(choices) or 'none'}")
    model = load(ASSETS / f"{arch}-{dataset}.safetensors")
    trained = _card_of(model).arguments
    for name, value in zip(_ARGUMENTS, values, strict=True):
        if value is not None and trained.get(name, value) != value:
            raise ParameterError(f"{name}: {value!r}, but the weights pretrained on {dataset} have {trained[name]!r}")
    return model


def fuse_batch_norm(model: M) -> M:
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


def _skeleton(card: ModelCard) -> Network:
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


def load(path: str | os.PathLike[str]) -> Network:
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
    model.mcfhe_metadata = card
    return model.eval()
