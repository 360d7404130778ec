"""Runs every CUDA kernel on the CPU under the SIMT harness and reports what was run and caught.

    python csrc/testing/simt/run.py --report build/reports/simt.json

The cases are tests/simt/. Beyond their passing, every `__global__` function in the sources must have run, and
every planted mistake must have been caught.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import ROOT, VARIANTS, build, compiler, compiler_available, global_functions, planted_names

Report = dict[str, object]


def run_tests(log: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/simt"]
    environment = {key: value for key, value in os.environ.items() if key != "MCFHE_REPORT"}
    done = subprocess.run(command, cwd=ROOT, env={**environment, "MCFHE_SIMT_LOG": str(log)}, check=False)
    return done.returncode == 0


def judge(passed: bool, log: dict[str, list[str]]) -> Report:
    """The report; ok needs passing tests, every kernel run and every planted mistake caught."""
    functions = global_functions()
    never_run = sorted(set(functions) - set(log["kernels_run"]))
    missed = sorted(set(planted_names()) - set(log["planted_caught"]))
    return {
        "name": "simt",
        "ok": passed and not never_run and not missed,
        "tests_passed": passed,
        "kernels_run": [name for name in log["kernels_run"] if name in functions],
        "global_functions": functions,
        "never_run": never_run,
        "planted_caught": sorted(log["planted_caught"]),
        "planted_missed": missed,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the CUDA kernels on the CPU, under sanitizers and a race check.")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "reports" / "simt.json")
    options = parser.parse_args(arguments)
    started = time.time()
    report: Report
    if not compiler_available():
        print(f"simt: no {compiler()}; install g++ 11 or later, or set MCFHE_SIMT_CXX", file=sys.stderr)
        report = {"name": "simt", "ok": False, "kernels_run": [], "global_functions": [], "planted_caught": []}
    else:
        for variant in VARIANTS:
            build(variant)
        built = time.time()
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.json"
            passed = run_tests(log)
            seen = json.loads(log.read_text()) if log.exists() else {"kernels_run": [], "planted_caught": []}
        report = {**judge(passed, seen), "build_seconds": round(built - started, 1)}
    report["seconds"] = round(time.time() - started, 1)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    partial = options.report.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.rename(options.report)
    for key in ("never_run", "planted_missed"):
        if report.get(key):
            print(f"simt: {key.replace('_', ' ')}: {report[key]}", file=sys.stderr)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
