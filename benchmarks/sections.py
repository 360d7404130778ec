"""A generated section of a page, between two markers; nothing else of the page is touched."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def replaced(text: str, start: str, end: str, lines: list[str]) -> str:
    """``text`` with what stands between the markers made anew; ValueError if a marker is missing or occurs twice."""
    before, rest = text.split(start)
    _, after = rest.split(end)
    return "\n".join([before + start, *lines, end + after])


def run(page: Path, render: Callable[[str], str], description: str | None) -> int:
    """Command line of a renderer: rewrite the page, or with --check exit 1 if it differs from its measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if the page differs")
    arguments = parser.parse_args()
    old = page.read_text("utf-8")
    new = render(old)
    if not arguments.check:
        page.write_text(new, "utf-8")
        return 0
    if old != new:
        print(f"{page.name} differs from its measurements; run this again without --check", file=sys.stderr)
    return int(old != new)
