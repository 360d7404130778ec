"""What a curious server sees, and nothing else: the client spec (or its own program), requests, known pixels.

No module of this package imports secret-key code; tests/test_audit.py holds them to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mcfhe.errors import MismatchError, ParameterError
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request, check_match

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class View:
    """Everything an attack may use.

    Lane positions belong to the key, so requests of one key are one view: their images are put side by side.
    ``noise_span`` is how many values e may take as far as the spec tells (the client may use fewer), at least 1.
    """

    moduli: tuple[int, ...]
    amplification: int
    scale: int
    lanes: int
    profile: str
    noise_span: int
    table: tuple[tuple[int, ...], ...]
    shape: tuple[int, int, int]
    ciphertext: np.ndarray  # int64 [N, batch, M, C * H * W], 0 <= r < b_p
    public_key: np.ndarray | None  # int64 [N, batch, M]
    known: np.ndarray  # int16 [batch, C * H * W]: a known pixel 0..255, or UNKNOWN

    @staticmethod
    def of(
        spec: ClientSpec, requests: Sequence[Request], known: np.ndarray | None = None, images: int | None = None
    ) -> View:
        """The view of one or more requests made with one key.

        known: integers ``[batch, C, H, W]``, -1 where unknown. images: use only so many of the images. MismatchError
        if a request is not for ``spec`` or the requests are not of one key; ParameterError for another shape.
        """
        if not requests:
            raise ParameterError("requests: one or more are needed")
        first = requests[0]
        for request in requests:
            check_match("request", "program_id", request.program_id, spec.program_id)
            check_match("request", "key_id", request.key_id, first.key_id)
            if (request.lanes, request.profile) != (first.lanes, first.profile):
                raise MismatchError("requests: lanes or profile differ, so they are not of one key")
            if tuple(request.ciphertext.shape[1:4]) != spec.input_shape:
                raise MismatchError(
                    f"request: images of shape {list(request.ciphertext.shape[1:4])}, {list(spec.input_shape)} expected"
                )
            request.check_ranges()
        if max(abs(value) for row in spec.table for value in row) >= 1 << 40:
            raise ParameterError("client spec: the table holds a value of 40 bits or more; no program makes one")
        limbs, lanes, size = len(first.evaluation_key.moduli), first.lanes, math.prod(spec.input_shape)
        batch = sum(r.batch for r in requests)
        wanted = batch if images is None else images
        parts = [r.ciphertext.numpy().reshape(limbs, size, -1, lanes).transpose(0, 2, 3, 1) for r in requests]
        ciphertext = np.concatenate([part[:, :wanted] for part in parts], axis=1)[:, :wanted]
        public_key = None
        if first.public_key is not None:
            keys = [r.public_key.numpy().reshape(limbs, -1, lanes) for r in requests if r.public_key is not None]
            public_key = np.concatenate(keys, axis=1)[:, :wanted]
        if known is None:
            known = np.full((batch, size), UNKNOWN)
        elif known.shape != (batch, *spec.input_shape) or known.min() < UNKNOWN or known.max() > 255:
            raise ParameterError(f"known: integers -1..255 of shape {[batch, *spec.input_shape]} expected")
        return View(
            moduli=tuple(first.evaluation_key.moduli),
            amplification=first.evaluation_key.amplification,
            scale=first.evaluation_key.scale,
            lanes=lanes,
            profile=first.profile,
            noise_span=max(1, spec.profile(first.profile).max_noise),
            table=spec.table,
            shape=spec.input_shape,
            ciphertext=np.ascontiguousarray(ciphertext),
            public_key=public_key,
            known=known.reshape(batch, size)[:wanted].astype(np.int16),
        )

    @property
    def batch(self) -> int:
        return int(self.ciphertext.shape[1])

    @property
    def size(self) -> int:
        """Pixels of an image, all channels: C * H * W."""
        return int(self.ciphertext.shape[3])

    @property
    def per_image(self) -> bool:
        """Whether an image's lanes are multiples of its plain pixels (patent), not pixels under the key (hardened)."""
        return self.profile == "patent"

    @cached_property
    def channel(self) -> np.ndarray:
        """int64 [C * H * W]: the channel of every pixel."""
        return np.repeat(np.arange(self.shape[0]), self.shape[1] * self.shape[2])

    @cached_property
    def plain_bound(self) -> int:
        """Largest |PT| in the table, at least 1."""
        return max([1, *(abs(value) for row in self.table for value in row)])

    @cached_property
    def value_range(self) -> tuple[int, int]:
        """(low, high): every true V is in low <= V <= high."""
        values = [value for row in self.table for value in row]
        if not self.per_image:
            return self.amplification * min(values), self.amplification * max(values) + self.noise_span - 1
        factor = self.amplification * self.scale + self.noise_span - 1
        return min(0, factor * min(values)), max(0, factor * max(values))

    @cached_property
    def value_bound(self) -> int:
        """Largest |V|, at least 1."""
        return max([1, *(abs(v) for v in self.value_range)])

    def limbs_beyond(self, product: int) -> list[int] | None:
        """The fewest limbs, widest first, whose moduli multiply to more than ``product``; None if all do not."""
        chosen: list[int] = []
        held = 1
        for limb in sorted(range(len(self.moduli)), key=lambda p: -self.moduli[p]):
            if held > product:
                break
            chosen.append(limb)
            held *= self.moduli[limb]
        return chosen if held > product else None
