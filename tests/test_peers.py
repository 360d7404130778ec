"""The comparison with peers: every contender computes the same network, and the table says what security each gives."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from benchmarks import peer_mcfhe, peer_nets, peer_tenseal, peers
from benchmarks.peer_nets import SquareNet, squares
from benchmarks.shipped import Shipped
from mcfhe.cards import ModelCard

SAMPLE = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test", limit=12)
PIXELS = SAMPLE.images[:, :, 10:18, 10:18].contiguous()
CARD = ModelCard(
    arch="toy",
    arguments={},
    dataset="toy",
    input_shape=(1, 8, 8),
    mean=(0.28,),
    std=(0.35,),
    labels=SAMPLE.class_names,
)


def network(padding: int) -> SquareNet:
    """Small enough for seconds of lattice arithmetic; quadratics that are no pure squares, as after training."""
    torch.manual_seed(0)
    rows = (8 + 2 * padding - 4) // 4 + 1
    model = nn.Sequential()
    for name, layer in (
        ("conv", nn.Conv2d(1, 2, 4, stride=4, padding=padding)),
        ("act1", mcfhe.PolyActivation((0.2, -0.3, 0.6))),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(2 * rows**2, 8 * rows)),
        ("act2", mcfhe.PolyActivation((-0.1, 0.4, 0.8))),
        ("fc2", nn.Linear(8 * rows, 10)),
    ):
        model.add_module(name, layer)
    return squares(Shipped("toy", model.eval(), CARD), PIXELS, SAMPLE.labels)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_pure_squares_compute_the_shipped_network(padding: int) -> None:
    net = network(padding)
    scores = net.scores(net.images)
    expected = mcfhe.scoring.scores(net.item.model, net.pixels, CARD.mean, CARD.std).detach().numpy()
    assert np.abs(scores - expected).max() < 1e-12 * max(1.0, np.abs(expected).max())
    assert len({tuple(row.argsort()) for row in scores}) > 1


def test_modular_contenders_and_float32_agree_with_float64() -> None:
    net = network(1)
    truth = float((net.scores(net.images).argmax(1) == net.labels.numpy()).mean())
    for run, batch in ((peer_mcfhe.one_image, 1), (peer_mcfhe.batched, 12), (peer_mcfhe.plain, 1)):
        found = run(net)
        assert (found.batch, found.images, found.agreement, found.accuracy) == (batch, 12, 1.0, truth)
        assert found.latency > 0
        assert found.bytes_up > 64 * (run is not peer_mcfhe.plain)


@pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed (extra peers)")
@pytest.mark.parametrize("run", [peer_tenseal.packed, peer_tenseal.batched])
def test_lattice_contenders_compute_the_same_network(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(peer_tenseal, "_measured", lambda net, scores, *rest: seen.append((scores, rest)))
    net = network(0)
    few = SquareNet(**{**net.__dict__, "pixels": net.pixels[:2], "labels": net.labels[:2]})
    run(few)
    ((scores, (batch, times, sizes, key_bytes)),) = seen
    exact = few.scores(few.images)
    # a scale of 2^26 leaves few digits; another network would not correlate at all
    assert np.corrcoef(scores.flatten(), exact.flatten())[0, 1] > 0.95
    assert batch == (2 if run is peer_tenseal.batched else 1)
    assert min(*times, *sizes, key_bytes) > 0


def test_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "REPORT", tmp_path / "peers.json")
    monkeypatch.setattr(peers, "COMMITTED", tmp_path / "committed.json")
    measured = peer_nets.Measured(8, 16, 0.4, 0.1, 0.1, 0.75, 1.0, 8000, 80, 0)
    monkeypatch.setattr(peers, "_measured_apart", lambda *arguments: (measured, 3 << 20))
    assert peers.main(["--networks", "tenseal_net-mnist", "--only", "mcfhe", "--update"]) == 0
    report = json.loads((tmp_path / "peers.json").read_text())
    assert json.loads((tmp_path / "committed.json").read_text()) == report
    assert [row["amortised"] for row in report["rows"]] == [0.05, 0.05, 0.05]
    lines = capsys.readouterr().out.splitlines()
    assert "security" in lines[0]
    assert lines[-2] == (
        "| tenseal_net-mnist | mcfhe, modular, batch | 400 ms | 50 ms | 16 | 75.0% | 100.0% | 1 kB | 10 B | 0 B "
        "| 3.15 MB | none proven (obfuscation) |"
    )


def test_every_contender_says_what_security_it_gives() -> None:
    for contender in peers.CONTENDERS:
        assert contender.security.startswith(("none", "128-bit lattice"))
        assert ("128-bit" in contender.security) == ("modular" not in contender.name and "torch" not in contender.name)


def test_a_peer_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.main(["--only", "TenSEAL"]) == 1
    assert 'pip install "mcfhe[peers]"' in capsys.readouterr().err
    assert peers.main(["--only", "nobody"]) == 1
    assert "no contender's name contains 'nobody'" in capsys.readouterr().err
