"""The exact constants of a program as residues modulo every limb of one basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcfhe.engine.schedule import Item
from mcfhe.graph.steps import (
    AddStep,
    ConcatStep,
    Conv2dStep,
    LinearStep,
    PolyStep,
    PoolStep,
    TensorSquareStep,
)

RESIDUE_BYTES = 8


@dataclass(frozen=True, eq=False)
class Binding:
    """The constants of one modular basis: per item, residues [L, ...]."""

    moduli: Tensor
    constants: tuple[dict[str, Tensor], ...]

    def limbs(self, start: int, stop: int) -> Binding:
        """The same for limbs start .. stop - 1."""
        return Binding(self.moduli[start:stop], tuple({k: v[start:stop] for k, v in c.items()} for c in self.constants))

    def copy(self) -> Binding:
        """The same values in dense tensors of its own."""
        dense = torch.contiguous_format
        return Binding(
            self.moduli.clone(memory_format=dense),
            tuple({k: v.clone(memory_format=dense) for k, v in c.items()} for c in self.constants),
        )

    def tensors(self) -> list[Tensor]:
        """Moduli and constants, in the same order for every basis of one program."""
        return [self.moduli, *(t for c in self.constants for t in c.values())]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * RESIDUE_BYTES for t in self.tensors())


def bind(items: Sequence[Item], moduli: Sequence[int], device: torch.device) -> Binding:
    """Reduce every constant modulo every limb: O(constants * limbs) Python integers."""
    return Binding(
        torch.tensor(list(moduli), dtype=torch.int64, device=device),
        tuple({k: v.to(device) for k, v in _constants(item, moduli).items()} for item in items),
    )


def _constants(item: Item, moduli: Sequence[int]) -> dict[str, Tensor]:
    step, out = item.step, {}
    if isinstance(step, (Conv2dStep, LinearStep)) and step.bias is not None:
        out["bias"] = _residues(step.bias, moduli)
    poly = step if isinstance(step, (PolyStep, TensorSquareStep)) else item.poly
    pool = step if isinstance(step, PoolStep) else item.pool
    factor = 1 if pool is None else pool.factor
    if poly is not None:
        rows = poly.coefficients
        if isinstance(poly, TensorSquareStep):  # sums are linear: the square's coefficients take the pool's factor
            rows = tuple((factor * a0, factor * a1, factor * a2) for a0, a1, a2 in rows)
            factor = 1
        if isinstance(poly, PolyStep) or any(row != (0, 0, 1) for row in rows):
            flat = [c for row in rows for c in row]
            out["poly"] = _residues(flat, moduli).reshape(len(moduli), len(rows), len(rows[0]))
    if factor != 1:
        out["factor"] = _residues([factor], moduli)[:, 0]
    if isinstance(step, (AddStep, ConcatStep)):
        for i, factor in enumerate(step.factors):
            if factor != 1:
                out[f"factor{i}"] = _residues([factor], moduli)[:, 0]
    return {name: value.contiguous() for name, value in out.items()}


def _residues(values: Sequence[int], moduli: Sequence[int]) -> Tensor:
    """Exact integers modulo every limb: int64 [L, len(values)]."""
    return torch.tensor([[v % b for v in values] for b in moduli], dtype=torch.int64).reshape(len(moduli), len(values))
