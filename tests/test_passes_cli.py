"""``mcfhe compile`` with passes, scales of layers and the search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mcfhe
from mcfhe.cli import run
from tests.graph_support import one_thread  # noqa: F401 - a fixture

SHIPPED = "lenet:fashion-mnist"


def test_passes_and_scales(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "net"
    command = ["compile", SHIPPED, "--out", str(out), "--passes", "default", "--scale-bits", "6"]
    assert run([*command, "--weight-bits", "conv1=7", "--weight-bits", "fc2=8", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["scale_bits"], body["tried"]) == (6, None)
    assert (body["weight_bits"]["conv1"], body["weight_bits"]["fc2"]) == (7, 8)
    assert mcfhe.load_program(out).program_id == body["program_id"]
    assert run(["compile", SHIPPED, "--out", str(out), "--passes", "fold_pool_factors,eliminate_dead_nodes"]) == 0
    assert "limbs before" in capsys.readouterr().out


def test_search(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["compile", SHIPPED, "--out", str(tmp_path / "net"), "--scale-bits", "auto", "--tolerance", "0.02"]
    sample = ["--calibrate", mcfhe.datasets.SAMPLE, "--split", "test", "--calibration-images", "50"]
    assert run([*command, *sample]) == 0
    text = capsys.readouterr().out
    assert "50 images, 1 mistakes allowed" in text
    assert "limbs before" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale-bits", "auto"], "calibration"),
        (["--scale-bits", "many"], "'many'"),
        (["--passes", "fast"], "no pass 'fast'"),
        (["--weight-bits", "conv1"], "LAYER=BITS"),
        (["--weight-bits", "conv7=8"], "no layer 'conv7'"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], message: str) -> None:
    assert run(["compile", SHIPPED, "--out", str(tmp_path / "net"), *options]) == 1
    assert message in capsys.readouterr().err
