"""Importer handlers of what moves or averages values without weights: pools, reshapes, concatenation, no-ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mcfhe.graph import symbolic
from mcfhe.graph.import_context import Context, handles, pair
from mcfhe.graph.nodes import AvgPool2d, Concat, Flatten, window_count
from mcfhe.graph.symbolic import Value


def _pool(
    context: Context,
    value: Any,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    divisor: int | None = None,
) -> Value:
    if kernel == (1, 1) == stride and padding == (0, 0) and divisor in (None, 1):
        return Value(context.node(value), symbolic.IDENTITY)
    size = kernel[0] * kernel[1] if divisor is None else divisor
    pool = AvgPool2d(
        name=context.name,
        inputs=(context.node(value),),
        kernel=kernel,
        stride=stride,
        padding=padding,
        divisor=size,
    )
    return context.append(pool)


@handles("avg_pool2d")
def _avg_pool2d(
    context: Context,
    self: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    kernel, pads = pair(kernel_size), pair(padding)
    steps = pair(stride) if stride else kernel
    size = context.builder.shapes[context.node(self)][1:]
    floor = tuple(window_count(*axis) for axis in zip(size, kernel, steps, pads, strict=True))
    if context.output_shape is not None and tuple(context.output_shape[2:]) != floor:
        context.refuse(
            f"has ceil_mode=True and windows that overhang {size}; use ceil_mode=False, or sizes that divide"
        )
    inside = all(_inside(*axis) for axis in zip(size, kernel, steps, pads, strict=True))
    if divisor_override is None and not count_include_pad and not inside:
        context.refuse("divides windows at the border by fewer pixels; use count_include_pad=True or padding=0")
    if divisor_override is not None and divisor_override < 1:
        context.refuse(f"has divisor_override={divisor_override}; use a positive one")
    return _pool(context, self, kernel, steps, pads, divisor_override)


def _inside(size: int, kernel: int, stride: int, padding: int) -> bool:
    """Do all windows of one axis lie on the input, none on padding?"""
    last = (window_count(size, kernel, stride, padding) - 1) * stride - padding
    return padding == 0 and last + kernel <= size


@handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(context: Context, self: Any, output_size: Sequence[int]) -> Value:
    size = context.builder.shapes[context.node(self)][1:]
    if context.output_shape is None or any(n % m for n, m in zip(size, context.output_shape[2:], strict=True)):
        context.refuse(f"makes {tuple(output_size)} of {size} with windows of different sizes; use sizes that divide")
    kernel = pair([n // m for n, m in zip(size, context.output_shape[2:], strict=True)])
    return _pool(context, self, kernel, kernel)


@handles("mean")
def _mean(
    context: Context,
    self: Any,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: Any = None,
    *,
    divisor: int | None = None,
) -> Value:
    shape = context.builder.shapes[context.node(self)]
    dims = {d % (len(shape) + 1) for d in dim or ()}
    if len(shape) != 3 or dims != {2, 3}:
        context.refuse(f"reduces the dimensions {dim}; only all positions, (2, 3), of [batch, C, H, W] can be")
    pooled = _pool(context, self, pair(shape[1:]), pair(shape[1:]), divisor=divisor)
    return pooled if keepdim else reshape(context, pooled)


@handles("sum")
def _sum(context: Context, **arguments: Any) -> Value:
    return _mean(context, **arguments, divisor=1)


@handles("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "_unsafe_view", "view_as", "reshape_as")
def reshape(context: Context, self: Value, **_: Any) -> Value:
    if context.output_shape is None or not context.output_shape or context.output_shape[0] != context.batch:
        context.refuse(f"reshapes to {context.output_shape}, across images; keep the batch in front: view(batch, -1)")
    shape = tuple(context.output_shape[1:])
    if shape == context.shape(self):
        return Value(self.base, self.coefficients, self.name)
    if len(shape) == 1:
        base = context.builder.materialise(self)
        return context.append(Flatten(name=context.name, inputs=(base,)))
    return Value(self.base, self.coefficients, self.name, shape)


@handles("cat", "concat", "concatenate")
def _concat(context: Context, tensors: Sequence[Any], dim: int = 0) -> Value:
    sources = tuple(context.node(value) for value in tensors)
    rank = len(context.builder.shapes[sources[0]]) + 1
    if dim % rank != 1:
        context.refuse(f"concatenates along dimension {dim}; only channels, dim=1, can be")
    if len(sources) == 1:
        return Value(sources[0], symbolic.IDENTITY)
    return context.append(Concat(name=context.name, inputs=sources))


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(context: Context, input: Value, p: float = 0.5, train: bool = False) -> Value:
    if train and p > 0:
        context.refuse("drops values at random; call model.eval()")
    return input


@handles("alias", "clone", "contiguous", "detach", "to", "_to_copy", "type_as", "positive")
def _same(context: Context, self: Value, **arguments: Any) -> Value:
    # A copy, another layout or precision: the same number. A cast to integers would round.
    dtype = arguments.get("dtype")
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        context.refuse(f"casts to {dtype}, which rounds; stay in floating point")
    return self
