"""The lattice scheme on whole networks: ``make bench-lattice``.

Full batches of random images (the time does not depend on them): the net of TenSEAL's tutorial (A), the
CryptoNets-style net (B) and the demo LeNet. Writes build/reports/bench-lattice.json
{device, cores, rows [{name, median, spread, ratio, against, ...}]}: milliseconds of evaluation for one image of a full
batch; ratio: over torch float32 on the same images, 256 at a time, which is faster for it than all at once. first_s is
the first request to a new server, whose memory is fresh. Beside them what encryption, decryption, bytes and memory
cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mcfhe
from benchmarks.conftest import processor, quartile_spread
from mcfhe.lattice.report import message_bytes, multiply_adds, relinearisations

REPORT = Path("build/reports/bench-lattice.json")
REPEATS = 5
TORCH_BATCH = 256
SCALE_BITS = {"demo LeNet": 10}
NETWORKS: dict[str, Callable[[], Any]] = {
    "A: TenSEAL tutorial": lambda: mcfhe.models.tenseal_net(pretrained="mnist"),
    "B: CryptoNets-style": lambda: mcfhe.models.cryptonets(pretrained="mnist"),
    "demo LeNet": lambda: mcfhe.models.lenet(pretrained="fashion-mnist"),
}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(name: str, model: Any, device: str, repeats: int) -> dict[str, Any]:
    """One row: compile, one encryption, ``repeats`` evaluations, one decryption, checked against the quantised net."""
    card = model.mcfhe_metadata
    compiling, program = timed(
        lambda: mcfhe.compile(
            model, card.input_shape, card.mean, card.std, scale_bits=SCALE_BITS.get(name, 8), scheme="lattice"
        )
    )
    slots = program.slots
    images = torch.randint(0, 256, (slots, *card.input_shape), dtype=torch.uint8, generator=torch.manual_seed(0))
    client = mcfhe.Client.generate(program.client_spec())
    encrypting, request = timed(lambda: client.encrypt(images))
    server = mcfhe.Server(program, device=device)
    server.bind(request.evaluation_key)
    ours, theirs = [], []
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (card.mean, card.std))
    batches = ((images.float() / 255 - mean) / std).split(TORCH_BATCH)
    with torch.inference_mode():
        first, _ = timed(lambda: server.evaluate(request))
        for batch in batches:
            model(batch)
        for _ in range(repeats):
            seconds, response = timed(lambda: server.evaluate(request))
            ours.append(seconds)
            theirs.append(timed(lambda: [model(batch) for batch in batches])[0])
    decrypting, scores = timed(lambda: client.decrypt(response))
    plain = program.evaluate_plain(images[:64])
    error = float((scores[:64] - plain).pow(2).mean().sqrt())  # the largest one is slot 0's luck with the key
    up, down, key = message_bytes(program)
    return {
        "name": name,
        "median": statistics.median(ours) / slots * 1e3,
        "spread": quartile_spread(ours) / slots * 1e3,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "against": "torch float32, the same images",
        "batch": slots,
        "degree": program.plan.degree,
        "limbs": program.plan.limbs,
        "modulus_bits": program.plan.modulus_bits,
        "multiply_adds": multiply_adds(program),
        "relinearisations": relinearisations(program),
        "evaluate_s": statistics.median(ours),
        "first_s": first,
        "compile_s": compiling,
        "encrypt_s": encrypting,
        "decrypt_s": decrypting,
        "bytes_up": up,
        "bytes_down": down,
        "key_bytes": key,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "score_error": error,
        "score_rms": float(plain.pow(2).mean().sqrt()),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="lattice scheme, full batches")
    for column in (
        "network",
        "n",
        "limbs",
        "ms an image",
        "+-",
        "x torch",
        "encrypt s",
        "evaluate s",
        "decrypt s",
        "MB up",
    ):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["degree"]),
            str(row["limbs"]),
            f"{row['median']:.3f}",
            f"{row['spread']:.3f}",
            f"{row['ratio']:.0f}",
            f"{row['encrypt_s']:.1f}",
            f"{row['evaluate_s']:.2f}",
            f"{row['decrypt_s']:.2f}",
            f"{row['bytes_up'] / 1e6:.0f}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--only", help="networks whose name holds this text")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    chosen = {name: make for name, make in NETWORKS.items() if not arguments.only or arguments.only in name}
    rows = [measure(name, make(), arguments.device, arguments.repeats) for name, make in chosen.items()]
    device = processor() if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    report = {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "rows": rows}
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
