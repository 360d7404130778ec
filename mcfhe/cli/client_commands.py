"""The client's commands: ``keygen``, ``encrypt``, ``decrypt``. They hold the secret key; none needs the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcfhe.cli.common import (
    json_option,
    megabytes,
    out_option,
    passphrase,
    passphrase_option,
    path_argument,
    print_json,
    progress_bar,
    quiet_option,
    refuse_overwrite,
    security_line,
    stdout,
)
from mcfhe.cli.images import ImageSource, image_options
from mcfhe.errors import FormatError, ParameterError
from mcfhe.spec import DEFAULT_PROFILE, ClientSpec
from mcfhe.staged.spec import StagedSpec
from mcfhe.wording import LATTICE_LINE, SECURITY_LINE

if TYPE_CHECKING:
    from mcfhe.lattice.client import LatticeClient
    from mcfhe.staged.client import StagedClient

MAX_SPEC_BYTES = 1 << 26
MAX_PUBLIC_KEY_BYTES = 1 << 30

key_option = click.option("--key", "-k", required=True, type=click.Path(path_type=Path), help="The client's key file.")


@click.command()
@path_argument("spec")
@out_option("key, mode 0600,")
@click.option("--lanes", default=4, show_default=True, help="M: positions a residue may hide in.")
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="patent or hardened.")
@click.option("--noise", type=int, help="Exclusive upper end of the noise; the default depends on the profile.")
@click.option("--redundancy", default=0, show_default=True, help="Spare limbs for error correction.")
@click.option(
    "--user-key-file",
    type=click.Path(path_type=Path),
    help="Derive moduli and lane positions from this file's bytes.",
)
@passphrase_option
@click.option("--force", is_flag=True, help="Overwrite an existing key.")
@json_option
def keygen(
    spec: Path,
    out: Path,
    lanes: int,
    profile: str,
    noise: int | None,
    redundancy: int,
    user_key_file: Path | None,
    passphrase_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Draw a key for a program (S2). The file holds the secret key: keep it on the client.

    SPEC is the client spec (JSON) that `mcfhe compile --spec` wrote, or a program file.
    """
    from mcfhe.client import Client
    from mcfhe.container import read_secret_file
    from mcfhe.wiping import wipe

    refuse_overwrite(out, force)
    client_spec = read_spec(spec)
    user_key = None if user_key_file is None else read_secret_file(user_key_file, 1 << 20)
    try:
        client = Client.generate(client_spec, lanes, profile, noise=noise, redundancy=redundancy, user_key=user_key)
    finally:
        wipe(user_key or bytearray())
    with client:
        client.save(out, passphrase(passphrase_file))
    if isinstance(client.spec, StagedSpec):
        _print_staged_keys(client, out, as_json)
        return
    if client.spec.scheme == "lattice":
        _print_lattice_key(client, out, as_json)
        return
    key = client.secret_key
    if as_json:
        print_json(
            {
                "out": str(out),
                "key_id": key.key_id,
                "limbs": len(key.moduli),
                "lanes": key.lanes,
                "bits": key.moduli.bits,
                "profile": key.profile,
            }
        )
    else:
        stdout.print(
            f"{out}: {len(key.moduli)} limbs ({key.moduli.bits} bits), {key.lanes} lanes, {key.profile} profile, "
            f"key {key.key_id[:12]}",
            markup=False,
        )


def _print_lattice_key(client: LatticeClient, out: Path, as_json: bool) -> None:
    key = client.evaluation_key
    if as_json:
        print_json({"out": str(out), "key_id": key.key_id, "limbs": len(key.ring.moduli), "degree": key.ring.degree})
    else:
        stdout.print(
            f"{out}: lattice key, n = {key.ring.degree}, {len(key.ring.moduli)} limbs, key {key.key_id[:12]}",
            markup=False,
        )


def _print_staged_keys(client: StagedClient, out: Path, as_json: bool) -> None:
    ids = [stage.evaluation_key.key_id for stage in client.clients]
    if as_json:
        print_json({"out": str(out), "key_ids": ids})
    else:
        stdout.print(f"{out}: {len(set(ids))} keys for {len(ids)} stages", markup=False)


@click.command("public-key")
@key_option
@out_option("public key")
@passphrase_option
@json_option
def public_key(key: Path, out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Draw a public key of a lattice key: who has it can encrypt, and only encrypt, for the key's owner.

    Compare the fingerprint with whoever encrypts under it: another file in its place would be another's key.
    """
    from mcfhe.client import Client

    with Client.load(key, passphrase(passphrase_file)) as client:
        if client.spec.scheme != "lattice":
            raise ParameterError(f"{key}: of the modular scheme, which has no public keys; compile with scheme lattice")
        public = client.public_key()
    public.save(out)
    if as_json:
        print_json({"out": str(out), "key_id": public.key_id, "fingerprint": public.fingerprint})
    else:
        stdout.print(f"{out}: {megabytes(out.stat().st_size)}, of key {public.key_id[:12]}", markup=False)
        stdout.print(f"fingerprint {public.fingerprint}", markup=False)


@click.command()
@image_options
@click.option("--key", "-k", type=click.Path(path_type=Path), help="The client's key file.")
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="Instead of --key: what the owner's `mcfhe public-key` wrote."
)
@out_option("request")
@passphrase_option
@quiet_option
@json_option
def encrypt(
    source: ImageSource,
    key: Path | None,
    public_key: Path | None,
    out: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Encrypt images into a request file (S3, S4). It holds no secret and may be sent to the server.

    IMAGES are PNG or JPEG files of the program's size; or name a data set with --dataset.
    """
    with _encrypting(key, public_key, passphrase_file) as client:
        lattice = client.spec.scheme == "lattice"
        security_line(quiet, LATTICE_LINE if lattice else SECURITY_LINE)
        images = source.load(client.spec.input_shape)
        with progress_bar("encrypt", quiet or as_json) as update:
            shows = lattice and not isinstance(client.spec, StagedSpec)
            request = client.encrypt(images.pixels, progress=update) if shows else client.encrypt(images.pixels)
        fingerprint = None if public_key is None else client.fingerprint
    request.save(out)
    size = out.stat().st_size
    if as_json:
        body = {"out": str(out), "images": images.names, "request_id": request.request_id, "bytes": size}
        body |= {} if images.labels is None else {"labels": [client.spec.labels[i] for i in images.labels]}
        print_json(body | ({} if fingerprint is None else {"fingerprint": fingerprint}))
    else:
        stdout.print(f"{out}: {len(images.names)} images, {megabytes(size)}", markup=False)
        if fingerprint is not None:
            stdout.print(f"for the owner of public key {fingerprint}: is that theirs?", markup=False)


@click.command()
@path_argument("response")
@key_option
@click.option("--top", default=1, show_default=True, type=click.IntRange(min=1), help="Scores to show per image.")
@passphrase_option
@json_option
def decrypt(response: Path, key: Path, top: int, passphrase_file: Path | None, as_json: bool) -> None:
    """Decrypt the scores of a response (S8) and name the best label of each image."""
    from mcfhe.client import Client
    from mcfhe.wire import Response

    with Client.load(key, passphrase(passphrase_file)) as client:
        scores = client.decrypt(Response.load(response))
    best = scores.argsort(dim=1, descending=True)
    labels = client.spec.labels
    if as_json:
        print_json(
            {
                "labels": [labels[int(row[0])] for row in best],
                "scores": [[float(v) for v in row] for row in scores],
                "names": list(labels),
            }
        )
        return
    for index, row in enumerate(best):
        shown = ", ".join(f"{labels[int(i)]} {float(scores[index, i]):.4f}" for i in row[:top])
        stdout.print(f"{index:6}  {shown}", markup=False)


@click.command()
@path_argument("response")
@key_option
@out_option("request")
@passphrase_option
@json_option
def refresh(response: Path, key: Path, out: Path, passphrase_file: Path | None, as_json: bool) -> None:
    """Between two stages of a cut program: decrypt a response, round to levels, encrypt for the next stage.

    The values stay here; the request that is written is a fresh encryption.
    """
    from mcfhe.client import Client
    from mcfhe.wire import Response

    with Client.load(key, passphrase(passphrase_file)) as client:
        if not isinstance(client.spec, StagedSpec):
            raise ParameterError(f"{key}: is of a program without stages, whose responses are decrypted")
        request = client.refresh(Response.load(response))
    request.save(out)
    if as_json:
        print_json({"out": str(out), "request_id": request.request_id, "bytes": out.stat().st_size})
    else:
        stdout.print(f"{out}: {request.batch} images, {megabytes(out.stat().st_size)}", markup=False)


@contextmanager
def _encrypting(key: Path | None, public_key: Path | None, passphrase_file: Path | None) -> Iterator[Any]:
    """What encrypts: the owner's client, or a public key."""
    if (key is None) == (public_key is None):
        raise click.UsageError("give --key, or --public-key to encrypt for somebody else")
    if public_key is None:
        from mcfhe.client import Client

        with Client.load(key, passphrase(passphrase_file)) as client:  # type: ignore[arg-type]
            yield client
        return
    if passphrase_file is not None:
        raise click.UsageError("--passphrase-file: opens a secret key; a public key has no passphrase")
    from mcfhe.lattice.public_key import PublicKey

    yield PublicKey.load(public_key, MAX_PUBLIC_KEY_BYTES)


def read_spec(path: Path) -> Any:
    """A client spec of any kind from its JSON, or out of a program file for a client that has the whole program."""
    from mcfhe.container import read_file

    data = read_file(path, MAX_SPEC_BYTES)
    if data.lstrip()[:1] != b"{":
        from mcfhe.program import load_program

        return load_program(path).client_spec()
    try:
        return ClientSpec.from_json(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is neither a client spec (JSON) nor a program file") from None
    except ParameterError as error:
        raise FormatError(f"{path}: {error}") from None
