"""Client refresh: cuts, levels, and the whole protocol against the exact oracle."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mcfhe
from mcfhe import models
from mcfhe.errors import MismatchError, ParameterError
from mcfhe.graph.floats import float_values
from mcfhe.staged import cutting
from mcfhe.staged.client import StagedClient
from mcfhe.staged.cutting import refresh
from mcfhe.staged.program import StagedProgram, StagedServer
from mcfhe.staged.spec import Levels
from tests.graph_support import one_thread

__all__ = ["one_thread"]

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
OTHERS = np.random.default_rng(1).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)


def network() -> nn.Module:
    """Three squarings, a residual block, a linear layer in front of the last."""
    torch.manual_seed(2)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), mcfhe.PolyActivation(), nn.Conv2d(4, 4, 3, padding=1))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        mcfhe.PolyActivation(),
        nn.AvgPool2d(2),
        models.Residual(body),
        nn.Flatten(),
        nn.Linear(64, 8),
        mcfhe.PolyActivation(),
        nn.Linear(8, 3),
    ).eval()


@pytest.fixture(scope="module", params=["letter", "default"])
def program(request: Any) -> mcfhe.Program:
    return mcfhe.compile(network(), (1, 8, 8), 0.5, 0.5, scale_bits=8, passes=request.param)


# Levels ---------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-(2**90), 2**90), min_size=4, max_size=4),
    st.integers(0, 2**31),
    st.sampled_from((2**20, 2**86, 3 * 2**84)),
)
@settings(max_examples=80, deadline=None)
def test_levels_are_the_nearest(values: list[int], seed: int, denominator: int) -> None:
    random = np.random.default_rng(seed)
    levels = Levels((2, 2, 1), tuple(random.uniform(-1, 2, 2).tolist()), tuple(random.uniform(1e-3, 9, 2).tolist()))
    found = levels.of_integers([values], denominator).reshape(-1)
    for i, (value, level) in enumerate(zip(values, found, strict=True)):
        mean, std = Fraction(levels.mean[i // 2]), Fraction(levels.std[i // 2])
        distances = [abs((Fraction(u, 255) - mean) / std - Fraction(value, denominator)) for u in range(256)]
        assert distances[level] == min(distances)
        if distances.count(min(distances)) == 1:
            assert level == distances.index(min(distances))
    floats = np.array([[v / denominator for v in values]])
    guess, certain = levels.of_floats(floats, np.abs(floats) * 2.0**-52)
    assert not certain[0] or guess.reshape(-1).tolist() == found.tolist()


def test_a_tie_is_not_certain_in_floats_and_goes_upwards() -> None:
    levels = Levels((1, 1, 3), (0.0,), (1 / 255,))  # level u stands for about u
    exact = Levels((1, 1, 3), (0.0,), (2.0**-8,))  # u stands for u 256 / 255
    assert exact.of_integers([[128 * 3, 128 * 5, -10]], 255).reshape(-1).tolist() == [2, 3, 0]
    _, certain = levels.of_floats(np.array([[1.5, 2.0, 3.0], [1.4, 2.0, 900.0]]), np.full((2, 3), 1e-9))
    assert certain.tolist() == [False, True]


# Cuts -----------------------------------------------------------------------------------------------------------------


def test_where_a_cut_is_possible(program: mcfhe.Program) -> None:
    """Not inside the residual block, not after a flatten."""
    with pytest.raises(ParameterError, match=r"cuts: no cut after layer '3\.body\.0'; possible after .*2.*3") as error:
        refresh(program, IMAGES, ["3.body.0"])
    assert "'4'" not in str(error.value)


def test_the_proposal_is_the_cheapest(program: mcfhe.Program) -> None:
    def cost(staged: StagedProgram) -> int:
        total = 0
        for stage in staged.stages:
            card = stage.cost("patent", lanes=1, timed=False)
            sent = np.prod(stage.input_shape) + len(stage.labels)
            total += card.limbs * (card.macs + int(sent))
        return total

    names = [node.name for node in program.graph.nodes[1:-1]]
    found = {}
    for name in names:
        try:
            found[name] = cost(refresh(program, IMAGES, [name], profile="patent"))
        except ParameterError:
            continue
    assert len(found) >= 4
    proposed = refresh(program, IMAGES, profile="patent")
    assert cost(proposed) == min(found.values())
    assert len(proposed.stages) == 2


def test_fewest_cuts_within_a_limit(program: mcfhe.Program) -> None:
    whole = program.cost("patent", timed=False).limbs
    for limit in range(whole - 1, 3, -1):
        try:
            staged = refresh(program, IMAGES, max_limbs=limit, profile="patent")
        except ParameterError as error:
            assert "no cuts keep every stage within it" in str(error)  # noqa: PT017 - the search ends somewhere
            break
        assert max(staged.limbs("patent")) <= limit
        assert len(staged.limbs("patent")) == len(staged.cuts) + 1
        fewer = itertools.combinations([n.name for n in program.graph.nodes[1:-1]], len(staged.cuts) - 1)
        for names in fewer if len(staged.cuts) > 1 else ():
            try:
                assert max(refresh(program, IMAGES, names).limbs("patent")) > limit
            except ParameterError:
                continue
        if len(staged.cuts) >= 2:
            break
    with pytest.raises(ParameterError, match="fits without a cut"):
        refresh(program, IMAGES, max_limbs=whole, profile="patent")


# The protocol ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["patent", "hardened"])
@pytest.mark.parametrize("cuts", [["2"], ["2", "5"], ["6"]])
def test_encrypted_stages_equal_the_oracle(program: mcfhe.Program, profile: str, cuts: list[str]) -> None:
    staged = refresh(program, IMAGES, cuts)
    client = StagedClient.generate(staged.client_spec(), lanes=2, profile=profile)
    server = StagedServer(staged)
    request, integers = client.encrypt(OTHERS, return_integers=True)
    every = [integers]
    response = server.evaluate(request)
    for _ in cuts:
        request, integers = client.refresh(response, return_integers=True)
        every.append(integers)
        response = server.evaluate(request)
    exact = staged.evaluate_integers(every, profile)
    assert client.clients[-1].decrypt_integers(response) == exact
    denominator = client.clients[-1].profile.output_order.denominator(16)
    scores = client.decrypt(response)
    assert scores.tolist() == [[v / denominator for v in row] for row in exact]
    if profile == "patent":  # without noise: what evaluate_plain says, and what classify gives again
        assert torch.equal(scores.argmax(1), staged.evaluate_plain(OTHERS).argmax(1))
        assert torch.equal(client.classify(OTHERS, server), scores)
    damaged = every.copy()
    damaged[1] = every[1] + 16 * 2**20
    with pytest.raises(MismatchError, match="stage 1: the integers encrypted are not the levels"):
        staged.evaluate_integers(damaged, profile)


class Replaying:
    """Answers every request for one program with its first answer."""

    def __init__(self, server: Any, program_id: str) -> None:
        self.server, self.program_id, self.first = server, program_id, None

    def evaluate(self, request: Any, progress: Any = None) -> Any:
        response = self.server.evaluate(request)
        if request.program_id != self.program_id:
            return response
        self.first = self.first or response
        return self.first


def test_answers_to_other_requests_are_refused(program: mcfhe.Program) -> None:
    """A service that sends an earlier answer of the same key again, at a cut or at the end."""
    staged = refresh(program, IMAGES, ["2"])
    server = mcfhe.Server(staged)
    with StagedClient.generate(staged.client_spec()) as client:
        for stage in staged.stages:
            replaying = Replaying(server, stage.program_id)
            client.classify(OTHERS, replaying)
            with pytest.raises(MismatchError, match="request_id"):
                client.classify(OTHERS, replaying)


def test_stages_stay_close_to_the_network(program: mcfhe.Program) -> None:
    """256 levels at one cut: scores within a few hundredths of their spread of those without a cut."""
    whole = program.evaluate_plain(OTHERS)
    for cut in ("0", "2", "3", "6"):
        try:
            staged = refresh(program, IMAGES, [cut])
        except ParameterError:
            assert cut in ("3", "0")
            continue
        found = staged.evaluate_plain(OTHERS)
        assert float((found - whole).abs().max()) < 0.15 * float(whole.std())


def test_levels_cover_a_little_more_than_what_was_seen(program: mcfhe.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all images, however few are looked at together: 5 % of each channel's range on either side."""
    mean, std = np.array(program.settings.mean), np.array(program.settings.std)
    at = [node.name for node in program.graph.nodes].index("2")
    seen = float_values(program.graph, (IMAGES / 255 - mean) / std)[at].numpy()
    low, high = seen.min(axis=(0, 2, 3)), seen.max(axis=(0, 2, 3))
    for elements in (1, 1 << 24):
        monkeypatch.setattr(cutting, "_ELEMENTS", elements)
        levels = refresh(program, IMAGES, ["2"]).levels[0]
        first, last = ((u - np.array(levels.mean)) / np.array(levels.std) for u in (0, 1))
        np.testing.assert_allclose(first, low - 0.05 * (high - low), rtol=1e-9)
        np.testing.assert_allclose(last, high + 0.05 * (high - low), rtol=1e-9)


def test_refreshed_stages_are_proved_for_their_levels(program: mcfhe.Program) -> None:
    """Far fewer limbs, and no values that a stage before gives can leave the next one's bounds: they are clipped."""
    staged = refresh(program, IMAGES, ["2"])
    assert max(staged.limbs("patent")) < program.cost("patent", timed=False).limbs
    extreme = np.array([[10**30] * 64, [-(10**30)] * 64], object)
    pixels = staged.levels[0].of_integers(extreme.tolist(), 1)
    assert set(pixels[0].reshape(-1)) == {255}
    assert set(pixels[1].reshape(-1)) == {0}
    second = staged.stages[1]
    bounds = second.certificate("hardened").output_bounds
    V = np.array(second.table, object)[np.arange(4)[None, :, None, None], pixels] * second.settings.amplification
    for row in second.evaluate_integers(V, "hardened"):
        assert all(low <= v <= high for v, (low, high) in zip(row, bounds, strict=True))


def test_doubts_in_floats_go_to_exact_integers(program: mcfhe.Program, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = refresh(program, IMAGES, ["2"])
    expected = staged.evaluate_plain(OTHERS)
    monkeypatch.setattr(Levels, "of_floats", lambda self, values, bounds: (
        np.zeros((len(values), *self.shape), np.uint8), np.zeros(len(values), bool)
    ))  # fmt: skip
    assert torch.equal(staged.evaluate_plain(OTHERS), expected)


def test_summary_says_who_sees_what(program: mcfhe.Program) -> None:
    text = refresh(program, IMAGES, ["2"]).summary()
    assert "stage 2 of 2, after layer 2, whose 4x4x4 values the client sees, rounds and encrypts" in text


def test_refusals(program: mcfhe.Program) -> None:
    for images, message in ((IMAGES[:0], "at least one image"), (IMAGES[:, :, :4], r"shape \(60, 1, 4, 8\)")):
        with pytest.raises(ParameterError, match=message):
            refresh(program, images)
    for cuts in ("2", [], ["none"]):
        with pytest.raises(ParameterError, match="cuts"):
            refresh(program, IMAGES, cuts)
    with pytest.raises(ParameterError, match="profile 'none'"):
        refresh(program, IMAGES, profile="none")
    with pytest.raises(ParameterError, match=r"the stages need \(.*\) limbs, max_limbs is 1"):
        refresh(program, IMAGES, ["2"], max_limbs=1)
    staged = refresh(program, IMAGES, ["2"])
    client = StagedClient.generate(staged.client_spec(), lanes=2)
    response = StagedServer(staged).evaluate(client.encrypt(OTHERS))
    with pytest.raises(ParameterError, match=r"before the last; refresh\(\) it"):
        client.decrypt(response)
    last = StagedServer(staged).evaluate(client.refresh(response))
    with pytest.raises(ParameterError, match="scores are decrypted and not refreshed"):
        client.refresh(last)
    other = mcfhe.Client.generate(program.client_spec())
    with pytest.raises(MismatchError, match="no stage of this one"):
        StagedServer(staged).evaluate(other.encrypt(OTHERS))
    with pytest.raises(MismatchError, match="no stage of this client"):
        client.decrypt(mcfhe.Server(program).evaluate(other.encrypt(OTHERS)))
    client.close()
    with pytest.raises(ParameterError):
        client.encrypt(OTHERS)
    with pytest.raises(ParameterError, match="user_key"):
        StagedClient.generate(staged.client_spec(), user_key="word")
    with pytest.raises(ParameterError, match="one for the client spec of each stage"):
        StagedClient(staged.client_spec(), client.clients[:1])
    with pytest.raises(ParameterError, match="integers: of 1 stages"):
        staged.evaluate_integers([OTHERS], "patent")
