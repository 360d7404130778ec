"""The README's example runs as written and its numbers are those of the committed measurements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mcfhe
from benchmarks import render_lattice, render_models
from benchmarks.render import render
from mcfhe.cli import run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_python_examples_run_as_written(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert run(["keygen", str(tmp_path / "net.spec.json"), "--out", str(tmp_path / "client.key")]) == 0
    assert mcfhe.load_program(tmp_path / "net.mcfhe").input_shape == (1, 28, 28)
    assert done.stdout.splitlines() == ["Ankle boot", "Pullover", "Trouser", "Trouser", "Shirt"]


def test_numbers_come_from_the_measurements() -> None:
    assert render(TEXT) == TEXT


def test_tables_of_the_models_come_from_their_files_and_measurements() -> None:
    page = render_models.PAGE.read_text("utf-8")
    assert render_models.render(page) == page


def test_table_of_the_lattice_scheme_comes_from_its_measurements() -> None:
    page = render_lattice.PAGE.read_text("utf-8")
    assert render_lattice.render(page) == page


def test_every_listed_command_exists() -> None:
    from mcfhe.cli import app

    assert set(re.findall(r"^\| `mcfhe ([\w-]+)", TEXT, re.MULTILINE)) == set(app.commands)


def test_links_point_to_files() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link
