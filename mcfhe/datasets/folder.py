"""Image folders, ``ROOT/SPLIT/CLASS/*.png`` or ``ROOT/CLASS/*.jpg``, on disk or inside a tar that is never unpacked."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from mcfhe.datasets.base import MAX_BYTES, MAX_CLASSES, SPLITS, Dataset
from mcfhe.datasets.images import MAX_FILE_BYTES, SUFFIXES, decode
from mcfhe.errors import FormatError, ImageError, ParameterError

MAX_FILES = 2_000_000
MAX_HELD_BYTES = 2 << 30  # of undecoded images of a tar
MAX_NAME = 200
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")

_NAMED_SPLITS = frozenset(SPLITS) - {"all"}


@dataclass(frozen=True, slots=True)
class _Image:
    split: str  # "all" when the folder has no splits
    label: str
    name: str
    read: Callable[[], bytes]


def load_folder(root: Path, split: str, name: str, limit: int | None = None) -> Dataset:
    """Read the images of one split below ``root``. See :func:`load_tar` for the order and the errors."""
    return _assemble(_collect(_walk(root), str(root)), split, name, limit, str(root))


def load_tar(path: Path, split: str, name: str, limit: int | None = None) -> Dataset:
    """Read the images of one split of a folder inside a tar (plain, gzip, xz or bzip2), as a stream.

    A set either has a folder per split (train, val, test) above its classes or, without any, is all of split "all".
    Class names are sorted over all splits. The order is round robin: the first file of every class, then the second
    of every class, files sorted by name; so the first ``limit`` images are balanced.

    Raises:
        FormatError: damaged, not a tar, or a layout, name, count or size that no image folder has.
        ImageError: a file that is no PNG or JPEG, or of another size than the first.
        ParameterError: no such split.
    """
    return _assemble(_collect(_members(path, split), str(path)), split, name, limit, str(path))


def _walk(root: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    for folder, _, names in os.walk(root, onerror=_refuse):
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in names:
            yield relative / name, partial(_read_file, Path(folder, name))


def _refuse(error: OSError) -> None:
    raise FormatError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)  # one more than decode() accepts
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


class _Bounded:
    """A byte stream that gives out no more than ``allowance`` bytes between two calls of :meth:`allow`.

    Decompression and tar headers both multiply what a small file can demand; one allowance per member bounds them.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File) -> None:
        self._file = file
        self.allow()

    def allow(self) -> None:
        self._left = MAX_FILE_BYTES + (1 << 20)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise FormatError(f"a member of more than {MAX_FILE_BYTES} bytes; an image set has none")
        return data


def _members(path: Path, split: str) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    held = 0
    try:
        with open(path, "rb") as raw, _decompress(raw) as unpacked:
            stream = _Bounded(unpacked)
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    stream.allow()
                    if member.isdir():
                        continue
                    relative = PurePosixPath(member.name)
                    if not member.isreg() or member.issparse():
                        raise FormatError(f"member {member.name[:MAX_NAME]!r} is a link or a device; keep files only")
                    if relative.is_absolute() or ".." in relative.parts:
                        raise FormatError(f"member {member.name[:MAX_NAME]!r} leaves the archive; use relative names")
                    data = b""
                    if relative.suffix.lower() in SUFFIXES and _split_of(relative) in (split, "all"):
                        file = archive.extractfile(member)
                        data = file.read() if file else b""
                        held += len(data)
                    if held > MAX_HELD_BYTES:
                        raise FormatError(f"more than {MAX_HELD_BYTES} bytes of images; unpack it and name the folder")
                    archive.members = []  # tarfile keeps every header otherwise
                    yield relative, partial(bytes, data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FormatError(f"{path}: tar damaged or truncated ({error}); fetch the file again") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _decompress(raw: BinaryIO) -> BinaryIO | gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(raw, "rb")
    if start.startswith(b"\xfd7zXZ"):
        return lzma.open(raw, "rb")
    if start.startswith(b"BZh"):
        return bz2.open(raw, "rb")
    return raw


def _split_of(path: PurePosixPath) -> str:
    return path.parts[-3] if len(path.parts) >= 3 and path.parts[-3] in _NAMED_SPLITS else "all"


def _collect(files: Iterator[tuple[PurePosixPath, Callable[[], bytes]]], where: str) -> list[_Image]:
    """Every image, after checking that together they are one folder of classes."""
    images: list[_Image] = []
    others: list[PurePosixPath] = []
    folders: set[PurePosixPath] = set()
    for count, (path, read) in enumerate(files, start=1):
        if count > MAX_FILES:
            raise FormatError(f"{where}: more than {MAX_FILES} files; use a smaller set")
        if any(part.startswith(".") for part in path.parts):  # .DS_Store and the like
            continue
        if path.suffix.lower() not in SUFFIXES:
            others.append(path)
            continue
        if len(path.parts) < 2:
            raise FormatError(f"{where}: image {path.name!r} lies outside any class folder; move it into one")
        folders.add(path.parent)
        images.append(_Image(_split_of(path), path.parts[-2], path.name, read))
    stray = next((path for path in others if path.parent in folders), None)
    if stray is not None:
        raise FormatError(f"{where}: {str(stray)[:MAX_NAME]!r} is no PNG or JPEG; convert or remove it")
    if len({len(folder.parts) for folder in folders}) > 1 or len({image.split == "all" for image in images}) > 1:
        raise FormatError(f"{where}: class folders at different depths; use ROOT/SPLIT/CLASS or ROOT/CLASS throughout")
    return images


def _assemble(images: list[_Image], split: str, name: str, limit: int | None, where: str) -> Dataset:
    splits = sorted({image.split for image in images})
    if split not in splits:
        fix = "; move its classes into train/ and test/" if splits == ["all"] else ""
        raise ParameterError(f"split: {where} has {', '.join(splits) or 'no images'}, not {split!r}{fix}")
    class_names = sorted({image.label for image in images})
    if len(class_names) > MAX_CLASSES:
        raise FormatError(f"{where}: {len(class_names)} classes; at most {MAX_CLASSES} are read")
    odd = next((label for label in class_names if len(label) > MAX_NAME or not label.isprintable()), None)
    if odd is not None:
        raise FormatError(f"{where}: class name {odd[:MAX_NAME]!r}; use printable names of up to {MAX_NAME} characters")
    ranked: list[tuple[int, int, _Image]] = []
    for label, class_name in enumerate(class_names):
        members = [image for image in images if image.label == class_name and image.split == split]
        ranked += [(rank, label, image) for rank, image in enumerate(sorted(members, key=lambda image: image.name))]
    chosen = sorted(ranked, key=lambda item: item[:2])[:limit]
    return Dataset(
        images=torch.from_numpy(_decode_all([image for *_, image in chosen], where)),
        labels=torch.tensor([label for _, label, _ in chosen], dtype=torch.int64),
        class_names=tuple(class_names),
        name=name,
        split=split,
    )


def _decode_all(images: list[_Image], where: str) -> NDArray[np.uint8]:
    """uint8 ``[n, C, H, W]``; in a set with any colour image, grey ones get three equal channels."""
    stack: NDArray[np.uint8] | None = None
    for index, image in enumerate(images):
        source = f"{where}: {image.label}/{image.name}"
        pixels = decode(image.read(), source)
        if stack is None:
            size = len(images) * 3 * pixels[0].size
            if size > MAX_BYTES:
                raise FormatError(f"{where}: {len(images)} images need {size} bytes, at most {MAX_BYTES}; set a limit")
            stack = np.empty((len(images), *pixels.shape), dtype=np.uint8)
        if pixels.shape[1:] != stack.shape[2:]:
            (height, width), first = pixels.shape[1:], f"{images[0].label}/{images[0].name}"
            raise ImageError(
                f"{source} is {width} x {height} pixels, but {first} is {stack.shape[3]} x {stack.shape[2]}; "
                "resize all images to one size"
            )
        if len(pixels) > stack.shape[1]:
            stack = np.repeat(stack, 3, axis=1)
        stack[index] = pixels  # one channel broadcasts to three
    if stack is None:
        raise FormatError(f"{where}: no images in this split")
    return stack
