"""The client: holds the secret key, encrypts images, decrypts scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from mcfhe.arguments import require
from mcfhe.container import TensorField
from mcfhe.errors import FormatError, MismatchError, ParameterError
from mcfhe.graph.order import Order
from mcfhe.images import check_images
from mcfhe.keyfile import kind_of, opened_secret, save_secret
from mcfhe.lattice.spec import LatticeSpec
from mcfhe.modular import decrypt, encrypt
from mcfhe.modular.keys import EvaluationKey, SecretKey
from mcfhe.modular.params import integer
from mcfhe.spec import DEFAULT_PROFILE, ClientSpec, ProfileSpec
from mcfhe.staged.spec import Levels, StagedSpec
from mcfhe.wiping import wipe
from mcfhe.wire import Request, Response, check_kind, check_match

_KIND = "client"
_FIELDS = {
    "secret_key": TensorField("U8", ((1, 1 << 24),)),
    "spec": TensorField("U8", ((1, 1 << 26),)),
}


def _lattice_client() -> Any:
    from mcfhe.lattice.client import LatticeClient  # loads SEAL's wheel

    return LatticeClient


def _staged_client() -> Any:
    from mcfhe.staged.client import StagedClient

    return StagedClient


_SPEC_ADVICE = "give what program.client_spec() or ClientSpec.from_json() returns"


def _refuse_basis(salt: object, moduli: object, why: str) -> None:
    for name, value in (("salt", salt), ("moduli", moduli)):
        if value is not None:
            raise ParameterError(f"{name}: {why}")


class Client:
    """A secret key together with the client spec of the program it is for.

    ParameterError or CapacityError if the key does not fit the spec: another amplification or scale, more noise
    than the program's bounds are proved for, or moduli too small for its outputs.

    ``with Client.load(...) as client:`` overwrites the lane positions at the end of the block, as :meth:`close` does;
    see :class:`SecretKey` for what Python does not allow.
    """

    def __init__(self, spec: ClientSpec, secret_key: SecretKey) -> None:
        require("spec", spec, ClientSpec, _SPEC_ADVICE)
        require("secret_key", secret_key, SecretKey, "give one that SecretKey.load or SecretKey.generate returns")
        for name, prescribed, found in (
            ("amplification", spec.amplification, secret_key.amplification),
            ("scale", spec.scale, secret_key.scale),
        ):
            if prescribed != found:
                raise ParameterError(f"{name}: the program prescribes {prescribed}, the key has {found}")
        encrypt.check_table(spec.table, spec.input_shape)
        profile = spec.profile(secret_key.profile)
        # What encrypt produces; a program that expects anything else would compute something else.
        order = Order(1, spec.scale_bits * (2 if secret_key.profile == "patent" else 1))
        if profile.input_order != order:
            raise ParameterError(f"client spec: input order {profile.input_order}, this client encrypts at {order}")
        integer("noise", secret_key.noise, 0, profile.max_noise)
        secret_key.moduli.require_capacity(profile.required_product(spec.guard_bits), secret_key.redundancy)
        self.spec = spec
        self.secret_key = secret_key

    @classmethod
    def generate(
        cls,
        spec: ClientSpec | LatticeSpec | StagedSpec,
        lanes: int = 4,
        profile: str = DEFAULT_PROFILE,
        noise: int | None = None,
        redundancy: int = 0,
        user_key: bytes | bytearray | str | None = None,
        *,
        salt: bytes | None = None,
        moduli: Sequence[int] | None = None,
    ) -> Any:
        """Draw a key for ``spec``.

        lanes: M, 1..1024. noise: exclusive upper end of e, at most the program's max_noise; by default 0 in the
        patent profile, half the amplification in the hardened. redundancy: limbs beyond those needed; s missing and
        q damaged ones are corrected while s + 2q <= redundancy. user_key: bytes or a passphrase from which moduli
        and lane positions are derived with ``salt`` (drawn if not given, kept in the key). moduli: a basis of one's
        own instead of primes of the spec's width.

        For the spec of a lattice program, which has none of these, a :class:`mcfhe.lattice.client.LatticeClient`; for
        that of a staged program, a :class:`mcfhe.StagedClient`.
        """
        if isinstance(spec, LatticeSpec):
            for name, value in (("noise", noise), ("redundancy", redundancy), ("user_key", user_key)):
                if value:  # a key that is not the one asked for must not look like it
                    raise ParameterError(f"{name}: belongs to the modular scheme; a lattice key is drawn by SEAL")
            _refuse_basis(salt, moduli, "the moduli of a lattice key are the program's")
            return _lattice_client().generate(spec)
        if isinstance(spec, StagedSpec):
            _refuse_basis(salt, moduli, "the stages need keys that differ; generate each Client by itself")
            return _staged_client().generate(
                spec, lanes=lanes, profile=profile, noise=noise, redundancy=redundancy, user_key=user_key
            )
        require("spec", spec, ClientSpec, _SPEC_ADVICE)
        bounds = spec.profile(profile)
        if noise is None:
            noise = 0 if profile == "patent" else min(spec.amplification // 2, bounds.max_noise)
        integer("noise", noise, 0, bounds.max_noise)
        key = SecretKey.generate(
            amplification=spec.amplification,
            scale=spec.scale,
            required_product=bounds.required_product(spec.guard_bits),
            lanes=lanes,
            profile=profile,
            noise=noise,
            redundancy=redundancy,
            modulus_bits=spec.modulus_bits,
            user_key=user_key,
            salt=salt,
            moduli=moduli,
        )
        return cls(spec, key)

    def close(self) -> None:
        """Overwrite the lane positions in memory; encrypt and decrypt raise ParameterError from then on."""
        self.secret_key.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client(program_id={self.spec.program_id[:12]}, secret_key={self.secret_key!r})"

    @property
    def evaluation_key(self) -> EvaluationKey:
        """What the server gets of the key."""
        return self.secret_key.evaluation_key

    @property
    def profile(self) -> ProfileSpec:
        """The program's orders and bounds in this key's profile."""
        return self.spec.profile(self.secret_key.profile)

    @overload
    def encrypt(
        self, images: Any, return_integers: Literal[False] = False, *, byte_budget: int | None = None
    ) -> Request: ...

    @overload
    def encrypt(
        self, images: Any, return_integers: Literal[True], *, byte_budget: int | None = None
    ) -> tuple[Request, np.ndarray]: ...

    def encrypt(
        self, images: Any, return_integers: bool = False, *, byte_budget: int | None = None
    ) -> Request | tuple[Request, np.ndarray]:
        """Encrypt uint8 images ``[batch, C, H, W]`` (tensor or array), batch >= 1.

        With ``return_integers`` also the exact input integers V, noise included, as an object array
        ``[batch, C, H, W]`` of Python ints. ImageError for another shape or dtype, an empty batch, or a ciphertext of
        more than ``byte_budget`` bytes (default: a quarter of memory).
        """
        array = check_images(images, self.spec.input_shape)
        result = encrypt.encrypt(
            array, self.spec.table, self.secret_key, return_integers=return_integers, byte_budget=byte_budget
        )
        request = Request(
            ciphertext=torch.from_numpy(result.ciphertext),
            public_key=None if result.public_key is None else torch.from_numpy(result.public_key),
            evaluation_key=self.evaluation_key,
            program_id=self.spec.program_id,
            lanes=self.secret_key.lanes,
            profile=self.secret_key.profile,
        )
        return request if result.integers is None else (request, result.integers)

    def decrypt(self, response: Response, *, request_id: str | None = None) -> torch.Tensor:
        """Scores, float64 ``[batch, labels]``: V / (a**t * 2**k), each rounded once.

        Errors as :meth:`decrypt_integers`.
        """
        integers = self.decrypt_integers(response, request_id=request_id)
        denominator = self.profile.output_order.denominator(self.spec.amplification)
        return torch.from_numpy(decrypt.to_scores(integers, denominator, len(self.spec.labels)))

    def decrypt_integers(self, response: Response, *, request_id: str | None = None) -> list[list[int]]:
        """The exact scores V, ``batch`` lists of ``labels`` Python ints.

        MismatchError if the response is of another program or key, or (where given) to another request;
        DecryptionError if it is damaged beyond what redundancy corrects: never a wrong score within the guard.
        """
        key = self.secret_key
        check_kind("response", response, Response)
        check_match("response", "program_id", response.program_id, self.spec.program_id)
        check_match("response", "key_id", response.key_id, key.key_id)
        if request_id is not None:
            check_match("response", "request_id", response.request_id, request_id)
        limbs = tuple(range(response.residues.shape[0])) if response.limbs is None else response.limbs
        for name, found, expected in (
            ("lanes", response.lanes, key.lanes),
            ("profile", response.profile, key.profile),
            ("labels", response.residues.shape[1], len(self.spec.labels)),
        ):
            if found != expected:
                raise MismatchError(f"response: {name} is {found}, {expected} expected")
        if response.limbs is None and len(limbs) != len(key.moduli):
            raise MismatchError(
                f"response: residues of {len(limbs)} limbs, the key has {len(key.moduli)}; where limbs are missing, "
                "'limbs' must name those that are there"
            )
        if limbs and limbs[-1] >= len(key.moduli):
            raise MismatchError(f"response: limb {limbs[-1]} is named, the key has {len(key.moduli)} limbs")
        # The server leaves limbs out by the same rule. It is key.redundancy but for moduli that the user chose.
        redundancy = key.moduli.spare(self.profile.required_product(self.spec.guard_bits))
        return decrypt.decrypt_integers(
            response.residues.detach().cpu().numpy(),
            limbs,
            moduli=key.moduli,
            positions=key.lane_positions,
            lanes=key.lanes,
            redundancy=redundancy,
            bound=self.profile.output_bound,
        )

    def decrypt_levels(self, response: Response, levels: Levels, *, request_id: str | None = None) -> np.ndarray:
        """The exact scores as uint8 ``[batch, C, H, W]``: pixels of a next stage (:mod:`mcfhe.staged`). Errors as
        :meth:`decrypt_integers`."""
        integers = self.decrypt_integers(response, request_id=request_id)
        return levels.of_integers(integers, self.profile.output_order.denominator(self.spec.amplification))

    def save(self, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> None:
        """Write key and spec to one file, mode 0600, atomically; encrypted when a passphrase is given."""
        tensors = self.parts() | {"spec": np.frombuffer(self.spec.to_json().encode(), np.uint8)}
        save_secret(path, _KIND, tensors, {"program_id": self.spec.program_id}, passphrase)

    def parts(self) -> dict[str, np.ndarray]:
        """The key as the tensors of a file; secret."""
        return {"secret_key": np.frombuffer(self.secret_key.to_bytes(), np.uint8)}

    @classmethod
    def from_parts(cls, spec: ClientSpec, parts: Mapping[str, np.ndarray]) -> Client:
        """The inverse of :meth:`parts`, copied; FormatError if they are damaged or others."""
        if set(parts) != {"secret_key"}:
            raise FormatError(f"client: a secret_key and nothing else expected, not {', '.join(sorted(parts))}")
        inner = bytearray(parts["secret_key"])
        try:
            return cls(spec, SecretKey.from_bytes(inner))
        finally:
            wipe(inner)

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | bytes | None = None) -> Any:
        """Read what :meth:`save` wrote, or a lattice or staged client's; one FormatError for a wrong passphrase or an
        altered file."""
        kind = kind_of(path)
        if kind == "lattice-client":
            return _lattice_client().load(path, passphrase)
        if kind == "staged-client":
            return _staged_client().load(path, passphrase)
        with opened_secret(path, _KIND, _FIELDS, ("program_id",), passphrase) as content:
            try:
                text = content.tensors["spec"].tobytes().decode()
            except UnicodeDecodeError:
                raise FormatError(f"{path}: the client spec is not UTF-8") from None
            spec = ClientSpec.from_json(text)
            check_match(str(path), "program_id", content.metadata["program_id"], spec.program_id)
            return cls.from_parts(spec, {"secret_key": content.tensors["secret_key"]})
