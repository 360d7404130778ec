"""The activation that encrypted evaluation can run: a polynomial of low degree with trainable coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcfhe.errors import ParameterError

#: Close to the least-squares fit of ReLU for a standard normal input, (1 + x^2) / sqrt(8 pi) + x / 2; such an input is
#: what batch normalisation delivers. The constant is dropped and the rest are dyadic, so that rounding to a scale of
#: two bits or more leaves the initial activation exact.
RELU_FIT = (0.0, 0.5, 0.25)

MAX_DEGREE = 16


class PolyActivation(nn.Module):
    """Elementwise polynomial ``y = c_0 + c_1 x + ... + c_D x^D``.

    Args:
        coefficients: the initial ``c_0 .. c_D``, finite, 1 <= D <= 16; one row for all channels.
        num_channels: None for one polynomial shared by all channels, else C: every channel trains its own row.

    Attributes:
        coefficients: trainable ``Parameter``, ``[D + 1]`` when shared, ``[C, D + 1]`` per channel; lowest power first.
        fitted_range: (lower, upper) of the inputs that the coefficients were fitted on, or None; not part of the state.

    Shape:
        shared: any shape to the same shape; per channel: ``[batch, C, ...]`` to the same shape. Any floating dtype.

    Evaluation is Horner's rule in plain multiplications and additions, so ``torch.export`` shows nothing else. Every
    degree costs one ciphertext multiplication and one order of the scale, hence degree 2 by default.

    Raises:
        ParameterError: no degree of 1 or more, a coefficient that is not finite, an input of other channels than C.
    """

    coefficients: nn.Parameter
    initial: tuple[float, ...]
    num_channels: int | None
    fitted_range: tuple[float, float] | None

    def __init__(self, coefficients: Sequence[float] = RELU_FIT, num_channels: int | None = None) -> None:
        super().__init__()
        self.initial = tuple(float(c) for c in coefficients)
        if not 2 <= len(self.initial) <= MAX_DEGREE + 1:
            raise ParameterError(
                f"coefficients: {len(self.initial)} of them; a degree of 1..{MAX_DEGREE} has 2..{MAX_DEGREE + 1}"
            )
        if not all(math.isfinite(c) for c in self.initial):
            raise ParameterError(f"coefficients: {self.initial} must all be finite")
        if num_channels is not None and num_channels < 1:
            raise ParameterError(f"num_channels: {num_channels}; use None for one shared polynomial, or 1 and more")
        self.num_channels = num_channels
        self.fitted_range = None
        rows = () if num_channels is None else (num_channels,)
        self.coefficients = nn.Parameter(torch.empty(*rows, len(self.initial)))
        self.reset_parameters()

    @property
    def degree(self) -> int:
        """D."""
        return len(self.initial) - 1

    def reset_parameters(self) -> None:
        """Put the initial coefficients back, in every channel."""
        with torch.no_grad():
            self.coefficients.copy_(self.coefficients.new_tensor(self.initial).expand_as(self.coefficients))

    def forward(self, x: Tensor) -> Tensor:
        if self.num_channels is None:
            terms = [self.coefficients[i] for i in range(self.degree + 1)]
        else:
            # Checked, because a single channel would otherwise broadcast over any number of them.
            if x.dim() < 2 or x.shape[1] != self.num_channels:
                raise ParameterError(
                    f"PolyActivation: input of shape {tuple(x.shape)}, expected [batch, {self.num_channels}, ...]"
                )
            shape = (1, self.num_channels) + (1,) * (x.dim() - 2)
            terms = [self.coefficients[:, i].reshape(shape) for i in range(self.degree + 1)]
        y = x * terms[-1] + terms[-2]
        for term in reversed(terms[:-2]):
            y = y * x + term
        return y

    def extra_repr(self) -> str:
        channels = "shared" if self.num_channels is None else f"num_channels={self.num_channels}"
        if self.coefficients.is_meta or self.num_channels is not None:
            return f"degree={self.degree}, {channels}"
        values = ", ".join(f"{c:.4g}" for c in self.coefficients.tolist())
        return f"degree={self.degree}, {channels}, coefficients=({values})"
