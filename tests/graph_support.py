"""Random small graphs and a naive oracle, shared by the tests of the compiler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Input, Linear, Node, Poly, infer_shape
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny in these tests: on a busy machine threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def naive(program: IntegerProgram, image: Any) -> list[int]:
    """One image [C, H, W], by the definitions and nothing but loops over Python ints."""
    values = [np.asarray(image, dtype=object)]
    for step in program.steps:
        x = values[step.inputs[0]]
        y = np.empty(step.shape, object)
        for at in np.ndindex(*step.shape):
            if isinstance(step, Conv2dStep):
                per_group = step.weight.shape[1]
                first = at[0] // (len(step.weight) // step.groups) * per_group
                y[at] = step.bias[at[0]] if step.bias else 0
                for c, i, j in np.ndindex(*step.weight.shape[1:]):
                    row = at[1] * step.stride[0] - step.padding[0] + i * step.dilation[0]
                    column = at[2] * step.stride[1] - step.padding[1] + j * step.dilation[1]
                    if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                        y[at] += int(step.weight[at[0], c, i, j]) * x[first + c, row, column]
            elif isinstance(step, LinearStep):
                weights = [int(q) for q in step.weight[at[0]]]
                y[at] = sum(q * v for q, v in zip(weights, x, strict=True)) + (step.bias[at[0]] if step.bias else 0)
            elif isinstance(step, PoolStep):
                rows = [at[1] * step.stride[0] - step.padding[0] + i for i in range(step.kernel[0])]
                columns = [at[2] * step.stride[1] - step.padding[1] + j for j in range(step.kernel[1])]
                inside = [(r, c) for r in rows for c in columns if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]]
                y[at] = step.factor * sum(x[at[0], r, c] for r, c in inside)
            elif isinstance(step, PolyStep):
                row = step.coefficients[at[0] if len(step.coefficients) > 1 else 0]
                y[at] = sum(c * x[at] ** i for i, c in enumerate(row))
            elif isinstance(step, AddStep):
                y[at] = sum(f * values[source][at] for f, source in zip(step.factors, step.inputs, strict=True))
            elif isinstance(step, ConcatStep):
                channels = [(f, v) for f, s in zip(step.factors, step.inputs, strict=True) for v in values[s]]
                factor, channel = channels[at[0]]
                y[at] = factor * (channel[at[1:]] if len(at) > 1 else channel)
            elif isinstance(step, FlattenStep):
                y[at] = x.reshape(-1)[at[0]]
        values.append(y)
    return [int(v) for v in values[-1].reshape(-1)]


def random_graph(random: Random, scale_bits: int = 3, whole: bool = False, layers: int = 4) -> Graph:
    """Input up to 3x6x6, up to ``layers`` random layers, then a vector of scores.

    Constants are multiples of 2**-scale_bits (whole: of 1), in about -2..2.
    """
    step = 1.0 if whole else 2.0**-scale_bits

    def constants(*shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return np.array([random.randint(-round(2 / step), round(2 / step)) * step for _ in range(count)]).reshape(shape)

    shape = (random.randint(1, 3), random.randint(2, 6), random.randint(2, 6))
    nodes: list[Node] = [Input(name="input", inputs=(), shape=shape)]
    shapes: list[tuple[int, ...]] = [shape]
    names = (f"layer{i}" for i in itertools.count())

    def append(node: Node) -> int:
        shapes.append(infer_shape(node, [shapes[i] for i in node.inputs]))
        nodes.append(node)
        return len(nodes) - 1

    def poly(source: int) -> int:
        rows = random.choice((1, shapes[source][0]))
        coefficients = constants(rows, random.randint(2, 4))
        if random.random() < 0.3:
            coefficients[:, -1] = random.choice((1.0, -1.0, 2.0))
        return append(Poly(name=next(names), inputs=(source,), coefficients=coefficients))

    x = 0
    for _ in range(random.randint(1, layers)):
        kind = random.choice(("conv", "pool", "poly", "add", "concat"))
        channels, *size = shapes[x]
        if kind == "conv":
            groups = random.choice([g for g in (1, channels) if channels % g == 0])
            kernel = [random.randint(1, 3) for _ in size]
            dilation = (random.randint(1, 2), random.randint(1, 2))
            padding = (random.randint(0, 2), random.randint(0, 2))
            outputs = groups * random.randint(1, 2)
            node: Node = Conv2d(
                name=next(names),
                inputs=(x,),
                weight=constants(outputs, channels // groups, *kernel),
                bias=constants(outputs) if random.random() < 0.5 else None,
                stride=(random.randint(1, 3), random.randint(1, 3)),
                padding=padding,
                dilation=dilation,
                groups=groups,
            )
            if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
                continue
            x = append(node)
        elif kind == "pool":
            kernel = [random.randint(1, min(3, s)) for s in size]
            x = append(
                AvgPool2d(
                    name=next(names),
                    inputs=(x,),
                    kernel=(kernel[0], kernel[1]),
                    stride=(random.randint(1, 3), random.randint(1, 3)),
                    padding=(random.randint(0, kernel[0] // 2), random.randint(0, kernel[1] // 2)),
                    divisor=random.choice((1, 2, 4)),
                )
            )
        elif kind == "poly":
            x = poly(x)
        elif kind == "add":
            x = append(Add(name=next(names), inputs=random.choice(((x, poly(x)), (poly(x), x), (x, x)))))
        else:
            x = append(Concat(name=next(names), inputs=(poly(x), x)))
    x = append(Flatten(name=next(names), inputs=(x,)))
    outputs = random.randint(1, 3)
    bias = constants(outputs) if random.random() < 0.5 else None
    append(Linear(name=next(names), inputs=(x,), weight=constants(outputs, shapes[x][0]), bias=bias))
    return Graph(tuple(nodes))


def random_integers(random: Random, shape: tuple[int, ...], limit: int) -> np.ndarray:
    """Object array of Python ints in -limit..limit."""
    values = np.empty(shape, object)
    values.reshape(-1)[:] = [random.randint(-limit, limit) for _ in range(values.size)]
    return values
