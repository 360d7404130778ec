"""The server of the lattice scheme: the same engine, another way to bind a key. No secret-key code, no SEAL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from mcfhe.arguments import torch_device
from mcfhe.engine import Engine, RingBinding
from mcfhe.errors import MismatchError, ParameterError
from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.lattice.expansion import expanded
from mcfhe.lattice.wire import LatticeRequest, LatticeResponse, check_canonical
from mcfhe.server import BoundKeys

if TYPE_CHECKING:
    from mcfhe.lattice.program import LatticeProgram

MAX_BINDINGS = 4  # a relinearisation key is tens of megabytes


class LatticeServer:
    """Evaluates requests for one lattice program on one device. Thread-safe; see :class:`mcfhe.server.Server`."""

    def __init__(
        self, program: LatticeProgram, device: str | torch.device = "cpu", tile_bytes: int | None = None
    ) -> None:
        self.program = program
        self.device = torch_device(device)
        self._engine = Engine(program.integer_program(), self.device, tile_bytes)
        self._bindings = BoundKeys[str, RingBinding](MAX_BINDINGS)

    def __repr__(self) -> str:
        return f"LatticeServer(program_id={self.program.program_id[:12]}, device={str(self.device)!r})"

    def close(self) -> None:
        """Nothing to give back: see :class:`mcfhe.server.Evaluator`."""

    def check(self, request: LatticeRequest) -> None:
        """Refuse what this program cannot answer: MismatchError for another program or ring, ParameterError for images
        of another shape."""
        if not isinstance(request, LatticeRequest):
            raise MismatchError("request: of the modular scheme, this program is of the lattice scheme")
        spec = self.program.client_spec()
        if request.program_id != self.program.program_id:
            raise MismatchError(
                f"request is for program {request.program_id[:12]}, this server runs {self.program.program_id[:12]}; "
                "encrypt with this program's client spec"
            )
        if request.evaluation_key.ring != spec.ring:
            raise MismatchError(
                f"evaluation key: ring of degree {request.evaluation_key.ring.degree} with "
                f"{len(request.evaluation_key.ring.moduli)} limbs, the program's has degree {spec.ring.degree} with "
                f"{len(spec.ring.moduli)} limbs or other moduli; generate the key from this program's spec"
            )
        shape = tuple(request.ciphertext.shape[1:4])
        if shape != tuple(spec.input_shape):
            raise ParameterError(f"request: images of shape {list(shape)}, the program takes {list(spec.input_shape)}")

    def bind(self, key: LatticeEvaluationKey) -> RingBinding:
        """The program's constants and the key's parts by level, from the cache where they are there."""
        return self._bindings.get(key.key_id, lambda: self._engine.bind_ring(key.keys.to(torch.int64)))

    def evaluate(self, request: LatticeRequest, progress: Callable[[float], None] | None = None) -> LatticeResponse:
        """Run the network on all slots at once -> the scores' ciphertexts, int64 ``[limbs, labels, 2 * n]``.

        Raises as :meth:`check` does, and FormatError for residues outside 0 <= r < q.
        """
        self.check(request)
        key = request.evaluation_key
        with self._engine.memory() as memory:
            x = expanded(request, memory)
            check_canonical(x, key.ring.moduli)
            residues = self._engine.run(self.bind(key), x, progress)
        return LatticeResponse.for_request(request, residues.cpu())
