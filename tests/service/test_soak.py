"""``make soak`` in small: the script runs, its report has the fields that are promised, and nothing goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import service

FIELDS = {
    "seconds",
    "requests",
    "wrong",
    "lost",
    "rejected",
    "mutated",
    "crashes",
    "p50_ms",
    "p99_ms",
    "rss_growth",
}


def test_small_soak(tmp_path: Path) -> None:
    program = Path(__file__).parent.parent / "vectors" / "program.mcfhe"
    arguments = ["--seconds", "2", "--clients", "8", "--keys", "3", "--mutated-http", "100", "--mutated-decoder", "300"]
    arguments += ["--api-examples", "0"]  # test_api.py is a test of its own
    # Memory is judged over a minute by the full run; in two seconds it is still warming up.
    service.main([*arguments, "--program", str(program), "--report", str(tmp_path / "soak.json")])
    report = json.loads((tmp_path / "soak.json").read_text())
    assert set(report) >= FIELDS
    assert report["requests"] > 20
    assert report["mutated"] == 400
    assert (report["wrong"], report["lost"], report["crashes"]) == (0, 0, 0)
