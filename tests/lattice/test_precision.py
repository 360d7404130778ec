"""Decrypted values against the network without noise, and their noise against the prediction, step by step."""

from __future__ import annotations

from dataclasses import replace
from math import log2, sqrt

import numpy as np
import pytest
import torch
from torch import nn

import mcfhe
from mcfhe.activations import PolyActivation
from mcfhe.engine import Engine
from mcfhe.graph.steps import IntegerProgram
from mcfhe.lattice import noise
from mcfhe.lattice.client import LatticeClient
from mcfhe.lattice.expansion import expanded
from mcfhe.lattice.plan import make_ring
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.seal import Seal
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.simulate import simulate
from tests.lattice.support import AnySeal


class Residual(nn.Module):
    """Two squares, the second beside a shortcut: branches of different levels and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 1)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) ** 2
        return self.linear(torch.flatten(x + self.second(x) ** 2, 1))


class Degrees(nn.Module):
    """A quartic beside a shortcut, which meets its square before that is relinearised; then a cubic on a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear = nn.Conv2d(1, 2, 2), nn.Linear(8, 3)
        self.quartic, self.cubic = PolyActivation([0.1, 0.5, 0.25, 0.03, 0.02]), PolyActivation([0.1, 0.5, 0.2, 0.05])
        self.last = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.cubic(self.linear(torch.flatten(x + self.quartic(x), 1))))


@pytest.fixture(scope="module", params=[Residual, Degrees])
def residual(request: pytest.FixtureRequest) -> LatticeProgram:
    torch.manual_seed(8)
    return mcfhe.compile(request.param().eval(), (1, 3, 3), scheme="lattice", scale_bits=6, precision_bits=8)


def truncated(program: IntegerProgram, value: int) -> IntegerProgram:
    """The steps that one value needs."""
    needed = {value}
    for index in range(value, 0, -1):
        if index in needed:
            needed.update(program.steps[index - 1].inputs)
    kept = sorted(needed | {0})
    position = {old: new for new, old in enumerate(kept)}
    steps = [program.steps[i - 1] for i in kept[1:]]
    steps = [replace(step, inputs=tuple(position[i] for i in step.inputs)) for step in steps]
    return replace(program, steps=tuple(steps), levels=tuple(program.levels[i] for i in kept))


def test_noise_of_every_step_is_as_predicted(residual: LatticeProgram) -> None:
    """Standard deviation over all slots within a factor of 2 of the prediction, errors within what it allows."""
    steps, spec = residual.integer_program(), residual.client_spec()
    kinds = {step.kind for step in steps.steps}
    assert {"conv2d", "tensor_square", "rescale", "relinearise", "align_add", "linear"} <= kinds
    seal = Seal(spec.ring)
    client = LatticeClient.generate(spec)
    generator = torch.Generator().manual_seed(9)
    images = torch.randint(0, 256, (spec.slots, 1, 3, 3), generator=generator, dtype=torch.uint8)
    request = client.encrypt(images)
    x = torch.tensor(spec.table, dtype=torch.float64)[0][images.long()] / 2**spec.scale_bits
    predicted = residual.predict_precision(images[:512])
    keys = client.evaluation_key.keys.long()
    for value in range(1, len(steps.steps) + 1):
        part = truncated(steps, value)
        engine = Engine(part)
        y = engine.run(engine.bind_ring(keys), expanded(request))
        rows = y.flatten(1, -2)
        scale = float(steps.levels[value].scale)
        measured = [seal.decrypt(client._secret, rows[:, i].numpy(), scale) for i in range(min(4, rows.shape[1]))]
        exact = simulate(part, x).flatten(1).T[: len(measured)]
        error = torch.from_numpy(np.stack(measured)) - exact
        layer = predicted[value]
        assert layer.noise / 2 < float(error.std()) < 2 * layer.noise, layer
        assert float(error.abs().max()) < 40 * layer.noise, layer  # s^2 is largest in few slots: not normal


def test_scores_agree_with_the_network_without_noise(residual: LatticeProgram) -> None:
    client = LatticeClient.generate(residual.client_spec())
    server = LatticeServer(residual)
    generator = torch.Generator().manual_seed(10)
    images = torch.randint(0, 256, (256, 1, 3, 3), generator=generator, dtype=torch.uint8)
    predicted = residual.predict_precision(images)[-1].noise
    exact = residual.evaluate_plain(images)
    aligned = 2.0**-12 * float(exact.abs().max())  # alignment of the sum is a relative error of 2^-13
    for batch in (1, len(images)):
        request = client.encrypt(images[:batch])
        scores = client.decrypt(server.evaluate(request), request_id=request.request_id)
        assert scores.shape == (batch, 2)
        assert float(scores.abs().max()) < 2 ** residual.value_bounds[-1]
        error = scores - exact[:batch]
        # the prediction is an average over slots; the first may have sqrt(0.3 n) times as much (docs/lattice.md)
        assert float(error.abs().max()) < 8 * sqrt(0.3 * residual.plan.degree) * predicted + aligned
    assert float(error[8:].square().mean().sqrt()) < 2 * predicted + aligned


def test_simulation_without_noise_is_the_quantised_network(program: LatticeProgram) -> None:
    images = torch.randint(0, 256, (20, 2, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x = torch.tensor(program.table, dtype=torch.float64)[torch.arange(2)[:, None, None], images.long()]
    scores = simulate(program.integer_program(), x / program.settings_scale)
    assert float((scores - program.evaluate_plain(images)).abs().max()) < 1e-3 * 2 ** program.value_bounds[-1]
    again = [simulate(program.integer_program(), x, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_errors_are_of_the_assumed_variance() -> None:
    """Of single coefficients, c0 + c1 s of encryptions of 0; SEAL's nominal 3.2 instead of sqrt(21 / 2) fails."""
    from mcfhe.lattice import seal as boundary
    from mcfhe.lattice.ring import ntt_tables
    from mcfhe.ops import ntt

    degree = 8192
    seal = AnySeal(make_ring(degree, 1))
    (q,) = seal.ring.moduli
    secret = seal.generate_secret()
    s = np.frombuffer(boundary._unwrapped(secret)[-16 * degree : -8 * degree], "<u8").astype(np.int64)
    encryptor = seal.encryptor(seal.secret(secret))
    rows = [seal.encrypt(encryptor, np.zeros(degree // 2), 1.0)[0].astype(np.int64) for _ in range(40)]
    phases = torch.from_numpy(np.concatenate([(row[:degree] + row[degree:] * s) % q for row in rows]))
    errors = ntt(phases[None], ntt_tables([q], degree), torch.tensor([q]), inverse=True)[0]
    errors = torch.where(errors > q // 2, errors - q, errors).double()
    assert float(errors.abs().max()) <= 21
    # 327,680 samples: the standard deviation is known to 0.13 %, the two candidates are 1.3 % apart
    assert abs(float(errors.std()) / noise.ERROR_STD - 1) < 0.006


@pytest.mark.parametrize("degree", [1024, 4096])
def test_noise_formulas(degree: int) -> None:
    """Fresh, rescaled (two and three components) and relinearised, in units of a slot."""
    import tenseal.sealapi as sealapi

    seal = AnySeal(make_ring(degree, 3))
    evaluator = sealapi.Evaluator(seal.context)
    values = np.random.default_rng(5).uniform(-1, 1, degree // 2)
    scale = 2.0**28
    last = scale**2 / seal.ring.moduli[2]
    errors: dict[str, list[np.ndarray]] = {"fresh": [], "public": [], "two": [], "three": [], "relinearised": []}
    for _ in range(16):  # keys: most of key switching's noise is in few slots, and depends on the key there
        secret = seal.secret(seal.generate_secret())
        keys = sealapi.RelinKeys()
        sealapi.KeyGenerator(seal.context, secret).create_relin_keys(keys)

        def decrypted(ciphertext: sealapi.Ciphertext, scale: float, secret: sealapi.SecretKey = secret) -> np.ndarray:
            return seal.decrypt(secret, seal.residues(ciphertext), scale)

        fresh = seal.ciphertext(seal.encrypt(seal.encryptor(secret), values, scale), scale)
        errors["fresh"].append((decrypted(fresh, scale) - values) * scale)
        encryptor = seal.public_encryptor(seal.public_key(secret))
        public = seal.ciphertext(seal.encrypt_public(encryptor, values, scale), scale)
        errors["public"].append((decrypted(public, scale) - values) * scale)
        squared, relinearised, rescaled = (sealapi.Ciphertext() for _ in range(3))
        evaluator.square(fresh, squared)
        exact = decrypted(squared, scale**2)
        evaluator.rescale_to_next(squared, rescaled)
        errors["three"].append((decrypted(rescaled, last) - exact) * last)
        evaluator.relinearize(squared, keys, relinearised)
        errors["relinearised"].append((decrypted(relinearised, scale**2) - exact) * scale**2)
        evaluator.rescale_to_next(relinearised, rescaled)
        errors["two"].append((decrypted(rescaled, last) - exact) * last)
    predicted = {
        "fresh": noise.fresh_symmetric(degree),
        "public": noise.fresh(degree),
        "two": noise.rescaled(degree, 2),
        "three": noise.rescaled(degree, 3),
        "relinearised": noise.relinearised(degree, seal.ring.moduli, seal.ring.special),
    }
    for kind, expected in predicted.items():
        measured = float(np.std(np.concatenate(errors[kind])))
        allowed = {"fresh": 0.1, "public": 0.1, "relinearised": 0.8}.get(kind, 0.3)
        assert abs(log2(measured / expected)) < allowed, (kind, measured, expected)
