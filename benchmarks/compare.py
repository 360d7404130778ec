"""Two GPU reports side by side: ``python -m benchmarks.compare A.json B.json``. Times in milliseconds.

The last column is A / B: above 1, B is faster. Rows that only one of the reports has are printed with a dash. The
published rows stand below, for scale: other networks, other parameters, other devices.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import FORMAT, PUBLISHED

Report = dict[str, Any]


def read(path: Path) -> Report:
    """ValueError for anything but a report of this version."""
    report = json.loads(path.read_text("utf-8"))
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ValueError(f"{path}: not a report of benchmarks.gpu, format {FORMAT}")
    return report


def medians(report: Report) -> dict[str, float]:
    """Every time in a report by its name."""
    found: dict[str, float] = {}
    for row in report["kernels"]:
        if "median" in row:
            found[f"{row['name']}, {row['path']}"] = row["median"]
    for row in report["network"]:
        for way in ("replay", "resident", "staged", "no_graphs"):
            if way in row:
                found[f"network, {row['name']}, {way}"] = row[way]["median"]
    return found


def per_image(report: Report) -> float | None:
    """Milliseconds an image at the best batch, device-resident."""
    rates = [row["images_per_second"] for row in report["network"] if row["axis"] == "batch"]
    return 1e3 / max(rates) if rates else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def compare(a: Report, b: Report) -> list[str]:
    left, right = medians(a), medians(b)
    lines = [f"A: {a['device']}, torch {a['torch']}", f"B: {b['device']}, torch {b['torch']}", ""]
    lines.append(f"{'what':62} {'A':>12} {'B':>12} {'A / B':>8}")
    for name in dict.fromkeys([*left, *right]):
        x, y = left.get(name), right.get(name)
        ratio = f"{x / y:.2f}" if x is not None and y else ""
        lines.append(f"{name:62} {_cell(x):>12} {_cell(y):>12} {ratio:>8}")
    lines += ["", f"{'per image at the best batch':62} {_cell(per_image(a)):>12} {_cell(per_image(b)):>12}"]
    for row in PUBLISHED:
        each = float(str(row["ms"])) / int(str(row["images"]))
        lines.append(f"published: {row['name']} ({row['device']}): {row['ms']} ms for {row['images']}, {each:.4f} each")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    try:
        print("\n".join(compare(read(options.a), read(options.b))))
    except (OSError, ValueError) as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
