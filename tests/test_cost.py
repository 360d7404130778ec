"""The cost card: counts against real messages, times against real runs (loosely: the machine may be busy)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.cost import card as cost
from mcfhe.cost import throughput
from mcfhe.engine import Engine
from mcfhe.errors import ParameterError
from mcfhe.graph.order import Order
from mcfhe.graph.steps import AddStep, ConcatStep, Conv2dStep, FlattenStep, LinearStep, PolyStep, PoolStep
from tests.graph_support import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def program() -> mcfhe.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        mcfhe.PolyActivation(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3),
        mcfhe.PolyActivation((0, 0, 1)),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    )
    return mcfhe.compile(model.eval(), (1, 16, 16), scale_bits=6, passes="default")


@pytest.mark.parametrize("profile", ["patent", "hardened"])
def test_counts_are_those_of_the_messages(program: mcfhe.Program, profile: str) -> None:
    card = program.cost(profile, lanes=3, images=5, timed=False)
    client = mcfhe.Client.generate(program.client_spec(), lanes=3, profile=profile)
    request = client.encrypt(np.zeros((5, 1, 16, 16), np.uint8))
    response = mcfhe.Server(program).evaluate(request)
    assert card.limbs == len(client.evaluation_key.moduli)
    assert 0 < len(request.to_bytes()) - card.bytes_up - card.key_bytes < 2000
    assert 0 < len(response.to_bytes()) - card.bytes_down < 2000
    assert card.sub_images == card.limbs * 3 * 5
    macs = 8 * 256 * 25 + 16 * 36 * 72 + 10 * 576
    assert (card.macs, card.residue_macs) == (macs, macs * card.sub_images)
    assert card.peak_memory > 8 * (request.ciphertext.numel() + response.residues.numel())
    assert card.seconds == {}
    assert f"{card.limbs} limbs x 3 lanes" in str(card)
    assert "predicted" not in str(card)
    assert card.to_json()["residue_macs"] == card.residue_macs


def test_times_are_near_what_is_measured(program: mcfhe.Program) -> None:
    """Processor time, so that other work on the machine counts little, and the best of three rounds of both."""
    client = mcfhe.Client.generate(program.client_spec(), profile="patent")
    images = np.random.default_rng(0).integers(0, 256, (16, 1, 16, 16), dtype=np.uint8)
    request = client.encrypt(images)
    server = mcfhe.Server(program)
    server.evaluate(request)
    ratios = []
    for _ in range(3):
        throughput.forget()
        predicted = program.cost("patent", images=16).seconds["evaluate"]
        times = []
        for _ in range(4):
            start = time.process_time()
            server.evaluate(request)
            times.append(time.process_time() - start)
        ratios.append(predicted / min(times))
    assert min(max(r, 1 / r) for r in ratios) < 4, ratios


def test_the_clients_times_are_those_of_a_batch_of_real_scores(
    program: mcfhe.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decrypted for the prediction fills the proved range: CRT takes as long as for real scores."""
    seen: list[list[int]] = []
    original = mcfhe.Client.decrypt_integers

    def decrypt_integers(self: mcfhe.Client, response: Any, **arguments: Any) -> list[list[int]]:
        seen.extend(original(self, response, **arguments))
        return seen

    def second(run: Callable[[], object]) -> float:
        run()
        return 1.0

    monkeypatch.setattr(mcfhe.Client, "decrypt_integers", decrypt_integers)
    monkeypatch.setattr(cost, "median_of", second)
    seconds = program.cost("hardened", lanes=2, images=7).seconds
    assert seconds["encrypt"] == seconds["decrypt"] == 1.0, "one batch of 7 took a second, whatever an image takes"
    assert len(seen) == 7
    bound = program.certificate("hardened").output_bound
    flat = [v for row in seen for v in row]
    assert bound / 2 < max(flat) <= bound
    assert -bound <= min(flat) < -bound / 2


def test_a_card_has_all_times_and_keeps_the_rates(program: mcfhe.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    card = program.cost("hardened", images=2)
    assert set(card.seconds) == {"encrypt", "evaluate", "decrypt"}
    assert all(value > 0 for value in card.seconds.values())
    assert "predicted on cpu: encrypt" in str(card)
    for module, clock in ((throughput, "least"), (cost, "median_of")):
        monkeypatch.setattr(module, clock, lambda _: pytest.fail("measured again"))
    assert program.cost("hardened", images=2) == card


def test_more_work_takes_longer() -> None:
    rate = throughput.rate("conv2d small", "cpu", 64)
    assert rate.seconds(10, 800) >= rate.seconds(10, 20) > 0
    with pytest.raises(ValueError, match="no probe for 'fft'"):
        throughput.rate("fft", "cpu", 64)


def test_work_of_every_step() -> None:
    order = Order(0, 0)
    base = {"name": "x", "inputs": (0,), "order": order}
    conv = {"bias": None, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
    shape = (4, 3, 3)

    def work(step: object) -> list[tuple[str, int, int]]:
        return [(w.kind, w.values, w.terms) for w in throughput.work_of(step)]  # type: ignore[arg-type]

    for weight, path in ((1, "small"), (1 << 15, "medium"), (1 << 20, "large")):
        weights = np.full((4, 2, 3, 3), weight, np.int64)
        step = Conv2dStep(shape=shape, weight=weights, **base, **conv)  # type: ignore[arg-type]
        assert work(step) == [(f"conv2d {path}", 36, 18)]
    matrix = np.full((7, 5), -3, np.int64)
    assert work(LinearStep(shape=(7,), weight=matrix, bias=None, **base)) == [("linear small", 7, 5)]  # type: ignore[arg-type]
    pool = PoolStep(shape=shape, kernel=(2, 3), stride=(1, 1), padding=(0, 0), factor=1, **base)  # type: ignore[arg-type]
    assert work(pool) == [("sum_pool2d", 36, 6)]
    assert work(PolyStep(shape=shape, coefficients=((0, 0, 1),), **base)) == [("poly", 36, 1)]  # type: ignore[arg-type]
    assert work(PolyStep(shape=shape, coefficients=((1, 2, 3),), **base)) == [("poly", 36, 4)]  # type: ignore[arg-type]
    assert work(AddStep(shape=shape, factors=(1, 8), **base)) == [("add", 36, 2)]  # type: ignore[arg-type]
    assert work(ConcatStep(shape=shape, factors=(1,), **base)) == [("add", 36, 1)]  # type: ignore[arg-type]
    assert work(FlattenStep(shape=(36,), **base)) == []  # type: ignore[arg-type]


def test_memory_counts_what_is_alive(program: mcfhe.Program) -> None:
    """One image at a time on the CPU: no more than request, response, constants and tiles of a known size."""
    plan = program.integer_program("patent")
    engine = Engine(plan)
    small, large = (program.cost("patent", images=n, timed=False).peak_memory for n in (1, 64))
    assert 8 * engine.live_entries < small < large


@pytest.mark.parametrize("name", ["lanes", "images"])
def test_refusals(program: mcfhe.Program, name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name} = 0 must be 1 or more"):
        program.cost(**{name: 0})
    with pytest.raises(ParameterError, match="profile 'none'"):
        program.cost("none")
