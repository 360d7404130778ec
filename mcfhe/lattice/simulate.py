"""A lattice program on real numbers, with the noise it is expected to have: what precision to expect, layer by layer.

Every step is evaluated in float64 as what it means for the slots, twice: without noise, and with independent normal
noise wherever the scheme adds some (:mod:`mcfhe.lattice.noise`). The difference is the prediction, which tests compare
with what decryption gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    DropStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PoolStep,
    RelineariseStep,
    RescaleStep,
    Step,
    TensorSquareStep,
)
from mcfhe.lattice import noise


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """Standard deviation of a value's noise, and root mean square of the value itself."""

    name: str
    kind: str
    noise: float
    value: float


def simulate(
    program: IntegerProgram, x: Tensor, generator: torch.Generator | None = None, *, public_key: bool = False
) -> Tensor:
    """Scores float64 ``[batch, labels]`` of normalised images float64 ``[batch, C, H, W]``.

    With a ``generator`` noise is added as encryption, under the secret key or a public one, and ring steps do;
    without, none.
    """
    return _values(program, x, generator, public_key)[-1]


def predict_precision(
    program: IntegerProgram, x: Tensor, seed: int = 0, *, public_key: bool = False
) -> list[LayerPrecision]:
    """Of the input and of every step's value, over the images ``x``."""
    clean = _values(program, x, None, public_key)
    noisy = _values(program, x, torch.Generator().manual_seed(seed), public_key)
    names = [("input", "input"), *((step.name, step.kind) for step in program.steps)]
    return [
        LayerPrecision(name, kind, float((b - a).pow(2).mean().sqrt()), float(a.pow(2).mean().sqrt()))
        for (name, kind), a, b in zip(names, clean, noisy, strict=True)
    ]


def _values(program: IntegerProgram, x: Tensor, generator: torch.Generator | None, public_key: bool) -> list[Tensor]:
    ring = program.ring
    assert ring is not None  # for the type checker: only lattice programs come here
    fresh = noise.fresh(ring.degree) if public_key else noise.fresh_symmetric(ring.degree)
    values = [_noisy(x.to(torch.float64), fresh, program, 0, generator)]
    for index, step in enumerate(program.steps, 1):
        inputs = [values[i] for i in step.inputs]
        y = _step(program, step, index, inputs)
        level = program.levels[index]
        if isinstance(step, RescaleStep):
            y = _noisy(y, noise.rescaled(ring.degree, level.components), program, index, generator)
        if isinstance(step, RelineariseStep):
            added = noise.relinearised(ring.degree, ring.moduli[: level.limbs], ring.special)
            y = _noisy(y, added, program, index, generator)
        values.append(y)
    return values


def _noisy(
    x: Tensor, deviation: float, program: IntegerProgram, value: int, generator: torch.Generator | None
) -> Tensor:
    if generator is None:
        return x
    drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x + drawn * (deviation / float(program.levels[value].scale))


def _step(program: IntegerProgram, step: Step, index: int, inputs: list[Tensor]) -> Tensor:
    x, scale = inputs[0], program.levels[index].scale
    before = program.levels[step.inputs[0]].scale
    match step:
        case Conv2dStep():
            weight, bias = _weights(step, float(scale / before), float(scale))
            return functional.conv2d(x, weight, bias, step.stride, step.padding, step.dilation, step.groups)
        case LinearStep():
            weight, bias = _weights(step, float(scale / before), float(scale))
            return functional.linear(x, weight, bias)
        case PoolStep():
            pooled = functional.avg_pool2d(x, step.kernel, step.stride, step.padding, divisor_override=1)
            return pooled * (step.factor / float(scale / before))
        case TensorSquareStep():
            divisors = (scale, scale / before, scale / before**2)
            rows = torch.tensor([[float(a / d) for a, d in zip(r, divisors, strict=True)] for r in step.coefficients])
            a0, a1, a2 = rows.double().T.reshape(3, -1, *(1,) * (x.dim() - 2)).unbind()
            return (a2 * x + a1) * x + a0
        case AddStep():
            factors = _factors(program, step, scale)
            return factors[0] * inputs[0] + factors[1] * inputs[1]
        case ConcatStep():
            return torch.cat([f * v for f, v in zip(_factors(program, step, scale), inputs, strict=True)], 1)
        case FlattenStep():
            return x.flatten(1)
        case RescaleStep() | RelineariseStep() | DropStep():
            return x
    raise TypeError(f"no meaning for a step of kind {step.kind!r}")


def _factors(program: IntegerProgram, step: AddStep | ConcatStep, scale: object) -> list[float]:
    return [
        float(factor * program.levels[value].scale / scale)  # type: ignore[operator]
        for factor, value in zip(step.factors, step.inputs, strict=True)
    ]


def _weights(step: Conv2dStep | LinearStep, factor: float, scale: float) -> tuple[Tensor, Tensor | None]:
    weight = torch.from_numpy(step.weight.astype(np.float64)) / factor
    if step.bias is None:
        return weight, None
    return weight, torch.tensor([b / scale for b in step.bias], dtype=torch.float64)
