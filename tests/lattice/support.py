"""Small lattice programs, and the same programs evaluated by SEAL."""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

import mcfhe
from mcfhe.graph.nodes import Graph
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
    Ring,
    TensorSquareStep,
)
from mcfhe.lattice import seal as boundary
from mcfhe.lattice.lower import Placement, lower_lattice
from mcfhe.lattice.plan import make_ring
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.seal import Seal

Ciphertexts = np.ndarray  # of SEAL's ciphertexts, shaped as a value: (C, H, W) or (K,)


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def small_program(**arguments: Any) -> LatticeProgram:
    """2 x 3 x 3 pixels, a convolution, a square, two scores: n = 4,096 with 3 limbs of 2 ciphertext sizes."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 1, 2), Square(), nn.Flatten(), nn.Linear(4, 2)).eval()
    defaults: dict[str, Any] = {"scale_bits": 4, "precision_bits": 5, "std": 2.0, "degree": 4096}
    program = mcfhe.compile(model, (2, 3, 3), scheme="lattice", **(defaults | arguments))
    assert isinstance(program, LatticeProgram)
    return program


@cache
def small_ring(degree: int, limbs: int, first_bits: int = 30) -> Ring:
    return make_ring(degree, limbs, first_bits)


class AnySeal(Seal):
    """SEAL's context without its security check, so that rings may be small."""

    def __post_init__(self) -> None:
        assert self.context.parameters_set()

    @property
    def _level(self) -> Any:
        import tenseal.sealapi as sealapi

        return sealapi.SEC_LEVEL_TYPE.NONE


def lowered(graph: Graph, layer_bits: dict[str, int], ring: Ring, placements: dict[int, Placement]) -> IntegerProgram:
    return lower_lattice(graph, layer_bits, ring, Fraction(1 << 20), placements)


class TransparentError(Exception):
    """A ciphertext without a secret part, of terms that cancel: SEAL refuses to make one."""


class Oracle:
    """A lattice program step by step through SEAL's Evaluator. All scales are 1: residues do not depend on them."""

    def __init__(self, ring: Ring) -> None:
        import tenseal.sealapi as sealapi

        self.seal = AnySeal(ring)
        self.ring = ring
        self._api = sealapi
        self._evaluator = sealapi.Evaluator(self.seal.context)
        generator = sealapi.KeyGenerator(self.seal.context)
        self._keys = sealapi.RelinKeys()
        generator.create_relin_keys(self._keys)
        self.keys = torch.from_numpy(self.seal.key_residues(self._keys))

    def run(self, program: IntegerProgram, x: torch.Tensor) -> torch.Tensor:
        """Residues ``[L, C, H, W, 2 n]`` -> ``[L', labels, components * n]``. May raise TransparentError."""
        first = np.empty(program.input_shape, object)
        for at in np.ndindex(*first.shape):
            first[at] = self.seal.ciphertext(x[(slice(None), *at)].numpy(), 1.0)
        values = [first]
        for step in program.steps:
            values.append(self._step(program, step, len(values), [values[i] for i in step.inputs]))
        last = values[-1]
        rows = [self.seal.residues(last[at]).astype(np.int64) for at in np.ndindex(*last.shape)]
        return torch.from_numpy(np.stack(rows, 1)).reshape(len(rows[0]), *last.shape, -1)

    def _step(self, program: IntegerProgram, step: Any, index: int, inputs: list[Ciphertexts]) -> Ciphertexts:
        x, limbs = inputs[0], program.levels[index].limbs
        if isinstance(step, FlattenStep):
            return x.reshape(-1)
        if isinstance(step, ConcatStep):
            aligned = [self._times(v, f, limbs) for v, f in zip(inputs, step.factors, strict=True)]
            return np.concatenate(aligned)
        if isinstance(step, AddStep):
            a, b = (self._times(v, f, limbs) for v, f in zip(inputs, step.factors, strict=True))
            return self._each(lambda u, v: self._sum([u, v]), a, b)
        if isinstance(step, RescaleStep):
            return self._each(lambda v: self._call("rescale_to_next", v), x)
        if isinstance(step, DropStep):
            return self._each(lambda v: self._lowered(v, limbs), x)
        if isinstance(step, RelineariseStep):
            return self._each(lambda v: self._call("relinearize", v, self._keys), x)
        if isinstance(step, TensorSquareStep):
            rows = step.coefficients
            y = np.empty(step.shape, object)
            for at in np.ndindex(*step.shape):
                a0, a1, a2 = rows[at[0] if len(rows) > 1 else 0]
                z = self._lowered(x[at], limbs)
                y[at] = self._affine([(a2, self._call("square", z)), (a1, z)], a0)
            return y
        y = np.empty(step.shape, object)
        for at in np.ndindex(*step.shape):
            y[at] = self._affine(*self._taps(step, x, at))
        return y

    def _taps(self, step: Any, x: Ciphertexts, at: tuple[int, ...]) -> tuple[list[tuple[int, Any]], int]:
        """(weight, ciphertext) of every tap of one output, and its bias."""
        bias = 0 if isinstance(step, PoolStep) or step.bias is None else step.bias[at[0]]
        if isinstance(step, LinearStep):
            return [(int(w), x[k]) for k, w in enumerate(step.weight[at[0]])], bias
        if isinstance(step, PoolStep):
            kernel = np.full((1, 1, *step.kernel), step.factor)
            first, dilation, row = at[0], (1, 1), kernel[0]
        else:
            assert isinstance(step, Conv2dStep)
            row, dilation = step.weight[at[0]], step.dilation
            first = at[0] // (len(step.weight) // step.groups) * row.shape[0]
        taps = []
        for c, i, j in np.ndindex(*row.shape):
            r = at[1] * step.stride[0] - step.padding[0] + i * dilation[0]
            s = at[2] * step.stride[1] - step.padding[1] + j * dilation[1]
            if 0 <= r < x.shape[1] and 0 <= s < x.shape[2]:
                taps.append((int(row[c, i, j]), x[first + c, r, s]))
        return taps, bias

    def _affine(self, terms: list[tuple[int, Any]], constant: int) -> Any:
        products = [self._product(w, v) for w, v in terms if w]
        total = self._sum(products)
        return self._call("add_plain", total, self._constant(constant, total)) if constant else total

    def _product(self, factor: int, x: Any) -> Any:
        return x if factor == 1 else self._call("multiply_plain", x, self._constant(factor, x))

    def _times(self, x: Ciphertexts, factor: int, limbs: int) -> Ciphertexts:
        return self._each(lambda v: self._product(factor, self._lowered(v, limbs)), x)

    def _sum(self, values: list[Any]) -> Any:
        if not values:
            raise TransparentError
        total = values[0]
        for value in values[1:]:
            total = self._call("add", total, value)
        return total

    def _lowered(self, x: Any, limbs: int) -> Any:
        while x.coeff_modulus_size() > limbs:
            x = self._call("mod_switch_to_next", x)
        return x

    def _constant(self, value: int, like: Any) -> Any:
        """A whole number as a plaintext: SEAL's own encoding where a double holds it, else the same by its residues."""
        plain, moduli = self._api.Plaintext(), self.ring.moduli[: like.coeff_modulus_size()]
        if abs(value) < 1 << 53 and 8 * abs(value) < prod(moduli):
            self.seal.encoder.encode(float(value), like.parms_id(), 1.0, plain)
            return plain
        rows = np.repeat(np.array([value % q for q in moduli], "<u8"), self.ring.degree)
        array = boundary._wrapped(struct.pack("<Q", rows.size) + rows.tobytes())
        body = struct.pack("<4QQd", *like.parms_id(), rows.size, 1.0) + array
        return self.seal._loaded(plain, boundary._wrapped(body), "plaintext")

    def _call(self, name: str, *arguments: Any) -> Any:
        result = self._api.Ciphertext()
        try:
            getattr(self._evaluator, name)(*arguments, result)
        except RuntimeError as error:
            if "transparent" in str(error):
                raise TransparentError from None
            raise
        result.scale = 1.0
        return result

    @staticmethod
    def _each(function: Any, *arrays: Ciphertexts) -> Ciphertexts:
        y = np.empty(arrays[0].shape, object)
        for at in np.ndindex(*y.shape):
            y[at] = function(*(a[at] for a in arrays))
        return y
