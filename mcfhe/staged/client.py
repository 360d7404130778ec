"""The client of a staged program: a key for every stage, and what happens at the cuts (:mod:`mcfhe.staged`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mcfhe.arguments import require
from mcfhe.client import Client
from mcfhe.container import TensorField
from mcfhe.errors import FormatError, ImageError, MismatchError, ParameterError
from mcfhe.keyfile import opened_secret, save_secret
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.lattice.wire import LatticeResponse
from mcfhe.spec import ClientSpec
from mcfhe.staged.spec import StagedSpec
from mcfhe.wire import Response, check_kind, check_match

if TYPE_CHECKING:
    from mcfhe.lattice.public_key import PublicKey

__all__ = ["StagedClient"]

KIND = "staged-client"


class Answers(Protocol):
    """A :class:`mcfhe.StagedServer`, or a :class:`mcfhe.RemoteServer` of a service that runs every stage."""

    def evaluate(self, request: Any, progress: Callable[[float], None] | None = None) -> Any:
        """As :meth:`mcfhe.Server.evaluate`."""


class StagedClient:
    """A client for every stage: a :class:`mcfhe.Client` each, or a :class:`mcfhe.lattice.client.LatticeClient` each.

    In the modular scheme every stage has a key of its own: its limbs are as many as it needs. In the lattice scheme
    stages of the same ring (degree and moduli) share one key, which a server then gets once: ciphertexts under one key
    are as safe as under two, each has randomness of its own.

    ``request = client.encrypt(images)``; then ``request = client.refresh(response)`` for every cut; then
    ``scores = client.decrypt(response)``. :meth:`classify` is the whole of it.
    """

    def __init__(self, spec: StagedSpec, clients: Sequence[Any]) -> None:
        require("spec", spec, StagedSpec, "give that of a staged program")
        require("clients", clients, Sequence, "give a list of clients")
        if [getattr(client, "spec", None) for client in clients] != list(spec.stages):
            raise ParameterError("clients: one for the client spec of each stage is needed, in their order")
        self.spec = spec
        self.clients = tuple(clients)

    @classmethod
    def generate(cls, spec: StagedSpec, **arguments: Any) -> StagedClient:
        """Draw the keys; arguments are those of :meth:`mcfhe.Client.generate`."""
        if arguments.get("user_key") is not None:
            raise ParameterError(
                "user_key: the stages need keys that differ; generate each Client with a salt of its own"
            )
        require("spec", spec, StagedSpec, "give that of a staged program")
        clients: list[Any] = []
        for stage in spec.stages:
            shared = _of_ring(stage, clients)
            clients.append(Client.generate(stage, **arguments) if shared is None else shared.for_spec(stage))
        return cls(spec, clients)

    def __repr__(self) -> str:
        return f"StagedClient(program_id={self.spec.program_id[:12]}, {len(self.clients)} stages)"

    def close(self) -> None:
        """Overwrite the secrets of all stages in memory, as :meth:`mcfhe.Client.close`."""
        for client in self.clients:
            client.close()

    def __enter__(self) -> StagedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encrypt(self, images: Any, return_integers: bool = False) -> Any:
        """As :meth:`mcfhe.Client.encrypt`, for the first stage. ImageError also for more images than a later stage's
        ciphertexts have slots (``spec.slots``)."""
        if self.spec.slots is not None and len(images) > self.spec.slots:
            raise ImageError(
                f"images: {len(images)} in one request, the smallest ring of the stages has {self.spec.slots} slots; "
                "split the batch"
            )
        return self._encrypt(0, images, return_integers)

    def public_key(self) -> PublicKey:
        """A public key of the first stage, as :meth:`mcfhe.lattice.client.LatticeClient.public_key`: others encrypt
        images, the owner refreshes at the cuts. ParameterError in the modular scheme, which has none."""
        if self.spec.scheme != "lattice":
            raise ParameterError("public key: belongs to the lattice scheme; in the modular one only owners encrypt")
        found: PublicKey = self.clients[0].public_key()
        return found

    def refresh(self, response: Any, return_integers: bool = False, *, request_id: str | None = None) -> Any:
        """Decrypt what a stage but the last gives, round it to levels and encrypt those for the next stage.

        The request that this makes is a fresh encryption: the decrypted values never leave the client.
        """
        index = self._stage(response)
        if index == len(self.clients) - 1:
            raise ParameterError("response: is of the last stage, whose scores are decrypted and not refreshed")
        pixels = self.clients[index].decrypt_levels(response, self.spec.levels[index], request_id=request_id)
        return self._encrypt(index + 1, pixels, return_integers)

    def decrypt(self, response: Any, *, request_id: str | None = None) -> torch.Tensor:
        """Scores, float64 ``[batch, labels]``, of the last stage's response."""
        if self._stage(response) != len(self.clients) - 1:
            raise ParameterError(
                "response: is of a stage before the last; refresh() it (mcfhe refresh) and evaluate again"
            )
        scores: torch.Tensor = self.clients[-1].decrypt(response, request_id=request_id)
        return scores

    def classify(self, images: Any, server: Answers, progress: Callable[[float], None] | None = None) -> torch.Tensor:
        """Encrypt, evaluate, refresh at every cut, decrypt: scores, float64 ``[batch, labels]``.

        ``progress`` is called with the finished share, 0..1.
        """
        if not callable(getattr(server, "evaluate", None)):
            raise ParameterError(f"server: {type(server).__name__} given; give a StagedServer or a RemoteServer")
        stages, request = len(self.clients), self.encrypt(images)
        for index in range(stages):

            def show(share: float, index: int = index) -> None:
                if progress is not None:
                    progress((index + share) / stages)

            response = server.evaluate(request, show)
            sent = request.request_id
            if index < stages - 1:
                request = self.refresh(response, request_id=sent)
        return self.decrypt(response, request_id=sent)

    def _encrypt(self, index: int, pixels: Any, return_integers: bool) -> Any:
        if not return_integers:
            return self.clients[index].encrypt(pixels)
        if self.spec.scheme == "lattice":
            raise ParameterError("return_integers: belongs to the modular scheme, whose results are exact")
        return self.clients[index].encrypt(pixels, True)

    def _stage(self, response: Any) -> int:
        check_kind("response", response, Response, LatticeResponse)
        ids = [client.spec.program_id for client in self.clients]
        if response.program_id not in ids:
            raise MismatchError(f"response: of program {response.program_id[:12]}, which is no stage of this client's")
        return ids.index(response.program_id)

    def save(self, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> None:
        """Write keys and spec to one file, mode 0600, atomically; encrypted when a passphrase is given. A key that
        stages share is there once."""
        tensors = {"spec": np.frombuffer(self.spec.to_json().encode(), np.uint8)}
        for index, client in enumerate(self.clients):
            parts = client.parts()  # refuses after close()
            first = _of_ring(client.spec, self.clients[:index])  # whose key loading would put here
            if first is None or first.evaluation_key.key_id != client.evaluation_key.key_id:
                tensors |= {f"stage.{index}.{name}": part for name, part in parts.items()}
        save_secret(path, KIND, tensors, {"program_id": self.spec.program_id}, passphrase)

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> StagedClient:
        """Read what :meth:`save` wrote; one FormatError for a wrong passphrase or an altered file."""
        from mcfhe.lattice.client import KEY_PARTS as LATTICE_PARTS  # SEAL itself is loaded later

        parts = {"stage.*": TensorField("U8", ((1, 1 << 26),))}
        key = LATTICE_PARTS["relinearisation_key"]
        fields = {"spec": TensorField("U8", ((1, 1 << 26),))} | parts
        names = {f"stage.{i}.relinearisation_key": TensorField(key.dtype, key.shape, optional=True) for i in range(64)}
        with opened_secret(path, KIND, names | fields, ("program_id",), passphrase) as content:
            spec = _spec(path, content.tensors["spec"].tobytes())
            check_match(str(path), "program_id", content.metadata["program_id"], spec.program_id)
            left = {name: value for name, value in content.tensors.items() if name != "spec"}
            clients: list[Any] = []
            try:
                for index, stage in enumerate(spec.stages):
                    clients.append(_client(path, index, stage, left, clients))
                if left:
                    raise FormatError(f"{path}: tensor {min(left)!a} belongs to no stage")
            except BaseException:
                for client in clients:
                    client.close()
                raise
            return cls(spec, clients)


def _of_ring(stage: ClientSpec | LatticeSpec, clients: Sequence[Any]) -> Any:
    """The first of ``clients`` whose key ``stage`` can share, or None."""
    if not isinstance(stage, LatticeSpec):
        return None
    return next((client for client in clients if client.spec.ring == stage.ring), None)


def _spec(path: str | os.PathLike[str], data: bytes) -> StagedSpec:
    try:
        spec = ClientSpec.from_json(data.decode())
    except UnicodeDecodeError:
        raise FormatError(f"{path}: the client spec is not UTF-8") from None
    if not isinstance(spec, StagedSpec):
        raise FormatError(f"{path}: the client spec is not that of a staged program")
    return spec


def _client(
    path: str | os.PathLike[str],
    index: int,
    stage: ClientSpec | LatticeSpec,
    left: dict[str, np.ndarray],
    before: Sequence[Any],
) -> Any:
    """The client of one stage from its tensors, which are taken out of ``left``."""
    prefix = f"stage.{index}."
    parts: Mapping[str, np.ndarray] = {
        name.removeprefix(prefix): left.pop(name) for name in sorted(left) if name.startswith(prefix)
    }
    if not parts:
        shared = _of_ring(stage, before)
        if shared is None:
            raise FormatError(f"{path}: no key of stage {index}, and no stage before it has the same ring")
        return shared.for_spec(stage)
    if isinstance(stage, LatticeSpec):
        from mcfhe.lattice.client import LatticeClient

        return LatticeClient.from_parts(stage, parts)
    return Client.from_parts(stage, parts)
