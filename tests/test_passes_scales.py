"""A scale for every layer: the plan, the file, what the client is told, and the engine on it."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcfhe
from mcfhe import container, models
from mcfhe.errors import FormatError, MismatchError, ParameterError
from mcfhe.graph.integers import evaluate_integers
from mcfhe.graph.nodes import Flatten, Graph, Input, Linear, Poly
from mcfhe.graph.order import Order
from mcfhe.graph.passes import select_passes
from mcfhe.graph.steps import LinearStep, PolyStep
from mcfhe.modular.constants import relative_bits, scaled_constants, without_common_factors
from mcfhe.modular.plan import input_orders, lower, quantise
from mcfhe.program import Program
from mcfhe.spec import PROFILES
from tests.graph_support import one_thread, random_graph, random_integers  # noqa: F401 - a fixture
from tests.rational import evaluate_rational

VECTOR = (Input(name="input", inputs=(), shape=(2, 1, 1)), Flatten(name="flatten", inputs=(0,)))


def small_lenet(**arguments: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    return models.lenet(image_size=8, num_classes=3, **arguments).eval()


def compile_small(**arguments: Any) -> Program:
    return mcfhe.compile(small_lenet(), (1, 8, 8), 0.5, 0.5, **{"passes": "default", "scale_bits": 5, **arguments})


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_small(weight_bits={"conv2": 9})


# The plan -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from((1, 16)), st.booleans())
@settings(max_examples=100, deadline=None)
def test_integers_stand_for_the_network_when_every_grid_holds_it(seed: int, amplification: int, patent: bool) -> None:
    """Constants of three binary digits, scales of three or more: nothing is rounded, so nothing may be lost."""
    random = Random(seed)
    graph = random_graph(random, scale_bits=3)
    bits = {name: random.randint(3, 6) for name in scaled_constants(graph)}
    order = input_orders(4)["patent" if patent else "hardened"]
    program = lower(graph, 4, amplification, order, bits)
    plain = random_integers(random, graph.input_shape, 50)
    scores = evaluate_integers(program, plain[None] * order.denominator(amplification))[0]
    assert [program.output_order.value(v, amplification) for v in scores] == evaluate_rational(graph, plain)


def test_constants_are_rounded_at_their_order() -> None:
    linear = Linear(name="fc", inputs=(1,), weight=np.array([[0.3, -0.7]]), bias=np.array([1 / 3]))
    poly = Poly(name="act", inputs=(2,), coefficients=np.array([[1 / 3, 0.1, 0.6]]))
    bits = {"fc": 3, "act": 2}
    program = lower(Graph((*VECTOR, linear, poly)), 4, 10, Order(1, 4), bits)
    first, second = program.steps[1:]
    assert isinstance(first, LinearStep)
    assert isinstance(second, PolyStep)
    assert (first.order, first.weight.tolist()) == (Order(1, 7), [[2, -6]])
    assert first.bias == (round(Fraction(1 / 3) * 10 * 2**7),)
    assert second.order == Order(2, 16)
    assert second.coefficients == ((round(Fraction(1 / 3) * 100 * 2**16), round(Fraction(0.1) * 10 * 2**9), 2),)


def test_whole_leading_coefficients_and_constants_pay_nothing() -> None:
    square = Poly(name="act", inputs=(1,), coefficients=np.array([[0.5, 0.0, 1.0], [0.25, 0.0, -1.0]]))
    step = lower(Graph((*VECTOR, square)), 4, 2, Order(1, 4), {}).steps[1]
    assert isinstance(step, PolyStep)
    assert (step.order, step.coefficients) == (Order(2, 8), ((512, 0, 1), (256, 0, -1)))
    nothing = Poly(name="act", inputs=(1,), coefficients=np.array([[0.75]]))
    step = lower(Graph((*VECTOR, nothing)), 4, 2, Order(1, 4), {"act": 2}).steps[1]
    assert isinstance(step, PolyStep)
    assert (step.order, step.coefficients) == (Order(0, 2), ((3, 0),))


def test_powers_of_two_that_all_weights_share_are_dead_scale() -> None:
    weight = np.array([[0.5, -1.5]])
    graph = Graph((*VECTOR, Linear(name="fc", inputs=(1,), weight=weight, bias=None)))
    assert without_common_factors(graph, {"fc": 9}) == {"fc": 1}
    assert without_common_factors(graph, {"fc": 0}) == {"fc": 0}
    zero = Graph((*VECTOR, Linear(name="fc", inputs=(1,), weight=weight * 0, bias=None)))
    assert without_common_factors(zero, {"fc": 9}) == {"fc": 9}


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_relative_bits(seed: int, precision: int) -> None:
    graph = random_graph(Random(seed))
    for name, bits in relative_bits(graph, precision).items():
        largest = np.abs(scaled_constants(graph)[name]).max() * 2.0**bits
        assert largest < 2**precision or bits == 0
        assert largest >= 2 ** (precision - 1) or largest == 0


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_quantising_twice_is_quantising_once(seed: int) -> None:
    graph = random_graph(Random(seed), scale_bits=5)
    bits = relative_bits(graph, 3)
    once = quantise(graph, 4, bits)
    twice = quantise(once, 4, bits)
    for node, same in zip(once.nodes, twice.nodes, strict=True):
        for field in ("weight", "bias", "coefficients"):
            if getattr(node, field, None) is not None:
                assert np.array_equal(getattr(node, field), getattr(same, field))


# compile --------------------------------------------------------------------------------------------------------------


def test_the_letter_stays_what_it_was() -> None:
    ids = {
        compile_small(passes=passes, scale_bits=8).program_id
        for passes in (None, "letter", list(select_passes("letter")))
    }
    assert len(ids) == 1
    letter = compile_small(passes="letter", scale_bits=8)
    assert letter.settings.weight_bits is None
    assert set(json.loads(letter._body)) == {"nodes", "settings"}
    assert "weight_bits" not in letter._body


def test_scales_of_the_layers(program: Program) -> None:
    bits = program.settings.layer_bits
    assert bits is not None
    assert set(bits) == {"conv1", "conv2", "fc1", "fc2"}
    assert bits["conv2"] == 9
    steps = {step.name: step for step in program.integer_program("patent").steps}
    assert program.integer_program("patent").output_order == Order(
        8, 8 * (10 + bits["conv1"]) + 4 * 9 + 2 * bits["fc1"] + bits["fc2"]
    )
    assert 2**4 <= np.abs(steps["fc2"].weight).max() <= 2**5  # type: ignore[attr-defined]


def test_bits_with_the_letters_passes_give_every_layer_a_scale() -> None:
    program = compile_small(passes="letter", weight_bits={"fc2": 3})
    bits = program.settings.layer_bits
    assert bits is not None
    assert set(bits) == {"conv1", "act1", "pool1", "conv2", "act2", "pool2", "fc1", "act3", "fc2"}


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"conv3": 4}, "no layer 'conv3' .* conv1, conv2, fc1, fc2"),
        ({"conv1": 49}, "49 for layer 'conv1' is not in 0..48"),
        ({"conv1": 2.5}, "'conv1' = 2.5 is not a whole number"),
        (4, "give bits by name"),
    ],
)
def test_bad_bits(bits: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        compile_small(weight_bits=bits)


def test_summary_tells_limbs_before_and_after(program: Program) -> None:
    text = program.summary()
    letter = compile_small(passes="letter").certificate("patent").required_bits
    assert re.search(rf"by the letter, scale 2\^5: {letter} bits, \d+ limbs before, \d+ after", text)
    assert "(t, k bits) stands for V / (a^t 2^k)" in text
    assert max(len(line) for line in text.splitlines()) <= 120


# Client, server, oracle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_decrypted_integers_are_those_of_the_oracle(profile: str, batch_norm: bool) -> None:
    program = mcfhe.compile(small_lenet(batch_norm=batch_norm), (1, 8, 8), 0.5, 0.5, scale_bits=5, passes="default")
    client = mcfhe.Client.generate(program.client_spec(), lanes=2, profile=profile, noise=8)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    request, V = client.encrypt(images, return_integers=True)
    found = client.decrypt_integers(mcfhe.Server(program).evaluate(request))
    assert found == program.evaluate_integers(V, profile)
    assert max(abs(v) for row in found for v in row) <= program.certificate(profile).output_bound


def test_residual_networks() -> None:
    torch.manual_seed(0)
    model = models.resnet_tiny(in_channels=1, image_size=8, num_classes=3, batch_norm=True).eval()
    program = mcfhe.compile(model, (1, 8, 8), 0.5, 0.5, scale_bits=5, passes="default")
    client = mcfhe.Client.generate(program.client_spec(), lanes=2, profile="hardened")
    request, V = client.encrypt(np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), np.uint8), return_integers=True)
    found = client.decrypt_integers(mcfhe.Server(program).evaluate(request))
    assert found == program.evaluate_integers(V, "hardened")


def test_the_clients_scale_is_that_of_the_input(program: Program) -> None:
    spec = program.client_spec()
    assert (spec.scale_bits, spec.profile("patent").input_order) == (5, Order(1, 10))
    assert spec.table == compile_small(passes="letter").table
    client = mcfhe.Client.generate(spec)
    assert client.evaluation_key.scale == 32
    other = compile_small(scale_bits=6)
    request = mcfhe.Client.generate(other.client_spec()).encrypt(np.zeros((1, 1, 8, 8), np.uint8))
    with pytest.raises((MismatchError, ParameterError)):
        mcfhe.Server(program).evaluate(request)


# The file -------------------------------------------------------------------------------------------------------------


def test_round_trip(program: Program) -> None:
    again = Program.from_bytes(program.to_bytes())
    assert (again, again.settings, again.summary()) == (program, program.settings, program.summary())
    for profile in PROFILES:
        V = np.random.default_rng(1).integers(-(2**30), 2**30, (1, 1, 8, 8))
        assert again.evaluate_integers(V, profile) == program.evaluate_integers(V, profile)


def test_identity_counts_scales(program: Program) -> None:
    ids = {compile_small(weight_bits={"conv2": bits}).program_id for bits in (8, 9, 10)}
    assert len(ids) == 3
    assert program.program_id in ids


FORGERIES: list[tuple[tuple[Any, ...], str]] = [
    (("version", 3), "content version 3"),
    (("version", True), "content version True"),
    (("settings", "weight_bits", None), "'weight_bits' is not a list"),
    (("settings", "weight_bits", [["conv1"]]), "'weight_bits' is not a list"),
    (("settings", "weight_bits", [["conv1", 7]]), "no bits for layer 'conv2'"),
    (("settings", "weight_bits", 0, 1, 99), "99 for layer"),
    (("settings", "weight_bits", 0, 1, True), "True for layer"),
    (("settings", "weight_bits", 0, 0, "conv9"), "no bits for layer 'conv1'"),
    (("settings", "weight_bits", 0, 0, "conv2"), "named twice"),
    (("settings", "letter", [8, "x"]), "'letter'"),
    (("settings", "letter", [8]), "'letter'"),
    (("settings", "more", 1), "'settings'"),
]


@pytest.mark.parametrize(("change", "message"), FORGERIES, ids=[str(i) for i in range(len(FORGERIES))])
def test_forged_content(program: Program, change: tuple[Any, ...], message: str) -> None:
    body = json.loads(program._body)
    *path, last, value = change
    at = body
    for key in path:
        at = at[key]
    at[last] = value
    metadata = {"program_id": program.program_id, "program": json.dumps(body)}
    with pytest.raises(FormatError, match=message):
        Program.from_bytes(container.pack("program", dict(program._tensors), metadata))


@pytest.mark.parametrize("value", [np.full((8, 4), 1, np.uint8), np.full((8, 8), 255, np.uint8)])
def test_forged_floats(program: Program, value: np.ndarray) -> None:
    tensors = dict(program._tensors) | {"node.1.bias": value}
    metadata = {"program_id": program.program_id, "program": program._body}
    with pytest.raises(FormatError, match=r"not made of float64|not finite"):
        Program.from_bytes(container.pack("program", tensors, metadata))


def test_a_poly_that_rounds_to_a_whole_number_comes_back() -> None:
    """0.9 at no bits of scale is 1, which pays no scale; its entry is then without effect."""
    model = torch.nn.Sequential(torch.nn.Flatten(), mcfhe.PolyActivation((0.5, 0.25, 0.9))).eval()
    program = mcfhe.compile(model, (1, 1, 2), passes=["eliminate_dead_nodes"], weight_bits={"1": 0})
    assert program.integer_program("hardened").output_order == Order(2, 16)
    assert Program.from_bytes(program.to_bytes()) == program
