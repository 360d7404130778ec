"""This project's modular scheme, and plain float32, on the two small networks."""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

import mcfhe
from benchmarks.peer_nets import Measured, SquareNet, compiled
from mcfhe.scoring import normalise

SECURITY = "none proven (obfuscation)"
PROFILE = "hardened"


def one_image(net: SquareNet) -> Measured:
    return _modular(net, 1)


def batched(net: SquareNet) -> Measured:
    return _modular(net, len(net.pixels))


def _modular(net: SquareNet, batch: int) -> Measured:
    program = compiled(net)
    client = mcfhe.Client.generate(program.client_spec(), profile=PROFILE)
    server = mcfhe.Server(program)
    server.evaluate(client.encrypt(net.pixels[:1]))  # threads started, kernels chosen
    seconds, labels = [], []
    sizes = (0, 0)
    for start in range(0, len(net.pixels), batch):
        t0 = time.perf_counter()
        request = client.encrypt(net.pixels[start : start + batch])
        t1 = time.perf_counter()
        response = server.evaluate(request)
        t2 = time.perf_counter()
        scores = client.decrypt(response)
        seconds.append((t1 - t0, t2 - t1, time.perf_counter() - t2))
        labels += scores.argmax(1).tolist()
        if start == 0:
            sizes = (len(request.to_bytes()), len(response.to_bytes()))
    encrypt, evaluate, decrypt = (statistics.median(step) for step in zip(*seconds, strict=True))
    found = np.array(labels)
    return Measured(
        batch=batch,
        images=len(found),
        latency=evaluate,
        encrypt=encrypt,
        decrypt=decrypt,
        accuracy=float((found == net.labels.numpy()).mean()),
        agreement=float((found == net.scores(net.images).argmax(1)).mean()),
        bytes_up=sizes[0],
        bytes_down=sizes[1],
        key_bytes=0,
    )


def plain(net: SquareNet) -> Measured:
    """torch float32 without encryption, one image at a time."""
    model, card = net.item.model, net.item.card
    seconds, labels = [], []
    with torch.inference_mode():
        for start in range(len(net.pixels)):
            t0 = time.perf_counter()
            x = normalise(net.pixels[start : start + 1], card.mean, card.std)
            t1 = time.perf_counter()
            scores = model(x)
            seconds.append((t1 - t0, time.perf_counter() - t1))
            labels.append(int(scores.argmax()))
    prepare, evaluate = (statistics.median(step) for step in zip(*seconds, strict=True))
    found = np.array(labels)
    return Measured(
        batch=1,
        images=len(found),
        latency=evaluate,
        encrypt=prepare,
        decrypt=0.0,
        accuracy=float((found == net.labels.numpy()).mean()),
        agreement=float((found == net.scores(net.images).argmax(1)).mean()),
        bytes_up=int(net.pixels[0].numel()),
        bytes_down=4 * len(card.labels),
        key_bytes=0,
    )
