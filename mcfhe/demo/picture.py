"""The demo's picture: images, what the server sees of them, and the labels the client decrypts."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from mcfhe.container import write_file
from mcfhe.errors import ParameterError
from mcfhe.wire import Request


def draw(
    path: str | os.PathLike[str],
    images: np.ndarray,
    request: Request,
    names: Sequence[str],
    truth: Sequence[int],
    decrypted: Sequence[int],
    shown: Sequence[int],
    limbs: tuple[int, int] = (0, 1),
) -> None:
    """Write a PNG, one row an image: the input, its confused sub-images in every lane of two limbs, both labels.

    ``images`` uint8 [n, C, H, W] (the first channel is drawn); ``shown`` are indices into the batch. All lanes are
    drawn alike: which one is true is the client's secret. ParameterError if matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise ParameterError("the picture needs matplotlib: pip install 'mcfhe[plot]', or pass --no-picture") from None
    lanes = request.lanes
    columns = 1 + 2 * lanes + 1
    figure, axes = pyplot.subplots(
        len(shown), columns, figsize=(1.25 * columns, 1.35 * len(shown) + 0.5), squeeze=False
    )
    for row, index in enumerate(shown):
        cells = axes[row]
        for cell in cells:
            cell.set_axis_off()
        cells[0].imshow(images[index, 0], cmap="gray", vmin=0, vmax=255)
        for i, limb in enumerate(limbs):
            modulus = request.evaluation_key.moduli[limb]
            for lane in range(lanes):
                cell = cells[1 + i * lanes + lane]
                residues = request.ciphertext[limb, 0, :, :, index * lanes + lane].numpy()
                cell.imshow(residues, cmap="gray", vmin=0, vmax=modulus)
                if row == 0:
                    cell.set_title(f"limb {limb + 1}\nlane {lane}", fontsize=8)
        right = truth[index] == decrypted[index]
        cells[-1].text(
            0,
            0.5,
            f"decrypted:\n{names[decrypted[index]]}\ntrue:\n{names[truth[index]]}",
            fontsize=8,
            va="center",
            color="black" if right else "firebrick",
            transform=cells[-1].transAxes,
        )
    axes[0][0].set_title("input", fontsize=8)
    figure.suptitle("What the client sends: every lane of two limbs (profile: " + request.profile + ")", fontsize=9)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_file(path, buffer.getvalue())
