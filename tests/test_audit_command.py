"""``mcfhe audit``, and the committed table that SECURITY.md is made from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import render_audit
from mcfhe.cli import run
from mcfhe.modular import audit
from tests.audit_support import Case, real_images
from tests.test_audit import PIXELS

ROOT = Path(__file__).parent.parent
PROFILES = ("patent", "hardened")


class Files:
    def __init__(self, root: Path, profile: str) -> None:
        self.case = Case.make(real_images(2), profile)
        self.root, self.spec, self.request = root, root / "spec.json", root / "request"
        self.spec.write_text(self.case.server.spec.to_json())
        self.case.request.save(self.request)


@pytest.mark.parametrize("profile", PROFILES)
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str) -> None:
    files = Files(tmp_path, profile)
    picture = tmp_path / "recovered.png"
    arguments = [
        "audit",
        str(files.request),
        "--spec",
        str(files.spec),
        "--known",
        "border=0",
        "--picture",
        str(picture),
    ]
    assert run([*arguments, "--json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert set(body) == {*("recovered", "profile", "limbs", "lanes", "images", "modulus_bits", "attacks", "picture")}
    assert body["recovered"] is True
    keys = {"attack", "profile", "outcome", "recovered", "images", "positions", "seconds", "detail"}
    assert all(set(row) == keys for row in body["attacks"])
    assert [row["attack"] for row in body["attacks"]] == list(audit.ATTACKS)
    small = next(row for row in body["attacks"] if row["attack"] == "small-value")
    assert tuple(small["positions"]) == files.case.client.secret_key.positions
    assert small["images"] == [0, 1]
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 100
    assert run([*arguments, "--attack", "small-value", "--images", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("small-value  recovered")
    assert "without semantic security" in captured.err


def test_command_exits_0_when_nothing_was_recovered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Files(tmp_path, "hardened")
    arguments = ["audit", str(files.request), "--spec", str(files.spec), "--attack", "quotient", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["recovered"] is False


@pytest.mark.parametrize(
    ("known", "word"),
    [
        ("nonsense", "nonsense"),
        ("1,2=256", "0..255"),
        ("28,0=1", "row 28"),
        ("2,0,0,0=1", "image 2"),
        ("border=999", "255"),
    ],
)
def test_command_refuses_bad_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str], known: str, word: str) -> None:
    files = Files(tmp_path, "patent")
    assert run(["audit", str(files.request), "--spec", str(files.spec), "--known", known, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("mcfhe: ")
    assert word in captured.err
    assert captured.out == ""


def test_command_reads_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Files(tmp_path, "patent")
    files.case.client.save(tmp_path / "key")
    assert run(["audit", str(tmp_path / "key"), "--spec", str(files.spec), "--quiet"]) == 1
    assert "secret" in capsys.readouterr().err


def test_committed_table_is_exact_and_security_md_agrees() -> None:
    table = json.loads(render_audit.RESULTS.read_text("utf-8"))["attacks"]
    assert all(row["exact"] for row in table)
    text = render_audit.SECURITY.read_text("utf-8")
    assert render_audit.render(text) == text
    assert not re.search(r"\bsecure\b|128-bit|\bcannot\b", text, re.IGNORECASE)
    for profile in PROFILES:
        found = {
            r["attack"]
            for r in table
            if r["profile"] == profile and r["set"] == "default" and "pixels of" in r["recovered"]
        }
        assert found - {"equality", "reaction"} == PIXELS[profile]
