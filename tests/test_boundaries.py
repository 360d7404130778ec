"""Who may import whom, checked in fresh processes by what is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    # The server never loads secret-key code.
    "mcfhe.server": {
        "mcfhe.client",
        "mcfhe.keyfile",
        "mcfhe.modular.keys",
        "mcfhe.modular.encrypt",
        "mcfhe.modular.decrypt",
    },
    "mcfhe.sharded": {"mcfhe.client", "mcfhe.keyfile", "mcfhe.modular.keys", "mcfhe.modular.decrypt"},
    "mcfhe.ray_engine": {"mcfhe.client", "mcfhe.keyfile", "mcfhe.modular.keys", "mcfhe.modular.decrypt"},
    "mcfhe.cli.server_commands": {"mcfhe.client", "mcfhe.modular.keys"},
    "mcfhe.service.app": {"mcfhe.client", "mcfhe.keyfile", "mcfhe.modular.keys", "mcfhe.remote"},
    # What talks to a server is never given a secret key, and needs no engine.
    "mcfhe.remote": {"mcfhe.client", "mcfhe.modular.keys", "mcfhe.engine", "mcfhe.program", "mcfhe.server"},
    # A client needs no engine, no program and no compiled extension.
    "mcfhe.client": {"mcfhe.engine", "mcfhe.ops", "mcfhe.program", "mcfhe._C", "mcfhe.server"},
    # The engine knows steps and tensors only.
    "mcfhe.engine": {"mcfhe.wire", "mcfhe.spec", "mcfhe.modular", "mcfhe.container"},
    "mcfhe.graph.steps": {"mcfhe.modular", "mcfhe.ops", "torch"},
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_module_does_not_load(module: str) -> None:
    if module in ("mcfhe.service.app", "mcfhe.remote"):
        pytest.importorskip("starlette")
        pytest.importorskip("httpx")
    code = f"import sys, {module}\nprint(*sorted(m for m in sys.modules if m.startswith(('mcfhe', 'torch'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & FORBIDDEN[module]
