"""explain: how many bits a key is short of, and changes that are each enough."""

from __future__ import annotations

import math
import re

import pytest
import torch

import mcfhe
from mcfhe import models
from mcfhe.modular.params import Moduli
from mcfhe.program import Program
from mcfhe.spec import DEFAULT_PROFILE
from tests.graph_support import one_thread  # noqa: F401 - a fixture


def compiled(**arguments: object) -> Program:
    torch.manual_seed(1)
    model = models.lenet(image_size=8, num_classes=3).eval()
    return mcfhe.compile(model, (1, 8, 8), 0.5, 0.5, **{"scale_bits": 6, **arguments})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    return {"letter": compiled(), "default": compiled(passes="default")}


@pytest.mark.parametrize("name", ["letter", "default"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_key_that_is_too_small(programs: dict[str, Program], name: str, missing: int) -> None:
    program = programs[name]
    key = mcfhe.Client.generate(program.client_spec()).evaluation_key
    assert mcfhe.explain(program, key).changes == ()
    assert str(mcfhe.explain(program, key)).endswith("it fits")
    short = Moduli(list(key.moduli)[:-missing])
    found = mcfhe.explain(program, short)
    certificate = program.certificate(DEFAULT_PROFILE)
    assert found.short_bits == certificate.required_bits - found.available_bits > 0
    assert 2 ** (found.available_bits - 1) < math.prod(short)
    assert found.output.name == "fc2"
    assert found.order == program.integer_program(DEFAULT_PROFILE).output_order
    assert all(change.required_bits <= math.prod(short).bit_length() for change in found.changes[1:])
    assert f"{missing} more moduli" in found.changes[0].what
    assert f"{found.short_bits} bits short" in str(found)


def test_proposed_changes_are_enough_and_no_larger_than_needed(programs: dict[str, Program]) -> None:
    program = programs["default"]
    short = Moduli(list(mcfhe.Client.generate(program.client_spec()).evaluation_key.moduli)[:-1])
    text = str(mcfhe.explain(program, short))
    bits = program.settings.layer_bits
    assert bits is not None
    match = re.search(r"weight_bits=(\d+) for layer 'conv1'", text)
    assert match is not None
    for value, fits in ((int(match[1]), True), (int(match[1]) + 1, False)):
        changed = compiled(passes="default", weight_bits=bits | {"conv1": value})
        assert (math.prod(short) > changed.certificate(DEFAULT_PROFILE).required_product) is fits


def test_a_program_by_the_letter_is_told_of_the_passes(programs: dict[str, Program]) -> None:
    program = programs["letter"]
    short = Moduli(list(mcfhe.Client.generate(program.client_spec(), profile="patent").evaluation_key.moduli)[:-1])
    text = str(mcfhe.explain(program, short, "patent"))
    assert 'passes="default"' in text
    assert "for all layers" in text
