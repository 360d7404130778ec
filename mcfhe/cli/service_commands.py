"""The service's commands: ``serve`` (programs, nothing secret) and ``classify`` (the client of a remote server)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcfhe.arguments import number
from mcfhe.cli.client_commands import key_option
from mcfhe.cli.common import (
    json_option,
    passphrase,
    passphrase_option,
    print_json,
    progress_bar,
    quiet_option,
    security_line,
    stdout,
)
from mcfhe.cli.images import ImageSource, image_options
from mcfhe.errors import McfheError, ParameterError
from mcfhe.staged.spec import StagedSpec
from mcfhe.wording import LATTICE_LINE, SECURITY_LINE

if TYPE_CHECKING:
    from mcfhe.remote import RemoteServer
    from mcfhe.server import Evaluator

TOKEN_VARIABLE = "MCFHE_TOKEN"
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("programs", nargs=-1, required=True, type=_FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8477, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda (every GPU) or a list: cuda:0,cuda:1.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="Where devices are: in this process, or actors on a Ray cluster.",
)
@click.option("--ray-address", help="Of a running Ray cluster; without it one is started on this machine.")
@click.option("--workers", type=click.IntRange(1), help="Ray actors; by default one for every device.")
@click.option(
    "--shard-deadline",
    default=10.0,
    show_default=True,
    help="Seconds after which a device's part of a request is dropped or tried on another.",
)
@click.option("--token-file", type=_FILE, help="Bearer tokens that are let in, one a line.")
@click.option("--no-token", is_flag=True, help="Serve whoever can reach the address.")
@click.option("--tls-cert", type=_FILE, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option(
    "--max-body-mb",
    type=click.IntRange(1, 4096),
    help="Largest request.  [default: 64, or what a request to a lattice program takes]",
)
@click.option(
    "--body-timeout",
    type=float,
    help="Seconds that a request's body may take to come.  [default: 30, or 1 for every 4 MB of the largest]",
)
@click.option(
    "--request-timeout",
    default=60.0,
    show_default=True,
    help="Seconds until a sender is told to ask again (503) for a result that is still being made.",
)
@click.option("--max-inflight", default=64, show_default=True, type=click.IntRange(1), help="More wait outside (429).")
@click.option("--session", default=3600.0, show_default=True, help="Seconds a registered key is kept unused.")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@json_option
def serve(
    programs: tuple[Path, ...],
    host: str,
    port: int,
    device: str,
    engine: str,
    ray_address: str | None,
    workers: int | None,
    shard_deadline: float,
    token_file: Path | None,
    no_token: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_body_mb: int | None,
    body_timeout: float | None,
    request_timeout: float,
    max_inflight: int,
    session: float,
    log_level: str,
    as_json: bool,
) -> None:
    """Answer encrypted requests over HTTP until interrupted; then finish those that were taken in.

    PROGRAMS are files of `mcfhe compile`; of one that is cut, every stage is served. /openapi.json describes the
    routes, /metrics counts. Logs are JSON lines on standard error.
    """
    try:
        from mcfhe.service.app import Service
        from mcfhe.service.memory import settle_allocator
        from mcfhe.service.run import make_server
        from mcfhe.service.sizing import settings_for
        from mcfhe.service.tokens import Tokens
    except ModuleNotFoundError as error:
        raise McfheError(f"serve needs {error.name}: pip install 'mcfhe[serve]'") from None
    from mcfhe.program import load_program
    from mcfhe.sharding.sharded import local_evaluator

    if (tls_cert is None) != (tls_key is None):
        raise ParameterError("--tls-cert and --tls-key go together")
    if token_file is not None and no_token:
        raise ParameterError("--token-file and --no-token exclude each other")
    if token_file is None and not no_token and not _is_loopback(host):
        raise ParameterError(f"--host {host}: others can reach it; pass --token-file, or --no-token to serve anyone")
    if engine == "local" and (ray_address or workers):
        raise ParameterError("--ray-address and --workers belong to --engine ray")
    number("--shard-deadline", shard_deadline, 0, above=True)
    tokens = None if token_file is None else Tokens.from_file(token_file)
    settle_allocator()
    loaded = [stage for path in programs for stage in _stages(load_program(path))]
    settings = settings_for(
        loaded,
        1 if tokens is None else len(tokens),
        body_mb=max_body_mb,
        body_timeout_s=body_timeout,
        request_timeout_s=request_timeout,
        max_inflight=max_inflight,
        session_s=session,
    )
    if engine == "ray":
        from mcfhe.sharding.ray_engine import ray_evaluators

        evaluators: Sequence[Evaluator] = ray_evaluators(
            loaded, device, workers=workers, address=ray_address, deadline_s=shard_deadline
        )
    else:
        evaluators = [local_evaluator(program, device, shard_deadline) for program in loaded]
    service = Service(evaluators, settings, tokens)

    def started(url: str) -> None:
        if as_json:
            print_json({"url": url, "pid": os.getpid(), "programs": list(service.servers)})
        else:
            stdout.print(f"serving {len(service.servers)} program(s) on {url}", markup=False)

    server, sockets, _ = make_server(
        service, host, port, tls_certificate=tls_cert, tls_key=tls_key, log_level=log_level, started=started
    )
    server.run(sockets)


@click.command()
@image_options
@click.option("--server", "url", required=True, help="http://HOST:PORT or https://HOST:PORT.")
@key_option
@click.option(
    "--token-file", type=_FILE, help=f"File whose first line is the bearer token; otherwise ${TOKEN_VARIABLE}."
)
@click.option("--ca-file", type=_FILE, help="Certificates to trust, PEM.")
@click.option("--timeout", default=90.0, show_default=True, help="Longest silence of the server, seconds.")
@click.option("--retries", default=6, show_default=True, type=click.IntRange(0), help="Further attempts a request.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Images in one request.")
@passphrase_option
@quiet_option
@json_option
def classify(
    source: ImageSource,
    url: str,
    key: Path,
    token_file: Path | None,
    ca_file: Path | None,
    timeout: float,
    retries: int,
    batch: int,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Encrypt images, have a server evaluate them, decrypt the scores. The key stays here.

    IMAGES are PNG or JPEG files of the program's size; or name a data set with --dataset.
    """
    from mcfhe.client import Client
    from mcfhe.remote import RemoteServer

    labels: list[str] = []
    scores: list[list[float]] = []
    with (
        Client.load(key, passphrase(passphrase_file)) as client,
        RemoteServer(url, _token(token_file), timeout_s=timeout, retries=retries, ca_file=ca_file) as server,
        progress_bar("classify", quiet or as_json) as update,
    ):
        lattice = client.spec.scheme == "lattice"
        security_line(quiet, LATTICE_LINE if lattice else SECURITY_LINE)
        images = source.load(client.spec.input_shape)
        pixels = images.pixels
        batch = client.spec.slots if lattice else batch  # a ciphertext costs the same however full it is
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]

            def show(share: float, start: int = start, size: int = len(part)) -> None:
                update((start + share * size) / len(pixels))

            for row in _scores(client, part, server, show):
                labels.append(client.spec.labels[int(row.argmax())])
                scores.append([float(v) for v in row])
    if as_json:
        print_json({"images": images.names, "labels": labels, "scores": scores, "names": list(client.spec.labels)})
        return
    for name, label, row_scores in zip(images.names, labels, scores, strict=True):
        stdout.print(f"{name}  {label} {max(row_scores):.4f}", markup=False)


def _stages(program: Any) -> Sequence[Any]:
    """The stages of a program that is cut: each answers requests of its own."""
    stages: Sequence[Any] = getattr(program, "stages", (program,))
    return stages


def _scores(client: Any, images: Any, server: RemoteServer, progress: Callable[[float], None]) -> Any:
    """float64 [batch, labels]; where a program is cut, over all its stages."""
    if isinstance(client.spec, StagedSpec):
        return client.classify(images, server, progress)
    request = client.encrypt(images)
    return client.decrypt(server.evaluate(request, progress), request_id=request.request_id)


def _token(path: Path | None) -> str | None:
    """From a file's first line or the environment."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"--token-file {path}: cannot be read as text ({error})") from None
    if not lines or not lines[0].strip():
        raise ParameterError(f"--token-file {path}: its first line is empty")
    return lines[0].strip()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
