"""A client spec and a linear "server" in numpy and Python ints: tests of the modular scheme need no engine."""

from __future__ import annotations

import numpy as np
import torch

from mcfhe.graph.order import Order
from mcfhe.spec import ClientSpec, ProfileSpec
from mcfhe.wire import Request, Response

PROGRAM_ID = "c0ffee42" * 8
WEIGHT_BITS = 6


def pixel_table(channels: int, scale: int) -> tuple[tuple[int, ...], ...]:
    """round(scale * (u / 255 - mean) / std), another mean for each channel."""
    return tuple(tuple(round(scale * (u / 255 - 0.3 - 0.1 * c) / 0.35) for u in range(256)) for c in range(channels))


class LinearServer:
    """scores = weights @ pixels, evaluated modulo each limb in every lane, and on Python ints as the oracle.

    ``growth`` is a large integer factor: it makes the outputs, and so the basis, as long as wanted.
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (1, 4, 5),
        labels: int = 3,
        *,
        growth: int = 1,
        scale_bits: int = 6,
        amplification: int = 16,
        modulus_bits: int = 30,
        guard_bits: int = 32,
        program_id: str = PROGRAM_ID,
        seed: int = 1,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randint(-31, 32, (labels, int(np.prod(shape))), generator=generator).numpy()
        self.growth = growth
        scale = 1 << scale_bits
        table = pixel_table(shape[0], scale)
        largest = max(abs(v) for row in table for v in row)
        row_sum = int(np.abs(self.weights).sum(axis=1).max()) * growth
        noise = amplification // 2
        inputs = {
            "patent": (Order(1, 2 * scale_bits), (amplification * scale + noise) * largest),
            "hardened": (Order(1, scale_bits), amplification * largest + noise),
        }
        self.spec = ClientSpec(
            program_id=program_id,
            input_shape=shape,
            scale_bits=scale_bits,
            amplification=amplification,
            modulus_bits=modulus_bits,
            guard_bits=guard_bits,
            table=table,
            labels=tuple(f"label {i}" for i in range(labels)),
            profiles={
                name: ProfileSpec(order, order.scaled(WEIGHT_BITS + growth.bit_length() - 1), bound * row_sum, noise)
                for name, (order, bound) in inputs.items()
            },
        )

    def evaluate(self, request: Request) -> Response:
        rows = []
        for x, b in zip(request.ciphertext.numpy().astype(object), request.evaluation_key.moduli, strict=True):
            flat = x.reshape(-1, x.shape[-1])
            rows.append((self.weights.astype(object) @ flat * self.growth % b).astype(np.int64))
        return Response.for_request(request, torch.from_numpy(np.stack(rows)))

    def evaluate_integers(self, integers: np.ndarray) -> list[list[int]]:
        flat = integers.reshape(len(integers), -1)
        return [
            [sum(int(w) * int(v) for w, v in zip(row, x, strict=True)) * self.growth for row in self.weights]
            for x in flat
        ]


def random_images(batch: int, shape: tuple[int, int, int], seed: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
