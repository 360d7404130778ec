"""Training: learns, repeats itself bit for bit, never looks at the test split, and survives rounding to integers."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcfhe import datasets, models, scoring
from mcfhe.activations import PolyActivation
from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError
from mcfhe.train import Epoch, TrainResult, train
from mcfhe.train import loop as training
from mcfhe.train.augment import AUGMENTATIONS
from mcfhe.train.range_penalty import RANGE, RangePenalty
from mcfhe.train.recipes import RECIPES

SCALE = 256


def bars(count: int, seed: int, channels: int = 1, split: str = "train") -> Dataset:
    """Noise with a bright bar in one of four places: learnable in seconds, 25 % by guessing."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    images = generator.integers(0, 120, (count, channels, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        rows = slice(1, 3) if label < 2 else slice(5, 7)
        image[:, rows, :] += 110
        if label % 2:
            image[:] = image.transpose(0, 2, 1).copy()
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels), ("n", "w", "s", "e"), "bars", split)


SETS = (bars(512, 0), bars(256, 1, split="test"))


def quick(**changes: Any) -> TrainResult:
    arguments: dict[str, Any] = {"dataset": SETS, "epochs": 6, "batch_size": 64, "augment": "none", "progress": False}
    return train(**(arguments | changes))


@pytest.fixture(scope="module")
def result() -> TrainResult:
    return quick()


def weights(result: TrainResult) -> Tensor:
    return torch.cat([value.flatten() for value in result.model.state_dict().values()])


def test_learns(result: TrainResult) -> None:
    assert result.test_accuracy >= 0.95
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert not result.model.training
    assert not any("norm" in name for name, _ in result.model.named_modules())


def test_the_reported_accuracy_is_that_of_the_returned_model(result: TrainResult) -> None:
    card, test_set = result.card, SETS[1]
    x = ((test_set.images.double() / 255) - card.mean[0]) / card.std[0]
    with torch.no_grad():
        predicted = copy.deepcopy(result.model).double()(x).argmax(1)
    assert result.test_accuracy == card.test_accuracy == float((predicted == test_set.labels).double().mean())


def test_card(result: TrainResult, tmp_path: Path) -> None:
    card = result.card
    levels = SETS[0].images.numpy().astype(np.float64) / 255
    assert card.mean == (round(levels.mean(), 4),)
    assert card.std == (round(levels.std(), 4),)
    assert card.labels == ("n", "w", "s", "e")
    assert card.command == (
        "mcfhe train --dataset bars --arch lenet --epochs 6 --seed 0 --lr 0.004 --batch-size 64 --augment none "
        "--weight-decay 0.1 --activation poly --out lenet-bars.safetensors"
    )
    models.save(result.model, tmp_path / "m.safetensors")
    loaded = models.load(tmp_path / "m.safetensors")
    assert loaded.mcfhe_metadata == card
    assert scoring.accuracy(loaded, SETS[1], card.mean, card.std) == result.test_accuracy


def test_repeats_bit_for_bit_and_leaves_global_randomness_alone(result: TrainResult) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = quick()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(again), weights(result))
    assert [epoch.loss for epoch in again.history] == [epoch.loss for epoch in result.history]
    assert not torch.equal(weights(quick(seed=1)), weights(result))


def test_the_test_split_has_no_influence(result: TrainResult) -> None:
    assert torch.equal(weights(quick(dataset=(SETS[0], bars(40, 7, split="test")))), weights(result))


def test_validation_and_callback() -> None:
    seen: list[Epoch] = []
    result = quick(epochs=2, validation=100, on_epoch=seen.append)
    assert tuple(seen) == result.history
    assert all(e.validation_accuracy is not None and 0 <= e.validation_accuracy <= 1 for e in seen)
    assert "--validation 100" in result.card.command
    assert quick(epochs=1).history[0].validation_accuracy is None


def test_residual_network_in_colour_with_every_activation() -> None:
    sets = (bars(256, 0, channels=3), bars(128, 1, channels=3, split="test"))
    for activation in ("poly-per-channel", "square"):
        result = quick(arch="resnet_tiny", dataset=sets, activation=activation, lr=0.01)
        assert result.card.arguments["activation"] == activation
        assert len(result.card.mean) == 3
        assert result.test_accuracy >= 0.9


def test_shipped_sample_trains() -> None:
    """Real images through the public path, from split to card: 700 to learn from, 300 to test."""
    sample = datasets.load(datasets.SAMPLE, "test")
    result = train(dataset=sample.hold_out(300, seed=0), epochs=8, batch_size=50, progress=False)
    assert result.test_accuracy >= 0.7


def test_balance_finds_rare_classes() -> None:
    """One class in ten, told apart by brightness alone and not well: the best threshold depends on the weighting."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(2000, generator=generator) < 0.1).long()
    brightness = (100 + 40 * labels + 40 * torch.randn(2000, generator=generator)).clamp(0, 255)
    images = brightness.to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    overlapping = Dataset(images, labels, ("often", "rare"), "overlapping")
    found = []
    for balance in (False, True):
        result = quick(dataset=(overlapping, overlapping), balance=balance)
        predicted = scoring.scores(result.model, images, result.card.mean, result.card.std).argmax(1)
        found.append(float(predicted[labels == 1].double().mean()))
        assert ("--balance" in result.card.command) == balance
    assert found[0] < 0.3
    assert found[1] > 0.5


@pytest.mark.parametrize("augment", ["shift", "shift-flip"])
def test_augmentation_moves_and_mirrors_whole_images(augment: str) -> None:
    images = torch.arange(1, 201, dtype=torch.uint8).view(5, 2, 4, 5).repeat(30, 1, 1, 1)  # every pixel differs
    moved = AUGMENTATIONS[augment](images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for index, image in enumerate(moved.numpy()):
        fits = {
            (dy, dx, flip)
            for dy in range(3)
            for dx in range(3)
            for flip in (False, True)
            if np.array_equal(image[..., ::-1] if flip else image, padded[index, :, dy : dy + 4, dx : dx + 5])
        }
        assert len(fits) == 1
        seen |= fits
    assert {(dy, dx) for dy, dx, _ in seen} == {(dy, dx) for dy in range(3) for dx in range(3)}
    assert {flip for *_, flip in seen} == ({False, True} if augment == "shift-flip" else {False})


def test_crops_reach_four_pixels() -> None:
    images = torch.full((2000, 1, 6, 6), 255, dtype=torch.uint8)
    moved = AUGMENTATIONS["crop-flip"](images, torch.Generator().manual_seed(0))
    shares = moved.float().mean((1, 2, 3)) / 255 * 36
    assert set(shares.round().int().tolist()) == {a * b for a in range(2, 7) for b in range(2, 7)}


def test_warps_are_small_and_of_each_image() -> None:
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:18, 12:16] = 200  # a bar
    moved = AUGMENTATIONS["affine"](images, torch.Generator().manual_seed(0))
    again = AUGMENTATIONS["affine"](images, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    assert torch.equal(moved, again)
    assert len({image.numpy().tobytes() for image in moved}) == 200
    mass = moved.double().sum((1, 2, 3)) / (200 * 32)
    assert 0.7 < float(mass.min()) < 1 < float(mass.max()) < 1.4
    rows = torch.arange(28.0, dtype=torch.float64)
    centre = (moved.double().sum((1, 3)) * rows).sum(1) / moved.double().sum((1, 2, 3))
    assert 0.5 < float(centre.std()) < 2.5
    assert abs(float(centre.mean()) - 13.5) < 0.3


def test_exposures_lift_black() -> None:
    """An offset of up to 25 either way is all that changes black."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(400, 1, 16, 2).repeat_interleave(8, 3)
    changed = AUGMENTATIONS["affine-exposure"](ends.contiguous(), torch.Generator().manual_seed(0))[:, 0, 8]
    black = changed.amin(1)
    assert 20 <= int(black.max()) <= 25
    assert 0.3 < float((black > 0).double().mean()) < 0.7


def test_exposures_change_brightness_and_contrast() -> None:
    ramp = torch.arange(60, 190, dtype=torch.uint8).expand(400, 1, 13, 130).clone()
    changed = AUGMENTATIONS["affine-exposure"](ramp, torch.Generator().manual_seed(0))
    middle = changed[:, 0, 6, 30:100].double()
    gains = (middle[:, -1] - middle[:, 0]) / 69
    offsets = middle.mean(1) - gains * 124.5
    assert 0.7 < float(gains.min()) < 0.85 < 1.15 < float(gains.max()) < 1.45
    assert -40 < float(offsets.min()) < -15 < 15 < float(offsets.max()) < 40  # 25, and up to 10 by the slides


def test_half_of_the_images_stay_sharp() -> None:
    images = torch.randint(0, 256, (1000, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = AUGMENTATIONS["affine"](images, torch.Generator().manual_seed(0))
    half = AUGMENTATIONS["half-affine"](images, torch.Generator().manual_seed(0))
    kept, changed = ((half == other).flatten(1).all(1) for other in (images, whole))
    assert bool((kept ^ changed).all())
    assert 450 < int(kept.sum()) < 550


def test_low_precision_learns_the_same_task() -> None:
    sets = (bars(256, 0, channels=3), bars(128, 1, channels=3, split="test"))
    result = quick(arch="resnet7", dataset=sets, precision="bfloat16", label_smoothing=0.1, epochs=4, lr=0.01)
    assert result.test_accuracy >= 0.9
    assert "--label-smoothing 0.1 --precision bfloat16" in result.card.command
    assert {value.dtype for value in result.model.state_dict().values()} == {torch.float32}
    assert all(value.is_contiguous() for value in result.model.state_dict().values())


def test_training_goes_on_from_a_model(result: TrainResult, tmp_path: Path) -> None:
    """Without batch norm, from the very weights: nothing to learn leaves them as they are, and both commands stay."""
    models.save(result.model, tmp_path / "first.safetensors", result.card)
    same = quick(initial=tmp_path / "first.safetensors", epochs=1, lr=1e-12, weight_decay=0.0)
    assert torch.equal(weights(same), weights(result))
    assert same.card.command.startswith(f"{result.card.command} && mcfhe train ")
    assert "--initial first.safetensors" in same.card.command
    spoilt = copy.deepcopy(result.model)
    with torch.no_grad():
        spoilt.fc2.weight.zero_()  # type: ignore[union-attr, operator]
    models.save(spoilt, tmp_path / "spoilt.safetensors", result.card)
    repaired = quick(initial=tmp_path / "spoilt.safetensors", epochs=4, lr=4e-3)
    assert scoring.accuracy(spoilt, SETS[1], result.card.mean, result.card.std) < 0.9
    assert repaired.test_accuracy >= 0.95


def test_a_model_of_another_kind_is_not_gone_on_from(result: TrainResult, tmp_path: Path) -> None:
    models.save(result.model, tmp_path / "first.safetensors", result.card)
    with pytest.raises(ParameterError, match=r"initial: its arguments is .*this training has"):
        quick(initial=tmp_path / "first.safetensors", activation="square")
    with pytest.raises(ParameterError, match="initial: its arch is lenet"):
        quick(initial=tmp_path / "first.safetensors", arch="resnet_tiny")


def test_the_range_penalty_is_of_what_lies_outside() -> None:
    model = nn.Sequential(PolyActivation(), nn.Identity(), PolyActivation((0.0, 1.0)))
    with RangePenalty(model) as penalty:
        x = torch.tensor([[0.0, RANGE, -RANGE, 3.5], [RANGE + 2, -RANGE - 1, 1.0, -1.0]], requires_grad=True)
        activated = model[0](x.detach())
        penalty.take()
        model(x)
        outside = [(v.abs() - RANGE).clamp(min=0).square().mean() for v in (x.detach(), activated)]
        found = penalty.take()
        assert torch.allclose(found.detach(), torch.stack(outside).sum())
        found.backward()
        assert x.grad is not None
        assert bool((x.grad[1, :2] != 0).all())
        model.eval()(x)
        with torch.no_grad():
            model.train()(torch.zeros(1, 4))
        assert float(penalty.take()) == 0  # forgotten once taken, and evaluation is not counted
    assert not any(module._forward_pre_hooks for module in model)  # a trained model is watched no more


def test_the_range_penalty_keeps_inputs_in_range() -> None:
    def largest(result: TrainResult) -> float:
        seen: list[float] = []
        for module in result.model.modules():
            if isinstance(module, PolyActivation):
                module.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].abs().max())))
        scoring.scores(result.model, SETS[0].images, result.card.mean, result.card.std)
        return max(seen)

    free, held = quick(epochs=4), quick(epochs=4, range_penalty=10.0)
    assert "--range-penalty 10.0" in held.card.command
    assert "range-penalty" not in free.card.command
    assert largest(held) < largest(free)
    assert held.test_accuracy >= 0.95
    with pytest.raises(ParameterError, match="range_penalty = -1"):
        quick(range_penalty=-1.0)


def test_every_recipe_is_complete() -> None:
    """Values of options that exist, for an architecture that exists."""
    accepted = inspect.signature(train).parameters
    for name, values in RECIPES.items():
        assert set(values) <= set(accepted)
        assert name == f"{values['arch']}-{str(values['dataset']).removesuffix('-jpeg')}"
        assert values["arch"] in models.ARCHITECTURES
        for option, value in values.items():
            default = accepted[option].default
            assert isinstance(value, type(default)), option


def test_schedule_rises_to_the_peak_and_falls_to_nothing() -> None:
    for total in (1, 2, 7, 1000):
        rates = [training._schedule(step, total) for step in range(total)]
        assert all(0 < rate <= 1 for rate in rates)
        top = rates.index(max(rates))
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
    assert abs(top - 200) <= 1
    assert rates[-1] < 1e-5


def test_bad_arguments() -> None:
    wide = Dataset(torch.zeros(4, 1, 8, 12, dtype=torch.uint8), torch.zeros(4).long(), ("a", "b"), "wide")
    flat = Dataset(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long(), ("a", "b"), "flat")
    for changes, message in (
        ({"epochs": 0}, "epochs: 0"),
        ({"batch_size": 1}, "batch_size: 1"),
        ({"seed": -1}, "seed: -1"),
        ({"lr": math.nan}, "lr = nan"),
        ({"weight_decay": -1.0}, "weight_decay = -1"),
        ({"augment": "cutout"}, "augment: 'cutout'; choose one of none, shift, shift-flip"),
        ({"grid_bits": -1}, "grid_bits: -1"),
        ({"arch": "vgg"}, "arch: 'vgg'"),
        ({"activation": "tanh"}, "activation: 'tanh'"),
        ({"validation": 512}, "hold-out of 512 images"),
        ({"validation": -1}, "hold-out of -1 images"),
        ({"limit": 1}, "1 training images; batch norm needs 2"),
        ({"dataset": (wide, wide)}, "images are 8 x 12"),
        ({"dataset": (flat, flat)}, "channel 0 is the same in all pixels"),
        ({"dataset": (SETS[0], flat)}, "train and test differ"),
        ({"lr": 1e30}, "made the training diverge"),
    ):
        with pytest.raises(ParameterError, match=message):
            quick(**changes)


def test_progress_is_for_terminals_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(epochs=1, progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    quick(epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")
    quick(epochs=1, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training" in err


# --- rounding to integers ---


def rounded(value: Tensor) -> Tensor:
    return (value * SCALE).round() / SCALE


def by_the_letter(model: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The scores that the patent's plan computes at Delta = 256, in float64: every weight, bias, coefficient and pixel
    rounded to 1/256, pools as window sum times round(256 / k^2), all else exact."""
    model = copy.deepcopy(model).double()
    factors: dict[nn.Module, float] = {}
    for module in model.modules():
        if isinstance(module, nn.AvgPool2d):
            window = int(module.kernel_size) ** 2  # type: ignore[arg-type]
            factors[module] = round(SCALE / window) / SCALE * window
            module.register_forward_hook(lambda module, inputs, output: output * factors[module])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rounded(parameter))
        x = rounded(
            (images.double() / 255 - torch.tensor(mean).double()[:, None, None])
            / torch.tensor(std).double()[:, None, None]
        )
        return torch.cat([model(batch) for batch in torch.split(x, 1000)])


def test_snap_puts_every_parameter_on_the_grid(result: TrainResult) -> None:
    assert torch.equal(weights(result) * SCALE, (weights(result) * SCALE).round())
    model = nn.Linear(1, 4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3], [-0.3], [0.375], [1 / 64]]))
    training.snap(model, 2)
    assert model.weight.flatten().tolist() == [0.25, -0.25, 0.5, 0.0]  # ties to even
    free = weights(quick(epochs=1, grid_bits=0)) * SCALE
    assert not torch.equal(free, free.round())


def agreement(test_set: Dataset) -> tuple[float, float, float]:
    """(float accuracy, accuracy by the letter, share of equal labels) of the shipped weights."""
    model = models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    assert isinstance(card, models.ModelCard)
    exact = scoring.scores(model, test_set.images, card.mean, card.std).argmax(1)
    letter = by_the_letter(model, test_set.images, card.mean, card.std).argmax(1)
    means = [
        float((a == b).double().mean())
        for a, b in ((exact, test_set.labels), (letter, test_set.labels), (exact, letter))
    ]
    return means[0], means[1], means[2]


def test_shipped_weights_on_the_sample() -> None:
    float_accuracy, letter_accuracy, equal = agreement(datasets.load(datasets.SAMPLE, "test"))
    assert float_accuracy >= 0.905
    assert abs(float_accuracy - letter_accuracy) <= 0.002
    assert equal >= 0.997


def test_shipped_weights_on_the_whole_test_split() -> None:
    try:
        test_set = datasets.load("fashion-mnist", "test", download=False)
    except ParameterError as error:
        pytest.skip(str(error))
    float_accuracy, letter_accuracy, equal = agreement(test_set)
    card = models.lenet(pretrained="fashion-mnist").mcfhe_metadata
    assert isinstance(card, models.ModelCard)
    assert float_accuracy == card.test_accuracy
    assert float_accuracy >= 0.915
    assert abs(float_accuracy - letter_accuracy) <= 0.001
    assert equal >= 0.997


def test_shipped_coefficients_survive_rounding() -> None:
    model = models.lenet(pretrained="fashion-mnist")
    activations = [module for module in model.modules() if isinstance(module, PolyActivation)]
    assert len(activations) == 3
    for activation in activations:
        assert 0.1 <= abs(activation.coefficients[-1].item()) <= 4


def test_scores_leave_the_model_as_it_was() -> None:
    model = models.lenet(image_size=8, batch_norm=True).train()
    before = copy.deepcopy(model.state_dict())
    found = scoring.scores(model, SETS[1].images, (0.5,), (0.5,))
    assert found.dtype == torch.float64
    assert found.shape == (256, 10)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
