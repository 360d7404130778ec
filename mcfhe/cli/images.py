"""Where commands that encrypt take their images from: files, or the test part of a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mcfhe.cli.common import data_option
from mcfhe.errors import ImageError, ParameterError


@dataclass(frozen=True, eq=False)
class Images:
    """``pixels`` uint8 [n, C, H, W], a name for each, and ``labels`` where a data set has them."""

    pixels: np.ndarray
    names: list[str]
    labels: list[int] | None


@dataclass(frozen=True)
class ImageSource:
    """What the options of :func:`image_options` said."""

    files: Sequence[Path]
    dataset: str | None
    data: Path | None
    count: int | None

    def load(self, shape: tuple[int, int, int]) -> Images:
        """The images, all of ``shape`` (C, H, W).

        Raises:
            ParameterError: both files and a data set, or neither; an unknown data set.
            ImageError: a file that is no image, or one of another shape, by name.
        """
        if bool(self.files) == bool(self.dataset):
            raise ParameterError("images: give image files or --dataset, one of the two")
        return self._of_dataset(self.dataset, shape) if self.dataset else self._of_files(shape)

    def _of_dataset(self, name: str, shape: tuple[int, int, int]) -> Images:
        from mcfhe import datasets

        loaded = datasets.load(name, "test", self.data, limit=self.count)
        if loaded.image_shape != shape:
            raise ImageError(f"images of shape {list(loaded.image_shape)}, this program takes {list(shape)}")
        names = [f"{loaded.name}[{i}]" for i in range(len(loaded))]
        return Images(np.asarray(loaded.images), names, [int(v) for v in loaded.labels])

    def _of_files(self, shape: tuple[int, int, int]) -> Images:
        from mcfhe import datasets

        files = self.files[: self.count]
        read = [datasets.read_image(path) for path in files]
        for path, image in zip(files, read, strict=True):
            if tuple(image.shape) != shape:
                raise ImageError(
                    f"{path}: image of shape {list(image.shape)}, this program takes {list(shape)}; "
                    "resize or convert it"
                )
        return Images(np.stack(read), [str(path) for path in files], None)


def image_options(command: Callable[..., None]) -> Callable[..., None]:
    """``[IMAGES]... --dataset --data --count``, given to the command as one argument ``source``."""

    @click.argument("images", nargs=-1, type=click.Path(path_type=Path))
    @click.option("--dataset", help="Test images of a data set instead of files.")
    @data_option
    @click.option("--count", type=click.IntRange(min=1), help="Only the first so many images.")
    @functools.wraps(command)
    def with_source(
        images: tuple[Path, ...], dataset: str | None, data: Path | None, count: int | None, **others: Any
    ) -> None:
        command(source=ImageSource(images, dataset, data, count), **others)

    return with_source
