"""Writes the README's numbers from committed measurements: ``python -m benchmarks.render`` (``--check`` compares)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def render(text: str) -> str:
    """The README with its section made anew."""
    cpu = RESULTS / "cpu.json"
    return replaced(text, START, END, cpu_table(json.loads(cpu.read_text())) if cpu.exists() else [])


if __name__ == "__main__":
    sys.exit(run(README, render, __doc__))
