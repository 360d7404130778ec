"""Chooses the recipe for the chest X-rays, on the validation split alone: ``python -m benchmarks.choose_recipe``.

Every candidate is trained with every seed. What is compared is the mean of two balanced accuracies (the mean of the
classes' accuracies: the training split has nine times more of one class than of the other, and nobody says what a
clinic has) on the validation images: as they are, and eight times over turned, moved and exposed otherwise at random.
Validation images come from the same source as the training images, those of a clinic do not, and the second accuracy
tells the recipes apart that the first does not. Only then is the test split loaded, for the models of the recipe that
was chosen: all seeds, of which the one that is best on validation is shipped.

Writes build/reports/recipe.json: {device, torch, dataset, epochs, candidates: [{augment, balance, seeds: [{seed,
plain, changed, accuracy}], score}], chosen: {augment, balance, seed, test: [accuracy of each seed], mean}};
``--update`` also writes benchmarks/results/recipe.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.conftest import processor
from mcfhe import datasets, scoring
from mcfhe.datasets import Dataset
from mcfhe.train import TrainResult, train
from mcfhe.train.augment import AUGMENTATIONS

REPORT = Path("build/reports/recipe.json")
COMMITTED = Path(__file__).parent / "results" / "recipe.json"

DATASET = "pneumoniamnist"
AUGMENTS = ("shift", "affine", "affine-exposure", "half-affine", "half-affine-exposure")
SEEDS = range(5)
EPOCHS = 30
CHANGES = 8


def balanced(right: Tensor, labels: Tensor) -> float:
    """The mean of the classes' accuracies."""
    return statistics.fmean(float(right[labels == label].double().mean()) for label in labels.unique())


def right(model: nn.Module, result: TrainResult, images: Tensor, labels: Tensor) -> Tensor:
    return scoring.scores(model, images, result.card.mean, result.card.std).argmax(1) == labels


def measure(result: TrainResult, validation: Dataset) -> dict[str, float]:
    """Balanced accuracy on the images as they are and changed, and plain accuracy as they are."""
    generator = torch.Generator().manual_seed(0)
    change = AUGMENTATIONS["affine-exposure"]
    changed = torch.cat([change(validation.images, generator) for _ in range(CHANGES)])
    labels = validation.labels
    plain = right(result.model, result, validation.images, labels)
    return {
        "plain": balanced(plain, labels),
        "changed": balanced(right(result.model, result, changed, labels.repeat(CHANGES)), labels.repeat(CHANGES)),
        "accuracy": float(plain.double().mean()),
    }


def table(report: dict[str, Any]) -> list[str]:
    """The candidates as a Markdown table, and what came of the choice."""
    lines = [
        "| augmentation | classes weighted | as they are | changed | mean | accuracy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in report["candidates"]:
        mean = {key: statistics.fmean(seed[key] for seed in row["seeds"]) for key in ("plain", "changed", "accuracy")}
        lines.append(
            f"| {row['augment']} | {'yes' if row['balance'] else 'no'} | {mean['plain']:.1%} | {mean['changed']:.1%} | "
            f"{row['score']:.1%} | {mean['accuracy']:.1%} |"
        )
    chosen = report["chosen"]
    last = len(chosen["test"]) - 1
    test = ", ".join(f"{value:.2%}" for value in chosen["test"])
    return [
        *lines,
        "",
        f"Chosen: {chosen['augment']}{', classes weighted' if chosen['balance'] else ''}. Test set, seeds 0 to {last}: "
        f"{test}; {chosen['mean']:.1%} on average. Seed {chosen['seed']}, the best on validation, is shipped.",
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with pneumoniamnist.npz")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--update", action="store_true", help="also write the committed results")
    options = parser.parse_args(arguments)
    splits = datasets.load(DATASET, "train", options.data), datasets.load(DATASET, "val", options.data)
    trained: dict[tuple[str, bool], list[TrainResult]] = {}
    rows: list[dict[str, Any]] = []
    for augment, balance in itertools.product(AUGMENTS, (False, True)):
        seeds = []
        for seed in range(options.seeds):
            result = train("lenet", splits, options.epochs, seed, augment=augment, balance=balance, progress=False)
            trained.setdefault((augment, balance), []).append(result)
            seeds.append({"seed": seed} | measure(result, splits[1]))
        score = statistics.fmean((row["plain"] + row["changed"]) / 2 for row in seeds)
        rows.append({"augment": augment, "balance": balance, "seeds": seeds, "score": score})
        print(f"{augment}{', balanced' if balance else ''}: {score:.2%}", file=sys.stderr, flush=True)
    best = max(rows, key=lambda row: row["score"])
    seed = max(best["seeds"], key=lambda row: row["plain"] + row["changed"])["seed"]
    test = datasets.load(DATASET, "test", options.data)
    found = [
        scoring.accuracy(result.model, test, result.card.mean, result.card.std)
        for result in trained[best["augment"], best["balance"]]
    ]
    report = {
        "device": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dataset": DATASET,
        "epochs": options.epochs,
        "candidates": rows,
        "chosen": {
            "augment": best["augment"],
            "balance": best["balance"],
            "seed": seed,
            "test": found,
            "mean": statistics.fmean(found),
        },
    }
    for path in (REPORT, *([COMMITTED] if options.update else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(json.dumps(report["chosen"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
