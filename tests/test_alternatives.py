"""Amplification, width and profile: what is proposed is what a program of that kind needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe import models
from mcfhe.compiler.alternatives import AMPLIFICATION_BITS, WIDTHS, alternatives
from mcfhe.datasets import SAMPLE
from mcfhe.errors import ParameterError
from mcfhe.graph.report import limbs_needed
from tests.graph_support import one_thread

__all__ = ["one_thread"]


def compiled(**arguments: Any) -> mcfhe.Program:
    torch.manual_seed(1)
    model = models.lenet(image_size=8, num_classes=3).eval()
    return mcfhe.compile(model, (1, 8, 8), 0.5, 0.5, **{"scale_bits": 6, "passes": "default"} | arguments)


def test_table_is_what_compiling_so_gives() -> None:
    found = alternatives(compiled(), ("patent",), (30, 31), (2, 4))
    assert [(a.limbs, -a.amplification_bits, a.modulus_bits) for a in found] == sorted(
        (a.limbs, -a.amplification_bits, a.modulus_bits) for a in found
    )
    for a in found:
        program = compiled(amplification_bits=a.amplification_bits, modulus_bits=a.modulus_bits)
        assert program.certificate(a.profile).required_bits == a.required_bits
        assert program.cost(a.profile, timed=False).limbs == a.limbs


def test_auto_takes_the_first_of_the_table() -> None:
    for profile in ("patent", "hardened"):
        program = compiled(amplification_bits="auto", modulus_bits="auto", profile=profile)
        best = alternatives(compiled(), (profile,))[0]
        settings = program.settings
        assert (settings.amplification_bits, settings.modulus_bits) == (best.amplification_bits, best.modulus_bits)
        required = program.certificate(profile).required_product
        assert limbs_needed(required, settings.modulus_bits) == best.limbs
        # the next amplification would cost a limb
        if settings.amplification_bits < max(AMPLIFICATION_BITS):
            more = compiled(amplification_bits=settings.amplification_bits + 1, modulus_bits=settings.modulus_bits)
            assert limbs_needed(more.certificate(profile).required_product, settings.modulus_bits) > best.limbs
        # the letter beside it has the same basis
        letter = compiled(
            amplification_bits=settings.amplification_bits, modulus_bits=settings.modulus_bits, passes="letter"
        )
        assert settings.letter is not None
        assert settings.letter.required_bits[0] == letter.certificate("patent").required_bits


def test_auto_with_searched_scales() -> None:
    images = np.random.default_rng(3).integers(0, 256, (60, 1, 8, 8), np.uint8)
    arguments = {"scale_bits": "auto", "calibration": images, "tolerance": 0.05, "profile": "hardened"}
    program = compiled(**arguments, amplification_bits="auto", modulus_bits="auto")
    assert program.search is not None
    assert program.settings.weight_bits == program.search.chosen.weight_bits
    assert program.settings.modulus_bits in WIDTHS
    assert program.cost("hardened", timed=False).limbs <= program.search.chosen.limbs


@pytest.mark.parametrize("name", ["amplification_bits", "modulus_bits", "profile"])
def test_refusals(name: str) -> None:
    with pytest.raises(ParameterError, match=name):
        compiled(**{name: "most"})


def test_calibration_and_reported_images_are_different_ones() -> None:
    """`mcfhe compile --calibrate fashion-mnist` reads the training part; figures are on the shipped test images."""
    from mcfhe.cli.program_commands import compile_

    (split,) = (option for option in compile_.params if option.name == "split")
    assert split.default == "train"
    try:
        train = mcfhe.datasets.load("fashion-mnist", "train", download=False)
    except ParameterError as error:
        pytest.skip(f"no Fashion-MNIST here: {error}")
    sample = mcfhe.datasets.load(SAMPLE, "test")
    known = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in known for image in sample.images) == 0
