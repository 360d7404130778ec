"""Training a converted network on, so that it wins back what the conversion cost and stays where its fits hold."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcfhe.activations import PolyActivation
from mcfhe.arguments import number, require, training_device, whole
from mcfhe.conversion.convert import network_input, run
from mcfhe.errors import ParameterError

__all__ = ["FineTuning", "FineTuningReport", "finetune"]

MAX_GRADIENT_NORM = 1.0  # a polynomial has no saturation: one outlier must not throw the weights far off
BATCH = 500  # images at a time where nothing is trained
WARM_UP = 0.2

Range = tuple[float, float]
Pair = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy 0..1, and the share of activation inputs outside the range that their polynomial was fitted on."""

    accuracy: float
    outside: float


@dataclass(frozen=True, slots=True)
class FineTuningReport:
    """What :func:`finetune` did.

    Attributes:
        before, after: on the images that it was scored on.
        scored_on: "validation", or "training" where no validation images were given.
        losses: mean loss of every epoch, the penalty included.
    """

    before: Score
    after: Score
    scored_on: str
    losses: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{self.scored_on} accuracy {self.before.accuracy:.2%} before, {self.after.accuracy:.2%} after "
            f"{len(self.losses)} epochs; {self.before.outside:.2%} of activation inputs out of range before, "
            f"{self.after.outside:.2%} after"
        )


class FineTuning(NamedTuple):
    """``model, report = finetune(...)``."""

    model: nn.Module
    report: FineTuningReport


def finetune(
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    validation: Pair | None = None,
    epochs: int = 3,
    lr: float = 1e-3,
    batch_size: int = 128,
    weight_decay: float = 1e-4,
    range_weight: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> FineTuning:
    """Train ``model`` on, with AdamW, one cycle of the learning rate, cross entropy and a penalty on ranges.

    The penalty is the mean over all activations of the mean of (distance to the range / half its width)**2, times
    ``range_weight``. The range is what :func:`mcfhe.convert` fitted on; for other polynomial activations it is what
    they see on the first images before training. Outside of it a polynomial is no longer like the activation that it
    stands for and grows without limit, and so do the integers of the program.

    Equal arguments give equal weights on the same torch build, device and number of threads; global random state is
    neither used nor changed, and ``model`` is not.

    Args:
        model: as :func:`mcfhe.convert` returns it, or any with :class:`mcfhe.PolyActivation`.
        images: uint8 ``[n, C, H, W]``, or floating and normalised already.
        labels: n whole numbers.
        mean, std: of the normalisation of uint8 images, as for :func:`mcfhe.compile`.
        validation: (images, labels) that are scored before and after in place of the training images.
        epochs, batch_size: 1 or more.
        lr: peak learning rate, > 0.
        weight_decay: decoupled, >= 0, on weights, not on biases, gains and coefficients.
        range_weight: >= 0.
        seed: 0..2**63 - 1, of the order of images and of dropout.
        device: of the training; the model returned is on the CPU.
        progress: a bar on standard error if that is a terminal.

    Returns:
        (model, report): a new module in eval mode, and accuracy before and after.

    Raises:
        ParameterError: an argument out of its range, labels that do not fit, or divergence.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not least <= whole(name, value) < 1 << 63:
            raise ParameterError(f"{name} = {value}: use {least} or more")
    lr = number("lr", lr, 0, above=True)
    weight_decay, range_weight = number("weight_decay", weight_decay, 0), number("range_weight", range_weight, 0)
    require("model", model, nn.Module, "give what mcfhe.convert returns, or any with mcfhe.PolyActivation")
    if not any(p.is_floating_point() for p in model.parameters()):
        raise ParameterError("model: has no parameters; there is nothing to train")
    if validation is not None and (not isinstance(validation, Sequence) or len(validation) != 2):
        raise ParameterError("validation: give a pair of images and labels")
    model = copy.deepcopy(model).eval().to(training_device(device))
    train_set = _pair("labels", model, images, labels, mean, std)
    scored = train_set if validation is None else _pair("validation", model, *validation, mean, std)
    activations = [(n, m) for n, m in model.named_modules() if isinstance(m, PolyActivation)]
    ranges = _ranges(model, activations, train_set[0])
    before = _score(model, *scored, ranges)
    losses: list[float] = []
    with torch.random.fork_rng(), _progress(epochs, progress) as advance:
        torch.manual_seed(seed)  # of dropout
        trainer = _Trainer(model, train_set, ranges, range_weight, epochs, batch_size, lr, weight_decay, seed)
        for _ in range(epochs):
            losses.append(trainer.run_epoch())
            advance(losses[-1])
    model.eval()
    after = _score(model, *scored, ranges)
    report = FineTuningReport(before, after, "training" if validation is None else "validation", tuple(losses))
    return FineTuning(model.cpu(), report)


def _pair(
    what: str,
    model: nn.Module,
    images: Any,
    labels: Any,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> tuple[Tensor, Tensor]:
    x = network_input(images, mean, std)
    try:
        y = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError(f"{what}: labels that are no numbers; give one whole number for each image") from None
    if y.is_floating_point() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        raise ParameterError(f"{what}: {y.dtype} {list(y.shape)} for {len(x)} images; give one whole number for each")
    classes = run(model, x[:1], "images")[0].shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ParameterError(f"{what}: {int(y.min())}..{int(y.max())}, the network has scores 0..{classes - 1}")
    return x, y.long()


class _Ranges:
    """Collects, while the model runs, how far activation inputs are outside of their ranges."""

    def __init__(self, ranges: dict[nn.Module, Range]) -> None:
        self.ranges = ranges
        self.distances: list[Tensor] = []

    def __enter__(self) -> _Ranges:
        self.hooks = [module.register_forward_pre_hook(self._see) for module in self.ranges]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        lower, upper = self.ranges[module]
        half = max((upper - lower) / 2, torch.finfo(torch.float32).tiny)
        self.distances.append(((inputs[0] - (lower + upper) / 2).abs() / half - 1).clamp(min=0))

    def penalty(self) -> Tensor | float:
        """Mean of the squares since the last call."""
        if not self.distances:
            return 0.0
        total = torch.stack([d.square().mean() for d in self.distances]).mean()
        self.distances.clear()
        return total


def _ranges(model: nn.Module, activations: list[tuple[str, PolyActivation]], images: Tensor) -> dict[nn.Module, Range]:
    """Of each activation: what it was fitted on, or what it sees now."""
    found: dict[nn.Module, Range] = {m: m.fitted_range for _, m in activations if m.fitted_range is not None}

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ends = (float(inputs[0].min()), float(inputs[0].max()))
        known = found.get(module, ends)
        found[module] = (min(known[0], ends[0]), max(known[1], ends[1]))

    hooks = [m.register_forward_pre_hook(see) for _, m in activations if m.fitted_range is None]
    try:
        if hooks:
            with torch.no_grad():
                model(images[:BATCH].to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _score(model: nn.Module, images: Tensor, labels: Tensor, ranges: dict[nn.Module, Range]) -> Score:
    device = next(model.parameters()).device
    right, outside, values = 0, 0, 0
    with torch.no_grad(), _Ranges(ranges) as seen:
        for start in range(0, len(images), BATCH):
            scores = model(images[start : start + BATCH].to(device))
            right += int((scores.argmax(1).cpu() == labels[start : start + BATCH]).sum())
            outside += sum(int((d > 1e-6).sum()) for d in seen.distances)
            values += sum(d.numel() for d in seen.distances)
            seen.distances.clear()
    return Score(right / len(images), outside / values if values else 0.0)


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        train_set: tuple[Tensor, Tensor],
        ranges: dict[nn.Module, Range],
        range_weight: float,
        epochs: int,
        batch_size: int,
        lr: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        self.model, self.ranges, self.range_weight, self.lr = model, ranges, range_weight, lr
        self.device = next(model.parameters()).device
        self.images, self.labels = train_set
        self.batch_size = min(batch_size, len(self.images))
        self.generator = torch.Generator().manual_seed(seed)
        decayed = [p for p in model.parameters() if p.dim() > 1]
        coefficients = {id(m.coefficients) for m in ranges if isinstance(m, PolyActivation)}
        groups = [
            {"params": [p for p in decayed if id(p) not in coefficients], "weight_decay": weight_decay},
            {"params": [p for p in model.parameters() if p.dim() <= 1 or id(p) in coefficients], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)
        steps = epochs * (len(self.images) // self.batch_size)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, steps, pct_start=WARM_UP)

    def run_epoch(self) -> float:
        """One pass in random order, the last, incomplete batch left out; the mean loss."""
        self.model.train()
        losses = []
        order = torch.randperm(len(self.images), generator=self.generator)
        with _Ranges(self.ranges) as seen:
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                batch = order[start : start + self.batch_size]
                scores = self.model(self.images[batch].to(self.device))
                loss = F.cross_entropy(scores, self.labels[batch].to(self.device))
                loss = loss + self.range_weight * seen.penalty()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
                if not bool(torch.isfinite(norm)):
                    raise ParameterError(f"lr = {self.lr}: the training diverged; use a lower one")
                self.optimizer.step()
                self.schedule.step()
                losses.append(loss.detach())
        return float(torch.stack(losses).mean())


@contextmanager
def _progress(epochs: int, wanted: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error when that is a terminal; else a function that does nothing."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("fine-tuning", total=epochs)
        yield lambda loss: bar.update(task, advance=1, description=f"fine-tuning, loss {loss:.4f}")
