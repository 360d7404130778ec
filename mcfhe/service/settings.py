"""Every limit of the service in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mcfhe.errors import ParameterError

KEY_HEADER_BYTES = 1 << 12  # what an evaluation key's message has beside its residues, at most
MAX_KEY_BYTES = 1 << 16  # an evaluation key's message: 4,096 limbs of four bytes and a header; a lattice key is larger


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Limits, all positive. ParameterError names one that is not.

    A body of n bytes takes about 4 n of memory until it is answered (the bytes, then int64 residues, then a batch of
    them), so ``max_inflight_bytes`` bounds the service's memory at about four times itself beside the programs. A
    lattice request is counted with what its seeds expand to, three times its residues; what the network makes of the
    one that is being evaluated comes beside that (docs/lattice.md has peaks that were measured).
    """

    max_body_bytes: int = 64 << 20  # one request body
    # Requests taken in and not answered; one more is told to come back (429). No token can take them all (Quota).
    max_inflight: int = 64
    max_inflight_bytes: int = 256 << 20  # their bodies together, expanded
    max_batch_streams: int = 4096  # images x lanes that are joined into one evaluation
    max_connections: int = 1024
    header_timeout_s: float = 10.0  # from the first byte that may belong to a request to the end of its headers
    body_timeout_s: float = 30.0
    request_timeout_s: float = 60.0  # waiting and evaluation; the work goes on and a retry finds its result
    keep_alive_s: float = 5.0  # an idle connection
    shutdown_timeout_s: float = 60.0
    max_keys: int = 1024  # registered evaluation keys, of all clients
    max_key_bytes: int = 1 << 30  # all of them together: a lattice key is megabytes
    session_s: float = 3600.0  # since a key was last used
    replay_s: float = 300.0  # how long a finished request is answered again
    max_replay_bytes: int = 16 << 20  # under load this forgets the oldest answers before replay_s does

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ParameterError(f"{field.name} = {getattr(self, field.name)} must be positive")
        if self.max_inflight_bytes < self.max_body_bytes:
            raise ParameterError(
                f"max_inflight_bytes = {self.max_inflight_bytes} is below max_body_bytes = {self.max_body_bytes}: "
                "the largest request could never be taken in"
            )
