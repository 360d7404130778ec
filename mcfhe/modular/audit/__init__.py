"""Attacks on the modular scheme, run on what a server really sees.

The scheme is an obfuscation without semantic security; this package measures what that means.
:func:`run` takes a client spec, requests of one key and perhaps some known pixels, and returns a :class:`Report`.

    spec, request = ClientSpec.from_json(text), Request.load(path)
    report = audit.run(spec, [request])
    print(*report.lines(), sep="\\n")
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from mcfhe.errors import ParameterError
from mcfhe.modular.audit.known_pixels import constant
from mcfhe.modular.audit.lattice_reduction import lattice
from mcfhe.modular.audit.public_key import position, quotient
from mcfhe.modular.audit.ratios import equality, ratio
from mcfhe.modular.audit.reactions import reaction
from mcfhe.modular.audit.report import Finding, Report
from mcfhe.modular.audit.small_values import small_value
from mcfhe.modular.audit.statistical import statistics
from mcfhe.modular.audit.values import Image
from mcfhe.modular.audit.view import UNKNOWN, View
from mcfhe.spec import ClientSpec
from mcfhe.wire import Request

__all__ = ["ATTACKS", "UNKNOWN", "Finding", "Image", "Report", "View", "attack", "reaction", "run"]

ATTACKS: dict[str, Callable[[View], Finding]] = {
    "equality": equality,
    "ratio": ratio,
    "quotient": quotient,
    "position": position,
    "constant": constant,
    "small-value": small_value,
    "lattice": lattice,
    "statistics": statistics,
}


def attack(call: Callable[[], Finding]) -> Finding:
    """Run one attack: time it, and call it recovered if anything came out."""
    start = time.perf_counter()
    finding = call()
    seconds = time.perf_counter() - start
    found = bool(finding.images or finding.positions_found or finding.structure)
    return dataclasses.replace(finding, seconds=seconds, outcome="recovered" if found else finding.outcome)


def run(
    spec: ClientSpec,
    requests: Sequence[Request],
    *,
    known: np.ndarray | None = None,
    images: int | None = None,
    attacks: Iterable[str] = tuple(ATTACKS),
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Run attacks by name on requests of one key.

    known: integers ``[batch, C, H, W]`` over all requests in order, -1 where unknown. images: attack only the first so
    many images. progress: called with the finished share, 0..1. ParameterError for a name that is no attack; see
    :meth:`View.of` for the rest.
    """
    view = View.of(spec, requests, known, images)
    names = list(attacks)
    findings = []
    for done, name in enumerate(names):
        if name not in ATTACKS:
            raise ParameterError(f"attack {name!r}: choose of {', '.join(ATTACKS)}")
        findings.append(attack(partial(ATTACKS[name], view)))
        if progress is not None:
            progress((done + 1) / len(names))
    return Report(view, tuple(findings))
