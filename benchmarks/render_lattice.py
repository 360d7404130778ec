"""Writes the table of docs/lattice.md from committed measurements: ``python -m benchmarks.render_lattice``.

``--check`` compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.sections import replaced, run

PAGE = Path(__file__).parent.parent / "docs" / "lattice.md"
RESULTS = Path(__file__).parent / "results" / "lattice.json"
START, END = "<!-- lattice:start -->", "<!-- lattice:end -->"


def lines() -> list[str]:
    """A row a network."""
    report = json.loads(RESULTS.read_text("utf-8"))
    table = [
        f"By `make bench-lattice` on {report['cores']} cores of {report['device']}, a shared machine; full batches, "
        "medians:",
        "",
        "| network | n | limbs | images | evaluate, ms an image | x torch float32 | encrypt | evaluate | the first | "
        "decrypt | up | down | key | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        sizes = " | ".join(
            f"{row[name] / 1e6:.0f} MB" for name in ("bytes_up", "bytes_down", "key_bytes", "peak_bytes")
        )
        table.append(
            f"| {row['name']} | {row['degree']:,} | {row['limbs']} | {row['batch']:,} | {row['median']:.3f} ± "
            f"{row['spread']:.3f} | {row['ratio']:.0f} | {row['encrypt_s']:.1f} s | {row['evaluate_s']:.2f} s | "
            f"{row['first_s']:.2f} s | {row['decrypt_s']:.2f} s | {sizes} |"
        )
    return table


def render(text: str) -> str:
    """The page with its section made anew."""
    return replaced(text, START, END, lines())


if __name__ == "__main__":
    sys.exit(run(PAGE, render, __doc__))
