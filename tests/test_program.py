"""compile, Program and its file: from a module to exact integers and back."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mcfhe
from mcfhe import PolyActivation, models
from mcfhe.errors import FormatError, ImageError, ParameterError, UnsupportedLayerError
from mcfhe.graph.import_ import import_module
from mcfhe.graph.nodes import Add, AvgPool2d, Concat, Conv2d, Flatten, Graph, Linear, Node, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.report import limbs_needed
from mcfhe.modular.constants import pool_factor
from mcfhe.program import Program
from mcfhe.spec import PROFILES, ClientSpec
from tests.graph_support import naive, one_thread  # noqa: F401 - a fixture

MEAN, STD = (0.25, 0.5, 0.5), (0.25, 0.5, 0.2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.act = PolyActivation((0.1, 0.5, 0.25), num_channels=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + x


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        PolyActivation((0.0, 0.0, 1.0)),
        nn.AvgPool2d(2),
        Block(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return mcfhe.compile(model, (3, 6, 6), MEAN, STD, labels=["cat", "dog", "owl"])


def random_images(count: int, shape: tuple[int, ...] = (3, 6, 6)) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *shape), np.uint8)


def encrypted(program: Program, images: np.ndarray, profile: str, noise: int = 0) -> np.ndarray:
    """The integers V that a client would hide."""
    table, a = np.array(program.table, object), program.settings.amplification
    plain = table[np.arange(len(table))[None, :, None, None], images]
    return plain * (a * 2**program.settings.scale_bits + noise) if profile == "patent" else plain * a + noise


# What is computed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_scores_are_those_of_the_model_when_weights_lie_on_the_grid(profile: str) -> None:
    """Every constant a multiple of 1 / Delta: the integers stand for the float model's scores, exactly."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 16).round() / 16)
    program = mcfhe.compile(model, (3, 6, 6), MEAN, STD, scale_bits=4)
    images = random_images(3)
    x = torch.tensor(program.table, dtype=torch.float64)[
        torch.arange(3)[:, None, None], torch.from_numpy(images).long()
    ]
    with torch.no_grad():
        expected = make_double(model)(x / 16).numpy()
    order = program.integer_program(profile).output_order
    scores = program.evaluate_integers(encrypted(program, images, profile), profile)
    # sums and products of numbers with few digits: float64 makes no error here
    assert [[order.value(v, 16) for v in row] for row in scores] == [[Fraction(v) for v in row] for row in expected]


def make_double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


@pytest.mark.parametrize("profile", PROFILES)
def test_scores_are_those_of_the_model_up_to_the_rounding_of_constants(profile: str, model: nn.Module) -> None:
    images = random_images(4)
    for bits in (4, 8, 16):
        program = mcfhe.compile(model, (3, 6, 6), MEAN, STD, scale_bits=bits)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
        x = (torch.from_numpy(images).double() / 255 - mean) / std
        graph = import_module(model, (3, 6, 6))
        expected, bound = quantisation_bound(graph, x, bits)
        order = program.integer_program(profile).output_order
        scores = program.evaluate_integers(encrypted(program, images, profile), profile)
        found = np.array([[float(order.value(v, 16)) for v in row] for row in scores])
        assert (np.abs(found - expected) <= bound + 1e-9).all()
        assert np.abs(found - expected).max() < 200 * 2.0**-bits


def quantisation_bound(graph: Graph, x: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the float graph and how far rounding all constants and the input to the grid can move them.

    With d = 2**-(bits + 1), |w' - w| <= d for every constant and |x' - x| <= e: |w' x' - w x| <= (|w| + d) e + d |x|.
    """
    d = 2.0 ** -(bits + 1)
    values: list[tuple[Tensor, Tensor]] = [(x, torch.full_like(x, d))]
    for node in graph.nodes[1:]:
        values.append(_spread(node, [values[i] for i in node.inputs], bits, d))
    return values[-1][0].numpy(), values[-1][1].numpy()


def _spread(node: Node, inputs: list[tuple[Tensor, Tensor]], bits: int, d: float) -> tuple[Tensor, Tensor]:
    x, e = inputs[0]
    if isinstance(node, Conv2d):
        w, b = torch.from_numpy(node.weight), torch.from_numpy(node.bias)  # type: ignore[arg-type]
        settings = (node.stride, node.padding, node.dilation, node.groups)
        error = functional.conv2d(e, w.abs() + d, None, *settings) + d
        return functional.conv2d(x, w, b, *settings), error + functional.conv2d(
            x.abs(), torch.full_like(w, d), None, *settings
        )
    if isinstance(node, Linear):
        w, b = torch.from_numpy(node.weight), torch.from_numpy(node.bias)  # type: ignore[arg-type]
        return x @ w.T + b, e @ (w.abs() + d).T + x.abs() @ torch.full_like(w, d).T + d
    if isinstance(node, AvgPool2d):
        factor = pool_factor(node.divisor, bits) / 2**bits
        total, error, size = (
            functional.avg_pool2d(v, node.kernel, node.stride, node.padding, divisor_override=1)
            for v in (x, e, x.abs())
        )
        return total / node.divisor, error * factor + size * abs(factor - 1 / node.divisor)
    if isinstance(node, Poly):
        rows = torch.from_numpy(node.coefficients).reshape(1, -1, *(1,) * (x.dim() - 2), node.coefficients.shape[1])
        y, error = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(rows.shape[-1]):
            c = rows[..., i]
            y = y + c * x**i
            error = error + (c.abs() + d) * ((x.abs() + e) ** i - x.abs() ** i) + d * x.abs() ** i
        return y, error
    if isinstance(node, Add):
        return x + inputs[1][0], e + inputs[1][1]
    if isinstance(node, Concat):
        return torch.cat([v for v, _ in inputs], 1), torch.cat([f for _, f in inputs], 1)
    assert isinstance(node, Flatten)
    return x.flatten(1), e.flatten(1)


@pytest.mark.parametrize("profile", PROFILES)
def test_noise_stays_below_the_proved_bound(program: Program, profile: str) -> None:
    spec = program.client_spec().profile(profile)
    images = np.concatenate([random_images(2), np.zeros((1, 3, 6, 6), np.uint8), np.full((1, 3, 6, 6), 255, np.uint8)])
    for noise in (0, spec.max_noise - 1):
        V = encrypted(program, images, profile, noise)
        scores = program.evaluate_integers(V, profile)
        assert scores == [naive(program.integer_program(profile), image) for image in V]
        bounds = program.certificate(profile).output_bounds
        assert all(low <= v <= high for row in scores for v, (low, high) in zip(row, bounds, strict=True))
        assert max(abs(v) for row in scores for v in row) <= spec.output_bound


def test_plain_scores_are_the_integers_without_noise(program: Program) -> None:
    images = random_images(20)
    result = program.plain_scores(images)
    for profile in PROFILES:
        order = program.integer_program(profile).output_order
        exact = program.evaluate_integers(encrypted(program, images, profile), profile)
        for row, scores, bounds in zip(exact, result.scores.tolist(), result.bounds.tolist(), strict=True):
            for v, score, bound in zip(row, scores, bounds, strict=True):
                assert abs(order.value(v, 16) - Fraction(score)) <= Fraction(bound)
    for given_as in (torch.from_numpy(images), images):
        scores = program.evaluate_plain(given_as)
        assert scores.dtype == torch.float64
        assert torch.equal(scores, result.scores)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 6, 6)), "dtype float64.*uint8"),
        (np.zeros((1, 3, 6, 5), np.uint8), r"shape \(1, 3, 6, 5\)"),
        (np.zeros((3, 6, 6), np.uint8), "takes \\[batch, 3, 6, 6\\]"),
    ],
)
def test_images_of_another_kind(program: Program, images: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        program.evaluate_plain(images)


# Settings -------------------------------------------------------------------------------------------------------------


def test_table_is_rounded_half_to_even(program: Program) -> None:
    for c, row in enumerate(program.table):
        for u, plain in enumerate(row):
            assert plain == round(256 * ((u / 255 - MEAN[c]) / STD[c]))
    ties = mcfhe.compile(nn.Flatten().eval(), (1, 1, 2), 0.0, 1 / 255, scale_bits=1).table[0]
    assert ties == tuple(range(0, 512, 2))
    halves = mcfhe.compile(nn.Flatten().eval(), (1, 1, 2), 0.0, 4 / 255, scale_bits=1).table[0]
    assert halves[:8] == (0, 0, 1, 2, 2, 2, 3, 4)


def test_client_spec_is_what_a_client_needs(program: Program) -> None:
    spec = program.client_spec()
    assert ClientSpec.from_json(spec.to_json()) == spec
    assert (spec.program_id, spec.input_shape, spec.scale_bits) == (program.program_id, (3, 6, 6), 8)
    assert (spec.amplification, spec.modulus_bits, spec.guard_bits) == (16, 30, 32)
    assert (spec.labels, spec.table) == (("cat", "dog", "owl"), program.table)
    assert {name: p.input_order for name, p in spec.profiles.items()} == {
        "patent": Order(1, 16),
        "hardened": Order(1, 8),
    }
    for name, profile in spec.profiles.items():
        certificate = program.certificate(name)
        assert profile.output_order == program.integer_program(name).output_order
        assert (profile.output_bound, profile.max_noise) == (certificate.output_bound, 8)
        assert profile.required_product(spec.guard_bits) == certificate.required_product
        assert profile.required_bits(spec.guard_bits) == certificate.required_bits
    assert str(program.graph.nodes[1].weight.flat[0])[:6] not in spec.to_json()  # type: ignore[attr-defined]


@given(st.integers(0, 31 * 4096), st.integers(0, 2**64))
def test_specs_hold_bounds_of_any_number_of_limbs(program: Program, bits: int, low: int) -> None:
    """More than 4,300 digits too, where int and str give up."""
    spec = program.client_spec()
    profile = replace(spec.profile("hardened"), output_bound=((1 << bits) - 1) ^ (low & ((1 << bits) - 1)))
    wide = replace(spec, profiles={**spec.profiles, "hardened": profile})
    assert ClientSpec.from_json(wide.to_json()) == wide


@pytest.mark.parametrize(
    "digits", ["", "-1", "+1", " 1", "1_0", "1e3", "01", "\u0661", "NaN", "9" * 38_301, 5, None, 1.0]
)
def test_bounds_are_plain_digits(program: Program, digits: object) -> None:
    body = json.loads(program.client_spec().to_json())
    body["profiles"]["hardened"]["output_bound"] = digits
    with pytest.raises(FormatError, match="output_bound is not made of"):
        ClientSpec.from_json(json.dumps(body))


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"std": 0.0}, "std = .* must be positive"),
    ({"std": -1}, "std = .* must be positive"),
    ({"std": float("nan")}, "std = .* finite"),
    ({"mean": float("inf")}, "mean = .* finite"),
    ({"mean": [0.1, 0.2]}, "mean: 2 values for 1 channels"),
    ({"mean": "much"}, "mean = 'much'"),
    ({"std": 1e-12}, "not below 2\\*\\*31"),
    ({"std": 5e-324}, "not below 2\\*\\*31"),
    ({"scale_bits": 0}, "scale_bits = 0 .* 1..30"),
    ({"scale_bits": 31}, "scale_bits = 31"),
    ({"scale_bits": 8.0}, "scale_bits = 8.0 is not a whole number"),
    ({"scale_bits": True}, "scale_bits = True"),
    ({"amplification_bits": -1}, "amplification_bits = -1"),
    ({"amplification_bits": 21}, "amplification_bits = 21"),
    ({"modulus_bits": 32}, "modulus_bits = 32"),
    ({"guard_bits": 257}, "guard_bits = 257"),
    ({"labels": ["a"]}, "for 1 labels"),
    ({"labels": ["a", ""]}, "labels"),
    ({"labels": "ab"}, "labels = 'ab'"),
    ({"labels": ["a", 2]}, "labels"),
    ({"passes": ["fast"]}, "no pass 'fast'"),
    ({"input_shape": (1, 2)}, "input_shape"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_SETTINGS, ids=[str(i) for i in range(len(BAD_SETTINGS))])
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        mcfhe.compile(nn.Flatten().eval(), **{"input_shape": (1, 1, 2), **arguments})


def test_settings_in_any_form() -> None:
    program = mcfhe.compile(
        nn.Flatten().eval(),
        [np.int64(2), 1, 1],  # type: ignore[arg-type]
        torch.tensor([0.5, 0.25]),
        np.array(2.0),
        scale_bits=np.int64(4),  # type: ignore[arg-type]
        amplification_bits=0,
        guard_bits=0,
        passes=[],
    )
    assert (program.settings.mean, program.settings.std) == ((0.5, 0.25), (2.0, 2.0))
    assert (program.labels, program.settings.passes) == (("0", "1"), ())
    assert program.client_spec().profiles["patent"].max_noise == 0
    assert program.certificate("hardened").output_bound == max(abs(v) for row in program.table for v in row)


def test_errors_of_the_model_come_through() -> None:
    with pytest.raises(UnsupportedLayerError, match="layer '0' \\(ReLU\\)"):
        mcfhe.compile(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), (1, 2, 2))
    with pytest.raises(ParameterError, match="train mode"):
        mcfhe.compile(nn.Sequential(nn.Flatten()), (1, 2, 2))
    huge = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        huge[1].weight[0, 0] = 1e9
    with pytest.raises(ParameterError, match="layer '1': weight 1e\\+09"):
        mcfhe.compile(huge, (1, 2, 2))
    program = mcfhe.compile(nn.Flatten().eval(), (1, 1, 2))
    for method in (program.certificate, program.summary, program.integer_program):
        with pytest.raises(ParameterError, match="profile 'fast': choose one of patent, hardened"):
            method("fast")


# Summary --------------------------------------------------------------------------------------------------------------


def test_summary_of_the_lenet() -> None:
    torch.manual_seed(0)
    program = mcfhe.compile(models.lenet().eval(), (1, 28, 28), 0.286, 0.353)
    text = program.summary("patent")
    assert re.search(r"fc2 +linear +10 +\(8, 44\) +2\^8 +\d+ +32 +bias: a\^8 2\^344", text)
    assert re.search(r"act1 +poly +8x28x28 +\(2, 7\) +\d+ +\d+ +c1: a 2\^32, c2: 2\^8", text)
    assert re.search(r"pool1 +sum_pool2d +8x14x14 +\(2, 8\) .*factor 64", text)
    assert all(layer.name in text for layer in program.certificate("patent").layers)
    limbs = limbs_needed(program.certificate("patent").required_product, 30)
    assert f"{program.certificate('patent').required_bits} bits: {limbs} limbs" in text
    assert f"{4 * limbs} sub-images a channel" in text
    assert "834,816 MACs" in text  # 28^2 * 8 * 25 + 14^2 * 16 * 200 + 784 * 64 + 64 * 10
    assert f"{4 * 4 * limbs * 785 / 1024:.4g} KiB up" in text
    assert "hardened: order (8, 36)" in text
    assert max(len(line) for line in text.splitlines()) <= 120
    assert re.search(r"fc2 +linear +10 +\(8, 36\)", program.summary(lanes=2))
    assert "patent: order (8, 44)" in program.summary()
    with pytest.raises(ParameterError, match="lanes = 0"):
        program.summary(lanes=0)


def test_summary_of_branches_and_coarse_pools(program: Program) -> None:
    assert re.search(r"3\.add +align_add +4x3x3 .* x1: a\^2 2\^\d+", program.summary())
    coarse = mcfhe.compile(nn.Sequential(nn.AvgPool2d(3), nn.Flatten()).eval(), (1, 3, 3))
    assert "note: 0 multiplies by 28 / 2^8 for 1 / 9, 1.6% off" in coarse.summary()


@given(st.integers(1, 2**2000), st.sampled_from((8, 16, 20, 24, 30, 31)))
def test_limbs_needed(required: int, bits: int) -> None:
    limbs = limbs_needed(required, bits)
    middle = 15 << (bits - 4) if bits >= 20 else 3 << (bits - 2)
    assert middle**limbs > required
    assert limbs == 1 or middle ** (limbs - 1) <= required


def test_identity_counts_everything(model: nn.Module, program: Program) -> None:
    def build(**changes: Any) -> str:
        arguments: dict[str, Any] = {"mean": MEAN, "std": STD, "labels": ["cat", "dog", "owl"], **changes}
        return mcfhe.compile(arguments.pop("model", model), (3, 6, 6), **arguments).program_id

    assert build() == program.program_id
    other = make_model()
    with torch.no_grad():
        other[5].weight[0, 0] += 0.1
    changes: list[dict[str, Any]] = [
        {"mean": 0.5},
        {"std": 0.5},
        {"labels": ["cat", "dog", "elk"]},
        {"scale_bits": 9},
        {"amplification_bits": 5},
        {"modulus_bits": 29},
        {"guard_bits": 33},
        {"passes": []},
        {"model": other},
    ]
    identities = {build(**change) for change in changes} | {program.program_id}
    assert len(identities) == len(changes) + 1
    assert re.fullmatch(r"[0-9a-f]{64}", program.program_id)
    assert program != "program"


def test_readable_representation(program: Program) -> None:
    assert repr(program) == f"Program({program.program_id[:16]}, input (3, 6, 6), 8 layers, 3 labels)"
