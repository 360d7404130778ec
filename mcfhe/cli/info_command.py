"""``mcfhe info``: what was built and what it runs on."""

from __future__ import annotations

import click

from mcfhe.cli.common import json_option, print_json, stdout


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Versions, instruction set, CUDA kernels and devices of this build."""
    from mcfhe import _extension

    facts = _extension.build_info()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        text = ", ".join(value) or "none" if isinstance(value, list) else "none" if value is None else str(value)
        stdout.print(f"{name:13} {text}", markup=False)
