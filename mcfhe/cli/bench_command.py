"""``mcfhe bench``: how long one program takes on this machine, beside the same network in plain float32."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
from rich.table import Table

from mcfhe.cli.common import device_option, json_option, print_json, quiet_option, security_line, stdout
from mcfhe.spec import DEFAULT_PROFILE, PROFILES


@click.command()
@click.option("--model", default="lenet:fashion-mnist", show_default=True, help="A model file, or ARCH:DATASET.")
@click.option("--images", default=100, show_default=True, type=click.IntRange(1), help="In one request; random pixels.")
@click.option("--lanes", default=4, show_default=True, help="M: positions a residue may hide in.")
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, type=click.Choice(PROFILES))
@click.option("--passes", default="default", show_default=True, type=click.Choice(["letter", "default"]))
@click.option("--repeats", default=10, show_default=True, type=click.IntRange(2), help="Of every measurement.")
@device_option
@quiet_option
@json_option
def bench(
    model: str,
    images: int,
    lanes: int,
    profile: str,
    passes: str,
    repeats: int,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Time encryption, evaluation and decryption of one request, and the network in float32.

    Float32 runs on the CPU, on as many threads. Only the ratios mean something on a shared machine.

    \b
    JSON keys: device, cores, limbs, lanes, images, rows [{name, median, spread}] in milliseconds (spread: half the
    distance between the quartiles), ratio: evaluation over limbs * lanes times float32.
    """
    import torch

    import mcfhe
    from mcfhe.cli.program_commands import load_model
    from mcfhe.scoring import normalise

    security_line(quiet)
    network = load_model(model)
    card = network.mcfhe_metadata
    program = mcfhe.compile(network, card.input_shape, card.mean, card.std, labels=card.labels, passes=passes)
    server = mcfhe.Server(program, device)
    pixels = torch.randint(0, 256, (images, *card.input_shape), dtype=torch.uint8)
    floats = normalise(pixels, card.mean, card.std)
    with mcfhe.Client.generate(program.client_spec(), lanes=lanes, profile=profile) as client, torch.inference_mode():
        request = client.encrypt(pixels)
        response = server.evaluate(request)
        network(floats)
        # in turn, so that whatever else the machine does meets all of them
        steps: dict[str, Callable[[], Any]] = {
            "encrypt": lambda: client.encrypt(pixels),
            "evaluate": lambda: server.evaluate(request),
            "decrypt": lambda: client.decrypt(response),
            "float32": lambda: network(floats),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    limbs = len(request.evaluation_key.moduli)
    pairs = zip(seconds["evaluate"], seconds["float32"], strict=True)
    ratio = statistics.median(ours / (limbs * lanes * theirs) for ours, theirs in pairs)
    rows = [
        {"name": name, "median": statistics.median(v) * 1e3, "spread": _spread(v) * 1e3} for name, v in seconds.items()
    ]
    if as_json:
        body = {"device": device, "cores": os.cpu_count(), "limbs": limbs, "lanes": lanes, "images": images}
        print_json(body | {"rows": rows, "ratio": ratio})
        return
    table = Table(title=f"{model}, {images} images, {limbs} limbs x {lanes} lanes, {profile} profile, {device}")
    for column in ("step", "ms", "±"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(str(row["name"]), f"{row['median']:.2f}", f"{row['spread']:.2f}")
    stdout.print(table)
    stdout.print(f"evaluation takes {ratio:.2f} of {limbs} x {lanes} times the network in float32", markup=False)


def _spread(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2
