"""The shipped models and the test sets that their accuracy is stated on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mcfhe import datasets, models
from mcfhe.cards import ModelCard
from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError


@dataclass(frozen=True, eq=False)
class Shipped:
    """``name`` is ARCH-DATASET, as in the asset's file name."""

    name: str
    model: nn.Module
    card: ModelCard


def shipped() -> Iterator[Shipped]:
    """Every model with trained weights in the package."""
    for arch, sets in models.available_pretrained().items():
        for dataset in sets:
            model = models.ARCHITECTURES[arch](**pretrained_arguments(arch, dataset))
            yield Shipped(f"{arch}-{dataset}", model, model.mcfhe_metadata)  # type: ignore[arg-type]


def pretrained_arguments(arch: str, dataset: str) -> dict[str, object]:
    """What the model was built with, and ``pretrained``."""
    card = models.load(models.ASSETS / f"{arch}-{dataset}.safetensors").mcfhe_metadata
    assert isinstance(card, ModelCard)
    return {"pretrained": dataset, **card.arguments}


def data_folder() -> Path:
    """``$MCFHE_TEST_DATA``, else ``shared/data`` beside the checkout."""
    return Path(os.environ.get("MCFHE_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def test_set(card: ModelCard) -> Dataset:
    """The whole test split of the data the model was trained on; ParameterError says where it was looked for.

    In :func:`data_folder`, a folder in it that has the set's name, or where packages and downloads put a known set;
    nothing is downloaded.
    """
    root = data_folder()
    reasons = []
    for place in (root, root / card.dataset.partition("-")[0], None):
        try:
            return datasets.load(card.dataset, "test", place, download=False)
        except ParameterError as error:
            reasons.append(str(error))
    raise ParameterError(f"{card.dataset}: not on this machine; set MCFHE_TEST_DATA to its folder ({reasons[0]})")
