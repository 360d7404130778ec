"""The whole flow of the lattice scheme over files, by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mcfhe
from mcfhe.cards import ModelCard
from mcfhe.cli import run
from mcfhe.lattice.seal import available
from mcfhe.wording import LATTICE_LINE

pytestmark = pytest.mark.skipif(not available(), reason="needs tenseal: pip install 'mcfhe[lattice]'")

SIDE = 4


class Files:
    """A LeNet for 4 x 4 pixels, its program, a key and an encrypted request of two images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.program, self.spec = root / "model.st", root / "net.mcfhe", root / "spec.json"
        self.key, self.request, self.response = root / "client.key", root / "request", root / "response"
        self.images = [root / "a.png", root / "b.png"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    files = Files(tmp_path_factory.mktemp("lattice-cli"))
    torch.manual_seed(3)
    arguments: dict[str, Any] = {
        "in_channels": 1,
        "num_classes": 3,
        "image_size": SIDE,
        "batch_norm": False,
        "activation": "poly",
    }
    card = ModelCard(
        arch="lenet",
        arguments=arguments,
        dataset="none",
        input_shape=(1, SIDE, SIDE),
        mean=(0.25,),
        std=(0.5,),
        labels=("ant", "bee", "cat"),
    )
    mcfhe.models.save(mcfhe.models.lenet(**arguments).eval(), files.model, card)
    generator = np.random.default_rng(0)
    for path in files.images:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(path)
    assert command("compile", files.model, "-o", files.program, "--spec", files.spec, "--scheme", "lattice") == 0
    assert command("keygen", files.spec, "-o", files.key) == 0
    assert command("encrypt", *files.images, "--key", files.key, "-o", files.request, "--quiet") == 0
    return files


def command(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_flow(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("compile", files.model, "-o", files.program, "--spec", files.spec, "--scheme", "lattice") == 0
    printed = capsys.readouterr().out
    assert "ring degree" in printed
    assert "predicted on cpu: encrypt" in printed
    assert (
        command("compile", files.model, "-o", files.program, "--spec", files.spec, "--scheme", "lattice", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["cost"]["slots"] >= 2048
    assert command("keygen", files.spec, "-o", files.key, "--force", "--json") == 0
    key = json.loads(capsys.readouterr().out)
    assert key["degree"] >= 4096
    assert files.key.stat().st_mode & 0o777 == 0o600
    assert command("encrypt", *files.images, "--key", files.key, "-o", files.request) == 0
    assert "IND-CPA" in capsys.readouterr().err
    assert command("evaluate", files.program, files.request, "-o", files.response) == 0
    capsys.readouterr()
    assert command("decrypt", files.response, "--key", files.key, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    pixels = np.stack([np.asarray(Image.open(path))[None] for path in files.images])
    expected = mcfhe.load_program(files.program).evaluate_plain(pixels)
    np.testing.assert_allclose(found["scores"], expected.numpy(), atol=1e-2)
    assert found["labels"] == [("ant", "bee", "cat")[i] for i in expected.argmax(1)]


def test_a_secret_is_no_request(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", files.program, files.key, "-o", files.root / "never") == 1
    assert "secrets" in capsys.readouterr().err
    assert not (files.root / "never").exists()


def test_another_schemes_request_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    modular, key, request = files.root / "modular.mcfhe", files.root / "modular.key", files.root / "modular.request"
    assert command("compile", files.model, "-o", modular, "--scale-bits", 4) == 0
    assert command("keygen", modular, "-o", key) == 0
    assert command("encrypt", *files.images, "--key", key, "-o", request) == 0
    capsys.readouterr()
    for program, message in ((files.program, request), (modular, files.request)):
        assert command("evaluate", program, message, "-o", files.root / "never") == 1
        error = capsys.readouterr().err
        assert "scheme" in error
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) == 1


def test_bench(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench", "--model", files.model, "--scheme", "lattice", "--repeats", 2
    assert command(*arguments, "--json", "-q") == 0
    body = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in body["rows"]] == ["encrypt", "evaluate", "decrypt", "float32"]
    assert all(row["median"] > 0 for row in body["rows"])
    assert body["scheme"] == "lattice"
    assert body["images"] == body["slots"] == body["degree"] // 2
    assert "lanes" not in body
    assert body["ratio"] > 0
    assert command(*arguments, "--images", 3) == 0
    captured = capsys.readouterr()
    assert "3 images, lattice scheme, " in captured.out
    assert "times the network in float32" in captured.out
    assert LATTICE_LINE in captured.err
    assert command(*arguments, "--images", body["slots"] + 1) == 1
    assert "split the batch" in capsys.readouterr().err
