"""Data sets known by name: where they may lie on this machine, and a checksummed download where they do not."""

from __future__ import annotations

import hashlib
import os
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from mcfhe import container
from mcfhe.datasets import idx
from mcfhe.errors import FormatError, ParameterError

TIMEOUT = 30  # seconds without a byte
MAX_DOWNLOAD = 64 << 20  # bytes of one file, packed and unpacked alike
_CHUNK = 1 << 20


@dataclass(frozen=True)
class KnownSet:
    """An IDX data set.

    Attributes:
        class_names: one per label.
        folders: where packages of operating systems put it.
        subfolders: where it lies below a folder that the user names.
        mirrors: URLs, each of a folder with the .gz files.
        sha256: of the *unpacked* files, by name; the same data is packed in several ways.
        hint: how else to get it.
    """

    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    subfolders: tuple[str, ...]
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]
    hint: str


KNOWN: Mapping[str, KnownSet] = MappingProxyType(
    {
        "fashion-mnist": KnownSet(
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            folders=("/usr/share/datasets/fashion-mnist",),
            subfolders=("", "fashion-mnist", "FashionMNIST/raw"),
            mirrors=(
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            sha256={
                "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            },
            hint="install Debian's dataset-fashion-mnist or name a folder of its IDX files with --data",
        ),
        "mnist": KnownSet(
            class_names=tuple("0123456789"),
            folders=("/usr/share/datasets/mnist",),
            subfolders=("", "mnist", "MNIST/raw"),
            mirrors=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            sha256={
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            },
            hint="name a folder of its IDX files with --data",
        ),
    }
)


def cache_folder() -> Path:
    """Where downloads are kept: ``$MCFHE_CACHE``, else ``mcfhe`` below the user's cache folder."""
    if os.environ.get("MCFHE_CACHE"):
        return Path(os.environ["MCFHE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcfhe"


def locate(name: str, root: Path | None, download: bool) -> Path:
    """The folder with the set's IDX files.

    With ``root`` only there; else where packages put it, else the cache, which is filled when ``download`` allows.

    Raises:
        ParameterError: found nowhere, and not to be had; says where it was looked for.
        FormatError: every mirror sent something else than the data set.
    """
    known = KNOWN[name]
    cache = cache_folder() / name
    places = [root / sub for sub in known.subfolders] if root else [*map(Path, known.folders), cache]
    # The cache fills file by file: only a complete one counts.
    found = [place for place in places if idx.is_idx_folder(place) and (place != cache or _complete(known, cache))]
    if found:
        return found[0]
    if root is not None or not download:
        looked = ", ".join(str(place) for place in places)
        raise ParameterError(f"{name}: no train-images-idx3-ubyte(.gz) in {looked}; {known.hint}")
    for file, digest in known.sha256.items():
        if not (cache / f"{file}.gz").is_file():
            _fetch(known, f"{file}.gz", digest, cache)
    return cache


def _complete(known: KnownSet, cache: Path) -> bool:
    return all((cache / f"{file}.gz").is_file() for file in known.sha256)


def _fetch(known: KnownSet, file: str, digest: str, cache: Path) -> None:
    """Download one file from the first mirror that has it unaltered; it appears in the cache whole or not at all."""
    unreachable: list[str] = []
    altered: list[str] = []
    for mirror in known.mirrors:
        url = mirror + file
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                data = response.read(MAX_DOWNLOAD + 1)
        except (OSError, ValueError) as error:
            unreachable.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        if _unpacked_sha256(data) != digest:
            altered.append(url)
            continue
        cache.mkdir(parents=True, exist_ok=True)
        container.write_file(cache / file, data)
        return
    if altered:
        raise FormatError(f"{altered[0]}: SHA-256 of the unpacked data is not {digest}; {known.hint}")
    raise ParameterError(f"{file}: cannot be downloaded ({'; '.join(unreachable)}); {known.hint}")


def _unpacked_sha256(data: bytes) -> str:
    """Of gzip ``data``, unpacked piece by piece; empty for what is no gzip file or unpacks beyond all bounds."""
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    sha, total = hashlib.sha256(), 0
    try:
        while data and total <= MAX_DOWNLOAD:
            piece = unpacker.decompress(data, _CHUNK)
            sha.update(piece)
            total += len(piece)
            data = unpacker.unconsumed_tail
    except zlib.error:
        return ""
    return sha.hexdigest() if unpacker.eof else ""
