"""The integer program: what is computed, as exact arithmetic on the integers, before any modulus.

A program is a straight line of steps. Value 0 is the input; step i reads the values named in ``inputs`` and
produces value i + 1; the last value is the output (the scores). Every number here is an exact integer: weights are
small and int64, constants are Python ints of any size. The same steps are evaluated three ways, and must agree bit
for bit: modulo each limb by the engine, on Python ints by :mod:`mcfhe.graph.integers` (the oracle), and in
intervals by :mod:`mcfhe.graph.certificate`.

A lattice program is the same line of steps over a :class:`Ring`, with three more kinds of them. Its integers are the
contents of ciphertext slots, which only approximate what the steps say; so it has its own oracle, ciphertext by
ciphertext (tests), and is simulated with the noise it is expected to have (:mod:`mcfhe.lattice.noise`).

Shapes leave out limbs and stream: a feature map is ``(C, H, W)``, a vector is ``(K,)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mcfhe.graph.order import Level, Order


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One operation. ``name`` is the layer in the user's model it came from."""

    kind: ClassVar[str]
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    order: Order


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2dStep(Step):
    """y[o] = sum over taps of weight[o, c, i, j] * x[c, ...] + bias[o], zero padding, as torch.nn.functional.conv2d."""

    kind = "conv2d"
    weight: np.ndarray  # int64 [O, C / groups, kh, kw], |q| < 2**31
    bias: tuple[int, ...] | None  # O exact integers
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearStep(Step):
    """y[o] = sum_k weight[o, k] * x[k] + bias[o]."""

    kind = "linear"
    weight: np.ndarray  # int64 [O, K], |q| < 2**31
    bias: tuple[int, ...] | None  # O exact integers


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolStep(Step):
    """y = factor * (sum of the window), zero padding; factor is round(Delta / divisor)."""

    kind = "sum_pool2d"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    factor: int


@dataclass(frozen=True, eq=False, kw_only=True)
class PolyStep(Step):
    """y = sum_i coefficients[c][i] * x**i; one row for all channels or one row a channel. (0, 0, 1) is a square."""

    kind = "poly"
    coefficients: tuple[tuple[int, ...], ...]  # [1 or C][degree + 1], degree >= 1


@dataclass(frozen=True, eq=False, kw_only=True)
class AddStep(Step):
    """y = factors[0] * x0 + factors[1] * x1: an addition with both operands aligned."""

    kind = "align_add"
    factors: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class ConcatStep(Step):
    """Channels of all inputs one after the other, input i multiplied by factors[i] (its alignment)."""

    kind = "concat"
    factors: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class FlattenStep(Step):
    """(C, H, W) -> (C * H * W,), row major."""

    kind = "flatten"


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorSquareStep(Step):
    """y = A0 + A1 x + A2 x**2 of a ciphertext (x0, x1): the three components of its tensor product with itself.

    With A2 = 0 in every row it is linear, and the third component is 0.
    """

    kind = "tensor_square"
    coefficients: tuple[tuple[int, int, int], ...]  # [1 or C] rows (A0, A1, A2)


@dataclass(frozen=True, eq=False, kw_only=True)
class RelineariseStep(Step):
    """Three components back to two, by the relinearisation key."""

    kind = "relinearise"


@dataclass(frozen=True, eq=False, kw_only=True)
class RescaleStep(Step):
    """x / q rounded, q the last modulus of its level, which is dropped."""

    kind = "rescale"


@dataclass(frozen=True, eq=False, kw_only=True)
class DropStep(Step):
    """The same ciphertext on its first ``limbs`` limbs: what is left of the modulus is wide enough for what follows."""

    kind = "drop_limbs"
    limbs: int


RING_STEPS = (RelineariseStep, RescaleStep, DropStep)


@dataclass(frozen=True)
class Ring:
    """Z[X] / (X^degree + 1) modulo each of ``moduli``; ``special`` is the modulus of key switching alone.

    A residue tensor's stream holds ``components`` runs of ``degree`` residues: polynomials in NTT form.
    """

    degree: int
    moduli: tuple[int, ...]
    special: int


@dataclass(frozen=True, eq=False, kw_only=True)
class IntegerProgram:
    """Steps with the shape and order of their input.

    A lattice program has a ``ring`` and ``levels``: that of the input, then those of the steps' values. Its orders are
    (0, log2 of the level's scale, rounded).
    """

    steps: tuple[Step, ...]
    input_shape: tuple[int, int, int]
    input_order: Order
    ring: Ring | None = None
    levels: tuple[Level, ...] = ()

    @property
    def output_order(self) -> Order:
        return self.steps[-1].order if self.steps else self.input_order

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.steps[-1].shape if self.steps else self.input_shape
