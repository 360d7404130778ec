"""A training penalty that keeps the inputs of polynomial activations in the range they are good in.

A polynomial has no saturation: one input far outside doubles its exponent at every square behind it, and a few such
images spoil the running statistics of batch normalisation for all. Boundary losses against this are usual for
polynomial networks (arXiv:2505.11589, section 3, has an exponential one); this one is quadratic outside the range.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcfhe.activations import PolyActivation

RANGE = 4.0  # batch normalisation delivers unit variance; of normal inputs one in 16,000 lies outside


class RangePenalty:
    """Sums ``mean(max(0, |x| - RANGE)**2)`` over the inputs x of all activations of ``model``, forward by forward.

    A context: the model is observed inside it, and is as before behind it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._terms: list[Tensor] = []
        self._activations = [module for module in model.modules() if isinstance(module, PolyActivation)]
        self._hooks = ExitStack()

    def __enter__(self) -> RangePenalty:
        for activation in self._activations:
            self._hooks.callback(activation.register_forward_pre_hook(self._observe).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _observe(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            self._terms.append(F.softshrink(inputs[0], RANGE).square().mean(dtype=torch.float32))

    def take(self) -> Tensor:
        """The penalty of the forward passes since the last call; a scalar with its gradient."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum()
