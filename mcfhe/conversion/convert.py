"""From an ordinary network to one that can be compiled: fitted polynomials for activations, averages for max pools."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mcfhe.activations import PolyActivation
from mcfhe.arguments import require, whole
from mcfhe.conversion.fitting import MAX_DEGREE, Fit, Histogram, InputRange, fit
from mcfhe.conversion.sites import ACTIVATIONS, MAX_POOLS, Elementwise, separated
from mcfhe.errors import ImageError, ParameterError
from mcfhe.graph.settings import per_channel as for_each_channel
from mcfhe.scoring import normalise

__all__ = ["Conversion", "ConversionReport", "Replacement", "convert", "network_input"]

BATCH = 250


@dataclass(frozen=True, slots=True)
class Replacement:
    """One layer that was replaced.

    Attributes:
        name: path of the layer in the returned module.
        before, after: what it was and is.
        lower, upper: smallest and largest input seen; None for pools.
        error: root mean square of the difference to the old activation on the inputs seen, as a share of its standard
            deviation; None for pools.
        largest: the largest such difference on the range, absolute; None for pools.
    """

    name: str
    before: str
    after: str
    lower: float | None = None
    upper: float | None = None
    error: float | None = None
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What :func:`convert` did; ``str`` is a table.

    Attributes:
        replacements: in the order in which the layers run.
        images: calibration images.
        agreement: share of them that still get the label of the network before.
    """

    replacements: tuple[Replacement, ...]
    images: int
    agreement: float

    def __str__(self) -> str:
        rows = [("layer", "before", "after", "inputs seen", "error", "largest")]
        for r in self.replacements:
            if r.lower is None or r.upper is None or r.error is None or r.largest is None:
                rows.append((r.name, r.before, r.after, "", "", ""))
            else:
                seen = f"{r.lower:.3g} .. {r.upper:.3g}"
                rows.append((r.name, r.before, r.after, seen, f"{r.error:.2%}", f"{r.largest:.3g}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, f"{self.agreement:.2%} of {self.images} images keep their label"])


class Conversion(NamedTuple):
    """``model, report = convert(...)``."""

    model: nn.Module
    report: ConversionReport


def convert(
    model: nn.Module,
    calibration: Any,
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    degree: int | Mapping[str, int] | None = None,
    max_degree: int = 4,
    per_channel: bool = False,
) -> Conversion:
    """Replace every activation by a polynomial fitted to its inputs, and every max pool by the average of its window.

    Layers are replaced in the order in which they run, each fitted on what the layers before it, replaced already, make
    of the calibration images. The fit is weighted least squares (:mod:`mcfhe.conversion.fitting`). A converted network
    has lost accuracy, most of it where a max pool was; :func:`mcfhe.finetune` wins it back.

    Args:
        model: any network that ends in scores; ``nn`` activations, their functions in ``forward()`` and layers that run
            several times are found. It is not changed.
        calibration: images like those to come, uint8 ``[n, C, H, W]``, or floating and normalised already. A few
            hundred are enough; none that accuracy is later reported on.
        mean, std: of the normalisation of uint8 images, as for :func:`mcfhe.compile`.
        degree: of all polynomials, or by name of a layer; None chooses 2..``max_degree`` for each by bits of accuracy
            for each order paid.
        max_degree: 1..8.
        per_channel: fit one polynomial for every channel. It costs no more orders.

    Returns:
        (model, report): a new float module in eval mode, and a table of what was replaced, the range of inputs seen and
        the error of the fit.

    Raises:
        ParameterError: no calibration images or of a shape that the network does not take, a degree out of range or for
            a layer that is not there, an activation whose inputs are not finite or that runs more than once where
            ``torch.fx`` cannot take the calls apart, a pool that no average pool stands for; names the layer.
    """
    require("model", model, nn.Module, "give a torch.nn.Module")
    if not 1 <= whole("max_degree", max_degree) <= MAX_DEGREE:
        raise ParameterError(f"max_degree = {max_degree}: use 1..{MAX_DEGREE}")
    images = network_input(calibration, mean, std)
    model = copy.deepcopy(model).eval()
    before = _labels(model, images)
    converted = separated(model).eval()
    dtype = next((p.dtype for p in converted.parameters() if p.is_floating_point()), torch.float32)
    replacements = [_replace_pool(converted, name, pool) for name, pool in _find(converted, MAX_POOLS)]
    names = _running_order(converted, images[:1])
    if isinstance(degree, Mapping) and (unknown := [name for name in degree if name not in names]):
        raise ParameterError(f"degree: no activation {unknown[0]!r}; there are {', '.join(names) or 'none'}")
    for name in names:
        degrees = _degrees(degree, name, max_degree)
        replacements.append(_replace_activation(converted, name, images, degrees, per_channel, dtype))
    order = {name: i for i, (name, _) in enumerate(converted.named_modules())}
    replacements.sort(key=lambda r: order[r.name])
    agreement = float((_labels(converted, images) == before).double().mean())
    return Conversion(converted.eval(), ConversionReport(tuple(replacements), len(images), agreement))


def network_input(images: Any, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """float32 ``[n, C, H, W]`` as the network takes it, of uint8 images or of floating ones that are normalised."""
    try:
        tensor = images.detach().cpu() if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    except (TypeError, ValueError):  # of objects, texts or rows of several lengths
        raise ImageError(f"images: {type(images).__name__} that is no array of numbers; give [n, C, H, W]") from None
    if tensor.dim() != 4 or tensor.numel() == 0:
        raise ImageError(f"images: shape {list(tensor.shape)}; give at least one image, [n, C, H, W]")
    if tensor.dtype == torch.uint8:
        values = [for_each_channel(name, v, tensor.shape[1]) for name, v in (("mean", mean), ("std", std))]
        if not all(math.isfinite(v) for row in values for v in row) or min(values[1]) <= 0:
            raise ParameterError(f"mean = {mean}, std = {std}: give finite numbers, and positive deviations")
        return normalise(tensor, values[0], values[1])
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise ImageError(f"images: {tensor.dtype}; give uint8 pixels, or finite floats that are normalised already")
    return tensor.float()


def _find(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _labels(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([scores.argmax(1) for scores in run(model, images)])


def run(model: nn.Module, images: Tensor, what: str = "calibration") -> list[Tensor]:
    """Scores of float32 ``[n, C, H, W]``, in batches; ParameterError that names ``what`` if the model refuses them."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    try:
        with torch.no_grad():
            return [
                model(images[i : i + BATCH].to(like.device, like.dtype)).cpu() for i in range(0, len(images), BATCH)
            ]
    except Exception as error:  # whatever the user's forward() raises
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ParameterError(
            f"{what}: the model does not run on [batch, {str(list(images.shape[1:]))[1:-1]}]: {first}"
        ) from error


def _running_order(model: nn.Module, image: Tensor) -> list[str]:
    """Activations in the order in which they run; ParameterError for one that runs twice."""
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.append(name))
        for name, module in _find(model, (*ACTIVATIONS, Elementwise))
    ]
    try:
        run(model, image)
    finally:
        for hook in hooks:
            hook.remove()
    twice = next((name for name in ran if ran.count(name) > 1), None)
    if twice is not None:
        raise ParameterError(
            f"layer {twice!r}: runs {ran.count(twice)} times and torch.fx cannot take the calls apart; give each its "
            "own module"
        )
    return ran


def _degrees(degree: int | Mapping[str, int] | None, name: str, max_degree: int) -> range | tuple[int, ...]:
    chosen = degree.get(name) if isinstance(degree, Mapping) else degree
    if chosen is None:
        return range(1, max_degree + 1)
    if type(chosen) is not int or not 1 <= chosen <= MAX_DEGREE:
        raise ParameterError(f"degree of layer {name!r}: {chosen!r}; use 1..{MAX_DEGREE}")
    return (chosen,)


def _replace_activation(
    model: nn.Module,
    name: str,
    images: Tensor,
    degrees: range | tuple[int, ...],
    per_channel: bool,
    dtype: torch.dtype,
) -> Replacement:
    module = model.get_submodule(name)
    by_channel = per_channel or (isinstance(module, nn.PReLU) and module.num_parameters > 1)
    seen = InputRange(by_channel)
    _observe(model, module, images, seen)
    if not bool(torch.isfinite(seen.lower).all() and torch.isfinite(seen.upper).all()):
        raise ParameterError(f"layer {name!r}: its inputs are not finite; use a lower degree, or train again")
    histogram = Histogram(seen)
    _observe(model, module, images, histogram)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    found = fit(lambda x: module(x.to(device, dtype)).cpu(), histogram, degrees)
    ends = (float(seen.lower.min()), float(seen.upper.max()))
    model.set_submodule(name, _activation(found, ends, by_channel).to(next(model.parameters()).device, dtype))
    rows = f", {len(found.coefficients)} channels" if by_channel else ""
    after = f"degree {found.degree}{rows}"
    if not by_channel:
        after = f"{found.degree}: " + " ".join(f"{c:+.4g}" for c in found.coefficients[0])
    return Replacement(name, _describe(module), after, *ends, found.error, found.largest)


def _observe(model: nn.Module, module: nn.Module, images: Tensor, observer: InputRange | Histogram) -> None:
    hook = module.register_forward_pre_hook(lambda _module, inputs: observer.see(inputs[0]))
    try:
        run(model, images)
    finally:
        hook.remove()


def _activation(found: Fit, ends: tuple[float, float], by_channel: bool) -> PolyActivation:
    rows = torch.from_numpy(found.coefficients)
    activation = PolyActivation(rows.mean(0).tolist(), len(rows) if by_channel else None)
    with torch.no_grad():
        activation.coefficients.copy_(rows if by_channel else rows[0])
    activation.fitted_range = ends
    return activation.eval()


def _describe(module: nn.Module) -> str:
    return module.name if isinstance(module, Elementwise) else type(module).__name__


def _replace_pool(model: nn.Module, name: str, pool: nn.Module) -> Replacement:
    average: nn.Module
    if isinstance(pool, nn.AdaptiveMaxPool2d) and not pool.return_indices:
        average = nn.AdaptiveAvgPool2d(pool.output_size)
    elif isinstance(pool, nn.MaxPool2d) and not pool.return_indices and pool.dilation in (1, (1, 1)):
        average = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
    else:
        raise ParameterError(f"layer {name!r}: a {type(pool).__name__} with indices or dilation has no average pool")
    model.set_submodule(name, average)
    return Replacement(name, type(pool).__name__, type(average).__name__)
