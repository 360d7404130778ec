"""``mcfhe bench``: how long one program takes on this machine, beside the same network in plain float32."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.table import Table

from mcfhe.cli.common import (
    device_option,
    json_option,
    only_of_scheme,
    print_json,
    quiet_option,
    scheme_option,
    security_line,
    stdout,
)
from mcfhe.spec import DEFAULT_PROFILE, PROFILES
from mcfhe.wording import LATTICE_LINE, SECURITY_LINE

IMAGES, REPEATS = 100, {"modular": 10, "lattice": 3}
TORCH_BATCH = 256  # float32 is slower on thousands at once


@dataclass(frozen=True)
class Setup:
    """A client, its encryption in words and as JSON, and ``work``: how many float networks the ratio is over."""

    client: Any
    facts: dict[str, Any]
    words: str
    work: int


@click.command()
@click.option("--model", default="lenet:fashion-mnist", show_default=True, help="A model file, or ARCH:DATASET.")
@click.option(
    "--images",
    type=click.IntRange(1),
    help=f"In one request; random pixels.  [default: {IMAGES}; lattice: as many as a request holds]",
)
@scheme_option("lattice: RNS-CKKS with SEAL's keys; no lanes or profile.")
@click.option("--lanes", default=4, show_default=True, help="M: positions a residue may hide in.")
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, type=click.Choice(PROFILES))
@click.option("--passes", default="default", show_default=True, type=click.Choice(["letter", "default"]))
@click.option(
    "--repeats",
    type=click.IntRange(2),
    help=f"Of every measurement.  [default: {REPEATS['modular']}; lattice: {REPEATS['lattice']}]",
)
@device_option
@quiet_option
@json_option
def bench(
    model: str,
    images: int | None,
    scheme: str,
    lanes: int,
    profile: str,
    passes: str,
    repeats: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Time encryption, evaluation and decryption of one request, and the network in float32.

    Float32 runs on the CPU, on as many threads. Only the ratios mean something on a shared machine.

    \b
    JSON keys: device, cores, scheme, limbs, images, rows [{name, median, spread}] in milliseconds (spread: half the
    distance between the quartiles), ratio: evaluation over float32; lanes, and then over limbs * lanes times float32;
    of the lattice scheme degree and slots.
    """
    import torch

    import mcfhe
    from mcfhe.cli.program_commands import load_model
    from mcfhe.scoring import normalise

    only_of_scheme("modular", scheme, "lanes", "profile")
    security_line(quiet, LATTICE_LINE if scheme == "lattice" else SECURITY_LINE)
    network = load_model(model)
    card = network.mcfhe_metadata
    program = mcfhe.compile(
        network, card.input_shape, card.mean, card.std, labels=card.labels, passes=passes, scheme=scheme
    )
    if images is None:
        images = program.slots if scheme == "lattice" else IMAGES
    server = mcfhe.Server(program, device)
    pixels = torch.randint(0, 256, (images, *card.input_shape), dtype=torch.uint8)
    floats = torch.split(normalise(pixels, card.mean, card.std), TORCH_BATCH)
    with _client(program, lanes, profile) as setup, torch.inference_mode():
        client = setup.client
        request = client.encrypt(pixels)
        response = server.evaluate(request)
        network(floats[0])
        steps: dict[str, Callable[[], Any]] = {
            "encrypt": lambda: client.encrypt(pixels),
            "evaluate": lambda: server.evaluate(request),
            "decrypt": lambda: client.decrypt(response),
            "float32": lambda: [network(part) for part in floats],
        }
        seconds = _interleaved(steps, repeats or REPEATS[scheme])
    pairs = zip(seconds["evaluate"], seconds["float32"], strict=True)
    ratio = statistics.median(ours / (setup.work * theirs) for ours, theirs in pairs)
    rows = [
        {"name": name, "median": statistics.median(v) * 1e3, "spread": _spread(v) * 1e3} for name, v in seconds.items()
    ]
    if as_json:
        body = {"device": device, "cores": os.cpu_count(), "scheme": scheme, **setup.facts, "images": images}
        print_json(body | {"rows": rows, "ratio": ratio})
        return
    table = Table(title=f"{model}, {images:,} images, {setup.words}, {device}")
    for column in ("step", "ms", "±"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        table.add_row(str(row["name"]), f"{row['median']:.2f}", f"{row['spread']:.2f}")
    stdout.print(table)
    times = f"of {setup.facts['limbs']} x {lanes} times" if scheme == "modular" else "times"
    stdout.print(f"evaluation takes {ratio:.2f} {times} the network in float32", markup=False)


@contextmanager
def _client(program: Any, lanes: int, profile: str) -> Iterator[Setup]:
    from mcfhe.client import Client

    if program.scheme == "lattice":
        with Client.generate(program.client_spec()) as client:
            limbs, degree = program.plan.limbs, program.plan.degree
            facts = {"limbs": limbs, "degree": degree, "slots": program.slots}
            yield Setup(client, facts, f"lattice scheme, {limbs} limbs, n = {degree:,}", work=1)
        return
    with Client.generate(program.client_spec(), lanes=lanes, profile=profile) as client:
        limbs = len(client.evaluation_key.moduli)
        words = f"{limbs} limbs x {lanes} lanes, {profile} profile"
        yield Setup(client, {"limbs": limbs, "lanes": lanes}, words, work=limbs * lanes)


def _interleaved(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step: in turn, so that whatever else the machine does meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _spread(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2
