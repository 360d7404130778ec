"""This project's lattice scheme on the two small networks: one full batch."""

from __future__ import annotations

import statistics
import time

import numpy as np

import mcfhe
from benchmarks.peer_nets import Measured, SquareNet
from mcfhe.lattice.program import LatticeProgram
from mcfhe.lattice.report import message_bytes

SECURITY = "128-bit lattice (RNS-CKKS)"
REPEATS = 5


def batched(net: SquareNet) -> Measured:
    """All images in the slots of one request; the median of several evaluations."""
    card = net.item.card
    program: LatticeProgram = mcfhe.compile(
        net.item.model, card.input_shape, card.mean, card.std, labels=card.labels, scheme="lattice"
    )
    client = mcfhe.Client.generate(program.client_spec())
    server = mcfhe.Server(program)
    t0 = time.perf_counter()
    request = client.encrypt(net.pixels[: program.slots])
    encrypt = time.perf_counter() - t0
    server.bind(request.evaluation_key)
    seconds = []
    for _ in range(REPEATS):
        t0 = time.perf_counter()
        response = server.evaluate(request)
        seconds.append(time.perf_counter() - t0)
    t0 = time.perf_counter()
    found = client.decrypt(response).argmax(1).numpy()
    decrypt = time.perf_counter() - t0
    truth, exact = net.labels.numpy()[: len(found)], net.scores(net.images[: len(found)]).argmax(1)
    _, down, key = message_bytes(program)
    return Measured(
        batch=program.slots,
        images=len(found),
        latency=statistics.median(seconds),
        encrypt=encrypt,
        decrypt=decrypt,
        accuracy=float(np.mean(found == truth)),
        agreement=float(np.mean(found == exact)),
        bytes_up=len(request.to_bytes(embed_key=False)),
        bytes_down=down,
        key_bytes=key,
    )
