"""Writes the tables of docs/models.md: ``python -m benchmarks.render_models`` (``--check`` compares).

The commands come from the cards of the shipped models, the accuracies from benchmarks/results/accuracy.json, the
choice of a recipe from benchmarks/results/recipe.json, the comparison with peers from benchmarks/results/peers.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import accuracy, choose_recipe, peers
from benchmarks.sections import replaced, run
from benchmarks.shipped import shipped
from mcfhe import models

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


def commands() -> list[str]:
    """How each shipped model was trained, and how large its file is."""
    lines = ["| model | file | trained by | seed | with |", "|---|---:|---|---:|---|"]
    for item in shipped():
        size = (models.ASSETS / f"{item.name}.safetensors").stat().st_size
        card = item.card
        lines.append(f"| {item.name} | {size / 1e6:.2f} MB | `{card.command}` | {card.seed} | {card.environment} |")
    return lines


def accuracies() -> list[str]:
    report = _read(accuracy.COMMITTED)
    if report is None:
        return []
    minutes = report["seconds"] / 60
    runs = "in one run" if report["one_run"] else "over all models, which were not measured in one run"
    return [
        f"Measured by `make accuracy` on {report['cores']} cores of {report['device']}, a shared machine; "
        f"{minutes:.0f} minutes {runs}:",
        "",
        *accuracy.table(report["models"]),
    ]


def comparison() -> list[str]:
    report = _read(peers.COMMITTED)
    if report is None:
        return []
    return [
        f"Measured by `python -m benchmarks.peers` on {report['cores']} cores of {report['device']}, a shared machine:",
        "",
        *peers.table(report["rows"]),
    ]


def recipe() -> list[str]:
    report = _read(choose_recipe.COMMITTED)
    return [] if report is None else choose_recipe.table(report)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def render(text: str) -> str:
    """The page with its sections made anew."""
    for name, lines in (
        ("commands", commands()),
        ("recipe", recipe()),
        ("accuracy", accuracies()),
        ("peers", comparison()),
    ):
        text = replaced(text, f"<!-- {name}:start -->", f"<!-- {name}:end -->", lines)
    return text


if __name__ == "__main__":
    sys.exit(run(PAGE, render, __doc__))
