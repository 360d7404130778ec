"""The oracle: an integer program on plain Python integers, no residues and no floats anywhere.

A long Python integer is used as a vector. A row of a feature map over all images of a chunk, n values of either sign,
is packed into P = sum_i v_i * 2**(i * width), with ``width`` so large that no sum of the layer can leave its field:
then weight * P multiplies n values at once, P + Q adds them, and P << (j * width) moves them by j fields. Values are
taken apart again (after adding half a field everywhere, so that none is negative) for what is not linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np

from mcfhe.errors import ImageError
from mcfhe.graph.polynomial import evaluate
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    FlattenStep,
    IntegerProgram,
    LinearStep,
    PolyStep,
    PoolStep,
    Step,
)

# About this many bits of packed integers are worked on at a time: long enough that Python's own cost per operation
# does not count, short enough for the cache.
_PACKED_BITS = 1 << 18


def evaluate_integers(program: IntegerProgram, inputs: Any) -> list[list[int]]:
    """The scores of every image, exactly.

    Args:
        program: for one profile.
        inputs: the integers V that were encrypted, noise included: ``[batch, C, H, W]`` of Python ints or an integer
            dtype.

    Returns:
        For each image a list of Python ints, one for each score; a real score is the integer divided by
        ``program.output_order.denominator(a)``.
    """
    values = np.asarray(inputs)
    if values.ndim != 4 or values.shape[1:] != program.input_shape:
        raise ImageError(f"inputs: shape {values.shape}, the program takes [batch, {str(program.input_shape)[1:-1]}]")
    if values.dtype != object and not np.issubdtype(values.dtype, np.integer):
        raise ImageError(f"inputs: dtype {values.dtype}; exact integers are needed")
    values = values.astype(object, order="C")
    try:
        values.reshape(-1)[:] = [index(v) for v in values.flat]  # numpy's own integers would overflow
    except TypeError:
        raise ImageError("inputs: an entry is not an integer") from None
    scores: list[list[int]] = []
    chunk = _chunk_size(program)
    for first in range(0, len(values), chunk):
        scores += _evaluate_chunk(program, np.moveaxis(values[first : first + chunk], 0, -1))
    return scores


def _chunk_size(program: IntegerProgram) -> int:
    """Images at a time, from the row lengths of the maps and a guess of the integers' sizes."""
    row = max((step.shape[-1] if len(step.shape) == 3 else 1 for step in program.steps), default=1)
    return max(1, _PACKED_BITS // (row * max(64, program.output_order.k // 2)))


def _evaluate_chunk(program: IntegerProgram, images: np.ndarray) -> list[list[int]]:
    """``images``: object [C, H, W, batch]; the batch is the last axis of every value."""
    last_use = {source: i for i, step in enumerate(program.steps) for source in step.inputs}
    values: dict[int, np.ndarray] = {0: images}
    for i, step in enumerate(program.steps):
        values[i + 1] = _run(step, [values[source] for source in step.inputs])
        for source in set(step.inputs):
            if last_use[source] == i:
                del values[source]
    output = values[len(program.steps)]
    return [[int(v) for v in column] for column in output.reshape(-1, output.shape[-1]).T]


def _run(step: Step, inputs: Sequence[np.ndarray]) -> np.ndarray:
    x = inputs[0]
    match step:
        case Conv2dStep():
            return _conv(step, x)
        case LinearStep():
            return _linear(step, x)
        case PoolStep():
            return _pool(step, x)
        case PolyStep():
            rows = step.coefficients * (len(x) if len(step.coefficients) == 1 else 1)
            return np.stack([_poly(row, channel) for row, channel in zip(rows, x, strict=True)])
        case AddStep():
            total: np.ndarray = inputs[0] * step.factors[0] + inputs[1] * step.factors[1]
            return total
        case ConcatStep():
            return np.concatenate([value * factor for value, factor in zip(inputs, step.factors, strict=True)])
        case FlattenStep():
            return x.reshape(-1, x.shape[-1])
    raise TypeError(f"no evaluation for a step of kind {step.kind!r}")


def _poly(coefficients: Sequence[int], x: np.ndarray) -> np.ndarray:
    y = np.empty(x.shape, object)
    y.reshape(-1)[:] = [evaluate(coefficients, v) for v in x.flat]
    return y


class _Fields:
    """Packing of values of either sign into fields of ``width`` bits, a multiple of 8, for |v| < 2**(width - 1)."""

    def __init__(self, bound: int) -> None:
        self.bytes = bound.bit_length() // 8 + 1
        self.width = 8 * self.bytes
        self.half = 1 << (self.width - 1)
        self._halves: dict[int, int] = {}

    def halves(self, count: int) -> int:
        """2**(width - 1) in each of ``count`` fields."""
        if count not in self._halves:
            self._halves[count] = int.from_bytes((b"\0" * (self.bytes - 1) + b"\x80") * count, "little")
        return self._halves[count]

    def pack(self, values: Iterable[int], count: int) -> int:
        """sum_i values[i] * 2**(i * width)."""
        half, size = self.half, self.bytes
        data = b"".join([(v + half).to_bytes(size, "little") for v in values])
        return int.from_bytes(data, "little") - self.halves(count)

    def unpack(self, packed: int, count: int, skip: int = 0) -> list[int]:
        """The ``count`` values after the first ``skip`` fields; what lies above them is dropped."""
        total = skip + count
        packed = (packed + self.halves(total)) & ((1 << (self.width * total)) - 1)
        data = packed.to_bytes(self.bytes * total, "little")
        half, size, read = self.half, self.bytes, int.from_bytes
        return [read(data[i : i + size], "little") - half for i in range(size * skip, size * total, size)]


def _fields_for(x: np.ndarray, weight: np.ndarray) -> _Fields:
    """Fields that hold every value of x and every sum of weights times values of x."""
    largest = max(max(x.flat), -min(x.flat)) if x.size else 0
    factors = np.abs(weight).reshape(len(weight), -1).sum(axis=1)  # below 2**63: |q| < 2**31
    return _Fields(largest * max(1, int(factors.max())))


def _conv(step: Conv2dStep, x: np.ndarray) -> np.ndarray:
    """Row by row. Columns c of a row with c = r mod stride are packed together, their images side by side, so that
    under one tap all windows of an output row read neighbouring fields: the tap is a shift."""
    outputs, per_group, height_taps, width_taps = step.weight.shape
    _, height, _, batch = x.shape
    _, rows, columns = step.shape
    stride, pad, dilation = step.stride, step.padding, step.dilation
    fields = _fields_for(x, step.weight)
    packed = [
        [
            [fields.pack(line[phase :: stride[1]].flat, line[phase :: stride[1]].size) for phase in range(stride[1])]
            for line in channel
        ]
        for channel in x
    ]
    # Tap j of output column o reads column (o + shift_j) * stride + phase_j.
    taps = [divmod(j * dilation[1] - pad[1], stride[1]) for j in range(width_taps)]
    base = max(0, *(shift for shift, _ in taps))
    moves = [(phase, (base - shift) * batch * fields.width) for shift, phase in taps]
    weights = step.weight.tolist()
    y = np.empty((outputs, rows, columns, batch), object)
    for o in range(outputs):
        first = o // (outputs // step.groups) * per_group
        for row in range(rows):
            above = row * stride[0] - pad[0]
            sums = [0] * width_taps
            for i in range(height_taps):
                if 0 <= (line := above + i * dilation[0]) < height:
                    for c in range(per_group):
                        source, taps_of_row = packed[first + c][line], weights[o][c][i]
                        for j, (phase, _) in enumerate(moves):
                            if q := taps_of_row[j]:
                                sums[j] += q * source[phase]
            total = sum(part << move for part, (_, move) in zip(sums, moves, strict=True))
            y[o, row].flat = fields.unpack(total, columns * batch, base * batch)
        if step.bias is not None and step.bias[o]:
            y[o] += step.bias[o]
    return y


def _linear(step: LinearStep, x: np.ndarray) -> np.ndarray:
    """One packed integer of all images for each input."""
    batch = x.shape[1]
    fields = _fields_for(x, step.weight)
    packed = [fields.pack(row, batch) for row in x]
    y = np.empty((len(step.weight), batch), object)
    for o, weights in enumerate(step.weight.tolist()):
        y[o] = fields.unpack(sum(q * source for q, source in zip(weights, packed, strict=True) if q), batch)
        if step.bias is not None:
            y[o] += step.bias[o]
    return y


def _pool(step: PoolStep, x: np.ndarray) -> np.ndarray:
    _, rows, columns = step.shape
    (height, width), stride, pad = step.kernel, step.stride, step.padding
    padded = np.zeros((x.shape[0], x.shape[1] + 2 * pad[0], x.shape[2] + 2 * pad[1], x.shape[3]), object)
    padded[:, pad[0] : pad[0] + x.shape[1], pad[1] : pad[1] + x.shape[2]] = x
    windows = (
        padded[:, i : i + rows * stride[0] : stride[0], j : j + columns * stride[1] : stride[1]][:, :rows, :columns]
        for i in range(height)
        for j in range(width)
    )
    total = sum(windows, start=np.zeros((x.shape[0], rows, columns, x.shape[3]), object))
    return total * step.factor
