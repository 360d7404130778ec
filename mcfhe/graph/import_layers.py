"""Importer handlers of the layers with weights: convolution, linear, batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcfhe.graph import symbolic
from mcfhe.graph.import_context import Context, handles, pair
from mcfhe.graph.import_polynomials import add, multiply
from mcfhe.graph.nodes import Conv2d, Linear
from mcfhe.graph.symbolic import Value


@handles("conv2d")
def _conv2d(
    context: Context,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    kernels = context.array(weight, "weight")
    steps, spread = pair(stride), pair(dilation)
    if isinstance(padding, str):
        kernels, padding = _named_padding(context, kernels, padding, spread)
    return context.append(
        Conv2d(
            name=context.name,
            inputs=(context.node(input),),
            weight=kernels,
            bias=None if bias is None else context.array(bias, "bias"),
            stride=steps,
            padding=pair(padding),
            dilation=spread,
            groups=int(groups),
        )
    )


def _named_padding(
    context: Context, kernels: np.ndarray, padding: str, dilation: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """'valid' and 'same' as numbers. An even kernel under 'same' has one more zero on the far side; a kernel with one
    more tap of weight zero on the near side computes the same with equal padding."""
    if padding == "valid":
        return kernels, (0, 0)
    amounts = []
    for axis in (0, 1):
        total = dilation[axis] * (kernels.shape[2 + axis] - 1)
        if total % 2 and dilation[axis] > 1:
            context.refuse("has padding='same' with an even kernel and dilation; use an odd kernel or padding=(..)")
        if total % 2:
            kernels = np.pad(kernels, [(1, 0) if i == 2 + axis else (0, 0) for i in range(4)])
        amounts.append((total + 1) // 2)
    return kernels, (amounts[0], amounts[1])


@handles("linear")
def _linear(context: Context, input: Any, weight: Any, bias: Any = None) -> Value:
    source = context.node(input)
    shape = context.builder.shapes[source]
    if len(shape) != 1:
        context.refuse(f"is applied to a feature map {shape}; put a Flatten before it, or use a 1x1 Conv2d")
    matrix = context.array(weight, "weight")
    offset = None if bias is None else context.array(bias, "bias")
    return context.append(Linear(name=context.name, inputs=(source,), weight=matrix, bias=offset))


@handles("matmul", "mm")
def _matmul(context: Context, self: Any, other: Any = None, mat2: Any = None) -> Value:
    right = other if mat2 is None else mat2
    if isinstance(right, Value) or right.dim() != 2:
        context.refuse("multiplies matrices that are not (batch, K) times a constant; use nn.Linear")
    return _linear(context, self, right.t())


@handles("addmm")
def _addmm(context: Context, self: Any, mat1: Any, mat2: Any, beta: float = 1, alpha: float = 1) -> Value:
    product = _matmul(context, mat1, mat2)
    if alpha != 1:
        product = multiply(context, product, alpha)
    return add(context, product, self, beta)


@handles("batch_norm")
def _batch_norm(
    context: Context,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool = False,
    momentum: float = 0.0,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Value:
    """y = (x - mean) / sqrt(var + eps) * weight + bias: a layer of its own, as in the patent's plan.

    It is not merged with the polynomials around it: in (g x + h)**2 with g = 1 / sigma, g**2 would be rounded to the
    grid of the scale, which for a large sigma leaves no digits. Folding it into a convolution is a pass's business.
    """
    if training or running_mean is None or running_var is None:
        context.refuse("normalises by statistics of the batch; use track_running_stats=True and model.eval()")
    value = Value(context.node(input), symbolic.IDENTITY)
    channels = context.shape(value)[0]
    mean, variance = context.array(running_mean, "running_mean"), context.array(running_var, "running_var")
    with np.errstate(invalid="ignore"):  # what is not finite is refused by name when the node is made
        deviation = np.sqrt(variance + eps)
    gain = (np.ones(channels) if weight is None else context.array(weight, "weight")) / deviation
    offset = (np.zeros(channels) if bias is None else context.array(bias, "bias")) - mean * gain
    affine = context.polynomial(value, np.stack([offset, gain], axis=1))
    return Value(context.node(affine), symbolic.IDENTITY)


@handles("_native_batch_norm_legit_no_training")
def _native_batch_norm(context: Context, **arguments: Any) -> tuple[Value, None, None]:
    return _batch_norm(context, **arguments), None, None
