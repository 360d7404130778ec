"""``mcfhe audit``: attack requests with what the server that gets them has. No key file is read."""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np

from mcfhe.cli.common import json_option, print_json, progress_bar, quiet_option, security_line, stdout
from mcfhe.errors import ParameterError

_PIXEL = re.compile(r"(?:(?:(\d+),)?(\d+),)?(\d+),(\d+)=(\d+)", re.ASCII)
_BORDER = re.compile(r"border=(\d+)", re.ASCII)


@click.command()
@click.argument("requests", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--spec",
    required=True,
    type=click.Path(path_type=Path),
    help="Client spec (JSON) or program file that the requests are for.",
)
@click.option(
    "--known",
    multiple=True,
    metavar="WHERE=VALUE",
    help="A known pixel: Y,X=V, C,Y,X=V, IMAGE,C,Y,X=V or border=V; V is 0..255. May be repeated; wrong guesses are "
    "tolerated.",
)
@click.option("--images", type=click.IntRange(min=1), help="Attack only the first so many images.")
@click.option("--attack", "attacks", multiple=True, help="Run only this attack; may be repeated. Default: all.")
@click.option("--picture", type=click.Path(path_type=Path), help="Write the recovered images to this PNG.")
@quiet_option
@json_option
@click.pass_context
def audit(
    context: click.Context,
    requests: tuple[Path, ...],
    spec: Path,
    known: tuple[str, ...],
    images: int | None,
    attacks: tuple[str, ...],
    picture: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Attack requests of one key with what a curious server sees, and say what came out.

    No secret is read. Exit code 1 when anything was recovered, 0 when nothing was; 1 with a message on bad input too.

    \b
    JSON keys: recovered (bool), profile, limbs, lanes, images, modulus_bits, picture, attacks: a list of
    {attack, profile, outcome (recovered, failed, inapplicable or skipped), recovered (words), images (numbers of
    those recovered), positions (a lane or null for every limb), seconds, detail}.
    """
    from mcfhe.cli.client_commands import read_spec
    from mcfhe.modular import audit as attack
    from mcfhe.staged.spec import StagedSpec
    from mcfhe.wire import Request

    security_line(quiet)
    client_spec = read_spec(spec)
    loaded = [Request.load(path) for path in requests]
    if isinstance(client_spec, StagedSpec):  # each stage is a program of its own, and so are its requests
        ids = {stage.program_id: stage for stage in client_spec.stages}
        client_spec = ids.get(loaded[0].program_id, client_spec.stages[0])
    shape = (sum(r.batch for r in loaded), *client_spec.input_shape)
    pixels = known_pixels(known, shape) if known else None
    with progress_bar("audit", quiet or as_json) as update:
        report = attack.run(
            client_spec,
            loaded,
            known=pixels,
            images=images,
            attacks=attacks or attack.ATTACKS,
            progress=update,
        )
    if picture is not None:
        report.draw(picture)
    if as_json:
        print_json(report.to_json() | {"picture": None if picture is None else str(picture)})
    else:
        for line in report.lines():
            stdout.print(line, markup=False)
        if picture is not None:
            stdout.print(f"picture: {picture}", markup=False)
    context.exit(int(report.recovered))


def known_pixels(items: tuple[str, ...], shape: tuple[int, int, int, int]) -> np.ndarray:
    """``--known`` as an array ``[batch, C, H, W]``, -1 where nothing is said. ParameterError names the option."""
    known = np.full(shape, -1)
    value: int | None
    for item in items:
        if border := _BORDER.fullmatch(item):
            value = int(border.group(1))
            edge = np.ones(shape[2:], bool)
            edge[1:-1, 1:-1] = False
            known[:, :, edge] = value
        elif pixel := _PIXEL.fullmatch(item):
            image, channel, y, x, value = (None if g is None else int(g) for g in pixel.groups())
            at = (image, channel, y, x)
            for name, index, size in zip(("image", "channel", "row", "column"), at, shape, strict=True):
                if index is not None and index >= size:
                    raise ParameterError(f"--known {item}: {name} {index} is outside 0..{size - 1}")
            known[tuple(slice(None) if index is None else index for index in at)] = value
        else:
            raise ParameterError(f"--known {item!r}: Y,X=V, C,Y,X=V, IMAGE,C,Y,X=V or border=V expected")
        if value is None or value > 255:
            raise ParameterError(f"--known {item}: the pixel value must be 0..255")
    return known
