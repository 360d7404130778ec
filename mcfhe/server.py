"""The server: holds a program, evaluates requests, never sees a secret.

It imports neither the client nor any secret-key code, and containers with secret fields are refused on reading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import torch

from mcfhe import ops
from mcfhe.arguments import require, torch_device
from mcfhe.engine import Engine
from mcfhe.engine.binding import Binding
from mcfhe.errors import CapacityError, MismatchError, ParameterError
from mcfhe.modular.evaluation_key import EvaluationKey
from mcfhe.program import Program
from mcfhe.wire import Request, Response, in_words

# Bindings kept for returning clients, per profile. Each holds the program's constants modulo one client's limbs.
MAX_BINDINGS = 32


Slot = TypeVar("Slot")
Bound = TypeVar("Bound")


class BoundKeys(Generic[Slot, Bound]):
    """What was bound for the keys used last. Thread-safe; two threads may bind the same key at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Slot, Bound] = OrderedDict()
        self._lock = Lock()

    def get(self, slot: Slot, bind: Callable[[], Bound]) -> Bound:
        """What is kept for ``slot``, else what ``bind`` makes."""
        with self._lock:
            if slot in self._kept:
                self._kept.move_to_end(slot)
                return self._kept[slot]
        bound = bind()
        with self._lock:
            self._kept[slot] = bound
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return bound


class Evaluator(Protocol):
    """What answers requests for one program: a :class:`Server`, or several devices (:mod:`mcfhe.sharding`)."""

    program: Program

    def check(self, request: Request) -> None:
        """As :func:`check_request`."""

    def evaluate(self, request: Request, progress: Callable[[float], None] | None = None) -> Response:
        """As :meth:`Server.evaluate`; the response may lack limbs that the key can spare, and says which it has."""

    def close(self) -> None:
        """Give back devices and processes; nothing is evaluated afterwards."""


def check_request(program: Program, request: Request) -> None:
    """Refuse a request that ``program`` cannot answer; the message names the field and both values.

    MismatchError for another program, ParameterError for an amplification, scale or image shape the program does
    not prescribe, CapacityError for moduli whose product the proved output bound does not fit.
    """
    if not isinstance(request, Request):
        raise MismatchError(f"request: {in_words(type(request))} given, this program is of the modular scheme")
    spec, key = program.client_spec(), request.evaluation_key
    if request.program_id != program.program_id:
        raise MismatchError(
            f"request is for program {request.program_id[:12]}, this server runs {program.program_id[:12]}; "
            "encrypt with this program's client spec"
        )
    for name, prescribed, found in (
        ("amplification", spec.amplification, key.amplification),
        ("scale", spec.scale, key.scale),
    ):
        if prescribed != found:
            raise ParameterError(f"evaluation key: {name} is {found}, the program prescribes {prescribed}")
    shape = tuple(request.ciphertext.shape[1:4])
    if shape != tuple(spec.input_shape):
        raise ParameterError(f"request: images of shape {list(shape)}, the program takes {list(spec.input_shape)}")
    bounds = spec.profile(request.profile)
    required = bounds.required_product(spec.guard_bits)
    if key.moduli.product <= required:
        raise CapacityError(
            f"evaluation key: its moduli multiply to {key.moduli.product.bit_length()} bits, the program needs "
            f"{required.bit_length()} in the {request.profile} profile; generate the key from this program's spec"
        )


class Server:
    """Evaluates requests for one program on one device ("cpu", "cuda", "cuda:1").

    ``tile_bytes`` bounds the residues that are alive at once inside the network (see :class:`mcfhe.engine.Engine`).
    Thread-safe; concurrent calls share the weights and the bound constants. Given a lattice program this makes a
    :class:`mcfhe.lattice.server.LatticeServer`, given a staged one a :class:`mcfhe.StagedServer`; they have the same
    methods.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        program = args[0] if args else kwargs.get("program")  # a subclass may have another signature
        if cls is Server and hasattr(program, "stages"):
            from mcfhe.staged.program import StagedServer

            return StagedServer(*args, **kwargs)
        if cls is Server and getattr(program, "scheme", None) == "lattice":
            from mcfhe.lattice.server import LatticeServer

            return LatticeServer(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self, program: Program, device: str | torch.device = "cpu", tile_bytes: int | None = None) -> None:
        require("program", program, Program, "give what mcfhe.compile or mcfhe.load_program returns")
        self.program = program
        self.device = torch_device(device)
        self._engines = {
            profile: Engine(program.integer_program(profile), self.device, tile_bytes)
            for profile in program.client_spec().profiles
        }
        self._bindings = BoundKeys[tuple[str, str], Binding](MAX_BINDINGS)

    def __repr__(self) -> str:
        return f"Server(program_id={self.program.program_id[:12]}, device={str(self.device)!r})"

    def check(self, request: Request) -> None:
        """As :func:`check_request`, for this program."""
        check_request(self.program, request)

    def bind(self, key: EvaluationKey, profile: str) -> Binding:
        """The program's constants modulo the key's limbs, from the cache where they are there."""
        return self._bindings.get((key.key_id, profile), lambda: self._engines[profile].bind(tuple(key.moduli)))

    def evaluate(self, request: Request, progress: Callable[[float], None] | None = None) -> Response:
        """Run the network on every lane of every limb -> the scores' residues, int64 [N, labels, batch * M].

        Raises as :func:`check_request` does, and ParameterError for residues outside 0 <= r < b. ``progress`` is
        called with the finished share, 0..1.
        """
        self.check(request)
        key = request.evaluation_key
        ops.check_residues(request.ciphertext, key.moduli.as_tensor(request.ciphertext.device))
        return Response.for_request(request, self.run(key, request.profile, request.ciphertext, progress=progress))

    def run(
        self,
        key: EvaluationKey,
        profile: str,
        residues: torch.Tensor,
        first: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Residues [n, C, H, W, S] of the key's limbs first .. first + n - 1 -> [n, labels, S]. Nothing is checked."""
        binding = self.bind(key, profile)
        if residues.shape[0] != len(key.moduli):
            binding = binding.limbs(first, first + residues.shape[0])
        return self._engines[profile].run(binding, residues, progress)

    def close(self) -> None:
        """Nothing to give back."""
