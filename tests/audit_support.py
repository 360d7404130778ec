"""Both sides of an audit: a client that encrypts real images, and what the server sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import mcfhe
from mcfhe.modular import audit
from mcfhe.modular.audit import Finding, View
from mcfhe.wire import Request
from tests.modular_support import LinearServer


def real_images(count: int) -> torch.Tensor:
    """uint8 [count, 1, 28, 28], Fashion-MNIST test images."""
    return mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test", limit=count).images


@dataclass
class Case:
    """A client, its images and its request."""

    server: LinearServer
    client: mcfhe.Client
    images: np.ndarray
    request: Request

    @staticmethod
    def make(
        images: torch.Tensor | np.ndarray,
        profile: str,
        lanes: int = 4,
        limbs: int = 8,
        scale_bits: int = 8,
        amplification: int = 16,
        modulus_bits: int = 30,
        **key: Any,
    ) -> Case:
        """``limbs`` moduli or a few more, without any redundancy among them."""
        server = LinearServer(
            tuple(images.shape[1:]),
            growth=1 << max(0, limbs * modulus_bits - 64),
            scale_bits=scale_bits,
            amplification=amplification,
            modulus_bits=modulus_bits,
        )
        client = mcfhe.Client.generate(server.spec, lanes=lanes, profile=profile, **key)
        return Case(server, client, np.asarray(images), client.encrypt(images))

    def view(self, known: np.ndarray | None = None) -> View:
        return View.of(self.server.spec, [self.request], known)

    def known(self, pixels: Sequence[tuple[int, int]] = ((0, 0), (14, 14), (20, 9))) -> np.ndarray:
        """A few true pixels of every image."""
        known = np.full(self.images.shape, audit.UNKNOWN)
        for y, x in pixels:
            known[:, :, y, x] = self.images[:, :, y, x]
        return known

    def attack(self, name: str) -> Finding:
        view = self.view(self.known() if name == "constant" else None)
        finding = audit.attack(lambda: audit.ATTACKS[name](view))
        self.check(finding)
        return finding

    def check(self, finding: Finding) -> None:
        """Whatever was recovered is true."""
        table = np.array(self.server.spec.table)
        for index, image in finding.images.items():
            plain = np.stack([row[channel] for row, channel in zip(table, self.images[index], strict=True)])
            assert (image.plain == plain).all()
            if image.unique:
                assert (image.pixels == self.images[index]).all()
        truth = self.client.secret_key.positions
        assert all(w is None or w == t for w, t in zip(finding.positions, truth, strict=False))

    def whole(self, finding: Finding) -> bool:
        """Every image exact."""
        return finding.outcome == "recovered" and sorted(finding.images) == list(range(len(self.images)))

    def all_positions(self, finding: Finding) -> bool:
        """Every position that the request tells is found.

        With residues of few bits a decoy may hold what the true lane holds in every image, 63 / b**2 a limb for 64
        lanes and two images of the patent profile. No one could tell such lanes apart, and an attack must claim none.
        """
        return list(finding.positions) == [
            position if self._tells(limb, position) else None
            for limb, position in enumerate(self.client.secret_key.positions)
        ]

    def _tells(self, limb: int, position: int) -> bool:
        lanes = self.view().ciphertext[limb].swapaxes(0, 1)
        same: np.ndarray = (lanes == lanes[position]).all(axis=(1, 2))
        return int(same.sum()) == 1
