"""Helpers of the data-set tests: random pixels, encoded images, tars, and data that is not in the repository."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def data_folder(name: str) -> Path:
    """A data set that is not in the repository, or skip."""
    root = Path(os.environ.get("MCFHE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / name).exists():
        pytest.skip(f"{name} not found; set MCFHE_TEST_DATA to a folder that has it")
    return root / name


def pixels(*shape: int, seed: int = 0) -> Pixels:
    """Uniform uint8, a function of shape and seed alone."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def message_id(value: object) -> str:
    """Test ids from the message expected, never from (compressed, time-stamped) bytes."""
    return value if isinstance(value, str) else ""


def encoded(array: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar of regular files, in tarfile's mode."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
