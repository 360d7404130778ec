"""finetune: wins accuracy back, keeps ranges, is a function of its arguments, and refuses what it cannot use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mcfhe
from mcfhe.errors import McfheError
from tests.graph_support import one_thread

__all__ = ["one_thread"]


def task(count: int = 400) -> tuple[Tensor, Tensor]:
    """Which of three 4 x 4 patterns is in the noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, 1, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return patterns[labels] + 0.7 * torch.randn(count, 1, 4, 4, generator=generator), labels


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 3)
    )
    return mcfhe.convert(model, task()[0][:100]).model


def test_accuracy_comes_back() -> None:
    images, labels = task()
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tuned, report = mcfhe.finetune(
        model, images[:300], labels[:300], validation=(images[300:], labels[300:]), batch_size=20, lr=1e-2
    )
    assert report.before.accuracy < 0.7 < 0.8 < report.after.accuracy
    assert report.scored_on == "validation"
    assert len(report.losses) == 3
    assert "validation accuracy" in str(report)
    with torch.no_grad():
        found = (tuned(images[300:]).argmax(1) == labels[300:]).double().mean()
    assert report.after.accuracy == pytest.approx(float(found))
    assert not any(m.training for m in tuned.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_equal_arguments_give_equal_weights() -> None:
    images, labels = task(100)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = mcfhe.finetune(network(), images, labels, epochs=1, seed=3).model.state_dict()
    torch.manual_seed(6)
    second = mcfhe.finetune(network(), images, labels, epochs=1, seed=3).model.state_dict()
    other = mcfhe.finetune(network(), images, labels, epochs=1, seed=4).model.state_dict()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    torch.manual_seed(5)
    model = network()
    torch.set_rng_state(before)
    mcfhe.finetune(model, images, labels, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_penalty_keeps_inputs_in_range() -> None:
    images, labels = task()
    outside = {}
    for weight in (0.0, 10.0):
        model = network()
        activation = next(m for m in model.modules() if isinstance(m, mcfhe.PolyActivation))
        assert activation.fitted_range is not None
        activation.fitted_range = (-0.5, 0.5)
        report = mcfhe.finetune(model, images, labels, epochs=6, batch_size=20, lr=3e-2, range_weight=weight).report
        outside[weight] = report.after.outside
        assert report.before.outside > 0.2
    assert outside[10.0] < 0.5 * outside[0.0]


def test_ranges_of_other_activations_are_measured() -> None:
    images, labels = task(100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), mcfhe.PolyActivation(), nn.Linear(8, 3))
    report = mcfhe.finetune(model, images, labels, epochs=1).report
    assert report.before.outside == 0
    assert report.scored_on == "training"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs = 0"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"seed": -1}, "seed = -1"),
    ({"lr": 0.0}, "lr = 0.0"),
    ({"lr": float("nan")}, "lr = nan"),
    ({"range_weight": -1.0}, "range_weight = -1.0"),
    ({"labels": torch.zeros(3)}, r"labels: torch.float32 \[3\] for 20 images"),
    ({"labels": torch.zeros(3, dtype=torch.int64)}, "one whole number for each"),
    ({"images": torch.zeros(0, 1, 4, 4)}, "at least one image"),
    ({"lr": 1e30, "epochs": 3}, "diverged"),
    ({"validation": (torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64))}, r"validation: .* for 2 images"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    images, labels = task(20)
    arguments = {"model": network(), "images": images, "labels": labels, "epochs": 1} | arguments
    with pytest.raises(McfheError, match=message):
        mcfhe.finetune(**arguments)
