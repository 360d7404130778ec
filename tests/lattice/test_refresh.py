"""Client refresh with lattice stages: networks deeper than any ring, where they are cut, precision on real images."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mcfhe
from mcfhe.errors import DepthError, ParameterError, UnsupportedLayerError
from mcfhe.graph.floats import float_values
from mcfhe.graph.nodes import Conv2d, Linear, Poly
from mcfhe.graph.squarings import REACH
from mcfhe.lattice import cutting as lattice_cutting
from mcfhe.lattice.cutting import LatticeStages
from mcfhe.lattice.lower import is_linear
from mcfhe.modular.constants import scaled_constants
from mcfhe.modular.plan import quantise
from mcfhe.staged.client import StagedClient
from mcfhe.staged.cut_search import CutSearch
from mcfhe.staged.cutting import refresh
from tests.lattice.staged_support import PIXELS, after, chain, uncut
from tests.lattice.test_plan import random_graph, settings_of

# Depth ----------------------------------------------------------------------------------------------------------------


def test_how_many_activations_fit_counts_the_shorter_first_prime() -> None:
    """At n = 4,096 one does, with a first prime of 18 bits, and none with primes of 30."""
    options = {"scale_bits": 6, "precision_bits": 6, "scheme": "lattice", "degree": 4096}
    program = mcfhe.compile(chain(1), (1, 2, 2), 0.5, 0.5, **options)
    assert program.plan.first_bits == 18
    with pytest.raises(DepthError, match="at n = 4096, where the first 1 of them fit"):
        mcfhe.compile(chain(2), (1, 2, 2), 0.5, 0.5, **options)


def test_a_network_too_deep_for_any_ring_runs_in_stages() -> None:
    """Sixteen activations: refused whole by both schemes, which say how deep and what to do; and then they run."""
    with pytest.raises(
        DepthError,
        match=r"16 activations in a row need more than 60 limbs .* table allows 28 at n = 32768, where the first \d+ "
        r"of them fit; choose client refresh \(compile with for_refresh=True",
    ) as error:
        mcfhe.compile(chain(16), (1, 2, 2), 0.5, 0.5, scale_bits=6, scheme="lattice")
    fits = int(str(error.value).split("the first ")[1].split()[0])
    assert mcfhe.compile(chain(fits), (1, 2, 2), 0.5, 0.5, scale_bits=6, scheme="lattice").plan.degree == 32768
    with pytest.raises(DepthError, match="or client refresh"):
        mcfhe.compile(chain(16), (1, 2, 2), 0.5, 0.5, scale_bits=6)

    program = refresh(uncut(16), PIXELS, max_degree=8192)
    assert {stage.plan.degree for stage in program.stages} == {8192}
    with StagedClient.generate(program.client_spec()) as client:
        scores = client.classify(PIXELS, mcfhe.Server(program))
    plain = program.evaluate_plain(PIXELS)
    # one level changed at a cut moves a score by about a level; labels differ where the margin is smaller
    step = max(cut.step for cut in program.predict_levels(PIXELS))
    assert float((scores - plain).abs().max()) < 8 * step
    assert float((scores.argmax(1) == plain.argmax(1)).double().mean()) >= 0.97
    top = plain.sort(1).values
    clear = top[:, -1] - top[:, -2] > 16 * step
    assert clear.sum() > 100
    assert torch.equal(scores.argmax(1)[clear], plain.argmax(1)[clear])
    # and what is computed is the network: 8-bit levels at each cut beside the floats
    x = (torch.from_numpy(PIXELS) / 255 - 0.5) / 0.5
    assert float((plain - chain(16)(x).detach().double()).abs().max()) < 0.3


def test_the_modular_program_is_a_way_in() -> None:
    """A program of the modular scheme, by the letter or not; its rounded weights are kept."""
    for passes in ("letter", "default"):
        program = mcfhe.compile(chain(3), (1, 2, 2), 0.5, 0.5, scale_bits=6, passes=passes)
        found = refresh(program, PIXELS, scheme="lattice", max_degree=4096)
        assert found.scheme == "lattice"
        assert max(stage.plan.degree for stage in found.stages) == 4096
        weights = {node.name: node.weight for node in program.graph.nodes if node.op == "linear"}
        for stage in found.stages:
            for node in stage.graph.nodes:
                if node.op == "linear":
                    np.testing.assert_array_equal(node.weight, weights[node.name])
        whole = program.evaluate_plain(PIXELS)
        assert float((found.evaluate_plain(PIXELS) - whole).abs().max()) < 0.1


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.lists(st.lists(st.integers(-64, 64), min_size=2, max_size=5).filter(lambda row: row[-1]), min_size=1),
    letter=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_squares_of_a_modular_program_keep_its_weights_and_its_function(
    seed: int, rows: list[list[int]], letter: bool
) -> None:
    random = Random(seed)
    choices = [[[n / 64 / 3**i for i, n in enumerate(row)]] for row in rows]
    given_graph = random_graph(random, 1, choices)
    compiled = replace(settings_of(given_graph, random), passes=("complete_squares",))
    if letter:
        compiled = replace(compiled, scale_bits=16, weight_bits=None)
    else:
        bits = {name: random.randint(8, 14) + 8 for name in scaled_constants(given_graph)}
        compiled = replace(compiled, weight_bits=tuple(sorted(bits.items())))
    program = quantise(given_graph, compiled.scale_bits, compiled.layer_bits)
    graph, found = LatticeStages.within(None, None, 12).prepared(program, compiled)
    assert found.passes == ("complete_squares", "sums_of_squares")
    layer_bits = found.layer_bits
    assert layer_bits is not None
    assert layer_bits.keys() == scaled_constants(graph).keys()
    rounded = quantise(graph, found.scale_bits, layer_bits)
    assert all(node.coefficients.shape[1] == 3 or is_linear(node) for node in rounded.nodes if node.op == "poly")
    nodes = {node.name: node for node in rounded.nodes}
    for node in program.nodes:
        if isinstance(node, Conv2d | Linear):
            np.testing.assert_array_equal(nodes[node.name].weight, node.weight)  # type: ignore[union-attr]
            np.testing.assert_array_equal(nodes[node.name].bias, node.bias)  # type: ignore[union-attr]
    x = np.random.default_rng(seed).uniform(-1, 1, (20, *program.input_shape))
    before, after = (float_values(g, x) for g in (program, rounded))
    (index,) = (i for i, node in enumerate(program.nodes) if isinstance(node, Poly))
    activation = program.nodes[index]
    reach = max(REACH, float(before[activation.inputs[0]].abs().max()))
    terms = sum(abs(c) * reach**i for i, c in enumerate(activation.coefficients[0]))  # type: ignore[union-attr]
    names = [node.name for node in rounded.nodes]
    assert float((before[index] - after[names.index(activation.name)]).abs().max()) < 2.0**-11 * terms
    assert LatticeStages.within(None, None, 12).prepared(rounded, found) == (rounded, found)


# Where ----------------------------------------------------------------------------------------------------------------


def test_fewest_cuts_and_few_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    program, made, searches = uncut(9), [], []
    original, search = LatticeStages.make, CutSearch.__init__

    def make(self: LatticeStages, *arguments: Any) -> Any:
        made.append(arguments)
        return original(self, *arguments)

    def begin(self: CutSearch, *arguments: Any) -> None:
        searches.append(self)
        search(self, *arguments)

    monkeypatch.setattr(LatticeStages, "make", make)
    monkeypatch.setattr(CutSearch, "__init__", begin)
    found = refresh(program, PIXELS, max_limbs=6)
    assert max(found.limbs()) <= 6
    assert len(made) == searches[0].planned <= 40, "of 66 stages between activations"
    assert len(found.cuts) >= 2
    for cut in (after(program, count) for count in range(1, 9)):  # no one cut will do
        with pytest.raises(ParameterError, match=r"cuts: stage \d, .* max_limbs is 6 at n"):
            refresh(program, PIXELS, [cut], max_limbs=6)


def test_a_cut_costs_what_is_sent_and_never_less_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's share is counted by the residues of real messages; a bound above a cost would lose the best cuts."""
    program = mcfhe.compile(chain(2), (1, 2, 2), 0.5, 0.5, scale_bits=6, scheme="lattice")
    stages = LatticeStages.within(None, None, 12)
    assert 0 < stages.bound(program.graph) <= stages.cost(program)
    request = mcfhe.Client.generate(program.client_spec()).encrypt(PIXELS[:1], seeded=False)
    response = mcfhe.Server(program).evaluate(request)
    for name, factor, sent in (("ENCRYPT", 60, request.ciphertext), ("DECRYPT", 25, response.residues)):
        whole = stages.cost(program)
        monkeypatch.setattr(lattice_cutting, name, 0.0)
        assert whole - stages.cost(program) == factor * sent.numel() / 2  # of two components


def test_limits_of_ring_and_limbs() -> None:
    program = uncut(3)
    for limit in (4096, 8192):
        assert max(stage.plan.degree for stage in refresh(uncut(5), PIXELS, max_degree=limit).stages) == limit
    with pytest.raises(ParameterError, match="max_degree = 32768: the program fits without a cut"):
        refresh(program, PIXELS)
    with pytest.raises(ParameterError, match="max_degree = 32768, max_limbs = 1: no cuts keep every stage within it"):
        refresh(program, PIXELS, max_limbs=1)
    with pytest.raises(
        ParameterError, match=r"cuts: stage 1, up to layer .*: lattice plan: 2 activations in a row .* cut it once more"
    ):
        refresh(program, PIXELS, [after(program, 2)], max_degree=4096)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"max_degree": 5000}, "max_degree = 5000: choose one of 4096"),
        ({"max_limbs": 0}, "1 or more"),
        ({"precision_bits": 3}, "4..24"),
        ({"scheme": "bfv"}, "scheme 'bfv'"),
        ({"cuts": ["nowhere"]}, "no cut after layer 'nowhere'"),
        ({"scheme": "modular"}, "cut into lattice stages"),
    ]
    for arguments, match in refused:
        with pytest.raises(ParameterError, match=match):
            refresh(program, PIXELS, **({"max_degree": 4096} | arguments))
    for images, match in ((PIXELS[:, :, :1], r"shape \(200, 1, 1, 2\)"), (PIXELS[:0], "at least one image")):
        with pytest.raises(ParameterError, match=f"calibration: .*{match}"):
            refresh(program, images, max_degree=4096)
    modular = mcfhe.compile(chain(3), (1, 2, 2), scale_bits=4)
    with pytest.raises(ParameterError, match="max_degree: belongs to the lattice scheme"):
        refresh(modular, PIXELS, max_degree=4096)
    steep = mcfhe.PolyActivation((0.0,) * 8 + (1.0,))
    other = nn.Sequential(nn.Conv2d(1, 1, 1), steep, nn.Flatten(), nn.Linear(4, 2)).eval()
    cubic = mcfhe.compile(other, (1, 2, 2), scale_bits=2)
    with pytest.raises(UnsupportedLayerError, match="degree"):
        refresh(cubic, PIXELS, scheme="lattice", max_degree=4096)


def test_a_lattice_program_that_fits_can_be_cut() -> None:
    program = mcfhe.compile(chain(2), (1, 2, 2), 0.5, 0.5, scale_bits=6, scheme="lattice")
    found = refresh(program, PIXELS, max_degree=4096)
    assert found.scheme == "lattice"
    assert {stage.plan.degree for stage in found.stages} == {4096}


def test_compile_for_refresh_refuses_what_needs_the_whole() -> None:
    for arguments in ({"degree": 8192}, {"scheme": "modular", "amplification_bits": "auto"}):
        with pytest.raises(ParameterError, match="for_refresh"):
            uncut(1, **arguments)
    assert uncut(1, precision_bits=9).precision_bits == 9
    assert uncut(1).labels == ("0", "1", "2")


# Precision ------------------------------------------------------------------------------------------------------------


def test_real_images_keep_their_labels_and_noise_is_as_predicted() -> None:
    """400 Fashion-MNIST images of 7 x 7 pixels through a network trained here, cut once."""
    data = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test")
    images = functional.avg_pool2d(data.images.float(), 4).round().to(torch.uint8)
    pixels, labels = (images.float() / 255 - 0.3) / 0.35, data.labels.long()
    torch.manual_seed(0)
    activation = mcfhe.PolyActivation
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), activation(), nn.Flatten(), nn.Linear(36, 16), activation(),
        nn.Linear(16, 16), activation(), nn.Linear(16, 10))  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(300):
        batch = torch.randint(0, 600, (100,))
        optimiser.zero_grad()
        functional.cross_entropy(net(pixels[batch]), labels[batch]).backward()
        optimiser.step()
    net.eval()
    program = mcfhe.compile(net, (1, 7, 7), 0.3, 0.35, scheme="lattice", for_refresh=True, precision_bits=8)
    staged = refresh(program, images[:600], max_degree=8192)
    assert len(staged.stages) == 2
    test = images[600:]
    client, server = StagedClient.generate(staged.client_spec()), mcfhe.Server(staged)
    request = client.encrypt(test)
    response = server.evaluate(request)
    scores = client.decrypt(server.evaluate(client.refresh(response, request_id=request.request_id)))
    plain = staged.evaluate_plain(test)
    assert float((scores.argmax(1) == plain.argmax(1)).double().mean()) >= 0.99
    assert float((scores.argmax(1) == net(pixels[600:]).argmax(1)).double().mean()) >= 0.97
    assert float((plain.argmax(1) == labels[600:]).double().mean()) > 0.6, "it has learnt something"

    (predicted,) = staged.predict_levels(test)
    noise = client.clients[0].decrypt(response) - staged.stages[0].evaluate_plain(test)
    assert predicted.noise / 2 < float(noise.std()) < 2 * predicted.noise
    exact = staged.levels[0].of_integers(*staged.stages[0].exact_scores(test))
    changed = client.clients[0].decrypt_levels(response, staged.levels[0]).astype(int) - exact
    assert np.abs(changed).max() <= 1, "noise is far below a level"
    share, count = float((changed != 0).mean()), changed.size
    assert predicted.changed / 2 - 3 / count < share < 2 * predicted.changed + 3 / count
