"""The server's command: ``evaluate``. It is given a program and a request and nothing secret."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mcfhe.cli.common import (
    device_option,
    json_option,
    megabytes,
    out_option,
    path_argument,
    print_json,
    progress_bar,
    quiet_option,
    stdout,
)


@click.command()
@path_argument("program")
@path_argument("request")
@out_option("response")
@device_option
@quiet_option
@json_option
def evaluate(program: Path, request: Path, out: Path, device: str, quiet: bool, as_json: bool) -> None:
    """Run the network on every encrypted sub-image (S5 to S7). Files with secret fields are refused.

    PROGRAM is a file of `mcfhe compile`, REQUEST a file of `mcfhe encrypt`.
    """
    from mcfhe.program import load_program
    from mcfhe.server import Server
    from mcfhe.wire import Request

    server = Server(load_program(program), device)
    message = Request.load(request)
    start = time.perf_counter()
    with progress_bar("evaluate", quiet or as_json) as update:
        response = server.evaluate(message, update)
    seconds = time.perf_counter() - start
    response.save(out)
    size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "images": message.batch, "seconds": seconds, "bytes": size})
    else:
        stdout.print(f"{out}: {message.batch} images in {seconds:.3f} s, {megabytes(size)}", markup=False)
