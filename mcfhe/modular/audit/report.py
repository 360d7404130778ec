"""What an attack found, and a report of all of them: one line each, JSON, a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mcfhe.container import write_file
from mcfhe.modular.audit.values import Image
from mcfhe.modular.audit.view import View

# recovered: something that encryption should hide came out; failed: it ran and found nothing; inapplicable: the profile
# or the parameters give it nothing to work on; skipped: it was not run (the detail says what it lacks).
OUTCOMES = ("recovered", "failed", "inapplicable", "skipped")


@dataclass(frozen=True, eq=False)
class Finding:
    """One attack's result.

    ``images``: recovered images by number, exact (see :class:`Image`). ``positions``: the lane of every limb, None
    where not found. ``structure``: other facts recovered, in words.
    """

    attack: str
    detail: str
    images: dict[int, Image] = field(default_factory=dict)
    positions: Sequence[int | None] = ()
    structure: str = ""
    outcome: str = "failed"
    seconds: float = 0.0

    @property
    def positions_found(self) -> int:
        return sum(w is not None for w in self.positions)

    def recovered(self, view: View) -> str:
        """What was recovered, in words that are the same in every run: part of the committed table."""
        parts = []
        if self.images:
            exact = "" if all(image.unique for image in self.images.values()) else " as far as the table tells"
            parts.append(f"pixels of {len(self.images)}/{view.batch} images{exact}")
        if self.positions_found:
            every = self.positions_found == len(view.moduli)
            parts.append("all positions" if every else f"positions of {self.positions_found}/{len(view.moduli)} limbs")
        if self.structure:
            parts.append(self.structure)
        return "; ".join(parts) or "nothing"

    def line(self, view: View) -> str:
        """One line for people."""
        return f"{self.attack:12} {self.outcome:12} {self.recovered(view)} in {self.seconds:.2f} s: {self.detail}"

    def to_json(self, view: View) -> dict[str, Any]:
        return {
            "attack": self.attack,
            "profile": view.profile,
            "outcome": self.outcome,
            "recovered": self.recovered(view),
            "images": sorted(self.images),
            "positions": list(self.positions),
            "seconds": round(self.seconds, 4),
            "detail": self.detail,
        }


@dataclass(frozen=True, eq=False)
class Report:
    """All findings on one view."""

    view: View
    findings: tuple[Finding, ...]

    @property
    def recovered(self) -> bool:
        """Whether any attack recovered anything."""
        return any(f.outcome == "recovered" for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Keys: recovered (bool), profile, limbs, lanes, images, moduli_bits, attacks [{attack, profile, outcome,
        recovered, images, positions, seconds, detail}]."""
        view = self.view
        return {
            "recovered": self.recovered,
            "profile": view.profile,
            "limbs": len(view.moduli),
            "lanes": view.lanes,
            "images": view.batch,
            "modulus_bits": max(b.bit_length() for b in view.moduli),
            "attacks": [f.to_json(view) for f in self.findings],
        }

    def lines(self) -> list[str]:
        return [f.line(self.view) for f in self.findings]

    def draw(self, path: str | os.PathLike[str], rows: int = 6) -> None:
        """Write a PNG: one row an image; what is on the wire (first limb, first lane), then what each attack saw."""
        from PIL import Image as Picture
        from PIL import ImageDraw

        view = self.view
        columns = [f for f in self.findings if f.images]
        rows = min(rows, view.batch)
        _, height, width = view.shape
        zoom = max(1, 112 // max(height, width))
        cell_h, cell_w, top, gap = height * zoom, max(width * zoom, 80), 18, 6
        size = ((1 + len(columns)) * (cell_w + gap) + gap, top + rows * (cell_h + gap) + gap)
        sheet = Picture.new("RGB", size, "white")
        pen = ImageDraw.Draw(sheet)
        for column, title in enumerate(["on the wire", *(f.attack for f in columns)]):
            pen.text((gap + column * (cell_w + gap), 3), title, fill="black")
        for row in range(rows):
            wire = view.ciphertext[0, row, 0].reshape(view.shape) * 256 // view.moduli[0]
            for column, pixels in enumerate([wire.astype(np.uint8), *(_pixels(f, row) for f in columns)]):
                if pixels is None:
                    continue
                planes = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
                drawn = Picture.fromarray(np.ascontiguousarray(planes)).resize((width * zoom, cell_h), 0)
                sheet.paste(drawn.convert("RGB"), (gap + column * (cell_w + gap), top + row * (cell_h + gap)))
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        write_file(path, buffer.getvalue())


def _pixels(finding: Finding, image: int) -> np.ndarray | None:
    found = finding.images.get(image)
    return None if found is None else found.pixels
