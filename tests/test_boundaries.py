"""Who may import whom, checked in fresh processes by what is loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECRET_CODE = {
    "mcfhe.client",
    "mcfhe.keyfile",
    "mcfhe.modular.keys",
    "mcfhe.modular.csprng",
    "mcfhe.modular.encrypt",
    "mcfhe.modular.decrypt",
}
FORBIDDEN = {
    # The server never loads secret-key code.
    "mcfhe.server": SECRET_CODE,
    "mcfhe.cli.server_commands": SECRET_CODE,
    "mcfhe.service.app": {*SECRET_CODE, "mcfhe.remote"},
    "mcfhe.service.run": {*SECRET_CODE, "mcfhe.remote"},
    # The audit attacks with what a server has; nor does its command, which reads specs and requests.
    "mcfhe.modular.audit": SECRET_CODE,
    "mcfhe.cli.audit_command": SECRET_CODE,
    # Nor do several devices behind one server.
    "mcfhe.sharding.sharded": SECRET_CODE,
    "mcfhe.sharding.ray_engine": SECRET_CODE,
    # What talks to a server is never given a secret key, and needs no engine.
    "mcfhe.remote": {"mcfhe.client", "mcfhe.modular.keys", "mcfhe.engine.engine", "mcfhe.program", "mcfhe.server"},
    # A client needs no engine, no program and no compiled extension.
    "mcfhe.client": {"mcfhe.engine.engine", "mcfhe.ops", "mcfhe.program", "mcfhe._C", "mcfhe.server"},
    # The engine knows steps and tensors only.
    "mcfhe.engine.engine": {"mcfhe.wire", "mcfhe.spec", "mcfhe.modular", "mcfhe.container"},
    "mcfhe.graph.steps": {"mcfhe.modular", "mcfhe.ops", "torch"},
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_module_does_not_load(module: str) -> None:
    if module.startswith(("mcfhe.service", "mcfhe.remote")):
        pytest.importorskip("starlette")
        pytest.importorskip("httpx")
    code = f"import sys, {module}\nprint(*sorted(m for m in sys.modules if m.startswith(('mcfhe', 'torch'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & FORBIDDEN[module]


def imported(path: Path) -> set[str]:
    """Modules of the package that a source names anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", ["service", "modular/audit"])
def test_no_late_import_of_secret_key_code(folder: str) -> None:
    """What fresh processes do not show: imports that wait inside functions."""
    paths = sorted((ROOT / "mcfhe" / folder).rglob("*.py"))
    assert len(paths) > 8
    for path in [*paths, ROOT / "mcfhe" / "server.py", ROOT / "mcfhe" / "cli" / "server_commands.py"]:
        names = imported(path)
        assert not names & (SECRET_CODE | {"mcfhe.Client", "mcfhe.SecretKey"}), path.name
