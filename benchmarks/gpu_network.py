"""The demo network on the device: one image, many images, the cost against N, M, batch and image size; and encrypted in
the lattice scheme, a full batch of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import mcfhe
from benchmarks.gpu_kernels import Stand, WrongResult
from benchmarks.gpu_plan import DEMO_LIMBS, NetworkCase, limbs_needed, moduli
from mcfhe.cards import ModelCard
from mcfhe.engine import Engine
from mcfhe.engine.arena import TorchMemory
from mcfhe.graph.steps import IntegerProgram
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.expansion import expanded
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.server import LatticeServer
from mcfhe.lattice.wire import SEED_BYTES, LatticeRequest

PROFILE = "patent"
REPEATS_MS = 1500.0  # about how long one row's repeats may take


@cache
def program_of(image: int) -> IntegerProgram:
    """The shipped LeNet; for other image sizes the same layers with fresh weights, whose cost is the same."""
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    if not isinstance(card, ModelCard):
        raise TypeError("the shipped model has no card")
    if image == card.input_shape[1]:
        program = mcfhe.compile(model, input_shape=card.input_shape, mean=card.mean, std=card.std, labels=card.labels)
        spec = program.client_spec()
        needed = limbs_needed(spec.profile(PROFILE).required_product(spec.guard_bits))
        if needed != DEMO_LIMBS:
            raise ValueError(f"the demo needs {needed} limbs, the plan says {DEMO_LIMBS}: correct DEMO_LIMBS")
    else:
        program = mcfhe.compile(mcfhe.models.lenet(image_size=image).eval(), input_shape=(1, image, image))
    return program.integer_program(PROFILE)


@cache
def engine_of(image: int, graphs: bool) -> Engine:
    return Engine(program_of(image), torch.device("cuda"), cuda_graphs=graphs)


def check(bench: Stand) -> None:
    """The device against the CPU engine: every residue of a few images, in one tile and in many."""
    bases = moduli(DEMO_LIMBS)
    host = Engine(program_of(28))
    x = bench.residues(bases, 1, 28, 28, 40).cpu()
    expected = host.run(host.bind(bases), x)
    for tile_bytes in (None, 8 << 20):
        for graphs in (True, False):
            engine = Engine(program_of(28), torch.device("cuda"), tile_bytes, graphs)
            binding = engine.bind(bases)
            for _ in range(2):
                if not torch.equal(engine.run(binding, x), expected):
                    raise WrongResult("demo network: staged evaluation differs from the CPU")
                if not torch.equal(engine.run(binding, x.cuda()).cpu(), expected):
                    raise WrongResult("demo network: evaluation on the device differs from the CPU")


def row(bench: Stand, case: NetworkCase) -> dict[str, Any]:
    """Milliseconds of one request, three ways: the graph alone, from and to device memory, from and to host memory."""
    bases = moduli(case.limbs)
    stream = case.batch * case.lanes
    x = bench.residues(bases, 1, case.image, case.image, stream)
    engine = engine_of(case.image, True)
    binding = engine.bind(bases)
    runner = engine.runner
    if runner is None:
        raise TypeError("the engine has no CUDA runner")
    out: dict[str, Any] = {"axis": case.axis, "name": case.title, **case.__dict__, "sub_images": case.sub_images}
    resident = bench.clock.wall(lambda: engine.run(binding, x), 10)
    repeats = max(10, min(200, int(REPEATS_MS / resident.median)))
    replay = runner.replay_of(binding, x)
    torch.cuda.synchronize()
    if replay is not None:
        with runner.runtime.compute():
            out["replay"] = bench.clock.time(replay, cold=False).to_json()
            out["replay_cold"] = bench.clock.time(replay).to_json()
    resident = bench.clock.wall(lambda: engine.run(binding, x), repeats)
    host = x.cpu()
    staged = bench.clock.wall(lambda: engine.run(binding, host), min(repeats, 50))
    out |= {"resident": resident.to_json(), "staged": staged.to_json()}
    out["images_per_second"] = case.batch / (resident.median * 1e-3)
    out["images_per_second_staged"] = case.batch / (staged.median * 1e-3)
    if case.batch == 1:
        out["no_graphs"] = _without_graphs(bench, case, x).to_json()
    return out


def _without_graphs(bench: Stand, case: NetworkCase, x: Tensor) -> Any:
    engine = engine_of(case.image, False)
    binding = engine.bind(moduli(case.limbs))
    return bench.clock.wall(lambda: engine.run(binding, x))


@cache
def lattice_program() -> LatticeProgram:
    """The shipped LeNet with the scale of ``make bench-lattice``."""
    model = mcfhe.models.lenet(pretrained="fashion-mnist")
    card = model.mcfhe_metadata
    if not isinstance(card, ModelCard):
        raise TypeError("the shipped model has no card")
    program = mcfhe.compile(model, card.input_shape, card.mean, card.std, scale_bits=10, scheme="lattice")
    if not isinstance(program, LatticeProgram):
        raise TypeError("compile gave no lattice program")
    return program


def lattice_row(bench: Stand, program: LatticeProgram) -> dict[str, Any]:
    """A full batch under a key, both uniform residues, which take as long as real ones and need no SEAL.

    Milliseconds of ciphertexts on the device, of a request as it is received (the second components as seeds, which the
    device expands), and of upload and expansion alone. Every residue of the answer is compared with the CPU's.
    """
    ring, spec = program.plan.ring, program.client_spec()
    limbs = len(ring.moduli)
    key = bench.residues((*ring.moduli, ring.special), limbs, 2, ring.degree).permute(1, 2, 0, 3)
    ciphertext = bench.residues(ring.moduli, *spec.input_shape, ring.degree).to(torch.int32).cpu()
    request = LatticeRequest(
        ciphertext,
        LatticeEvaluationKey(ring, key.to(torch.int32).cpu().contiguous()),
        program.program_id,
        program.slots,
        seeds=torch.randint(0, 256, (*spec.input_shape, SEED_BYTES), dtype=torch.uint8),
    )
    server = LatticeServer(program, bench.device)
    binding = server.bind(request.evaluation_key)
    if not torch.equal(server.evaluate(request).residues, LatticeServer(program).evaluate(request).residues):
        raise WrongResult("lattice network: the device differs from the CPU")
    memory = TorchMemory(bench.device)
    x = expanded(request, memory)
    engine = server._engine
    resident = bench.clock.wall(lambda: engine.run(binding, x), 10)
    received = bench.clock.wall(lambda: server.evaluate(request), 5)
    return {
        "name": f"demo network, n = {ring.degree}, L = {limbs}, {program.slots} images",
        "degree": ring.degree,
        "limbs": limbs,
        "batch": program.slots,
        "resident": resident.to_json(),
        "received": received.to_json(),
        "expansion": bench.clock.wall(lambda: expanded(request, memory), 5).to_json(),
        "ms_per_image": resident.median / program.slots,
        "ms_per_image_received": received.median / program.slots,
    }
