"""convert: what is found and replaced, how good the fits are, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mcfhe
from mcfhe.conversion.fitting import BINS, UNIFORM_SHARE, Histogram, InputRange, fit
from mcfhe.errors import McfheError, ParameterError
from tests.graph_support import one_thread

__all__ = ["one_thread"]


def histogram_of(x: Tensor, per_channel: bool = False) -> Histogram:
    seen = InputRange(per_channel)
    seen.see(x)
    histogram = Histogram(seen)
    histogram.see(x)
    return histogram


def images(count: int = 40, shape: tuple[int, ...] = (2, 8, 8), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


# Fits -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=5), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_polynomial_is_found_again(coefficients: list[int], seed: int) -> None:
    x = images(20, seed=seed) * 3 + 1
    degree = len(coefficients) - 1
    found = fit(lambda v: sum(c * v**i for i, c in enumerate(coefficients)) + 0 * v, histogram_of(x), (degree,))
    assert np.allclose(found.coefficients, [coefficients], atol=1e-8)
    assert found.largest < 1e-7


@pytest.mark.parametrize("degree", [2, 3, 5])
def test_no_other_polynomial_has_a_smaller_weighted_error(degree: int) -> None:
    """The gradient of the objective, written out here from its definition, is zero."""
    x = images(100)
    histogram = histogram_of(x)
    found = fit(torch.relu, histogram, (degree,)).coefficients[0]
    low, high = float(x.min()), float(x.max())
    centres = low + (high - low) * (np.arange(BINS) + 0.5) / BINS
    counts, _ = np.histogram(x.double().numpy(), bins=BINS, range=(low, high))
    weights = (1 - UNIFORM_SHARE) * counts / counts.sum() + UNIFORM_SHARE / BINS
    misfit = np.polynomial.polynomial.polyval(centres, found) - np.maximum(centres, 0)
    powers = centres[None] ** np.arange(degree + 1)[:, None]
    gradient = powers @ (weights * misfit)
    assert np.abs(gradient).max() < 3e-4 * np.abs(powers @ (weights * np.abs(misfit))).max()


def test_degrees_are_chosen_by_error_for_each_order() -> None:
    histogram = histogram_of(images(200))
    assert fit(torch.relu, histogram, range(1, 5)).degree == 2
    assert fit(torch.tanh, histogram, range(1, 5)).degree == 3  # odd: degree 2 would be the line
    assert fit(lambda x: 3 * x + 1, histogram, range(1, 5)).degree == 1
    assert fit(lambda x: x**3, histogram, range(1, 9)).degree == 3


def test_histogram_counts_every_value_once_in_its_row() -> None:
    x = images(10) * torch.tensor([1.0, 100.0])[:, None, None]
    histogram = histogram_of(x, per_channel=True)
    assert histogram.counts.sum(1).tolist() == [640, 640]
    assert float(histogram.seen.upper[1]) > 50 > float(histogram.seen.upper[0])


# Networks -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """As in a ResNet: one ReLU module that runs twice, a function, a max pool as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x) + x)
        x = functional.max_pool2d(x, 2)
        x = functional.silu(x).tanh()
        return self.fc(x.flatten(1))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )


def test_every_call_gets_a_polynomial_of_its_own() -> None:
    torch.manual_seed(1)
    model, x = Block(), images()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    converted, report = mcfhe.convert(model, x)
    assert [r.before for r in report.replacements].count("ReLU") == 2
    assert {r.before for r in report.replacements} == {"ReLU", "MaxPool2d", "silu", "tanh"}
    assert sum(isinstance(m, mcfhe.PolyActivation) for m in converted.modules()) == 4
    assert not any(m.training for m in converted.modules())
    assert model.training  # untouched
    assert isinstance(model.relu, nn.ReLU)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert mcfhe.compile(converted, (2, 8, 8), scale_bits=4).labels == ("0", "1", "2")


def test_a_sequential_stays_one() -> None:
    converted, report = mcfhe.convert(plain(), images(), degree={"2": 3})
    assert isinstance(converted, nn.Sequential)
    assert isinstance(converted[3], nn.AvgPool2d)
    assert converted[2].degree == 3
    assert [r.name for r in report.replacements] == ["2", "3"]
    assert "MaxPool2d" in str(report)
    assert f"of {len(images())} images keep their label" in str(report)


def test_range_and_error_are_those_of_the_layer() -> None:
    """Of the second activation: on what the first one, replaced already, leaves for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    x = images()
    converted, report = mcfhe.convert(model, x, per_channel=True)
    with torch.no_grad():
        inputs = converted[:4](x)
        old, new = functional.gelu(inputs).double(), converted[4](inputs).double()
    found = report.replacements[1]
    assert (found.lower, found.upper) == (pytest.approx(float(inputs.min())), pytest.approx(float(inputs.max())))
    assert converted[4].fitted_range == (found.lower, found.upper)
    spread = (old - old.mean(0)).square().mean().sqrt()
    assert found.error == pytest.approx(float((new - old).square().mean().sqrt() / spread), rel=0.05)
    assert found.largest is not None
    assert float((new - old).abs().max()) <= found.largest * 1.01


def test_one_polynomial_a_channel_is_never_worse() -> None:
    model = plain()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.2, 1.0, 3.0, 9.0]))
    shared = mcfhe.convert(model, images()).report.replacements[0]
    single = mcfhe.convert(model, images(), per_channel=True).report.replacements[0]
    assert single.error is not None
    assert shared.error is not None
    assert single.error < shared.error


def test_slopes_of_prelu_are_kept_apart() -> None:
    model = nn.Sequential(nn.PReLU(2), nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]))  # the identity, and |x|
    converted, report = mcfhe.convert(model, images(100))
    assert converted[0].num_channels == 2
    rows = converted[0].coefficients.detach()
    assert abs(float(rows[0, 1]) - 1) < 1e-4
    assert abs(float(rows[1, 1])) < 0.2 < float(rows[1, 2])
    assert "2 channels" in str(report)


def test_pixels_are_normalised_as_compile_does() -> None:
    pixels = torch.randint(0, 256, (20, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    floats = (pixels / 255 - 0.3) / 0.5
    first = mcfhe.convert(plain(), pixels, mean=0.3, std=(0.5, 0.5)).model
    second = mcfhe.convert(plain(), floats).model
    torch.testing.assert_close(first[2].coefficients, second[2].coefficients)


class Branches(nn.Module):
    """fx cannot trace it; one module runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 0:
            x = self.relu(self.relu(x) - 1)
        return x.flatten(1)


class Backwards(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) / torch.zeros(())


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (lambda: Branches(), {}, r"layer 'relu': runs 2 times .* give each its own module"),
    (lambda: nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.Flatten()), {}, r"layer '0': a MaxPool2d with .* dilation"),
    (lambda: nn.Sequential(Backwards(), nn.ReLU()), {}, r"layer '1': its inputs are not finite"),
    (plain, {"degree": {"relu": 2}}, r"degree: no activation 'relu'; there are 2"),
    (plain, {"degree": 9}, r"degree of layer '2': 9; use 1..8"),
    (plain, {"max_degree": 0}, "max_degree = 0"),
    (plain, {"calibration": images(3, (1, 8, 8))}, r"calibration: the model does not run on \[batch, 1, 8, 8\]"),
    (plain, {"calibration": images(0)}, "at least one image"),
    (plain, {"calibration": images().int()}, "give uint8 pixels, or finite floats"),
    (plain, {"calibration": images().to(torch.uint8), "std": 0}, "std = 0"),
    (lambda: "lenet", {}, "give a torch.nn.Module"),
]


@pytest.mark.parametrize(("model", "arguments", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(model: Any, arguments: dict[str, Any], message: str) -> None:
    arguments = {"calibration": images()} | arguments
    with pytest.raises(McfheError, match=message):
        mcfhe.convert(model(), **arguments)


def test_fit_needs_a_degree() -> None:
    with pytest.raises(ParameterError, match="degree: none"):
        fit(torch.relu, histogram_of(images()), ())
