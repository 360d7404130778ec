"""Writes the README's numbers from committed measurements: ``python -m benchmarks.render`` (``--check`` compares)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.render_gpu import gpu_table
from benchmarks.sections import replaced, run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


def cpu_table(report: dict[str, Any]) -> list[str]:
    lines = [
        f"On {report['cores']} cores of {report['device']} ({report['build']['cpu_isa']} kernels, "
        f"torch {report['build']['torch']}), medians; a shared machine, so trust the ratios more than the times:",
        "",
        "| what | ms | ratio | against |",
        "|---|---:|---:|---|",
    ]
    for row in report["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"| {row['name']} | {row['median']:.2f} ± {row['spread']:.2f} | {ratio} | {row['against'] or ''} |"
        )
    return lines


def lines() -> list[str]:
    """One table for the CPU, one for each GPU that was measured."""
    tables = [cpu_table(json.loads(path.read_text())) for path in sorted(RESULTS.glob("cpu.json"))]
    tables += [gpu_table(json.loads(path.read_text())) for path in sorted(RESULTS.glob("gpu-*.json"))]
    return [line for i, table in enumerate(tables) for line in ([""] if i else []) + table]


def render(text: str) -> str:
    """The README with its section made anew."""
    return replaced(text, START, END, lines())


if __name__ == "__main__":
    sys.exit(run(README, render, __doc__))
