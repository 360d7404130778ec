"""What every command shares: output for people or as one JSON object, errors, progress, pass-phrases."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from mcfhe.errors import McfheError, ParameterError
from mcfhe.wording import SECURITY_LINE

PASSPHRASE_VARIABLE = "MCFHE_PASSPHRASE"

stdout = Console(soft_wrap=True, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bars and no security line.")
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"File whose first line protects the key; otherwise ${PASSPHRASE_VARIABLE}, otherwise none.",
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
data_option = click.option("--data", type=click.Path(path_type=Path), help="Folder to find the data set in.")


def out_option(what: str) -> Callable[[Any], Any]:
    """``--out PATH``, required."""
    return click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help=f"Where the {what} goes.")


def scheme_option(text: str) -> Callable[[Any], Any]:
    """``--scheme``, modular by default; ``text``: its help."""
    choices = click.Choice(["modular", "lattice"])
    return click.option("--scheme", default="modular", show_default=True, type=choices, help=text)


def path_argument(name: str) -> Callable[[Any], Any]:
    return click.argument(name, type=click.Path(path_type=Path))


def only_of_scheme(scheme: str, chosen: str, *names: str) -> None:
    """UsageError if an option of one scheme was given on the command line with the other chosen: nothing that somebody
    asks for is ignored. ``names``: of the command's parameters."""
    context = click.get_current_context()
    for name in names if chosen != scheme else ():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(f"{option}: an option of the {scheme} scheme; --scheme {chosen} has no use for it")


def is_refusal(error: Exception) -> bool:
    """Whether an exception is a refusal with a message for the user, and not a bug."""
    return isinstance(error, McfheError) or (isinstance(error, OSError) and error.strerror is not None)


def report_error(message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message}))
    stderr.print(f"mcfhe: {message}", markup=False, style="red" if stderr.is_terminal else None)


def print_json(body: dict[str, Any]) -> None:
    """The one object of ``--json``."""
    print(json.dumps(body))


def security_line(quiet: bool, line: str = SECURITY_LINE) -> None:
    """One plain line on standard error about what the encryption is worth."""
    if not quiet:
        stderr.print(line, markup=False, style="dim" if stderr.is_terminal else None)


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """A bar on standard error if that is a terminal; yields a function that takes the finished share, 0..1."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=quiet or not stderr.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def passphrase(path: Path | None) -> str | None:
    """The pass-phrase from a file's first line or the environment; None if neither is given."""
    if path is None:
        return os.environ.get(PASSPHRASE_VARIABLE) or None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"--passphrase-file {path}: cannot be read as text ({error})") from None
    if not lines or not lines[0]:
        raise ParameterError(f"--passphrase-file {path}: its first line is empty")
    return lines[0]


def refuse_overwrite(path: Path, force: bool) -> None:
    """A key that is overwritten is lost: only with --force."""
    if path.exists() and not force:
        raise ParameterError(f"{path}: exists already; choose another name or pass --force")


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} bytes"
