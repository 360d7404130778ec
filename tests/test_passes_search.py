"""scale_bits="auto": what is found agrees, is cheap, and is told."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe import models
from mcfhe.compiler.search import SearchResult
from mcfhe.errors import ParameterError
from mcfhe.graph.report import limbs_needed
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE, PROFILES
from tests.graph_support import one_thread  # noqa: F401 - a fixture

IMAGES = np.random.default_rng(3).integers(0, 256, (120, 1, 8, 8), np.uint8)


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return models.lenet(image_size=8, num_classes=3).eval()


def search(**arguments: Any) -> Program:
    given = {"scale_bits": "auto", "calibration": IMAGES, "tolerance": 0.02, **arguments}
    return mcfhe.compile(model(), (1, 8, 8), 0.5, 0.5, **given)


def float_labels() -> np.ndarray:
    with torch.no_grad():
        scores = model().double()((torch.from_numpy(IMAGES).double() / 255 - 0.5) / 0.5)
    return scores.argmax(1).numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def program() -> Program:
    return search()


def result_of(program: Program) -> SearchResult:
    assert program.search is not None
    return program.search


def test_what_is_found_agrees(program: Program) -> None:
    result = result_of(program)
    mistakes = int((program.evaluate_plain(IMAGES).argmax(1).numpy() != float_labels()).sum())
    assert mistakes == result.chosen.mistakes <= result.allowed == 2
    assert result.chosen.accepted
    assert result.chosen.images == len(IMAGES)
    assert program.settings.weight_bits == result.chosen.weight_bits
    assert program.settings.scale_bits == result.chosen.input_bits
    assert program.certificate(DEFAULT_PROFILE).required_bits == result.chosen.required_bits


def test_nothing_cheaper_agreed(program: Program) -> None:
    """Fewest limbs of all that was tried, and far fewer than by the letter on the same condition."""
    result = result_of(program)
    assert result.chosen.limbs == min(trial.limbs for trial in result.trials if trial.accepted)
    assert result.letter is not None
    assert result.letter.accepted
    assert 4 * result.chosen.limbs <= 3 * result.letter.limbs
    assert program.settings.letter is not None
    assert program.settings.letter.required_bits[PROFILES.index(DEFAULT_PROFILE)] == result.letter.required_bits


def test_trials_differ_and_some_fail(program: Program) -> None:
    trials = result_of(program).trials
    assert len({(t.input_bits, t.weight_bits) for t in trials}) == len(trials)
    assert any(not trial.accepted for trial in trials)
    assert all(trial.mistakes > result_of(program).allowed for trial in trials if not trial.accepted)


def test_table(program: Program) -> None:
    lines = str(result_of(program)).splitlines()
    assert lines[0] == "120 images, 2 mistakes allowed (labels other than the float model's)"
    assert lines[1].split() == ["input", "conv1", "conv2", "fc1", "fc2", "bits", "limbs", "mistakes", "images"]
    assert len(lines) == 2 + len(result_of(program).trials)
    assert sum("taken" in line for line in lines) == 1
    assert "limbs before" in program.summary()


def test_results_do_not_depend_on_chance(program: Program) -> None:
    assert search(calibration=torch.from_numpy(IMAGES)).program_id == program.program_id
    assert Program.from_bytes(program.to_bytes()) == program


def test_true_labels_and_fixed_scales() -> None:
    labels = float_labels()
    labels[:7] = (labels[:7] + 1) % 3
    program = search(calibration_labels=labels, weight_bits={"fc2": 11}, passes=["eliminate_dead_nodes"])
    result = result_of(program)
    assert (result.allowed, result.counted) == (9, "wrong labels, 7 by the float model")
    assert program.settings.layer_bits is not None
    assert program.settings.layer_bits["fc2"] == 11
    assert "pool1" in program.settings.layer_bits
    assert int((program.evaluate_plain(IMAGES).argmax(1).numpy() != labels).sum()) <= 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibration": None}, "calibration: images are needed"),
        ({"scale_bits": 8}, "and for nothing else"),
        ({"scale_bits": "best"}, "scale_bits = 'best'"),
        ({"calibration": IMAGES[:0]}, "at least one image"),
        ({"calibration": IMAGES[:, :, :7]}, r"\(120, 1, 7, 8\).*\[batch, 1, 8, 8\]"),
        ({"calibration": IMAGES / 255}, "float64"),
        ({"calibration_labels": [1, 2]}, "calibration_labels: shape"),
        ({"tolerance": 1.0}, "tolerance = 1.0"),
        ({"calibration_labels": (float_labels() + 1) % 3, "tolerance": -0.1}, "tolerance"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        search(**arguments)


def test_models_that_no_scales_can_follow() -> None:
    """Two scores that differ by less than any rounding."""
    linear = torch.nn.Linear(64, 2).double()
    with torch.no_grad():
        linear.weight[1] = linear.weight[0] + torch.randn(64, dtype=torch.float64) * 1e-9
        linear.bias.zero_()
    network = torch.nn.Sequential(torch.nn.Flatten(), linear).eval()
    with pytest.raises(ParameterError, match="no scales agree"):
        mcfhe.compile(network, (1, 8, 8), 0.5, 0.5, scale_bits="auto", calibration=IMAGES, tolerance=0.0)


def test_the_shipped_lenet_needs_three_quarters_of_the_letters_limbs() -> None:
    """What the search finds on the first 500 images of the sample at a tolerance of 0.002, against the letter at 2^8,
    on the other 500."""
    network = models.lenet(pretrained="fashion-mnist")
    card = network.mcfhe_metadata
    images = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test").images[500:]
    arguments: dict[str, Any] = {"input_shape": (1, 28, 28), "mean": card.mean, "std": card.std}  # type: ignore[union-attr]
    bits = {"conv1": 10, "conv2": 11, "fc1": 12, "fc2": 8}
    found = mcfhe.compile(network, **arguments, passes="default", scale_bits=6, weight_bits=bits)
    letter = mcfhe.compile(network, **arguments, passes="letter", scale_bits=8)
    limbs = [limbs_needed(p.certificate("patent").required_product, 30) for p in (found, letter)]
    assert limbs == [12, 16]
    mean, std = card.mean[0], card.std[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        expected = copy.deepcopy(network).double()((images.double() / 255 - mean) / std).argmax(1)
    mistakes = [int((p.evaluate_plain(images).argmax(1) != expected).sum()) for p in (found, letter)]
    assert max(mistakes) <= 1  # of 500: the tolerance
