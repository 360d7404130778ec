"""``mcfhe demo --scheme lattice``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from mcfhe.cli.common import megabytes, print_json, progress_bar, security_line, stdout
from mcfhe.wording import LATTICE_LINE

if TYPE_CHECKING:
    from mcfhe.demo.lattice import LatticeDemoResult

STEPS = (
    ("compile", "network trained on Fashion-MNIST; ring, limbs, scales and levels chosen"),
    ("keygen", "secret and relinearisation key, by SEAL"),
    ("encrypt", "one ciphertext a pixel, one image a slot, by SEAL"),
    ("bind", "the key's part for every level"),
    ("evaluate", "the whole network on all slots"),
    ("decrypt", "one ciphertext a label, by SEAL"),
)


def lattice_demo(images: int, device: str, report: Path | None, quiet: bool, as_json: bool) -> None:
    """Run it, print it, write it."""
    from mcfhe.container import write_file
    from mcfhe.demo.lattice import run

    security_line(quiet, LATTICE_LINE)
    result = run(images, device, partial(progress_bar, quiet=quiet or as_json))
    body = result.to_json()
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_file(report, (json.dumps(body, indent=1) + "\n").encode())
    if as_json:
        print_json(body)
    else:
        _print(result)


def _print(result: LatticeDemoResult) -> None:
    table = Table(title=f"mcfhe demo: {result.images} Fashion-MNIST test images, lattice scheme (RNS-CKKS)")
    table.add_column("step")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    for key, text in STEPS:
        table.add_row(key, text, f"{result.seconds[key]:.3f}")
    stdout.print(table)
    facts = (
        ("ring", f"n = {result.degree}, {result.limbs} limbs, {result.modulus_bits} bits of Q P, {result.slots} slots"),
        ("bytes up / down", f"{megabytes(result.bytes_up)} / {megabytes(result.bytes_down)}"),
        ("evaluation key", f"{megabytes(result.key_bytes)}, once"),
        ("float accuracy", f"{result.float_accuracy:.2%}"),
        ("quantised accuracy", f"{result.quantised_accuracy:.2%}"),
        ("encrypted accuracy", f"{result.encrypted_accuracy:.2%}"),
        ("labels as float model", f"{result.agreement:.2%}"),
        ("labels as quantised", f"{1 - result.mismatches / result.images:.2%}"),
        (
            "noise on a score",
            f"{result.score_noise:.2e} measured, {result.predicted_noise:.2e} predicted; scores are about "
            f"{result.score_rms:.1f}",
        ),
        ("evaluate", f"{result.evaluate_ms_per_slot:.3f} ms a slot; {result.images} of {result.slots} were filled"),
        ("peak memory", megabytes(result.peak_bytes)),
    )
    for name, value in facts:
        stdout.print(f"{name:22} {value}", markup=False)
