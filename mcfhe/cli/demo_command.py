"""``mcfhe demo``: the whole scheme on the shipped sample of real images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from mcfhe.cli.common import (
    device_option,
    json_option,
    megabytes,
    print_json,
    progress_bar,
    quiet_option,
    security_line,
    stdout,
)
from mcfhe.errors import McfheError

if TYPE_CHECKING:
    from mcfhe.demo import DemoResult

STEPS = (
    ("compile", "S1, S5", "network trained on Fashion-MNIST, alignment planned"),
    ("keygen", "S2", "moduli and lane positions"),
    ("encrypt", "S3", "fresh public key per image, every lane of every limb"),
    ("upload", "S4", "request to bytes and back, every field checked"),
    ("evaluate", "S6, S7", "the whole network on all sub-images"),
    ("download", "", "response to bytes and back"),
    ("decrypt", "S8", "true lanes, CRT, exact integers"),
    ("check", "", "the same network on Python integers"),
)


@click.command()
@click.option("--images", default=1000, show_default=True, type=click.IntRange(1, 1000), help="Real test images.")
@click.option("--lanes", default=4, show_default=True, help="M: positions a residue may hide in.")
@click.option("--profile", default="patent", show_default=True, help="patent or hardened.")
@click.option(
    "--scheme",
    default="modular",
    show_default=True,
    type=click.Choice(["modular", "lattice"]),
    help="lattice: RNS-CKKS with SEAL's keys; no lanes, profile or picture.",
)
@device_option
@click.option(
    "--picture",
    default="mcfhe-demo.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the picture goes (PNG).",
)
@click.option("--no-picture", is_flag=True, help="Draw no picture.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the JSON object to this file.")
@quiet_option
@json_option
def demo(
    images: int,
    lanes: int,
    profile: str,
    scheme: str,
    device: str,
    picture: Path,
    no_picture: bool,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Encrypt real images, classify them on ciphertext, decrypt, and compare with exact integers.

    \b
    JSON keys: images, mismatches, encrypted_accuracy, quantised_accuracy, float_accuracy, agreement (accuracies 0..1),
    limbs, lanes, order, modulus_bits, bytes_up, bytes_down, seconds {step}, latency_ms {step, total}, published_ms,
    profile, predicted {step: seconds}, picture.
    """
    if scheme == "lattice":
        from mcfhe.cli.lattice_demo import lattice_demo

        lattice_demo(images, device, report, quiet, as_json)
        return
    from mcfhe.container import write_file
    from mcfhe.demo import Demo

    security_line(quiet)
    prepared = Demo.prepare(images)
    progress = partial(progress_bar, quiet=quiet or as_json)
    result, request, _ = prepared.run(profile, lanes, device, progress)
    if not no_picture:
        from mcfhe.picture import draw

        truth = prepared.images.labels.tolist()
        shown = _some_of_each(truth, 6)
        limbs = (0, min(1, result.limbs - 1))
        draw(
            picture,
            prepared.images.images.numpy(),
            request,
            prepared.images.class_names,
            truth,
            result.labels,
            shown,
            limbs,
        )
    body = result.to_json() | {"picture": None if no_picture else str(picture)}
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_file(report, (json.dumps(body, indent=1) + "\n").encode())
    if as_json:
        print_json(body)
    else:
        _print(result)
        if not no_picture:
            stdout.print(f"picture: {picture}", markup=False)
    if not result.exact:
        raise McfheError(
            f"{result.mismatches} decrypted integers differ from the exact evaluation, encrypted accuracy "
            f"{result.encrypted_accuracy:.4f} against {result.quantised_accuracy:.4f} quantised: please report this"
        )


def _some_of_each(labels: list[int], count: int) -> list[int]:
    """Indices of images with different labels, as far as there are."""
    chosen = list({label: i for i, label in reversed(list(enumerate(labels)))}.values())
    rest = [i for i in range(len(labels)) if i not in chosen]
    return sorted((chosen + rest)[:count])


def _print(result: DemoResult) -> None:
    from mcfhe.demo import PUBLISHED_MS

    table = Table(title=f"mcfhe demo: {result.images} Fashion-MNIST test images, {result.profile} profile")
    table.add_column("step")
    table.add_column("")
    table.add_column("what")
    table.add_column("predicted", justify="right")
    table.add_column("seconds", justify="right")
    for key, step, text in STEPS:
        predicted = f"{result.predicted[key]:.3f}" if key in result.predicted else ""
        table.add_row(key, step, text, predicted, f"{result.seconds[key]:.3f}")
    stdout.print(table)
    facts = (
        ("limbs x lanes", f"{result.limbs} x {result.lanes} = {result.limbs * result.lanes} sub-images a channel"),
        ("output order", f"(t, l) = {result.order}, {result.modulus_bits} modulus bits required"),
        ("bytes up / down", f"{megabytes(result.bytes_up)} / {megabytes(result.bytes_down)}"),
        ("float accuracy", f"{result.float_accuracy:.2%}"),
        ("quantised accuracy", f"{result.quantised_accuracy:.2%}"),
        ("encrypted accuracy", f"{result.encrypted_accuracy:.2%}"),
        ("labels as float model", f"{result.agreement:.2%}"),
        ("integer mismatches", f"{result.mismatches}"),
        (
            "one image, ms",
            ", ".join(f"{k} {result.latency_ms[k]:.2f}" for k in (*PUBLISHED_MS, "total"))
            + f"  (published on an RTX 3090: {' + '.join(str(v) for v in PUBLISHED_MS.values())})",
        ),
    )
    for name, value in facts:
        stdout.print(f"{name:22} {value}", markup=False)
