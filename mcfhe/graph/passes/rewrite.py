"""Moving an affine map per channel through a graph: what every folding pass is made of.

If a value v is replaced by u with v = g * u + h (g, h one number per channel), everything that reads v must absorb g
and h; if v is to become g * v + h, whatever makes v must. The layers that can:

- Linear, forwards: W (g u + h) = (W diag(g)) u + W h; backwards: g (W x + b) + h = (diag(g) W) x + (g b + h);
- Conv2d likewise, one channel at a time, except that a constant h does not pass forwards through zero padding: the
  padded zeros are zeros of v, and u would need -h / g there;
- a window sum passes g on as it is and h times the number of pixels in the window, again without padding only;
- Flatten repeats g and h for every pixel of a channel; Concat passes them on for its own channels.

All of it is exact algebra; in float64 every product or sum of constants is rounded once.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly

#: Nothing is divided by a leading coefficient below this: the other constants of the layer would grow by its inverse.
SMALLEST_LEADING = 2.0**-20


class Rewriter:
    """A graph whose constants are being rewritten. Indices and shapes stay; :meth:`graph` gives the result."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = list(graph.nodes)
        self.shapes = graph.shapes
        self._readers: list[list[tuple[int, int]]] = [[] for _ in graph.nodes]
        for index, node in enumerate(graph.nodes):
            for slot, source in enumerate(node.inputs):
                self._readers[source].append((index, slot))

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes))

    def channels(self, index: int) -> int:
        """Channels of a feature map, entries of a vector."""
        return self.shapes[index][0]

    def is_read_once(self, index: int) -> bool:
        """Is the value read by exactly one layer, once? The output is read by the client as well."""
        return len(self._readers[index]) == 1 and index != len(self.nodes) - 1

    def reader(self, index: int) -> int:
        """Position of the first layer that reads the value."""
        return self._readers[index][0][0]

    def push_forward(self, index: int, gain: np.ndarray, offset: np.ndarray) -> bool:
        """Let all readers of value v = ``index`` take u instead, v = gain * u + offset; ``[C]`` each.

        The caller then makes the layer produce u. False, and nothing changed, when some reader cannot absorb it.
        """
        changes: dict[int, Node] = {}
        if not self._collect(index, gain, offset, changes):
            return False
        for position, node in changes.items():
            self.nodes[position] = node
        return True

    def _collect(self, index: int, gain: np.ndarray, offset: np.ndarray, changes: dict[int, Node]) -> bool:
        if index == len(self.nodes) - 1:
            return False
        return all(self._absorb(reader, slot, gain, offset, changes) for reader, slot in self._readers[index])

    def _absorb(self, reader: int, slot: int, gain: np.ndarray, offset: np.ndarray, changes: dict[int, Node]) -> bool:
        node = changes.get(reader, self.nodes[reader])
        match node:
            case Linear():
                bias = added_bias(node.bias, node.weight @ offset)
                changes[reader] = replace(node, weight=node.weight * gain, bias=bias)
                return True
            case Conv2d():
                if offset.any() and any(node.padding):
                    return False
                weight, constants = _through_conv(node, gain, offset)
                changes[reader] = replace(node, weight=weight, bias=added_bias(node.bias, constants))
                return True
            case AvgPool2d():
                if offset.any() and any(node.padding):
                    return False
                return self._collect(reader, gain, offset * (math.prod(node.kernel) / node.divisor), changes)
            case Flatten():
                pixels = math.prod(self.shapes[reader]) // len(gain)
                return self._collect(reader, np.repeat(gain, pixels), np.repeat(offset, pixels), changes)
            case Concat():
                widths = [self.channels(source) for source in node.inputs]
                part = slice(sum(widths[:slot]), sum(widths[: slot + 1]))
                gains, offsets = np.ones(sum(widths)), np.zeros(sum(widths))
                gains[part], offsets[part] = gain, offset
                return self._collect(reader, gains, offsets, changes)
        return False

    def pull_back(self, index: int, gain: np.ndarray, offset: np.ndarray) -> bool:
        """Make ``index`` produce gain * v + offset in place of v, ``[C]`` each, by the constants of what makes it.

        False, and nothing changed, unless it is a Conv2d, a Linear or a sum of such (of which one takes the offset,
        and only a gain of 1 is taken), read by one layer only.
        """
        node = self.nodes[index]
        if not self.is_read_once(index):
            return False
        match node:
            case Conv2d() | Linear():
                bias = node.bias
                if bias is not None or offset.any():
                    bias = offset + gain * (0.0 if bias is None else bias)
                shape = (-1, *(1,) * (node.weight.ndim - 1))
                self.nodes[index] = replace(node, weight=node.weight * gain.reshape(shape), bias=bias)
                return True
            case Add() if (gain == 1).all():
                return any(self.pull_back(source, gain, offset) for source in node.inputs)
        return False


def added_bias(bias: np.ndarray | None, constants: np.ndarray) -> np.ndarray | None:
    """bias + constants, absent if there is nothing to add."""
    if bias is None:
        return constants if constants.any() else None
    total: np.ndarray = bias + constants
    return total


def leading(node: Poly) -> tuple[int, np.ndarray]:
    """Degree D >= 0 of a polynomial (of its channels' highest) and its coefficients of x**D, ``[1 or C]``."""
    used = np.flatnonzero(node.coefficients.any(axis=0))
    degree = int(used[-1]) if used.size else 0
    return degree, node.coefficients[:, degree]


def _through_conv(node: Conv2d, gain: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights for u and constants ``[O]``, where the input is gain * u + offset and nothing is padded."""
    outputs, per_group = node.weight.shape[:2]
    group = np.arange(outputs) // (outputs // node.groups)
    gains, offsets = gain.reshape(node.groups, per_group)[group], offset.reshape(node.groups, per_group)[group]
    taps = node.weight.sum(axis=(2, 3))
    return node.weight * gains[:, :, None, None], (taps * offsets).sum(axis=1)
