"""Limits that suit the programs a service has: what their requests take, and room for one of every owner's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mcfhe.arguments import number
from mcfhe.container import MAX_HEADER_BYTES
from mcfhe.errors import ParameterError
from mcfhe.lattice.security import SEED_BYTES
from mcfhe.service.admission import room_for
from mcfhe.service.settings import ServiceSettings

DEFAULT_BODY_MB = 64
_LEAST_INFLIGHT_MB = 256
_EXPANSION = 3  # what a seeded lattice request takes while it is evaluated, by its body; others take their body
_SLOWEST_MB_PER_SECOND = 4  # that a body may come at where it is large


def request_bytes(program: Any, seeded: bool = True) -> int:
    """What a request takes at least: in the lattice scheme all of them do, however few their images; 0 in the modular
    scheme, where they grow with the images. Without ``seeded``, one that was encrypted under a public key."""
    if program.scheme != "lattice":
        return 0
    ring, pixels = program.client_spec().ring, math.prod(program.input_shape)
    component = 4 * len(ring.moduli) * ring.degree
    ciphertexts = pixels * (component + SEED_BYTES if seeded else 2 * component)
    return int(ciphertexts + program.key_bytes + MAX_HEADER_BYTES)


def settings_for(
    programs: Iterable[Any],
    owners: int,
    *,
    body_mb: int | None = None,
    body_timeout_s: float | None = None,
    **settings: Any,
) -> ServiceSettings:
    """Settings under which each of ``owners`` (tokens, 1 without any) can send a request to every program.

    ``body_mb``: the largest body in MiB, by default 64 or what the lattice programs' requests take, under public keys
    too; ParameterError if it is less than requests under secret keys take. ``body_timeout_s``: by default 30, or a
    second for every 4 MiB of it.
    """
    programs = list(programs)
    needed_mb = _megabytes(request_bytes(program) for program in programs)
    if body_mb is None:
        body_mb = max(DEFAULT_BODY_MB, _megabytes(request_bytes(program, seeded=False) for program in programs))
    elif body_mb < needed_mb:
        raise ParameterError(
            f"--max-body-mb {body_mb}: a request of the lattice scheme to these programs takes {needed_mb} MB, with "
            "one image or with thousands; give that or leave the option out"
        )
    if body_timeout_s is None:
        body_timeout_s = max(30.0, body_mb / _SLOWEST_MB_PER_SECOND)
    number("--body-timeout", body_timeout_s, 0, above=True)
    inside = max(body_mb, _EXPANSION * needed_mb) << 20
    return ServiceSettings(
        max_body_bytes=body_mb << 20,
        max_inflight_bytes=max(_LEAST_INFLIGHT_MB << 20, room_for(inside, owners)),
        body_timeout_s=body_timeout_s,
        **settings,
    )


def _megabytes(sizes: Iterable[int]) -> int:
    return -(-max(sizes, default=0) // (1 << 20))
