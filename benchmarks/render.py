"""Writes the README's numbers from committed measurements: ``python -m benchmarks.render`` (``--check`` only compares).

The section between the two markers is replaced; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.render_gpu import gpu_table

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


def section() -> str:
    lines = [START]
    cpu = RESULTS / "cpu.json"
    if cpu.exists():
        lines += cpu_table(json.loads(cpu.read_text()))
    for gpu in sorted(RESULTS.glob("gpu-*.json")):
        if len(lines) > 1:
            lines.append("")
        lines += gpu_table(json.loads(gpu.read_text()))
    return "\n".join([*lines, END])


def render(text: str) -> str:
    """The README with its section made anew; ValueError if the markers are not there."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return before + section() + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README differs from the measurements")
    arguments = parser.parse_args()
    old = README.read_text("utf-8")
    new = render(old)
    if arguments.check:
        if old != new:
            print("README.md differs from benchmarks/results; run python -m benchmarks.render", file=sys.stderr)
        return int(old != new)
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
