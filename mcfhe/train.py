"""Training on plaintext images: the float network that is later compiled, its card and its accuracy."""

from __future__ import annotations

import copy
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mcfhe import datasets, models
from mcfhe.activations import PolyActivation
from mcfhe.cards import ModelCard
from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError

AUGMENTATIONS = ("none", "shift", "shift-flip")
MAX_SHIFT = 1  # pixels, each way
WARM_UP = 0.2  # of all steps
MAX_GRADIENT_NORM = 1.0  # a polynomial has no saturation: one outlier must not throw the weights far off


@dataclass(frozen=True)
class Epoch:
    """One line of a training's history; accuracies 0..1, of the float network while it still has its batch norm."""

    epoch: int  # from 1
    loss: float  # mean cross entropy over the epoch's batches
    validation_accuracy: float | None  # None without a validation split
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What :func:`train` returns.

    Attributes:
        model: in eval mode on the CPU, batch norm fused, with ``card`` as its ``mcfhe_metadata``.
        card: ready for :func:`mcfhe.models.save`.
        test_accuracy: of ``model`` in float64 on the whole test split, 0..1.
        history: one :class:`Epoch` each.
    """

    model: nn.Module
    card: ModelCard
    test_accuracy: float
    history: tuple[Epoch, ...]


def train(
    arch: str = "lenet",
    dataset: str | os.PathLike[str] | tuple[Dataset, Dataset] = "fashion-mnist",
    epochs: int = 40,
    seed: int = 0,
    lr: float = 4e-3,
    batch_size: int = 256,
    data: str | os.PathLike[str] | None = None,
    progress: bool = True,
    augment: str = "shift",
    *,
    weight_decay: float = 0.1,
    validation: int = 0,
    balance: bool = False,
    activation: str = "poly",
    limit: int | None = None,
    device: str = "cpu",
    command: str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainResult:
    """Train with AdamW, linear warm-up and cosine decay, batch norm during training, fused at the end.

    The weights of the last epoch are kept, so nothing is ever selected on the test split; it is scored once. Equal
    arguments give equal weights on the same torch build, device and number of threads; global random state is
    neither used nor changed.

    Args:
        arch: a name in ``mcfhe.models.ARCHITECTURES``; channels, image size and classes are those of the data.
        dataset: what :func:`mcfhe.datasets.load` takes, with splits train and test; or the two splits themselves.
        epochs: 1 or more.
        seed: 0..2**63 - 1, of initial weights, batches, augmentation and hold-out.
        lr: peak learning rate, > 0.
        batch_size: 2 or more; the last, incomplete batch of an epoch is dropped unless it is the only one.
        data: folder of the user's to find the data set in.
        progress: show a progress bar on standard error if that is a terminal.
        augment: ``none``, ``shift`` (by up to one pixel each way) or ``shift-flip`` (also mirrored left to right).
        weight_decay: decoupled, >= 0, on weights and normalisation gains; it also keeps the proved score bound low.
        validation: hold out this many training images, drawn by seed, and report their accuracy after every epoch.
        balance: weight each class by the inverse of its frequency in the training split.
        activation: see :func:`mcfhe.models.lenet`.
        limit: use only the first so many images of either split.
        device: of the training; the returned model is on the CPU.
        command: recorded in the card; by default the ``mcfhe train`` line with these arguments.
        on_epoch: called after every epoch.

    Raises:
        ParameterError: an argument outside its range, images the architecture does not take, or divergence.
        FormatError, ImageError: from the data set's files.
    """
    for name, value, low in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("validation", validation, 0)):
        if value < low:
            raise ParameterError(f"{name}: {value}; use {low} or more")
    if not 0 <= seed < 1 << 63:
        raise ParameterError(f"seed: {seed}; use 0..2**63 - 1")
    if not (math.isfinite(lr) and lr > 0 and math.isfinite(weight_decay) and weight_decay >= 0):
        raise ParameterError(f"lr: {lr}, weight_decay: {weight_decay}; use finite lr > 0 and weight_decay >= 0")
    if augment not in AUGMENTATIONS:
        raise ParameterError(f"augment: {augment!r}; choose one of {', '.join(AUGMENTATIONS)}")
    train_set, test_set = _splits(dataset, data, limit)
    if train_set.image_shape != test_set.image_shape or train_set.class_names != test_set.class_names:
        raise ParameterError(f"{train_set.name}: train and test differ in image shape or class names; use one data set")
    channels, height, width = train_set.image_shape
    if height != width:
        raise ParameterError(f"{train_set.name}: images are {height} x {width}; resize or crop them to squares")
    mean, std = statistics(train_set)
    arguments = {
        "in_channels": channels,
        "num_classes": len(train_set.class_names),
        "image_size": height,
        "batch_norm": False,
        "activation": activation,
    }
    options = {"epochs": epochs, "seed": seed, "lr": lr, "batch-size": batch_size, "augment": augment}
    options |= {"weight-decay": weight_decay, "validation": validation, "activation": activation}
    card = ModelCard(
        arch=arch,
        arguments=arguments,
        dataset=train_set.name,
        input_shape=train_set.image_shape,
        mean=mean,
        std=std,
        labels=train_set.class_names,
        command=_command(arch, train_set.name, options, balance, limit) if command is None else command,
        seed=seed,
        environment=f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads",
    )
