"""Training on plaintext images: the float network that is later compiled, its card and its accuracy."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcfhe import datasets, models
from mcfhe.activations import PolyActivation
from mcfhe.arguments import number, training_device, whole
from mcfhe.cards import ModelCard
from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError
from mcfhe.scoring import accuracy, normalise, statistics
from mcfhe.train.augment import AUGMENTATIONS
from mcfhe.train.range_penalty import RangePenalty

PRECISIONS = ("float32", "bfloat16")
GRID_BITS = 8  # log2 of the scale that compile() takes by default
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

    model: models.Network
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
    grid_bits: int = GRID_BITS,
    limit: int | None = None,
    device: str = "cpu",
    label_smoothing: float = 0.0,
    range_penalty: float = 0.0,
    precision: str = "float32",
    initial: str | os.PathLike[str] | None = None,
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
        augment: ``none``, ``shift`` (by up to one pixel each way), ``shift-flip`` (also mirrored left to right),
            ``crop-flip`` (by up to four pixels, mirrored), ``affine`` (turned, scaled and moved), ``affine-exposure``
            (also brighter or darker, of other contrast), or one of the last two for ``half-`` of the images.
        weight_decay: decoupled, >= 0, on weights and normalisation gains, not on biases and coefficients.
        validation: hold out this many training images, drawn by seed, and report their accuracy after every epoch.
        balance: weight each class by the inverse of its frequency in the training split.
        activation: see :func:`mcfhe.models.lenet`.
        grid_bits: :func:`snap` the fused weights to multiples of 2**-grid_bits, 1..20; 0 leaves them as they are.
        limit: use only the first so many images of either split.
        device: of the training; the returned model is on the CPU.
        label_smoothing: share of every target that goes to all classes alike, 0 <= s < 1.
        range_penalty: weight, >= 0, of :class:`mcfhe.train.range_penalty.RangePenalty` in the loss.
        precision: ``bfloat16`` runs convolutions and linear layers in it, channels last, on weights kept in float32;
            faster where the processor has bfloat16 products.
        initial: go on from this model file, without batch norm: the network that is trained is then the one that is
            used, and what batch statistics hid (a polynomial far outside the range it was trained in) is seen and
            learnt. The card's command then names both trainings.
        command: recorded in the card; by default the ``mcfhe train`` line with these arguments, ``data`` left out.
        on_epoch: called after every epoch.

    Raises:
        ParameterError: an argument outside its range, images the architecture does not take, or divergence.
        FormatError, ImageError: from the data set's files.
    """
    _check_numbers(epochs, batch_size, seed, lr, weight_decay, grid_bits, label_smoothing, range_penalty)
    if augment not in tuple(AUGMENTATIONS):
        raise ParameterError(f"augment: {augment!r}; choose one of {', '.join(AUGMENTATIONS)}")
    training_device(device)
    if precision not in PRECISIONS:
        raise ParameterError(f"precision: {precision!r}; choose one of {', '.join(PRECISIONS)}")
    train_set, test_set = _splits(dataset, data, limit)
    settings = {"dataset": train_set.name, "arch": arch, "epochs": epochs, "seed": seed, "lr": lr}
    settings |= {"batch-size": batch_size, "augment": augment, "weight-decay": weight_decay, "activation": activation}
    optional: dict[str, tuple[object, object]] = {
        "grid-bits": (grid_bits, GRID_BITS),
        "validation": (validation, 0),
        "limit": (limit, None),
        "initial": (None if initial is None else Path(initial).name, None),
        "label-smoothing": (label_smoothing, 0.0),
        "precision": (precision, "float32"),
        "range-penalty": (range_penalty, 0.0),
    }
    settings |= {name: value for name, (value, default) in optional.items() if value != default}
    if command is None:
        command = _command(settings, ["balance"] if balance else [])
    card = _card_of(train_set, arch, activation, seed, device, command)
    held_out = None
    if validation:
        train_set, held_out = train_set.hold_out(validation, seed)
    if initial is not None:
        before = models.load(initial)
        card = _continued(card, before.mcfhe_metadata)
    with torch.random.fork_rng(devices=[]):  # initial weights come from the global generator
        torch.manual_seed(seed)
        model = before if initial is not None else models.build(arch, **{**card.arguments, "batch_norm": True})
    model.to(device)
    loop = _Loop(
        model,
        train_set,
        card,
        epochs,
        batch_size,
        lr,
        weight_decay,
        augment,
        balance,
        label_smoothing,
        range_penalty,
        precision,
    )
    history = []
    with _progress(epochs, progress) as advance:
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            loss = loop.run_epoch()
            checked = None if held_out is None else accuracy(model, held_out, card.mean, card.std, torch.float32)
            history.append(Epoch(epoch, loss, checked, time.perf_counter() - started))
            advance(history[-1])
            if on_epoch is not None:
                on_epoch(history[-1])
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    trained = models.fuse_batch_norm(model.cpu())
    if grid_bits:
        snap(trained, grid_bits)
    test_accuracy = accuracy(trained, test_set, card.mean, card.std)
    card = replace(card, test_accuracy=test_accuracy)
    trained.mcfhe_metadata = card
    return TrainResult(trained, card, test_accuracy, tuple(history))


def _card_of(train_set: Dataset, arch: str, activation: str, seed: int, device: str, command: str) -> ModelCard:
    """Of a model to be trained, without an accuracy."""
    channels, side, _ = train_set.image_shape
    mean, std = statistics(train_set)
    return ModelCard(
        arch=arch,
        arguments={
            "in_channels": channels,
            "num_classes": len(train_set.class_names),
            "image_size": side,
            "batch_norm": False,
            "activation": activation,
        },
        dataset=train_set.name,
        input_shape=train_set.image_shape,
        mean=mean,
        std=std,
        labels=train_set.class_names,
        command=command,
        seed=seed,
        environment=f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads",
    )


def _check_numbers(
    epochs: int,
    batch_size: int,
    seed: int,
    lr: float,
    weight_decay: float,
    grid_bits: int,
    label_smoothing: float,
    range_penalty: float,
) -> None:
    for name, value, low, high in (
        ("epochs", epochs, 1, 1 << 31),
        ("batch_size", batch_size, 2, 1 << 31),
        ("seed", seed, 0, (1 << 63) - 1),
        ("grid_bits", grid_bits, 0, 20),
    ):
        if not low <= whole(name, value) <= high:
            raise ParameterError(f"{name}: {value}; use {low}..{high}")
    number("lr", lr, 0, above=True)
    number("weight_decay", weight_decay, 0)
    number("range_penalty", range_penalty, 0)
    if number("label_smoothing", label_smoothing, 0) >= 1:
        raise ParameterError(f"label_smoothing: {label_smoothing}; use 0 or more, below 1")


def _continued(card: ModelCard, before: ModelCard) -> ModelCard:
    """``card`` for a training that starts from the model of ``before``; ParameterError where they do not fit."""
    for field in ("arch", "arguments", "mean", "std", "labels"):
        found, wanted = getattr(before, field), getattr(card, field)
        if found != wanted:
            raise ParameterError(f"initial: its {field} is {found}, this training has {wanted}")
    return replace(card, command=f"{before.command} && {card.command}")


class _Loop:
    """The state that epochs share: data on the device, optimiser, schedule, random numbers."""

    def __init__(
        self,
        model: nn.Module,
        train_set: Dataset,
        card: ModelCard,
        epochs: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        augment: str,
        balance: bool,
        label_smoothing: float,
        range_penalty: float,
        precision: str,
    ) -> None:
        self.model, self.card, self.lr = model, card, lr
        self.augment, self.label_smoothing = AUGMENTATIONS[augment], label_smoothing
        self.range_penalty = range_penalty
        self.low_precision = precision == "bfloat16"
        if self.low_precision:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        device = next(model.parameters()).device
        self.images, self.labels = train_set.images.to(device), train_set.labels.to(device)
        self.batch_size = min(batch_size, len(train_set))
        if self.batch_size < 2:
            raise ParameterError(f"{train_set.name}: {len(train_set)} training images; batch norm needs 2 or more")
        self.total_steps = epochs * (len(train_set) // self.batch_size)
        self.step = 0
        self.generator = torch.Generator().manual_seed(card.seed)
        self.class_weights: Tensor | None = None
        if balance:
            counts = self.labels.bincount(minlength=len(card.labels)).clamp(min=1).float()
            self.class_weights = len(self.labels) / (len(card.labels) * counts)
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                # Pulling coefficients to 0 would ask for ever larger weights before them.
                (free if name == "bias" or isinstance(module, PolyActivation) else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr)

    def run_epoch(self) -> float:
        """One pass in random order; the mean loss."""
        self.model.train()
        order = torch.randperm(len(self.images), generator=self.generator)
        starts = range(0, len(order) - self.batch_size + 1, self.batch_size)
        with RangePenalty(self.model) if self.range_penalty else nullcontext() as penalty:
            losses = [self._step(order[start : start + self.batch_size], penalty) for start in starts]
        return float(torch.stack(losses).mean())

    def _step(self, batch: Tensor, penalty: RangePenalty | None) -> Tensor:
        """One step on the images of these numbers; the loss."""
        images = self.augment(self.images[batch], self.generator)
        scores = self._scores(normalise(images, self.card.mean, self.card.std))
        loss = F.cross_entropy(
            scores, self.labels[batch], weight=self.class_weights, label_smoothing=self.label_smoothing
        )
        if penalty is not None:
            loss = loss + self.range_penalty * penalty.take()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        if not bool(torch.isfinite(norm)):
            raise ParameterError(f"lr: {self.lr} made the training diverge at step {self.step + 1}; use a lower one")
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * _schedule(self.step, self.total_steps)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _scores(self, x: Tensor) -> Tensor:
        if not self.low_precision:
            out: Tensor = self.model(x)
            return out
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            out = self.model(x.contiguous(memory_format=torch.channels_last))
        return out.float()


def _schedule(step: int, total: int) -> float:
    """Share of the peak learning rate: linear up over ``WARM_UP`` of the steps, then half a cosine down to 0."""
    position, top = (step + 0.5) / total, WARM_UP
    return position / top if position < top else 0.5 * (1 + math.cos(math.pi * (position - top) / (1 - top)))


def _splits(
    dataset: str | os.PathLike[str] | tuple[Dataset, Dataset], data: str | os.PathLike[str] | None, limit: int | None
) -> tuple[Dataset, Dataset]:
    if isinstance(dataset, tuple):
        train_set, test_set = (part.subset(range(min(limit or len(part), len(part)))) for part in dataset)
    else:
        train_set, test_set = (datasets.load(dataset, split, data, limit=limit) for split in ("train", "test"))
    if train_set.image_shape != test_set.image_shape or train_set.class_names != test_set.class_names:
        raise ParameterError(f"{train_set.name}: train and test differ in image shape or classes; use one data set")
    _, height, width = train_set.image_shape
    if height != width:
        raise ParameterError(f"{train_set.name}: images are {height} x {width}; resize or crop them to squares")
    return train_set, test_set


def snap(model: nn.Module, bits: int) -> None:
    """Round every parameter, in place, to the nearest multiple of 2**-bits.

    A program compiled at that scale or above then computes with the model's very weights, and its scores differ from
    the float model's only by the rounding of pixels.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter.double() * 2**bits).round() / 2**bits)


def _command(options: Mapping[str, object], flags: Sequence[str]) -> str:
    words = ["mcfhe", "train"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    words += [*(f"--{flag}" for flag in flags), "--out", f"{options['arch']}-{options['dataset']}.safetensors"]
    return shlex.join(words)


@contextmanager
def _progress(epochs: int, wanted: bool) -> Iterator[Callable[[Epoch], None]]:
    """A bar on standard error when that is a terminal; else a function that does nothing."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=epochs)

        def advance(epoch: Epoch) -> None:
            checked = "" if epoch.validation_accuracy is None else f", validation {epoch.validation_accuracy:.2%}"
            bar.update(task, advance=1, description=f"training, loss {epoch.loss:.4f}{checked}")

        yield advance
