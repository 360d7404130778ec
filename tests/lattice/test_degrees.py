"""Activations of degree 1 to 4 from fit to decrypted label, over Fashion-MNIST images of every fourth pixel."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mcfhe
from mcfhe.activations import PolyActivation
from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph.steps import TensorSquareStep
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.server import LatticeServer
from mcfhe.staged.client import StagedClient
from tests.lattice.test_plan import check_plan

MEAN, STD = 0.25, 0.5
SAMPLE = mcfhe.datasets.load(mcfhe.datasets.SAMPLE, "test")
IMAGES = SAMPLE.images[:, :, ::4, ::4].contiguous()


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - MEAN) / STD


def classifier(*activations: nn.Module) -> nn.Sequential:
    """Random features, the last layer by least squares on the labels: as good as its features, in a moment."""
    torch.manual_seed(11)
    first, second = activations
    features = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), first, nn.Flatten(), nn.Linear(27, 12), second)
    last = nn.Linear(12, 10)
    with torch.no_grad():
        hidden = features(normalised(IMAGES))
        inputs = torch.cat([hidden, torch.ones(len(hidden), 1)], 1)
        solution = torch.linalg.lstsq(inputs, nn.functional.one_hot(SAMPLE.labels, 10).float()).solution
        last.weight.copy_(solution[:-1].T)
        last.bias.copy_(solution[-1])
    return features.append(last).eval()


def compiled(model: nn.Module, **arguments: Any) -> LatticeProgram:
    defaults: dict[str, Any] = {"mean": MEAN, "std": STD, "scheme": "lattice", "scale_bits": 10}
    program = mcfhe.compile(model, (1, 7, 7), **(defaults | arguments))
    assert isinstance(program, LatticeProgram)
    return program


@pytest.mark.parametrize(("degrees", "per_channel"), [((3, 4), False), ((4, 3), True)])
def test_fitted_activations_give_the_labels_of_the_float_model(degrees: tuple[int, int], per_channel: bool) -> None:
    ordinary = classifier(nn.SiLU(), nn.Tanh())
    names = {"1": degrees[0], "4": degrees[1]}
    model, _ = mcfhe.convert(ordinary, IMAGES[:300], mean=MEAN, std=STD, degree=names, per_channel=per_channel)
    program = compiled(model, scale_bits=12, precision_bits=14)
    check_plan(program, 14)
    client = LatticeClient.generate(program.client_spec())
    request = client.encrypt(IMAGES)
    scores = client.decrypt(LatticeServer(program).evaluate(request), request_id=request.request_id)
    predicted = program.predict_precision(IMAGES[:200])[-1].noise
    plain = program.evaluate_plain(IMAGES)
    error = scores - plain
    assert predicted / 2 < float(error.std()) < 2 * predicted
    assert float(error.abs().max()) < 40 * predicted  # in the first slots, see mcfhe.lattice.noise
    with torch.no_grad():
        expected = model.double()(normalised(IMAGES.double()))
    assert float((scores - expected).abs().max()) < 0.01
    best = expected.topk(2, 1).values
    apart = best[:, 0] - best[:, 1] > 0.02
    assert float(apart.double().mean()) > 0.8
    assert torch.equal(scores.argmax(1)[apart], expected.argmax(1)[apart])
    assert float((scores.argmax(1) == expected.argmax(1)).double().mean()) >= 0.995


@pytest.mark.parametrize(("degree", "passes"), [(3, "letter"), (3, "default"), (4, "letter"), (4, "default")])
def test_a_program_of_the_modular_scheme_in_stages(degree: int, passes: str) -> None:
    """From float model to decrypted label: noise as predicted, levels one apart at most, the labels of the model."""
    ordinary = classifier(nn.SiLU(), nn.Tanh())
    model, _ = mcfhe.convert(ordinary, IMAGES[:300], mean=MEAN, std=STD, degree=degree)
    modular = mcfhe.compile(model, (1, 7, 7), MEAN, STD, scale_bits=12, passes=passes)
    staged = mcfhe.refresh(modular, IMAGES, scheme="lattice", max_degree=8192)
    assert len(staged.stages) == 2
    for stage in staged.stages:
        check_plan(stage, 12)
    client, server = StagedClient.generate(staged.client_spec()), mcfhe.Server(staged)
    request = client.encrypt(IMAGES)
    response = server.evaluate(request)
    refreshed = client.refresh(response, request_id=request.request_id)
    scores = client.decrypt(server.evaluate(refreshed), request_id=refreshed.request_id)

    (predicted,) = staged.predict_levels(IMAGES[:200])
    noise = client.clients[0].decrypt(response) - staged.stages[0].evaluate_plain(IMAGES)
    assert predicted.noise / 2 < float(noise.std()) < 2 * predicted.noise
    exact = staged.levels[0].of_integers(*staged.stages[0].exact_scores(IMAGES))
    changed = client.clients[0].decrypt_levels(response, staged.levels[0]).astype(int) - exact
    assert abs(changed).max() <= 1
    last = staged.stages[1].predict_precision(exact[:200])[-1].noise
    unchanged = (changed == 0).reshape(len(changed), -1).all(1)
    error = (scores - staged.evaluate_plain(IMAGES))[torch.from_numpy(unchanged)]
    assert len(error) > 400
    assert last / 2 < float(error.std()) < 2 * last

    with torch.no_grad():
        expected = model.double()(normalised(IMAGES.double()))
    assert float((modular.evaluate_plain(IMAGES) - expected).abs().max()) < 0.02
    assert float((scores - expected).abs().max()) < 0.05, "of which 8 bits at the cut are the most"
    best = expected.topk(2, 1).values
    apart = best[:, 0] - best[:, 1] > 0.1
    assert float(apart.double().mean()) > 0.5
    assert torch.equal(scores.argmax(1)[apart], expected.argmax(1)[apart])
    assert float((scores.argmax(1) == expected.argmax(1)).double().mean()) >= 0.96


def squares(program: LatticeProgram) -> int:
    steps = program.integer_program().steps
    return sum(isinstance(step, TensorSquareStep) and any(row[2] for row in step.coefficients) for step in steps)


def layers(program: LatticeProgram) -> set[str]:
    """The first column of the summary's table."""
    table = program.summary().split("\n\n")[1]
    return {re.split(r"\s{2,}", row)[0] for row in table.splitlines()[1:]}


def test_what_each_degree_costs() -> None:
    """Squares and limbs, and that the summary shows them."""
    rows = {1: [0.1, 0.6], 2: [0.1, 0.5, 0.2], 3: [0.1, 0.5, 0.2, 0.05], 4: [0.1, 0.5, 0.25, 0.03, 0.02]}
    programs = {
        degree: compiled(classifier(PolyActivation(row), PolyActivation(row)), precision_bits=10)
        for degree, row in rows.items()
    }
    for program in programs.values():
        check_plan(program, 10)
    assert {degree: squares(program) for degree, program in programs.items()} == {1: 0, 2: 2, 3: 8, 4: 4}
    limbs = [programs[degree].plan.limbs for degree in (1, 2, 4)]
    assert limbs == sorted(set(limbs))
    assert {"1: plus squared", "4: minus squared"} <= layers(programs[3])
    assert "1: inner" in layers(programs[4])
    assert layers(programs[2]) == {"input", "0", "1", "2", "3", "4", "5"}


def test_a_saved_program_is_the_same(tmp_path: Any) -> None:
    program = compiled(classifier(PolyActivation([0.1, 0.5, 0.2, 0.05]), PolyActivation([0, 1, 0, 0, 0.01])))
    program.save(tmp_path / "net")
    assert mcfhe.load_program(tmp_path / "net") == program


def test_scales_that_leave_nothing_of_a_coefficient_are_refused() -> None:
    model = classifier(PolyActivation([0.1, 0.5, 0.25, 0.03, 0.02]), PolyActivation())
    for part in ("outer", "rest"):
        with pytest.raises(ParameterError, match=f"'1: {part}': its leading .* rounded to 0; give it more weight_bits"):
            compiled(model, weight_bits={f"1: {part}": 0})


def test_degree_five_is_refused_by_name() -> None:
    model = classifier(PolyActivation([0, 1, 0, 0, 0, 0.1]), PolyActivation())
    refused = r"layer '1': degree 5; .* 1 to 4: convert with max_degree=4"
    with pytest.raises(UnsupportedLayerError, match=refused):
        compiled(model)
    modular = mcfhe.compile(model, (1, 7, 7), MEAN, STD, scale_bits=4)
    with pytest.raises(UnsupportedLayerError, match=refused):
        mcfhe.refresh(modular, IMAGES, scheme="lattice", max_degree=8192)
