"""``make pip-audit``: a finding fails, a missing network does not, and neither passes for the other."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from benchmarks import known_vulnerabilities as audit

CLEAN: list[dict[str, Any]] = [{"name": "Alpha", "version": "1.0", "vulns": []}]
SKIPPED: list[dict[str, Any]] = [{"name": "beta", "skip_reason": "not found"}]
BAD: list[dict[str, Any]] = [
    {"name": "beta", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}]}
]
REQUIREMENTS = ["alpha==1.0", "beta==2.0"]


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([], "unreachable"),
        ([[], []], "unreachable"),
        ([SKIPPED], "unreachable"),
        ([CLEAN + SKIPPED], "partly"),
        ([CLEAN + BAD], "vulnerable"),
        ([CLEAN + SKIPPED, BAD], "vulnerable"),
        ([CLEAN, [{"name": "beta", "version": "2.0", "vulns": []}]], "clean"),
    ],
)
def test_verdict(answers: list[list[dict[str, Any]]], state: str) -> None:
    assert audit.verdict(REQUIREMENTS, answers)["state"] == state


def test_every_pin_of_the_lockfile_is_asked_for() -> None:
    lines = audit.pinned(audit.LOCK.read_text("utf-8"), "2.13.0+cpu")
    names = {line.split("==")[0] for line in lines}
    assert {"numpy", "safetensors", "cryptography", "pillow", "click", "rich", "pytest", "torch"} <= names
    assert "torch==2.13.0" in lines
    entries = [line for line in audit.LOCK.read_text("utf-8").splitlines() if line[:1].isalnum()]
    assert len(lines) == len(entries) + 1


@pytest.mark.parametrize(
    ("printed", "code", "word"),
    [
        (json.dumps({"dependencies": CLEAN + BAD}), 1, "known vulnerabilities: 1"),
        (json.dumps({"dependencies": CLEAN}), 0, "NOT CHECKED: beta"),
        ("no JSON: the network is down", 0, "NOT CHECKED: no vulnerability database"),
        (json.dumps({"dependencies": [*CLEAN, {"name": "beta", "version": "2.0", "vulns": []}]}), 0, "in 2 of 2"),
    ],
)
def test_with_a_tool_that_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    printed: str,
    code: int,
    word: str,
) -> None:
    tool = tmp_path / "env" / "bin" / "pip-audit"
    tool.parent.mkdir(parents=True)
    (tmp_path / "answer").write_text(printed)
    tool.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}\nexit 1\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "ENVIRONMENT", tmp_path / "env")
    monkeypatch.setattr(audit, "pinned", lambda *_: REQUIREMENTS)
    assert audit.main() == code
    assert word in capsys.readouterr().out
    assert json.loads(audit.REPORT.read_text())["findings"] == (
        [{"name": "beta", "version": "2.0", "id": "PYSEC-1", "fixed": ["2.1"]}] if code else []
    )


def test_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "_run", lambda *_, **__: None)
    assert audit.main() == 0
    assert "NOT CHECKED" in capsys.readouterr().out
