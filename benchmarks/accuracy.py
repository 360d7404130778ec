"""Accuracy of every shipped model on its whole test set, and encrypted: ``make accuracy``, ``make accuracy-full``.

For each model: the float network in float64; its program on all test images (``Program.plain_scores``, float64 with a
proved error bound, exact integers for the images whose margin lies inside it); and encrypted images, 1,000 of a small
network and 50 of a deep one, or all of them with ``--full``. ``mismatches`` counts encrypted images with a score that
is not the one of the exact integers that were encrypted. The first images (1,000 and 50) are compared integer by
integer with Python integers, the others with the interval that float64 proves for the same integers, noise included.

Writes build/reports/accuracy.json: {device, cores, torch, seconds, one_run, models: [{name, images, limbs, order, bits,
scale_bits, float_accuracy, quantised_accuracy, exact, encrypted_images, encrypted_accuracy,
encrypted_quantised_accuracy, compared_exactly, mismatches, profile, lanes, macs, bytes_up, seconds}], missing:
[{name, reason}]}. ``exact``: images of the whole set that needed exact integers; ``encrypted_quantised_accuracy``: of
the program without noise on the images that were encrypted. ``--update`` also writes
benchmarks/results/accuracy.json, where rows of models that were not asked for stay.

Exit code 0 when nothing mismatches, every floor below is reached and no data set is missing; with
MCFHE_ALLOW_MISSING_DATA=1 a missing one is only reported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mcfhe
from benchmarks.conftest import processor
from benchmarks.shipped import Shipped, shipped, test_set
from mcfhe.datasets import Dataset
from mcfhe.errors import ParameterError
from mcfhe.graph.plain import evaluate_plain
from mcfhe.graph.report import cost_of
from mcfhe.program import Program
from mcfhe.scoring import accuracy

REPORT = Path("build/reports/accuracy.json")
COMMITTED = Path(__file__).parent / "results" / "accuracy.json"

#: Share of the whole test set that the program must get right.
FLOORS = {
    "lenet-fashion-mnist": 0.92,
    "lenet-mnist": 0.9913,
    "lenet-pneumoniamnist": 0.85,
    "resnet7-cifar10": 0.85,
}
SCALE_BITS = 8
DEEP_MACS = 5_000_000
SAMPLE, DEEP_SAMPLE = 1000, 50
REQUEST_BYTES = 1 << 28  # of one request, so that the largest network needs no more memory than the smallest


def compiled(item: Shipped) -> Program:
    card = item.card
    return mcfhe.compile(
        item.model, card.input_shape, card.mean, card.std, SCALE_BITS, labels=card.labels, passes="default"
    )


def measure(item: Shipped, images: Dataset, full: bool, profile: str, lanes: int) -> dict[str, Any]:
    """One row of the report."""
    seconds: dict[str, float] = {}
    with timed(seconds, "compile"):
        program = compiled(item)
    plan, certificate = program.integer_program(profile), program.certificate(profile)
    cost = cost_of(plan, certificate, program.settings.modulus_bits, lanes, public_key=profile == "patent")
    with timed(seconds, "float"):
        floats = accuracy(item.model, images, item.card.mean, item.card.std)
    with timed(seconds, "quantised"):
        plain = program.plain_scores(images.images)
    right = (plain.scores.argmax(1) == images.labels).numpy()
    sample = SAMPLE if cost.macs < DEEP_MACS else DEEP_SAMPLE
    count = len(images) if full else min(len(images), sample)
    exactly = min(count, sample)
    batch = max(1, min(100, REQUEST_BYTES // cost.bytes_up))
    client = mcfhe.Client.generate(program.client_spec(), lanes=lanes, profile=profile)
    server = mcfhe.Server(program)
    decrypted: list[list[int]] = []
    inputs = []
    for start in range(0, count, batch):
        part = images.images[start : min(start + batch, count)]
        with timed(seconds, "encrypt"):
            request, integers = client.encrypt(part, return_integers=True)
        with timed(seconds, "evaluate"):
            response = server.evaluate(request)
        with timed(seconds, "decrypt"):
            decrypted += client.decrypt_integers(response)
        inputs.append(integers)
        progress(f"{item.name}: {len(decrypted)} of {count} encrypted images")
    with timed(seconds, "compare"):
        wrong = mismatches(program, profile, np.concatenate(inputs), decrypted, exactly)
    labels = np.array([max(range(len(row)), key=row.__getitem__) for row in decrypted])
    return {
        "name": item.name,
        "images": len(images),
        "limbs": len(client.evaluation_key.moduli),
        "order": [plan.output_order.t, plan.output_order.k],
        "bits": certificate.required_bits,
        "scale_bits": program.settings.scale_bits,
        "float_accuracy": floats,
        "quantised_accuracy": float(right.mean()),
        "exact": int(plain.exact.sum()),
        "encrypted_images": count,
        "encrypted_accuracy": float((labels == images.labels[:count].numpy()).mean()),
        "encrypted_quantised_accuracy": float(right[:count].mean()),
        "compared_exactly": exactly,
        "mismatches": wrong,
        "profile": profile,
        "lanes": lanes,
        "macs": cost.macs,
        "bytes_up": cost.bytes_up,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def mismatches(program: Program, profile: str, inputs: np.ndarray, decrypted: list[list[int]], exactly: int) -> int:
    """Images of which a decrypted score is not the one that the integers ``inputs`` give."""
    expected = in_integers(program, profile, inputs[:exactly])
    wrong = [got != want for got, want in zip(decrypted[:exactly], expected, strict=True)]
    if exactly < len(inputs):
        plan, a = program.integer_program(profile), program.settings.amplification
        floats = evaluate_plain(plan, inputs[exactly:].astype(np.int64), a)
        unit = plan.output_order.denominator(a)
        for row, scores, bounds in zip(
            decrypted[exactly:], floats.scores.tolist(), floats.bounds.tolist(), strict=True
        ):
            wrong.append(any(outside(v, unit, s, b) for v, s, b in zip(row, scores, bounds, strict=True)))
    return sum(wrong)


def outside(integer: int, unit: int, score: float, bound: float) -> bool:
    """Is integer / unit further from ``score`` than ``bound``? Exactly; a bound that is not finite proves nothing."""
    if not (math.isfinite(score) and math.isfinite(bound)):
        return True
    return abs(integer - Fraction(score) * unit) > Fraction(bound) * unit


def in_integers(program: Program, profile: str, inputs: np.ndarray) -> Iterator[list[int]]:
    """Exact scores on Python integers, on all cores."""
    workers = os.cpu_count() or 1
    size = max(1, len(inputs) // (4 * workers))
    parts = [inputs[i : i + size] for i in range(0, len(inputs), size)]
    with ProcessPoolExecutor(workers, get_context("spawn"), _take, (program.to_bytes(), profile)) as pool:
        for number, rows in enumerate(pool.map(_evaluate, parts), start=1):
            progress(f"compared {min(number * size, len(inputs))} of {len(inputs)} with Python integers")
            yield from rows


_taken: tuple[Program, str]


def _take(data: bytes, profile: str) -> None:
    global _taken
    _taken = Program.from_bytes(data), profile


def _evaluate(inputs: np.ndarray) -> list[list[int]]:
    program, profile = _taken
    return program.evaluate_integers(inputs, profile)


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start


def progress(line: str) -> None:
    """A line on a terminal's standard error that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [
        "| model | images | float | program | limbs | order (t, bits) | encrypted images | encrypted | mismatches |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        t, k = row["order"]
        lines.append(
            f"| {row['name']} | {row['images']:,} | {row['float_accuracy']:.2%} | {row['quantised_accuracy']:.2%} | "
            f"{row['limbs']} | ({t}, {k}) | {row['encrypted_images']:,} | {row['encrypted_accuracy']:.2%} | "
            f"{row['mismatches']} |"
        )
    return lines


def complaints(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the report must not say."""
    for row in rows:
        name = row["name"]
        if row["mismatches"]:
            yield f"{name}: {row['mismatches']} of {row['encrypted_images']} encrypted images mismatch"
        if row["quantised_accuracy"] < FLOORS.get(name, 0):
            yield f"{name}: {row['quantised_accuracy']:.2%} of the test set are right, {FLOORS[name]:.2%} are wanted"


def merged(report: dict[str, Any]) -> dict[str, Any]:
    """``report`` with the committed rows of shipped models that were not measured now; seconds are of all rows."""
    if not COMMITTED.exists() or report["one_run"]:
        return report
    old = json.loads(COMMITTED.read_text("utf-8"))
    names = [item.name for item in shipped()]
    rows = {row["name"]: row for row in (*old["models"], *report["models"])}
    kept = [rows[name] for name in names if name in rows]
    seconds = round(sum(sum(row["seconds"].values()) for row in kept), 1)
    return report | {"models": kept, "missing": [], "seconds": seconds}


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="models, for example lenet-mnist; all by default")
    parser.add_argument("--full", action="store_true", help="encrypt all test images")
    parser.add_argument("--profile", default="hardened", choices=mcfhe.spec.PROFILES)
    parser.add_argument("--lanes", default=4, type=int)
    parser.add_argument("--update", action="store_true", help="also write the committed results")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    rows, missing = [], []
    for item in shipped():
        if options.names and item.name not in options.names:
            continue
        try:
            images = test_set(item.card)
        except ParameterError as error:
            missing.append({"name": item.name, "reason": str(error)})
            continue
        rows.append(measure(item, images, options.full, options.profile, options.lanes))
        progress("")
    report = {
        "device": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "one_run": not options.names and not missing,
        "models": rows,
        "missing": missing,
    }
    write(REPORT, report)
    if options.update:
        write(COMMITTED, merged(report))
    print("\n".join(table(rows)))
    found = list(complaints(rows))
    if not os.environ.get("MCFHE_ALLOW_MISSING_DATA"):
        found += [f"{entry['name']}: not measured, {entry['reason']}" for entry in missing]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
