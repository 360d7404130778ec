"""IDX, the format of MNIST and its kin: big-endian sizes, then unsigned bytes; plain or gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from mcfhe.datasets.base import MAX_BYTES, MAX_SIDE, Dataset
from mcfhe.errors import FormatError, ParameterError

_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int, limit: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: plain or gzip, told apart by content.
        dimensions: that the file must have; 3 for images, 1 for labels.
        limit: read at most this many items.

    Returns:
        uint8 ``[min(n, limit), ...]`` and n, the number of items the header announces.

    Raises:
        FormatError: other magic, sizes out of bounds, fewer or more bytes than the header announces.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _parse(raw, path, dimensions, limit)
            with gzip.open(raw, "rb") as unpacked:
                return _parse(unpacked, path, dimensions, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{path}: gzip data damaged or truncated ({error}); fetch the file again") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _parse(
    file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, limit: int | None
) -> tuple[NDArray[np.uint8], int]:
    header = file.read(4 + 4 * dimensions)
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if header[:4] != magic:
        raise FormatError(
            f"{path}: magic {header[:4].hex()}, expected {magic.hex()}; not IDX of {dimensions} dimensions"
        )
    if len(header) < 4 + 4 * dimensions:
        raise FormatError(f"{path}: truncated inside the header ({len(header)} bytes); fetch the file again")
    count, *sides = struct.unpack(f">{dimensions}I", header[4:])
    # Checked in Python's integers before a byte is read: the sizes are the file's word and nothing more.
    if count == 0 or any(not 1 <= side <= MAX_SIDE for side in sides) or count * math.prod(sides) > MAX_BYTES:
        raise FormatError(
            f"{path}: dimensions {[count, *sides]} out of bounds (sides 1..{MAX_SIDE}, {MAX_BYTES} bytes in all); "
            "the header is damaged"
        )
    wanted = count if limit is None else min(count, limit)
    size = wanted * math.prod(sides)
    data = file.read(size)
    if len(data) < size:
        raise FormatError(f"{path}: truncated, {len(data)} of {size} bytes of data; fetch the file again")
    if wanted == count and file.read(1):
        raise FormatError(f"{path}: more data than the {count} items of its header; the file is not what it says")
    # A copy, because a tensor must not alias immutable bytes.
    return np.frombuffer(data, dtype=np.uint8).reshape(wanted, *sides).copy(), count


def find(folder: Path, split: str, kind: str) -> Path | None:
    """The file of ``kind`` (``images`` or ``labels``) in ``folder``, by any of its usual names, or None."""
    rank = {"images": 3, "labels": 1}[kind]
    for separator in ("-", "."):
        for suffix in ("", ".gz"):
            path = folder / f"{_PREFIX[split]}-{kind}{separator}idx{rank}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def is_idx_folder(folder: Path) -> bool:
    """Whether ``folder`` holds IDX images of any split."""
    return any(find(folder, split, "images") for split in _PREFIX)


def load_idx(folder: Path, split: str, name: str, class_names: Sequence[str] = (), limit: int | None = None) -> Dataset:
    """A folder of ``train-images-idx3-ubyte`` and its three companions, each plain or .gz.

    Without ``class_names`` the classes are the numbers 0..max label, over all splits that are there.
    """
    if split not in _PREFIX:
        raise ParameterError(f"split: {name} has train and test, not {split!r}")
    images_path, labels_path = find(folder, split, "images"), find(folder, split, "labels")
    if images_path is None or labels_path is None:
        kind, rank = ("labels", 1) if images_path else ("images", 3)
        raise FormatError(f"{folder}: {_PREFIX[split]}-{kind}-idx{rank}-ubyte(.gz) is missing; put it there")
    images, image_count = read_idx(images_path, 3, limit)
    labels, label_count = read_idx(labels_path, 1, limit)
    if image_count != label_count:
        raise FormatError(f"{images_path}: {image_count} images, but {labels_path.name} has {label_count} labels")
    if not class_names:
        all_labels = [path for other in _PREFIX if (path := find(folder, other, "labels"))]
        class_names = [str(label) for label in range(1 + max(int(read_idx(path, 1)[0].max()) for path in all_labels))]
    if int(labels.max()) >= len(class_names):
        raise FormatError(f"{labels_path}: label {labels.max()}, but {name} has {len(class_names)} classes")
    return Dataset(
        images=torch.from_numpy(images[:, None]),
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=tuple(class_names),
        name=name,
        split=split,
    )
