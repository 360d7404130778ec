"""NumPy archives in MedMNIST's layout: ``train_images``, ``train_labels``, ``val_images`` ... in one .npz."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcfhe.datasets.base import MAX_BYTES, MAX_CLASSES, MAX_SIDE, SPLITS, Dataset
from mcfhe.errors import FormatError, ParameterError

_CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "breastmnist": ("malignant", "normal or benign"),
    "pneumoniamnist": ("normal", "pneumonia"),
}


def load_npz(path: Path, split: str, name: str, limit: int | None = None) -> Dataset:
    """Read one split of an .npz with ``SPLIT_images`` and ``SPLIT_labels`` (without splits: ``images``, ``labels``).

    Images are uint8 ``[n, H, W]`` or ``[n, H, W, C]`` with C = 1 or 3; labels any integers, ``[n]`` or ``[n, 1]``. The
    classes are 0..max label over all splits, named by the optional string array ``class_names``.

    Raises:
        FormatError: damaged, with Python objects in it, or arrays of another shape, dtype or range.
        ParameterError: no such split.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            prefixes = {known: "" if known == "all" else f"{known}_" for known in SPLITS}
            splits = [known for known, prefix in prefixes.items() if f"{prefix}images" in members]
            if split not in splits:
                raise ParameterError(f"split: {path} has {', '.join(splits) or 'no images'}, not {split!r}")
            images = _images(_read(archive, members, f"{prefixes[split]}images", path), split, path)
            labels = {
                known: _labels(_read(archive, members, f"{prefixes[known]}labels", path), known, path)
                for known in splits
            }
            named = _read(archive, members, "class_names", path) if "class_names" in members else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise FormatError(f"{path}: not a readable .npz ({error}); fetch the file again") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    if len(labels[split]) != len(images):
        raise FormatError(f"{path}: {len(images)} {split} images, but {len(labels[split])} labels")
    classes = 1 + max(int(values.max()) for values in labels.values())
    class_names = _CLASS_NAMES.get(path.stem, ())
    if named is not None and named.dtype.kind == "U":
        class_names = tuple(str(value) for value in named.ravel())
    if len(class_names) < classes:
        class_names = tuple(str(label) for label in range(classes))
    return Dataset(
        images=torch.from_numpy(images[:limit]),
        labels=torch.from_numpy(labels[split][:limit]),
        class_names=class_names,
        name=name,
        split=split,
    )


def _read(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], key: str, path: Path) -> NDArray[Any]:
    """One array, its header checked before its data is read; never a pickle."""
    if key not in members:
        raise FormatError(f"{path}: array {key!r} is missing; there are {', '.join(sorted(members)) or 'none'}")
    with archive.open(members[key]) as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = reader(file)
        except (ValueError, KeyError) as error:
            raise FormatError(
                f"{path}: array {key!r} has no readable header ({error}); save it with numpy.savez"
            ) from None
        if dtype.hasobject:
            raise FormatError(
                f"{path}: array {key!r} holds Python objects, which are never loaded; save it as integers"
            )
        size = math.prod(shape) * dtype.itemsize
        if any(side < 1 for side in shape) or not 0 < size <= MAX_BYTES:
            raise FormatError(f"{path}: array {key!r} of shape {shape} has {size} bytes; 1..{MAX_BYTES} are read")
        data = file.read(size)
    if len(data) < size:
        raise FormatError(f"{path}: array {key!r} is truncated, {len(data)} of {size} bytes; fetch the file again")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _images(array: NDArray[Any], split: str, path: Path) -> NDArray[np.uint8]:
    """Any accepted layout to contiguous ``[n, C, H, W]``."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise FormatError(
            f"{path}: {split} images are {array.dtype} {list(array.shape)}, expected uint8 [n, H, W(, C)]"
        )
    planes = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    channels, *sides = planes.shape[1:]
    if channels not in (1, 3) or any(side > MAX_SIDE for side in sides):
        raise FormatError(
            f"{path}: {split} images have {channels} channels of {sides}; 1 or 3 of up to {MAX_SIDE} are read"
        )
    return np.array(planes, dtype=np.uint8, order="C")


def _labels(array: NDArray[Any], split: str, path: Path) -> NDArray[np.int64]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.dtype.kind not in "iu" or flat.ndim != 1:
        found = f"{array.dtype} {list(array.shape)}"
        raise FormatError(f"{path}: {split} labels are {found}, expected integers [n] or [n, 1], one class per image")
    if int(flat.min()) < 0 or int(flat.max()) >= MAX_CLASSES:
        raise FormatError(f"{path}: {split} labels {flat.min()}..{flat.max()} outside 0..{MAX_CLASSES - 1}")
    return flat.astype(np.int64)
