"""The accuracy report: what it counts as wrong, and that it cannot be green without data or below its floors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from benchmarks import accuracy as report
from benchmarks import shipped as listing
from benchmarks.shipped import Shipped
from mcfhe.cards import ModelCard
from mcfhe.errors import ParameterError

SAMPLE = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test", limit=40)


def item() -> Shipped:
    torch.manual_seed(0)
    model = mcfhe.models.tenseal_net().eval()
    card = ModelCard(
        arch="tenseal_net",
        arguments={"in_channels": 1, "num_classes": 10, "image_size": 28, "batch_norm": False, "activation": "square"},
        dataset="toy",
        input_shape=(1, 28, 28),
        mean=(0.25,),
        std=(0.5,),
        labels=SAMPLE.class_names,
    )
    return Shipped("tenseal_net-toy", model, card)


def in_this_process(program: mcfhe.Program, profile: str, inputs: np.ndarray) -> list[list[int]]:
    """What the pool's processes do, without them: they take long to start."""
    report._take(program.to_bytes(), profile)
    return report._evaluate(inputs)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "REPORT", tmp_path / "reports" / "accuracy.json")
    monkeypatch.setattr(report, "COMMITTED", tmp_path / "committed.json")
    monkeypatch.setattr(report, "shipped", lambda: iter([item()]))
    monkeypatch.setattr(report, "SAMPLE", 12)
    monkeypatch.setattr(report, "test_set", lambda card: SAMPLE)
    monkeypatch.setattr(report, "in_integers", in_this_process)
    monkeypatch.delenv("MCFHE_ALLOW_MISSING_DATA", raising=False)
    return tmp_path


def test_report_of_a_model(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--full", "--update"]) == 0
    written = json.loads((files / "reports" / "accuracy.json").read_text())
    assert json.loads((files / "committed.json").read_text()) == written
    (row,) = written["models"]
    program = report.compiled(item())
    labels = program.evaluate_plain(SAMPLE.images).argmax(1)
    assert row["quantised_accuracy"] == float((labels == SAMPLE.labels).double().mean())
    assert row["bits"] == program.certificate("hardened").required_bits
    assert row["order"] == [4, program.integer_program("hardened").output_order.k]
    assert (row["images"], row["encrypted_images"], row["compared_exactly"]) == (40, 40, 12)
    assert (row["mismatches"], row["encrypted_quantised_accuracy"]) == (0, row["quantised_accuracy"])
    assert f"| tenseal_net-toy | 40 | {row['float_accuracy']:.2%} |" in capsys.readouterr().out


def test_only_a_sample_is_encrypted_by_default(files: Path) -> None:
    assert report.main(["tenseal_net-toy"]) == 0
    (row,) = json.loads((files / "reports" / "accuracy.json").read_text())["models"]
    assert (row["images"], row["encrypted_images"]) == (40, 12)


def test_rows_of_models_that_were_not_asked_for_stay(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [{"name": name, "seconds": {"float": 1.5}} for name in ("gone", "other-toy")]
    (files / "committed.json").write_text(json.dumps({"models": others}))
    other = Shipped("other-toy", item().model, item().card)
    monkeypatch.setattr(report, "shipped", lambda: iter([item(), other]))
    assert report.main(["tenseal_net-toy", "--update"]) == 0
    kept = json.loads((files / "committed.json").read_text())
    assert [row["name"] for row in kept["models"]] == ["tenseal_net-toy", "other-toy"]
    assert kept["seconds"] > 1.5
    measured = json.loads((files / "reports" / "accuracy.json").read_text())
    assert [row["name"] for row in measured["models"]] == ["tenseal_net-toy"]


def test_every_wrong_integer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more or less where integers are compared; where intervals are, as much as a wrong residue changes."""
    monkeypatch.setattr(report, "in_integers", in_this_process)
    program = report.compiled(item())
    client = mcfhe.Client.generate(program.client_spec(), profile="hardened")
    request, integers = client.encrypt(SAMPLE.images[:6], return_integers=True)
    right = client.decrypt_integers(mcfhe.Server(program).evaluate(request))
    assert report.mismatches(program, "hardened", integers, right, 3) == 0
    for image, change in ((0, 1), (2, -1), (3, client.evaluation_key.moduli[0]), (5, -(10**400))):
        wrong = [list(row) for row in right]
        wrong[image][7] += change << (0 if image < 3 else 60)
        assert report.mismatches(program, "hardened", integers, wrong, 3) == 1


def test_an_interval_that_is_not_finite_proves_nothing() -> None:
    assert not report.outside(3, 2, 1.5, 0.0)
    assert report.outside(3, 2, 1.5 + 2**-40, 2**-41)
    assert report.outside(3, 2, float("nan"), 1.0)
    assert report.outside(3, 2, 1.5, float("inf"))


def test_missing_data_is_an_error_unless_allowed(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(card: ModelCard) -> Any:
        raise ParameterError("toy: not on this machine")

    monkeypatch.setattr(report, "test_set", absent)
    assert report.main([]) == 1
    assert "tenseal_net-toy: not measured, toy: not on this machine" in capsys.readouterr().err
    monkeypatch.setenv("MCFHE_ALLOW_MISSING_DATA", "1")
    assert report.main([]) == 0
    written = json.loads((files / "reports" / "accuracy.json").read_text())
    assert written["missing"] == [{"name": "tenseal_net-toy", "reason": "toy: not on this machine"}]


def test_floors_and_mismatches_fail_the_report() -> None:
    row = {"name": "lenet-mnist", "quantised_accuracy": 0.9912, "mismatches": 0, "encrypted_images": 5}
    assert list(report.complaints([row])) == ["lenet-mnist: 99.12% of the test set are right, 99.13% are wanted"]
    assert not list(report.complaints([row | {"quantised_accuracy": 0.9913}]))
    (line,) = report.complaints([row | {"quantised_accuracy": 1.0, "mismatches": 2}])
    assert line == "lenet-mnist: 2 of 5 encrypted images mismatch"


def test_data_sets_are_looked_for_where_they_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCFHE_TEST_DATA", str(tmp_path))
    places = []

    def load(name: str, split: str, root: Path | None, download: bool) -> Any:
        places.append(root)
        assert (name, split, download) == ("cifar10-jpeg", "test", False)
        raise ParameterError("nothing here")

    monkeypatch.setattr(listing.datasets, "load", load)
    card = ModelCard("a", {}, "cifar10-jpeg", (1, 1, 1), (0.0,), (1.0,), ("x",))
    with pytest.raises(ParameterError, match="cifar10-jpeg: not on this machine; set MCFHE_TEST_DATA"):
        listing.test_set(card)
    assert places == [tmp_path, tmp_path / "cifar10", None]


def shipped_items() -> Iterator[Shipped]:
    return listing.shipped()


def test_shipped_models_are_small_and_say_how_they_were_made() -> None:
    total = 0
    for found in shipped_items():
        path = mcfhe.models.ASSETS / f"{found.name}.safetensors"
        total += path.stat().st_size
        assert found.card.command.startswith(f"mcfhe train --dataset {found.card.dataset} --arch {found.card.arch} ")
        assert found.card.test_accuracy is not None
        assert "threads" in found.card.environment
    assert total < 5_000_000
