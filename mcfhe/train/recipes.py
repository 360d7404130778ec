"""How the shipped models were trained: ``mcfhe train --recipe NAME --data FOLDER --out FILE``.

A recipe holds values of ``mcfhe train``'s options; those it leaves out have the command's own defaults. The card of
every trained model says the whole command line, seed, torch build and number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Value = int | float | str | bool

_RECIPES: dict[str, dict[str, Value]] = {
    "lenet-fashion-mnist": {"arch": "lenet", "dataset": "fashion-mnist"},
    "lenet-mnist": {"arch": "lenet", "dataset": "mnist", "epochs": 20, "validation": 5000},
    "cryptonets-mnist": {
        "arch": "cryptonets",
        "dataset": "mnist",
        "epochs": 12,
        "validation": 5000,
        "activation": "square",
    },
    "tenseal_net-mnist": {
        "arch": "tenseal_net",
        "dataset": "mnist",
        "epochs": 12,
        "validation": 5000,
        "activation": "square",
    },
    "lenet-pneumoniamnist": {
        "arch": "lenet",
        "dataset": "pneumoniamnist",
        "epochs": 30,
        "augment": "half-affine-exposure",
        "balance": True,
    },
    "resnet7-cifar10": {
        "arch": "resnet7",
        "dataset": "cifar10-jpeg",
        "epochs": 24,
        "validation": 1000,
        "batch_size": 128,
        "augment": "shift2-flip",
        "label_smoothing": 0.1,
        "range_penalty": 1.0,
        "precision": "bfloat16",
        "grid_bits": 10,
    },
}
RECIPES: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {name: MappingProxyType(values) for name, values in _RECIPES.items()}
)
