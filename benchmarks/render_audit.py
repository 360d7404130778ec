"""Writes SECURITY.md's table from benchmarks/results/audit.json: ``python -m benchmarks.render_audit``.

``--check`` only compares. The section between the two markers is replaced; nothing else is touched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.sections import replaced, run

SECURITY = Path(__file__).parent.parent / "SECURITY.md"
RESULTS = Path(__file__).parent / "results" / "audit.json"
START, END = "<!-- audit:start -->", "<!-- audit:end -->"
GROUPS = (("default", "paper"), ("narrow", "wide"))
NEEDS = {
    "equality": "CT",
    "ratio": "CT, pixel table",
    "quotient": "CT, PK, pixel table",
    "position": "PK, a, Delta",
    "constant": "CT, a few known pixels",
    "small-value": "CT, a, Delta",
    "lattice": "CT",
    "statistics": "CT",
    "reaction": "a client that tells which responses fail",
}


def cell(row: dict[str, Any] | None) -> str:
    """What came out and how fast, or why nothing did."""
    if row is None:
        return "not run"
    if row["outcome"] == "inapplicable":
        return "nothing to work on"
    if row["outcome"] != "recovered":
        return "nothing"
    if not row["exact"]:
        raise ValueError(f"{row['set']}, {row['profile']}, {row['attack']}: what was recovered is not exact")
    parts = []
    if "pixels of" in row["recovered"].replace("equal pixels of", ""):
        parts.append("pixels")
    if "positions" in row["recovered"]:
        parts.append("positions")
    if "equal pixels" in row["recovered"]:
        parts.append("which pixels are equal")
    return f"{', '.join(parts)}; {row['seconds']:.2f} s"


def table(report: dict[str, Any], sets: tuple[str, ...]) -> list[str]:
    columns = [(name, profile) for name in sets for profile in ("patent", "hardened")]
    rows = {(r["set"], r["profile"], r["attack"]): r for r in report["attacks"]}
    titles = " | ".join(f"{profile}; {report['sets'][name]}" for name, profile in columns)
    lines = [f"| attack | needs | {titles} |", "|---|---|" + "---|" * len(columns)]
    for attack, needs in NEEDS.items():
        found = [rows.get((name, profile, attack)) for name, profile in columns]
        if not any(found):
            continue
        cells = [cell(row) for row in found]
        lines.append(f"| {attack} | {needs} | {' | '.join(cells)} |")
    return lines


def lines() -> list[str]:
    """The section's text and tables."""
    report = json.loads(RESULTS.read_text("utf-8"))
    counts = {r["set"]: r["images"] for r in report["attacks"]}
    limbs = {r["profile"]: r["limbs"] for r in report["attacks"] if r["set"] == "default"}
    text = [
        f"Fashion-MNIST test images through the shipped LeNet ({', '.join(f'{s}: {n}' for s, n in counts.items())} "
        f"images), on {report['device']}. *Pixels*: all images, every pixel exact. *Positions*: all of WZ, so every "
        "image under the key opens. Seconds for all images together. At the defaults the patent profile takes "
        f"{limbs['patent']} limbs, the hardened {limbs['hardened']}: what it stops costs the server nothing.",
    ]
    for group in GROUPS:
        text += ["", *table(report, group)]
    return text


def render(text: str) -> str:
    """The document with its section made anew."""
    return replaced(text, START, END, lines())


if __name__ == "__main__":
    sys.exit(run(SECURITY, render, __doc__))
