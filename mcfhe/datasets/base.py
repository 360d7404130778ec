"""What every loader returns, and the bounds that all of them keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcfhe.errors import ImageError, ParameterError

#: "all" is the one split of a set that comes without splits.
SPLITS = ("train", "val", "test", "all")

MAX_SIDE = 4096  # pixels of height and of width
MAX_BYTES = 4 << 30  # of decoded images
MAX_CLASSES = 10_000


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory.

    Attributes:
        images: uint8 ``[n, C, H, W]``, 0..255, C = 1 (grey) or 3 (red, green, blue).
        labels: int64 ``[n]``, 0 <= label < len(class_names).
        class_names: one per label.
        name: of the set, as recorded on a model trained with it.
        split: one of ``SPLITS``.

    Raises:
        ImageError: images of another shape or dtype.
        ParameterError: labels that do not fit the images or the class names.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str = "all"

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.numel() == 0:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise ImageError(f"{self.name}: images are {found}, expected a non-empty uint8 [n, C, H, W]")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise ParameterError(f"{self.name}: labels are {found}, expected int64 [{len(self.images)}]")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise ParameterError(
                f"{self.name}: labels {low}..{high} outside 0..{len(self.class_names) - 1}, the classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The images at ``indices``, in that order, copied."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def hold_out(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Split at random, by ``seed`` alone, into (all but ``count``, ``count``) images; 0 < count < len(self)."""
        if not 0 < count < len(self):
            raise ParameterError(f"hold-out of {count} images: {self.name} has {len(self)}; use 1..{len(self) - 1}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[count:]), self.subset(order[:count])
