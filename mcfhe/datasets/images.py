"""Decoding one PNG or JPEG, bounded before a pixel is decoded."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcfhe.arguments import file_path
from mcfhe.datasets.base import MAX_SIDE
from mcfhe.errors import ImageError, ParameterError

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_FILE_BYTES = 32 << 20

_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG file to uint8 ``[C, H, W]``, C = 1 for grey and 3 for colour; transparency is dropped.

    Raises:
        ImageError: missing, too large, damaged or of another kind, with the file and the reason.
    """
    path = Path(file_path(path))
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    return decode(data, str(path))


def decode(data: bytes, where: str) -> NDArray[np.uint8]:
    """:func:`read_image` on bytes; ``where`` names them in errors."""
    try:
        from PIL import Image
    except ImportError:
        raise ParameterError(f"{where}: reading images needs Pillow; pip install pillow") from None
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{where}: larger than {MAX_FILE_BYTES} bytes; use a smaller image")
    try:
        # Only two decoders are reachable, and open() reads no more than the header.
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            (width, height), mode = image.size, image.mode
            if not 0 < max(width, height) <= MAX_SIDE:
                raise ImageError(f"{where}: {width} x {height} pixels; sides up to {MAX_SIDE} are read")
            if mode not in _GREY + _COLOUR:
                raise ImageError(f"{where}: pixel mode {mode!r}; convert it to 8-bit grey or RGB")
            pixels = np.array(image.convert("L" if mode in _GREY else "RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the bytes provoke
        raise ImageError(
            f"{where}: not a readable PNG or JPEG ({type(error).__name__}); convert or remove it"
        ) from None
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
