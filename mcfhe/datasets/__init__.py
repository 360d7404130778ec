"""Labelled images from IDX, .npz and image folders, into memory, every size checked before it is believed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mcfhe import container
from mcfhe.arguments import file_path, whole
from mcfhe.datasets.base import MAX_SIDE, SPLITS, Dataset
from mcfhe.datasets.folder import TAR_SUFFIXES, load_folder, load_tar
from mcfhe.datasets.idx import is_idx_folder, load_idx
from mcfhe.datasets.images import read_image
from mcfhe.datasets.known import KNOWN, locate
from mcfhe.datasets.npz import load_npz
from mcfhe.errors import ParameterError

__all__ = ["NAMES", "SAMPLE", "SPLITS", "Dataset", "load", "read_image"]

#: The first 1,000 test images of Fashion-MNIST, part of the package.
SAMPLE = "fashion-mnist-sample"
#: What :func:`load` knows by name.
NAMES = (*KNOWN, SAMPLE)

_ASSETS = Path(__file__).parent.parent / "assets"


def load(
    name_or_path: str | os.PathLike[str],
    split: str,
    root: str | os.PathLike[str] | None = None,
    *,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load one split of a data set.

    Args:
        name_or_path: one of ``NAMES``; or a folder of IDX files, a folder or .tar(.gz|.xz|.bz2) of ``SPLIT/CLASS/*``
            or ``CLASS/*`` PNG and JPEG images, or an .npz in MedMNIST's layout.
        split: train, val or test, where the set has it; "all" for a set without splits.
        root: the user's folder to look in, instead of the places where packages and downloads put a known set, whose
            IDX files lie in it, in ``NAME/`` or where torchvision puts them. Any other set is a folder or file in it,
            with or without its suffix.
        limit: load only the first so many images; of image folders the first of every class in turn.
        download: whether a known set that is not on this machine may be fetched (into ``$MCFHE_CACHE``, else the
            user's cache folder; verified by SHA-256).

    Raises:
        ParameterError: no such data set or split, or nothing there.
        FormatError, ImageError: files that are damaged or not what they say; names file, field, value and fix.
    """
    if split not in SPLITS:
        raise ParameterError(f"split: {split!r}; choose one of {', '.join(SPLITS)}")
    if limit is not None and whole("limit", limit) < 1:
        raise ParameterError(f"limit: {limit}; use 1 or more, or None for all")
    name = file_path(name_or_path)
    folder = None if root is None else Path(file_path(root))
    if name == SAMPLE:
        return _load_sample(split, limit)
    if name in KNOWN:
        return load_idx(locate(name, folder, download), split, name, KNOWN[name].class_names, limit)
    path, suffix = _find(name, folder)
    short = path.name.removesuffix(suffix)
    if path.is_dir():
        return (load_idx if is_idx_folder(path) else load_folder)(path, split, short, limit=limit)
    if suffix == ".npz":
        return load_npz(path, split, short, limit)
    return load_tar(path, split, short, limit)


def _find(name: str, root: Path | None) -> tuple[Path, str]:
    """The folder or file that ``name``, with or without its suffix, stands for; and the suffix."""
    base = Path(name) if root is None else root / name
    if base.is_dir():
        return base, ""
    for suffix in (".npz", *TAR_SUFFIXES):
        for path in (base, Path(f"{base}{suffix}")):
            if path.name.endswith(suffix) and path.is_file():
                return path, suffix
    raise ParameterError(
        f"data set: {str(base)!r} is no folder, nor a file in .npz or {', '.join(TAR_SUFFIXES)}; known by name: "
        f"{', '.join(NAMES)}"
    )


def _load_sample(split: str, limit: int | None) -> Dataset:
    if split != "test":
        raise ParameterError(f"split: {SAMPLE} is of the test split only, not {split!r}")
    data = container.read_file(_ASSETS / f"{SAMPLE}.safetensors")
    sizes = ((1, 1 << 16), (1, 3), (1, MAX_SIDE), (1, MAX_SIDE))
    fields = {"images": container.TensorField("U8", sizes), "labels": container.TensorField("U8", sizes[:1])}
    arrays = container.unpack(data, "dataset", fields, ("source", "license")).tensors
    images, labels = (torch.from_numpy(arrays[name][:limit].copy()) for name in ("images", "labels"))
    return Dataset(images, labels.long(), KNOWN["fashion-mnist"].class_names, SAMPLE, split)
