"""The two small networks through this project and through what a user would take instead, in one run.

``python -m benchmarks.peers`` (needs the extra ``mcfhe[peers]`` and MNIST). The same trained weights and the same test
images go through every contender, each in a process of its own, so that ``peak_memory`` is its own. Writes
build/reports/peers.json: {device, cores, seconds, rows: [{network, contender, security, batch, images, latency,
encrypt, decrypt, amortised, accuracy, agreement, bytes_up, bytes_down, key_bytes, peak_memory}]}; seconds and bytes,
``amortised`` is evaluation for one image of a full batch. ``--update`` also writes benchmarks/results/peers.json.

A further contender is one line of ``CONTENDERS``: a function from ``SquareNet`` to ``Measured``, its images and words
for its security.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import peer_lattice, peer_mcfhe, peer_nets, peer_tenseal
from benchmarks.conftest import processor
from benchmarks.peer_nets import Measured, SquareNet

REPORT = Path("build/reports/peers.json")
COMMITTED = Path(__file__).parent / "results" / "peers.json"


@dataclasses.dataclass(frozen=True)
class Contender:
    """``run`` gets the network with the first ``images`` test images; ``needs`` is a module that must be there."""

    name: str
    run: Callable[[SquareNet], Measured]
    images: int
    security: str
    needs: str | None = None


CONTENDERS = (
    Contender("torch float32, not encrypted", peer_mcfhe.plain, 200, "none: the server sees the images"),
    Contender("mcfhe, modular, one image", peer_mcfhe.one_image, 50, peer_mcfhe.SECURITY),
    Contender("mcfhe, modular, batch", peer_mcfhe.batched, 4096, peer_mcfhe.SECURITY),
    Contender("mcfhe, lattice, batch", peer_lattice.batched, 4096, peer_lattice.SECURITY, "tenseal"),
    Contender("TenSEAL, packed, one image", peer_tenseal.packed, 5, peer_tenseal.SECURITY, "tenseal"),
    Contender("TenSEAL, batch", peer_tenseal.batched, 4096, peer_tenseal.SECURITY, "tenseal"),
)


def measure(network: str, contender: Contender, images: int) -> dict[str, Any]:
    """One row, measured in a process of its own."""
    measured, memory = _measured_apart(network, contender.name, images)
    return {
        "network": network,
        "contender": contender.name,
        "security": contender.security,
        **dataclasses.asdict(measured),
        "amortised": measured.latency / measured.batch,
        "peak_memory": memory,
    }


def _measured_apart(network: str, name: str, images: int) -> tuple[Measured, int]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_run, network, name, images).result()


def _run(network: str, name: str, images: int) -> tuple[Measured, int]:
    contender = next(c for c in CONTENDERS if c.name == name)
    measured = contender.run(peer_nets.load(network, images))
    return measured, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = [
        "| network | through | one request | an image of a batch | images | right | as float64 | up, an image "
        "| down, an image | keys | memory | security |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        batch = row["batch"]
        lines.append(
            f"| {row['network']} | {row['contender']} | {_seconds(row['latency'])} | "
            f"{_seconds(row['amortised']) if batch > 1 else ''} | {row['images']:,} | {row['accuracy']:.1%} | "
            f"{row['agreement']:.1%} | {_bytes(row['bytes_up'] / batch)} | {_bytes(row['bytes_down'] / batch)} | "
            f"{_bytes(row['key_bytes'])} | {_bytes(row['peak_memory'])} | {row['security']} |"
        )
    return lines


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(peer_nets.NAMES), choices=peer_nets.NAMES)
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--images", type=int, help="at most so many, for a quick look")
    parser.add_argument("--update", action="store_true", help="also write the committed results")
    options = parser.parse_args(arguments)
    chosen = [c for c in CONTENDERS if options.only in c.name]
    absent = [c.needs for c in chosen if c.needs is not None and find_spec(c.needs) is None]
    if absent or not chosen:
        missing = f'{absent[0]} is not installed: pip install "mcfhe[peers]"' if absent else ""
        print(missing or f"no contender's name contains {options.only!r}", file=sys.stderr)
        return 1
    start = time.perf_counter()
    rows = []
    for network in options.networks:
        for contender in chosen:
            rows.append(measure(network, contender, min(contender.images, options.images or contender.images)))
            print(table(rows[-1:])[-1], file=sys.stderr, flush=True)
    report = {
        "device": processor(),
        "cores": os.cpu_count(),
        "seconds": round(time.perf_counter() - start, 1),
        "rows": rows,
    }
    for path in (REPORT, *([COMMITTED] if options.update else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
