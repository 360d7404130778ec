"""``mcfhe demo``: the whole scheme on the shipped sample of real images, by the letter and hardened."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from mcfhe.cli.common import (
    device_option,
    json_option,
    megabytes,
    only_of_scheme,
    print_json,
    progress_bar,
    quiet_option,
    scheme_option,
    security_line,
    stdout,
)
from mcfhe.errors import McfheError
from mcfhe.spec import PROFILES

if TYPE_CHECKING:
    from mcfhe.demo.modular import Demo, DemoResult

STEPS = (
    ("compile", "S1, S5", "network trained on Fashion-MNIST, alignment planned"),
    ("keygen", "S2", "moduli and lane positions"),
    ("encrypt", "S3", "every pixel into every lane of every limb"),
    ("upload", "S4", "request to bytes and back, every field checked"),
    ("evaluate", "S6, S7", "the whole network on all sub-images"),
    ("download", "", "response to bytes and back"),
    ("decrypt", "S8", "true lanes, CRT, exact integers"),
    ("check", "", "the same network on Python integers"),
    ("audit", "", "what a curious server reads off the request"),
)


@click.command()
@click.option("--images", default=1000, show_default=True, type=click.IntRange(1, 1000), help="Real test images.")
@click.option("--lanes", default=4, show_default=True, help="M: positions a residue may hide in.")
@scheme_option("lattice: RNS-CKKS with SEAL's keys; no lanes, profile or picture.")
@click.option(
    "--profile",
    default="patent",
    show_default=True,
    type=click.Choice(PROFILES),
    help="Shown step by step; the other one is run beside it.",
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

    Shows the steps S1 to S8 as published, and beside them the hardened profile, which is what a key is drawn for where
    none is named: the same images and program, and what a curious server recovers of each.

    \b
    JSON keys: images, mismatches, encrypted_accuracy, quantised_accuracy, float_accuracy, agreement (accuracies 0..1),
    limbs, lanes, order, modulus_bits, bytes_up, bytes_down, seconds {step}, latency_ms {step, total}, published_ms,
    profile, noise, predicted {step: seconds}, audit {images, attacks [{attack, outcome, recovered}]}, picture; and
    under the name of the other profile an object with the same keys but picture and published_ms.
    """
    only_of_scheme("modular", scheme, "lanes", "profile", "picture")
    if scheme == "lattice":
        from mcfhe.cli.lattice_demo import lattice_demo

        lattice_demo(images, device, report, quiet, as_json)
        return
    from mcfhe.container import write_file
    from mcfhe.demo.modular import Demo

    security_line(quiet)
    prepared = Demo.prepare(images)
    progress = partial(progress_bar, quiet=quiet or as_json)
    result = _pass(prepared, profile, lanes, device, progress, None if no_picture else picture)
    (beside,) = (name for name in PROFILES if name != profile)
    other = _pass(prepared, beside, lanes, device, progress, None)
    own = other.to_json()
    del own["published_ms"]
    body = result.to_json() | {beside: own, "picture": None if no_picture else str(picture)}
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_file(report, (json.dumps(body, indent=1) + "\n").encode())
    if as_json:
        print_json(body)
    else:
        _print(result, other)
        if not no_picture:
            stdout.print(f"picture: {picture}", markup=False)
    for found in (result, other):
        if not found.exact:
            raise McfheError(
                f"{found.profile}: {found.mismatches} decrypted integers differ from the exact evaluation, encrypted "
                f"accuracy {found.encrypted_accuracy:.4f} against {found.quantised_accuracy:.4f} quantised: please "
                "report this"
            )


def _pass(
    prepared: Demo, profile: str, lanes: int, device: str, progress: Callable[[str], Any], picture: Path | None
) -> DemoResult:
    """One profile from key to labels. Requests are large: none outlives this."""
    result, request, client = prepared.run(profile, lanes, device, progress)
    client.close()
    if picture is not None:
        from mcfhe.demo.picture import draw

        truth = prepared.images.labels.tolist()
        draw(
            picture,
            prepared.images.images.numpy(),
            request,
            prepared.images.class_names,
            truth,
            result.labels,
            _some_of_each(truth, 6),
            (0, min(1, result.limbs - 1)),
        )
    return result


def _some_of_each(labels: list[int], count: int) -> list[int]:
    """Indices of images with different labels, as far as there are."""
    chosen = list({label: i for i, label in reversed(list(enumerate(labels)))}.values())
    rest = [i for i in range(len(labels)) if i not in chosen]
    return sorted((chosen + rest)[:count])


def _print(result: DemoResult, other: DemoResult) -> None:
    from mcfhe.demo.modular import PUBLISHED_MS

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
    stdout.print(_side_by_side((result, other)))
    for found in (result, other):
        stdout.print(_worth(found), markup=False)


def _side_by_side(results: tuple[DemoResult, ...]) -> Table:
    from mcfhe.demo.modular import PUBLISHED_MS

    table = Table(title="both profiles: the same images, the same program")
    table.add_column("")
    for result in results:
        table.add_column(result.profile, justify="right")
    rows: tuple[tuple[str, Callable[[DemoResult], str]], ...] = (
        ("limbs x lanes", lambda r: f"{r.limbs} x {r.lanes}"),
        ("output order", lambda r: r.order),
        ("noise: e below", lambda r: str(max(1, r.noise))),
        ("bytes up", lambda r: megabytes(r.bytes_up)),
        ("bytes down", lambda r: megabytes(r.bytes_down)),
        *((f"{step}, s", partial(_seconds, step)) for step in PUBLISHED_MS),
        ("one image, ms", lambda r: f"{r.latency_ms['total']:.2f}"),
        ("encrypted accuracy", lambda r: f"{r.encrypted_accuracy:.2%}"),
        ("integer mismatches", lambda r: str(r.mismatches)),
    )
    for title, value in rows:
        table.add_row(title, *(value(result) for result in results))
    return table


def _seconds(step: str, result: DemoResult) -> str:
    return f"{result.seconds[step]:.3f}"


def _worth(result: DemoResult) -> str:
    """One line: which attacks the profile stopped, and which it did not, on the request of this run."""
    stopped = [*result.by_outcome("failed"), *result.by_outcome("inapplicable")]
    text = (
        f"{result.profile}, attacked: {', '.join(result.by_outcome('recovered')) or 'none'} succeed on "
        f"{result.audit['images']} images; stopped: {', '.join(stopped) or 'none'}"
    )
    skipped = result.by_outcome("skipped")
    return text + (f"; not run: {', '.join(skipped)} (pip install 'mcfhe[audit]')" if skipped else "")
