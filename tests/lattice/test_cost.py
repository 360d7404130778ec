"""The cost card of the lattice scheme: counts against real messages and by hand, times on a clock that cannot vary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log2

import numpy as np
import pytest
import torch

import mcfhe
from mcfhe.cost import lattice_card, lattice_rates, throughput
from mcfhe.engine import Engine
from mcfhe.errors import ParameterError
from mcfhe.lattice import seal
from mcfhe.lattice.program import LatticeProgram, node_bounds
from mcfhe.lattice.seal import available
from tests.graph_support import one_thread
from tests.lattice.support import small_program

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def program() -> LatticeProgram:
    return small_program()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every probe runs once and takes a second; whose they were."""
    probes: list[str] = []

    def second(run: Callable[[], object]) -> float:
        run()
        probes.append(run.__qualname__.split(".")[0])
        return 1.0

    lattice_rates.forget()
    throughput.forget()
    lattice_card._client_seconds.cache_clear()
    for module, name in ((lattice_rates, "least"), (throughput, "least"), (lattice_card, "median_of")):
        monkeypatch.setattr(module, name, second)
    yield probes
    lattice_rates.forget()
    throughput.forget()
    lattice_card._client_seconds.cache_clear()


@pytest.mark.skipif(not available(), reason="needs tenseal: pip install 'mcfhe[lattice]'")
def test_bytes_are_those_of_the_messages(program: LatticeProgram) -> None:
    card = program.cost(images=3, timed=False)
    client = mcfhe.Client.generate(program.client_spec())
    request = client.encrypt(np.zeros((3, 2, 3, 3), np.uint8))
    response = mcfhe.Server(program).evaluate(request)
    assert 0 < len(request.to_bytes(embed_key=False)) - card.bytes_up < 2000
    assert 0 < len(request.to_bytes()) - card.bytes_up - card.key_bytes < 4000
    assert 0 < len(response.to_bytes()) - card.bytes_down < 2000
    assert card.peak_memory > request.held_bytes


def test_counts_by_hand(program: LatticeProgram) -> None:
    """The convolution has 4 outputs of 8 taps, the linear layer 2 of 4."""
    card, ring = program.cost(timed=False), program.plan.ring
    assert (card.slots, card.degree, card.limbs) == (2048, 4096, len(ring.moduli))
    assert card.modulus_bits == sum(q.bit_length() for q in (*ring.moduli, ring.special))
    assert card.max_modulus_bits == 109
    steps = program.integer_program()
    kinds = [step.kind for step in steps.steps]
    assert kinds.count("relinearise") == 1
    relinearised = steps.levels[kinds.index("relinearise")].limbs
    rescaled = [(steps.levels[i], step.shape) for i, step in enumerate(steps.steps) if step.kind == "rescale"]
    places = int(np.prod(steps.steps[kinds.index("relinearise")].shape))
    assert card.relinearised == places
    by_hand = places * (relinearised**2 + 3 * relinearised + 2)
    by_hand += sum(int(np.prod(shape)) * level.components * level.limbs for level, shape in rescaled)
    assert card.transforms == by_hand
    conv, linear = (
        steps.levels[1 + next(i for i, s in enumerate(steps.steps) if s.kind == k)] for k in ("conv2d", "linear")
    )
    assert card.residue_macs == 4096 * (4 * 8 * conv.limbs * conv.components + 2 * 4 * linear.limbs * linear.components)


def test_memory_is_what_the_engine_holds(program: LatticeProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for scratch and tiles: the arena's most, and the input that the caller holds."""
    engine, ring = Engine(program.integer_program()), program.plan.ring
    digits = len(ring.moduli)
    binding = engine.bind_ring(torch.zeros(digits, 2, digits + 1, ring.degree, dtype=torch.int64))
    x = torch.zeros(digits, 2, 3, 3, 2 * ring.degree, dtype=torch.int32)
    monkeypatch.setattr("mcfhe.engine.ring_runner.CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr("mcfhe.engine.ring_runner.CPU_CHUNK_LEAST", 1)
    engine.run(binding, x)
    assert engine._arena is not None
    scratch = 8 * digits * 3 * ring.degree * torch.get_num_threads()
    peak = lattice_card.peak_values(program.integer_program())
    assert peak <= x.nbytes + engine._arena._most <= peak + scratch


def test_what_empty_slots_waste(program: LatticeProgram, clock: list[str]) -> None:
    one, full = program.cost(images=1), program.cost(images=2048)
    assert one.seconds == full.seconds
    assert (one.bytes_up, one.peak_memory) == (full.bytes_up, full.peak_memory)
    assert one.empty == 1 - 1 / 2048
    assert full.empty == 0
    assert "one image in one request: n = 4,096" in str(one)
    assert "100.0% of 2,048 slots are empty and cost as much as full ones: an image takes" in str(one)
    assert "empty" not in str(full)
    assert one.to_json() | {"seconds": {}} == program.cost(timed=False).to_json()
    assert "predicted" not in str(program.cost(timed=False))


def test_times_add_up_from_probes(program: LatticeProgram, clock: list[str], one_thread: None) -> None:
    """Every probe takes a second, so ciphertexts are counted: 18 pixels, 2 scores, and what is relinearised."""
    seconds = program.cost().seconds
    assert set(clock) >= {"word_rate", "expansion_rate", "relinearise_rate"}
    assert seconds["evaluate"] > 0
    if available():
        assert (seconds["encrypt"], seconds["decrypt"]) == (18.0, 2.0)
    before = len(clock)
    assert program.cost().seconds == seconds
    assert len(clock) == before, "kept"


def test_without_seal(program: LatticeProgram, clock: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "available", lambda: False)
    card = program.cost()
    assert set(card.seconds) == {"evaluate"}
    assert "the client's part: pip install 'mcfhe[lattice]'" in str(card)


def test_real_probes_give_a_time(program: LatticeProgram) -> None:
    lattice_rates.forget()
    assert 0 < program.cost().seconds["evaluate"] < 60
    for rate in (
        lattice_rates.word_rate(64),
        lattice_rates.square_rate(64, True),
        lattice_rates.square_rate(64, False),
    ):
        assert 0 < rate < 1e-3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"profile": "patent"}, "profile = 'patent': belongs to the modular scheme"),
        ({"lanes": 4}, "lanes = 4: belongs to the modular scheme"),
        ({"images": 0}, r"images = 0 is not in 1\.\.2048"),
        ({"images": 2049}, r"images = 2049 is not in 1\.\.2048, the slots"),
        ({"images": 1.5}, "images"),
        ({"device": "cuda"}, "device cuda: times are predicted for a CPU"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_refusals(program: LatticeProgram, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        program.cost(**arguments)  # type: ignore[arg-type]


def test_the_certificate_is_of_what_the_slots_hold(program: LatticeProgram) -> None:
    certificate = program.certificate()
    assert certificate is program.certificate()
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 3, 3), dtype=np.uint8)
    scores, _ = program.exact_scores(images)
    assert max(abs(v) for row in scores for v in row) <= certificate.output_bound
    bits = log2(certificate.output_bound) - program.exact_program.output_order.k
    assert bits == pytest.approx(node_bounds(program.exact_program, program.settings)[-1])
