"""The networks as plain layers; :mod:`mcfhe.models` checks arguments and adds trained weights.

Every function takes the images' channels and side, the number of classes, whether to normalise before the activations,
and the activation as a function of the channel count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from mcfhe.cards import ModelCard

Layers = list[tuple[str, nn.Module]]
MakeActivation = Callable[[int], nn.Module]

#: Gain of the last normalisation of a residual branch before training. Sums are not normalised again, and a square
#: doubles what is too wide, so that a branch starts small beside its shortcut.
BRANCH_GAIN = 0.3


class Residual(nn.Module):
    """``body(x) + shortcut(x)``, the shortcut being x itself by default.

    The two branches meet at different multiplicative depth, so a plan must align the shallower.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return out


class Network(nn.Sequential):
    """A whole architecture. One with trained weights has a card; others have no ``mcfhe_metadata``."""

    mcfhe_metadata: ModelCard


def network(layers: Layers) -> Network:
    return Network(OrderedDict(layers))


def sequence(layers: Layers) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def conv(
    name: str,
    inputs: int,
    outputs: int,
    kernel: int,
    batch_norm: bool,
    stride: int = 1,
    padding: int | None = None,
) -> Layers:
    """A convolution, half its kernel padded unless told, and its normalisation."""
    # A normalised layer needs no bias of its own: the normalisation subtracts it again.
    padding = kernel // 2 if padding is None else padding
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not batch_norm)
    return [(name, layer), (f"{name}_norm", nn.BatchNorm2d(outputs))] if batch_norm else [(name, layer)]


def linear(name: str, inputs: int, outputs: int, batch_norm: bool) -> Layers:
    layer = nn.Linear(inputs, outputs, bias=not batch_norm)
    return [(name, layer), (f"{name}_norm", nn.BatchNorm1d(outputs))] if batch_norm else [(name, layer)]


def lenet(channels: int, classes: int, side: int, batch_norm: bool, make: MakeActivation) -> Network:
    return network(
        [
            *conv("conv1", channels, 8, 5, batch_norm),
            ("act1", make(8)),
            ("pool1", nn.AvgPool2d(2)),
            *conv("conv2", 8, 16, 5, batch_norm),
            ("act2", make(16)),
            ("pool2", nn.AvgPool2d(2)),
            ("flatten", nn.Flatten()),
            *linear("fc1", 16 * (side // 4) ** 2, 64, batch_norm),
            ("act3", make(64)),
            *linear("fc2", 64, classes, batch_norm=False),
        ]
    )


def cryptonets(channels: int, classes: int, side: int, batch_norm: bool, make: MakeActivation) -> Network:
    rows = (side + 2 - 5) // 2 + 1
    return network(
        [
            *conv("conv", channels, 5, 5, batch_norm, stride=2, padding=1),
            ("act1", make(5)),
            ("flatten", nn.Flatten()),
            *linear("fc1", 5 * rows**2, 100, batch_norm),
            ("act2", make(100)),
            *linear("fc2", 100, classes, batch_norm=False),
        ]
    )


def tenseal_net(channels: int, classes: int, side: int, batch_norm: bool, make: MakeActivation) -> Network:
    rows = (side - 7) // 3 + 1
    return network(
        [
            *conv("conv", channels, 4, 7, batch_norm, stride=3, padding=0),
            ("act1", make(4)),
            ("flatten", nn.Flatten()),
            *linear("fc1", 4 * rows**2, 64, batch_norm),
            ("act2", make(64)),
            *linear("fc2", 64, classes, batch_norm=False),
        ]
    )


def resnet_tiny(channels: int, classes: int, side: int, batch_norm: bool, make: MakeActivation) -> Network:
    body = [*conv("conv1", 16, 16, 3, batch_norm), ("act", make(16)), *conv("conv2", 16, 16, 3, batch_norm)]
    return network(
        [
            *conv("conv", channels, 16, 3, batch_norm),
            ("act1", make(16)),
            ("pool1", nn.AvgPool2d(2)),
            ("block", Residual(sequence(body))),
            ("act2", make(16)),
            ("pool2", nn.AvgPool2d(4)),
            ("flatten", nn.Flatten()),
            *linear("fc", 16 * (side // 8) ** 2, classes, batch_norm=False),
        ]
    )


def resnet7(channels: int, classes: int, side: int, batch_norm: bool, make: MakeActivation) -> Network:
    stem, *widths = RESNET7_WIDTHS
    layers: Layers = [*conv("conv", channels, stem, 3, batch_norm), ("act0", make(stem))]
    before = stem
    for stage, width in enumerate(widths, start=1):
        body = [
            *conv("conv1", before, width, 4, batch_norm, stride=2, padding=1),
            ("act", make(width)),
            *conv("conv2", width, width, 3, batch_norm),
        ]
        if batch_norm:
            nn.init.constant_(body[-1][1].weight, BRANCH_GAIN)  # type: ignore[arg-type]
        shortcut: Layers = [("pool", nn.AvgPool2d(2)), ("conv", nn.Conv2d(before, width, 1, bias=False))]
        layers += [(f"block{stage}", Residual(sequence(body), sequence(shortcut))), (f"act{stage}", make(width))]
        before = width
    return network(
        [
            *layers,
            ("pool", nn.AvgPool2d(side // 8)),
            ("flatten", nn.Flatten()),
            *linear("fc", before, classes, batch_norm=False),
        ]
    )


#: Channels after the stem and after each stage of :func:`resnet7`.
RESNET7_WIDTHS = (32, 56, 128, 224)
