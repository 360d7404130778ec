"""Asks the vulnerability databases about every pinned dependency: ``make pip-audit``.

Runs pip-audit, in a virtual environment of its own under build/, on the versions of requirements-dev.lock and the torch
that is installed. Writes build/reports/pip-audit.json {state, audited, unknown, findings}. Exit code 1 when a version
has a known vulnerability. Where no database answers, or not for all packages, it says so and exits 0: that is no
finding, and no clean bill either.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements-dev.lock"
REPORT = Path("build/reports/pip-audit.json")
TOOL = "pip-audit>=2.7,<3"
ENVIRONMENT = Path("build/pip-audit")
SERVICES = ("pypi", "osv")
SECONDS = 180


def pinned(lock: str, torch_version: str | None) -> list[str]:
    """``name==version`` of every entry of the lockfile, and torch without its local part."""
    found = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", lock, re.MULTILINE)
    lines = [f"{name}=={version}" for name, version in found]
    return lines + ([f"torch=={torch_version.split('+')[0]}"] if torch_version else [])


def installed_tool() -> Path | None:
    """The pip-audit to run; None where it does not install."""
    tool = ENVIRONMENT / "bin" / "pip-audit"
    if not tool.exists():
        for command in (
            [sys.executable, "-m", "venv", str(ENVIRONMENT)],
            [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", TOOL],
        ):
            if _run(command) is None:
                return None
    return tool if tool.exists() else None


def ask(tool: Path, service: str, requirements: list[str]) -> list[dict[str, Any]]:
    """pip-audit's entries {name, version, vulns} or {name, skip_reason}; [] if the service does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n", "utf-8")
        arguments = [
            "-r",
            str(listed),
            "--no-deps",
            "--disable-pip",
            "-s",
            service,
            "-f",
            "json",
            "--progress-spinner=off",
        ]
        text = _run([str(tool), *arguments], failing=True)
    try:
        entries: list[dict[str, Any]] = json.loads(text or "")["dependencies"]
    except (ValueError, KeyError, TypeError):
        return []
    return entries


def verdict(requirements: list[str], answers: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """state: vulnerable, clean, partly (some packages are unknown to every service) or unreachable."""
    audited: set[str] = set()
    findings: dict[tuple[str, str], dict[str, Any]] = {}  # services repeat each other
    for entry in (entry for answer in answers for entry in answer):
        if "vulns" not in entry:
            continue
        audited.add(entry["name"].lower())
        name, version = entry["name"], entry["version"]
        for v in entry["vulns"]:
            fixed = v.get("fix_versions", [])
            findings[name, v["id"]] = {"name": name, "version": version, "id": v["id"], "fixed": fixed}
    names = {line.split("==")[0].lower() for line in requirements}
    state = "clean" if audited >= names else "partly" if audited else "unreachable"
    return {
        "name": "pip-audit",
        "state": "vulnerable" if findings else state,
        "audited": sorted(audited),
        "unknown": sorted(names - audited),
        "findings": list(findings.values()),
    }


def main() -> int:
    try:
        torch_version: str | None = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = None
    requirements = pinned(LOCK.read_text("utf-8"), torch_version)
    tool = installed_tool()
    answers: list[list[dict[str, Any]]] = []
    for service in SERVICES if tool else ():
        answers.append(ask(tool, service, requirements) if tool else [])
        if verdict(requirements, answers)["state"] == "clean":
            break
    found = verdict(requirements, answers)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for finding in found["findings"]:
        fixed = ", ".join(finding["fixed"]) or "no version yet"
        print(f"{finding['name']} {finding['version']}: {finding['id']}, fixed in {fixed}", file=sys.stderr)
    count = f"{len(found['audited'])} of {len(requirements)} pinned packages"
    print(
        {
            "vulnerable": f"known vulnerabilities: {len(found['findings'])}, in {count} that could be checked",
            "clean": f"no known vulnerability in {count}",
            "partly": f"no known vulnerability in {count}; NOT CHECKED: {', '.join(found['unknown'])}",
            "unreachable": "NOT CHECKED: no vulnerability database answered, or pip-audit could not be installed",
        }[found["state"]]
    )
    return int(found["state"] == "vulnerable")


def _run(command: list[str], failing: bool = False) -> str | None:
    """Standard output; None if it did not run, or ended with an error and ``failing`` is not set."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if failing or done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
